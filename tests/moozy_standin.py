"""A stand-in for the package of MOOZY, with its published call and the layout of its checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from package_standins import install, pickled, said
from torch import nn


class Slides(nn.Module):
    """The transformer over tiles: a mean in its place."""

    def __init__(self, heard):
        super().__init__()
        self.heard = heard
        self.input_proj = nn.Linear(384, 768)

    def forward(self, x, mask=None, invalid_mask=None, coords_xy=None, patch_sizes=None):
        """Give class tokens, tokens of tiles, and a mask."""
        self.heard.append(
            {
                "x": said(x),
                "mask": mask,
                "invalid_mask": invalid_mask,
                "coords_xy": said(coords_xy),
                "patch_sizes": patch_sizes.tolist(),
                "places": coords_xy[0, :, 0].long(),
                "training": self.training,
                "autocast": torch.is_autocast_enabled("cpu"),
            }
        )
        tokens = self.input_proj(x.flatten(1, 2))
        return tokens.mean(1), tokens, None


class Cases(nn.Module):
    """The transformer over slides: twice their sum in its place."""

    def __init__(self, heard):
        super().__init__()
        self.heard = heard
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, slide_tokens):
        """Give (dim,) of (slides, dim)."""
        self.heard.append(said(slide_tokens))
        return self.scale * slide_tokens.float().sum(0)


@pytest.fixture
def moozy(monkeypatch, tmp_path):
    """Give a checkpoint and what the package hears of tiles, of slides and of loading."""
    package = SimpleNamespace(file=tmp_path / "moozy.pt", slides=[], cases=[], loaded=[])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        slides = Slides([]).state_dict()
    payload = {"teacher_slide_encoder": slides, "slide_encoder_config": {"feat_dim": 384}}
    payload["case_transformer"] = {"scale": torch.tensor([2.0])}
    package.file.write_bytes(pickled(payload))

    def load_stage2_inference_model(checkpoint_path, device):
        package.loaded.append((checkpoint_path, device))
        payload = torch.load(checkpoint_path, map_location="cpu", weights_only=False)
        model = nn.Module()
        model.slide_encoder, model.case_transformer = Slides(package.slides), Cases(package.cases)
        model.slide_encoder.load_state_dict(payload["teacher_slide_encoder"], strict=True)
        model.case_transformer.load_state_dict(payload["case_transformer"], strict=True)
        return model.to(device).eval()

    install(
        monkeypatch,
        "moozy.models.factory",
        load_stage2_inference_model=load_stage2_inference_model,
    )
    return package
