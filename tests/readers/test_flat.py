"""Flat TIFFs, however large: read strip by strip, never held as a whole."""

from __future__ import annotations

import subprocess
import sys

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

SIDE, STRIP = 12_000, 16
PICTURE_MB = SIDE * SIDE * 3 >> 20
LIMIT_MB = 300
"""Python, numpy, the codecs, a block of the core's and the reader's cache; not the picture."""

LZW = imagecodecs.lzw_encode
GREYS = np.arange(SIDE // STRIP) % 251

SCRIPT = """
import re, sys
from pathlib import Path
import numpy as np
from microtome.api import open_slide
with open_slide(sys.argv[1], mpp=0.5) as slide:
    np.save(sys.argv[2], np.asarray(slide.thumbnail(1500)))
# Not ru_maxrss, which a child has from its parent.
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
print(slide.info.reader, int(peak) >> 10)
"""


def jpeg(strip: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", strip)[1].tobytes()


def write_strips(path, encode, compression):
    """Write strips of one grey each: tifffile takes them encoded, so the picture is never made."""
    encoded = {
        grey: encode(np.full((STRIP, SIDE, 3), grey, np.uint8)) for grey in set(GREYS.tolist())
    }
    options = {"photometric": "ycbcr" if compression == "jpeg" else "rgb", "metadata": None}
    tifffile.imwrite(
        path,
        (encoded[grey] for grey in GREYS.tolist()),
        shape=(SIDE, SIDE, 3),
        dtype=np.uint8,
        rowsperstrip=STRIP,
        compression=compression,
        **options,
    )


def write_raw(path, _encode, _compression):
    """Write one uncompressed strip as large as the picture."""
    options = {"photometric": "rgb", "metadata": None}
    picture = tifffile.memmap(path, shape=(SIDE, SIDE, 3), dtype=np.uint8, **options)
    for index, grey in enumerate(GREYS.tolist()):
        picture[index * STRIP : (index + 1) * STRIP] = grey
    picture.flush()


@pytest.mark.parametrize(
    ("write", "encode", "compression", "tolerance"),
    [
        (write_raw, None, None, 0),
        (write_strips, LZW, "lzw", 0),
        (write_strips, jpeg, "jpeg", 1),
    ],
)
def test_a_thumbnail_takes_no_more_memory_than_a_block(
    tmp_path, write, encode, compression, tolerance
):
    path, view = tmp_path / "flat.tif", tmp_path / "view.npy"
    write(path, encode, compression)
    command = [sys.executable, "-c", SCRIPT, str(path), str(view)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reader, peak = done.stdout.split()
    assert reader == "tiff"
    assert int(peak) < LIMIT_MB < PICTURE_MB
    # Eight rows of the picture make one of the view, and sixteen have one grey.
    pixels = np.load(view).astype(int)
    assert pixels.shape == (1500, 1500, 3)
    assert np.abs(pixels - np.repeat(GREYS, 2)[:, None, None]).max() <= tolerance
