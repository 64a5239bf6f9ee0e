"""The check of JPEG streams that decoders do not make."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from readers import tiffs

from microtome_readers.tiff.jpegstream import JpegChecker, parse_jpeg


def stream(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiffs.colours(48, 64)).save(file, "JPEG", **options)
    return file.getvalue()


def without(data: bytes, marker: int) -> bytes:
    """Cut the first segment of a marker out of a stream."""
    at = data.index(bytes([0xFF, marker]))
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"quality": 3}]
)
def test_a_whole_stream_passes_and_tells_its_frame(options):
    assert parse_jpeg(stream(**options)).frame == (64, 48, 3)


@pytest.mark.parametrize("padding", [b"\0" * 3, b"\0" * 40, b"\xff" * 4, b" ", b"\1" * 9000])
@pytest.mark.parametrize("progressive", [False, True])
def test_padding_behind_the_end_is_fine(padding, progressive):
    data = stream(progressive=progressive)
    assert parse_jpeg(data + padding).frame == (64, 48, 3)
    checker = JpegChecker(None)
    checker.check(data)
    assert checker.check(data + padding).frame == (64, 48, 3)
    for cut in (data[:-2], data[: -len(data) // 4]):
        with pytest.raises(ValueError, match="truncated"):
            checker.check(cut + padding)


def test_another_streams_end_is_not_its_own():
    data = stream()
    with pytest.raises(ValueError, match="truncated"):
        parse_jpeg(data[:-2] + data + b" ")


def test_tables_may_be_kept_apart(tmp_path):
    pixels = tiffs.colours(64, 64)
    path = tiffs.write(tmp_path / "a.tif", pixels, tile=(64, 64), compression="jpeg")
    assert parse_jpeg(tiffs.segment(path, 0)).frame == (64, 64, 3)
    data = stream()
    tables = b"\xff\xd8"
    for marker in (0xDB, 0xC4):
        while bytes([0xFF, marker]) in data:
            rest = without(data, marker)
            at = data.index(bytes([0xFF, marker]))
            tables += data[at : at + len(data) - len(rest)]
            data = rest
    assert parse_jpeg(data, tables + b"\xff\xd9").frame == (64, 48, 3)
    with pytest.raises(ValueError, match="Huffman"):
        parse_jpeg(data)


WHOLE = stream()
DAMAGE = {
    "no end": (WHOLE[:-2], "truncated"),
    "half a scan": (WHOLE[: (len(WHOLE) + WHOLE.index(b"\xff\xda")) // 2], "truncated"),
    "half a header": (WHOLE[: WHOLE.index(b"\xff\xc4") + 9], "bogus length"),
    "no beginning": (WHOLE[2:], "does not begin"),
    "empty": (b"", "does not begin"),
    "no frame": (without(WHOLE, 0xC0), "before its frame"),
    "no Huffman table": (without(WHOLE, 0xC4), "Huffman table"),
    "no scan": (WHOLE[: WHOLE.index(b"\xff\xda")] + b"\xff\xd9", "no scan"),
    "a table longer than it is": (
        WHOLE.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x21", 1),
        "bogus length",
    ),
    "a marker that runs out of the file": (
        WHOLE.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\xff\xff", 1),
        "bogus length",
    ),
    "a 12-bit frame": (
        WHOLE.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1),
        "8 bits",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_stream_is_told(name):
    data, reason = DAMAGE[name]
    with pytest.raises(ValueError, match=reason):
        parse_jpeg(data)


def test_any_cut_is_told():
    for end in np.linspace(0, len(WHOLE) - 1, 60).astype(int):
        with pytest.raises(ValueError, match="JPEG"):
            parse_jpeg(WHOLE[:end])


def test_a_header_that_is_known_is_not_parsed_again(monkeypatch):
    checker = JpegChecker(None, (64, 48, 3))
    first = checker.check(WHOLE)
    monkeypatch.setattr("microtome_readers.tiff.jpegstream.parse_jpeg", None)
    assert checker.check(WHOLE + b"\0\0") is first
    with pytest.raises(ValueError, match="truncated"):
        checker.check(WHOLE[:-2])


def test_frames_of_another_size_are_told_each_time():
    checker = JpegChecker(None, (64, 64, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="frame is 64 × 48 with 3 components"):
            checker.check(WHOLE)


def test_headers_that_all_differ_are_checked_all():
    checker = JpegChecker(None)
    for quality in range(5, 95, 5):
        assert checker.check(stream(quality=quality)).frame == (64, 48, 3)
    assert len(checker._known) < 18
    broken, _ = DAMAGE["no Huffman table"]
    with pytest.raises(ValueError, match="Huffman"):
        checker.check(broken)
