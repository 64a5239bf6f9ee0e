"""Fixtures: stand-ins for what is installed, and a runner that only takes notes."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from config_standins import Runs, fill, use

from microtome.config import checks
from microtome.plugin.registry import Registry


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """Put the stand-ins in place of what is installed, also for Hydra."""
    filled = fill(Registry())
    return use(filled, monkeypatch)


@pytest.fixture
def runs(registry, monkeypatch, tmp_path) -> Runs:
    """Work in a folder with one slide, with a runner that only takes notes."""
    made = Runs()
    runner = ModuleType("microtome.run.runner")
    runner.run = made
    monkeypatch.setitem(sys.modules, "microtome.run.runner", runner)
    # The stand-ins are names without code, so nothing can be made of them.
    monkeypatch.setattr(checks, "check_run", lambda config, registry: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.svs").touch()
    return made
