"""The ids of slides, which name their outputs: no two alike, and each fit for a file's name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from microtome.errors import InputError
from microtome.run.inputs.companions import SlideFiles
from microtome.run.inputs.tables import ManifestEntry
from microtome.slide.types import SlideRef

MAX_NAME_BYTES = 180
"""Of an id: file systems allow 255 for a name, and private names and suffixes are longer."""

MAX_PATH_BYTES = 3_600
"""Of an output without its suffix: systems allow 4,096, private names and suffixes are longer."""

_NAMED = 3
"""Other slides of one id that a message names."""


@dataclass(frozen=True)
class Refused:
    """A slide that a run does not begin, and why."""

    slide: SlideRef
    reason: str


@dataclass(frozen=True)
class Found:
    """A slide that was found, and the folder that its id is relative to."""

    files: SlideFiles
    root: Path
    entry: ManifestEntry | None = None
    url: str = ""

    @property
    def problem(self) -> str:
        """Why its manifest's row cannot be done, or empty."""
        return self.entry.problem if self.entry else ""


def slide_id_of(found: Found, policy: str) -> str:
    """Give a slide's id: its manifest's, else by the policy ``stem`` or ``relpath``.

    Raises:
        InputError: If it cannot name files.
    """
    path, entry = found.files.primary, found.entry
    if entry and entry.slide_id:
        where, slide_id = f"{entry.where}: ", entry.slide_id
    else:
        where, slide_id = "", path.stem if policy == "stem" else _relative_id(path, found.root)
    pure = PurePath(slide_id)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or not is_text(slide_id):
        raise InputError(
            f"{where}{slide_id!r} of {str(path)!r} cannot name files in the output; give the slide "
            "another id in a manifest's slide_id column."
        )
    return pure.as_posix()


def _relative_id(path: Path, root: Path) -> str:
    """Give a slide's path below a folder, or below the file system's root if it is not in it.

    With its suffix: ``x.svs`` and ``x.tif`` of one folder are two slides.
    """
    inside = path.is_relative_to(root)
    return path.relative_to(root if inside else path.anchor).as_posix()


def is_text(name: str) -> bool:
    """Say whether a name can be written in a file: the system's own bytes may not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def tell_apart(
    slides: Sequence[SlideRef], found: Sequence[Found], output: Path
) -> tuple[tuple[SlideRef, ...], tuple[Refused, ...]]:
    """Take out the slides that are not there, whose id another one has, or cannot name files.

    One that is not there has its id all the same: it may be there the next time.
    """
    sharing: dict[str, list[tuple[SlideRef, Found]]] = {}
    for slide, source in zip(slides, found, strict=True):
        sharing.setdefault(slide.slide_id, []).append((slide, source))
    room = MAX_PATH_BYTES - len(os.fsencode(output.absolute()))
    apart, refused = [], []
    for group in sharing.values():
        way_out = _way_out(group) if len(group) > 1 else ""
        for slide, source in group:
            if source.problem:
                refused.append(Refused(slide, source.problem))
            elif way_out:
                refused.append(Refused(slide, _shared(slide, group, way_out)))
            elif _is_too_long(slide.slide_id, room):
                refused.append(Refused(slide, _too_long(slide)))
            else:
                apart.append(slide)
    return tuple(apart), tuple(refused)


def _way_out(group: Sequence[tuple[SlideRef, Found]]) -> str:
    by_hand = any(source.entry and source.entry.slide_id for _, source in group)
    if not by_hand and len({slide_id_of(source, "relpath") for _, source in group}) == len(group):
        return "Use slide_id=relpath, or a manifest with a slide_id column."
    return "Give each its own slide_id in a manifest."


def _shared(slide: SlideRef, group: Sequence[tuple[SlideRef, Found]], way_out: str) -> str:
    # A cohort may keep thousands of slides of one name, each in its folder.
    others = [other.source for other, _ in group[: _NAMED + 1] if other is not slide][:_NAMED]
    more = len(group) - 1 - len(others)
    named = " and ".join([*others, f"{more} more"] if more else others)
    return f"{slide.source} has the id {slide.slide_id!r}, and so has {named}. {way_out}"


def _is_too_long(slide_id: str, room: int) -> bool:
    last = len(os.fsencode(PurePath(slide_id).name))
    return last > MAX_NAME_BYTES or len(os.fsencode(slide_id)) > room


def _too_long(slide: SlideRef) -> str:
    return (
        f"{slide.source}: its id has more than the {MAX_NAME_BYTES} bytes, or with the output's "
        f"path more than the {MAX_PATH_BYTES:,}, that leave room for the suffixes of its outputs. "
        "Give it a shorter one by a manifest's slide_id."
    )
