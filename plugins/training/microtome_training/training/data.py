"""What a training is given of its tiles: pixels, stored patches or stored features."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import microtome
from microtome.errors import MicrotomeError
from microtome.plugin.specs import Transform
from microtome.run.settings import Choice
from microtome.slide.batch import prepare_tiles
from microtome.slide.opening import AUTO
from microtome.store.patches import tile_key
from microtome_training.classifier import to_tensor
from microtome_training.tiles import Tiles
from microtome_training.training.augment import Augmentation, generator

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK, _LARGEST, _BYTES = 32, 1024, 1 << 20
"""Tiles that a thread reads at once: as many as are a MiB, within limits."""

_OPEN = 64
_AUTO = Choice(plugin=AUTO)
_GIB = 1 << 30


class TileSource(Protocol):
    """Gives what a network takes of some tiles. Pickles, and opens files when it first reads."""

    row_bytes: int
    """Of one tile in memory."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read tiles by their index: prepared (n, h, w, 3) uint8, or features (n, d) float32.

        Raises:
            MicrotomeError: If one cannot be read.
        """


class PixelSource:
    """Pixels read from the slides, as a run reads them.

    Args:
        tiles: Whose.
        transform: Only its geometry counts.
        reader: By which slides are read; ``auto`` takes the one that their tiles were placed with.
    """

    def __init__(self, tiles: Tiles, transform: Transform, reader: Choice = _AUTO) -> None:
        self._transform = transform
        self._dataset = microtome.TileDataset(
            [slide.store for slide in tiles.slides],
            transform=np.asarray,
            slides={slide.slide_id: slide.ref.path for slide in tiles.slides},
            max_open=min(_OPEN, max(1, len(tiles.slides))),
            reader=reader,
        )
        first = np.searchsorted(self._dataset.slide_index, np.arange(len(tiles.slides)))
        self._places = first[tiles.slide] + tiles.row
        side = transform.resize or self._dataset.size
        self.row_bytes = side * side * 3

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read and prepare tiles."""
        found = [self._dataset[place]["image"] for place in self._places[rows].tolist()]
        return prepare_tiles(np.stack(found), self._transform)


