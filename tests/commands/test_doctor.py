"""``microtome doctor``, on libraries of its own making: the real ones are slow to import."""

from __future__ import annotations

import os

import pytest

from microtome.__main__ import main
from microtome.commands import doctor
from microtome.plugin.registry import Broken, Registry
from microtome.run.planning import budget


@pytest.fixture
def body(monkeypatch, tmp_path):
    """Examine only modules written here; give a function that writes one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "NEEDED", ())
    monkeypatch.setattr(doctor, "OPTIONAL", ())
    monkeypatch.setattr(doctor, "get_registry", Registry)

    def put(name: str, code: str, which: str = "NEEDED") -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setattr(doctor, which, (name,))

    return put


def test_all_well(body, capsys):
    body("library_that_works", "__version__ = '1.2.3'\n")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "library_that_works     1.2.3" in out
    assert "✗" not in out


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import time; time.sleep(600)", "did not end within 1 s"),
        ("import os; os.abort()", "killed by signal 6"),
        ("raise ImportError('libfoo.so is missing')", "libfoo.so is missing"),
    ],
    ids=["hangs", "crashes", "raises"],
)
def test_library_that_does_not_import(code, told, body, capsys):
    body("library_in_ruins", code, "OPTIONAL")
    assert main(["doctor", "--timeout", "1"]) == 1
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "library_in_ruins" in x)
    assert line.startswith("✗")
    assert told in line


@pytest.mark.parametrize("ruin", ["import time; time.sleep(600)", "raise ImportError('no')"])
def test_libraries_that_need_each_other(ruin, body, monkeypatch, capsys):
    """They share a child; one in ruins leaves what was found before it."""
    names = ("library_first", "library_second", "library_third")
    for name, code in zip(names, ("__version__ = '7'", ruin, ""), strict=True):
        body(name, code)
    monkeypatch.setattr(doctor, "NEEDED", names)
    monkeypatch.setattr(doctor, "IN_TURN", (*names, "library_that_nobody_asked_for"))
    assert main(["doctor", "--timeout", "1"]) == 1
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    assert first.split() == ["library_first", "7"]
    assert second.startswith("✗ library_second")
    assert third.endswith("not looked at, since it needs library_second")


def test_gpus_are_listed_by_the_names_that_options_take(body, capsys, monkeypatch):
    body(
        "library_of_gpus",
        "from types import SimpleNamespace as S\n"
        "__version__ = '2'\n"
        "cuda = S(is_available=lambda: True, device_count=lambda: 2,\n"
        "  get_device_name=lambda i: 'H100',\n"
        "  get_device_properties=lambda i: S(total_memory=80 << 30))\n",
        "NEEDED",
    )
    told = {"library_of_gpus": doctor._VERSIONS["torch"]}
    monkeypatch.setattr(doctor, "_VERSIONS", told)
    main(["doctor"])
    assert "2, cuda:0 H100 80 GiB, cuda:1 H100 80 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(("which", "code"), [("NEEDED", 1), ("OPTIONAL", 0)])
def test_library_that_is_not_installed(which, code, body, monkeypatch, capsys):
    monkeypatch.setattr(doctor, which, ("no_such_library",))
    assert main(["doctor"]) == code
    assert "not installed" in capsys.readouterr().out


def test_token_is_never_shown(body, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    main(["doctor"])
    assert "Hugging Face token     none" in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "Hugging Face token     present" in out
    assert "topsecret" not in out


def test_offline_and_granted_cpus_are_told(body, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "offline by HF_HUB_OFFLINE" in out
    assert "CPUs                   1 usable" in out


def test_what_grants_cpus_is_told_apart(body, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(budget, "CGROUP", tmp_path)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    (tmp_path / "cpu.max").write_text("300000 100000")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "CPUs                   3 usable" in out
    assert "by affinity          8\n" in out
    assert "by cgroup quota      3\n" in out
    assert "by SLURM             16\n" in out


def test_libraries_are_imported_at_the_same_time(body, monkeypatch, capsys, tmp_path):
    # Each waits for the other: one after the other, neither import would end.
    wait = "while not pathlib.Path(__file__).with_name({!r}).exists(): time.sleep(0.01)\n"
    for name, other in (("library_one", "two_is_here"), ("library_two", "one_is_here")):
        here = f"{name.removeprefix('library_')}_is_here"
        code = f"import pathlib, time\npathlib.Path(__file__).with_name({here!r}).touch()\n"
        body(name, code + wait.format(other))
    monkeypatch.setattr(doctor, "NEEDED", ("library_one", "library_two"))
    assert main(["doctor"]) == 0
    assert "✗" not in capsys.readouterr().out


def test_findings_come_as_imports_end(body, monkeypatch, tmp_path):
    """The one that waits for a file is told last, whatever the order."""
    told = tmp_path / "told"
    wait = (
        f"import pathlib, time\nwhile not pathlib.Path({str(told)!r}).exists(): time.sleep(0.01)\n"
    )
    body("library_slow", wait)
    body("library_quick", "")
    monkeypatch.setattr(doctor, "NEEDED", ("library_slow", "library_quick"))
    seen = []
    for finding in doctor.examine():
        seen.append(finding.name)
        if finding.name == "library_quick":
            told.touch()
    assert seen[-2:] == ["library_quick", "library_slow"]


def test_broken_plugin(body, monkeypatch, capsys):
    registry = Registry()
    registry.broken.append(Broken("ruin", "ruin-dist", "ImportError: no ruin"))
    monkeypatch.setattr(doctor, "get_registry", lambda: registry)
    assert main(["doctor"]) == 1
    assert "ruin-dist: ImportError: no ruin" in capsys.readouterr().out
