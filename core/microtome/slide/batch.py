"""A batch of tiles, lent to every encoder: each preparation is made once and shared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import torch

    from microtome.plugin.specs import Transform

_T = TypeVar("_T")
_FILTERS = ("bilinear", "bicubic", "lanczos", "nearest", "box")
_TORCH_FILTERS = ("bilinear", "bicubic")


class TileBatch:
    """Some tiles of one slide and what encoders make of them before their models.

    What is prepared for one encoder is kept for the next with the same `Transform`, so a batch
    lives as long as its encoders need it and no longer. Not safe to share between threads.

    Attributes:
        pixels: (n, h, w, 3) uint8 RGB, lent: encoders must not write to it.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
    """

    def __init__(self, pixels: NDArray[np.uint8], coords: NDArray[np.int32]) -> None:
        self.pixels = pixels
        self.coords = coords
        self._made: dict[Hashable, object] = {}

    def __len__(self) -> int:
        """Count the tiles."""
        return int(self.pixels.shape[0])

    def split(self, size: int) -> list[TileBatch]:
        """Cut into batches of at most ``size`` tiles, which are views of this one."""
        if len(self) <= size:
            return [self]
        return [
            TileBatch(self.pixels[i : i + size], self.coords[i : i + size])
            for i in range(0, len(self), size)
        ]

    def prepared(self, transform: Transform) -> NDArray[np.uint8]:
        """Resize and crop as Pillow and torchvision do.

        Args:
            transform: Only its geometry counts. A crop larger than the tile pads with black.

        Returns:
            (n, height, width, 3) uint8; ``pixels`` itself where they fit already.

        Raises:
            ConfigError: If the transform names a filter or a mode that does not exist.
        """
        return self._prepared(transform, _resize_pillow)

    def array(self, transform: Transform) -> NDArray[np.float32]:
        """Prepare and normalise with numpy, for encoders that are not torch.

        Returns:
            (n, 3, height, width) float32.

        Raises:
            ConfigError: As `prepared` does.
        """

        def make() -> NDArray[np.float32]:
            tiles = self.prepared(transform)
            out = np.empty((len(self), 3, *tiles.shape[1:3]), np.float32)
            for channel, table in enumerate(_normalisation_table(transform)):
                out[:, channel] = table[tiles[..., channel]]
            return out

        return self._once(("array", transform), make)

    def tensor(self, transform: Transform, device: str, dtype: torch.dtype) -> torch.Tensor:
        """Prepare and normalise with torch.

        Bilinear and bicubic tiles are resized by torch's antialiased uint8 kernel: within one
        grey level of `prepared`, several times faster.

        Args:
            transform: The encoder's preprocessing.
            device: Where the tensor goes; uint8 travels, normalisation happens there.
            dtype: Of the result; it is computed in float32.

        Returns:
            (n, 3, height, width) in channels_last memory.

        Raises:
            ConfigError: As `prepared` does.
        """

        def make() -> torch.Tensor:
            tiles = self._prepared(transform, _resize_torch)
            return _normalise_torch(tiles, transform, device).to(dtype)

        return self._once(("tensor", transform, device, dtype), make)

    def _prepared(
        self, transform: Transform, resize: Callable[..., NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        def make() -> NDArray[np.uint8]:
            height, width = _resized_size(self.pixels.shape[1:3], transform)
            tiles = self.pixels
            if tiles.shape[1:3] != (height, width):
                tiles = resize(tiles, height, width, transform.interpolation)
            return tiles if transform.crop is None else _centre_crop(tiles, transform.crop)

        geometry = (
            transform.resize,
            transform.resize_mode,
            transform.crop,
            transform.interpolation,
        )
        return self._once((resize, geometry), make)

    def _once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        if key not in self._made:
            self._made[key] = make()
        made: _T = self._made[key]  # type: ignore[assignment]
        return made


def _resized_size(shape: tuple[int, ...], transform: Transform) -> tuple[int, int]:
    """Say (height, width) after resizing, with torchvision's truncation of the longer side."""
    height, width = shape
    if transform.interpolation not in _FILTERS:
        raise ConfigError(
            f"A transform's interpolation is one of {', '.join(_FILTERS)}, "
            f"not {transform.interpolation!r}."
        )
    size = transform.resize
    if size is None:
        return height, width
    if transform.resize_mode == "exact":
        return size, size
    if transform.resize_mode != "shortest_edge":
        raise ConfigError(
            f"A transform's resize_mode is shortest_edge or exact, not {transform.resize_mode!r}."
        )
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _centre_crop(tiles: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    """Crop the centre as torchvision does: black padding, ties of the offset to the even side."""
    pads = [max(crop - side, 0) for side in tiles.shape[1:3]]
    if any(pads):
        around = [(0, 0), *((pad // 2, (pad + 1) // 2) for pad in pads), (0, 0)]
        tiles = np.pad(tiles, around)
    top, left = (round((side - crop) / 2.0) for side in tiles.shape[1:3])
    return tiles[:, top : top + crop, left : left + crop]


def _resize_pillow(
    tiles: NDArray[np.uint8], height: int, width: int, interpolation: str
) -> NDArray[np.uint8]:
    from PIL import Image

    out = np.empty((tiles.shape[0], height, width, 3), np.uint8)
    resample = Image.Resampling[interpolation.upper()]
    for row, tile in enumerate(tiles):
        out[row] = np.asarray(Image.fromarray(tile).resize((width, height), resample))
    return out


def _resize_torch(
    tiles: NDArray[np.uint8], height: int, width: int, interpolation: str
) -> NDArray[np.uint8]:
    if interpolation not in _TORCH_FILTERS or not tiles.size:
        return _resize_pillow(tiles, height, width, interpolation)
    from torch.nn.functional import interpolate

    images = _from_numpy(tiles).permute(0, 3, 1, 2)
    resized = interpolate(images, (height, width), mode=interpolation, antialias=True)
    out: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).contiguous().numpy()
    return out


def _from_numpy(tiles: NDArray[np.uint8]) -> torch.Tensor:
    import torch

    # torch warns of memory that it must not write to, so read-only pixels are copied.
    return torch.from_numpy(np.require(tiles, requirements=["C", "W"]))


def _normalise_torch(tiles: NDArray[np.uint8], transform: Transform, device: str) -> torch.Tensor:
    """Give (n, 3, h, w) float32 in channels_last memory, in one pass over whole rows."""
    import torch

    images = _from_numpy(tiles).to(device)
    count, height, width, _ = images.shape
    # One row of constants the width of the image keeps the inner loop long: 10 x a broadcast of 3.
    std = torch.tensor(transform.std, dtype=torch.float64)
    mean = torch.tensor(transform.mean, dtype=torch.float64)
    scale = (1 / (255 * std)).float().repeat(width).to(device)
    shift = (-mean / std).float().repeat(width).to(device)
    rows = images.view(count, height, width * 3)
    normalised = torch.mul(rows, scale).add_(shift)
    return normalised.view(count, height, width, 3).permute(0, 3, 1, 2)


def _normalisation_table(transform: Transform) -> NDArray[np.float32]:
    """Tabulate ``(pixel / 255 - mean) / std`` for the 256 values of each channel."""
    if not all(math.isfinite(std) and std > 0 for std in transform.std):
        raise ConfigError(f"A transform's std must be above 0, not {transform.std}.")
    mean, std = (np.asarray(v, np.float64)[:, None] for v in (transform.mean, transform.std))
    return ((np.arange(256) / 255 - mean) / std).astype(np.float32)
