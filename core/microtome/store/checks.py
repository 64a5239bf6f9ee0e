"""What one output must be to be whole: each check gives what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import MicrotomeError, MissingDependencyError, StoreError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import WriterSpec
from microtome.store.array_checks import (
    check_array,
    check_slides,
    check_sources,
    check_values,
    missing_arrays,
)
from microtome.store.arrays import PATIENT_FEATURES, array_names
from microtome.store.attributes import (
    ATTRIBUTES_DIGEST,
    attributes_digest,
    parse_fields,
    parse_json,
    read_images_record,
)
from microtome.store.damage import AGAIN, Wrong, image_damage
from microtome.store.features import StoredSource
from microtome.store.identity import IDENTITY, IDENTITY_FIELDS, digest_of
from microtome.store.labels import LABELS, check_labels
from microtome.store.passports import are_passports
from microtome.store.patches import LABELLED, PatchRecord
from microtome.store.quality import REASON, give_reasons, join_limits, parse_quality

if TYPE_CHECKING:
    from microtome.plugin.protocols import PatchWriter, StoredSlide, TileWriter
    from microtome.store.layout import OutputLayout

_PLACE = re.compile(r"x(-?\d+)_y(-?\d+)\.\w+$")
_LOST = "\ufffd"  # what stands in a stored text for what UTF-8 does not hold
_SHOWN = 12  # characters of a digest


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a slide's record says of its outputs; nothing where there is no such record.

    Attributes:
        tiles: How many there are.
        identities: Digests, by what they identify.
        encoders: Feature sets that must be there.
    """

    tiles: int | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checker:
    """Checks what writers wrote.

    Attributes:
        registry: The writers.
        deep: Whether values and images are read, too; names, shapes and attributes always are.
        unguarded: Filled with the outputs that carry no checksum.
    """

    registry: Registry
    deep: bool = True
    unguarded: set[Path] = field(default_factory=set)

    def check(self, path: Path, spec: WriterSpec, expected: Expected) -> Iterator[Wrong]:
        """Check what a writer wrote of one slide.

        Args:
            path: The final name.
            spec: The writer.
            expected: What the slide's record says of it.
        """
        checks = self._store if spec.consumes == "features" else self._images
        yield from self._reading(path, spec, checks(path, spec, expected))

    def _reading(self, path: Path, spec: WriterSpec, checks: Iterator[Wrong]) -> Iterator[Wrong]:
        """Go through checks; an error of the writer that reads for them is what is wrong."""
        try:
            with self.registry.blame("writer", spec.name, "used to read it"):
                yield from checks
        except StoreError as error:  # says where, and what to do
            yield Wrong(str(error), "")
        except MissingDependencyError as error:
            yield Wrong(f"{path} cannot be checked: {error}", "")
        except MicrotomeError as error:
            yield Wrong(f"it cannot be read: {error}")

    def _store(self, path: Path, spec: WriterSpec, expected: Expected) -> Iterator[Wrong]:
        with self.registry.create("writer", spec.name).open_stored(path) as stored:
            yield from self._slide(path, stored, expected)
            for name in stored.feature_names():
                identity = expected.identities.get(f"features/{name}")
                checks = self._features(path, stored, name, identity)
                yield from self._each(path, spec, f"features/{name}", checks)
            yield from self._arrays(path, spec, stored, expected)
            for key in array_names(stored):
                yield from self._each(path, spec, key, check_sources(stored, key))

    def patient(self, path: Path, spec: WriterSpec, layout: OutputLayout) -> Iterator[Wrong]:
        """Check what a writer wrote of one patient.

        Args:
            path: The final name.
            spec: The writer.
            layout: Of the patient's slides.
        """
        yield from self._reading(path, spec, self._patient(path, spec, layout))

    def _patient(self, path: Path, spec: WriterSpec, layout: OutputLayout) -> Iterator[Wrong]:
        def open_slide(slide_id: str) -> StoredSlide | None:
            slide = layout.slide(spec, slide_id)
            writer = self.registry.create("writer", spec.name)
            return writer.open_stored(slide) if slide.exists() else None

        with self.registry.create("writer", spec.name).open_stored(path) as stored:
            yield from self._seal(path, stored.attributes, stored.columns)
            yield from _identity(stored.attributes, None)
            self._guarded(path, stored)
            if not any(key.startswith(f"{PATIENT_FEATURES}/") for key in array_names(stored)):
                yield Wrong(f"it holds no {PATIENT_FEATURES}", AGAIN)
            yield from self._arrays(path, spec, stored, Expected())
            for key in array_names(stored, PATIENT_FEATURES):
                yield from self._each(path, spec, key, check_slides(stored, key, open_slide))

    def _arrays(
        self, path: Path, spec: WriterSpec, stored: StoredSlide, expected: Expected
    ) -> Iterator[Wrong]:
        yield from missing_arrays(stored, expected.identities)
        for key in array_names(stored):
            checks = self._array(path, stored, key, expected.identities.get(key))
            yield from self._each(path, spec, key, checks)

    def _array(
        self, path: Path, stored: StoredSlide, key: str, identity: str | None
    ) -> Iterator[Wrong]:
        attributes = stored.array_attributes(key)
        yield from self._sealed_as(path, stored, attributes)
        yield from _identity(attributes, identity)
        yield from check_array(stored, key, deep=self.deep)

    def _each(
        self, path: Path, spec: WriterSpec, key: str, checks: Iterator[Wrong]
    ) -> Iterator[Wrong]:
        """Go through the checks of a set, and say which one it is."""
        for wrong in self._reading(path, spec, checks):
            yield replace(wrong, what=f"{key}: {wrong.what}" if wrong.remedy else wrong.what)

    def _slide(self, path: Path, stored: StoredSlide, expected: Expected) -> Iterator[Wrong]:
        coords, attributes = stored.coords, stored.attributes
        if coords.ndim != 2 or coords.shape[1] != 5 or coords.dtype != np.int32:
            found = f"{coords.dtype} of shape {coords.shape}"
            yield Wrong(f"coords are {found}, not int32 of shape (n, 5)")
            return
        yield from self._seal(path, attributes, stored.columns)
        yield from _identity(attributes, expected.identities.get("coords"))
        yield from _counts(len(coords), attributes, expected)
        twice = len(coords) - len(np.unique(coords, axis=0))
        if twice:
            yield Wrong(f"{twice} of {len(coords)} tiles are there twice")
        for name, column in stored.columns.items():
            if column.shape != (len(coords),):
                yield Wrong(f"columns/{name} has the shape {column.shape} for {len(coords)} tiles")
                return
        yield from _quality(stored, expected)
        yield from check_labels(stored, expected.identities.get(LABELS))
        yield from _passports(stored)
        for name in sorted({*expected.encoders} - {*stored.feature_names()}):
            yield Wrong(f"features/{name} is missing, its slide's record names it", AGAIN)
        self._guarded(path, stored)

    def _guarded(self, path: Path, stored: StoredSlide) -> None:
        checksums = getattr(stored, "checksums", None)
        if checksums is not None and not all(checksums().values()):
            self.unguarded.add(path)

    def _features(
        self, path: Path, stored: StoredSlide, name: str, identity: str | None
    ) -> Iterator[Wrong]:
        rows, dim = stored.feature_shape(name)
        attributes = stored.feature_attributes(name)
        if rows != len(stored.coords):
            yield Wrong(f"it has {rows} rows for {len(stored.coords)} tiles")
        if attributes.get("dim", dim) != dim:
            yield Wrong(f"it has {dim} columns, its attribute dim says {attributes['dim']}")
        dtype = stored.features(name, slice(0, 0)).dtype
        if not np.issubdtype(dtype, np.floating):
            yield Wrong(f"it is of {dtype}, not of floating point")
            return
        yield from self._sealed_as(path, stored, attributes)
        yield from _identity(attributes, identity)
        coords = parse_fields(attributes).get("coords")
        if coords != stored.attributes.get(IDENTITY):
            yield Wrong("it was made for other coordinates")
        if self.deep:
            yield from check_values(StoredSource(stored, name))

    def _images(self, path: Path, spec: WriterSpec, expected: Expected) -> Iterator[Wrong]:
        if not path.exists():
            return
        writer: TileWriter | PatchWriter = self.registry.create("writer", spec.name)
        record = read_images_record(path, spec, writer)
        yield from self._seal(path, record)
        yield from _identity(record, expected.identities.get("coords"), "coords_identity")
        if spec.consumes == LABELLED:
            patches = PatchRecord.parse(record, path)
            yield from _counts(len(patches.coords), record, Expected())
            yield from _all_told(patches, expected)
            yield from map(Wrong, writer.damage(path, deep=self.deep))
            return
        try:
            coords = np.asarray(json.loads(record["coords"]), np.int32).reshape(-1, 5)
        except (KeyError, ValueError, TypeError):
            yield Wrong("its record does not say where its tiles lie")
            return
        yield from _counts(len(coords), record, expected)
        if spec.layout == "file":
            yield from map(Wrong, writer.damage(path, deep=self.deep))
            return
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        yield from _places(files, coords)
        for file in files if self.deep else ():
            if wrong := image_damage(file):
                yield Wrong(f"{file.name}: {wrong}")

    def _sealed_as(
        self, path: Path, stored: StoredSlide, attributes: Mapping[str, Any]
    ) -> Iterator[Wrong]:
        """Check the hash over a set's attributes, which is there if the slide has one."""
        if ATTRIBUTES_DIGEST in stored.attributes and ATTRIBUTES_DIGEST not in attributes:
            yield Wrong("its attributes are not all there")
        yield from self._seal(path, attributes)

    def _seal(
        self, path: Path, attributes: Mapping[str, Any], columns: Iterable[str] = ()
    ) -> Iterator[Wrong]:
        """Check the hash over all attributes, where there is one."""
        sealed = attributes.get(ATTRIBUTES_DIGEST)
        if sealed is None:
            self.unguarded.add(path)
        elif sealed != attributes_digest(attributes, columns):
            yield Wrong("its attributes or columns are not those that were written")


