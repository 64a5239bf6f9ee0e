"""The one pass over a slide's pixels: every filter, encoder and image writer in it at once.

Reader threads fill batches in the order of the plan, a few ahead of the consumer; the calling
thread filters, encodes and writes them. Memory is bounded by that window, not by the slide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import Reader, TileSink
from microtome.run.plan import PlannedEncoder
from microtome.run.settings import FilterSettings
from microtome.slide.batch import TileBatch
from microtome.slide.content import content_keep
from microtome.slide.imaging import read_tiles, resample_tiles
from microtome.slide.types import TileGrid
from microtome.store.publish import FeatureScratch

READ_BYTES = 64 << 20
"""Pixels that one reader thread holds before resampling: tiles read at 5x from 40x are large."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """A batch of tiles as an encoder is to see them.

    Attributes:
        rows: (n,) int64 indices into the grid.
        pixels: (n, size, size, 3) uint8.
        has_background: (n,) bool, True where transparent or missing pixels were filled in.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    has_background: NDArray[np.bool_]


@dataclass(eq=False, kw_only=True)
class PixelPass:
    """What one pass over a slide feeds, and what it found.

    Attributes:
        filter: The content filter.
        encoders: Loaded encoders, with the scratch that takes their features.
        sinks: Takers of tile images.
        batch_size: Tiles read at once.
        readers: Reader threads.
        advance: Told the number of tiles after every batch.
        kept: Rows of the grid that the filter kept, ascending.
        has_background: (len(kept),) bool.
    """

    filter: FilterSettings
    encoders: Sequence[tuple[PlannedEncoder, FeatureScratch]] = ()
    sinks: Sequence[TileSink] = ()
    batch_size: int = 32
    readers: int = 1
    advance: Callable[[int], None] = lambda _: None
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    has_background: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    @property
    def needed(self) -> bool:
        """Whether anything looks at a pixel."""
        return bool(self.encoders or self.sinks or self.filter.enabled)

    def run(self, reader: Reader, grid: TileGrid) -> None:
        """Read every tile of a grid once.

        Raises:
            SlideReadError: If a tile cannot be decoded.
            EncoderError: If an encoder's output is not finite or not of its card's shape.
        """
        size = max([self.batch_size, *(encoder.batch_size for encoder, _ in self.encoders)])
        kept, background = [self.kept], [self.has_background]
        count = 0
        for tiles in iterate_tiles(reader, grid, batch_size=size, readers=self.readers):
            chosen = self._filtered(tiles)
            if len(chosen.rows):
                self._feed(chosen, grid, count)
            kept.append(chosen.rows)
            background.append(chosen.has_background)
            count += len(chosen.rows)
            self.advance(len(tiles.rows))
        self.kept = np.concatenate(kept)
        self.has_background = np.concatenate(background)

    def _filtered(self, tiles: Tiles) -> Tiles:
        if not self.filter.enabled:
            return tiles
        keep = content_keep(tiles.pixels, self.filter)
        if keep.all():
            return tiles
        return Tiles(tiles.rows[keep], tiles.pixels[keep], tiles.has_background[keep])

    def _feed(self, tiles: Tiles, grid: TileGrid, start: int) -> None:
        coords = grid.coords[tiles.rows]
        for sink in self.sinks:
            sink.write(coords, tiles.pixels)
        batch = TileBatch(tiles.pixels, coords)
        for encoder, scratch in self.encoders:
            at = start
            for part in batch.split(encoder.batch_size):
                scratch.write(at, encode(encoder, part))
                at += len(part)


def encode(planned: PlannedEncoder, batch: TileBatch) -> NDArray[np.floating]:
    """Encode a batch and hold the encoder to its card.

    Returns:
        (n, dim) floating point, finite.

    Raises:
        EncoderError: If the shape is not the card's or a value is not finite.
    """
    embedding = planned.encoder.encode(batch).embedding
    expected = (len(batch), planned.card.dim)
    if embedding.shape != expected:
        raise EncoderError(
            f"{planned.name} gave an embedding of shape {embedding.shape}; "
            f"its card says {expected}."
        )
    if not np.isfinite(embedding).all():
        raise EncoderError(
            f"{planned.name} gave values that are not finite with precision {planned.precision}; "
            f"try encoder.{planned.name}.precision=fp32 or bf16."
        )
    return embedding


def iterate_tiles(
    reader: Reader, grid: TileGrid, *, batch_size: int = 32, readers: int = 1
) -> Iterator[Tiles]:
    """Read the tiles of a grid in its order, a few batches ahead, on reader threads.

    Args:
        reader: An open slide.
        grid: What to read.
        batch_size: Tiles a batch.
        readers: Threads; the window is one batch more than there are threads.

    Yields:
        Batches, resampled to ``grid.geometry.size``.
    """
    starts = iter(range(0, len(grid), batch_size))
    pending: deque[Future[Tiles]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="microtome-reader")
    try:
        for start in starts:
            rows = np.arange(start, min(start + batch_size, len(grid)), dtype=np.int64)
            pending.append(pool.submit(_read, reader, grid, rows))
            if len(pending) > readers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(reader: Reader, grid: TileGrid, rows: NDArray[np.int64]) -> Tiles:
    """Read a batch, as much of it at once as `READ_BYTES` holds before it is resampled."""
    geometry = grid.geometry
    boxes = grid.coords[rows, :4].astype(np.int64)
    width, height = geometry.read_size
    at_once = max(1, READ_BYTES // (width * height * reader.info.channels))
    parts = []
    for start in range(0, len(rows), at_once):
        pixels, background = read_tiles(reader, geometry.level, boxes[start : start + at_once])
        parts.append((resample_tiles(pixels, geometry.size, geometry.resample), background))
    if len(parts) == 1:
        return Tiles(rows, *parts[0])
    return Tiles(rows, *(np.concatenate(column) for column in zip(*parts, strict=True)))
