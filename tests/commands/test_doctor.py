"""``microtome doctor``, on libraries of its own making: the real ones are slow to import."""

from __future__ import annotations

import pytest

from microtome.__main__ import main
from microtome.commands import doctor
from microtome.plugin.registry import Broken, Registry


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


def test_broken_plugin(body, monkeypatch, capsys):
    registry = Registry()
    registry.broken.append(Broken("ruin", "ruin-dist", "ImportError: no ruin"))
    monkeypatch.setattr(doctor, "get_registry", lambda: registry)
    assert main(["doctor"]) == 1
    assert "ruin-dist: ImportError: no ruin" in capsys.readouterr().out
