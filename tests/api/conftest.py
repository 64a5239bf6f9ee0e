"""Slides for the Python face, and stand-ins for models."""

from __future__ import annotations

import bag_standins
import pytest
import standins

import microtome
from microtome.testing import make_slide


@pytest.fixture
def plugins(fresh_registry):
    """Register the stand-ins."""
    fresh_registry.add(standins.Plugins, "standins", "microtome-standins")
    fresh_registry.add(bag_standins.Plugins, "bag_standins", "microtome-bag-standins")
    assert not fresh_registry.broken
    return fresh_registry


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Make small slides ``a`` to ``g``, of which ``e`` is cut short. Not to be written to."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, name in enumerate("abcdefg"):
        make_slide(folder / f"{name}.svs", size=(1024, 1024), tissue=0.6, seed=seed)
    whole = (folder / "e.svs").read_bytes()
    (folder / "e.svs").write_bytes(whole[:300])
    return folder


@pytest.fixture(autouse=True)
def silent():
    """Report nothing, unless a test has a reporter of its own."""
    with microtome.activate_progress_reporter(microtome.SilentReporter()):
        yield
