"""Metadata that makes no sense, in files whose pixels are good."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from bench.hostile import rawtiff as raw
from bench.hostile.rawtiff import RawTiff, Tag, longs, rational, shorts, text, tiled
from bench.hostile.sample import Sample

_MPPS = ("0", "nan", "inf", "-1", "1e9", "1e-9", "1e400", "abc", "", "0.25.5", "9" * 100_000)
_POWERS = ("0", "-20", "nan", "1e9", "999999999", "0.0001", "20x", "9" * 100_000)
_FRACTIONS = ((0, 0), (1, 0), (0, 1), (2**32 - 1, 1), (1, 2**32 - 1), (72, 1), (40000, 1))
_UNITS = (0, 1, 2, 3, 7, 65535)

_TEXTS = {
    "aperio-spaces": b"Aperio|" + b" " * 60_000 + b"x",
    "aperio-fields": b"Aperio" + b"|MPP = 0.5" * 100_000,
    "aperio-no-fields": b"Aperio " + b"|" * 200_000,
    "ome-digits": b'<OME><Objective NominalMagnification="' + b"1" * 60_000 + b"x",
    "ome-sizes": b"<OME>" + b'<Pixels PhysicalSizeX="' * 20_000,
    "ome-entities": b"<OME>" + b"&amp;" * 200_000,
    "xml-billion-laughs": b'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">'
    b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><OME PhysicalSizeX="&b;"/>',
    "mpp-spaces": b"mpp" * 30_000 + b" " * 60_000,
    "hundred-mb": b"x" * 100_000_000,
    "hundred-mb-aperio": b"Aperio|" + b"x" * 100_000_000,
    "bad-utf8": b"Aperio \xff\xfe\xc3\x28|MPP = 0.5|AppMag = 20",
    "control": b"Aperio \x1b[31mred\x07\r\n\r\n|MPP = \x1b[31m9\n9\n9|AppMag = 2\n0",
    "json-shape": b'{"shape": [1000000, 1000000, 1000000]}',
    "imagej": b"ImageJ=1.53\nimages=1000000000\nframes=1000000\nslices=1000000\n",
    "philips": b'<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><x></DataObject>',
    "leica": b'<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">',
}


def absurd(folder: Path, *, without: re.Pattern[str] | None = None) -> Iterator[Sample]:
    """Write each kind of file.

    Args:
        folder: Where to.
        without: Names of texts that are left out.
    """
    for number, (mpp, power) in enumerate(product(_MPPS, _POWERS)):
        description = f"Aperio x|AppMag = {power}|MPP = {mpp}".encode()
        yield _sample(folder, f"mpp-{number:03d}.svs", {raw.DESCRIPTION: text(description)})
    for power in _POWERS:
        description = f"Aperio x|AppMag = {power}|MPP = 0.5".encode()
        yield _sample(folder, f"power-{power[:8]}.svs", {raw.DESCRIPTION: text(description)})
    for number, (fraction, unit) in enumerate(product(_FRACTIONS, _UNITS)):
        yield _sample(folder, f"resolution-{number:03d}.tif", _resolution(fraction, unit))
    for name, description in _TEXTS.items():
        if without and without.search(name):
            continue
        for suffix in (".svs", ".ome.tif"):
            yield _sample(folder, name + suffix, {raw.DESCRIPTION: text(description)})
    for name, sizes in _PYRAMIDS.items():
        yield Sample(group="absurd: levels", path=_pyramid(folder / name, sizes), mpp=0.5)
    for name, data in _NOTHING.items():
        (folder / name).write_bytes(data)
        yield Sample(group="no slide at all", path=folder / name, mpp=0.5)


def _resolution(fraction: tuple[int, int], unit: int) -> dict[int, Tag]:
    value = rational(*fraction)
    return {raw.X_RESOLUTION: value, raw.Y_RESOLUTION: value, raw.UNIT: shorts(unit)}


def _sample(folder: Path, name: str, tags: dict[int, Tag]) -> Sample:
    tiff = RawTiff()
    data = zlib.compress(bytes(range(256)) * 256 * 3)
    good = tiled((256, 256), (256, 256), longs(tiff.put(data)), longs(len(data)))
    path = tiff.save(folder / name, tiff.directory(good | tags))
    return Sample(group="absurd: metadata", path=path)


def _pyramid(path: Path, sizes: list[tuple[int, int]]) -> Path:
    tiff, following = RawTiff(), 0
    data = zlib.compress(bytes(range(256)) * 256 * 3)
    offset = tiff.put(data)
    for number, (width, height) in reversed(list(enumerate(sizes))):
        count = -(-width // 256) * -(-height // 256)
        tags = tiled(
            (width, height), (256, 256), longs(*[offset] * count), longs(*[len(data)] * count)
        )
        tags[raw.SUBFILE] = longs(int(number > 0))
        if path.suffix == ".svs":
            tags[raw.DESCRIPTION] = text(b"Aperio x|MPP = 0.5|AppMag = 20")
        following = tiff.directory(tags, following=following)
    return tiff.save(path, following)


_SHAPES = {
    "larger": [(256, 256), (512, 512)],
    "equal": [(512, 512), (512, 512), (512, 512)],
    "wide-then-high": [(1024, 1024), (10, 1000)],
    "high-then-wide": [(1024, 1024), (1000, 10)],
    "up-and-down": [(1024, 1024), (128, 128), (512, 512), (64, 64)],
    "to-nothing": [(1024, 1024), (1, 1)],
    "line": [(200_000, 1), (1000, 1)],
    "other-shape": [(1024, 512), (256, 256)],
}
_PYRAMIDS = {f"{name}{end}": sizes for name, sizes in _SHAPES.items() for end in (".tif", ".svs")}

_NOTHING = {
    "empty.svs": b"",
    "empty.png": b"",
    "one-byte.tif": b"I",
    "mark.tif": b"II*\0",
    "mark-big.tif": b"II+\0",
    "mark-and-no-directory.tif": b"II*\0\0\0\0\0",
    "directory-beyond.tif": b"II*\0\xff\xff\xff\xff",
    "big-directory-beyond.tif": b"II+\0\x08\0\0\0" + b"\xff" * 8,
    "zeros.svs": bytes(100_000),
    "zeros.dcm": bytes(100_000),
    "dicom-mark.dcm": bytes(128) + b"DICM" + b"\xff" * 1000,
    "page.svs": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "zip.ndpi": b"PK\x03\x04" + bytes(1000),
    "text.mrxs": b"[GENERAL]\nSLIDE_ID = x\n",
    "index.vms": b"[Virtual Microscope Specimen]\nNoLayers=1000000\nNoJpegColumns=1000000\n"
    b"NoJpegRows=1000000\nImageFile=/etc/hostname\n",
    "index.vmu": b"[Uncompressed Virtual Microscope Specimen]\nNoLayers=1\nImageFile=../../x\n",
    "text.png": b"not an image",
    "half-a-mark.jpg": b"\xff\xd8",
    "no-suffix": b"\x89PNG\r\n\x1a\n",
}
