"""Tries cuCIM on a file, in a process of its own that may die of it.

``python -m microtome_readers.cucim_probe FILE`` prints a reason and exits with 1 if cuCIM's pixels
are not those of the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from microtome.errors import SlideError
from microtome_readers import TiffConfig
from microtome_readers.cucim_reader import CUCIM_ERRORS, CucimFile
from microtome_readers.tiff.reader import TiffReader

_TOLERANCE = 2.0
"""Mean grey levels: other decoders round otherwise, garbage is far beyond."""


def compare(path: Path) -> str:
    """Read the middle tile of each level with cuCIM and with tifffile.

    Returns:
        What is wrong, or an empty text.
    """
    slide = CucimFile(path)
    reference = TiffReader(path, TiffConfig())
    sizes = [(level.width, level.height) for level in reference.info.levels]
    if slide.sizes != sizes:
        return f"it sees levels of {slide.sizes}, where the tags have {sizes}"
    for index, level in enumerate(reference.info.levels):
        tile = level.tile or (256, 256)
        width, height = min(tile[0], level.width), min(tile[1], level.height)
        box = ((level.width - width) // 2, (level.height - height) // 2, width, height)
        expected = reference.read_whole(index, box)
        pixels = slide.read(index, box)
        off = float(np.abs(pixels.astype(np.int16) - expected).mean())
        if off > _TOLERANCE:
            return f"level {index} is {off:.1f} grey levels off"
    return ""


def main() -> int:
    """Compare the file that the command line names."""
    # cuCIM imports CuPy where it is, and does without: a third of this process's time.
    sys.modules.setdefault("cupy", None)  # type: ignore[arg-type]
    try:
        reason = compare(Path(sys.argv[1]))
    except (SlideError, *CUCIM_ERRORS) as error:
        reason = str(error) or type(error).__name__
    if reason:
        print(reason)  # noqa: T201 - this is how the parent is told
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
