"""The stand-in hub for every test of segmenters, and small networks for those of SAM 2.1."""

from __future__ import annotations

import pytest
from standin_hub import hub

from microtome.testing import make_slide

__all__ = ["hub"]


@pytest.fixture
def slide(tmp_path):
    """Make a slide."""
    return make_slide(tmp_path / "one.svs", size=(1024, 768)).path


@pytest.fixture
def small(monkeypatch):
    """Make small networks of SAM 2.1's recipes."""
    import small_sam2

    small_sam2.install(monkeypatch.setattr)


@pytest.fixture
def checkpoint(small, tmp_path):
    """Save small random weights of SAM 2.1 in the published layout."""
    import torch

    from microtome_segmenters.sam2_model import build_model

    path = tmp_path / "small.pt"
    torch.save({"model": build_model("tiny", seed=5).state_dict()}, path)
    return path


@pytest.fixture
def dark(small, monkeypatch):
    """Let darkness stand in for the judgement of SAM 2.1's network."""
    from small_sam2 import DarkPredictor

    monkeypatch.setattr("microtome_segmenters.sam2.import_predictor", lambda: DarkPredictor)
    monkeypatch.setattr(DarkPredictor, "calls", [])
    return DarkPredictor
