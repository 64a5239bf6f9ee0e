"""The page, the version and the verbs: answered without Hydra or any heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from config_standins import encoder, module

from microtome import __version__, commands
from microtome.__main__ import main
from microtome.config.help import page

HEAVY = {
    "hydra", "omegaconf", "torch", "torchvision", "timm", "cucim", "openslide", "sam2", "cv2",
    "h5py", "zarr", "tifffile", "imagecodecs", "numpy", "rich",
}  # fmt: skip

# Registers 200 stand-in encoders through a distribution of their own, as a stranger would.
STANDINS = """
from microtome.plugin import EncoderSpec, hookimpl

@hookimpl
def microtome_encoders():
    for i in range(200):
        yield EncoderSpec(name=f"standin_{i:03d}", target="torch.nn:Module", summary="One of many")
"""


@pytest.mark.parametrize("line", [["--help"], ["-h"], [], ["--version"], ["plugins"]], ids=str)
def test_nothing_heavy_is_imported(line, tmp_path):
    (tmp_path / "many_standins.py").write_text(STANDINS)
    info = tmp_path / "many_standins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: many-standins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microtome]\nmany = many_standins\n")
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from microtome.__main__ import main
        code = main({line!r})
        import json
        print(json.dumps([code, sorted(sys.modules)]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *page_lines, record = done.stdout.splitlines()
    code, modules = json.loads(record)
    assert code == 0
    assert HEAVY.isdisjoint(modules)
    if line != ["--version"]:
        assert "standin_137" in "\n".join(page_lines)


def test_page_names_everything(registry, capsys):
    assert main(["a.svs", "--help"]) == 0
    shown = capsys.readouterr().out
    for kind in ("reader", "segmenter", "tiler", "encoder", "writer"):
        for name in registry.names(kind):
            assert name in shown
    for verb, summary in commands.find_verbs().items():
        assert f"{verb} " in shown
        assert summary.split()[0] in shown
    assert shown.count("\n  microtome ") == 5  # the examples


def test_page_wraps_hundreds_of_names(registry, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    many = [encoder(f"standin_{i:03d}") for i in range(300)]
    registry.add(module("many", encoders=many), "many", "many")
    kinds = page(registry, {}).partition("Plugins")[2].partition("Keys")[0]
    assert max(map(len, kinds.splitlines())) <= 80
    assert "standin_299" in kinds


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"microtome {__version__}\n"


def test_help_behind_two_dashes_is_a_slide(registry, capsys):
    assert main(["output=out", "--", "--help"]) == 1
    assert "no file or folder '--help'" in capsys.readouterr().err


def test_a_verb_wins_over_a_file_of_its_name(runs, monkeypatch, tmp_path, capsys):
    (tmp_path / "plugins").touch()
    assert main(["plugins", "tiler"]) == 0
    assert capsys.readouterr().out.startswith("tiler (")
    assert main(["./plugins", "output=out", "reader=openslide"]) == 0
    assert runs[0].slides == ("./plugins",)


def test_every_verb_has_a_summary():
    verbs = commands.find_verbs()
    assert {"plugins", "doctor"} <= verbs.keys()
    assert all(verbs.values())
