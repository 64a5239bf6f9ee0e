"""Split slides into training, validation and test so that nothing leaks between them.

What is shared out are groups, patients or slides, by a hash of the seed and their name: the order
of slides changes nothing, and a group that is added moves few others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, InputError, TaskError
from microtome.run.inputs.tables import read_table
from microtome_training.names import SPLITS, TEST, TRAIN, VAL
from microtome_training.options.split import SplitBy, SplitOptions
from microtome_training.sampling.drawing import ranks
from microtome_training.tiles import TiledSlide, Tiles, tell_some

_NAMES = ("slide_id", "patient_id")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Slides that stay together.

    Attributes:
        name: Of the patient, or the slide.
        slides: Ids.
        stratum: Groups of one number are shared out by themselves.
        is_test: Whether the rule of names says so of one of them.
    """

    name: str
    slides: tuple[str, ...]
    stratum: bool
    is_test: bool


def split_slides(tiles: Tiles, options: SplitOptions) -> dict[str, str]:
    """Split slides.

    Args:
        tiles: Of the slides; their labels say which are positive.
        options: How.

    Returns:
        Of each slide that has labelled tiles, by id in order: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        TaskError: If something would leak, or training or validation lack a class.
        InputError: If the file that says it cannot be read, or does not fit.
        ConfigError: If the options make no sense.
    """
    _check(options)
    slides = _labelled(tiles)
    _refuse_copies_of_one(slides)
    if options.file:
        split = _read_split(Path(options.file), slides)
    else:
        split = _share_out(slides, _positive(tiles), options)
    check_leakage(slides, split)
    _refuse_empty(tiles, split, options)
    return {slide.slide_id: split[slide.slide_id] for slide in slides}


def check_leakage(slides: Iterable[TiledSlide], split: Mapping[str, str]) -> None:
    """See that no patient, and no slide under two names, is in two splits.

    Args:
        slides: The slides.
        split: By slide id.

    Raises:
        TaskError: If one is.
    """
    where: dict[tuple[str, str], TiledSlide] = {}
    for slide in sorted(slides, key=lambda slide: slide.slide_id):
        mine = split[slide.slide_id]
        marks = {"patient": slide.patient_id, "content": slide.fingerprint}
        for mark, value in marks.items():
            other = where.setdefault((mark, value), slide) if value else slide
            if split[other.slide_id] == mine:
                continue
            told = f"{other.slide_id} ({split[other.slide_id]}) and {slide.slide_id} ({mine})"
            if mark == "patient":
                raise TaskError(
                    f"Leakage: {told} are slides of one patient, {value}. Put all slides of a "
                    "patient into one split, as split.by=patient does."
                )
            raise TaskError(
                f"Leakage: {told} are copies of one slide: their content is the same. Leave one "
                "out, or put both into one split."
            )


def _check(options: SplitOptions) -> None:
    for name in ("val_size", "test_size"):
        if not 0 <= (share := getattr(options, name)) < 1:
            raise ConfigError(f"split.{name}={share:g} is a share, from 0 to below 1.")
    if options.val_size + options.test_size >= 1:
        raise ConfigError(
            f"split.val_size={options.val_size:g} and split.test_size={options.test_size:g} leave "
            "nothing to train on."
        )


def _labelled(tiles: Tiles) -> list[TiledSlide]:
    known = np.unique(tiles.slide[tiles.label >= 0])
    slides = [tiles.slides[number] for number in known.tolist()]
    if not slides:
        raise TaskError("There are no labelled tiles to split.")
    return slides


def _positive(tiles: Tiles) -> dict[str, bool]:
    counts = tiles.positives().tolist()
    return {slide.slide_id: n > 0 for slide, n in zip(tiles.slides, counts, strict=True)}


def _refuse_copies_of_one(slides: Sequence[TiledSlide]) -> None:
    """See that there are two slides at least, and no name twice.

    Raises:
        TaskError: If there are not.
    """
    if len(slides) == 1:
        raise TaskError(
            f"There is one slide with labelled tiles, {slides[0].slide_id}: tiles of one slide are "
            "no test of each other. Label a second slide to validate on."
        )
    names = [slide.slide_id for slide in slides]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"The slide {twice[0]} is there twice.")


