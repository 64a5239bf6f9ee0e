"""Files that claim what they do not hold: sizes, counts, loops, streams that expand without end."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.hostile import rawtiff as raw
from bench.hostile.rawtiff import RawTiff, Tag, longs, opaque, shorts, signed, striped, text, tiled
from bench.hostile.sample import Sample

Writer = Callable[[Path], object]

_MEBI = 1 << 20


def claims(folder: Path, *, without: re.Pattern[str] | None = None) -> Iterator[Sample]:
    """Write each kind of file.

    Args:
        folder: Where to.
        without: Names that are left out.
    """
    for group, makers in (("sizes", _SIZES), ("tags", _TAGS), ("streams", _STREAMS)):
        for name, make in makers.items():
            if without and without.search(name):
                continue
            make(folder / name)
            yield Sample(group=f"claims: {group}", path=folder / name, mpp=0.5)


def zeros(length: int, head: bytes = b"") -> bytes:
    """Compress zeros without making them: a whole number of MiB after a head.

    Args:
        length: Zeros in MiB.
        head: What comes before them.
    """
    packer = zlib.compressobj(9)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(_MEBI)) + packer.flush(zlib.Z_FULL_FLUSH)
    low = sum(head) + 1
    # Adler-32 of zeros: the first sum stays, the second adds it once a byte.
    high = zlib.adler32(head) >> 16
    total = length * _MEBI
    check = ((high + total * (low % 65521)) % 65521) << 16 | low % 65521
    return start + block * length + b"\x03\0" + struct.pack(">I", check)


def _tile(side: int = 256) -> bytes:
    rng = np.random.default_rng(5)
    return zlib.compress(rng.integers(150, 250, (side, side, 3), np.uint8).tobytes(), 1)


def _jpeg(side: int = 256) -> bytes:
    import cv2

    rng = np.random.default_rng(5)
    image = rng.integers(150, 250, (side, side, 3)).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1].tobytes())


def _jpeg_frame(stream: bytes, width: int, height: int) -> bytes:
    """Rewrite the size in a JPEG's frame."""
    at = stream.index(b"\xff\xc0") + 5
    return stream[:at] + struct.pack(">HH", height, width) + stream[at + 4 :]


def _claim(size: tuple[int, int], tile: tuple[int, int], compression: int = raw.DEFLATE) -> Writer:
    """Claim a size, list one tile."""

    def make(path: Path) -> Path:
        tiff = RawTiff()
        data = _jpeg() if compression == raw.JPEG else _tile()
        offset = tiff.put(data)
        tags = tiled(size, tile, longs(offset), longs(len(data)), compression=compression)
        return tiff.save(path, tiff.directory(tags))

    return make


