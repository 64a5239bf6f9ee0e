"""``microtome demo``: the whole job on a synthetic slide."""

from __future__ import annotations

import re

import h5py
import pytest

from microtome.__main__ import main


def test_the_demo_runs_and_reads_back_what_it_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    said = capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["microtome-demo"]
    folder = tmp_path / "microtome-demo"
    with h5py.File(folder / "patches" / "demo.h5") as file:
        tiles = len(file["coords"])
        assert file["features/handcrafted"].shape[0] == tiles
    assert tiles > 20
    assert f"{tiles} tiles" in said
    assert "encoder=handcrafted" in said
    for name in ("demo.png", "demo_mask.png", "demo_contours.png"):
        assert (folder / "visualization" / name).is_file()
        assert name in said
    agreement = re.search(r"IoU ([\d.]+) with the truth, (\d+)% of the pen", said)
    assert agreement
    assert float(agreement[1]) > 0.85
    assert int(agreement[2]) <= 10


def test_its_command_line_is_the_one_that_it_prints(tmp_path, monkeypatch, capfd):
    seen = []
    monkeypatch.setattr("microtome.commands.demo._run", lambda words: seen.extend(words) or 3)
    monkeypatch.setattr("microtome.commands.demo.SIZE", (512, 384))
    assert main(["demo", "--output", str(tmp_path / "my demo")]) == 3
    assert f"output={tmp_path / 'my demo'}" in seen
    assert "Read back" not in capfd.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capfd):
    (tmp_path / "taken").touch()
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 1
    said = capfd.readouterr().err
    assert said.startswith("microtome: ")
    assert len(said.splitlines()) == 1


def test_its_help_is_its_own(capfd):
    assert main(["demo", "--help"]) == 0
    assert "--output" in capfd.readouterr().out


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
