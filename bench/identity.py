"""Compares the pixels of every reader with OpenSlide's: ``python -m bench.identity [SLIDE …]``.

One line a reader, slide and class of positions: how many tiles were compared, and the largest
difference in grey levels. Without a slide, synthetic ones are made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError
from microtome.plugin.options import configure
from microtome.plugin.protocols import Reader
from microtome.plugin.registry import get_registry
from microtome.slide.imaging import read_tiles
from microtome.slide.types import Level
from microtome.testing.synthetic import make_slide

REFERENCE = "openslide"

# cuCIM first: imported after torch it can hang on a machine without a GPU.
READERS = ("cucim", "tiff", "vips")

COUNT = 24
"""Tiles of each class and level."""

SIDE = 256

Places = NDArray[np.int64]
"""(n, 2) top left corners in pixels of a level."""


@dataclass(frozen=True)
class Comparison:
    """What a reader and OpenSlide have to do with each other.

    Attributes:
        reader: Compared with OpenSlide.
        slide: The file's name.
        position: Class of positions.
        tiles: Compared, over all levels.
        worst: Largest difference of any channel in grey levels.
        share: Of the values that differ at all.
    """

    reader: str
    slide: str
    position: str
    tiles: int
    worst: int
    share: float


def compare(
    path: Path, readers: Iterable[str] = READERS, *, count: int = COUNT
) -> Iterator[Comparison]:
    """Compare every reader that opens a slide with OpenSlide, over all of its levels."""
    try:
        opened = _Opened(path, REFERENCE)
    except SlideOpenError as error:
        raise SystemExit(f"{path}: the others are held against OpenSlide. {error}") from error
    with opened as reference:
        for name in readers:
            try:
                other = _Opened(path, name)
            except (SlideOpenError, ImportError):
                continue
            with other:
                for position in (*POSITIONS, BETWEEN):
                    yield _compare(reference.reader, other.reader, position, count)


class _Opened:
    """A reader that is closed at the end of a block."""

    def __init__(self, path: Path, name: str) -> None:
        registry = get_registry()
        spec = registry.find("reader", name).spec
        self.reader: Reader = registry.load("reader", name)(path, configure(spec))

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()


def _compare(reference: Reader, other: Reader, position: str, count: int) -> Comparison:
    tiles, worst, differing, values = 0, 0, 0, 0
    for index, level in enumerate(reference.info.levels):
        for boxes in _boxes(level, position, count):
            expected, filled = read_tiles(reference, index, boxes)
            pixels, filled_too = read_tiles(other, index, boxes)
            off = np.abs(pixels.astype(np.int16) - expected)
            tiles += len(boxes)
            worst = max(worst, int(off.max()))
            differing += int(np.count_nonzero(off))
            values += off.size
            if (filled != filled_too).any():
                worst = 255  # one of them sees a hole where the other one has pixels
    name = reference.info.path.name
    return Comparison(other.info.reader, name, position, tiles, worst, differing / max(1, values))


def _boxes(level: Level, position: str, count: int) -> Iterator[NDArray[np.int64]]:
    """Give the boxes of a class on a level, a batch for each call of the reader.

    On a level whose downsample is not whole, every place but its corner is between pixels.
    """
    side = min(SIDE, level.width, level.height)
    fractional = level.downsample % 1 != 0
    rng = np.random.default_rng(11)
    room = np.array([level.width - side, level.height - side])
    if position == BETWEEN:
        if level.downsample == 1:
            return
        places = rng.integers(0, room + 1, (count, 2))
        shift = rng.integers(0, max(1, int(level.downsample)), (count, 2))
        corners = np.floor(places * level.downsample).astype(np.int64) + shift
        limit = np.floor(room * level.downsample).astype(np.int64)
        yield _at(np.minimum(corners, limit), side)
    elif not fractional:
        for places in POSITIONS[position](level, room, rng, count):
            whole = np.unique(np.clip(places, 0, room), axis=0)
            yield _at(np.rint(whole * level.downsample).astype(np.int64), side)


def _at(corners: Places, side: int) -> NDArray[np.int64]:
    return np.concatenate([corners, np.full((len(corners), 2), side)], axis=1)


def _aligned(level: Level, room: Places, rng: np.random.Generator, count: int) -> Iterator[Places]:
    """Where native tiles begin."""
    tile = np.array(level.tile or (SIDE, SIDE))
    yield rng.integers(0, room // tile + 1, (count, 2)) * tile


def _unaligned(
    level: Level, room: Places, rng: np.random.Generator, count: int
) -> Iterator[Places]:
    """Anywhere."""
    yield rng.integers(0, room + 1, (count, 2))


def _borders(level: Level, room: Places, rng: np.random.Generator, count: int) -> Iterator[Places]:
    """A pixel or half a tile before native tiles meet."""
    tile = np.array(level.tile or (SIDE, SIDE))
    meeting = rng.integers(0, room // tile + 1, (count, 2)) * tile
    yield meeting - rng.choice([1, SIDE - 1, SIDE // 2], (count, 2))


def _edges(level: Level, room: Places, rng: np.random.Generator, count: int) -> Iterator[Places]:
    """At the level's corners and along its sides."""
    places = rng.integers(0, room + 1, (count, 2))
    for axis, value in ((0, 0), (1, 0), (0, room[0]), (1, room[1])):
        places[rng.random(count) < 0.3, axis] = value
    yield np.concatenate([places, room * [[0, 0], [1, 0], [0, 1], [1, 1]]])


