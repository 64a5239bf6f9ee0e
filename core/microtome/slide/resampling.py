"""Bring tiles to size, by recipes whose pixels anybody can make again with Pillow or OpenCV."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError
from microtome.slide.clock import timed

_TORCH_RATIOS = (1.5, 2.0, 3.0)
"""Ratios at which torch's kernel is Pillow's, bit for bit. Pillow holds its weights in 22 bits,
torch in 15. At these ratios every weight is k/8, which both hold exactly, or k/7 or k/9, which
cannot give the half between two grey levels that rounding could turn either way. Elsewhere, also
at 2.5, 5, 6 and 8, images of few grey levels meet such ties and differ by one level."""


def resample_tiles(
    pixels: NDArray[np.uint8],
    size: int,
    recipe: str = "pil-bilinear",
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Bring tiles to a square size, each by itself.

    Args:
        pixels: (n, h, w, 3) uint8.
        size: Side in pixels.
        recipe: ``"pil-bilinear"`` is Pillow's ``resize(BILINEAR)``, antialiased. Its pixels are
            the same with and without torch, whose faster kernel is used where torch is loaded
            already and provably agrees. ``"area"`` is the mean over the exact area
            (OpenCV's ``INTER_AREA``).
        out: (n, size, size, 3) uint8, contiguous, to be filled; made if None.

    Returns:
        (n, size, size, 3) uint8: ``out``, or ``pixels`` itself where the size fits and there is
        no ``out``.

    Raises:
        ConfigError: If there is no such recipe.
    """
    if recipe not in _RECIPES:
        raise ConfigError(f"No resampling recipe {recipe!r}; available: {', '.join(_RECIPES)}.")
    fits = pixels.shape[1:3] == (size, size)
    if fits and out is None:
        return pixels
    out = np.empty((len(pixels), size, size, 3), np.uint8) if out is None else out
    with timed("resize"):
        if fits:
            out[:] = pixels
        elif len(pixels):
            _RECIPES[recipe](pixels, out)
    return out


def _pil_bilinear(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    _, height, width, _ = pixels.shape
    size = out.shape[1]
    if "torch" in sys.modules and height == width and width / size in _TORCH_RATIOS:
        _torch_bilinear(pixels, out)
        return
    for row, tile in enumerate(pixels):
        image = Image.fromarray(tile).resize((size, size), Image.Resampling.BILINEAR)
        out[row] = np.asarray(image)


def _torch_bilinear(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    import torch

    # Channels last is how the pixels lie already, and torch's fast path.
    tiles = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        tiles, size=out.shape[1:3], mode="bilinear", antialias=True
    )
    out[:] = resized.permute(0, 2, 3, 1).numpy()


def _area(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    import cv2

    count, height, width, _ = pixels.shape
    size = out.shape[1]
    if not (height % size or width % size):
        # Whole boxes, of which none lies in two tiles: one picture of all tiles gives the same.
        pixels = pixels.reshape(1, count * height, width, 3)
        out = out.reshape(1, count * size, size, 3)
    for tile, row in zip(pixels, out, strict=True):
        cv2.resize(tile, (size, row.shape[0]), dst=row, interpolation=cv2.INTER_AREA)


_RECIPES = {"pil-bilinear": _pil_bilinear, "area": _area}
