"""Finished slides into another tool's layout, file by file, each absent or complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import (
    IdentityError,
    InputError,
    LayoutError,
    MicrotomeError,
    OutputError,
    StoreError,
)
from microtome.plugin.registry import Registry
from microtome.plugin.specs import LayoutSpec, WriterSpec
from microtome.run.exchange.foreign import digest, hashes
from microtome.store.atomic import publish, sweep, wrap_errors, write_json
from microtome.store.attributes import parse_fields, plain_attributes
from microtome.store.exchange import LayoutFile, TiledSlide, tiled_slide
from microtome.store.identity import Identity, describe, difference, make_identity
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.survey import find_slides, find_tilings

if TYPE_CHECKING:
    from microtome.plugin.protocols import Layout

RECORDS = ".microtome"
"""Folder in what is exported to: of each file, what it was made of."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a slide was exported or imported.

    Attributes:
        slide_id: The slide.
        state: ``"exported"``, ``"imported"``, ``"reused"`` or ``"failed"``.
        text: What there is, or why not.
        warnings: What the user should know of it.
    """

    slide_id: str
    state: str
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A layout and what it was chosen by.

    Attributes:
        layout: The plugin.
        spec: Of it.
        config: Of it.
    """

    layout: Layout
    spec: LayoutSpec
    config: object


def find_tiling(output: Path, registry: Registry, tiling: str | None) -> OutputLayout:
    """Find the one tiling of an output that is meant.

    Args:
        output: The output folder.
        registry: Its writers.
        tiling: Its name, ``"."`` for the one without; None for the only one.

    Raises:
        InputError: If the folder is no output, or there are several, or none of that name.
    """
    found = {_tiling(each): each for each in find_tilings(output, taken_folders(registry))}
    if tiling is None and len(found) == 1:
        return next(iter(found.values()))
    if tiling not in found:
        named = "several tilings" if tiling is None else f"no tiling named {tiling!r}"
        raise InputError(f"{output} holds {named}. Name one with --tiling: {', '.join(found)}.")
    return found[tiling]


def export_output(
    layout: OutputLayout,
    chosen: Chosen,
    folder: Path,
    *,
    registry: Registry,
    features: Collection[str] | None = None,
    force: bool = False,
) -> Iterator[Outcome]:
    """Export every slide of a tiling; a bad one never stops the others.

    Args:
        layout: The tiling.
        chosen: What to export to.
        folder: Where to.
        registry: The writers of the output.
        features: The feature sets to export; all if None.
        force: Replace files that are there.

    Yields:
        How each slide went; those that have a file in common, when that is there.
    """
    stores = find_stores(layout, registry)
    job = _Export(chosen, folder, registry, features, force, layout, stores)
    for slide_id in sorted({*stores, *find_slides(layout)}):
        try:
            if slide_id not in stores:
                raise StoreError("there are no coordinates of it: see microtome status")
            outcome = job.slide(slide_id)
        except OutputError:  # nor would any other slide's files be taken
            raise
        except MicrotomeError as error:
            outcome = Outcome(slide_id=slide_id, state="failed", text=str(error))
        if not job.shares(slide_id):
            yield outcome
    for path in sorted(job.shared):
        yield from job.share(path)


def find_stores(layout: OutputLayout, registry: Registry) -> dict[str, tuple[Path, WriterSpec]]:
    """Find the stored slides of a tiling, by id; of several stores of one, the first by name."""
    found: dict[str, tuple[Path, WriterSpec]] = {}
    for entry in registry.entries("writer"):
        spec = entry.spec
        if not isinstance(spec, WriterSpec) or spec.consumes != "features":
            continue
        top = layout.root / spec.folder
        for here, names, files in os.walk(top):
            names[:] = sorted(name for name in names if not name.startswith("."))
            of_kind = names if spec.layout == "directory" else files
            for name in of_kind:
                if name.endswith(spec.suffix) and not name.startswith("."):
                    path = Path(here, name)
                    slide_id = path.relative_to(top).as_posix().removesuffix(spec.suffix)
                    found.setdefault(slide_id, (path, spec))
            names[:] = [name for name in names if not name.endswith(spec.suffix)]
    return found


