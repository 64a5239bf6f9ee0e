"""Batches of tiles, read and resampled by worker threads a few ahead of who takes them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from microtome.plugin.protocols import Reader
from microtome.run.planning.budget import keep_torch_threads, work_alone
from microtome.slide.blocks import block_order
from microtome.slide.clock import timed
from microtome.slide.imaging import Canvas, read_tiles
from microtome.slide.resampling import resample_tiles
from microtome.slide.types import TileGrid

PART_BYTES = 16 << 20
"""Pixels that a worker reads in one go, so that the last parts of a batch end at about one time."""

READ_BYTES = 8 << 20
"""Pixels that it holds before they are resampled: what stays in a core's cache is resampled in
half the time, as long as that leaves few tiles of the file to be cut in two."""

_PARTS_AHEAD = 2
"""Parts a worker that are read or waiting while the taker is busy."""

_BYTES_AHEAD = 512 << 20
"""Of pixels in all batches ahead, however many workers there are; two batches there are always."""

_MOST_AT_ONCE = 512
"""Tiles read at once for the sake of encoders whose batch sizes do not divide each other."""

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass(eq=False)
class Batch:
    """Some tiles of a grid, a view of memory that is used again once the batch is released.

    Attributes:
        rows: (n,) int64 indices into the grid.
        pixels: (n, size, size, 3) uint8.
        has_background: (n,) bool, True where transparent or missing pixels were filled in.
        keep: (n,) bool, False for tiles that are to be dropped.
        prepared: Pixels resized for encoders, by what the resizing depends on.
        in_use: What still looks at the pixels after the taker has released the batch.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    has_background: NDArray[np.bool_]
    keep: NDArray[np.bool_]
    prepared: dict[Hashable, NDArray[np.uint8]] = field(default_factory=dict)
    in_use: list[Future[None]] = field(default_factory=list)

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.rows)

    def kept(self) -> Batch:
        """Leave out the tiles that are to be dropped."""
        keep = self.keep
        if keep.all():
            return self
        return Batch(
            self.rows[keep],
            self.pixels[keep],
            self.has_background[keep],
            keep[keep],
            {key: pixels[keep] for key, pixels in self.prepared.items()},
        )


