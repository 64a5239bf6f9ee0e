"""Which files the tiff reader vouches for, and that they are what OpenSlide takes them for."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from readers import tiffs
from readers.jpegslides import APERIO, Recipe, picture, tiles, write

from microtome.errors import SlideOpenError
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome_readers.tiff.layouts import find_known
from microtome_readers.tiff.reader import TiffReader

PLAIN = Recipe(aperio=False, sizes=())


def number(text):
    return float(text.replace(",", "."))


def opened(path, reader="auto"):
    return open_slide(SlideRef(path=path, slide_id="a"), reader=reader)


RESOLUTION = {"resolution": (20000.0, 25000.0 / 1.25), "resolutionunit": "CENTIMETER"}

KNOWN = {
    "Aperio": (Recipe(), {}),
    "Aperio, fractional levels": (Recipe(size=(1601, 1203), sizes=((400, 300), (100, 75))), {}),
    "Aperio, RGB, shared tables": (Recipe(ycbcr=False, shared=True, tile=240), {}),
    "Aperio, odd numbers": (Recipe(), {"description": "Aperio\r\n|AppMag = 20x|MPP = 0,499"}),
    "plain": (Recipe(aperio=False), RESOLUTION),
    "plain, per inch": (PLAIN, RESOLUTION | {"resolutionunit": "INCH"}),
    "plain, no unit": (PLAIN, {"resolution": (3.0, 3.0), "resolutionunit": "NONE"}),
    "plain, BigTIFF": (Recipe(aperio=False, bigtiff=True), {}),
    "plain, a software's": (Recipe(aperio=False), {"software": "a converter"}),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_auto_takes_the_tiff_reader_and_nothing_else_changes(tmp_path, kind):
    recipe, options = KNOWN[kind]
    path = write(tmp_path / "a.tif", recipe, **options)
    with opened(path) as slide, opened(path, "openslide") as reference:
        assert slide.info.reader == "tiff"
        assert "vouches" in slide.why
        assert ("between whole pixels" in slide.why) == ("fractional" in kind)
        assert slide.info.exact == ("fractional" not in kind)
        assert slide.info.levels == reference.info.levels
        assert slide.info.resolution == reference.info.resolution
        assert slide.info.background == reference.info.background
        assert slide.info.vendor == reference.info.vendor
        shared = set(slide.info.properties) & set(reference.info.properties)
        for name in shared:
            ours, theirs = slide.info.properties[name], reference.info.properties[name]
            assert ours == theirs or number(ours) == pytest.approx(number(theirs))


def test_a_real_slide_is_on_the_list(shared_data):
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    assert find_known(path).layout == "Aperio SVS"
    with opened(path) as slide, opened(path, "openslide") as reference:
        assert slide.info.reader == "tiff"
        assert slide.info.levels == reference.info.levels
        assert slide.info.resolution == reference.info.resolution


def xml(tag):
    return (tag, 7, None, b"<EncodeInfo><iScan/></EncodeInfo>", True)


FOREIGN = {
    "Philips'": ({"software": "Philips DP v1.0"}, "Philips"),
    "Trestle's": ({"software": "MedScan"}, "Trestle"),
    "Hamamatsu's": ({"extratags": [(65420, 3, 1, 1, True)]}, "Hamamatsu"),
    "Argos'": ({"extratags": [xml(65000)]}, "Argos"),
    "Huron's": ({"extratags": [(271, 2, None, "Huron LE", True)]}, "Huron"),
    "Ventana's": ({"extratags": [xml(700)]}, "XML packet"),
    "Leica's": ({"description": '<?xml version="1.0"?><scn/>'}, "XML"),
    "OME's": ({"description": "\n<OME/>"}, "XML"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_may_be_another_vendors_is_refused(tmp_path, kind):
    options, reason = FOREIGN[kind]
    path = write(tmp_path / "a.tif", Recipe(aperio=False), **options)
    with pytest.raises(ValueError, match=reason):
        find_known(path)
    assert TiffReader.vouch(path) == ""


def test_sub_ifds_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        options = {"photometric": "rgb", "metadata": None, **TILED}
        tiff.write(RGB, subifds=1, **options)
        tiff.write(RGB[::2, ::2], subfiletype=1, **options)
    with pytest.raises(ValueError, match="SubIFDs"):
        find_known(tmp_path / "a.tif")


RGB = picture(700, 500)
TILED = {"tile": (256, 256), "compression": "jpeg"}

UNFIT = {
    "striped": ({"compression": "jpeg", "rowsperstrip": 16}, "striped"),
    "LZW": ({"tile": (256, 256), "compression": "lzw"}, "not JPEG"),
    "uncompressed": ({"tile": (256, 256)}, "not JPEG"),
    "JPEG 2000": ({"tile": (256, 256), "compression": "jpeg2000"}, "not JPEG"),
    "planes": (TILED | {"planarconfig": "separate"}, "planes"),
    "grey": (TILED | {"photometric": "minisblack"}, "three samples"),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("description", ["", APERIO])
def test_other_levels_than_plain_jpeg_tiles_are_refused(tmp_path, kind, description):
    options, reason = UNFIT[kind]
    pixels = RGB[..., 0] if kind == "grey" else RGB
    pixels = np.moveaxis(RGB, 2, 0) if kind == "planes" else pixels
    path = tiffs.write(tmp_path / "a.tif", pixels, description=description, **options)
    with pytest.raises(ValueError, match=reason):
        find_known(path)


def test_one_unfit_level_is_enough(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for index, compression in enumerate(("jpeg", "lzw")):
            options = {"tile": (64, 64), "compression": compression, "subfiletype": index}
            tiff.write(RGB[:: index + 1, :: index + 1], photometric="rgb", metadata=None, **options)
    with pytest.raises(ValueError, match="level 1 is not JPEG"):
        find_known(tmp_path / "a.tif")


def tile_counts(path, change):
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    tiffs.set_tag(path, "TileByteCounts", change(counts))


DAMAGE = {
    "an empty tile": (lambda counts: [counts[0], 0, *counts[2:]], "empty tiles"),
    "a tile beyond the file": (lambda counts: [*counts[:-1], 10**6], "truncated"),
    "a tile that is cut": (lambda counts: [counts[0] // 2, *counts[1:]], "no end"),
    "too few tiles": (lambda counts: counts[:-1], "list all tiles"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused(tmp_path, kind):
    change, reason = DAMAGE[kind]
    path = write(tmp_path / "a.tif", PLAIN)
    tile_counts(path, change)
    with pytest.raises(ValueError, match=reason):
        find_known(path)


def test_frames_of_another_size_than_the_tiles_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", PLAIN)
    streams, _ = tiles(RGB, Recipe(tile=128))
    tiffs.damage_segment(path, 0, streams[0])
    tile_counts(path, lambda counts: [len(streams[0]), *counts[1:]])
    with pytest.raises(ValueError, match="frame is 128 × 128"):
        find_known(path)


PYRAMIDS = {
    "a tiled label": ([(700, 500), (120, 200)], "one proportion"),
    "a tiled thumbnail before the levels": ([(700, 500), (70, 50), (350, 250)], "get smaller"),
}


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_tiled_pictures_that_are_no_levels_are_refused(tmp_path, kind):
    (size, *sizes), reason = PYRAMIDS[kind]
    path = write(tmp_path / "a.svs", Recipe(size=size, sizes=sizes, tile=64))
    with pytest.raises(ValueError, match=reason):
        find_known(path)


def test_pages_that_are_no_reduced_versions_are_left_aside_as_openslide_does(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for page, kind in ((RGB, 0), (RGB[:200, :300], 0), (RGB[::2, ::2], 1)):
            tiff.write(page, photometric="rgb", metadata=None, subfiletype=kind, **TILED)
    with opened(path) as slide, opened(path, "openslide") as reference:
        assert slide.info.reader == "tiff"
        assert slide.info.levels == reference.info.levels
        assert len(slide.info.levels) == 2


def test_big_endian_and_dicom_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", Recipe(byteorder=">"))
    with pytest.raises(ValueError, match="big-endian"):
        find_known(path)
    path.write_bytes(b"II*\0".ljust(128, b"\0") + b"DICM" + struct.pack("<H", 0))
    assert TiffReader.vouch(path) == ""


@pytest.mark.parametrize("data", [b"", b"II", b"nothing that is a TIFF" * 9, b"II*\0\x08\0\0\0"])
def test_what_is_no_tiff_is_not_vouched_for(tmp_path, data):
    (tmp_path / "a.tif").write_bytes(data)
    assert TiffReader.vouch(tmp_path / "a.tif") == ""
    assert TiffReader.vouch(tmp_path / "none.tif") == ""


def entries(data):
    """Give where the entries of the first directory of a classic little-endian TIFF are."""
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    return range(first + 2, first + 2 + 12 * count, 12)


ODD_VALUES = {"small": (1, 3), "pair": (2, 8), "infinite": (1, 0x7F800000), "none": (0, 0)}


@pytest.mark.parametrize("odd", ODD_VALUES)
def test_tags_of_any_type_are_refused_or_mean_what_openslide_takes_them_for(tmp_path, odd):
    options = {"software": "x", "resolution": (20000.0, 20000.0)}
    data = write(tmp_path / "a.tif", Recipe(aperio=False, size=(300, 260)), **options).read_bytes()
    path = tmp_path / "b.tif"
    same = 0
    for at in entries(data):
        for kind in range(20):
            changed = bytearray(data)
            struct.pack_into("<HII", changed, at + 2, kind, *ODD_VALUES[odd])
            path.write_bytes(changed)
            same += bool(TiffReader.vouch(path)) and same_as_openslide(path)
    assert same


def same_as_openslide(path):
    """Compare what the reader vouches for, where OpenSlide opens it at all."""
    ref = SlideRef(path=path, slide_id="a", mpp=0.5)  # whatever becomes of the file's own
    try:
        reference = open_slide(ref, reader="openslide")
    except SlideOpenError:
        return False
    with reference, open_slide(ref, reader="tiff") as slide:
        assert slide.info.levels == reference.info.levels
        ours, theirs = (s.info.properties.get("openslide.mpp-x") for s in (slide, reference))
        assert ours == theirs or number(ours) == pytest.approx(number(theirs))
        ours, theirs = (tiffs.read(s.reader, 200, 200, 60, 50) for s in (slide, reference))
        assert np.array_equal(ours, theirs[..., :3])
    return True


def test_a_repeated_tag_is_refused(tmp_path):
    """libtiff takes the first one, others the last."""
    path = write(tmp_path / "a.tif", PLAIN, software="x")
    data = bytearray(path.read_bytes())
    at = next(at for at in entries(data) if data[at : at + 2] == struct.pack("<H", 305))
    struct.pack_into("<HHIHH", data, at, 262, 3, 1, 2, 0)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="repeated"):
        find_known(path)
