"""Finds and reads files of annotations, whichever tool wrote them."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import AnnotationError, InputError
from microtome.plugin.registry import Registered, Registry, get_registry

if TYPE_CHECKING:
    from microtome.plugin.protocols import AnnotationReader
    from microtome.plugin.specs import PluginSpec
    from microtome.slide.annotations import Annotation
    from microtome.slide.types import SlideInfo

HEAD = 1 << 16
"""Bytes that a format is recognised by."""

_KEPT_SECONDS = 60
"""After which a folder is listed anew: some file systems tell of no change."""

_TICK_NS = 2 * 10**9
"""Of the clocks of file systems: what changed within it may change again and show no later time."""

_MOST_FOLDERS = 64


def read_annotations(
    path: Path, slide: SlideInfo | None = None, registry: Registry | None = None
) -> tuple[Annotation, ...]:
    """Read what people drew on a slide.

    The formats of the file's extension are asked first whether they recognise it, then all
    others.

    Args:
        path: The file.
        slide: The slide that it is of; some formats cannot be read without.
        registry: Where formats are looked up; the installed ones if None.

    Returns:
        Its objects, in the file's order.

    Raises:
        AnnotationError: If it cannot be read, is malformed, or no format recognises it.
        MissingDependencyError: If a library that its format needs is not installed.
        PluginError: If a format's code fails.
    """
    registry = registry or get_registry()
    spec, reader = _recognise(path, _read_head(path), registry)
    with registry.blame("annotation", spec.name, f"made to read {path}"):
        return tuple(reader.read(path, slide))


def recognise_format(path: Path, registry: Registry) -> PluginSpec:
    """Tell which format `read_annotations` reads a file by.

    Raises:
        AnnotationError: If it cannot be read, or no format recognises it.
        MissingDependencyError: If a library that its format needs is not installed.
        PluginError: If a format's code fails.
    """
    return _recognise(path, _read_head(path), registry)[0]


def annotation_extensions(registry: Registry | None = None) -> tuple[str, ...]:
    """Give the extensions of all formats, lower case with the dot, the longest first."""
    entries = (registry or get_registry()).entries("annotation")
    found = {extension for entry in entries for extension in _extensions(entry)}
    return tuple(sorted(found, key=lambda extension: (-len(extension), extension)))


@dataclass(frozen=True)
class _Listing:
    """What a folder held.

    Attributes:
        state: The folder's device, number and time of change.
        until: When it is listed anew, of the monotonic clock.
        files: By name.
    """

    state: tuple[int, int, int]
    until: float
    files: Mapping[str, tuple[Path, ...]]


_listed: dict[tuple[Path, tuple[str, ...]], _Listing] = {}


def list_annotations(folder: Path, registry: Registry) -> Mapping[str, tuple[Path, ...]]:
    """List the files of a folder that have a format's extension.

    Every slide of a run asks for the same folders: one is listed again when it has changed, and
    once in a while.

    Args:
        folder: The folder; one that is not there holds nothing.
        registry: Knows the extensions.

    Returns:
        Paths in order by the file's name without the extension, as of `file_key`.

    Raises:
        InputError: If it cannot be listed.
    """
    extensions = annotation_extensions(registry)
    try:
        found = folder.stat()
        state = (found.st_dev, found.st_ino, found.st_mtime_ns)
        known = _listed.get((folder, extensions))
        if known and known.state == state and time.monotonic() < known.until:
            return known.files
        files = _list(folder, extensions)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror or error}.") from error
    if abs(time.time_ns() - found.st_mtime_ns) > _TICK_NS:
        if len(_listed) >= _MOST_FOLDERS:
            _listed.clear()
        _listed[folder, extensions] = _Listing(state, time.monotonic() + _KEPT_SECONDS, files)
    return files


def _list(folder: Path, extensions: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    files: dict[str, tuple[Path, ...]] = {}
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    for name in names:
        fitting = next((e for e in extensions if name.lower().endswith(e)), "")
        if fitting:
            key = file_key(name[: -len(fitting)])
            files[key] = (*files.get(key, ()), folder / name)
    return files


def file_key(name: str) -> str:
    """Give a file's name as names are compared: systems write é as one character, or as two."""
    return unicodedata.normalize("NFC", name)


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error.strerror}.") from error
    if not head.strip():
        raise AnnotationError(f"{path} is empty, and no file of annotations.")
    return head


def _recognise(path: Path, head: bytes, registry: Registry) -> tuple[PluginSpec, AnnotationReader]:
    candidates = sorted(registry.entries("annotation"), key=lambda entry: _order(path, entry))
    for entry in candidates:
        if entry.missing:
            continue
        name = entry.spec.name
        make = registry.load("annotation", name)
        with registry.blame("annotation", name, f"made to read {path}"):
            reader: AnnotationReader = make()
            if reader.recognises(head):
                return entry.spec, reader
    for entry in candidates:
        if entry.missing and _order(path, entry)[0] < 0:
            registry.load("annotation", entry.spec.name)  # which says what to install
    raise AnnotationError(
        f"{path} is no file of annotations that microtome reads. "
        f"Formats: {'; '.join(_told(candidates)) or 'none is installed'}."
    )


def _order(path: Path, entry: Registered) -> tuple[int, str]:
    """Put first those whose extension the file has, the longest extension before all."""
    lengths = [len(e) for e in _extensions(entry) if path.name.lower().endswith(e)]
    return -max(lengths, default=0), entry.spec.name


def _told(entries: list[Registered]) -> Iterator[str]:
    for entry in sorted(entries, key=lambda entry: entry.spec.name):
        yield f"{entry.spec.name} ({', '.join(_extensions(entry))})"


def _extensions(entry: Registered) -> tuple[str, ...]:
    return tuple(getattr(entry.spec, "extensions", ()))
