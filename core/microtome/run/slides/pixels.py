"""The one pass over a slide's pixels: every filter, encoder and image writer in it at once.

Worker threads read a part of a batch, resample it, filter it, and do for it whatever may be done by
several threads at once. Whole batches go to the encoders that want one thread to themselves,
networks: from the calling thread, or from one for each of several devices. Everything is written by
its place in the grid, so the order of reading shows nowhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import EncoderOutput, PatchSink, Reader, TileSink
from microtome.plugin.specs import Transform
from microtome.run.planning.budget import ONE_EACH, Threads, hold_pools
from microtome.run.planning.devices import describe_way_out
from microtome.run.planning.encoders import PlannedEncoder
from microtome.run.planning.outputs import check_dense
from microtome.run.planning.quality import Inspection
from microtome.run.settings import FilterSettings
from microtome.run.slides.batches import Allocate, Batch, BatchReader, fresh, read_size
from microtome.run.slides.replicas import Lanes
from microtome.slide.batch import TileBatch, prepare_tiles, prepared_size, tile_geometry
from microtome.slide.clock import timed
from microtome.slide.content import MARKS, content_marks
from microtome.slide.types import TileGrid
from microtome.store.atomic import wrap_errors
from microtome.store.publish import FeatureScratch
from microtome.store.quality import bit_names, count_reasons

Scratches = Mapping[str, FeatureScratch]
"""What takes an encoder's outputs, by their names in an `EncoderOutput`."""

Encoding = tuple[PlannedEncoder, Scratches]


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


@dataclass(frozen=True, eq=False)
class Sink:
    """A taker of tile images.

    Attributes:
        sink: The object.
        concurrent: Whether it takes tiles from several threads at once.
        final: What the images become; for messages.
        labels: (n,) over the grid, of a sink that takes the tiles with a label; -1 for none.
    """

    sink: TileSink | PatchSink
    concurrent: bool = False
    final: Path = Path()
    labels: NDArray[np.int16] | None = None

    def write(
        self, rows: NDArray[np.int64], coords: NDArray[np.int32], pixels: NDArray[np.uint8]
    ) -> None:
        """Write some tiles.

        Args:
            rows: (n,) of the grid.
            coords: (n, 5) of these.
            pixels: (n, h, w, 3) of these.

        Raises:
            StoreError: If they cannot be written.
        """
        given: tuple[Any, ...] = (coords, pixels)
        if self.labels is not None:
            labels = self.labels[rows]
            known = labels >= 0
            if not known.any():
                return
            given = (coords[known], pixels[known], labels[known])
        with timed("write"), wrap_errors(self.final):
            self.sink.write(*given)


