"""The slides that the benchmarks make."""

from __future__ import annotations

import cv2
import numpy as np
import openslide
from bench.slides import MosaicRecipe, Slides


def test_openslide_reads_a_mosaic_as_a_slide(mosaic):
    with openslide.OpenSlide(mosaic) as slide:
        assert slide.level_dimensions == ((3000, 2000), (750, 500), (188, 125))
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.properties["openslide.objective-power"] == "40"
        assert slide.properties["openslide.mpp-x"] == "0.25"
        assert slide.properties["openslide.level[0].tile-width"] == "240"


def test_a_level_is_level_0_made_smaller(mosaic):
    with openslide.OpenSlide(mosaic) as slide:
        whole, small = (
            np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]
            for level in (0, 1)
        )
    shrunk = cv2.resize(whole, (750, 500), interpolation=cv2.INTER_AREA)
    # Apart from the loss of two compressions.
    assert np.abs(shrunk.astype(int) - small).mean() < 2
    assert small.std() > 20


def test_a_slide_is_made_once_and_a_given_one_is_taken(tmp_path, mosaic):
    recipes = {"S": MosaicRecipe((600, 400)), "M": MosaicRecipe((600, 400))}
    slides = Slides(given={"M": mosaic}, cache=tmp_path / "cache", recipes=recipes)
    assert slides.path("M") == mosaic
    made = slides.path("S")
    before = made.stat().st_mtime_ns
    assert slides.path("S").stat().st_mtime_ns == before
    assert list(made.parent.iterdir()) == [made]
    assert slides.used["M"] == "mosaic.svs"
