"""Every kind of TIFF, against the pixels that it was made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from readers import tiffs
from readers.jpegslides import picture

from microtome.errors import SlideOpenError, SlideReadError
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome_readers import TiffConfig
from microtome_readers.tiff.reader import TiffReader

RGB = tiffs.colours()
RGBA = tiffs.colours(channels=4)
GREY = RGB[..., 0]


def reader(path, **options):
    return TiffReader(path, TiffConfig(**options))


LAYOUTS = {
    "one strip": {"rowsperstrip": 90},
    "many strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 48)},
    "planes": {"planarconfig": "separate", "tile": (32, 32)},
    "plane strips": {"planarconfig": "separate", "rowsperstrip": 11},
    "lzw": {"compression": "lzw", "rowsperstrip": 8},
    "lzw, predictor": {"compression": "lzw", "predictor": True, "tile": (32, 32)},
    "deflate": {"compression": "zlib", "tile": (32, 32)},
    "zstd": {"compression": "zstd", "tile": (32, 32)},
    "zstd, predictor": {"compression": "zstd", "predictor": True, "rowsperstrip": 8},
    "packbits": {"compression": "packbits", "rowsperstrip": 9},
    "big tiff": {"bigtiff": True, "tile": (32, 32)},
    "big endian": {"byteorder": ">", "rowsperstrip": 4},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}, "tile": (32, 32)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_pixels_back(tmp_path, layout):
    if "planar" in str(LAYOUTS[layout]):
        tiffs.write(tmp_path / "a.tif", np.moveaxis(RGB, 2, 0), **LAYOUTS[layout])
    else:
        tiffs.write(tmp_path / "a.tif", RGB, **LAYOUTS[layout])
    slide = reader(tmp_path / "a.tif")
    assert slide.info.channels == 3
    assert np.array_equal(tiffs.whole(slide), RGB)
    assert np.array_equal(tiffs.read(slide, 41, 23, 60, 50), RGB[23:73, 41:101])
    slide.close()


@pytest.mark.parametrize(
    ("photometric", "expected"), [("minisblack", GREY), ("miniswhite", 255 - GREY)]
)
def test_grey_becomes_rgb(tmp_path, photometric, expected):
    slide = reader(tiffs.write(tmp_path / "a.tif", GREY, photometric=photometric))
    assert np.array_equal(tiffs.whole(slide), np.repeat(expected[..., None], 3, axis=2))


def test_a_palette_is_looked_up(tmp_path):
    palette = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    path = tiffs.write(tmp_path / "a.tif", GREY, photometric="palette", colormap=palette * 257)
    assert np.array_equal(tiffs.whole(reader(path)), palette.T[GREY])


def test_alpha_is_given_as_it_is(tmp_path):
    slide = reader(tiffs.write(tmp_path / "a.tif", RGBA, extrasamples=["unassalpha"]))
    assert slide.info.channels == 4
    assert np.array_equal(tiffs.whole(slide), RGBA)


def test_premultiplied_alpha_is_divided_out(tmp_path):
    alpha = np.full((*GREY.shape, 1), 128, np.uint8)
    alpha[:40] = 0
    stored = np.concatenate([np.round(RGB * (alpha / 255)).astype(np.uint8), alpha], axis=2)
    pixels = tiffs.whole(
        reader(tiffs.write(tmp_path / "a.tif", stored, extrasamples=["assocalpha"]))
    )
    assert np.array_equal(pixels[..., 3:], alpha)
    # Half the levels are lost in storing: two level steps of rounding remain.
    assert np.abs(pixels[40:, :, :3].astype(int) - RGB[40:]).max() <= 1
    assert (pixels[:40, :, :3] == 0).all()


def test_a_fourth_sample_that_is_no_alpha_is_left_out(tmp_path):
    slide = reader(tiffs.write(tmp_path / "a.tif", RGBA, extrasamples=["unspecified"]))
    assert slide.info.channels == 3
    assert np.array_equal(tiffs.whole(slide), RGBA[..., :3])


def test_aperio_ycbcr_jpeg_2000_becomes_rgb(tmp_path):
    y, cb, cr = 120, 90, 180
    pixels = np.full((64, 64, 3), (y, cb, cr), np.uint8)
    path = tmp_path / "a.tif"
    options = {"compression": 34712, "compressionargs": {"level": 0, "reversible": True}}
    tiffs.write(path, pixels, tile=(32, 32), **options)
    tiffs.set_tag(path, "Compression", 33003)
    # JFIF's conversion by hand: R = Y + 1.402 (Cr - 128) and so on.
    red, green, blue = 120 + 1.402 * 52, 120 + 0.344136 * 38 - 0.714136 * 52, 120 - 1.772 * 38
    assert tiffs.whole(reader(path))[5, 5].tolist() == [round(red), round(green), round(blue)]


def test_a_tile_that_is_left_out_is_transparent(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(32, 32))
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    counts[1] = 0
    tiffs.set_tag(path, "TileByteCounts", counts)
    slide = reader(path)
    pixels = tiffs.whole(slide)
    assert slide.info.channels == 4
    assert (pixels[:32, 32:64] == 0).all()
    assert (pixels[32:, :, 3] == 255).all()
    assert np.array_equal(pixels[32:, :, :3], RGB[32:])


def pyramid(path, **options):
    half, quarter = RGB[::2, ::2], RGB[:88:4, :128:4]
    label = tiffs.colours(60, 25)
    with tifffile.TiffWriter(path) as tiff:
        for page in (RGB, quarter, half, label):
            tiff.write(page, photometric="rgb", metadata=None, tile=(32, 32), **options)
            options["subfiletype"] = 1
    return half, quarter


def test_reduced_pages_are_levels_and_labels_are_not(tmp_path):
    half, quarter = pyramid(tmp_path / "a.tif")
    slide = reader(tmp_path / "a.tif")
    sizes = [(level.width, level.height) for level in slide.info.levels]
    assert sizes == [(130, 90), (65, 45), (32, 22)]
    assert slide.info.levels[2].downsample == (130 / 32 + 90 / 22) / 2
    assert np.array_equal(tiffs.whole(slide, 1), half)
    assert np.array_equal(tiffs.whole(slide, 2), quarter)


def test_pages_that_are_no_reduced_versions_are_no_levels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in (RGB, RGB[::2, ::2]):
            tiff.write(page, photometric="rgb", metadata=None, tile=(32, 32))
    assert len(reader(tmp_path / "a.tif").info.levels) == 1


def test_sub_ifds_are_levels_where_there_are_no_others(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        options = {"photometric": "rgb", "metadata": None, "tile": (32, 32)}
        tiff.write(RGB, subifds=1, **options)
        tiff.write(RGB[::2, ::2], subfiletype=1, **options)
    slide = reader(tmp_path / "a.tif")
    assert [level.width for level in slide.info.levels] == [130, 65]
    assert np.array_equal(tiffs.whole(slide, 1), RGB[::2, ::2])


PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>
<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>
</DataObject></Array></Attribute></DataObject>"""

PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation">
<Attribute Name="DICOM_PIXEL_SPACING">&quot;{mm}&quot; &quot;{mm}&quot;</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">{index}</Attribute></DataObject>"""


def philips(path):
    """Write a slide whose levels are padded to whole tiles, as its scanners do."""
    levels = [PHILIPS_LEVEL.format(mm=0.00025 * 2**index, index=index) for index in range(3)]
    descriptions = [PHILIPS.format(levels="".join(levels)), "level=1", "level=2"]
    pixels = picture(1024, 768)
    with tifffile.TiffWriter(path) as tiff:
        for index, description in enumerate(descriptions):
            level = pixels[:: 2**index, :: 2**index]
            high, wide = level.shape[:2]
            tiff.write(
                np.pad(level, ((0, -high % 256), (0, -wide % 256), (0, 0)), constant_values=255),
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                metadata=None,
                description=description,
                software="Philips DP v1.0",
                subfiletype=min(index, 1),
            )
    return path


def test_a_philips_slide_is_left_to_openslide_and_read_where_asked(tmp_path):
    """Padded to 512 × 512 and 256 × 256, its levels have lost the proportions of the first."""
    ref = SlideRef(path=philips(tmp_path / "a.tiff"), slide_id="a")
    with open_slide(ref) as theirs, open_slide(ref, reader="tiff") as ours:
        assert theirs.info.reader == "openslide"
        assert theirs.info.vendor == "philips"
        assert [(level.width, level.height) for level in theirs.info.levels] == [
            *((1024, 768), (512, 384), (256, 192))
        ]
        assert ours.info.levels == (theirs.info.levels[0],)
        assert np.array_equal(tiffs.whole(ours.reader), tiffs.whole(theirs.reader)[..., :3])


def test_levels_name_their_tiles(tmp_path):
    slide = reader(tiffs.write(tmp_path / "a.tif", RGB, tile=(32, 48)))
    assert slide.info.levels[0].tile == (48, 32)
    slide = reader(tiffs.write(tmp_path / "b.tif", RGB, rowsperstrip=11))
    assert slide.info.levels[0].tile == (130, 11)


