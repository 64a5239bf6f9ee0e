"""A run on a synthetic slide, with stand-ins beside the installed plugins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import standins
from label_runs import GRID, LABELS, SQUARE, asap
from staged import SIZE

import microtome
from microtome.run.progress import SilentReporter

OPTIONS = {"segmenter": "classic", "encoder": "mean", "tiler": {"grid": {"magnification": 20}}}


@pytest.fixture(autouse=True)
def plugins(fresh_registry):
    """Register the stand-ins."""
    fresh_registry.add(standins.Plugins, "standins", "microtome-standins")
    assert not fresh_registry.broken
    return fresh_registry


@pytest.fixture
def slide(tmp_path, synthetic):
    """Give a copy of the synthetic slide in a folder of its own."""
    folder = tmp_path / "slides"
    folder.mkdir()
    return Path(shutil.copy(synthetic.path, folder / "one.svs"))


@pytest.fixture
def go(tmp_path):
    """Run slides into ``tmp_path/out`` with quick defaults."""

    def run(slides, **options):
        reporter = options.pop("reporter", None) or SilentReporter()
        output = options.pop("output", tmp_path / "out")
        return microtome.run_slides(slides, output, reporter=reporter, **(OPTIONS | options))

    return run


@pytest.fixture
def quick_cache(tmp_path, monkeypatch):
    """Have the default cache of slides in ``tmp_path/home``, and its waiting short."""
    monkeypatch.setattr("microtome.run.inputs.cache._POLL", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def files(tmp_path):
    """Make four slides of 1000 bytes, for the cache, which does not look into them."""
    folder = tmp_path / "far"
    folder.mkdir()
    paths = [folder / f"{name}.svs" for name in "abcd"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * SIZE)
    return paths


@pytest.fixture
def ann(tmp_path):
    """Give a folder with the outlines of the slide."""
    asap(tmp_path / "ann/one.xml", SQUARE)
    return tmp_path / "ann"


@pytest.fixture
def label(go, slide, ann):
    """Run the slide with labels by the folder ``ann``."""

    def run(slides=slide, **options):
        given = {"segmenter": "none", "tiler": GRID, "annotations": ann}
        return go(slides, **(given | {"labels": LABELS} | options))

    return run
