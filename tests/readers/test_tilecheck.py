"""Tiles that are not whole, found before a decoder fills them in."""

from __future__ import annotations

import pytest
import tifffile
from readers import tiffs

from microtome.errors import SlideReadError
from microtome_readers.tiff.tags import read_tags
from microtome_readers.tiff.tilecheck import TileCheck

WHOLE = (0, 0, 400, 300)


@pytest.fixture
def jpeg(tmp_path):
    options = {"compression": "jpeg", "tile": (64, 64)}
    return tiffs.write(tmp_path / "a.tif", tiffs.colours(300, 400), **options)


def opened(path):
    return TileCheck(path, read_tags(path).pages)


def test_whole_tiles_are_fine(jpeg):
    opened(jpeg).check(0, WHOLE)


@pytest.mark.parametrize(
    ("data", "at", "reason"),
    [
        (b"\0\0\0\0", 0, "does not begin"),
        (b"\xff\xdb\x00\x03", 2, "bogus length"),
    ],
)
def test_a_tile_that_is_no_jpeg_is_told_with_its_place(jpeg, data, at, reason):
    tiffs.damage_segment(jpeg, 9, data, at)
    with pytest.raises(SlideReadError, match=rf"a\.tif: tile 9 of level 0 .*{reason}"):
        opened(jpeg).check(0, WHOLE)


def test_a_tile_without_its_end_is_told_each_time(jpeg):
    tiffs.damage_segment(jpeg, 3, b"\x11\x11", len(tiffs.segment(jpeg, 3)) - 2)
    tiles = opened(jpeg)
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"tile 3 of level 0 .*truncated"):
            tiles.check(0, WHOLE)


def test_only_the_tiles_of_a_box_are_looked_at(jpeg):
    """Seven tiles a row: tile 9 is the third of the second."""
    tiffs.damage_segment(jpeg, 9, b"\0\0\0\0")
    tiles = opened(jpeg)
    tiles.check(0, (0, 0, 400, 64))
    tiles.check(0, (0, 64, 128, 236))
    tiles.check(0, (192, 64, 208, 236))
    with pytest.raises(SlideReadError, match="tile 9"):
        tiles.check(0, (191, 127, 1, 1))


def test_a_frame_of_another_size_is_told(jpeg):
    small = tiffs.write(
        jpeg.with_name("b.tif"), tiffs.colours(32, 32), compression="jpeg", tile=(32, 32)
    )
    data = tiffs.segment(small, 0)
    with jpeg.open("r+b") as file:
        at = file.seek(0, 2)
        file.write(data)
    with tifffile.TiffFile(jpeg) as tiff:
        page = tiff.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
    offsets[5], counts[5] = at, len(data)
    tiffs.set_tag(jpeg, "TileOffsets", offsets)
    tiffs.set_tag(jpeg, "TileByteCounts", counts)
    with pytest.raises(SlideReadError, match=r"tile 5 .*frame is 32 × 32 with 3"):
        opened(jpeg).check(0, WHOLE)


def test_a_jpeg_2000_without_its_end_is_told(tmp_path):
    options = {"compression": 34712, "tile": (64, 64)}
    path = tiffs.write(tmp_path / "a.tif", tiffs.colours(), **options)
    tiffs.set_tag(path, "Compression", 33005)
    opened(path).check(0, (0, 0, 130, 90))
    tiffs.damage_segment(path, 1, b"\x11\x11", len(tiffs.segment(path, 1)) - 2)
    with pytest.raises(SlideReadError, match=r"tile 1 .*JPEG 2000 stream is not whole"):
        opened(path).check(0, (0, 0, 130, 90))


def test_other_compressions_are_left_to_the_decoder(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", tiffs.colours(), compression="lzw", tile=(64, 64))
    tiffs.damage_segment(path, 0, b"\0" * 50)
    opened(path).check(0, (0, 0, 130, 90))
