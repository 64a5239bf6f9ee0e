"""HEST's tissue segmentation, in the layout of its published checkpoint. The real one is unrun."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import view_of

from microtome.errors import SegmenterError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry


def make(**options):
    spec = get_registry().find("segmenter", "hest").spec
    return get_registry().create("segmenter", "hest", configure(spec, device="cpu", **options))


def test_it_is_the_published_architecture():
    """39.6 million parameters, as its publisher says, and two classes."""
    with torch.device("meta"):
        model = make(weights="random").build()
    assert sum(p.numel() for p in model.parameters()) == 39_633_986
    assert model.classifier[4].weight.shape == (2, 256, 1, 1)


@pytest.mark.slow  # 160 MB
def test_a_checkpoint_of_its_training_loads_strictly(tmp_path):
    model = make(weights="random", seed=3).build()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state["model.aux_classifier.4.bias"] = torch.zeros(21)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "deeplabv3_seg_v4.ckpt")
    segmenter = make(weights=str(tmp_path / "deeplabv3_seg_v4.ckpt"))
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    (mask,) = segmenter.segment([view_of(image, mpp=2.0)])
    assert mask.array.shape == (50, 75)
    assert mask.downsample == (160.0, 160.0)
    del state["model.classifier.4.bias"]
    torch.save({"state_dict": state}, tmp_path / "less.ckpt")
    with pytest.raises(SegmenterError, match=r"1 missing \(classifier\.4\.bias\)"):
        make(weights=str(tmp_path / "less.ckpt")).segment([view_of(image)])
