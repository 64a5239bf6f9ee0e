"""What nothing can be faster than: the decoder alone, and OpenSlide alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.timing import best, planned
from microtome.run.planning.budget import cpu_budget
from microtome.slide.types import SlideInfo, TileGrid

_AT_ONCE = 64
"""JPEG tiles that a thread is given at once: handing them over costs as much as decoding glass."""


def decode(slide: str, grid: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Decode every JPEG tile of the file that a grid's tiles lie on, each once, and nothing else.

    On as many threads as a run would have, from memory, each thread always into the same memory.
    Not timed: planning the grid, reading the file.

    Args:
        slide: A TIFF with JPEG tiles.
        grid: Options of the grid tiler.
        repeats: Times; the shortest counts.

    Returns:
        ``tiles`` of the grid, ``native`` JPEG tiles, ``seconds``.
    """
    import imagecodecs
    import tifffile

    with planned(slide, grid) as (opened, tiles), tifffile.TiffFile(slide) as tiff:
        page = _page(tiff, opened.info, tiles.geometry.level)
        data = _needed(Path(slide), page, tiles)
    local = threading.local()
    options = {
        "tables": page.jpegtables,
        # YCbCr unless the file says that its JPEG data hold RGB, as some scanners' do.
        "colorspace": "RGB" if page.photometric.name == "RGB" else "YCBCR",
        "outcolorspace": "RGB",
    }

    def several(part: Sequence[bytes]) -> None:
        out = local.__dict__.setdefault("out", np.empty(page.chunks, np.uint8))
        for tile in part:
            imagecodecs.jpeg8_decode(tile, out=out, **options)

    parts = [data[start : start + _AT_ONCE] for start in range(0, len(data), _AT_ONCE)]
    with ThreadPoolExecutor(cpu_budget()) as pool:
        seconds = best(lambda: list(pool.map(several, parts)), repeats)
    return {"tiles": len(tiles), "native": len(data), "seconds": seconds}


def _page(tiff: Any, info: SlideInfo, level: int) -> Any:
    """Find the page of a level: the tiled one of its size."""
    width, height = info.levels[level].width, info.levels[level].height
    for page in tiff.pages:
        if page.is_tiled and (page.imagewidth, page.imagelength) == (width, height):
            return page
    raise LookupError(f"{info.path.name} has no page of {width}x{height} pixels")


def _needed(path: Path, page: Any, grid: TileGrid) -> list[bytes]:
    """Load the compressed tiles under a grid, in the file's order."""
    columns = -(-page.imagewidth // page.tilewidth)
    rows = -(-page.imagelength // page.tilelength)
    wanted = np.zeros((rows, columns), bool)
    corners = np.rint(grid.coords[:, :2] / np.asarray(grid.geometry.level_downsample)).astype(int)
    for (x, y), (width, height) in zip(corners, grid.coords[:, 2:4], strict=True):
        across = slice(max(x, 0) // page.tilewidth, (x + width - 1) // page.tilewidth + 1)
        down = slice(max(y, 0) // page.tilelength, (y + height - 1) // page.tilelength + 1)
        wanted[down, across] = True
    content = np.memmap(path, np.uint8, "r")
    return [
        content[page.dataoffsets[i] : page.dataoffsets[i] + page.databytecounts[i]].tobytes()
        for i in np.flatnonzero(wanted)
    ]


def openslide(slide: str, grid: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Read and resample a grid's tiles with openslide-python, as a good loop of one's own would.

    One handle a thread, as many threads as a run would have, a tile at a time: ``read_region``,
    to RGB, and torch's antialiased uint8 kernel where the size differs. Not timed: planning.

    Args:
        slide: The file.
        grid: Options of the grid tiler.
        repeats: Times; the shortest counts.

    Returns:
        ``tiles`` and ``seconds``.
    """
    import torch
    from openslide import OpenSlide

    with planned(slide, grid, "openslide") as (_, tiles):
        geometry, coords = tiles.geometry, tiles.coords
    torch.set_num_threads(1)
    local = threading.local()

    def one(row: NDArray[np.int32]) -> None:
        handle = local.__dict__.get("handle")
        if handle is None:
            torch.set_num_threads(1)  # the number is each thread's own
            handle = local.handle = OpenSlide(slide)
        x, y, width, height, level = map(int, row)
        region = np.asarray(handle.read_region((x, y), level, (width, height)).convert("RGB"))
        _resized(region, geometry.size)

    with ThreadPoolExecutor(cpu_budget()) as pool:
        seconds = best(partial(_drain, pool, one, coords), repeats)
    return {"tiles": len(tiles), "seconds": seconds}


def _drain(pool: ThreadPoolExecutor, work: Any, items: Any) -> None:
    for _ in pool.map(work, items):
        pass


def _resized(region: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    import torch

    if region.shape[:2] == (size, size):
        return region
    # Seen as NCHW on NHWC memory, which the uint8 kernel is written for.
    image = torch.from_numpy(region.copy()).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return np.asarray(small[0].permute(1, 2, 0).numpy())
