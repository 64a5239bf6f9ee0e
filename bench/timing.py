"""How the parts of a measurement are timed, and what they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import microtome
from microtome.slide.types import TileGrid


def best(work: Callable[[], object], repeats: int) -> float:
    """Give the shortest of some times in seconds: what the machine can, undisturbed.

    One more call goes before, so that files are in the page cache and libraries loaded.
    """
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def planned(
    slide: str, grid: Mapping[str, Any], reader: str = "auto"
) -> Iterator[tuple[microtome.Slide, TileGrid]]:
    """Open a slide and place tiles on its tissue, as found by the default segmenter.

    Args:
        slide: The file.
        grid: Options of the grid tiler.
        reader: By name.
    """
    with microtome.open_slide(Path(slide), reader=reader) as opened:
        yield opened, opened.tiles(**grid)