@dataclass(frozen=True)
class _Export:
    chosen: Chosen
    folder: Path
    registry: Registry
    features: Collection[str] | None
    force: bool
    output: OutputLayout
    stores: Mapping[str, tuple[Path, WriterSpec]]
    shared: dict[str, dict[str, _Part]] = field(default_factory=dict)

    def slide(self, slide_id: str) -> Outcome:
        """Export the files that are a slide's own, and note those that it shares."""
        with self._open(slide_id) as slide:
            files = self._name_files(slide)
            written = self._files(slide, [file for file in files if not file.shared])
            outcome = Outcome(
                slide_id=slide_id,
                state="exported" if written else "reused",
                text=f"{len(slide.coords)} tiles, {_tell_held(files)}",
                warnings=tuple(text for file in files for text in file.warnings),
            )
            parts = {
                file.path: _Part(self._identity(slide, file).digest, outcome)
                for file in files
                if file.shared
            }
        for name, part in parts.items():
            self.shared.setdefault(name, {})[slide_id] = part
        return outcome

    def shares(self, slide_id: str) -> bool:
        """Tell whether a slide has a file in common with others."""
        return any(slide_id in parts for parts in self.shared.values())

    def share(self, path: str) -> Iterator[Outcome]:
        """Export a file that slides have in common: whole, or not at all."""
        parts = self.shared[path]
        fields = {"slides": {slide_id: part.identity for slide_id, part in parts.items()}}
        record = _Record(self.folder, path, make_identity("export", fields))
        try:
            there = record.holds(self.force)
            if not there:
                self._write(record, lambda private: self._write_all(private, path))
        except OutputError:
            raise
        except MicrotomeError as error:
            for part in parts.values():
                yield replace(part.outcome, state="failed", text=str(error))
            return
        for part in parts.values():
            state = "exported" if not there or part.outcome.state == "exported" else "reused"
            yield replace(part.outcome, state=state)

    @contextmanager
    def _open(self, slide_id: str) -> Iterator[TiledSlide]:
        path, spec = self.stores[slide_id]
        with self.registry.create("writer", spec.name).open_stored(path) as stored:
            names = self._names(slide_id, stored.feature_names())
            _refuse_names(path, names)
            tissue = self._tissue(slide_id, stored.attributes)
            yield tiled_slide(slide_id, stored, names, tissue)

    def _name_files(self, slide: TiledSlide) -> list[LayoutFile]:
        with self.registry.blame("layout", self.chosen.spec.name, "used to export"):
            return list(self.chosen.layout.files(slide))

    def _write_all(self, private: Path, path: str) -> None:
        for slide_id, part in sorted(self.shared[path].items()):
            with self._open(slide_id) as slide:
                files = [file for file in self._name_files(slide) if file.path == path]
                if [self._identity(slide, file).digest for file in files] != [part.identity]:
                    raise StoreError(f"{slide_id} changed while it was exported. Export again.")
                files[0].write(private)

    def _tissue(self, slide_id: str, attributes: Mapping[str, Any]) -> Path | None:
        """Find the tissue that tiles were placed on: what a run left of it, and nobody deleted."""
        fields = parse_fields(attributes).get("tissue")
        if not isinstance(fields, Mapping):
            return None
        digest = make_identity("tissue", fields).digest
        path = self.output.tissue(slide_id, digest, ".geojson")
        return path if path.is_file() else None

    def _names(self, slide_id: str, there: list[str]) -> tuple[str, ...]:
        if self.features is None:
            return tuple(there)
        if missing := sorted({*self.features} - {*there}):
            raise LayoutError(
                f"{slide_id} has no features {', '.join(missing)}; it has {', '.join(there)}."
            )
        return tuple(name for name in there if name in self.features)

    def _files(self, slide: TiledSlide, files: list[LayoutFile]) -> int:
        """Publish what is not there yet; all is refused before anything is written."""
        missing = []
        for file in files:
            record = _Record(self.folder, file.path, self._identity(slide, file))
            if not record.holds(self.force):
                missing.append((file, record))
        for file, record in missing:
            self._write(record, file.write, layout=file.layout)
        return len(missing)

    def _write(
        self, record: _Record, write: Callable[[Path], None], *, layout: str = "file"
    ) -> None:
        final = record.final
        record.announce()
        sweep(final.parent)
        with (
            publish(final, layout=layout, confirm=record.check) as private,
            self.registry.blame("layout", self.chosen.spec.name, "used to export"),
            wrap_errors(final),
        ):
            write(private)
        record.confirm()

    def _identity(self, slide: TiledSlide, file: LayoutFile) -> Identity:
        held = {**slide.features, **slide.embeddings, **slide.predictions}
        names = (*file.features, *file.embeddings, *file.predictions)
        fields: dict[str, Any] = {
            "layout": describe(self.chosen.spec, self.chosen.config),
            "coords": slide.identity,
            "features": {name: str(held[name].attributes.get("identity")) for name in names},
        }
        if file.columns:
            columns = {name: digest(np.asarray(slide.columns[name])) for name in file.columns}
            fields["columns"] = columns | {"classes": slide.attributes.get("classes")}
        if file.attributes:
            told = {name: slide.attributes.get(name) for name in file.attributes}
            fields["attributes"] = plain_attributes(told)
        if file.tissue and slide.tissue is not None:
            fields["tissue"] = hashes((slide.tissue,))[slide.tissue.name]
        return make_identity("export", fields)


