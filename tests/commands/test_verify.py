"""``microtome verify``: what it prints and how it ends; what it finds is tests/store's business."""

from __future__ import annotations

import json

import pytest

from microtome.__main__ import main
from microtome.store.layout import OutputLayout
from microtome.store.status import SlideStatus, write_status


@pytest.fixture
def out(tmp_path):
    """An output of one slide that failed."""
    status = SlideStatus(slide_id="a\nb", path="a.svs", state="failed", stage="open")
    write_status(OutputLayout(tmp_path / "out").status("a\nb"), status)
    return tmp_path / "out"


@pytest.fixture
def spoilt(out):
    (out / "status/a\nb.json").write_text("{")
    return out


@pytest.mark.parametrize("words", [[], ["--deep"], ["--quick"]])
def test_a_clean_output(out, capsys, words):
    assert main(["verify", str(out), *words]) == 0
    assert capsys.readouterr().out == "1 file of 1 slide checked, 0 faults.\n"


def test_a_fault_is_a_line_and_1(spoilt, capsys):
    assert main(["verify", str(spoilt)]) == 1
    said = capsys.readouterr()
    line, counts = said.out.splitlines()
    assert "a\\nb.json is not a status record of microtome, or is damaged. Delete it" in line
    assert counts == "1 file of 1 slide checked, 1 fault."
    assert said.err == ""


def test_json(spoilt, capsys):
    assert main(["verify", str(spoilt), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == found["slides"] == 1
    assert found["running"] == found["notes"] == []
    (fault,) = found["faults"]
    assert fault.pop("message").startswith(str(spoilt))
    assert fault == {
        "kind": "record",
        "slide_id": "a\nb",
        "tiling": "",
        "path": "status/a\nb.json",
    }


def test_notes_are_told_and_are_no_fault(out, capsys):
    (out / "status/.a.json.0badcafe-1-00000000.tmp").touch()
    assert main(["verify", str(out)]) == 0
    note, _ = capsys.readouterr().out.splitlines()
    assert note.startswith("1 private files (.tmp) belong to processes of other machines")


def test_a_bar_in_a_terminal(out, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["verify", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "1 file of 1 slide checked, 0 faults.\n"


def test_nothing_is_written(out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    main(["verify", str(out)])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_deep_or_quick(out, capsys):
    assert main(["verify", str(out), "--deep", "--quick"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_folder_that_is_no_output(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "is not an output of microtome" in capsys.readouterr().err
