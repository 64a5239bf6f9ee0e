"""Paths as users name them and as the system takes them; nothing here raises for a strange one."""

from __future__ import annotations

import difflib
import glob
import os
import unicodedata
from pathlib import Path

_COMPARED = 20_000
"""Files of a folder that a missing one's name is compared with."""


def absolute(path: Path) -> Path:
    """Make a path absolute without following links: a link's name is what its user chose.

    Only what ``..`` leads up from is followed, as the system does.
    """
    path = Path.cwd() / path
    parts = path.parts
    if ".." not in parts:
        return path
    up = max(index for index, part in enumerate(parts, 1) if part == "..")
    # Not Path.resolve, which raises where links form a loop.
    return Path(os.path.realpath(Path(*parts[:up])), *parts[up:])


def is_file(path: Path) -> bool:
    """Say whether there is a regular file; a name that the system refuses names none."""
    # Not Path.is_file, which raises for those.
    return os.path.isfile(path)  # noqa: PTH113


def as_on_disk(path: Path) -> Path:
    """Give a path as the disk spells it: systems write é as one character, or as two."""
    if str(path).isascii():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in (path, *forms) if os.path.exists(form)), path)  # noqa: PTH110


def same_place(path: Path) -> tuple[int, int] | None:
    """Give what is equal for all names of one file or folder; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def describe_missing(path: Path) -> str:
    """Say that something is no file, and what it is instead."""
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are refused
        return f"{str(path)!r} is a folder, not a file."
    if os.path.exists(path):  # noqa: PTH110
        return f"{str(path)!r} is no regular file."
    if os.path.islink(path):  # noqa: PTH114
        target = os.readlink(path)  # noqa: PTH115 - the text, not a path
        return f"{str(path)!r} is a link to {target!r}, where there is no file."
    return f"there is no file {str(path)!r}."


def explain_missing(word: str) -> str:
    """Say that there is nothing of a name, and which name is near."""
    path = Path(word)
    if path.is_symlink():
        return describe_missing(path)
    try:
        names = [near.name for near in path.parent.iterdir()]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names[:_COMPARED], 1)
    hint = f" Did you mean {str(path.parent / near[0])!r}?" if near else ""
    return f"There is no file or folder {word!r}.{hint}"


def list_matching(pattern: str) -> list[Path]:
    """List what a pattern fits, sorted; nothing hidden, and ``**`` follows no link."""
    parts = Path(pattern).parts
    if "**" not in parts:
        # Path.glob takes no absolute pattern.
        return sorted(map(Path, glob.glob(pattern)))  # noqa: PTH207
    # glob.glob would follow links that form a loop, in every way that there is.
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:first]), parts[first:]
    wanted = "/".join((*rest, "*") if rest[-1] == "**" else rest)
    return sorted(
        path
        for path in base.glob(wanted)
        if not any(part.startswith(".") for part in path.relative_to(base).parts)
    )
