"""TIFFs of every kind, made of known pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile


def colours(height: int = 90, width: int = 130, channels: int = 3) -> np.ndarray:
    """Make noise over a gradient: no two regions are alike."""
    rng = np.random.default_rng(7)
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return (ramp + rng.integers(0, 35, (height, width, channels))).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    options = {"photometric": "rgb", "metadata": None} | options
    tifffile.imwrite(path, pixels, **options)
    return path


def set_tag(path: Path, name: str, value: Any) -> None:
    """Overwrite a tag of the first page in place."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[name].overwrite(value)


def damage_segment(path: Path, index: int, data: bytes, at: int = 0) -> None:
    """Overwrite some bytes of a tile or strip."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[index]
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)


def segment(path: Path, index: int) -> bytes:
    """Read a tile or strip as it is stored."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tiff.filehandle.seek(page.dataoffsets[index])
        return tiff.filehandle.read(page.databytecounts[index])


def read(reader: Any, x: int, y: int, w: int, h: int, level: int = 0) -> np.ndarray:
    """Read one box with a reader."""
    out = np.zeros((1, h, w, reader.info.channels), np.uint8)
    reader.read_tiles(level, np.array([[x, y, w, h]], np.int64), out, np.zeros(1, np.int64))
    return out[0]


def whole(reader: Any, level: int = 0) -> np.ndarray:
    size = reader.info.levels[level]
    return read(reader, 0, 0, size.width, size.height, level)
