"""Publish a slide's store whole, and later sets into it, whoever else does the same.

A set is a feature set or an array beside them: both are ``group/name`` in the store.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import IdentityError, StoreError
from microtome.store.arrays import FEATURES, refuse_arrays
from microtome.store.atomic import (
    flush,
    flush_folder,
    private_path,
    publish,
    remove,
    sweep,
    take_turn,
    wrap_errors,
    write_bytes,
    write_json,
)
from microtome.store.attributes import parse_fields, sealed
from microtome.store.content import TOKEN, FeatureSet, SlideContent, Snapshot
from microtome.store.features import ArraySource, FeatureScratch, StoredSource
from microtome.store.folders import NameTakenError, rename_new
from microtome.store.identity import IDENTITY, difference

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoreWriter
    from microtome.plugin.specs import WriterSpec

__all__ = [
    "TOKEN",
    "ArraySource",
    "FeatureScratch",
    "FeatureSet",
    "Revision",
    "SlideContent",
    "publish",
    "publish_slide",
    "sweep",
    "write_bytes",
    "write_json",
]

_ATTEMPTS = 50
_log = logging.getLogger(__name__)


Revision = Callable[[SlideContent | None], SlideContent | None]
"""Says what a slide should be, given what is there at this moment (its sets left out).

None where columns and attributes stay as they are.
"""


def publish_slide(
    final: Path,
    writer: StoreWriter,
    spec: WriterSpec,
    content: SlideContent,
    *,
    force: bool,
    revise: Revision | None = None,
) -> tuple[str, ...]:
    """Publish a slide, or add features and arrays to one that is published.

    A slide that does not exist yet appears at once with all that it has. To one of the same
    identity only the sets that it does not have are added; its coordinates and other sets stay as
    they are, byte for byte. When another job publishes meanwhile, its work is
    kept and this one starts again from there.

    Args:
        final: The final name.
        writer: The store's writer.
        spec: Of that writer.
        content: What to store.
        force: Replace the slide and the given sets. Other sets of a slide with the same identity
            and coordinates are carried over, but for those that were made of what is replaced by
            another.
        revise: Gives other columns and attributes for a slide of the same identity and
            coordinates, which is then published anew. Asked at every attempt, so that what others
            published meanwhile is kept. Sets that are there stay as they are.

    Returns:
        The sets that gave way with what was replaced, as ``group/name``.

    Raises:
        IdentityError: If what exists was made by another configuration, unless ``force``.
        StoreError: If the content does not fit together or cannot be written.
    """
    content.check(final)
    refuse_arrays(writer, final, content.arrays)
    job = _Publication(final, writer, spec, content)
    for _ in range(_ATTEMPTS):
        dropped: tuple[str, ...] = ()
        try:
            if force:
                dropped = job.replace()
            elif revise is not None:
                job.revise(revise)
            else:
                job.complete()
        except (_Overtaken, NameTakenError):
            continue
        return dropped
    raise StoreError(
        f"{final} kept changing while it was written: other jobs write the same slide. "
        "Run the slide again when they are done."
    )


class _Overtaken(Exception):  # noqa: N818 - a turn of events, not an error
    """Another job published meanwhile."""


@dataclass(frozen=True)
class _Publication:
    final: Path
    writer: StoreWriter
    spec: WriterSpec
    content: SlideContent

    def complete(self) -> None:
        """Publish a new slide, or add what an existing one does not have."""
        found = self._look()
        if found is None:
            self._create(None)
            return
        missing = self._compare(found)
        if not missing:
            return
        started = time.perf_counter()
        if self.spec.layout == "file":
            self._extend_file(found, missing)
        else:
            self._extend_folder(found, missing)
        seconds = time.perf_counter() - started
        _log.info("%s: added %s in %.1f s", self.final, ", ".join(missing), seconds)

    def replace(self) -> tuple[str, ...]:
        """Publish a slide in place of another, which may be damaged; name the sets that go."""
        found = self._look_tolerantly()
        self._create(found, overwrite=True)
        kept = self.content.sets.keys() | self._carried(found).keys()
        return tuple(sorted(found.sets.keys() - kept)) if found else ()

    def revise(self, revise: Revision) -> None:
        """Publish a slide with the columns and attributes of now, and all sets."""
        found = self._look()
        missing = list(self.content.sets) if found is None else self._compare(found)
        revised = revise(None if found is None else found.content)
        if revised is None:
            self.complete()
            return
        both = self.content
        features = {n: f for n, f in both.features.items() if f"{FEATURES}/{n}" in missing}
        arrays = {key: array for key, array in both.arrays.items() if key in missing}
        job = replace(self, content=replace(revised, features=features, arrays=arrays))
        job.content.check(self.final)
        job._create(found, overwrite=found is not None)

    def _create(self, found: Snapshot | None, *, overwrite: bool = False) -> None:
        look = self._look_tolerantly if overwrite else self._look
        with publish(
            self.final,
            layout=self.spec.layout,
            replace=overwrite,
            confirm=lambda: _hold(found, look()),
        ) as private:
            self._build(private)
            for key, attributes in self._carried(found).items():
                self._carry(private, key, attributes)

    def _carry(self, private: Path, key: str, attributes: Mapping[str, Any]) -> None:
        """Take a set over: of a folder the files themselves, which nobody ever changes."""
        old, new = self.final / key, private / key
        if self.spec.layout == "directory" and old.is_dir() and not new.exists():
            with wrap_errors(self.final):
                _link_group(old.parent, new.parent)
                shutil.copytree(old, new, copy_function=_link)
            return
        name = key.removeprefix(f"{FEATURES}/")
        with self.writer.open_stored(self.final) as stored:
            self._add(private, key, FeatureSet(StoredSource(stored, name), attributes))

    def _build(self, private: Path) -> None:
        content = self.content
        attributes = sealed({**content.attributes, TOKEN: secrets.token_hex(16)}, content.columns)
        with wrap_errors(self.final):
            self.writer.create(private, content.coords, content.columns, attributes)
        for key, given in content.sets.items():
            self._add(private, key, given)

    def _add(self, private: Path, key: str, given: FeatureSet) -> None:
        attributes = sealed({**given.attributes, TOKEN: secrets.token_hex(16)})
        group, _, name = key.partition("/")
        with wrap_errors(self.final):
            if group == FEATURES:
                self.writer.add_features(private, name, given.source, attributes)
            else:
                self.writer.add_array(private, key, given.source, attributes)

    def _carried(self, found: Snapshot | None) -> Mapping[str, Mapping[str, Any]]:
        if found is None or not self._is_same(found):
            return {}
        given = self.content.sets
        gone = given.keys() | found.outdated(given)
        return {key: attributes for key, attributes in found.sets.items() if key not in gone}

    def _extend_file(self, found: Snapshot, missing: list[str]) -> None:
        with publish(self.final, confirm=lambda: _hold(found, self._look())) as private:
            with wrap_errors(self.final):
                shutil.copyfile(self.final, private)
            _hold(found, self._look(private))
            for key in missing:
                self._add(private, key, self.content.sets[key])

    def _extend_folder(self, found: Snapshot, missing: list[str]) -> None:
        with self._skeleton() as private:
            for key in missing:
                self._add(private, key, self.content.sets[key])
                with wrap_errors(self.final):
                    self._move_in(found, private, key)

    def _move_in(self, found: Snapshot, private: Path, key: str) -> None:
        """Rename a set into the slide; the first of a group with the group, which is then whole."""
        flush((private / key).parent)
        with take_turn(self.final.parent):
            _hold(found, self._look(), slide_only=True)
            whole = key if (self.final / key).parent.exists() else key.partition("/")[0]
            rename_new(private / whole, self.final / whole)
        flush_folder((self.final / whole).parent)

    @contextmanager
    def _skeleton(self) -> Iterator[Path]:
        """Make a slide without features beside the final one, to build sets in."""
        private = private_path(self.final)
        try:
            with wrap_errors(self.final):
                self.writer.create(
                    private, self.content.coords, self.content.columns, self.content.attributes
                )
            yield private
        finally:
            remove(private)

    def _look(self, path: Path | None = None) -> Snapshot | None:
        path = path or self.final
        if not path.exists():
            return None
        try:
            with self.writer.open_stored(path) as stored:
                return Snapshot.of(stored)
        except StoreError:
            if not path.exists():  # replaced by another job at this moment
                return None
            raise

    def _look_tolerantly(self) -> Snapshot | None:
        """Look, and take what cannot be read for nothing: it is about to be replaced."""
        try:
            return self._look()
        except StoreError:
            return None

    def _compare(self, found: Snapshot) -> list[str]:
        """List the sets that a published slide lacks, after seeing that they belong to it."""
        _check_identity(
            f"{self.final} was made", found.attributes, self.content.attributes, "tiler.name"
        )
        if not self._is_same(found):
            raise StoreError(
                f"{self.final} has other coordinates than the same configuration gives now. "
                "Use force=true to replace it."
            )
        given = self.content.sets
        for key in set(found.sets) & set(given):
            group, _, name = key.partition("/")
            what = f"The features {name!r}" if group == FEATURES else f"The array {key!r}"
            _check_identity(
                f"{what} in {self.final} were made",
                found.sets[key],
                given[key].attributes,
                "encoder key (+encoder@encoder.KEY=NAME)",
            )
        return [key for key in given if key not in found.sets]

    def _is_same(self, found: Snapshot) -> bool:
        same = found.attributes.get(IDENTITY) == self.content.attributes.get(IDENTITY)
        return same and np.array_equal(found.coords, self.content.coords)


def _link_group(old: Path, new: Path) -> None:
    """Make a group's folder in a slide that has none, with the files that say what it is."""
    if new.is_dir():
        return
    new.mkdir()
    for file in old.iterdir():
        if file.is_file():
            _link(str(file), str(new / file.name))


def _link(old: str, new: str) -> None:
    """Give a file a second name; a copy where the file system knows no such thing."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _hold(before: Snapshot | None, after: Snapshot | None, *, slide_only: bool = False) -> None:
    """See that nobody published between two looks.

    Raises:
        _Overtaken: If somebody did.
    """
    old, new = (snapshot.token if snapshot else () for snapshot in (before, after))
    if slide_only:  # in a folder each set is published by itself
        old, new = old[:1], new[:1]
    if old != new:
        raise _Overtaken


def _check_identity(what: str, old: Mapping[str, Any], new: Mapping[str, Any], other: str) -> None:
    if old.get(IDENTITY) != new.get(IDENTITY):
        raise IdentityError(
            f"{what} by another configuration: {difference(parse_fields(old), parse_fields(new))}. "
            f"Use force=true to replace what is there, or another output or {other}."
        )
