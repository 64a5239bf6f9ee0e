"""Parts and wholes of a run over one slide."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import microtome
from bench.encoders import TINY, register
from bench.timing import best, planned
from microtome.run.planning.budget import Threads, cpu_budget, hold_pools
from microtome.run.progress import SilentReporter
from microtome.run.slides.batches import BatchReader
from microtome.slide.clock import profiling
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef


def read(
    slide: str, reader: str, grid: Mapping[str, Any], repeats: int, resampled: bool = False
) -> dict[str, Any]:
    """Read a grid's tiles through a reader into uint8 arrays; nobody looks at them.

    With the run's own block plan, threads, and memory that is used again; the slide is opened anew
    each time, so no reader's cache counts, and opening is timed. Not timed: planning the grid.

    Args:
        slide: The file.
        reader: By name, or ``auto``.
        grid: Options of the grid tiler.
        repeats: Times; the shortest counts.
        resampled: Whether to load torch first, whose kernel then resamples, as in a run with a
            network.

    Returns:
        ``tiles``, ``seconds``, and the ``reader``.
    """
    if resampled:
        import torch  # noqa: F401

    ref = SlideRef(path=Path(slide), slide_id="slide")
    with planned(slide, grid, reader) as (opened, tiles):
        name = opened.info.reader

    def once() -> None:
        with open_slide(ref, reader=reader) as again:
            batches = BatchReader(reader=again.reader, grid=tiles, workers=cpu_budget())
            for batch in batches.read():
                batches.release(batch)

    with hold_pools(Threads(cpu_budget(), 1)):
        seconds = best(once, repeats)
    return {"tiles": len(tiles), "seconds": seconds, "reader": name}


def run(
    slide: str, grid: Mapping[str, Any], repeats: int, warm: bool = True, **options: Any
) -> dict[str, Any]:
    """Run a slide as users do, from opening it to the published file, and look at its stages.

    ``seconds`` is the stage called ``tiles`` in the slide's status: the one pass over the pixels,
    in which they are read, decoded, resampled, normalised, encoded, and features kept. Tissue,
    coordinates and publishing come before and after; ``wall`` has them all.

    Args:
        slide: The file.
        grid: Options of the grid tiler.
        repeats: Passes to look at, each a slide of the run; the shortest counts.
        warm: Whether another slide goes before them, which loads the libraries and the models.
        **options: Of `microtome.run_slides`; one near-free encoder by default.

    Returns:
        ``tiles``, ``seconds`` and ``wall`` of a slide, the ``reader``, the share of the walls that
        went into writing features, ``written``, and all threads' seconds by ``profile`` stage.
    """
    register()
    with tempfile.TemporaryDirectory(prefix="microtome-bench-") as folder, profiling() as profile:
        result = microtome.run_slides(
            _links(slide, Path(folder), repeats + warm),
            Path(folder) / "out",
            reporter=SilentReporter(),
            **{"tiler": {"grid": grid}, "encoder": TINY, **options},
        )
    for status in result.statuses:
        if status.state != "done":
            raise RuntimeError(f"The run ended as {status.state}: {status.message}")
    counted = result.statuses[int(warm) :]
    shortest = min(counted, key=lambda status: status.seconds["tiles"])
    walls = [sum(status.seconds.values()) for status in result.statuses]
    return {
        "tiles": shortest.tiles,
        "seconds": shortest.seconds["tiles"],
        "wall": sum(shortest.seconds.values()),
        "reader": shortest.reader,
        "written": profile.seconds["write"] / sum(walls),
        "profile": dict(profile.seconds),
    }


def _links(slide: str, folder: Path, count: int) -> list[Path]:
    """Give a file several names, each of which is a slide to a run."""
    path = Path(slide)
    links = [folder / f"slide{number}{path.suffix}" for number in range(count)]
    for link in links:
        link.symlink_to(path.resolve())
    return links