@dataclass(eq=False, kw_only=True)
class PixelPass:
    """What one pass over a slide feeds, and what it found.

    Attributes:
        filter: The content filter.
        inspection: The inspectors, and what they find.
        encoders: Loaded encoders, with what takes their outputs.
        sinks: Takers of tile images.
        batch_size: Tiles read at once.
        threads: The CPUs' shares.
        advance: Told the number of tiles after every batch.
        keep: (n,) bool over the grid: what the filter kept.
        has_background: (n,) bool over the grid.
    """

    filter: FilterSettings
    inspection: Inspection = field(default_factory=Inspection)
    encoders: Sequence[Encoding] = ()
    sinks: Sequence[Sink] = ()
    batch_size: int = 32
    threads: Threads = ONE_EACH
    advance: Callable[[int], None] = lambda _: None
    keep: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    has_background: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def __post_init__(self) -> None:
        self._by_workers = [e for e in self.encoders if e[0].spec.concurrent]
        self._by_one = [e for e in self.encoders if not e[0].spec.concurrent]
        self._here = [e for e in self._by_one if not e[0].replicas]
        self._on_lanes = [e for e in self._by_one if e[0].replicas]
        self._coords = np.empty((0, 5), np.int32)
        self._marks = np.empty(0, np.uint8)

    @property
    def needed(self) -> bool:
        """Whether anything looks at a pixel."""
        looked_at = self.encoders or self.sinks or self.inspection.inspectors
        return bool(looked_at) or self.filter.enabled

    @property
    def dropped(self) -> dict[str, int]:
        """Count the tiles that were left out, by reason; a tile may have several."""
        inspection = self.inspection
        return count_reasons(self._marks.astype(np.uint16), MARKS) | count_reasons(
            inspection.reason, bit_names(inspection.limits)
        )

    def run(self, reader: Reader, grid: TileGrid) -> None:
        """Read every tile of a grid once.

        Raises:
            SlideReadError: If a tile cannot be decoded.
            EncoderError: If an encoder's output is not finite or not of its card's shape.
            InspectorError: If an inspector breaks its spec.
        """
        self._coords = grid.coords
        self._marks = np.zeros(len(grid), np.uint8)
        self.inspection.begin(len(grid))
        self.keep = np.ones(len(grid), np.bool_)
        self.has_background = np.zeros(len(grid), np.bool_)
        batches = self._batches(reader, grid)
        with (
            hold_pools(self.threads),
            ThreadPoolExecutor(1, "microtome-writer") as writer,
            self._lanes() as lanes,
        ):
            writing: list[Future[None]] = []
            flying: deque[tuple[Batch, Iterator[_Encoding]]] = deque()
            try:
                with closing(batches.read()) as read:
                    for batch in read:
                        chosen = batch.kept()
                        batch.in_use = [
                            writer.submit(
                                sink.write, chosen.rows, self._coords[chosen.rows], chosen.pixels
                            )
                            for sink in self.sinks
                            if not sink.concurrent
                        ]
                        writing += batch.in_use
                        flying.append((batch, self._encode(chosen, lanes)))
                        if len(flying) > lanes.in_flight:
                            self._land(batches, *flying.popleft())
                    while flying:
                        self._land(batches, *flying.popleft())
                for written in writing:
                    written.result()
            finally:
                writer.shutdown(cancel_futures=True)

    def _batches(self, reader: Reader, grid: TileGrid) -> BatchReader:
        size = grid.geometry.size
        resized = {
            tile_geometry(transform): transform
            for encoder, _ in self._by_one
            if "torch" in encoder.spec.requires
            and (transform := encoder.card.transform) is not None
            and prepared_size((size, size), transform) != (size, size)
        }
        return BatchReader(
            reader=reader,
            grid=grid,
            batch_size=read_size([self.batch_size, *(e.batch_size for e, _ in self._by_one)]),
            workers=self.threads.workers,
            finish=lambda batch, at: self._finish_part(batch, at, resized),
            extra={k: (*prepared_size((size, size), t), 3) for k, t in resized.items()},
            allocate=_allocator(self._by_one),
            counted=bool(self._by_one),
        )

    def _finish_part(self, batch: Batch, at: slice, resized: Mapping[Hashable, Transform]) -> None:
        """Do, in the worker that has read it, what a part of a batch does not need the rest for."""
        pixels, rows = batch.pixels[at], batch.rows[at]
        places: slice | NDArray[np.intp] = at
        batch.keep[at] = keep = self._judge(rows, pixels)
        if not keep.all():
            pixels, rows = pixels[keep], rows[keep]
            places = at.start + np.flatnonzero(keep)
        if len(rows):
            coords = self._coords[rows]
            for sink in self.sinks:
                if sink.concurrent:
                    sink.write(rows, coords, pixels)
            for encoding in self._by_workers:
                for begun in _begin(*encoding, rows, TileBatch(pixels, coords)):
                    begun.land()
        for key, transform in resized.items():
            batch.prepared[key][places] = prepare_tiles(pixels, transform)

    def _judge(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Say which tiles are kept; inspectors see those that the filter leaves."""
        if not self.filter.enabled:
            return self.inspection.look(rows, pixels)
        self._marks[rows] = content_marks(pixels, self.filter)
        keep: NDArray[np.bool_] = self._marks[rows] == 0
        if keep.all():
            return self.inspection.look(rows, pixels)
        if self.inspection.inspectors:
            keep[keep] = self.inspection.look(rows[keep], pixels[keep])
        return keep

    def _lanes(self) -> Lanes:
        """Open a thread for each of several devices."""
        devices = self._on_lanes[0][0].devices if self._on_lanes else ()
        return Lanes(devices, self.threads.torch)

    def _encode(self, batch: Batch, lanes: Lanes) -> Iterator[_Encoding]:
        """Give a batch to the encoders that want one thread to themselves, and to one lane.

        Returns:
            What they were given; it comes once the lane has begun with its part.
        """
        if not len(batch):
            return iter(())
        begin_there = partial(self._begin_all, self._on_lanes, batch)
        there = [lanes.submit(begin_there)] if self._on_lanes else []
        here = self._begin_all(self._here, batch)
        return chain(here, (begun for later in there for begun in later.result()))

    def _begin_all(
        self, encodings: Sequence[Encoding], batch: Batch, at: int = 0
    ) -> list[_Encoding]:
        """Let encoders begin with a batch, which only this thread prepares for them."""
        tiles = TileBatch(batch.pixels, self._coords[batch.rows], batch.prepared)
        return [
            begun
            for encoder, scratches in encodings
            for begun in _begin(encoder, scratches, batch.rows, tiles, at=at)
        ]

    def _land(self, batches: BatchReader, batch: Batch, encodings: Iterator[_Encoding]) -> None:
        """Finish with a batch once its encodings are there."""
        for encoding in encodings:
            encoding.land()
        self.keep[batch.rows] = batch.keep
        self.has_background[batch.rows] = batch.has_background
        batches.release(batch)
        self.advance(len(batch))


@dataclass(frozen=True, eq=False)
class _Encoding:
    """Tiles that an encoder was given.

    Attributes:
        encoder: Which.
        scratches: Take its outputs.
        rows: Of the grid.
        output: Waits for the encoder and gives its output.
    """

    encoder: PlannedEncoder
    scratches: Scratches
    rows: NDArray[np.int64]
    output: Callable[[], EncoderOutput]

    def land(self) -> None:
        """Wait, check and keep the outputs."""
        with timed("encode"):
            output = _checked(self.encoder, self.output(), len(self.rows))
        with timed("write"):
            for name, scratch in self.scratches.items():
                scratch.write(self.rows, getattr(output, name))


def _begin(
    encoder: PlannedEncoder,
    scratches: Scratches,
    rows: NDArray[np.int64],
    tiles: TileBatch,
    *,
    at: int = 0,
) -> Iterator[_Encoding]:
    """Give tiles to an encoder, on one of its devices, as many at once as it is to have."""
    start = 0
    for part in tiles.split(encoder.batch_size):
        with timed("encode"):
            output = encoder.begin(part, at=at)
        yield _Encoding(encoder, scratches, rows[start : start + len(part)], output)
        start += len(part)


def encode(planned: PlannedEncoder, batch: TileBatch) -> EncoderOutput:
    """Encode a batch and hold the encoder to its card.

    Returns:
        Its embedding (n, dim), floating point, finite, and what else it was asked for.

    Raises:
        EncoderError: If the shape is not the card's or a value is not finite.
    """
    return _checked(planned, planned.begin(batch)(), len(batch))


def _checked(planned: PlannedEncoder, output: EncoderOutput, count: int) -> EncoderOutput:
    embedding = output.embedding
    expected = (count, planned.card.dim)
    if embedding.shape != expected:
        raise EncoderError(
            f"{planned.name} gave an embedding of shape {embedding.shape}; "
            f"its card says {expected}."
        )
    if not np.isfinite(embedding).all():
        raise EncoderError(
            f"{planned.name} gave values that are not finite with precision {planned.precision}; "
            f"{describe_way_out(planned.precision, f'encoder.{planned.name}')}"
        )
    check_dense(planned, output, count)
    return output


def iterate_tiles(
    reader: Reader,
    grid: TileGrid,
    *,
    batch_size: int = 32,
    workers: int = 1,
    in_blocks: bool = False,
) -> Iterator[Tiles]:
    """Read the tiles of a grid on worker threads, a few batches ahead.

    Args:
        reader: An open slide.
        grid: What to read.
        batch_size: Tiles a batch.
        workers: Threads.
        in_blocks: Whether tiles come in the order that reads least, not in the grid's.

    Yields:
        Batches, resampled to ``grid.geometry.size``, each in memory of its own.
    """
    batches = BatchReader(
        reader=reader, grid=grid, batch_size=batch_size, workers=workers, in_blocks=in_blocks
    )
    for batch in batches.read():
        yield Tiles(batch.rows, batch.pixels, batch.has_background)


def _allocator(encodings: Sequence[Encoding]) -> Allocate:
    """Choose the memory of pixels: page-locked where a GPU is to copy it by itself."""
    if not any(encoder.device.startswith("cuda") for encoder, _ in encodings):
        return fresh
    import torch

    def pinned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return array

    return pinned
