"""From what a user names to the slides of a run: files, folders, patterns and manifests."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from microtome.errors import InputError, PluginError, one_line
from microtome.plugin.registry import Registry
from microtome.plugin.specs import ReaderSpec
from microtome.run.inputs.companions import Companions, SlideFiles
from microtome.run.inputs.ids import Found, Refused, is_text, slide_id_of, tell_apart
from microtome.run.inputs.paths import (
    absolute,
    as_on_disk,
    describe_missing,
    explain_missing,
    is_file,
    list_matching,
    same_place,
)
from microtome.run.inputs.sources import is_url, url_path
from microtome.run.inputs.tables import ManifestEntry, MppTable, read_manifest
from microtome.run.settings import RunConfig
from microtome.slide.types import SlideRef

PLAIN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"})
"""Plain images: in folders they are taken for slides with ``formats=all`` only."""

ARCHIVE_SUFFIXES = frozenset({".tar"})
"""Archives of anything: in folders those are taken for slides that a reader knows by content."""

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv"})


@dataclass(frozen=True)
class SlideList:
    """The slides of a run.

    Attributes:
        slides: In the order of the command line; a folder's sorted by path.
        notes: What was left aside and why, a sentence each: other files of a folder, rows
            without a usable mpp.
        refused: Slides that are not there, or share their id with another one.
        order: The sources of all slides, refused ones too, in the order in which they were named.
    """

    slides: tuple[SlideRef, ...]
    notes: tuple[str, ...]
    refused: tuple[Refused, ...] = ()
    order: tuple[str, ...] = ()


def find_slides(config: RunConfig, registry: Registry) -> SlideList:
    """Find the slides that a run is asked for.

    Every word is first taken literally: a file, a folder, a ``.csv`` manifest, or a URL, which is
    not looked at yet. Only a word that does not exist may be a pattern (``*``, ``?``, ``[…]``,
    ``**``). One slide named twice counts once, but a link of another name is another slide; what a
    manifest says of a slide holds. An mpp in a table is for one slide and wins over ``mpp=``,
    which is for all.

    Args:
        config: The run.
        registry: Knows the formats that readers open.

    Raises:
        InputError: If something named does not exist, nothing is found, or a table is faulty.
    """
    finder = _Finder(config, registry)
    found = _merge(finder.find_all(config.slides))
    if not found:
        raise InputError(_nothing(config, finder.notes))
    notes = list(finder.notes)
    there = [f.files.primary for f in found if not f.problem]
    mpps = _mpp_by_slide(config, there, finder.suffixes, notes)
    slides = [_slide(f, config, mpps.get(f.files.primary)) for f in found]
    apart, refused = tell_apart(slides, found, config.output)
    _refuse_strangers(config, slides)
    return SlideList(
        apart,
        tuple(map(one_line, notes)),
        refused,
        tuple(dict.fromkeys(finder.order)),
    )


class _Finder:
    """Turns words into slides, and notes what it leaves aside."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self.notes: list[str] = []
        self.order: list[str] = []
        specs = [entry.spec for entry in registry.entries("reader")]
        self.suffixes = {
            x for spec in specs if isinstance(spec, ReaderSpec) for x in spec.extensions
        }
        self._config = config
        self._registry = registry
        self._companions = Companions()

    def find_all(self, words: Iterable[str]) -> Iterator[Found]:
        """Find the slides that words name, and keep their order."""
        for word in words:
            for found in self.find(word):
                self.order.append(found.url or str(found.files.primary))
                yield found

    def find(self, word: str) -> Iterator[Found]:
        """Find the slides that one word names."""
        if is_url(word):
            yield Found(SlideFiles(url_path(word)), Path("/"), url=word)
            return
        path = as_on_disk(Path(word))
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except OSError as error:
            raise InputError(f"{word!r} cannot be looked at: {error.strerror}.") from error
        if is_folder and word:
            yield from self._folder(absolute(path))
        elif exists and word:
            yield from self._file(absolute(path))
        elif glob.has_magic(word):
            yield from self._pattern(word)
        else:
            raise InputError(explain_missing(word))

    def _file(self, path: Path) -> Iterator[Found]:
        if not is_file(path):
            # Whoever opens a pipe waits for its other end.
            raise InputError(describe_missing(path))
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            for entry in read_manifest(path):
                yield self._entry(entry, path.parent)
        else:
            self._require_readable(path)
            yield Found(self._companions.of(path), Path.cwd())

    def _entry(self, entry: ManifestEntry, folder: Path) -> Found:
        if entry.url:
            return Found(SlideFiles(entry.path), Path("/"), entry, entry.url)
        if not is_file(entry.path):
            return Found(SlideFiles(entry.path), folder, entry)
        self._require_readable(entry.path, f"{entry.where}: ")
        return Found(self._companions.of(entry.path), folder, entry)

    def _pattern(self, pattern: str) -> Iterator[Found]:
        paths = [absolute(path) for path in list_matching(pattern)]
        if not paths:
            raise InputError(f"There is no file {pattern!r}, and as a pattern it fits none.")
        # `**` gives folders too, and what is in them besides.
        files = [path for path in paths if not path.is_dir()]
        if not files:
            for folder in paths:
                yield from self._folder(folder)
        taken = [path for path in files if self._is_slide(path)]
        yield from self._grouped(taken, Path.cwd())

    def _require_readable(self, path: Path, where: str = "") -> None:
        """Refuse a file that was named and that no reader knows what to do with."""
        if self._config.reader.plugin != "auto" or path.suffix.lower() in self.suffixes:
            return
        if not self._is_known(path):
            raise InputError(
                f"{where}{path} has no suffix of a slide. "
                f"Available: {' '.join(sorted(self.suffixes))}; reader=NAME opens it all the same."
            )

    def _is_known(self, path: Path) -> bool:
        return any(self._probes(name, path) for name in self._registry.names("reader"))

    def _probes(self, name: str, path: Path) -> bool:
        """Ask a reader whether it knows a file by its content."""
        try:
            probe = getattr(self._registry.load("reader", name), "probe", None)
            return probe is not None and bool(probe(path))
        except (PluginError, OSError):
            return False

    def _folder(self, root: Path) -> Iterator[Found]:
        for folder, names in self._walk(root):
            paths = [folder / name for name in names]
            yield from self._grouped([p for p in paths if self._is_slide(p)], root)

    def _walk(self, root: Path) -> Iterator[tuple[Path, list[str]]]:
        """Give each folder once, sorted, with its files: links may form loops."""
        seen: set[tuple[int, int] | None] = set()
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            if folder != root and not self._is_searched(folder, seen):
                continue
            try:
                seen.add(same_place(folder))
                with os.scandir(folder) as listed:
                    entries = {entry.name: _is_folder(entry) for entry in listed}
            except OSError as error:
                self.notes.append(f"{folder}: cannot be read: {error.strerror}")
                continue
            yield folder, sorted(name for name in entries if not entries[name])
            own = {Path(name).stem for name in entries if name.lower().endswith(".mrxs")}
            folders = sorted(name for name in entries if entries[name] and name not in own)
            waiting += [folder / name for name in reversed(folders)]

    def _is_searched(self, folder: Path, seen: Collection[tuple[int, int] | None]) -> bool:
        if folder.name.startswith("."):
            reason = "a hidden folder"
        elif not self._config.recursive:
            reason = "a folder; recursive=true searches it"
        elif same_place(folder) == same_place(self._config.output):
            reason = "the output of this run"
        elif (folder / "runs").is_dir() and (folder / "status").is_dir():
            reason = "the output of an earlier run"
        elif same_place(folder) in seen:
            reason = "a link to a folder that is searched already"
        else:
            return True
        self.notes.append(f"{folder}: {reason}")
        return False

    def _is_slide(self, path: Path) -> bool:
        """Say whether a file of a folder is taken for a slide; note why not."""
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            reason = "a hidden file"
        elif not is_text(path.name):
            reason = "its name is not UTF-8 text; rename it, or link to it under another name"
        elif not is_file(path):
            reason = "a broken link or no regular file"
        elif suffix not in self.suffixes:
            reason = "a table: name it to use it" if suffix in MANIFEST_SUFFIXES else "no slide"
        elif suffix in PLAIN_SUFFIXES and self._config.formats != "all":
            reason = "a plain image; formats=all takes it"
        elif suffix in ARCHIVE_SUFFIXES and not self._is_known(path):
            reason = "no archive of tiles"
        else:
            return True
        self.notes.append(f"{path}: {reason}")
        return False

    def _grouped(self, paths: list[Path], root: Path) -> Iterator[Found]:
        """Give the slides among some files: not those that belong to another one."""
        groups = {files.primary: files for files in map(self._companions.of, paths)}
        owned = {path for files in groups.values() for path in files.companions}
        for primary, files in groups.items():
            if primary not in owned:
                yield Found(files, root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _merge(found: Iterable[Found]) -> list[Found]:
    """Keep each slide once; what a manifest says of it wins over finding it in a folder."""
    slides: dict[tuple[str, str], Found] = {}
    for one in found:
        path = one.files.primary
        key = (one.url or os.path.realpath(path), path.name)
        first = slides.setdefault(key, one)
        if first.entry is None and one.entry is not None:
            slides[key] = one
        elif first.entry and one.entry and first.entry != one.entry:
            raise InputError(
                f"{one.entry.where}: {one.entry.path} is already in {first.entry.where}."
            )
    return list(slides.values())


def _mpp_by_slide(
    config: RunConfig, paths: list[Path], suffixes: set[str], notes: list[str]
) -> dict[Path, tuple[float, str]]:
    if config.mpp_csv is None:
        return {}
    table = MppTable(config.mpp_csv, suffixes)
    matched = table.match(paths)
    notes.extend(table.notes)
    return matched


def _slide(found: Found, config: RunConfig, mpp: tuple[float, str] | None) -> SlideRef:
    path, entry = found.files.primary, found.entry
    value, source = _mpp(entry, mpp, config.mpp)
    slide_id = slide_id_of(found, config.slide_id)
    return SlideRef(
        path=path,
        slide_id=slide_id,
        mpp=value,
        mpp_source=source,
        mask_path=entry.mask_path if entry else None,
        annotation_path=entry.annotation_path if entry else None,
        companions=found.files.companions,
        extra=(dict(entry.extra) if entry else {}) | _patient_of(slide_id, config),
        source=found.url,
    )


def _patient_of(slide_id: str, config: RunConfig) -> dict[str, str]:
    """Give what a run's map says of a slide, which wins over a manifest."""
    found = config.patient_id_map.get(slide_id)
    return {} if found is None else {"patient_id": found}


def _refuse_strangers(config: RunConfig, slides: Iterable[SlideRef]) -> None:
    strangers = sorted(config.patient_id_map.keys() - {slide.slide_id for slide in slides})
    if strangers:
        raise InputError(
            f"patient_id_map names {', '.join(map(repr, strangers[:3]))}, and no slide of this run "
            "has that id."
        )


def _mpp(
    entry: ManifestEntry | None, mpp: tuple[float, str] | None, default: float | None
) -> tuple[float | None, str]:
    """Choose a slide's mpp and say who gave it."""
    if entry is None or entry.mpp is None:
        return (mpp[0], "mpp_csv") if mpp else (default, "override")
    if mpp is not None and entry.mpp != mpp[0]:
        raise InputError(f"{mpp[1]}: mpp {mpp[0]:g}, but {entry.where} says {entry.mpp:g}.")
    return entry.mpp, "manifest"


def _nothing(config: RunConfig, notes: list[str]) -> str:
    if not config.slides:
        return "No slides: name files, folders or a CSV manifest."
    where = ", ".join(config.slides)
    if not notes:
        return f"There is no slide in {where}."
    return f"There is no slide in {where}; left aside: {notes[0]}" + (
        f" (and {len(notes) - 1} more)." if len(notes) > 1 else "."
    )
