"""One pickle of many slides: at which pixels of a level its tiles begin, and which are tumour."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.slide.types import Resolution
from microtome.store.attributes import parse_list
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
    read_note,
)
from microtome_layouts import IndexPickleConfig
from microtome_layouts.common import Frame, known_info, read_frame, square
from microtome_layouts.plain_pickle import load_plain

_NAME = re.compile(r"index_level_\d+(_\w+)?\.pkl")
_LABEL, _FRACTION = "label", "label_fraction"
_CLASSES, _ANNOTATION = "classes", "annotation_path"
_SAME_LEVEL = 1.01
_ON_GRID = 1e-6
"""By how much of a level a size may be off a power of two: rounding, nothing else."""


class IndexPickleLayout:
    """Reads and writes ``index_level_<N>.pkl``.

    Level N is what is 2^N times smaller than level 0, so that its tiles show that many times as
    much: ``(y, x)`` are counted there, and so is the magnification.
    """

    def __init__(self, config: IndexPickleConfig) -> None:
        self._config = config
        self._loaded: tuple[Path, int, Mapping[str, Any]] | None = None

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name the file that slides of one level have in common."""
        level = _level(slide)
        points = _points(slide, level)
        sampled = "_sampled" if self._config.sampled else ""
        yield LayoutFile(
            path=f"index_level_{level}{sampled}.pkl",
            write=_adder(slide.slide_id, lambda: self._record(slide, level, points)),
            columns=(_LABEL,),
            attributes=(_ANNOTATION, "wsi_path"),
            shared=True,
            warnings=(*_left_out(slide), *_taken_together(slide)),
        )

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides of the one index in a folder."""
        found = sorted(p for p in folder.glob("index_level_*.pkl") if _NAME.fullmatch(p.name))
        if self._config.file:
            found = [folder / self._config.file]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise LayoutError(f"{folder} holds several indices: choose one with file=, of {names}.")
        return {
            slide_id: FoundSlide(slide_id=slide_id, coords=(path,))
            for path in found
            for slide_id in self._load(path)
        }

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide; whichever class of tumour it was, 1 is ``tumor``."""
        (path,) = found.coords
        where = f"{path}, slide {found.slide_id}"
        record = self._load(path)[found.slide_id]
        level, patches = _read_record(record, where)
        note = read_note(record.get(NOTE))
        side = float(note.get("patch_size", 0)) * 2**level
        frame = read_frame(record.get(NOTE), side, facts, where)
        frame = frame or self._frame(record, level, facts, where)
        slide = frame.slide(
            found.slide_id,
            patches[:, 1::-1] << level,
            features={},
            columns={
                _LABEL: patches[:, 2].astype(np.int16),
                _FRACTION: np.ones(len(patches), np.float32),  # of which the index says nothing
            },
        )
        attributes = {
            _CLASSES: note.get(_CLASSES) or ["normal", "tumor"],
            _ANNOTATION: str(record.get(_ANNOTATION) or ""),
        }
        return replace(slide, attributes=attributes)

    def _load(self, path: Path) -> Mapping[str, Any]:
        """Read an index, once for all its slides."""
        try:
            changed = path.stat().st_mtime_ns
        except OSError as error:
            raise LayoutError(f"{path} cannot be read: {error.strerror or error}.") from error
        if self._loaded is None or self._loaded[:2] != (path, changed):
            self._loaded = path, changed, _load_index(path)
        return self._loaded[2]

    def _record(self, slide: TiledSlide, level: int, points: NDArray[np.int64]) -> dict[str, Any]:
        labels = np.asarray(slide.columns[_LABEL])
        kept = labels >= 0
        tumor = (labels[kept] > 0).astype(np.int64)
        at_level = points[kept] >> level
        at_work = points[kept] >> self._config.work_level
        return {
            "slide_path": slide.source,
            _LABEL: int(tumor.any()),
            _ANNOTATION: str(slide.attributes.get(_ANNOTATION) or "") or None,
            "level": level,
            "work_level": self._config.work_level,
            "magnification": self._magnification(slide) / 2**level,
            "visualisation_coords": _triples(at_work, tumor),
            "patches": _triples(at_level, tumor),
            NOTE: json.dumps(read_note(slide.note) | {_CLASSES: _two_classes(slide)}),
        }

    def _magnification(self, slide: TiledSlide) -> float:
        known = self._config.base_mag or slide.info.resolution.magnification
        if known is None:
            raise LayoutError(
                f"{slide.slide_id} cannot be exported: the index names a magnification, and that "
                "of the slide is not known. Give it: base_mag=40."
            )
        return known

    def _frame(self, record: Mapping[str, Any], level: int, facts: SlideFacts, where: str) -> Frame:
        size, stated = self._config.patch_size, None
        magnification = record.get("magnification")
        if isinstance(magnification, int | float) and 0 < magnification < math.inf:
            stated = Resolution(
                magnification=magnification * 2.0**level, magnification_source="index"
            )
        info = known_info(facts, (0, 0), stated, where)
        geometry = make_geometry(
            size,
            float(size << level),
            step_level0=float((self._config.step_size or size) << level),
            level=_read_level(level, facts),
            target=(None, None if stated is None else float(magnification or 0)),
            resolution=info.resolution,
        )
        return Frame(geometry=geometry, info=info, source=str(record.get("slide_path") or ""))