def fresh(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate ordinary memory."""
    return np.empty(shape, np.uint8)


@dataclass(eq=False, kw_only=True)
class BatchReader:
    """Reads a grid's tiles, each once, batch by batch.

    The workers take parts of a batch, so all of them work on the batch that is wanted next. The
    memory of released batches is used again: what there is of it is bounded by the number of
    batches ahead, whatever the slide.

    Attributes:
        reader: An open slide.
        grid: What to read.
        batch_size: Tiles a batch; the last one may have fewer.
        workers: Threads.
        in_blocks: Whether tiles come block by block, which reads least, or in the grid's order.
        finish: Called by the worker that has read a part, with the batch and the part's place.
        extra: Shapes of one tile of `Batch.prepared`, by key.
        allocate: Makes the memory of pixels that go to a device.
        counted: Whether the taker's waiting is a stage: not where all the work is the workers'.
    """

    reader: Reader
    grid: TileGrid
    batch_size: int = 32
    workers: int = 1
    in_blocks: bool = True
    finish: Callable[[Batch, slice], None] = lambda batch, at: None
    extra: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)
    allocate: Allocate = fresh
    counted: bool = True
    _free: list[Batch] = field(default_factory=list)
    _local: threading.local = field(default_factory=threading.local)

    def read(self) -> Generator[Batch]:
        """Give the batches; whoever takes one releases it, or keeps it for good.

        Closing the generator stops the workers.

        Raises:
            SlideReadError: If a tile cannot be decoded.
        """
        planned = self._plan()
        ahead = self._ahead(planned)
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(
            self.workers, thread_name_prefix="microtome-reader", initializer=work_alone
        )
        with keep_torch_threads():
            try:
                for rows, cuts in planned:
                    batch = self._take(rows)
                    pending.append((batch, [pool.submit(self._fill, batch, at) for at in cuts]))
                    if len(pending) >= ahead:
                        yield self._filled(*pending.popleft())
                while pending:
                    yield self._filled(*pending.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def release(self, batch: Batch) -> None:
        """Give a batch's memory back, to be used once nothing in ``in_use`` looks at it."""
        if len(batch) == self.batch_size:
            self._free.append(batch)

    def _ahead(self, planned: list[tuple[NDArray[np.int64], list[slice]]]) -> int:
        """Say how many batches are to be there or on their way, so that no worker waits."""
        parts = max(1, sum(len(cuts) for _, cuts in planned) // max(1, len(planned)))
        shapes = ((self.grid.geometry.size,) * 2 + (3,), *self.extra.values())
        size = self.batch_size * sum(math.prod(shape) for shape in shapes)
        wanted = -(-_PARTS_AHEAD * self.workers // parts)
        return max(2, min(wanted, _BYTES_AHEAD // size))

    def _plan(self) -> list[tuple[NDArray[np.int64], list[slice]]]:
        """Cut the grid into batches, and each into the parts that are read at once."""
        count = len(self.grid)
        if self.in_blocks:
            level = self.reader.info.levels[self.grid.geometry.level]
            striped = level.tile is not None and level.tile[0] >= level.width
            order, block = block_order(self.grid, striped=striped)
        else:
            order, block = np.arange(count), np.zeros(count, np.int64)
        width, height = self.grid.geometry.read_size
        most = max(1, PART_BYTES // (width * height * self.reader.info.channels))
        return [
            (order[start:stop], _cut(block[start:stop], most))
            for start in range(0, count, self.batch_size)
            for stop in (min(start + self.batch_size, count),)
        ]

    def _take(self, rows: NDArray[np.int64]) -> Batch:
        count = len(rows)
        old = self._free.pop(0) if self._free and count == self.batch_size else None
        if old is None:
            size = self.grid.geometry.size
            extra = {key: self.allocate((count, *shape)) for key, shape in self.extra.items()}
            pixels = self.allocate((count, size, size, 3))
        else:
            with timed("wait"):
                for user in old.in_use:
                    user.result()
            pixels, extra = old.pixels, old.prepared
        return Batch(rows, pixels, np.empty(count, np.bool_), np.ones(count, np.bool_), extra)

    def _filled(self, batch: Batch, parts: Sequence[Future[None]]) -> Batch:
        with timed("wait") if self.counted else nullcontext():
            for part in parts:
                part.result()
        return batch

    def _fill(self, batch: Batch, at: slice) -> None:
        if self.grid.geometry.resampled:
            width, height = self.grid.geometry.read_size
            step = max(1, READ_BYTES // (width * height * 3))
            for start in range(at.start, at.stop, step):
                self._read(batch, slice(start, min(start + step, at.stop)))
        else:
            self._read(batch, at)
        self.finish(batch, at)

    def _read(self, batch: Batch, at: slice) -> None:
        """Read some tiles into their places, by way of this thread's canvas if resampled."""
        geometry = self.grid.geometry
        boxes = self.grid.coords[batch.rows[at], :4].astype(np.int64)
        canvas: Canvas = self._local.__dict__.setdefault("canvas", Canvas())
        out = target = batch.pixels[at]
        if geometry.resampled:
            width, height = geometry.read_size
            target = canvas.take("read", (len(boxes), height, width, 3))
        pixels, filled = read_tiles(self.reader, geometry.level, boxes, out=target, canvas=canvas)
        if geometry.resampled:
            resample_tiles(pixels, geometry.size, geometry.resample, out=out)
        batch.has_background[at] = filled


def read_size(sizes: Sequence[int]) -> int:
    """Choose how many tiles are read at once for encoders that want different numbers.

    A multiple of all, so that each gets the batches that it would get alone: which tiles are in
    one batch can show in the last bits of a network's features. Only where that would be a great
    many, the largest.
    """
    multiple = math.lcm(*sizes)
    return multiple if multiple <= max(_MOST_AT_ONCE, *sizes) else max(sizes)


def _cut(block: NDArray[np.int64], most: int) -> list[slice]:
    """Cut where the block changes, and blocks into pieces of at most ``most`` tiles."""
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    return [
        slice(start, min(start + most, last))
        for first, last in pairwise(edges)
        for start in range(first, last, most)
    ]