def _blocks(level: Level, room: Places, rng: np.random.Generator, count: int) -> Iterator[Places]:
    """Grids of 3 x 3 tiles beside each other, one call each, as a pass over a slide reads."""
    for _ in range(max(1, count // 18)):
        first = rng.integers(0, room + 1)
        for right in range(2):
            columns = range(3 * right, 3 * right + 3)
            yield first + np.stack(np.meshgrid(columns, range(3)), -1).reshape(-1, 2) * SIDE


BETWEEN = "between pixels"
POSITIONS: dict[str, Callable[[Level, Places, np.random.Generator, int], Iterator[Places]]] = {
    "aligned": _aligned,
    "unaligned": _unaligned,
    "tile borders": _borders,
    "edges": _edges,
    "block borders": _blocks,
}
"""Classes of positions on whole pixels, where readers must agree."""


def main() -> None:
    """Compare the slides of the command line, or synthetic ones, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.identity", description=__doc__)
    parser.add_argument("slides", nargs="*", type=Path, help="slides that OpenSlide opens")
    parser.add_argument("--count", type=int, default=COUNT, help="tiles of each class and level")
    arguments = parser.parse_args()
    print(f"{'reader':<8}{'slide':<40}{'position':<16}{'tiles':>6}{'max':>5}{'differing':>11}")
    with tempfile.TemporaryDirectory(prefix="microtome-identity-") as folder:
        for path in arguments.slides or list(_synthetic(Path(folder))):
            for row in compare(path, count=arguments.count):
                print(as_line(row), flush=True)


def as_line(row: Comparison) -> str:
    """Write a row of the table."""
    if not row.tiles:
        return f"{row.reader:<8}{row.slide:<40}{row.position:<16}{'none':>6}"
    return (
        f"{row.reader:<8}{row.slide:<40}{row.position:<16}{row.tiles:>6}{row.worst:>5}"
        f"{row.share:>11.4%}"
    )


def _synthetic(folder: Path) -> Iterator[Path]:
    kinds: dict[str, dict[str, Any]] = {
        "aperio-jpeg-256.svs": {"levels": (1, 4)},
        "aperio-jpeg-240.svs": {"tile": 240, "levels": (1, 2, 8)},
        "aperio-jpeg-fractional.svs": {"size": (2050, 1537), "levels": (1, 4.0005)},
        "tiff-jpeg-512.tif": {"tile": 512, "aperio": False},
        "tiff-lzw.tif": {"compression": "lzw", "aperio": False},
        "tiff-alpha.tif": {"compression": "deflate", "aperio": False, "alpha": True},
    }
    for name, options in kinds.items():
        yield make_slide(folder / name, **options).path


if __name__ == "__main__":
    main()
