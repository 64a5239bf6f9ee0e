"""What is measured, one function a subject, each giving `Result` values."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import microtome
from microtome.plugin.registry import configure, get_registry
from microtome.run.budget import cpu_budget
from microtome.run.pixels import encode
from microtome.run.plan import make_encoder
from microtome.run.progress import SilentReporter
from microtome.run.settings import EncoderChoice
from microtome.slide.batch import TileBatch

TILE = 256
BATCH = 32


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        name: What was measured.
        value: How much.
        unit: Of what.
        ratio: The value as a multiple of what it is held against, or None.
        against: What that is.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""


def start_up(repeats: int) -> Iterator[Result]:
    """Time what a user waits for before anything is computed."""
    bare = best(lambda: python("-c", "pass"), repeats)
    yield Result("python -c pass", bare, "s")
    cases = {
        "microtome --help": ("-m", "microtome", "--help"),
        "microtome plugins": ("-m", "microtome", "plugins"),
        "import the Python API": ("-c", "import microtome; microtome.open_slide"),
    }
    for name, arguments in cases.items():
        seconds = best(lambda arguments=arguments: python(*arguments), repeats)
        yield Result(name, seconds, "s", seconds / bare, "python -c pass")


def floor(slide: Path) -> Result:
    """Decode the slide's JPEG tiles and do nothing else: no reader can be faster."""
    import imagecodecs
    import tifffile

    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        tables = page.jpegtables
        data = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    content = slide.read_bytes()
    tiles = [content[start : start + count] for start, count in data]

    def decode(tile: bytes) -> None:
        imagecodecs.jpeg8_decode(tile, tables=tables)

    with ThreadPoolExecutor(cpu_budget()) as pool:
        list(pool.map(decode, tiles[:BATCH]))
        rate = len(tiles) / best(lambda: list(pool.map(decode, tiles)), 3)
    return Result(f"libjpeg-turbo, {cpu_budget()} threads", rate, "JPEG tiles/s")


def reading(slide: Path, reader: str, magnification: float, most: Result) -> Result:
    """Read every tile of a slide; resampled where it is not at the scanned magnification."""
    with microtome.open_slide(slide, reader=reader) as opened:
        mask = opened.tissue("none")
        grid = opened.tiles(mask, size=TILE, magnification=magnification)
        scanned = opened.resolution.magnification or magnification

    def read() -> int:
        # Opened anew, so that no reader's own cache counts.
        with microtome.open_slide(slide, reader=reader) as opened:
            return sum(len(tiles.rows) for tiles in opened.iterate(grid))

    rate = len(grid) / best(read, 2)
    decoded = rate * (scanned / magnification) ** 2
    kernel = ""
    if scanned != magnification:
        kernel = " by torch" if "torch" in sys.modules else " by Pillow"
    name = f"read {TILE} px at {magnification:g}x{kernel}, {reader}"
    return Result(name, rate, "tiles/s", decoded / most.value, "libjpeg-turbo")


def encoding(name: str, tiles: NDArray[np.uint8], **options: object) -> Result:
    """Encode batches that are in memory, on the CPU in fp32."""
    registry = get_registry()
    spec = registry.find("encoder", name).spec
    choice = EncoderChoice(plugin=name, config=configure(spec, **options), device="cpu")
    planned = make_encoder(choice, registry)
    planned.ensure_loaded()
    coords = np.zeros((len(tiles), 5), np.int32)
    seconds = best(lambda: encode(planned, TileBatch(tiles, coords)), 3)
    return Result(f"encode, {name}", len(tiles) / seconds, "tiles/s")


def bare_resnet18(count: int) -> Result:
    """Run the network on a ready tensor in the default memory order: what a plain loop gives."""
    import torch
    from torchvision.models import resnet18

    network = resnet18().eval()
    images = torch.rand(count, 3, 224, 224)
    with torch.inference_mode():
        seconds = best(lambda: network(images), 3)
    return Result("resnet18 alone, NCHW", count / seconds, "tiles/s")


def whole_run(slide: Path, folder: Path) -> Result:
    """Do a run as users do, from opening the slide to the published file."""
    began = time.perf_counter()
    result = microtome.run_slides(
        slide,
        folder / "out",
        tiler={"grid": {"size": TILE, "magnification": 20}},
        reporter=SilentReporter(),
    )
    seconds = time.perf_counter() - began
    tiles = sum(status.tiles or 0 for status in result.statuses)
    return Result("a run with handcrafted, tissue at 20x", tiles / seconds, "tiles/s")


def best(work: Callable[[], object], repeats: int) -> float:
    """Give the shortest of some times in seconds: what the machine can, undisturbed."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def python(*arguments: str) -> None:
    """Run a Python process to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
