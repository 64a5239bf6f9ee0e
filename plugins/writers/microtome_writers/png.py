"""A folder of PNGs a slide, each named by where its tile lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microtome.errors import ConfigError
from microtome_writers import PngConfig


class PngWriter:
    """Writes tiles as ``<stem>_x<X>_y<Y>.png``, X and Y at level 0."""

    def __init__(self, config: PngConfig) -> None:
        if not 0 <= config.compression_level <= 9:
            raise ConfigError(
                f"writer.png.compression_level={config.compression_level} is not between 0 and 9."
            )
        self._config = config

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> PngSink:
        """Begin one slide at a path that does not exist yet.

        Args:
            path: The folder to make.
            slide_id: The slide; the last part of it is the stem of every name.
            attributes: Unused: the store keeps them in the folder.
        """
        path.mkdir()
        stem = PurePosixPath(slide_id).name
        return PngSink(path, stem, self._config.compression_level)


class PngSink:
    """Takes the tiles of one slide."""

    def __init__(self, folder: Path, stem: str, level: int) -> None:
        self._folder, self._stem, self._level = folder, stem, level

    def write(self, coords: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Write tiles.

        Args:
            coords: (n, 5) ``x, y, read_w, read_h, level``.
            pixels: (n, h, w, 3).
        """
        for (x, y), tile in zip(coords[:, :2].tolist(), pixels, strict=True):
            path = self._folder / f"{self._stem}_x{x}_y{y}.png"
            Image.fromarray(tile).save(path, "PNG", compress_level=self._level)

    def close(self) -> None:
        """Finish: every image is a file of its own, written already."""
