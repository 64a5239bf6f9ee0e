"""Opens slides: chooses the reader, resolves the resolution, refuses what makes no sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from microtome.errors import PluginError, SlideOpenError
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, Registry, get_registry
from microtome.slide.resolution import resolve_resolution
from microtome.slide.types import SlideInfo, SlideRef, TileGrid, TissueMask

if TYPE_CHECKING:
    from microtome.plugin.protocols import Reader, Tiler

AUTO = "auto"

_MOST_LEVELS = 64
"""No pyramid has more, however slowly it gets coarser."""

_LONGEST_REASON = 300
"""Characters of what a library says of a file: some quote it."""


@dataclass(frozen=True)
class OpenedSlide:
    """An open slide. A context manager that closes it.

    Attributes:
        ref: What was asked for.
        reader: The reader that opened it.
        info: What it says of itself, with its resolution resolved.
        why: Which reader this is and why, for the record.
    """

    ref: SlideRef
    reader: Reader
    info: SlideInfo
    why: str

    def __enter__(self) -> OpenedSlide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def place_tiles(self, tiler: Tiler, mask: TissueMask) -> TileGrid:
        """Have tiles placed, by the tiler of this very slide where a tiler has one for each."""
        for_slide = getattr(tiler, "for_slide", None)
        own: Tiler = tiler if for_slide is None else for_slide(self.ref)
        return own.plan(self.info, mask)

    def close(self) -> None:
        """Release the file."""
        self.reader.close()


def open_slide(
    ref: SlideRef,
    *,
    reader: str = AUTO,
    config: object | None = None,
    registry: Registry | None = None,
    avoid: Collection[str] = (),
    trying: Callable[[str], None] = lambda name: None,
) -> OpenedSlide:
    """Open a slide.

    An explicit reader is used whatever the file's name. ``auto`` tries the installed readers of
    the file's suffix, highest priority first, and no other: what only looks like another format
    (an MRXS without its folder is a fine JPEG) is not opened as that. A reader that vouches for
    this very file comes before them all. A file whose suffix no reader claims goes to those
    readers whose ``probe`` knows it.

    Args:
        ref: The slide.
        reader: A reader's name, or ``auto``.
        config: For an explicit reader, an instance of its ``config`` class.
        registry: Where readers are looked up; the installed ones if None.
        avoid: Readers that ``auto`` tries last, for having brought a process down on this slide.
        trying: Told a reader's name before it is given the file.

    Returns:
        The open slide.

    Raises:
        SlideOpenError: If no reader opens it; lists each with its reason.
        ResolutionError: If what it says of its resolution makes no sense.
        UnknownPluginError: If there is no such reader.
        MissingDependencyError: If the explicit reader's library is not installed.
    """
    registry = registry or get_registry()
    path = ref.path
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise SlideOpenError(f"{path} {kind}. Give the path of a slide's file.")
    if reader != AUTO:
        trying(registry.find("reader", reader).spec.name)
        return _open_with(ref, registry.find("reader", reader), config, registry)
    return _open_auto(ref, registry, avoid, trying)


def check_levels(info: SlideInfo) -> None:
    """Make sure that a pyramid is one.

    Raises:
        SlideOpenError: If a level has no size, or levels do not get coarser.
    """
    if not info.levels:
        raise SlideOpenError("it has no levels")
    if len(info.levels) > _MOST_LEVELS:
        raise SlideOpenError(f"it has {len(info.levels)} levels, and a pyramid at most a dozen")
    for index, level in enumerate(info.levels):
        if level.width < 1 or level.height < 1:
            raise SlideOpenError(
                f"its level {index} has a size of {level.width} × {level.height} pixels"
            )
        if not (math.isfinite(level.downsample) and level.downsample > 0):
            raise SlideOpenError(f"its level {index} has a downsample of {level.downsample}")
    downsamples = [level.downsample for level in info.levels]
    if downsamples[0] != 1.0 or downsamples != sorted(downsamples):
        listed = ", ".join(f"{downsample:g}" for downsample in downsamples)
        raise SlideOpenError(f"its levels are downsampled by {listed}, not from 1 upwards")
    if info.channels not in (3, 4):
        raise SlideOpenError(f"its pixels have {info.channels} channels, not 3 or 4")


def _open_with(
    ref: SlideRef, entry: Registered, config: object | None, registry: Registry
) -> OpenedSlide:
    name = entry.spec.name
    target = registry.load("reader", name)
    try:
        opened, info = _make(target, ref.path, config or configure(entry.spec))
    except OSError as error:
        raise SlideOpenError(
            f"{ref.path} cannot be opened by reader={name}: {_reason(error)}."
            f"{_others(ref.path, name, registry)}"
        ) from error
    return _finish(ref, opened, info, f"{name}, as asked")


def _open_auto(
    ref: SlideRef, registry: Registry, avoid: Collection[str], trying: Callable[[str], None]
) -> OpenedSlide:
    suffix = ref.path.suffix.lower()
    claimed = [e for e in registry.entries("reader") if suffix in _suffixes(e)]
    candidates = _available(claimed) if claimed else list(_probed(ref.path, registry))
    described = suffix if claimed else "what its first bytes say"
    trusted = [entry for entry in candidates if entry.spec.name not in avoid]
    vouched, sentence = _find_voucher(ref.path, trusted, registry)
    candidates.sort(key=lambda entry: (entry.spec.name in avoid, entry is not vouched))
    failed: dict[str, str] = {}
    for place, entry in enumerate(candidates, 1):
        name = entry.spec.name
        trying(name)
        try:
            target = registry.load("reader", name)
            opened, info = _make(target, ref.path, configure(entry.spec))
        except (OSError, PluginError) as error:
            failed[name] = _reason(error)
            continue
        why = f"{name}, {_ordinal(place)} of {len(candidates)} readers for {described}"
        if len(candidates) == 1:
            why = f"{name}, the only reader for {described}"
        if entry is vouched:
            why = f"{name}, which vouches for it: {sentence}"
        if avoid:
            why += f"; {' and '.join(sorted(avoid))} brought a worker down on this slide"
        return _finish(ref, opened, info, f"{why} ({_listed(failed)})" if failed else why)
    for entry in claimed:
        if entry.missing:
            failed[entry.spec.name] = f"not installed ({entry.spec.install or 'install it'})"
    if not failed:
        raise SlideOpenError(
            f"{ref.path} cannot be opened: no reader knows {suffix or 'a file without a suffix'}. "
            f"Available: {', '.join(_known_suffixes(registry))}."
        )
    raise SlideOpenError(f"{ref.path} cannot be opened. {_listed(failed)}.")


def _make(target: Any, path: Path, config: object) -> tuple[Reader, SlideInfo]:
    opened: Reader = target(path, config)
    try:
        check_levels(opened.info)
    except SlideOpenError:
        opened.close()
        raise
    return opened, opened.info


def _finish(ref: SlideRef, reader: Reader, info: SlideInfo, why: str) -> OpenedSlide:
    try:
        resolution = resolve_resolution(info, ref.mpp, ref.mpp_source)
    except ValueError:
        reader.close()
        raise
    return OpenedSlide(ref, reader, replace(info, resolution=resolution), why)


def _available(entries: list[Registered]) -> list[Registered]:
    """Order readers: highest priority first, then by name."""
    usable = [entry for entry in entries if not entry.missing]
    return sorted(usable, key=lambda entry: (-_priority(entry), entry.spec.name))


def _find_voucher(
    path: Path, candidates: list[Registered], registry: Registry
) -> tuple[Registered | None, str]:
    """Find the first reader that vouches for a file, and what it says."""
    # Loading a reader's library may take longer than opening the slide: only where it matters.
    asked = candidates if len(candidates) > 1 else []
    for entry in asked:
        if not getattr(entry.spec, "vouches", False):
            continue
        try:
            target: Any = registry.load("reader", entry.spec.name)
            sentence = target.vouch(path)
        except (OSError, PluginError):
            continue
        if sentence:
            return entry, sentence
    return None, ""


def _probed(path: Path, registry: Registry) -> Iterator[Registered]:
    """Give the readers that know a file from its first bytes."""
    for entry in _available(registry.entries("reader")):
        try:
            probe = getattr(registry.load("reader", entry.spec.name), "probe", None)
            if probe is not None and probe(path):
                yield entry
        except (OSError, PluginError):
            continue


def _others(path: Path, name: str, registry: Registry) -> str:
    entries = [e for e in registry.entries("reader") if path.suffix.lower() in _suffixes(e)]
    others = [e.spec.name for e in _available(entries) if e.spec.name != name]
    return f" Other readers for {path.suffix}: {', '.join(others)}." if others else ""


def _suffixes(entry: Registered) -> tuple[str, ...]:
    return tuple(getattr(entry.spec, "extensions", ()))


def _priority(entry: Registered) -> int:
    return int(getattr(entry.spec, "priority", 0))


def _known_suffixes(registry: Registry) -> list[str]:
    return sorted({suffix for e in registry.entries("reader") for suffix in _suffixes(e)})


def _listed(reasons: dict[str, str]) -> str:
    """List reasons, readers with the same one together."""
    readers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        readers.setdefault(reason, []).append(name)
    return "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in readers.items())


def _reason(error: BaseException) -> str:
    """Give what an error says as a part of one line, whatever it quotes of the file."""
    words = "".join(c if c.isprintable() else " " for c in str(error)).split()
    return " ".join(words)[:_LONGEST_REASON].rstrip(". ") or type(error).__name__


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
