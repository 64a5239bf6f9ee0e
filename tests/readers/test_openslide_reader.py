"""OpenSlide's pixels, unchanged."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
from readers import tiffs

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.imaging import read_tiles
from microtome_readers import OpenSlideConfig, TiffConfig, openslide_reader
from microtome_readers.openslide_reader import OpenSlideReader
from microtome_readers.tiff.reader import TiffReader

RGB = tiffs.colours(600, 801)
HALF = tiffs.colours(299, 400)
"""A second level with a downsample that is not whole."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("openslide") / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "metadata": None, "tile": (128, 128)}
        tiff.write(RGB, **options)
        tiff.write(HALF, subfiletype=1, **options)
    return path


@pytest.fixture
def slide(path):
    slide = OpenSlideReader(path, OpenSlideConfig())
    yield slide
    slide.close()


def test_level_0_is_the_file(slide):
    pixels = tiffs.whole(slide)
    assert np.array_equal(pixels[..., :3], RGB)
    assert (pixels[..., 3] == 255).all()


def test_pixels_are_those_of_read_region(path, slide):
    direct = openslide.OpenSlide(path)
    for x, y in ((0, 0), (101, 77), (333, 250)):
        expected = np.asarray(direct.read_region((x, y), 1, (150, 120)))
        assert np.array_equal(tiffs.read(slide, x, y, 150, 120, 1), expected)
    direct.close()


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """Pixels of every alpha, on tiles that are all full, all clear, or mixed."""
    pixels = tiffs.colours(300, 400, 4)
    pixels[..., 3] = np.random.default_rng(4).integers(0, 256, (300, 400))
    pixels[:128, :128, 3] = 255
    pixels[128:256, :128, 3] = 0
    path = tmp_path_factory.mktemp("openslide") / "ragged.tif"
    return tiffs.write(path, pixels, tile=(128, 128), extrasamples=["unassalpha"])


CORNERS = ((0, 0), (0, 128), (100, 100), (-20, -30), (350, 250), (900, 900))
"""Full, clear, mixed, and over the edges of the slide or beyond them."""


@pytest.mark.parametrize("direct", [True, False])
def test_transparent_pixels_are_those_of_read_region(ragged, monkeypatch, direct):
    """Bit by bit, also with an openslide-python that has no such private names."""
    if not direct:
        monkeypatch.setattr(openslide_reader, "_read_region", None)
    slide, pillow = OpenSlideReader(ragged, OpenSlideConfig()), openslide.OpenSlide(ragged)
    seen = set()
    for x, y in CORNERS:
        expected = np.asarray(pillow.read_region((x, y), 0, (100, 90)))
        assert np.array_equal(tiffs.read(slide, x, y, 100, 90), expected)
        seen |= set(np.unique(expected[..., 3]).tolist())
    assert len(seen) == 256
    pillow.close()
    slide.close()


def test_holes_of_a_real_slide_are_those_of_read_region(shared_data):
    path = shared_data / "slides" / "slaid_patch_rgba_levels_1_8_256.tif"
    slide, pillow = OpenSlideReader(path, OpenSlideConfig()), openslide.OpenSlide(path)
    for index in range(pillow.level_count):
        expected = np.asarray(pillow.read_region((-8, -8), index, (272, 272)))
        assert np.array_equal(tiffs.read(slide, -8, -8, 272, 272, index), expected)
    pillow.close()
    slide.close()


def test_a_buffer_need_not_be_contiguous(slide):
    out = np.zeros((2, 90, 200, 4), np.uint8)[:, :, 50:150]
    slide.read_tiles(0, np.array([[7, 9, 100, 90]]), out, np.array([1]))
    assert np.array_equal(out[1, ..., :3], RGB[9:99, 7:107])
    assert not out[0].any()


def test_a_plain_format_waits_for_no_tifffile(synthetic):
    """Importing it takes longer than opening a slide."""
    code = (
        "import sys; from microtome.slide.opening import open_slide;"
        "from microtome.slide.types import SlideRef; from pathlib import Path;"
        "open_slide(SlideRef(path=Path(sys.argv[1]), slide_id='a'), reader='openslide').close();"
        "print('tifffile' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(synthetic.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_opaque_levels_are_opaque_between_pixels_and_at_their_ends(slide):
    """OpenSlide's alpha is less there: it blends with what is outside."""
    level = slide.info.levels[1]
    assert level.downsample % 1
    for column, row in ((120, 130), (151, 155), (350, 206)):
        x, y = round(column * level.downsample), round(row * level.downsample)
        w, h = level.width - column, level.height - row
        raw = tiffs.read(slide, x, y, w, h, 1)
        pixels, has_background = read_tiles(slide, 1, np.array([[x, y, w, h]]))
        assert (raw[..., 3] < 255).any()
        assert not has_background.any()
        assert np.array_equal(pixels[0], raw[..., :3])


def test_the_tiff_reader_interpolates_as_openslide_does(path, slide):
    other = TiffReader(path, TiffConfig())
    assert other.info.levels == slide.info.levels
    rng = np.random.default_rng(3)
    for x, y in rng.integers(0, 400, (40, 2)).tolist():
        ours, theirs = (tiffs.read(r, x, y, 150, 100, 1)[..., :3] for r in (other, slide))
        off = np.abs(ours.astype(int) - theirs)
        assert off.max() <= 3  # three where four tiles meet, which is rare
        assert (off > 2).mean() < 1e-3


def test_tiles_and_metadata_are_told(slide):
    assert slide.info.vendor == "generic-tiff"
    assert slide.info.levels[0].tile == (128, 128)
    assert slide.info.properties["openslide.level-count"] == "2"


def test_sixteen_bits_are_refused_though_openslide_scales_them(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB.astype(np.uint16) * 257, tile=(128, 128))
    with pytest.raises(SlideOpenError, match=r"16 bits.*convert it to 8-bit RGB first"):
        OpenSlideReader(path, OpenSlideConfig())


def test_tiles_that_no_memory_holds_are_refused(tmp_path):
    """OpenSlide would abort the process when it reads one."""
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(128, 128), compression="zlib")
    tiffs.set_tag(path, "TileLength", 1 << 29)
    with pytest.raises(SlideOpenError, match="tiles of 128 × 536870912"):
        OpenSlideReader(path, OpenSlideConfig())


def test_an_error_is_told_again_at_each_read(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(128, 128), compression="jpeg")
    tiffs.damage_segment(path, 0, b"\x55" * len(tiffs.segment(path, 0)))
    slide = OpenSlideReader(path, OpenSlideConfig())
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"a\.tif: level 0 at x=0, y=0, 64 × 64 pixels"):
            tiffs.read(slide, 0, 0, 64, 64)


def test_an_mrxs_without_its_folder_says_so(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0 as if it were a JPEG")
    with pytest.raises(SlideOpenError, match="its data folder a is not beside it"):
        OpenSlideReader(tmp_path / "a.mrxs", OpenSlideConfig())


def test_probe_knows_a_slide_by_its_bytes(path, tmp_path):
    (tmp_path / "nameless").write_bytes(path.read_bytes())
    assert OpenSlideReader.probe(tmp_path / "nameless")
    (tmp_path / "text").write_text("no slide")
    assert not OpenSlideReader.probe(tmp_path / "text")