def test_metadata_has_openslides_names(tmp_path):
    description = "Aperio Image Library v1\r\n130x90 (32x32) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    path = tiffs.write(
        tmp_path / "a.svs",
        RGB,
        tile=(32, 32),
        description=description,
        resolution=(20000.0, 20000.0),
        resolutionunit="CENTIMETER",
    )
    info = reader(path).info
    assert info.vendor == "aperio"
    expected = {
        "aperio.AppMag": "20",
        "aperio.MPP": "0.4990",
        "openslide.mpp-x": "0.4990",
        "openslide.mpp-y": "0.4990",
        "openslide.objective-power": "20",
        "openslide.comment": description,
        "tiff.ImageDescription": description,
        "tiff.XResolution": "20000",
        "tiff.ResolutionUnit": "centimeter",
    }
    assert {name: info.properties.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (RGB.astype(np.uint16), {}, "uint16"),
        (GREY.astype(np.float32), {"photometric": "minisblack"}, "float32"),
        (GREY > 80, {"photometric": "minisblack"}, "1 bits"),
        (RGBA, {"photometric": "separated"}, "SEPARATED"),
        (RGB, {"photometric": "cielab"}, "CIELAB"),
    ],
)
def test_pixels_without_one_meaning_are_refused_with_the_way_out(tmp_path, pixels, options, reason):
    path = tiffs.write(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(SlideOpenError, match=f"{reason}.*convert it to 8-bit RGB first"):
        reader(path)


def test_a_cut_file_is_refused_when_opened(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(32, 32))
    # tifffile writes tags first: what is cut off is the last tile.
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SlideOpenError, match="truncated: tile or strip 14 ends"):
        reader(path)


def test_a_page_without_size_is_refused(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, rowsperstrip=90)
    tiffs.set_tag(path, "ImageLength", 0)
    with pytest.raises(SlideOpenError, match="130 × 0 pixels"):
        reader(path)


def test_a_page_with_too_few_tiles_is_refused(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(32, 32))
    tiffs.set_tag(path, "ImageLength", 900)
    with pytest.raises(SlideOpenError, match="list 15 tiles"):
        reader(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "webp"])
def test_a_damaged_tile_raises_each_time_and_the_others_read(tmp_path, compression):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(32, 32), compression=compression)
    tiffs.damage_segment(path, 1, b"\x55" * len(tiffs.segment(path, 1)))
    slide = reader(path)
    before = tiffs.read(slide, 0, 0, 32, 32)
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"a\.tif: tile or strip \(1, 0\) of level 0"):
            tiffs.read(slide, 20, 0, 32, 32)
    assert np.array_equal(tiffs.read(slide, 0, 0, 32, 32), before)


def test_a_jpeg_tile_without_its_end_raises(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, tile=(64, 64), compression="jpeg")
    size = len(tiffs.segment(path, 0))
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    tiffs.set_tag(path, "TileByteCounts", [size // 2, *counts[1:]])
    with pytest.raises(SlideReadError, match="truncated"):
        tiffs.read(reader(path), 0, 0, 10, 10)


def test_a_strip_that_is_short_raises(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", RGB, rowsperstrip=90)
    tiffs.set_tag(path, "StripByteCounts", 130 * 3 * 50)
    slide = reader(path)
    with pytest.raises(SlideReadError, match="bytes short"):
        tiffs.whole(slide)


def test_a_large_strip_is_read_in_bands(tmp_path):
    pixels = tiffs.colours(1201, 1500)  # 5.4 MB in one strip of a prime number of rows
    slide = reader(tiffs.write(tmp_path / "a.tif", pixels, rowsperstrip=1201), cache_mb=2)
    assert np.array_equal(tiffs.read(slide, 100, 1000, 300, 201), pixels[1000:, 100:400])
    assert slide._cache._size <= 2 << 20
    assert np.array_equal(tiffs.whole(slide), pixels)
    assert slide._cache._size <= 2 << 20


def test_bands_never_lie_in_two_strips(tmp_path):
    pixels = tiffs.colours(1000, 1500)
    slide = reader(tiffs.write(tmp_path / "a.tif", pixels, rowsperstrip=391))
    assert np.array_equal(tiffs.whole(slide), pixels)


def test_threads_share_a_reader(tmp_path):
    slide = reader(tiffs.write(tmp_path / "a.tif", RGB, tile=(16, 16), compression="zlib"))
    places = [(x, y) for x in range(0, 90, 7) for y in range(0, 50, 7)]
    with ThreadPoolExecutor(8) as threads:
        tiles = list(threads.map(lambda at: tiffs.read(slide, *at, 40, 40), places))
    for (x, y), tile in zip(places, tiles, strict=True):
        assert np.array_equal(tile, RGB[y : y + 40, x : x + 40])
