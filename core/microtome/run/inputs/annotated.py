"""Reads files of annotations, whichever tool wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import AnnotationError
from microtome.plugin.registry import Registered, Registry, get_registry

if TYPE_CHECKING:
    from microtome.plugin.protocols import AnnotationReader
    from microtome.slide.annotations import Annotation
    from microtome.slide.types import SlideInfo

HEAD = 1 << 16
"""Bytes that a format is recognised by."""


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
    head = _read_head(path)
    name, reader = _recognise(path, head, registry)
    with registry.blame("annotation", name, f"made to read {path}"):
        return tuple(reader.read(path, slide))


def annotation_extensions(registry: Registry | None = None) -> tuple[str, ...]:
    """Give the extensions of all formats, lower case with the dot, the longest first."""
    entries = (registry or get_registry()).entries("annotation")
    found = {extension for entry in entries for extension in _extensions(entry)}
    return tuple(sorted(found, key=lambda extension: (-len(extension), extension)))


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error.strerror}.") from error
    if not head.strip():
        raise AnnotationError(f"{path} is empty, and no file of annotations.")
    return head


def _recognise(path: Path, head: bytes, registry: Registry) -> tuple[str, AnnotationReader]:
    candidates = sorted(registry.entries("annotation"), key=lambda entry: _order(path, entry))
    for entry in candidates:
        if entry.missing:
            continue
        name = entry.spec.name
        make = registry.load("annotation", name)
        with registry.blame("annotation", name, f"made to read {path}"):
            reader: AnnotationReader = make()
            if reader.recognises(head):
                return name, reader
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
