"""CONCH (Lu et al. 2024) and CONCH 1.5 (Ding et al. 2024): a ViT of timm and a pooling head.

Built from what their own code says of them, so neither its package nor its libraries are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from microtome_encoders.patch.dense import Anatomy, timm_anatomy
from microtome_encoders.patch.published import PublishedEncoder, State

HEADS = 8
_POSITIONS = "trunk.pos_embed"


class _Pool(nn.Module):
    """A learned query that looks at the tokens.

    Args:
        dim: Of the query and of what comes out.
        context_dim: Of the tokens.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context_dim)


class AttentionPool(_Pool):
    """CONCH's."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__(dim, context_dim)
        self.attn = nn.MultiheadAttention(
            dim, HEADS, kdim=context_dim, vdim=context_dim, batch_first=True
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (n, tokens, context_dim) into (n, 1, dim)."""
        tokens = self.ln_k(tokens)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        pooled: Tensor = self.attn(queries, tokens, tokens, need_weights=False)[0]
        return pooled


class ProjectedPool(_Pool):
    """The same with projections that have no bias: CONCH 1.5's."""

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__(dim, context_dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (n, tokens, context_dim) into (n, 1, dim)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        pooled = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        out: Tensor = self.to_out(pooled)
        return out


POOLS: Mapping[str, type[AttentionPool] | type[ProjectedPool]] = MappingProxyType(
    {"attention": AttentionPool, "projected": ProjectedPool}
)
"""The heads, by the name of a recipe's pooling."""


class Tower(nn.Module):
    """A trunk, a head that pools its tokens, and a norm."""

    def __init__(self, trunk: nn.Module, pool: AttentionPool | ProjectedPool, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = pool
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) images as (n, dim), before the projection that text shares."""
        tokens = self.trunk(images)
        embedding: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens)[:, 0])
        return embedding


class ConchEncoder(PublishedEncoder):
    """The image tower of CONCH or CONCH 1.5, without its projection."""

    def build(self) -> nn.Module:
        """Make the image tower with random weights, its position embeddings those of its input."""
        card = self.recipe.card
        trunk: Any = timm.create_model(
            self.recipe.architecture,
            img_size=card.input_size,
            num_classes=0,
            global_pool="",
            **self.recipe.arguments,
        )
        pool = POOLS[self.recipe.pooling](card.dim, trunk.num_features)
        return Tower(trunk, pool, card.dim)

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Say where the trunk has its tokens; a query of the head pools them, no class token."""
        return replace(timm_anatomy(model.get_submodule("trunk")), block=None)

    def adapt(self, state: State) -> State:
        """Take the image tower out, and resample its position embeddings as its own code does."""
        state = super().adapt(state)
        side = (self.recipe.card.input_size or 0) // 16
        if _POSITIONS in state and state[_POSITIONS].shape[1] != side**2 + 1:
            resample = _as_conch if self.recipe.pooling == "attention" else _as_conch_1_5
            state = {**state, _POSITIONS: resample(state[_POSITIONS].float(), side)}
        return state


def _as_conch(positions: Tensor, side: int) -> Tensor:
    resampled: Tensor = resample_abs_pos_embed(
        positions, new_size=[side, side], interpolation="bilinear", antialias=False
    )
    return resampled


def _as_conch_1_5(positions: Tensor, side: int) -> Tensor:
    """Resample with a scale that is a tenth of a patch too large, as DINO's code does.

    That keeps rounding errors from losing a row, and moves every embedding a little.
    """
    old = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / old
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