def _share_out(
    slides: Sequence[TiledSlide], positive: Mapping[str, bool], options: SplitOptions
) -> dict[str, str]:
    groups = _groups(slides, positive, options)
    split = {name: TEST for group in groups if group.is_test for name in group.slides}
    free = [group for group in groups if not group.is_test]
    if len(free) < 2 and options.val_size:
        raise TaskError(
            f"There is {'one group' if free else 'no group'} of slides to train and validate on "
            f"besides those for testing ({tell_some(sorted(split))}): name more slides, switch off "
            "the rule of names with split.test_name=, or say it all in a split.file."
        )
    for stratum in (False, True):
        of_stratum = [group for group in free if group.stratum is stratum]
        ranked = _ranked(of_stratum, options.seed)
        testing = _count(len(ranked), options.test_size)
        validating = _count(len(ranked) - testing, options.val_size)
        for number, group in enumerate(ranked):
            part = TEST if number < testing else VAL if number < testing + validating else TRAIN
            split |= dict.fromkeys(group.slides, part)
    return split


def _groups(
    slides: Sequence[TiledSlide], positive: Mapping[str, bool], options: SplitOptions
) -> list[_Group]:
    by_patient = options.by is not SplitBy.slide
    if options.by is SplitBy.patient and (
        unknown := [slide.slide_id for slide in slides if not slide.patient_id]
    ):
        raise TaskError(
            f"split.by=patient, and of {tell_some(unknown)} it is not known whose they are: name "
            "slides by a CSV manifest with a column patient_id."
        )
    members: dict[tuple[str, ...], list[str]] = {}
    for slide in slides:
        whose = ("patient", slide.patient_id) if by_patient and slide.patient_id else ()
        members.setdefault(whose or ("slide", slide.slide_id), []).append(slide.slide_id)
    return [
        _Group(
            name="\0".join(key),
            slides=tuple(sorted(names)),
            stratum=options.stratify and any(positive[name] for name in names),
            is_test=bool(options.test_name) and any(options.test_name in name for name in names),
        )
        for key, names in sorted(members.items())
    ]


def _ranked(groups: Sequence[_Group], seed: int) -> list[_Group]:
    order: NDArray[np.int64] = np.argsort(ranks(seed, "split", (group.name for group in groups)))
    return [groups[number] for number in order.tolist()]


def _count(groups: int, share: float) -> int:
    """Give the nearest number of groups: one at least of two or more, and never all."""
    return min(max(round(groups * share), 1), groups - 1) if share and groups > 1 else 0


def _read_split(path: Path, slides: Sequence[TiledSlide]) -> dict[str, str]:
    """Read who is where.

    Raises:
        InputError: If it cannot be read, names others, contradicts itself or misses some.
    """
    column, rows = _read_rows(path)
    of_slide = {s.slide_id: s.slide_id if column == "slide_id" else s.patient_id for s in slides}
    unknown = sorted(rows.keys() - set(of_slide.values()))
    if unknown:
        what = "slides with labelled tiles" if column == "slide_id" else "patients of such slides"
        raise InputError(f"{path} names {tell_some(unknown)}, which are no {what}.")
    missing = [name for name, key in of_slide.items() if key not in rows]
    if missing:
        raise InputError(
            f"{path} says nothing of {tell_some(missing)}. Add a row with the split of each, or "
            "leave those slides out of the run."
        )
    return {name: rows[key] for name, key in of_slide.items()}


def _read_rows(path: Path) -> tuple[str, dict[str, str]]:
    """Read which column names, and the split of each name."""
    rows = read_table(path, _NAMES, ("split",))
    column = next(name for name in _NAMES if name in rows[0].values)
    found: dict[str, str] = {}
    for row in rows:
        name, part = row.values[column], row.values["split"]
        if part not in SPLITS:
            raise InputError(f"{row.where}: {part!r} is none of train, val and test.")
        if found.setdefault(name, part) != part:
            raise InputError(
                f"{row.where}: {name!r} is to be in {part}, and is in {found[name]} already."
            )
    return column, found


def _refuse_empty(tiles: Tiles, split: Mapping[str, str], options: SplitOptions) -> None:
    """See that there are slides to train on with every class, and to validate on.

    Raises:
        TaskError: If there are not.
    """
    way_out = (
        f"Try another split.seed than {options.seed} or another split.val_size than "
        f"{options.val_size:g}, say who is where in a split.file, or label more slides."
        if not options.file
        else f"Change {options.file}."
    )
    parts = [TRAIN, *([VAL] if options.val_size or options.file else [])]
    for part in parts:
        names = [name for name, of in split.items() if of == part]
        if not names and part == VAL and options.file:
            continue
        if not names:
            raise TaskError(f"No slide is left for {part}. {way_out}")
        label = tiles.label[tiles.of_slides(names)]
        for number, of_class in enumerate(tiles.classes):
            if not (label == number).any():
                raise TaskError(
                    f"Of the class {of_class} there is no tile in {part}, which has "
                    f"{tell_some(sorted(names))}. {way_out}"
                )
