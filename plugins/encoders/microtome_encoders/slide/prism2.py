"""PRISM2 (2026): PRISM's successor, a perceiver over tiles and a language model after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.phi3.modeling_phi3 import Phi3Model

from microtome.plugin.weights.files import HUB
from microtome.plugin.weights.hub import WeightsFile, fetch_hub
from microtome.slide.bags import TileBag
from microtome_encoders.patch.remote import RemoteModel
from microtome_encoders.slide.packaged import Embedded
from microtome_encoders.slide.remote import RemoteSlideEncoder

DIAGNOSTIC = "diagnostic"
_MASK = "_prepare_4d_causal_attention_mask_with_cache_position"


class Prism2Encoder(RemoteSlideEncoder):
    """A slide's embedding by the perceiver, or by the language model that is asked after it."""

    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Give (1, n, 1280) features, and (1, n) int32 that no tile is padding."""
        mask = torch.ones(features.shape[:2], dtype=torch.int32, device=features.device)
        call = (
            model.get_diagnostic_embedding
            if self.variant == DIAGNOSTIC
            else model.get_base_embedding
        )
        return Embedded(call(tile_embeddings=features, attention_mask=mask))

    @cached_property
    def parts(self) -> Sequence[WeightsFile]:
        """The files that the published weights are spread over, found or downloaded."""
        index = self.weights_file
        where: Mapping[str, str] = json.loads(index.path.read_text("utf-8"))["weight_map"]
        return [fetch_hub(self.name, index.commit, [name]) for name in sorted(set(where.values()))]

    def files(self) -> Sequence[Path]:
        """Find or download the code, the weights and all their parts."""
        parts = [part.path for part in self.parts] if self.config.weights == HUB else []
        return (*super().files(), *parts)

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are: of published ones, the hash of their parts' hashes."""
        said = super().weights()
        if self.config.weights != HUB:
            return said
        parts = hashlib.sha256("".join(part.sha256 for part in self.parts).encode())
        return {**said, "weights": f"sha256:{parts.hexdigest()}"}

    def load(self, device: str, precision: str) -> None:
        """Load the weights.

        Raises:
            EncoderError: As for every `RemoteModel`.
        """
        offer_mask()
        super().load(device, precision)
        if self.config.weights == HUB:
            self.loaded_weights = {**self.loaded_weights, "sha256": self.weights()["weights"][7:]}

    def build_pretrained(self, path: Path) -> nn.Module:
        """Make the model with the weights of its hub entry, as its library does, part by part."""
        for part in self.parts:
            part.check()
        return self.strip(RemoteModel.build_pretrained(self, path))

    def cast(self, model: nn.Module) -> None:
        """Bring the language model to the precision asked for: in float32 it takes 17 GB."""
        if self.variant == DIAGNOSTIC:
            model.to(self._dtype)

    def strip(self, model: nn.Module) -> nn.Module:
        """Take the language model out of it, where the base embedding is asked for."""
        return model if self.variant == DIAGNOSTIC else super().strip(model)


def offer_mask() -> None:
    """Give Phi-3 the helper that PRISM2's code calls, which transformers had until 4.52."""
    if not hasattr(Phi3Model, _MASK):
        setattr(Phi3Model, _MASK, staticmethod(causal_mask))


def causal_mask(  # noqa: PLR0913 - the arguments are transformers'
    attention_mask: Tensor | None,
    sequence_length: int,
    target_length: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    cache_position: Tensor | None = None,
    batch_size: int = 1,
    config: Any = None,
    past_key_values: Any = None,
) -> Tensor:
    """Say which tokens each token may look at: itself and what is before it, padding left out.

    Args:
        attention_mask: (batch, tokens), 0 where padded; one of four axes is given back as it is.
        sequence_length: Tokens that look.
        target_length: Tokens that are looked at.
        dtype: Of the mask.
        device: Where the mask is made; by default where the places are.
        cache_position: (sequence_length,) int64, the place of each token that looks; by default
            they are the first.
        batch_size: How many texts there are.
        config: Of the model; its ``sliding_window`` limits how far back a token looks.
        past_key_values: Changes nothing here.

    Returns:
        (batch, 1, sequence_length, target_length), 0 where it may and the least number of the
        dtype where not.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    if cache_position is None:
        cache_position = torch.arange(sequence_length)
    looking = cache_position.to(device or cache_position.device).reshape(-1, 1)
    looked_at = torch.arange(target_length, device=looking.device)
    hidden = looked_at > looking
    if window := getattr(config, "sliding_window", None):
        hidden |= looked_at <= looking - window
    hidden = hidden.expand(batch_size, 1, sequence_length, target_length).clone()
    if attention_mask is not None:
        padded = attention_mask[:, None, None, :target_length].to(hidden.device) == 0
        hidden[..., : padded.shape[-1]] |= padded
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)