def _all_tiles(size: int, *, levels: int = 1, missing: bool = False) -> Writer:
    """List every tile that a size needs: the same one over and over, or none."""

    def make(path: Path) -> Path:
        tiff = RawTiff()
        data = _tile()
        offset, first = tiff.put(data), 0
        for number in reversed(range(levels)):
            side = size >> 5 * number
            count = (-(-side // 256)) ** 2
            places = longs(*[0 if missing else offset] * count)
            lengths = longs(*[0 if missing else len(data)] * count)
            tags = tiled((side, side), (256, 256), places, lengths)
            tags[raw.SUBFILE] = longs(int(number > 0))
            first = tiff.directory(tags, following=first)
        return tiff.save(path, first)

    return make


def _strips(size: tuple[int, int], rows: int, data: bytes, compression: int = 1) -> Writer:
    def make(path: Path) -> Path:
        tiff = RawTiff()
        offset, count = tiff.put(data), -(-size[1] // rows)
        tags = striped(
            size,
            rows,
            longs(*[offset] * count),
            longs(*[len(data)] * count),
            compression=compression,
        )
        return tiff.save(path, tiff.directory(tags))

    return make


def _one_tile(
    size: tuple[int, int], tile: tuple[int, int], data: Callable[[], bytes], compression: int
) -> Writer:
    def make(path: Path) -> Path:
        tiff, stream = RawTiff(), data()
        offset = tiff.put(stream)
        tags = tiled(size, tile, longs(offset), longs(len(stream)), compression=compression)
        return tiff.save(path, tiff.directory(tags))

    return make


_SIZES: dict[str, Writer] = {
    "million-squared.tif": _claim((10**6, 10**6), (256, 256)),
    "million-squared-jpeg.svs": _claim((10**6, 10**6), (256, 256), raw.JPEG),
    "tile-100000.tif": _claim((10**5, 10**5), (10**5, 10**5)),
    "tile-100000-plain.tif": _claim((10**5, 10**5), (10**5, 10**5), raw.NONE),
    "tile-60000-jpeg.tif": _claim((60000, 60000), (60000, 60000), raw.JPEG),
    "tile-20000-of-small.tif": _claim((256, 256), (20000, 20000)),
    "tile-2-to-31.tif": _claim((300, 300), (2**31, 2**31)),
    "side-2-to-32.tif": _claim((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1)),
    "width-2-to-32.tif": _claim((2**32 - 1, 1), (256, 256)),
    "size-0.tif": _claim((0, 0), (256, 256)),
    "height-0.svs": _claim((256, 0), (256, 256)),
    "tile-0.tif": _claim((256, 256), (0, 0)),
    "one-tile-everywhere.tif": _all_tiles(2**17),
    "one-tile-everywhere-levels.tif": _all_tiles(2**17, levels=3),
    "no-tile-anywhere.tif": _all_tiles(2**18, missing=True),
    "no-tile-anywhere-levels.tif": _all_tiles(2**18, levels=3, missing=True),
    "row-of-a-billion.tif": _strips((10**9, 1), 1, bytes(3000)),
    "row-of-a-billion-deflate.tif": _strips((10**9, 1), 1, zlib.compress(bytes(3000)), 8),
    "strip-of-100000.tif": _strips((10**5, 10**5), 10**5, zlib.compress(bytes(3000)), 8),
    "strip-rows-2-to-32.tif": _strips((300, 300), 2**32 - 1, zlib.compress(bytes(270000)), 8),
    "million-strips.tif": _strips((10, 10**6), 1, bytes(30)),
}


def _good_tags(tiff: RawTiff) -> dict[int, Tag]:
    data = _tile()
    return tiled((256, 256), (256, 256), longs(tiff.put(data)), longs(len(data)))


def _with(**changes: Tag) -> Writer:
    """Change tags, by their names in `rawtiff`."""

    def make(path: Path) -> Path:
        tiff = RawTiff()
        tags = _good_tags(tiff) | {getattr(raw, name): tag for name, tag in changes.items()}
        return tiff.save(path, tiff.directory(tags))

    return make


def _lone_directories(count: int) -> Writer:
    """Chain directories of one tag."""

    def make(path: Path) -> None:
        tiff = RawTiff()
        first = tiff.directory(_good_tags(tiff))
        start = tiff.end
        # A directory of one tag has 18 bytes, and begins at an even offset.
        tags = struct.pack("<HHHII", 1, raw.WIDTH, 4, 1, 10)
        chain = b"".join(
            tags + struct.pack("<I", start + 18 * (n + 1) if n + 1 < count else 0)
            for n in range(count)
        )
        tiff.put(chain)
        tiff.save(path, first)
        data = bytearray(path.read_bytes())
        (entries,) = struct.unpack_from("<H", data, first)
        struct.pack_into("<I", data, first + 2 + 12 * entries, start)
        path.write_bytes(data)

    return make


def _levels(count: int, step: int = 1) -> Writer:
    """Chain levels, each a little smaller, of one tile that all share."""

    def make(path: Path) -> None:
        tiff = RawTiff()
        data = _tile()
        offset, first = tiff.put(data), 0
        for number in reversed(range(count)):
            side = max(1, 256 - number // step)
            tags = tiled((side, side), (256, 256), longs(offset), longs(len(data)))
            tags[raw.SUBFILE] = longs(int(number > 0))
            first = tiff.directory(tags, following=first)
        tiff.save(path, first)

    return make


def _loop(length: int) -> Writer:
    """Let the last directory point back to the first."""

    def make(path: Path) -> None:
        tiff = RawTiff()
        tags = _good_tags(tiff)
        last = tiff.directory(tags)
        first = last
        for _ in range(length - 1):
            first = tiff.directory(tags, following=first)
        tiff.save(path, first)
        raw_bytes = bytearray(path.read_bytes())
        struct.pack_into("<I", raw_bytes, last + 2 + 12 * len(tags), first)
        path.write_bytes(raw_bytes)

    return make


def _sub_loop(count: int) -> Writer:
    """Let SubIFDs point at the directory that has them."""

    def make(path: Path) -> None:
        tiff = RawTiff()
        tags = _good_tags(tiff)
        places = tiff.end + 4 * count if count > 1 else tiff.end
        places += sum(
            len(tag.data) + len(tag.data) % 2 for tag in tags.values() if len(tag.data) > 4
        )
        tags[raw.SUB_IFDS] = longs(*[places] * count)
        tiff.save(path, tiff.directory(tags))

    return make


def _shared_text(path: Path) -> None:
    """Have a thousand directories share a description of 20 MB."""
    tiff = RawTiff()
    offset = tiff.put(b"x" * 20_000_000)
    tags = _good_tags(tiff) | {raw.DESCRIPTION: Tag(2, 20_000_000, struct.pack("<I", offset))}
    first = 0
    for _ in range(1000):
        first = tiff.directory(tags, following=first)
    tiff.save(path, first)


def _endless(code: int, kind: int = 4, count: int = 2**32 - 1) -> Writer:
    """Claim 2³² values for one tag."""

    def make(path: Path) -> None:
        tiff = RawTiff()
        tags = _good_tags(tiff) | {code: Tag(kind, count, struct.pack("<I", 8))}
        tiff.save(path, tiff.directory(tags))

    return make


_TAGS: dict[str, Writer] = {
    "million-directories.tif": _lone_directories(10**6),
    "million-directories.svs": _lone_directories(10**6),
    "levels-20000.tif": _levels(20000),
    "levels-20000-shrinking.tif": _levels(20000, 100),
    "loop-1.tif": _loop(1),
    "loop-1.svs": _loop(1),
    "loop-500.tif": _loop(500),
    "loop-5000.tif": _loop(5000),
    "sub-loop-1.tif": _sub_loop(1),
    "sub-loop-100000.ome.tif": _sub_loop(100000),
    "shared-text.tif": _shared_text,
    "count-offsets.tif": _endless(raw.TILE_OFFSETS),
    "count-counts.tif": _endless(raw.TILE_COUNTS),
    "count-offsets-bytes.tif": _endless(raw.TILE_OFFSETS, 3, 2**31),
    "count-text.tif": _endless(raw.DESCRIPTION, 2),
    "count-tables.tif": _endless(raw.JPEG_TABLES, 7),
    "count-sub.tif": _endless(raw.SUB_IFDS),
    "count-bits.tif": _endless(raw.BITS, 3),
    "count-resolution.tif": _endless(raw.X_RESOLUTION, 5),
    "kind-0.tif": _endless(raw.WIDTH, 0, 1),
    "kind-99.tif": _endless(raw.WIDTH, 99, 1),
    "width-as-text.tif": _with(WIDTH=text(b"abc")),
    "width-negative.tif": _with(WIDTH=signed(-256)),
    "height-negative.tif": _with(HEIGHT=signed(-1)),
    "tile-negative.tif": _with(TILE_WIDTH=signed(-256)),
    "two-widths.tif": _with(WIDTH=longs(256, 300)),
    "offsets-negative.tif": _with(TILE_OFFSETS=signed(-8)),
    "offset-beyond.tif": _with(TILE_OFFSETS=longs(2**32 - 8)),
    "count-beyond.tif": _with(TILE_COUNTS=longs(2**32 - 8)),
    "offset-0.tif": _with(TILE_OFFSETS=longs(0)),
    "bits-0.tif": _with(BITS=shorts(0, 0, 0)),
    "bits-65535.tif": _with(BITS=shorts(65535, 65535, 65535)),
    "bits-mixed.tif": _with(BITS=shorts(8, 1, 64)),
    "samples-0.tif": _with(SAMPLES=shorts(0)),
    "samples-65535.tif": _with(SAMPLES=shorts(65535)),
    "compression-99.tif": _with(COMPRESSION=shorts(99)),
    "compression-jpeg.tif": _with(COMPRESSION=shorts(7)),
    "compression-jpeg2000.svs": _with(COMPRESSION=shorts(33003)),
    "compression-webp.tif": _with(COMPRESSION=shorts(50001)),
    "compression-ccitt.tif": _with(COMPRESSION=shorts(4)),
    "compression-lerc.tif": _with(COMPRESSION=shorts(34887)),
    "compression-jxl.tif": _with(COMPRESSION=shorts(50002)),
    "photometric-99.tif": _with(PHOTOMETRIC=shorts(99)),
    "planar-9.tif": _with(PLANAR=shorts(9)),
    "palette-without.tif": _with(PHOTOMETRIC=shorts(3), SAMPLES=shorts(1), BITS=shorts(8)),
    "tables-nonsense.svs": _with(COMPRESSION=shorts(7), JPEG_TABLES=opaque(b"\xff" * 1000)),
}


def _png(width: int, height: int, body: bytes) -> Writer:
    """Write an RGB PNG around a zlib stream."""

    def make(path: Path) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            check = struct.pack(">I", zlib.crc32(kind + data))
            return struct.pack(">I", len(data)) + kind + data + check

        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        )

    return make


def _plain_jpeg(width: int, height: int) -> Writer:
    return lambda path: path.write_bytes(_jpeg_frame(_jpeg(), width, height))


def _bmp(width: int, height: int) -> Writer:
    head = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return lambda path: path.write_bytes(head + info + bytes(1000))


def _gif(width: int, height: int) -> Writer:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x02\x4c\x01\0;"
    return lambda path: path.write_bytes(head + image)


def _jpeg2000(width: int, height: int) -> bytes:
    """Encode a small image and claim another size."""
    import imagecodecs

    image = np.zeros((64, 64, 3), np.uint8)
    stream = bytearray(imagecodecs.jpeg2k_encode(image, codecformat="j2k"))
    struct.pack_into(">II", stream, 8, width, height)
    struct.pack_into(">II", stream, 24, width, height)  # its own tiles as well
    return bytes(stream)


_STREAMS: dict[str, Writer] = {
    "deflate-to-4-gib.tif": _one_tile((256, 256), (256, 256), lambda: zeros(4096), raw.DEFLATE),
    "deflate-1-gib-tile.tif": _one_tile((18900, 18900), (18912, 18912), lambda: zeros(1024), 8),
    "deflate-1-gib-strip.tif": _strips((18900, 18900), 18900, zeros(1023), 8),
    "jpeg-frame-60000.tif": _one_tile(
        (256, 256), (256, 256), lambda: _jpeg_frame(_jpeg(), 60000, 60000), raw.JPEG
    ),
    "jpeg-frame-60000-strip.tif": _strips(
        (256, 256), 256, _jpeg_frame(_jpeg(), 60000, 60000), raw.JPEG
    ),
    "jpeg-tile-16000.svs": _one_tile(
        (16000, 16000), (16000, 16000), lambda: _jpeg_frame(_jpeg(), 16000, 16000), raw.JPEG
    ),
    "jpeg2000-60000.tif": _one_tile(
        (256, 256), (256, 256), lambda: _jpeg2000(60000, 60000), raw.JPEG2000
    ),
    "jpeg-run-of-ff.tif": _one_tile(
        (256, 256),
        (256, 256),
        lambda: _jpeg()[:-2] + b"\xff" * 2_000_000 + b"\0",
        raw.JPEG,
    ),
    "png-60000.png": _png(60000, 60000, zlib.compress(bytes(1000))),
    "png-60000.bin": _png(60000, 60000, zlib.compress(bytes(1000))),
    "png-20000-empty.png": _png(20000, 20000, zlib.compress(bytes(1000))),
    "png-20000-blank.png": _png(20000, 20000, zeros(1145)),
    "jpeg-60000.jpg": _plain_jpeg(60000, 60000),
    "jpeg-20000.jpg": _plain_jpeg(20000, 20000),
    "bmp-30000.bmp": _bmp(30000, 30000),
    "bmp-20000.bmp": _bmp(20000, 20000),
    "bmp-negative.bmp": _bmp(-300, 300),
    "gif-60000.gif": _gif(60000, 60000),
    "gif-20000.gif": _gif(20000, 20000),
}
