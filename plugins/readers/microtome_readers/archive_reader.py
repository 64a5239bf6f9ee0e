"""Reads tile archives: the tiles that a tar file holds, where they lie on their slide."""

from __future__ import annotations

import io
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import SlideReadError
from microtome.plugin import NoConfig
from microtome.slide.types import Level, SlideInfo, TileGeometry, TileGrid
from microtome_readers.archive_files import HeldTiles, is_tile_archive, read_tiles

_FORMATS = ("PNG", "JPEG")


class ArchiveReader:
    """The tiles of one slide.

    Points are those of the slide. Level 0 has the slide's extent; the tiles make a level of their
    own unless they were stored as they lie at level 0. Between them all is transparent.
    """

    def __init__(self, path: Path, config: NoConfig) -> None:
        self._path, self._config = Path(path), config
        self._held = read_tiles(self._path)
        self._info, self._geometry = _describe(self._path, self._held)
        self._at = {(x, y): row for row, (x, y) in enumerate(self._held.points.tolist())}
        downsample = self._geometry.level_downsample
        self._corners = np.rint(self._held.points / downsample).astype(np.int64)
        self._file = self._path.open("rb")

    def __reduce__(self) -> tuple[type[ArchiveReader], tuple[Path, NoConfig]]:
        return type(self), (self._path, self._config)

    @staticmethod
    def probe(path: Path) -> bool:
        """Tell whether it is an archive of tiles, not one of anything else."""
        return is_tile_archive(path)

    @property
    def info(self) -> SlideInfo:
        """What the archive says of its slide."""
        return self._info

    @property
    def digest(self) -> str:
        """Changes with what is held."""
        return self._held.digest

    def tiles(self) -> TileGrid:
        """Give the tiles, which are read as they are stored."""
        coords = np.empty((len(self._held.points), 5), np.int32)
        coords[:, :2] = self._held.points
        coords[:, 2:] = (*self._geometry.read_size, self._geometry.level)
        return TileGrid(coords=coords, geometry=self._geometry)

    def read_tiles(
        self,
        level: int,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> None:
        """Fill some rows of a buffer with regions, as `Reader` says."""
        if level != self._geometry.level:
            raise SlideReadError(
                f"{self._path} holds tiles at a downsample of "
                f"{self._geometry.level_downsample:g} alone; nothing finer can be read of it."
            )
        for (x, y, width, height), row in zip(boxes.tolist(), rows.tolist(), strict=True):
            number = self._at.get((x, y))
            if number is not None and (width, height) == self._geometry.read_size:
                out[row][..., :3], out[row][..., 3] = self._decode(number), 255
            else:
                self._compose(x, y, out=out[row])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _compose(self, x: int, y: int, *, out: NDArray[np.uint8]) -> None:
        """Fill a picture with what the tiles have of it."""
        out[:] = 0
        corner = np.rint(np.array([x, y]) / self._geometry.level_downsample).astype(np.int64)
        side = self._geometry.size
        starts = self._corners - corner
        touching = (starts < (out.shape[1], out.shape[0])) & (starts + side > 0)
        for number in np.flatnonzero(touching.all(axis=1)).tolist():
            left, top = starts[number].tolist()
            part = out[max(0, top) : top + side, max(0, left) : left + side]
            height, width = part.shape[:2]
            tile = self._decode(number)[max(0, -top) :, max(0, -left) :]
            part[..., :3], part[..., 3] = tile[:height, :width], 255

    def _decode(self, number: int) -> NDArray[np.uint8]:
        held, side = self._held, self._geometry.size
        size, offset = int(held.sizes[number]), int(held.offsets[number])
        data = os.pread(self._file.fileno(), size, offset)
        x, y = held.points[number].tolist()
        where = f"{self._path}: the tile at ({x}, {y})"
        if held.checksums is not None and zlib.crc32(data) != held.checksums[number]:
            raise SlideReadError(f"{where} is damaged: it is not what was written.")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideReadError(f"{where} cannot be decoded: {error}") from error
        if pixels.shape != (side, side, 3):
            raise SlideReadError(
                f"{where} has {pixels.shape[1]} × {pixels.shape[0]} px, not {side} × {side}."
            )
        return pixels


def _describe(path: Path, held: HeldTiles) -> tuple[SlideInfo, TileGeometry]:
    """Describe the slide, and its tiles on a level where they need no resampling."""
    made, resolution = held.geometry, held.info.resolution
    size, points = made.size, held.points
    reach = points.max(axis=0, initial=0) + np.ceil(made.size_level0).astype(np.int64)
    extent = (held.info.width or int(reach[0]), held.info.height or int(reach[1]))
    levels = [Level(width=extent[0], height=extent[1], downsample=1.0)]
    if made.size_level0 != (size, size):
        # A pyramid gets coarser, so tiles that are a little finer than level 0 lie on one like it.
        downsample = max(1.0, sum(made.size_level0) / 2 / size)
        # As wide as its tiles reach: what a tile has beyond the slide is its own, too.
        ends = np.rint(points / downsample).astype(np.int64).max(axis=0, initial=0) + size
        width, height = (
            max(math.ceil(e / downsample), int(end)) for e, end in zip(extent, ends, strict=True)
        )
        levels.append(Level(width=width, height=height, downsample=downsample))
    downsample = levels[-1].downsample
    pitch_x, pitch_y = (max(1, round(step / downsample)) for step in made.pitch_level0)
    geometry = replace(
        made,
        level=len(levels) - 1,
        level_downsample=downsample,
        read_size=(size, size),
        pitch=(pitch_x, pitch_y),
        edge="pad",
        resample="pil-bilinear" if made.resample == "unknown" else made.resample,
    )
    known = resolution.mpp_x is not None and resolution.mpp_y is not None
    info = SlideInfo(
        path=path,
        reader="archive",
        levels=tuple(levels),
        channels=4,
        background=held.info.background,
        vendor=held.info.vendor,
        properties=held.properties,
        mpp=(
            (resolution.mpp_x or 0, resolution.mpp_y or 0)
            if known and not resolution.assumed
            else None
        ),
        objective_power=(
            None if resolution.magnification_source == "mpp" else resolution.magnification
        ),
    )
    return info, geometry
