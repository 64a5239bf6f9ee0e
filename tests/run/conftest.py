"""A run on a synthetic slide, with stand-ins beside the installed plugins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import standins

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
