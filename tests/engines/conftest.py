"""Slides to be lost on, and hazards that worker processes find as installed plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import microtome
from microtome.plugin import registry
from microtome.run.progress import SilentReporter
from microtome.testing import make_slide

GRID = {"grid": {"magnification": 20, "size": 128}}


@pytest.fixture
def hazards(tmp_path, monkeypatch):
    """Install the hazards for this process and its children."""
    site = tmp_path / "site"
    info = site / "hazards-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hazards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microtome]\nhazards = hazards\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("HAZARD_HUNGRY", str(tmp_path / "hungry"))
    registry.get_registry.cache_clear()
    yield
    sys.modules.pop("hazards", None)
    registry.get_registry.cache_clear()


@pytest.fixture
def slides(tmp_path):
    """Make small slides by name, each with a content of its own."""
    folder = tmp_path / "slides"
    folder.mkdir()

    def make(*names):
        for seed, name in enumerate(names):
            make_slide(folder / f"{name}.svs", size=(768, 640), seed=seed)
        return folder

    return make


@pytest.fixture
def go(tmp_path):
    """Run slides by an engine, ``local`` unless told otherwise."""

    def run(slides, *, engine="local", output="out", **options):
        options.setdefault("reporter", SilentReporter())
        chosen = {engine: options.pop("workers", {})}
        return microtome.run_slides(
            slides, tmp_path / output, engine=chosen, **({"tiler": GRID} | options)
        )

    return run
