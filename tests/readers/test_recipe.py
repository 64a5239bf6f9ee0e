"""The recipe of docs/geometry.md, run as it stands there, makes the tiles that a run made."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
from PIL import Image

from microtome.__main__ import main
from microtome.slide.imaging import read_tiles
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome.testing.synthetic import make_slide

PAGE = Path(__file__).parents[2] / "docs" / "geometry.md"
ALPHA = {"aperio": False, "alpha": True, "compression": "deflate"}

SLIDES = {
    "whole": {"size": (1000, 700), "levels": (1, 2)},
    "fractional": {"size": (1001, 703), "levels": (1, 2)},
    "far from whole": {"size": (1007, 703), "levels": (1, 2.01)},
    "finer than 2": {"size": (1001, 703), "levels": (1, 1.7)},
    "alpha": {"size": (1000, 700), "levels": (1, 2), **ALPHA},
    "alpha, fractional": {"size": (1003, 703), "levels": (1, 2), **ALPHA},
}
"""Fractional where the size cannot be halved: OpenSlide's downsample is that of the sizes."""

BETWEEN = ("fractional", "far from whole", "finer than 2")
"""Where auto's choice interpolates between pixels by itself: OpenSlide's reader is asked for."""


def recipe():
    """Run the page's snippet, on the ``slide.svs`` and ``out`` of the working directory."""
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    (code,) = (snippet for snippet in snippets if "def read_tile" in snippet)
    names = {}
    exec(compile(code, PAGE.name, "exec"), names)
    return names["read_tile"]


@pytest.mark.parametrize("edge", ["drop", "pad"])
@pytest.mark.parametrize("name", SLIDES)
def test_the_documented_recipe_makes_every_tile(name, edge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_slide("slide.svs", pen=False, **SLIDES[name])
    # Tiles of 83: the lattice meets few pixels whose position is whole.
    options = [f"tiler.edge={edge}", "tiler.size=83", "tiler.step=61", "tiler.magnification=19.8"]
    options += ["reader=openslide"] if name in BETWEEN else []
    assert main(["slide.svs", "output=out", "segmenter=none", "writer=[hdf5,png]", *options]) == 0
    with h5py.File("out/patches/slide.h5") as file:
        coords, marked = file["coords"][:], file["columns/has_background"][:]
        assert file.attrs["reader"] == ("tiff" if name == "whole" else "openslide")
    read_tile = recipe()
    with openslide.OpenSlide("slide.svs") as slide:
        assert (slide.level_downsamples[1] % 1 == 0) == (name in ("whole", "alpha"))
        assert set(coords[:, 4]) == {int(SLIDES[name]["levels"][1] == 2) or 1}
        for x, y, *rest in coords.tolist():
            made = np.asarray(Image.open(f"out/images/slide/slide_x{x}_y{y}.png"))
            np.testing.assert_array_equal(read_tile(slide, x, y, *rest), made)
    assert marked.any() == (edge == "pad" or "alpha" in name)
    assert not marked.all()


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        *((name, "tiff") for name in ("fractional", "finer than 2", "alpha, fractional")),
        *((name, "cucim") for name in ("fractional", "finer than 2") if find_spec("cucim")),
    ],
)
def test_other_readers_have_the_same_edges(name, reader, tmp_path):
    path = make_slide(tmp_path / "slide.svs", pen=False, **SLIDES[name]).path
    ref = SlideRef(path=path, slide_id="slide")
    with open_slide(ref, reader="openslide") as ours, open_slide(ref, reader=reader) as other:
        level = ours.info.levels[1]
        x, y = np.rint(np.mgrid[0 : level.width : 47, 0 : level.height : 47] * level.downsample)
        boxes = np.array([(a, b, 83, 83) for a, b in zip(x.flat, y.flat, strict=True)], np.int64)
        (pixels, marked), (theirs, also) = (
            read_tiles(slide.reader, 1, boxes) for slide in (ours, other)
        )
    np.testing.assert_array_equal(marked, also)
    np.testing.assert_array_equal((pixels == 255).all(axis=-1), (theirs == 255).all(axis=-1))
    assert np.abs(pixels.astype(int) - theirs).max() <= 3
