"""The same pixels by every reader, wherever boxes lie on whole pixels; and how far off between."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from readers.jpegslides import Recipe, write

OTHERS = {"cucim": "cucim", "vips": "pyvips"}
READERS = ["tiff", *(name for name, module in OTHERS.items() if find_spec(module))]

BETWEEN = 3
"""Grey levels that a reader may be off between pixels, where OpenSlide interpolates."""


@pytest.fixture(scope="module")
def bench_identity():
    """Give the benchmark that compares readers: it is no part of the distribution."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module("bench.identity")


def check(compare, path, reader, *, classes):
    """Compare a slide, and make sure that every class of positions was looked at."""
    compared = {row.position: row for row in compare(path, [reader], count=12)}
    assert len(compared) == 6
    between = compared.pop("between pixels")
    assert {name: row.worst for name, row in compared.items() if row.tiles} == dict.fromkeys(
        classes, 0
    )
    assert between.worst <= BETWEEN
    return between


WHOLE = ["aligned", "unaligned", "tile borders", "edges", "block borders"]

LAYOUTS = {
    "Aperio, 4:2:0": Recipe(),
    "Aperio, 4:4:4": Recipe(subsampling="444"),
    "4:2:2": Recipe(subsampling="422", aperio=False),
    "240 px tiles": Recipe(tile=240),
    "512 px tiles": Recipe(tile=512, size=(1300, 900)),
    "shared tables": Recipe(shared=True),
    "shared tables, RGB": Recipe(shared=True, ycbcr=False),
    "RGB": Recipe(ycbcr=False, aperio=False),
    "RGB, Aperio, 240 px": Recipe(ycbcr=False, tile=240),
    "BigTIFF": Recipe(bigtiff=True, aperio=False),
    "big endian": Recipe(byteorder=">", bigtiff=True),
    "one level": Recipe(sizes=()),
    "many levels": Recipe(size=(1600, 1200), sizes=((800, 600), (400, 300), (200, 150))),
    "fractional levels": Recipe(size=(1601, 1203), sizes=((400, 300), (100, 75))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_jpeg_has_openslides_pixels(tmp_path, bench_identity, layout):
    path = write(tmp_path / "a.svs", LAYOUTS[layout])
    between = check(bench_identity.compare, path, "tiff", classes=WHOLE)
    assert (between.tiles > 0) == (len(LAYOUTS[layout].all_sizes) > 1)


@pytest.mark.parametrize("says", ["rgb", "ycbcr"])
def test_the_page_is_believed_where_streams_say_otherwise(tmp_path, bench_identity, says):
    recipe = Recipe(ycbcr=says == "rgb")
    path = write(tmp_path / "a.svs", recipe, compressionargs={"outcolorspace": says})
    check(bench_identity.compare, path, "tiff", classes=WHOLE)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("padding", [b"\0" * 40, b"\xff" * 4, b" "])
def test_tiles_that_are_padded_have_them_too(tmp_path, bench_identity, reader, padding):
    path = write(tmp_path / "a.svs", Recipe(padding=padding))
    check(bench_identity.compare, path, reader, classes=WHOLE)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["synthetic", "cmu-1-small-region.svs"])
def test_slides_have_openslides_pixels(request, bench_identity, reader, name):
    if name == "synthetic":
        path = request.getfixturevalue("synthetic").path
    else:
        path = request.getfixturevalue("shared_data") / "slides" / name
    check(bench_identity.compare, path, reader, classes=WHOLE)


def test_a_real_slide_without_jpeg_has_them_too(shared_data, bench_identity):
    """JPEG 2000, by the same library in OpenSlide and imagecodecs; level 1 is between pixels."""
    path = shared_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    assert check(bench_identity.compare, path, "tiff", classes=WHOLE).tiles
