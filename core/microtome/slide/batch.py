"""A batch of tiles, lent to every encoder: each preparation is made once and shared."""

from __future__ import annotations

import math
import weakref
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError
from microtome.slide.clock import timed
from microtome.slide.resampling import resample_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    import torch

    from microtome.plugin.specs import Transform

_T = TypeVar("_T")
_FILTERS = ("bilinear", "bicubic", "lanczos", "nearest", "box")
_NOTHING: Mapping[Hashable, NDArray[np.uint8]] = MappingProxyType({})


def tile_geometry(transform: Transform) -> Hashable:
    """Give what resizing and cropping depend on: transforms that share it share prepared tiles."""
    return transform.resize, transform.resize_mode, transform.crop, transform.interpolation


def prepared_size(shape: tuple[int, int], transform: Transform) -> tuple[int, int]:
    """Say the (height, width) that tiles have once they are prepared.

    Args:
        shape: (height, width) of the tiles.
        transform: Only its geometry counts.

    Raises:
        ConfigError: If the transform names a filter or a mode that does not exist.
    """
    resized = _resized_size(shape, transform)
    return resized if transform.crop is None else (transform.crop, transform.crop)


def prepare_tiles(pixels: NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    """Resize and crop as the cards' own code does, which is Pillow's and torchvision's.

    To the bit: torch's antialiased uint8 kernel is several times faster, but beside Pillow's it is
    up to two grey levels off, in a few samples of a million. It is used where it agrees, as
    `resample_tiles` does. Safe from several threads at once; Pillow lets them run.

    Args:
        pixels: (n, h, w, 3) uint8.
        transform: Only its geometry counts. A crop larger than the tile pads with black.

    Returns:
        (n, height, width, 3) uint8; ``pixels`` itself, or a view, where nothing is resized.

    Raises:
        ConfigError: If the transform names a filter or a mode that does not exist.
    """
    height, width = _resized_size(pixels.shape[1:3], transform)
    with timed("resize"):
        if pixels.shape[1:3] != (height, width):
            pixels = _resize(pixels, height, width, transform.interpolation)
        return pixels if transform.crop is None else _centre_crop(pixels, transform.crop)


class TileBatch:
    """Some tiles of one slide and what encoders make of them before their models.

    What is prepared for one encoder is kept for the next with the same `Transform`, so a batch
    lives as long as its encoders need it and no longer. Not safe to share between threads.

    Attributes:
        pixels: (n, h, w, 3) uint8 RGB, lent: encoders must not write to it.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.

    Args:
        pixels: Of the attribute.
        coords: Of the attribute.
        prepared: What `prepare_tiles` made of these pixels already, by `tile_geometry`.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        coords: NDArray[np.int32],
        prepared: Mapping[Hashable, NDArray[np.uint8]] = _NOTHING,
    ) -> None:
        self.pixels = pixels
        self.coords = coords
        self._given = prepared
        self._made: dict[Hashable, object] = {}

    def __len__(self) -> int:
        """Count the tiles."""
        return int(self.pixels.shape[0])

    def split(self, size: int) -> list[TileBatch]:
        """Cut into batches of at most ``size`` tiles, which are views of this one.

        Encoders that ask for one size get the same batches, and so share what is made of them.
        """
        if len(self) <= size:
            return [self]
        return self._once(("split", size), lambda: list(self._parts(size)))

    def _parts(self, size: int) -> Iterator[TileBatch]:
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            given = {key: tiles[part] for key, tiles in self._given.items()}
            yield TileBatch(self.pixels[part], self.coords[part], given)

    def prepared(self, transform: Transform) -> NDArray[np.uint8]:
        """Resize and crop by `prepare_tiles`, unless that was done already.

        Args:
            transform: Only its geometry counts.

        Returns:
            (n, height, width, 3) uint8; ``pixels`` itself where they fit already.

        Raises:
            ConfigError: If the transform names a filter or a mode that does not exist.
        """
        geometry = tile_geometry(transform)
        if geometry in self._given:
            return self._given[geometry]
        return self._once(("prepared", geometry), lambda: prepare_tiles(self.pixels, transform))

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
        """Prepare and normalise with torch, once for all encoders that want the same.

        What travels to a GPU is uint8, on a stream of its own beside the computing: from
        page-locked pixels directly, which must then stay as they are until the encoder has
        answered, from others by way of a page-locked copy.

        Args:
            transform: The encoder's preprocessing.
            device: Where the tensor goes and where it is normalised.
            dtype: Of the result; it is computed in float32.

        Returns:
            (n, 3, height, width) in channels_last memory, ready for the device's current stream.
            On a CPU the memory is used again once nobody holds the tensor.

        Raises:
            ConfigError: As `prepared` does.
        """

        def make() -> torch.Tensor:
            tiles = self.prepared(transform)
            with timed("normalise"):
                return _normalise(self._on(device, tiles), transform, dtype)

        key = (tile_geometry(transform), transform.mean, transform.std, device, dtype)
        return self._once(("tensor", *key), make)

    def _on(self, device: str, tiles: NDArray[np.uint8]) -> torch.Tensor:
        """Bring prepared tiles to a device, once for all normalisations there."""
        if device == "cpu":
            return _from_numpy(tiles)
        # Prepared tiles live as long as the batch, so their identity names them.
        return self._once(("on", device, id(tiles)), lambda: _upload(tiles, device))

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


def crop_offset(side: int, crop: int) -> int:
    """Say where a central crop begins along a side; below 0 for one that pads."""
    return round((side - crop) / 2.0) if crop <= side else -((crop - side) // 2)


def _centre_crop(tiles: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    """Crop the centre as torchvision does: black padding, ties of the offset to the even side."""
    pads = [max(crop - side, 0) for side in tiles.shape[1:3]]
    if any(pads):
        around = [(0, 0), *((pad // 2, (pad + 1) // 2) for pad in pads), (0, 0)]
        tiles = np.pad(tiles, around)
    top, left = (crop_offset(side, crop) for side in tiles.shape[1:3])
    return tiles[:, top : top + crop, left : left + crop]


def _resize(
    tiles: NDArray[np.uint8], height: int, width: int, interpolation: str
) -> NDArray[np.uint8]:
    if interpolation == "bilinear" and height == width:
        return resample_tiles(tiles, height)
    out = np.empty((tiles.shape[0], height, width, 3), np.uint8)
    resample = Image.Resampling[interpolation.upper()]
    for row, tile in enumerate(tiles):
        out[row] = np.asarray(Image.fromarray(tile).resize((width, height), resample))
    return out


def _from_numpy(tiles: NDArray[np.uint8]) -> torch.Tensor:
    import torch

    # torch warns of memory that it must not write to, so read-only pixels are copied.
    return torch.from_numpy(tiles if tiles.flags.writeable else tiles.copy())


def _upload(tiles: NDArray[np.uint8], device: str) -> torch.Tensor:
    """Copy tiles to a device; to a CUDA device on a stream that only its computing waits for."""
    import torch

    images = _from_numpy(np.ascontiguousarray(tiles))
    if torch.device(device).type != "cuda":
        return images.to(device)
    copying, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        locked = images if images.is_pinned() else images.pin_memory()
        there = locked.to(device, non_blocking=True)
    computing.wait_stream(copying)
    # Else the allocator would lend the memory to the next copy while this is still computed on.
    there.record_stream(computing)
    return there


@lru_cache
def _copy_stream(device: str) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _normalise(images: torch.Tensor, transform: Transform, dtype: torch.dtype) -> torch.Tensor:
    """Make (n, 3, h, w) in channels_last memory of (n, h, w, 3) uint8, over whole rows."""
    import torch

    count, height, width, _ = images.shape
    rows = images.flatten(2)
    scale, shift = _row_constants(transform.mean, transform.std, width, images.device)
    if images.device.type == "cpu":
        out = _empty_cpu(rows.shape, dtype)
        # Two calls, not one with mixed types or many on pieces that fit a core's cache: beside
        # reading threads each call has to wait for the interpreter.
        torch.addcmul(shift, out.copy_(rows), scale, out=out)
    else:
        out = torch.empty(rows.shape, dtype=dtype, device=images.device)
        torch.addcmul(shift, rows, scale, out=out)
    return out.view(count, height, width, 3).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _row_constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give factors and summands for one row of ``width`` pixels, channel by channel.

    Constants as long as a row keep the inner loop long: ten times a broadcast of three values.
    """
    import torch

    means, stds = np.asarray(mean, np.float64), _checked_std(std)
    pair = (1 / (255 * stds), -means / stds)
    scale, shift = (np.tile(values, width).astype(np.float32) for values in pair)
    return torch.from_numpy(scale).to(device), torch.from_numpy(shift).to(device)


def _normalisation_table(transform: Transform) -> NDArray[np.float32]:
    """Tabulate ``(pixel / 255 - mean) / std`` for the 256 values of each channel."""
    mean, std = np.asarray(transform.mean, np.float64)[:, None], _checked_std(transform.std)
    return ((np.arange(256) / 255 - mean) / std[:, None]).astype(np.float32)


def _checked_std(std: tuple[float, ...]) -> NDArray[np.float64]:
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise ConfigError(f"A transform's std must be above 0, not {std}.")
    return np.asarray(std, np.float64)


class _Buffers:
    """Memory that is lent until nothing refers to it any more, and then lent again.

    The allocator gives large blocks back to the system, and the first touch of new ones costs more
    than what is computed into them. Safe from several threads.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._free: dict[int, NDArray[np.uint8]] = {}

    def lend(self, size: int) -> NDArray[np.uint8]:
        """Give ``size`` bytes, not cleared."""
        fitting = [(whole.size, key) for key, whole in self._kept() if whole.size >= size]
        whole = self._free.pop(min(fitting)[1], None) if fitting else None
        if whole is None:
            whole = np.empty(size, np.uint8)
        lent = whole[:size]
        weakref.finalize(lent, self._take_back, whole).atexit = False
        return lent

    def _take_back(self, whole: NDArray[np.uint8]) -> None:
        self._free[id(whole)] = whole
        if len(self._free) > self._most:
            self._free.pop(min((kept.size, key) for key, kept in self._kept())[1], None)

    def _kept(self) -> list[tuple[int, NDArray[np.uint8]]]:
        return list(self._free.items())


_buffers = _Buffers()


def _empty_cpu(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor in memory that was used before, which lives as long as any view of it."""
    import torch

    lent = torch.from_numpy(_buffers.lend(shape.numel() * dtype.itemsize))
    return lent.view(dtype).view(shape)