def _identity(
    attributes: Mapping[str, Any], expected: str | None, of: str = IDENTITY
) -> Iterator[Wrong]:
    """Check an identity.

    Args:
        attributes: Of an output.
        expected: The digest that the slide's record says.
        of: Where that digest stands: in the attributes, or in what the identity was made of.
    """
    fields, digest = parse_fields(attributes), attributes.get(IDENTITY)
    if not fields or not isinstance(digest, str):
        yield Wrong("its attributes do not say what made it (identity, identity_fields)")
        return
    if _LOST not in str(attributes[IDENTITY_FIELDS]) and digest != digest_of(fields):
        yield Wrong("its identity is not the hash of its identity_fields")
    found = digest if of == IDENTITY else fields.get(of)
    if expected is not None and found != expected:
        said = f"{str(found)[:_SHOWN]}…, its slide's record says {expected[:_SHOWN]}…"
        yield Wrong(f"its {of} is {said}", AGAIN)


def _quality(stored: StoredSlide, expected: Expected) -> Iterator[Wrong]:
    """Check scores, what made them, and that the reasons follow from them."""
    parts, columns = parse_quality(stored.attributes), stored.columns
    told = [n.removeprefix("quality/") for n in expected.identities if n.startswith("quality/")]
    for name in sorted({*told} - {*parts}):
        yield Wrong(f"the columns of the inspector {name} are missing, its record names it", AGAIN)
    for name, part in parts.items():
        for wrong in _identity(
            part.identity.attributes(), expected.identities.get(f"quality/{name}")
        ):
            yield replace(wrong, what=f"the inspector {name}: {wrong.what}")
        if part.identity.fields.get("coords") != stored.attributes.get(IDENTITY):
            yield Wrong(f"the columns of the inspector {name} were made for other coordinates")
        for column in part.columns:
            if column not in columns:
                yield Wrong(f"columns/{column} is missing, the attribute quality names it")
                return
            if not np.isfinite(columns[column]).all():
                yield Wrong(f"columns/{column} holds values that are not finite")
    if parts:
        reason = columns.get(REASON)
        wanted = give_reasons(columns, join_limits(parts.values()))
        if reason is None or not np.array_equal(reason, wanted):
            yield Wrong(f"columns/{REASON} is not what the scores and their limits give")


