"""A file to be tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A hostile file.

    Attributes:
        group: The row of the table that it counts in.
        path: The file.
        mpp: Given to the reader, so that a file without one is read too; None lets the file's
            own count.
    """

    group: str
    path: Path
    mpp: float | None = None
