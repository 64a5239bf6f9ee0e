"""Synthetic slides: what they say of themselves is true."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import openslide
import pytest
from PIL import Image

from microtome.errors import ConfigError
from microtome.testing import MASK_DOWNSAMPLE, make_plain_image, make_slide, make_view
from microtome.testing.synthetic import EOSIN, GLASS, HAEMATOXYLIN


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("slide") / "a.svs")


def test_openslide_takes_it_for_an_aperio_slide(slide):
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == 0.25
        assert float(opened.properties["openslide.objective-power"]) == 40
        assert opened.level_dimensions == ((2048, 1536), (512, 384))
        assert set(opened.associated_images) == {"thumbnail", "label", "macro"}


def test_its_jpeg_is_near_what_was_painted(slide):
    with openslide.OpenSlide(slide.path) as opened:
        pixels = np.asarray(opened.read_region((0, 0), 0, opened.dimensions))[..., :3]
    difference = np.abs(pixels.astype(int) - slide.image)
    assert difference.mean() < 3


def test_equal_recipes_give_equal_files_and_other_seeds_other_ones(slide, tmp_path):
    again = make_slide(tmp_path / "again.svs")
    other = make_slide(tmp_path / "other.svs", seed=1)
    assert again.path.read_bytes() == slide.path.read_bytes()
    assert not np.array_equal(other.tissue, slide.tissue)


def test_tissue_pen_and_glass_look_like_what_they_are(slide):
    small = slide.image[
        MASK_DOWNSAMPLE // 2 :: MASK_DOWNSAMPLE, MASK_DOWNSAMPLE // 2 :: MASK_DOWNSAMPLE
    ]
    glass = ~(slide.tissue | slide.pen)
    assert not (slide.tissue & slide.pen).any()
    assert 0.3 < slide.tissue.mean() < 0.36
    assert np.abs(np.median(small[glass], axis=0) - GLASS).max() <= 3
    red, green, blue = np.median(small[slide.tissue], axis=0)
    assert green < blue
    assert green < red
    red, green, blue = np.median(small[slide.pen], axis=0)
    assert red < green < blue


def test_nuclei_hold_the_haematoxylin(slide):
    x, y = np.rint(slide.nuclei).astype(int).T
    assert len(x) > 200
    assert slide.tissue[y // MASK_DOWNSAMPLE, x // MASK_DOWNSAMPLE].all()
    stains = np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN]))
    density = -np.log10(np.maximum(slide.image, 1) / GLASS)
    haematoxylin = (density @ stains)[..., 0]
    tissue = sample_full(slide.tissue, haematoxylin.shape)
    assert (haematoxylin[y, x] > 0.35).all()
    assert np.median(haematoxylin[tissue]) < 0.15


def sample_full(mask, shape):
    return np.kron(mask, np.ones((MASK_DOWNSAMPLE, MASK_DOWNSAMPLE), bool))[: shape[0], : shape[1]]


@pytest.mark.parametrize("compression", ["deflate", "lzw", "none"])
def test_lossless_slides_hold_the_pixels_that_were_painted(tmp_path, compression):
    slide = make_slide(tmp_path / "a.tif", size=(300, 200), compression=compression, aperio=False)
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        pixels = np.asarray(opened.read_region((0, 0), 0, opened.dimensions))
    assert np.array_equal(pixels[..., :3], slide.image)


def test_alpha_is_transparent_on_the_left(tmp_path):
    options = {"compression": "deflate", "aperio": False, "alpha": True}
    slide = make_slide(tmp_path / "a.tif", size=(320, 200), **options)
    with openslide.OpenSlide(slide.path) as opened:
        alpha = np.asarray(opened.read_region((0, 0), 0, opened.dimensions))[..., 3]
    assert (alpha[:, :40] == 0).all()
    assert (alpha[:, 40:] == 255).all()


def test_levels_may_be_fractional_and_metadata_absent(tmp_path):
    options = {"levels": (1, 2.5), "record_mpp": False, "magnification": None}
    slide = make_slide(tmp_path / "a.svs", size=(1000, 600), **options)
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.level_dimensions[1] == (400, 240)
        assert "openslide.mpp-x" not in opened.properties
        assert "openslide.objective-power" not in opened.properties


def test_a_slide_can_be_empty(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(600, 400), tissue=0.0, pen=False)
    assert not slide.tissue.any()
    assert not len(slide.nuclei)
    assert slide.image.min() > 220


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif"])
def test_a_plain_image_is_what_its_suffix_says(tmp_path, suffix):
    slide = make_plain_image(tmp_path / f"a.{suffix}")
    with Image.open(slide.path) as image:
        assert image.size == (512, 384)
        assert image.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())


@pytest.mark.parametrize(
    "options", [{"compression": "zip"}, {"alpha": True}, {"alpha": True, "aperio": False}]
)
def test_what_cannot_be_made_is_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        make_slide(tmp_path / "a.svs", **options)


def test_a_view_is_the_slide_at_another_scale(slide):
    view = make_view(slide, mpp=2.0)
    assert view.image.shape == (192, 256, 3)
    assert view.downsample == (8.0, 8.0)
    assert view.mpp == 2.0
    assert make_view(slide, mpp=None, max_px=512).mpp is None
    assert make_view(slide, max_px=0).image.size == 0


def test_the_kit_needs_no_pytest_and_nothing_heavy_until_it_is_used():
    code = (
        "import sys, microtome, microtome.testing;"
        "print({'pytest', '_pytest', 'tifffile', 'cv2', 'openslide', 'hydra'} & set(sys.modules));"
        "from microtome.testing import EncoderContract; print('pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "True"]