def _level(slide: TiledSlide) -> int:
    """Give the level that a slide's tiles are of, as the binary logarithm of its downsample."""
    ratio = square(slide, "the index", at_level=False) / slide.geometry.size
    level = math.log2(ratio)
    if level < -_ON_GRID or abs(level - round(level)) > _ON_GRID:
        raise LayoutError(
            f"{slide.slide_id} cannot be exported: its tiles of {slide.geometry.size} px show "
            f"{ratio:.6g} times as many of level 0, and the index knows levels of 1, 2, 4, 8 … "
            "only. Tile it at a magnification that is such a part of the slide's own."
        )
    return round(level)


def _points(slide: TiledSlide, level: int) -> NDArray[np.int64]:
    """Give (n, 2) ``y, x`` at level 0 of tiles that begin on whole pixels of a level."""
    if _LABEL not in slide.columns or not parse_list(slide.attributes.get(_CLASSES)):
        raise LayoutError(
            f"{slide.slide_id} cannot be exported: its tiles are not labelled, and the index says "
            "which are tumour. Label them with task=index annotations=…"
        )
    points = slide.coords[:, 1::-1].astype(np.int64)
    off = (points % 2**level != 0).any(axis=1)
    if off.any():
        y, x = points[off][0].tolist()
        raise LayoutError(
            f"{slide.slide_id} cannot be exported: its tile at ({x}, {y}), and {int(off.sum()) - 1}"
            f" more, lie between the pixels of level {level}, which are {2**level} px of level 0."
        )
    return points


def _left_out(slide: TiledSlide) -> tuple[str, ...]:
    count = int((np.asarray(slide.columns[_LABEL]) < 0).sum())
    return (f"{slide.slide_id}: {count} tiles without a label are left out",) if count else ()


def _taken_together(slide: TiledSlide) -> tuple[str, ...]:
    _, *others = map(str, parse_list(slide.attributes[_CLASSES]))
    told = f"the index knows two classes: {', '.join(others)} are all is_tumor 1 in it"
    return (told,) if len(others) > 1 else ()


def _triples(points: NDArray[np.int64], tumor: NDArray[np.int64]) -> list[tuple[int, ...]]:
    return list(zip(points[:, 0].tolist(), points[:, 1].tolist(), tumor.tolist(), strict=True))


def _two_classes(slide: TiledSlide) -> list[str]:
    names = [str(name) for name in parse_list(slide.attributes[_CLASSES])]
    return [names[0], names[1] if len(names) == 2 else "tumor"]


def _read_level(level: int, facts: SlideFacts) -> tuple[int, float]:
    """Give the level to read: that of the index, or the next finer one that a slide has."""
    wanted = 2.0**level
    if facts.info is None:
        return level, wanted
    there = [(i, each.downsample) for i, each in enumerate(facts.info.levels)]
    return next(each for each in reversed(there) if each[1] <= wanted * _SAME_LEVEL)


def _adder(slide_id: str, make: Callable[[], dict[str, Any]]) -> Callable[[Path], None]:
    """Give what adds a slide to a pickle of a dictionary, without reading what is in it.

    A pickle is a program: ``}`` makes a dictionary, ``s`` puts in what two programs before it
    have made, ``.`` ends. So no more than one slide is in memory, of however many.
    """

    def write(path: Path) -> None:
        parts = [_program(slide_id), _program(make()), b"s."]
        with path.open("r+b" if path.exists() else "x+b") as file:
            if file.seek(0, 2):
                file.seek(-1, 2)
            else:
                file.write(b"\x80\x03}")
            file.writelines(parts)

    return write


def _program(value: object) -> bytes:
    """Pickle a value without the header and the end; protocol 3 has no frames around them."""
    return pickle.dumps(value, protocol=3)[2:-1]


def _load_index(path: Path) -> Mapping[str, Any]:
    content = load_plain(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise LayoutError(f"{path} holds no dictionary of slides by name.")
    return content


def _read_record(record: object, where: str) -> tuple[int, NDArray[np.int64]]:
    """Give a slide's level and (n, 3) ``y, x, is_tumor``."""
    if not isinstance(record, dict) or not {"level", "patches"} <= {*record}:
        raise LayoutError(f"{where}: it has no 'level' or no 'patches', so it is no such index.")
    level = record["level"]
    if not isinstance(level, int) or not 0 <= level < 16:
        raise LayoutError(f"{where}: its level is {level!r}, not a whole number of 0 or more.")
    try:
        patches = np.asarray(record["patches"])
    except ValueError as error:
        raise LayoutError(f"{where}: its patches are not all (y, x, is_tumor).") from error
    if patches.size == 0:
        return level, np.empty((0, 3), np.int64)
    if patches.ndim != 2 or patches.shape[1] != 3 or patches.dtype.kind not in "biu":
        raise LayoutError(
            f"{where}: its patches are {patches.dtype} of shape {patches.shape}, not whole numbers "
            "(y, x, is_tumor)."
        )
    patches = patches.astype(np.int64)
    if not np.isin(patches[:, 2], (0, 1)).all() or (patches[:, :2] < 0).any():
        raise LayoutError(f"{where}: a patch has a place below 0, or is neither tumour nor not.")
    return level, _each_once(patches, where)


def _each_once(patches: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Leave out patches that are there again, in the order of the first.

    Raises:
        LayoutError: If one is tumour and not, too: which of them holds, nobody can tell.
    """
    first = np.unique(patches, axis=0, return_index=True)[1]
    patches = patches[np.sort(first)]
    places, times = np.unique(patches[:, :2], axis=0, return_counts=True)
    if (times > 1).any():
        y, x = places[times > 1][0].tolist()
        raise LayoutError(
            f"{where}: the patch at (y, x) = ({y}, {x}) is there as tumour and as normal, and "
            f"{int((times > 1).sum()) - 1} more. Save the index anew with one label for each."
        )
    return patches
