"""MOOZY (Kotp et al. 2026), by its package: a transformer over tiles, another over slides."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import ConfigError, WeightsError
from microtome.plugin.weights.files import RANDOM
from microtome.slide.bags import TileBag
from microtome_encoders.bag_options import MoozyConfig
from microtome_encoders.patch.published import PublishedModel
from microtome_encoders.recipe import SlideRecipe
from microtome_encoders.slide.packaged import Embedded, PackagedModel, PackagedSlideEncoder

PARTS = ("slide_encoder", "case_transformer")
_PREFIX = 5
"""Tokens besides the tiles': the class token and four registers."""
_BYTES = 120
"""A pair of tokens needs: the package's own limits are 12,000 tokens in 16 GiB of a GPU, 27,000 in
80 GiB (``INFERENCE_TOKEN_PRESETS`` of moozy 0.1.0)."""
_DOES_NOT_FIT = (RuntimeError, KeyError, ValueError, TypeError, AttributeError)


class Moozy(PublishedModel, PackagedModel):
    """Both transformers, of tiles and of slides.

    Args:
        config: The user's options.
        recipe: The row.

    Raises:
        ConfigError: If random weights are asked for, or less than one tile.
    """

    recipe: SlideRecipe

    package = "moozy"
    spare = "give a device with more memory, or max_tiles, which thins them out."

    def __init__(self, config: MoozyConfig, *, recipe: SlideRecipe) -> None:
        super().__init__(config, recipe=recipe)
        self.max_tiles = config.max_tiles
        if config.weights == RANDOM:
            raise ConfigError(
                "MOOZY has no random weights, since its architecture is in its checkpoint: give "
                "weights=hub or the path of that file, moozy.pt."
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"max_tiles={self.max_tiles} leaves no tile: give 1 at least.")

    def build(self) -> nn.Module:
        """Make an empty model: what it is made of is in the checkpoint."""
        return nn.Module()

    def fit_file(self, model: nn.Module, path: Path, where: str) -> None:
        """Have the package build both parts with the checkpoint's weights.

        Raises:
            EncoderError: If it is refused, or is no checkpoint of MOOZY.
        """
        factory = import_module("moozy.models.factory")

        def load() -> Any:
            return factory.load_stage2_inference_model(str(path), device=torch.device("cpu"))

        try:
            made = self.guarded(path, load)
        except _DOES_NOT_FIT as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(
                f"The weights in {where} are no checkpoint of MOOZY that its package can load "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]})."
            ) from error
        for part in PARTS:
            model.add_module(part, getattr(made, part))

    def class_token(self, model: Any, bag: TileBag) -> Tensor:
        """Embed a slide as the class token of the transformer over tiles, (1, dim).

        Given are (1, n, 1, 384) features, (1, n, 1, 2) float32 level-0 pixels, and (1,) the side
        of a tile there, by which the model divides distances. Of more tiles than `max_tiles` it is
        given as many, evenly from the top, as the package does where a GPU is too small.
        """
        tiles = len(bag)
        kept = self.kept(tiles)
        rows = np.arange(kept, dtype=np.int64) * tiles // kept
        token: Tensor = model.slide_encoder(
            self.tensor(self.features(bag)[rows])[None, :, None],
            mask=None,
            invalid_mask=None,
            coords_xy=self.tensor(bag.coords[rows])[None, :, None],
            patch_sizes=self.tensor(np.array([bag.tile_size_level0])),
        )[0]
        return token

    def case_token(self, model: Any, slides: Tensor) -> Tensor:
        """Embed a patient, of whose slides are given (slides, dim), as (dim,)."""
        token: Tensor = model.case_transformer(slides)
        return token

    def kept(self, tiles: int) -> int:
        """Count the tiles of a slide that the model is given."""
        return tiles if self.max_tiles is None else min(tiles, self.max_tiles)

    def attention_bytes(self, tiles: int) -> int:
        """Estimate the bytes of attention, which is quadratic in the number of a slide's tiles."""
        return _BYTES * (self.kept(tiles) + _PREFIX) ** 2


class MoozySlideEncoder(Moozy, PackagedSlideEncoder):
    """A slide as the class token of its tiles, or as a patient with this slide alone."""

    def memory(self, tiles: int, extent: tuple[int, int]) -> int:
        """Estimate the bytes of attention."""
        return self.attention_bytes(tiles)

    def embed(self, model: Any, bag: TileBag) -> Embedded:
        """Give the class token, or the case token over it alone."""
        token = self.class_token(model, bag)
        return Embedded(self.case_token(model, token) if self.variant == "case" else token)