class HeldSource:
    """Tiles that are in memory.

    Args:
        held: (n, …) of all tiles.
    """

    def __init__(self, held: NDArray[Any]) -> None:
        self.held = held
        self.row_bytes = int(held.nbytes // max(1, len(held)))

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Give tiles."""
        return self.held[rows]


class Keys(Sequence[str]):
    """The keys of tiles, each made when it is asked for: millions of them fill gigabytes.

    Args:
        tiles: Whose.
    """

    def __init__(self, tiles: Tiles) -> None:
        self._names = [slide.slide_id for slide in tiles.slides]
        self._slide, self._places = tiles.slide, np.ascontiguousarray(tiles.coords[:, :2])

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self._slide)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Name a tile, or some."""
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        x, y = self._places[index].tolist()
        return tile_key(self._names[int(self._slide[index])], x, y)


def read_ahead(
    source: TileSource, rows: NDArray[np.int64], threads: int
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Read tiles in several threads, in order, a few at a time.

    Yields:
        Which of ``rows`` these are, and what the network takes of them.
    """
    own = threading.local()

    def read(part: slice) -> NDArray[Any]:
        if not hasattr(own, "source"):  # a source is for one thread at a time
            own.source = pickle.loads(pickle.dumps(source))
        found: NDArray[Any] = own.source.read(rows[part])
        return found

    step = min(max(_CHUNK, _BYTES // max(1, source.row_bytes)), _LARGEST)
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    if isinstance(source, HeldSource) or threads < 2:
        yield from ((part, source.read(rows[part])) for part in parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[slice, Future[NDArray[Any]]]] = deque()
        for part in parts:
            waiting.append((part, pool.submit(read, part)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def hold(
    source: TileSource, count: int, threads: int, advance: Callable[[int], None]
) -> HeldSource:
    """Read all tiles into memory.

    Args:
        source: Gives them.
        count: How many there are.
        threads: How many read.
        advance: Hears of every few that are read.
    """
    if isinstance(source, HeldSource):
        return source
    held: NDArray[Any] | None = None
    for part, given in read_ahead(source, np.arange(count), threads):
        if held is None:
            held = np.empty((count, *given.shape[1:]), given.dtype)
        held[part] = given
        advance(len(given))
    return HeldSource(np.empty((0, 1), np.float32) if held is None else held)


def fits(source: TileSource, count: int, memory_gb: float) -> bool:
    """Say whether all tiles may be held in memory."""
    return count * source.row_bytes <= memory_gb * _GIB


@dataclass(frozen=True, eq=False, kw_only=True)
class Epoch:
    """What one epoch shows, in its order.

    Attributes:
        rows: (m,) int64, tiles by index.
        copies: (m,) int64, which of its appearances this is of a tile.
        number: Of the epoch, from 1.
    """

    rows: NDArray[np.int64]
    copies: NDArray[np.int64]
    number: int

    def batches(self, size: int) -> list[NDArray[np.int64]]:
        """Cut it into batches of nearly one size, none of which is a small rest."""
        count = max(1, -(-len(self.rows) // size))
        return np.array_split(np.arange(len(self.rows)), count)


def shuffle(
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    number: int,
    seed: int,
    aug_factor: int,
) -> Epoch:
    """Say in which order an epoch shows tiles: by seed and epoch alone.

    Args:
        rows: Of the training tiles, in an order that goes by their keys.
        labels: Of all tiles.
        number: Of the epoch, from 1.
        seed: Of the training.
        aug_factor: How often a tile that is not background appears.
    """
    times = np.where(labels[rows] > 0, aug_factor, 1)
    repeated = np.repeat(rows, times)
    copies = np.arange(len(repeated)) - np.repeat(np.cumsum(times) - times, times)
    order = generator("order", seed, number).permutation(len(repeated))
    return Epoch(rows=repeated[order], copies=copies[order], number=number)


@dataclass(eq=False)
class Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of an epoch, each an item, for `DataLoader` to read in any of its processes.

    Attributes:
        source: Gives the tiles.
        labels: (n,) int64 of all tiles.
        keys: Of all tiles.
        epoch: What is shown.
        parts: Of each batch, places in the epoch.
        augmentation: Transforms tiles of pixels; None for none.
    """

    source: TileSource
    labels: NDArray[np.int64]
    keys: Sequence[str]
    epoch: Epoch
    parts: Sequence[NDArray[np.int64]]
    augmentation: Augmentation | None = field(default=None)

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read a batch: what the network takes, and the labels."""
        places = self.parts[index]
        rows = self.epoch.rows[places]
        given = self.source.read(rows)
        labels = self.labels[rows]
        if self.augmentation is None:
            return to_tensor(given), torch.from_numpy(labels)
        images = [
            self._transformed(given[i], int(rows[i]), int(self.epoch.copies[place]))
            for i, place in enumerate(places.tolist())
        ]
        return torch.from_numpy(np.stack(images)), torch.from_numpy(labels)

    def _transformed(self, pixels: NDArray[np.uint8], row: int, copy: int) -> NDArray[np.uint8]:
        augmentation = self.augmentation
        if augmentation is None or not augmentation.applies_to(int(self.labels[row])):
            return pixels
        return augmentation(pixels, self.epoch.number, self.keys[row], copy)


@dataclass(eq=False)
class _Told(Dataset[tuple[Tensor, Tensor] | MicrotomeError]):
    """Gives what is wrong with a batch in its place: raised in a worker it comes as a traceback."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | MicrotomeError:
        try:
            return self.batches[index]
        except MicrotomeError as error:
            return error


def load(batches: Batches, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Read batches ahead in some processes, or one by one in this one.

    Raises:
        MicrotomeError: If a tile cannot be read, as the source tells it.
    """
    if not workers:
        yield from (batches[index] for index in range(len(batches)))
        return
    # Its own generator: else it draws from torch's, of which the network draws its dropout.
    own = torch.Generator()
    found: Any
    for found in DataLoader(_Told(batches), batch_size=None, num_workers=workers, generator=own):
        if isinstance(found, MicrotomeError):
            raise found
        yield found
