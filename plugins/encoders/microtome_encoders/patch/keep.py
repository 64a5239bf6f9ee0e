"""KEEP (Zhou et al. 2026): a ViT-L/16 of timm and a projection of two layers.

Its entry's own code replaces a class of timm for the whole process, so the tower is built here.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn
from torch.nn.functional import normalize

from microtome_encoders.patch.dense import Anatomy, timm_anatomy
from microtome_encoders.patch.published import PublishedEncoder, State


class Tower(nn.Module):
    """A trunk and the projection into the space that text shares."""

    def __init__(self, visual: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.visual_head = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) images as (n, dim), of length 1."""
        embedding: Tensor = normalize(self.visual_head(self.visual(images)), dim=-1)
        return embedding


class KeepEncoder(PublishedEncoder):
    """The image tower of KEEP."""

    def build(self) -> nn.Module:
        """Make the image tower with random weights."""
        arguments = self.recipe.arguments
        visual: Any = timm.create_model(self.recipe.architecture, num_classes=0, **arguments)
        return Tower(visual, visual.num_features, self.recipe.card.dim)

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Say where the trunk has its tokens, before the projection."""
        return timm_anatomy(model.get_submodule("visual"))

    def adapt(self, state: State) -> State:
        """Drop the text tower, and give the scales of its layers timm's name for them."""
        return {
            name.replace(".ls1.weight", ".ls1.gamma").replace(".ls2.weight", ".ls2.gamma"): value
            for name, value in super().adapt(state).items()
        }
