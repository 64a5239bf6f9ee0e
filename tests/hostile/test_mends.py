"""Faults that hostile files showed: each stays mended."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from bench.hostile import rawtiff as raw
from bench.hostile.absurd import absurd
from bench.hostile.claims import claims
from PIL import Image

from microtome.errors import MicrotomeError, ResolutionError, SlideOpenError, SlideReadError
from microtome.slide.imaging import render_view
from microtome.slide.opening import _reason, check_levels, open_slide
from microtome.slide.resolution import resolve_resolution
from microtome.slide.types import Level, SlideInfo, SlideRef
from microtome_readers.tiff.dirs import EndlessError, check_directories
from microtome_readers.tiff.jpegstream import parse_jpeg
from microtome_readers.tiff.plausible import check_claim, check_expansion, check_tile
from microtome_readers.tiff.props import describe_tiff


@pytest.fixture(scope="module")
def lies(tmp_path_factory):
    """Write the files that claim too much, but for the largest."""
    folder = tmp_path_factory.mktemp("lies")
    heavy = re.compile("million-(d|strips)|deflate-to|one-tile-everywhere.tif|png-20000|no-tile")
    return {s.path.name: s.path for s in claims(folder, without=heavy)}


def refused(path: Path, reader: str = "auto", mpp: float | None = 0.5) -> str:
    ref = SlideRef(path=path, slide_id="a", mpp=mpp)
    with pytest.raises(MicrotomeError) as caught, open_slide(ref, reader=reader) as slide:
        render_view(ref, slide.reader, slide.info, mpp=None, max_px=64)
    return str(caught.value)


def info(**fields):
    levels = (Level(width=100, height=100, downsample=1.0),)
    return SlideInfo(path=Path("a.svs"), reader="fake", **({"levels": levels} | fields))


@pytest.mark.parametrize(
    ("name", "reader", "reason"),
    [
        ("tile-20000-of-small.tif", "tiff", "tiles of 20000"),
        ("tile-20000-of-small.tif", "openslide", "tiles of 20000"),
        ("tile-20000-of-small.tif", "vips", "tiles of 20000"),
        ("one-tile-everywhere-levels.tif", "openslide", "131072 × 131072 pixels, but has only"),
        ("one-tile-everywhere-levels.tif", "tiff", "131072 × 131072 pixels, but has only"),
        ("row-of-a-billion.tif", "tiff", "1000000000 × 1 pixels, but has only"),
        ("deflate-1-gib-strip.tif", "tiff", "claim to be 1021 MiB"),
        ("jpeg-frame-60000-strip.tif", "tiff", "60000 × 60000"),
        ("jpeg2000-60000.tif", "tiff", "60000 × 60000"),
        ("levels-20000.tif", "tiff", "more than 1024 images"),
        ("levels-20000.tif", "openslide", "more than 1024 images"),
        ("sub-loop-100000.ome.tif", "tiff", "more than 1024 images"),
        ("shared-text.tif", "openslide", "overlap"),
        ("shared-text.tif", "tiff", "overlap"),
        ("loop-500.tif", "tiff", "circle"),
        ("png-60000.bin", "auto", "megapixels"),
        ("png-60000.png", "auto", "megapixels"),
        ("jpeg-20000.jpg", "auto", "far more than an image has"),
        ("gif-20000.gif", "auto", "far more than an image has"),
        ("jpeg-run-of-ff.tif", "tiff", "truncated"),
    ],
)
def test_a_lie_is_refused(lies, name, reader, reason):
    if reader == "vips":
        pytest.importorskip("pyvips")
    assert reason in refused(lies[name], reader)


def test_a_reason_is_a_part_of_one_line():
    assert _reason(OSError("a\nb\r\x1b[31m c\x00d.")) == "a b [31m c d"
    assert len(_reason(OSError("x" * 10_000))) == 300
    assert _reason(OSError()) == "OSError"


def test_a_pyramid_has_not_hundreds_of_levels():
    levels = tuple(Level(width=9, height=9, downsample=1.0 + n) for n in range(65))
    with pytest.raises(SlideOpenError, match="65 levels"):
        check_levels(info(levels=levels))
    check_levels(info(levels=levels[:64]))


@pytest.mark.parametrize("power", ["1e9", "0.0001", "251"])
def test_an_impossible_objective_is_refused(power):
    properties = {"openslide.mpp-x": "0.5", "openslide.objective-power": power}
    with pytest.raises(ResolutionError, match="outside the plausible"):
        resolve_resolution(info(properties=properties))
    assert resolve_resolution(info(properties=properties), 0.5).magnification == 20


@pytest.mark.parametrize("power", ["0.5", "1.25", "100", "250"])
def test_a_possible_objective_is_believed(power):
    properties = {"openslide.mpp-x": "0.5", "openslide.objective-power": power}
    assert resolve_resolution(info(properties=properties)).magnification == float(power)


@pytest.mark.parametrize(
    "text",
    [
        '<OME NominalMagnification="' + "1" * 200_000,
        "mpp = " + "1" * 200_000 + "x",
        "mpp " * 100_000 + " " * 200_000,
    ],
)
def test_long_texts_are_searched_in_one_go(text):
    properties = {"tiff.ImageDescription": text, "openslide.comment": text}
    assert resolve_resolution(info(properties=properties)).mpp is None


def test_aperios_fields_are_split_in_one_go():
    long = " " * 200_000
    vendor, properties = describe_tiff(
        {"ImageDescription": f"Aperio|{long}x|{long}MPP{long}={long}0.5{long}|=5|a=|b = c = d"},
        (0.0, 0.0),
        None,
    )
    assert vendor == "aperio"
    assert properties["openslide.mpp-x"] == "0.5"
    assert properties["aperio.b"] == "c = d"
    assert properties["aperio.a"] == ""
    assert "aperio." not in properties


def test_fill_bytes_of_jpeg_are_searched_in_one_go():
    frame = b"\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0"
    tables = b"\xff\xc4\0\x13\0" + bytes(16) + b"\xff\xc4\0\x13\x10" + bytes(16)
    start = b"\xff\xd8" + frame + tables + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    with pytest.raises(ValueError, match="truncated"):
        parse_jpeg(start + b"\xff" * 1_000_000 + b"\0" * 40)
    assert parse_jpeg(start + b"\xff" * 1000 + b"\xd9" + b"x" * 40).frame == (8, 8, 1)


def test_a_file_may_claim_what_its_bytes_can_hold(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(bytes(1_000_000))
    check_claim(path, 16384, 16384)
    check_claim(path, 31_000, 32_000)
    with pytest.raises(SlideOpenError, match="has only 1000000 bytes"):
        check_claim(path, 32_000, 32_000)
    check_tile(11_585, 11_585)
    with pytest.raises(SlideOpenError, match="tiles of 11586"):
        check_tile(11_586, 11_586)
    check_expansion((16384, 16384, 1), 1)
    with pytest.raises(ValueError, match="claim to be"):
        check_expansion((16384, 16384, 3), 1000)


def test_directories_may_share_a_little(tmp_path):
    tiff = raw.RawTiff()
    first = 0
    for _ in range(3):
        first = tiff.directory({raw.DESCRIPTION: raw.text(b"x" * 5000)}, following=first)
    check_directories(tiff.save(tmp_path / "a.tif", first))
    (tmp_path / "b.tif").write_bytes(b"no TIFF at all")
    check_directories(tmp_path / "b.tif")


def test_directories_in_a_circle_are_refused(lies):
    with pytest.raises(EndlessError, match="circle"):
        check_directories(lies["loop-500.tif"])


def test_a_level_larger_than_the_first_is_refused(tmp_path):
    samples = {sample.path.name: sample.path for sample in absurd(tmp_path)}
    assert "larger than its first" in refused(samples["larger.tif"], "tiff")
    assert samples["equal.tif"].exists()


def test_tifffile_says_nothing_on_the_terminal(lies, caplog, capfd):
    logger = logging.getLogger("tifffile")
    assert logger.handlers  # else the last resort prints
    refused(lies["count-offsets.tif"], "tiff")
    assert capfd.readouterr().err == ""


def test_one_decoded_part_is_not_copied(tmp_path):
    import tifffile

    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="deflate", rowsperstrip=64)
    with open_slide(SlideRef(path=path, slide_id="a", mpp=0.5), reader="tiff") as slide:
        out = np.empty((1, 64, 64, 3), np.uint8)
        slide.reader.read_tiles(0, np.array([[0, 0, 64, 64]]), out, np.array([0]))
    assert (out[0] == pixels).all()


def test_the_probe_of_an_image_is_not_stopped_by_its_size(lies):
    from microtome_readers.pillow_reader import PillowReader

    assert PillowReader.probe(lies["png-60000.bin"])
    assert Image.MAX_IMAGE_PIXELS is not None


def test_a_stream_larger_than_its_tile_is_named(lies):
    ref = SlideRef(path=lies["jpeg2000-60000.tif"], slide_id="a", mpp=0.5)
    with open_slide(ref, reader="tiff") as slide, pytest.raises(SlideReadError, match="60000"):
        render_view(ref, slide.reader, slide.info, mpp=None, max_px=64)
