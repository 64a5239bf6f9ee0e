"""Ways to spoil an output, and the slide of it that is spoilt."""

from __future__ import annotations

import json
from pathlib import Path

ID = "case 1/naïve.svs"
"""Of the slide, in a folder of its own."""


def h5(out: Path, tiling: str = "") -> Path:
    """Give the slide's HDF5 file."""
    return out / tiling / f"patches/{ID}.h5"


def flip(path: Path, at: int | None = None) -> None:
    """Flip a bit of a file, in its middle unless told where."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def edit(path: Path, change) -> None:
    """Change the content of a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
