"""Random transforms of tiles that depend on nothing but seed, epoch, tile and copy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError
from microtome_training.options.train import AugmentOptions, AugmentWhich


def generator(*parts: object) -> np.random.Generator:
    """Make a generator of random numbers that is the same wherever its parts are."""
    text = "/".join(map(str, parts)).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


@dataclass(frozen=True)
class Augmentation:
    """The random transforms of a training's tiles.

    Attributes:
        options: What may happen to a tile.
        seed: Of the training.
    """

    options: AugmentOptions
    seed: int

    def __post_init__(self) -> None:
        options = self.options
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(options, name) < 1:
                raise ConfigError(f"train.augment.{name} must be 0 or more and below 1.")
        if not 0 <= options.hue <= 0.5:
            raise ConfigError(f"train.augment.hue={options.hue:g} must be from 0 to 0.5.")

    def applies_to(self, label: int) -> bool:
        """Say whether a tile of that label is transformed."""
        which = self.options.which
        return which is AugmentWhich.all or (which is AugmentWhich.positive and label > 0)

    def __call__(
        self, pixels: NDArray[np.uint8], epoch: int, key: str, copy: int
    ) -> NDArray[np.uint8]:
        """Transform a tile.

        Args:
            pixels: (h, w, 3).
            epoch: Of the training.
            key: Of the tile.
            copy: Which of the times that it appears in the epoch.

        Returns:
            (h, w, 3) uint8.
        """
        draw = generator("augment", self.seed, epoch, key, copy)
        if self.options.flips:
            turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
            pixels = np.rot90(pixels, turns)
            pixels = pixels[:, ::-1] if mirrored else pixels
        return self._coloured(np.ascontiguousarray(pixels), draw)

    def _coloured(self, pixels: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
        from torchvision.transforms.v2 import functional  # torch: options are checked without it

        options = self.options
        factors = draw.uniform(-1, 1, 4).tolist()
        # On Pillow's image: torch shares out such small work among its threads, which costs more
        # than the work.
        image = Image.fromarray(pixels)
        if options.brightness:
            image = functional.adjust_brightness(image, 1 + options.brightness * factors[0])
        if options.contrast:
            image = functional.adjust_contrast(image, 1 + options.contrast * factors[1])
        if options.saturation:
            image = functional.adjust_saturation(image, 1 + options.saturation * factors[2])
        if options.hue:
            image = functional.adjust_hue(image, options.hue * factors[3])
        return np.array(image)