def _tell_held(files: Collection[LayoutFile]) -> str:
    """Say what files hold of a slide beside its coordinates."""
    each = ((*f.features, *f.embeddings, *f.predictions, *f.columns) for f in files)
    tissue = ["tissue"] * any(f.tissue for f in files)
    return ", ".join(dict.fromkeys(chain(*each, tissue))) or "coordinates alone"


@dataclass(frozen=True)
class _Part:
    """A slide of a file that slides have in common."""

    identity: str
    outcome: Outcome


class _Record:
    """What an exported file was made of, beside it in a file of its own.

    A file is announced before it is written, so that a killed export's is known for one's own.

    Attributes:
        final: The file's final name.
    """

    def __init__(self, folder: Path, path: str, identity: Identity) -> None:
        inside = PurePosixPath(path)
        if inside.is_absolute() or not inside.parts or ".." in inside.parts or "\0" in path:
            raise LayoutError(f"{path!r} does not name a file inside {folder}; nothing is written.")
        self.final = folder / path
        self._path = folder / RECORDS / f"{path}.json"
        self._made_of: dict[str, Any] = {
            "identity": identity.digest,
            "fields": dict(identity.fields),
        }

    def holds(self, force: bool) -> bool:
        """Whether the file is there, whole and made of the same; refuses another one.

        Raises:
            IdentityError: If what is there is another file, unless ``force``.
        """
        known = self._read()
        if known is not None and known["identity"] == self._made_of["identity"]:
            return bool(known["whole"]) and self.final.exists() and not force
        if force or not self.final.exists():
            return False
        if known is None:
            raise IdentityError(
                f"{self.final} is there and was not exported by microtome. Export to another "
                "folder, or replace it with --force."
            )
        raise IdentityError(
            f"{self.final} was exported from something else: "
            f"{difference(known['fields'], self._made_of['fields'])}. Export to another folder, or "
            "replace it with --force."
        )

    def announce(self) -> None:
        """Say what the file will be made of."""
        sweep(self._path.parent)
        self._write(whole=False)

    def check(self) -> None:
        """See that no other export has announced something else meanwhile.

        Raises:
            StoreError: If one has.
        """
        if not self._is_announced():
            raise StoreError(
                f"{self.final} is being exported from something else at the same time. Export one "
                "after the other."
            )

    def confirm(self) -> None:
        """Say that the file is there."""
        if self._is_announced():
            self._write(whole=True)

    def _is_announced(self) -> bool:
        known = self._read()
        return known is not None and known["identity"] == self._made_of["identity"]

    def _read(self) -> dict[str, Any] | None:
        try:
            known = json.loads(self._path.read_text("utf-8"))
            return {name: known[name] for name in ("identity", "fields", "whole")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} is damaged. Delete it, and export with --force."
            ) from error

    def _write(self, *, whole: bool) -> None:
        write_json(self._path, {**self._made_of, "whole": whole})


def _refuse_names(path: Path, names: Collection[str]) -> None:
    """See that feature sets can name files.

    Raises:
        StoreError: If one cannot: microtome gives no such name.
    """
    for name in names:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise StoreError(f"{path} holds features named {name!r}, which can name no file.")


def _tiling(layout: OutputLayout) -> str:
    return "." if layout.root == layout.output else layout.relative(layout.root)
