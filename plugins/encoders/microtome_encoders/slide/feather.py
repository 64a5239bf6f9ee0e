"""FEATHER (arXiv:2506.09022): gated attention over tiles, trained to tell 108 diagnoses apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded
from microtome_encoders.slide.remote import RemoteSlideEncoder


class FeatherEncoder(RemoteSlideEncoder):
    """The mean of the tiles' projections, by their attention."""

    def call(self, model: Any, features: Tensor, bag: TileBag) -> Embedded:
        """Give (1, n, dim) features; the attention that comes back is before its softmax."""
        embedding, log = model.forward_features(features)
        scores = log.get("attention")
        if scores is None:
            return Embedded(embedding)
        return Embedded(embedding, attention=scores.float().reshape(-1).softmax(0))