def _passports(stored: StoredSlide) -> Iterator[Wrong]:
    """Check the names of tiles, where there are some or the writer was to write them."""
    rows = getattr(stored, "passports", None)
    if rows is None:
        if parse_json(stored.attributes.get("writer")).get("passports"):
            yield Wrong("passports are missing, its attribute writer names them")
    elif not are_passports(rows, stored.coords, stored.attributes):
        yield Wrong("passports are not those of its coordinates")


def _counts(rows: int, attributes: Mapping[str, Any], expected: Expected) -> Iterator[Wrong]:
    said = attributes.get("num_patches")
    if said != rows:
        yield Wrong(f"its attribute num_patches is {said!r}, coords has {rows} rows")
    if expected.tiles is not None and expected.tiles != rows:
        wanted = expected.tiles
        yield Wrong(f"coords has {rows} rows, its slide's record says {wanted} tiles", AGAIN)


def _all_told(patches: PatchRecord, expected: Expected) -> Iterator[Wrong]:
    found = len(patches.tiles)
    if expected.tiles not in (None, found):
        what = f"it tells of {found} tiles, its slide's record says {expected.tiles}"
        yield Wrong(what, AGAIN)


def _places(files: list[Path], coords: NDArray[np.int32]) -> Iterator[Wrong]:
    """Compare images with tiles, where their names say which is whose."""
    wanted = {(x, y) for x, y in coords[:, :2].tolist()}
    named = {(int(m[1]), int(m[2])) for f in files if (m := _PLACE.search(f.name))}
    if named or not files:
        if lost := sorted(wanted - named):
            yield Wrong(f"{len(lost)} of {len(wanted)} tiles lack an image, the first at {lost[0]}")
        if more := sorted(named - wanted):
            yield Wrong(f"{len(more)} images belong to no tile, the first at {more[0]}")
