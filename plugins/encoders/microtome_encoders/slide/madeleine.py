"""MADELEINE (Jaume et al. 2024), by its package: its encoder of slides stained with H&E."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from microtome.errors import EncoderError
from microtome.plugin.weights.files import HUB, RANDOM, file_digest
from microtome.plugin.weights.hub import fetch_hub
from microtome.slide.bags import TileBag
from microtome_encoders.slide.packaged import Embedded, PublishedSlideEncoder

CONFIG = "model_config.json"
_BYTES = 64 * 1024
"""A tile needs: some copies of four heads of 512 in float32."""


class MadeleineSlideEncoder(PublishedSlideEncoder):
    """Attention over the tiles in several heads, then a projection."""

    package = "madeleine"

    @cached_property
    def config_file(self) -> Path:
        """The model's configuration: of its hub entry, or beside the user's file of weights."""
        if self.config.weights in (HUB, RANDOM):
            return fetch_hub(self.name, self.revision, [CONFIG]).path
        path = self.weights_file.path.with_name(CONFIG)
        if not path.is_file():
            raise EncoderError(
                f"There is no {CONFIG} beside {self.weights_file.path}, which says how {self.name} "
                f"is built: put the one of its hub entry there."
            )
        return path

    def files(self) -> Sequence[Path]:
        """Find or download the configuration and the weights."""
        return (self.config_file, *super().files())

    def weights(self) -> Mapping[str, str]:
        """Say which weights these are, and by which configuration they are put together."""
        return {**super().weights(), "config": f"sha256:{file_digest(self.config_file)}"}

    def build(self) -> nn.Module:
        """Make the model with random weights.

        The package would load the file too, but onto the GPU that it was saved on, and whatever
        code is in it.
        """
        package = import_module("madeleine.models.Model")
        config = Namespace(**json.loads(self.config_file.read_text("utf-8")))
        model: nn.Module = package.create_model(config, device="cpu", checkpoint_path=None)
        return model

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate the bytes of attention, which is linear in the number of tiles."""
        return _BYTES * tiles

    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Give (1, n, 512) features."""
        feats = self.tensor(self.features(bag))[None]
        return Embedded(model.encode_he(feats=feats, device=self._device))
