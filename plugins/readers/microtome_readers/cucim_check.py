"""Decides which files cuCIM may be given.

cuCIM 26 kills the process on some valid TIFFs and gives garbage, without an error, for tiles that
it cannot decode. So it is given only files of the plain shape that it is good at, only after a
child process has opened one and read the right pixels, and only tiles that `TileCheck` has seen.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import tifffile

from microtome.errors import SlideOpenError
from microtome_readers.tiff.tags import JPEG, JPEG2000, TiffTags, read_tags

_lock = threading.Lock()


def check_file(path: Path, timeout: float) -> TiffTags:
    """Make sure that cuCIM reads a file rightly.

    Args:
        path: The file.
        timeout: Of the child process, in seconds.

    Returns:
        What its tags say.

    Raises:
        SlideOpenError: If it is not certain; says why.
    """
    tags = read_tags(path)
    try:
        for page in tags.pages:
            _check_tags(page)
    except ValueError as error:
        raise SlideOpenError(f"cuCIM is not trusted with it: {error}") from error
    status = path.stat()
    with _lock:  # one child a file, however many threads ask
        reason = _probe(path.absolute(), status.st_size, status.st_mtime_ns, timeout)
    if reason:
        raise SlideOpenError(f"cuCIM is not trusted with it: {reason}")
    return tags


def _check_tags(page: Any) -> None:
    colours = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    wanted = {
        "it is not tiled": page.is_tiled,
        f"its compression is {_name(page.compression)}, not JPEG or Aperio's JPEG 2000": (
            page.compression in (JPEG, *JPEG2000)
        ),
        f"it has {page.samplesperpixel} samples of {page.bitspersample} bits a pixel, not 3 of 8": (
            page.samplesperpixel == 3 and page.bitspersample == 8 and not page.extrasamples
        ),
        f"its colours are {_name(page.photometric)}, not RGB": page.photometric in colours,
        "its colours are in separate planes": (
            page.planarconfig == tifffile.PLANARCONFIG.CONTIG and page.predictor == 1
        ),
        "it is three-dimensional": page.imagedepth == 1,
        "some of its tiles are left out": 0 not in page.databytecounts,
    }
    for complaint, fine in wanted.items():
        if not fine:
            raise ValueError(complaint)


@functools.lru_cache(maxsize=4096)
def _probe(path: Path, size: int, modified: int, timeout: float) -> str:
    """Have a child process read a tile of each level. Gives a reason against, or nothing."""
    del size, modified  # parts of the key only
    # -P: nothing that lies in the working directory is imported.
    command = [sys.executable, "-P", "-m", "microtome_readers.cucim_probe", str(path)]
    try:
        child = subprocess.run(
            command, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return f"trying it in a child process took more than {timeout:g} seconds"
    if child.returncode < 0:
        return f"trying it killed a child process (signal {-child.returncode})"
    if child.returncode > 0:
        lines = (child.stdout or child.stderr).decode("utf-8", "replace").strip().splitlines()
        return f"trying it in a child process failed ({lines[-1] if lines else 'silently'})"
    return ""


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))
