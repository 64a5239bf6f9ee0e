"""What each slide was to a training, in its ``split.csv``: written, and read with its model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.store.atomic import write_bytes
from microtome_training.reading import rows_by_slide
from microtome_training.tiles import TiledSlide, Tiles

SPLIT = "split.csv"

_NAME, _SPLIT, _CONTENT = "slide_id", "split", "fingerprint"
_ENCODING, _ERRORS = "utf-8", "surrogateescape"


def write_split(
    path: Path, tiles: Tiles, labels: NDArray[np.int64], splits: Mapping[str, str]
) -> None:
    """Write a row for each slide: whose it is, its split, its tiles by class, its content.

    Args:
        path: The final name.
        tiles: n tiles.
        labels: (n,), those that are learned.
        splits: By slide id; other slides are left out.

    Raises:
        StoreError: If it cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_NAME, "patient_id", _SPLIT, *tiles.classes, _CONTENT])
    for slide, mine in zip(tiles.slides, rows_by_slide(tiles), strict=True):
        if slide.slide_id in splits:
            counts = np.bincount(labels[mine], minlength=len(tiles.classes)).tolist()
            row = [slide.slide_id, slide.patient_id, splits[slide.slide_id], *counts]
            writer.writerow([*row, slide.fingerprint])
    write_bytes(path, out.getvalue().encode(_ENCODING, _ERRORS))


@dataclass(frozen=True, kw_only=True)
class SlideSplits:
    """What slides were to a training.

    Attributes:
        of_content: The split of each fingerprint.
        of_name: The fingerprint and the split of each slide id; a fingerprint may be empty.
    """

    of_content: Mapping[str, str] = field(default_factory=dict)
    of_name: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def find(self, slide: TiledSlide) -> str:
        """Say what a slide was to the training; empty if it was nothing.

        Slides are known by their content: a renamed one keeps its split, and another one of the
        same name has none. Where the content of either is not known, as of slides that were
        imported without their files or in a table without fingerprints, the name decides.
        """
        if slide.fingerprint in self.of_content:
            return self.of_content[slide.fingerprint]
        content, split = self.of_name.get(slide.slide_id, ("", ""))
        return "" if content and slide.fingerprint else split


def read_split(path: Path) -> SlideSplits:
    """Read what `write_split` wrote; nothing is known where there is no such file."""
    if not path.is_file():
        return SlideSplits()
    with path.open(newline="", encoding=_ENCODING, errors=_ERRORS) as file:
        rows = [row for row in csv.DictReader(file) if {_NAME, _SPLIT} <= row.keys()]
    named = {row[_NAME]: (row.get(_CONTENT) or "", row[_SPLIT]) for row in rows}
    return SlideSplits(
        of_name=named, of_content={content: split for content, split in named.values() if content}
    )
