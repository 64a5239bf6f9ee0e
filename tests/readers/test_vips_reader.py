"""libvips: its pixels, what it is not given, and what it says of damage."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from readers import tiffs

from microtome.errors import SlideOpenError, SlideReadError
from microtome.plugin import NoConfig
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome.testing import make_slide
from microtome_readers import OpenSlideConfig, TiffConfig
from microtome_readers.openslide_reader import OpenSlideReader
from microtome_readers.tiff.reader import TiffReader

pytest.importorskip("pyvips")

from microtome_readers.vips_reader import VipsReader

RGB = tiffs.colours(300, 400)


def opened(path):
    return VipsReader(path, NoConfig())


def compare(path, count=40):
    """Compare random places of every level, over native tiles and in their middle, to OpenSlide."""
    ours, theirs = opened(path), OpenSlideReader(path, OpenSlideConfig())
    assert ours.info.levels == theirs.info.levels
    rng = np.random.default_rng(2)
    for index, level in enumerate(ours.info.levels):
        side = min(150, level.width, level.height)
        last = (level.width - side, level.height - side)
        for place in [(0, 0), last, *rng.integers(0, np.add(last, 1), (count, 2))]:
            x, y = (round(v * level.downsample) for v in place)
            a, b = (tiffs.read(reader, x, y, side, side, index) for reader in (ours, theirs))
            yield np.abs(a[..., :3].astype(int) - b[..., :3]).max()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("tile", [240, 256])
def test_pixels_are_openslides_at_whole_positions(tmp_path, tile):
    slide = make_slide(tmp_path / "a.svs", size=(1600, 1200), levels=(1, 2, 4), tile=tile)
    assert max(compare(slide.path)) == 0
    assert opened(slide.path).info.exact


def test_pixels_of_a_real_slide_are_openslides(shared_data):
    assert max(compare(shared_data / "slides" / "cmu-1-small-region.svs")) == 0


def test_between_pixels_it_interpolates_as_the_tiff_reader_does(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(1001, 703))
    ours, tiff = opened(slide.path), TiffReader(slide.path, TiffConfig())
    assert ours.info.levels[1].downsample % 1
    assert not ours.info.exact
    for x, y in ((402, 3), (7, 301)):
        assert np.array_equal(*(tiffs.read(r, x, y, 90, 90, 1) for r in (ours, tiff)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RGB", {"compression": "lzw", "predictor": True, "bigtiff": True}),
        ("RGB", {"compression": "zlib"}),
        ("RGB", {"compression": "packbits"}),
        ("RGB", {"compression": "webp"}),
        ("RGB", {"compression": "jpeg", "subsampling": (2, 2)}),
        ("RGB", {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}),
        ("RGBA", {"extrasamples": ["unassalpha"]}),
        ("RGBA", {"extrasamples": ["unspecified"]}),
        ("L", {"photometric": "minisblack"}),
        ("LA", {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
    ],
)
def test_pixels_are_those_of_the_file(tmp_path, kind, options):
    pixels = tiffs.colours(300, 400, len(kind))
    pixels = pixels[..., 0] if kind == "L" else pixels
    path = tiffs.write(tmp_path / "a.tif", pixels, tile=(128, 128), **options)
    ours, tiff = opened(path), TiffReader(path, TiffConfig())
    assert ours.info.channels == tiff.info.channels
    assert np.array_equal(tiffs.whole(ours), tiffs.whole(tiff))


def test_a_pyramid_in_subifds_is_found(tmp_path):
    path = tmp_path / "a.ome.tif"
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, subifds=2, **options)
        tiff.write(RGB[::2, ::2], subfiletype=1, **options)
        tiff.write(RGB[::4, ::4], subfiletype=1, **options)
    ours = opened(path)
    for index, step in enumerate((1, 2, 4)):
        assert np.array_equal(tiffs.whole(ours, index), RGB[::step, ::step])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rowsperstrip": 16}, "not tiled"),
        ({"tile": (128, 128), "planarconfig": "separate"}, "separate planes"),
        ({"tile": (128, 128), "photometric": "cielab"}, "colours are CIELAB"),
    ],
)
def test_other_layouts_are_refused(tmp_path, options, reason):
    planes = np.moveaxis(RGB, 2, 0) if "planarconfig" in options else RGB
    path = tiffs.write(tmp_path / "a.tif", planes, **options)
    with pytest.raises(SlideOpenError, match=f"libvips is not given it: .*{reason}"):
        opened(path)


def test_sixteen_bits_are_refused(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB.astype(np.uint16), tile=(128, 128))
    with pytest.raises(SlideOpenError, match="16 bits"):
        opened(path)


def test_a_compression_that_it_lacks_is_told_when_opening(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(128, 128))
    tiffs.set_tag(path, "Compression", 34676)  # SGI's LogLuv, which needs another photometric
    with pytest.raises(SlideOpenError, match="libvips cannot open it"):
        opened(path)


DAMAGE = {
    "jpeg without its end": ("jpeg", lambda data: (b"\x11\x11", len(data) - 2)),
    "half a jpeg": ("jpeg", lambda data: (bytes(len(data) - len(data) // 2), len(data) // 2)),
    "no jpeg": ("jpeg", lambda data: (b"\x55" * len(data), 0)),
    "no lzw": ("lzw", lambda data: (b"\x55" * len(data), 0)),
    "no deflate": ("zlib", lambda data: (b"\x55" * len(data), 0)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_at_each_read_and_not_before(tmp_path, capfd, damage):
    compression, change = DAMAGE[damage]
    path = tiffs.write(tmp_path / "a.tif", RGB, compression=compression, tile=(128, 128))
    tiffs.damage_segment(path, 5, *change(tiffs.segment(path, 5)))
    slide = opened(path)
    assert tiffs.read(slide, 0, 0, 128, 128).any()
    for _ in range(3):
        with pytest.raises(SlideReadError, match=r"a\.tif: .*level 0"):
            tiffs.read(slide, 140, 140, 30, 30)
    with ThreadPoolExecutor(1) as thread, pytest.raises(SlideReadError):
        thread.submit(tiffs.read, slide, 140, 140, 30, 30).result()
    assert capfd.readouterr() == ("", "")


def test_threads_read_what_one_reads_and_closing_ends_it(tmp_path):
    slide = opened(make_slide(tmp_path / "a.svs", size=(1000, 700)).path)
    places = [(x, y) for y in range(0, 600, 90) for x in range(0, 900, 110)]
    alone = [tiffs.read(slide, x, y, 100, 100) for x, y in places]
    with ThreadPoolExecutor(4) as threads:
        tiles = list(threads.map(lambda place: tiffs.read(slide, *place, 100, 100), places))
        assert np.array_equal(tiles, alone)
        slide.close()
        with pytest.raises(ValueError, match="closed"):
            threads.submit(tiffs.read, slide, 0, 0, 9, 9).result()
    open_files = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not any(link.resolve().name == "a.svs" for link in open_files)


def test_it_is_used_when_asked_for(synthetic):
    ref = SlideRef(path=synthetic.path, slide_id="a")
    with open_slide(ref) as automatic, open_slide(ref, reader="vips") as asked:
        assert automatic.info.reader != "vips"
        assert asked.info.resolution == automatic.info.resolution


def test_pyvips_without_libvips_says_what_to_install(tmp_path):
    (tmp_path / "pyvips.py").write_text("raise OSError('cannot load library')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from microtome.plugin.registry import get_registry\n"
        "get_registry().load('reader', 'vips')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PluginError" in done.stderr
    assert "cannot load library; pyvips[binary] brings libvips" in done.stderr


def test_transparency_is_openslides(shared_data):
    path = shared_data / "slides" / "slaid_patch_rgba_levels_1_8_256.tif"
    ours, theirs = opened(path), openslide.OpenSlide(path)
    for index, level in enumerate(ours.info.levels):
        size = (level.width, level.height)
        expected = np.asarray(theirs.read_region((0, 0), index, size))
        assert np.array_equal(tiffs.whole(ours, index), expected)
    theirs.close()
