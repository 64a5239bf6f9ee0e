"""Tries one file with one reader, and compares two readers of one file.

``python -m bench.hostile.examine`` does so for each line of its input, a JSON object of the
arguments of `examine` or, without a reader, of `compare`; and answers each with a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import MicrotomeError, TissueError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import SegmenterSpec
from microtome.run.settings import TissueSettings
from microtome.run.slides.pixels import iterate_tiles
from microtome.run.slides.tissue import find_tissue
from microtome.slide import Edge, GridConfig
from microtome.slide.imaging import read_tiles, render_view
from microtome.slide.opening import OpenedSlide, open_slide
from microtome.slide.tiling import GridTiler
from microtome.slide.types import SlideRef, TissueMask
from microtome_engines.worker import die_with

MARK = "EXAMINED "

_LONGEST = 1000
"""Characters of a sentence: paths and the reasons of five readers fit."""

_BLOCK = 512
_MOST_COMPARED = 1 << 25
"""Pixels of a level up to which readers are compared on it."""


def examine(path: str, reader: str, mpp: float | None) -> dict[str, Any]:
    """Open a file, draw it, find its tissue, read its tiles.

    Args:
        path: The file.
        reader: A reader's name, or ``auto``.
        mpp: µm per pixel given by the user.

    Returns:
        How it ``ended``: ``read``, ``refused``, or a fault: ``unclear`` where the sentence is none,
        ``leaked`` where the error is not microtome's. And the ``sentence``.
    """
    try:
        with open_slide(_ref(path, mpp), reader=reader) as slide:
            for work in (_view, _tissue, _tiles):
                work(slide)
    except MicrotomeError as error:
        complaint = unclear(str(error), path)
        ended, sentence = ("unclear", complaint) if complaint else ("refused", str(error))
    except Exception as error:  # noqa: BLE001 - what leaks is what is looked for
        ended, sentence = "leaked", f"{type(error).__name__}: {error}"
    else:
        ended, sentence = "read", ""
    return {"ended": ended, "sentence": sentence[:_LONGEST]}


def compare(path: str, mpp: float | None) -> dict[str, Any]:
    """Read every level with OpenSlide and without it.

    Levels that lie between pixels are left out: readers interpolate there, each in its way. So are
    those that one of them does not see: OpenSlide knows no SubIFDs.

    Returns:
        ``ended``: ``equal``, ``refused`` where either does not read it all, ``differs``.
    """
    try:
        with (
            open_slide(_ref(path, mpp), reader="openslide") as one,
            open_slide(_ref(path, mpp), reader="tiff") as other,
        ):
            sizes = [[(x.width, x.height) for x in slide.info.levels] for slide in (one, other)]
            if sizes[0][0] != sizes[1][0]:
                return {"ended": "differs", "sentence": f"levels {sizes[0]} and {sizes[1]}"}
            pairs = [
                (level, sizes[1].index(size))
                for level, size in enumerate(sizes[0])
                if size in sizes[1]
            ]
            differ = [_differing(one, other, pair) for pair in pairs]
    except MicrotomeError as error:
        return {"ended": "refused", "sentence": str(error)[:_LONGEST]}
    ended = "differs" if any(differ) else "equal"
    return {"ended": ended, "sentence": f"pixels that differ, by level: {differ}"}


def unclear(sentence: str, path: str) -> str:
    """Say why a message is not one clear sentence about a file; nothing where it is."""
    wanted = {
        "no file name": Path(path).name in sentence,
        "several lines or control characters": sentence.isprintable(),
        "too long": len(sentence) <= _LONGEST,
        "a traceback": "Traceback" not in sentence,
        "the name of an exception": "Error:" not in sentence and "Exception" not in sentence,
    }
    faults = [fault for fault, fine in wanted.items() if not fine]
    return f"{', '.join(faults)}: {sentence!r}" if faults else ""


def _ref(path: str, mpp: float | None) -> SlideRef:
    return SlideRef(path=Path(path), slide_id="hostile", mpp=mpp)


def _view(slide: OpenedSlide) -> None:
    render_view(slide.ref, slide.reader, slide.info, mpp=None, max_px=512)


def _tissue(slide: OpenedSlide) -> None:
    spec = get_registry().find("segmenter", "classic").spec
    if isinstance(spec, SegmenterSpec):
        try:
            find_tissue(
                slide, get_registry().create("segmenter", "classic"), spec, TissueSettings()
            )
        except TissueError as error:  # its pixels are read all the same
            if unclear(str(error), str(slide.ref.path)):
                raise


def _tiles(slide: OpenedSlide) -> None:
    """Read tiles everywhere at a quarter of the slide's magnification."""
    everywhere = TissueMask(
        array=np.ones((1, 1), np.bool_), downsample=(slide.info.width, slide.info.height)
    )
    power = slide.info.resolution.magnification or 20
    config = GridConfig(size=128, magnification=power / 4, min_tissue=0, edge=Edge.pad)
    grid = GridTiler(config).plan(slide.info, everywhere)
    for _ in iterate_tiles(slide.reader, grid, workers=2):
        pass


def _differing(one: OpenedSlide, other: OpenedSlide, pair: tuple[int, int]) -> int:
    """Count the pixels of a level that two readers give differently."""
    level = one.info.levels[pair[0]]
    if not level.downsample.is_integer() or level.width * level.height > _MOST_COMPARED:
        return 0
    # OpenSlide multiplies what is partly transparent by its alpha, and divides again.
    slack = 1 if other.info.channels == 4 else 0
    count = 0
    for y in range(0, level.height, _BLOCK):
        for x in range(0, level.width, _BLOCK):
            ds = int(level.downsample)
            size = (min(_BLOCK, level.width - x), min(_BLOCK, level.height - y))
            box = np.array([[x * ds, y * ds, *size]])
            expected, _ = read_tiles(one.reader, pair[0], box)
            pixels, _ = read_tiles(other.reader, pair[1], box)
            off = np.abs(expected.astype(np.int16) - pixels).max(axis=-1)
            count += int((off > slack).sum())
    return count


def measured(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a line of input asks, and say what it took: ``seconds``, ``peak_mb`` above before."""
    _forget_peak()
    before, began = _memory("VmRSS"), time.perf_counter()
    found = examine(**arguments) if "reader" in arguments else compare(**arguments)
    seconds = time.perf_counter() - began
    return {**found, "seconds": seconds, "peak_mb": max(0.0, _memory("VmHWM") - before)}


def _forget_peak() -> None:
    """Give freed memory back, and let the largest size be counted anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def main() -> None:
    """Answer line by line."""
    die_with(os.getppid())
    for line in sys.stdin:
        print(MARK + json.dumps(measured(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
