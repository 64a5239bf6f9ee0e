"""The directories of a TIFF, against what tifffile reads."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from readers import tiffs
from readers.jpegslides import Recipe, write

from microtome_readers.tiff import dirs as tags
from microtome_readers.tiff.dirs import read_directories


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tags_are_what_tifffile_reads(tmp_path, byteorder, bigtiff):
    recipe = Recipe(byteorder=byteorder, bigtiff=bigtiff, tile=64, shared=True)
    path = write(tmp_path / "a.svs", recipe, software="x", resolution=(40000.0, 3.5))
    directories = read_directories(path)
    with tifffile.TiffFile(path) as tiff:
        assert len(directories) == len(tiff.pages)
        for directory, page in zip(directories, tiff.pages, strict=True):
            assert directory.tags == {tag.code for tag in page.tags}
            assert directory.size == (page.imagewidth, page.imagelength)
            assert directory.is_tiled == page.is_tiled
            assert directory.number(tags.COMPRESSION) == page.compression
            assert directory.number(tags.SUBFILE_TYPE) == page.subfiletype
            assert directory.text(tags.DESCRIPTION) == page.description
            if page.is_tiled:
                assert directory.numbers(tags.TILE_OFFSETS).tolist() == list(page.dataoffsets)
                assert directory.numbers(tags.TILE_COUNTS).tolist() == list(page.databytecounts)
                assert directory.values[tags.JPEG_TABLES] == page.jpegtables
                assert directory.rational(tags.X_RESOLUTION) == 40000
                assert directory.rational(tags.Y_RESOLUTION) == 3.5
                assert directory.text(tags.SOFTWARE) == "x"


def test_what_is_not_there_has_its_default(tmp_path):
    path = tiffs.write(tmp_path / "a.tif", np.zeros((40, 40, 3), np.uint8), software=False)
    (directory,) = read_directories(path)
    assert directory.number(tags.TILE_WIDTH, 7) == 7
    assert directory.text(tags.ARTIST) == ""
    assert directory.rational(tags.TILE_WIDTH) == 0
    assert not directory.numbers(tags.TILE_OFFSETS).size


def classic(*entries, following=0):
    """Make a TIFF of one directory at byte 8."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", following)
    )


DAMAGE = {
    "a circle": (classic((256, 3, 1, 5), following=8), "circle"),
    "a directory beyond the file": (classic((256, 3, 1, 5), following=999), "truncated"),
    "a value beyond the file": (classic((270, 2, 99, 5000)), "truncated"),
    "a count beyond reason": (classic((324, 4, 2**32 - 1, 8)), "truncated"),
    "an unknown type": (classic((256, 99, 1, 5)), "unknown type 99"),
    "an unknown type of a tag that is not read": (classic((65000, 14, 1, 5)), "unknown type 14"),
    "a directory for a value": (classic((256, 13, 1, 5)), "points to a directory"),
    "half a directory": (classic((256, 3, 1, 5))[:-5], "truncated"),
    "a repeated tag": (classic((262, 3, 1, 6), (262, 3, 1, 2)), "repeated"),
    "tags out of order": (classic((257, 3, 1, 5), (256, 3, 1, 5)), "out of order"),
    "another version": (b"II\x07\0\x08\0\0\0", "no TIFF"),
    "another file": (b"\x89PNG\r\n\x1a\n", "no TIFF"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told(tmp_path, kind):
    data, reason = DAMAGE[kind]
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_directories(tmp_path / "a.tif")


INF, MINUS = 0x7F800000, 2**32 - 1

ODD = {
    "a rational": (tags.SAMPLES, 5, 1, 8),
    "infinity": (tags.SAMPLES, 11, 1, INF),
    "text": (tags.SAMPLES, 2, 2, ord("3")),
    "signed": (tags.SAMPLES, 9, 1, MINUS),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_unsigned_number_is_not_taken_for_one(tmp_path, kind):
    (tmp_path / "a.tif").write_bytes(classic(ODD[kind]))
    (directory,) = read_directories(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="its tag 277 "):
        directory.number(tags.SAMPLES)


def test_numbers_are_no_text_and_no_rational(tmp_path):
    (tmp_path / "a.tif").write_bytes(classic((tags.ARTIST, 3, 1, 5)))
    (directory,) = read_directories(tmp_path / "a.tif")
    for read in (directory.text, directory.rational):
        with pytest.raises(ValueError, match="its tag 315 "):
            read(tags.ARTIST)
