"""Run the benchmarks and print a table of figures and ratios."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import (
    BATCH,
    TILE,
    Result,
    bare_resnet18,
    encoding,
    floor,
    reading,
    start_up,
    whole_run,
)
from microtome.plugin.registry import get_registry
from microtome.run.attributes import provenance
from microtome.run.budget import cpu_budget
from microtome.testing.synthetic import make_plain_image, make_slide

# cuCIM first: imported after torch it can hang on a machine without a GPU.
READERS = ("cucim", "openslide", "tiff")


def main() -> None:
    """Measure, print a table line by line, and write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny slide: only see that it runs")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="microtome-bench-") as folder:
        for result in measure(Path(folder), quick=arguments.quick):
            results.append(result)
            print(as_line(result), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record(results), indent=2) + "\n", "utf-8")


def measure(folder: Path, *, quick: bool) -> Iterator[Result]:
    """Measure everything that is installed."""
    yield from start_up(1 if quick else 5)
    size = (1024, 1024) if quick else (6144, 4096)
    slide = make_slide(folder / "slide.svs", size=size, tissue=0.5).path
    most = floor(slide)
    yield most
    readers = [name for name in READERS if not get_registry().find("reader", name).missing]
    for name in readers:
        yield reading(slide, name, 40, most)
        yield reading(slide, name, 20, most)
    yield whole_run(slide, folder)
    tissue = make_plain_image(folder / "tissue.png", size=(TILE * 8, TILE * 4), tissue=0.6).image
    tiles = tissue.reshape(4, TILE, 8, TILE, 3).swapaxes(1, 2).reshape(BATCH, TILE, TILE, 3)
    yield encoding("handcrafted", tiles)
    if get_registry().find("encoder", "resnet18").missing:
        return
    alone = bare_resnet18(BATCH)
    yield alone
    model = encoding("resnet18", tiles, weights="random")
    yield replace(model, ratio=model.value / alone.value, against=alone.name)
    for name in readers:
        yield reading(slide, name, 20, most)


def as_line(result: Result) -> str:
    """Write a row of the table."""
    ratio = "" if result.ratio is None else f"{result.ratio:6.2f} x {result.against}"
    digits = 3 if result.value < 1 else 1 if result.value < 100 else 0
    return f"{result.name:<42}{result.value:>9.{digits}f} {result.unit:<13}{ratio}".rstrip()


def record(results: list[Result]) -> dict[str, object]:
    """Give the figures with what they depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpus": cpu_budget(),
        "libraries": provenance(),
        "results": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    main()
