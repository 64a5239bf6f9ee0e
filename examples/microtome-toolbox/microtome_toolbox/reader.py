"""Read Netpbm colour images: a text header, then plain RGB bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideOpenError, SlideReadError
from microtome.plugin import NoConfig
from microtome.slide.types import Level, SlideInfo

HEAD_BYTES = 4096
HEADER = re.compile(rb"P6\s(?:\s*#[^\n]*\n)*\s*(\d+)\s+(\d+)\s+255\s")
MPP = re.compile(rb"#\s*mpp\s*=\s*([0-9.]+)")


class PpmReader:
    """A slide of one level. A comment ``# mpp = 0.5`` in the header gives its resolution."""

    def __init__(self, path: Path, config: NoConfig) -> None:
        self._path, self._config = path, config
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            raise SlideOpenError(f"{path} cannot be read: {error.strerror}") from error
        header = HEADER.match(head)
        if header is None:
            raise SlideOpenError(f"{path} is no Netpbm image of type P6 with 8 bits a channel.")
        width, height = int(header[1]), int(header[2])
        if not width or not height or path.stat().st_size < header.end() + width * height * 3:
            raise SlideOpenError(f"{path} is cut off: {width} x {height} pixels are not in it.")
        self._pixels: NDArray[np.uint8] | None = np.memmap(
            path, np.uint8, "r", header.end(), (height, width, 3)
        )
        mpp = MPP.search(header[0])
        self.info = SlideInfo(
            path=path,
            reader="ppm",
            levels=(Level(width=width, height=height, downsample=1.0),),
            mpp=(float(mpp[1]), float(mpp[1])) if mpp else None,
        )

    def read_tiles(
        self,
        level: int,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> None:
        """Copy regions out of the mapped file, which any number of threads may do at once."""
        if self._pixels is None:
            raise SlideReadError(f"{self._path} is closed.")
        for (x, y, width, height), row in zip(boxes, rows, strict=True):
            out[row] = self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Let go of the file."""
        self._pixels = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PpmReader, (self._path, self._config)
