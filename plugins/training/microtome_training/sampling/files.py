"""A sample on disk: one Parquet file with its tiles and all that is known of their slides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from microtome.errors import InputError, StoreError, TaskError
from microtome.slide.types import TileGeometry
from microtome.store.atomic import publish, wrap_errors
from microtome.store.identity import IDENTITY, Identity
from microtome_training.names import SAMPLES
from microtome_training.stores import (
    named_slides,
    read_stores,
    refuse_absent,
    refuse_twins,
    root,
)
from microtome_training.tiles import Tiles, join

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

SUFFIX = ".parquet"
_RECORD = "microtome_sample"
"""In the metadata of the Parquet file: its classes, identity and slides, as JSON."""

_COORDS = ("x", "y", "read_w", "read_h", "level")
_ARRAYS = ("coords", "row", "label", "fraction")


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledSlide:
    """A slide that a sample was drawn from, maybe without a tile of it.

    Attributes:
        slide_id: Its name.
        patient_id: Whose it is; empty if unknown.
        source: Its file, as the run that tiled it named it.
        fingerprint: Of its content; empty where nothing says.
        identity: Digest of the identity of the coordinates that were drawn from.
        geometry: Of its tiles.
        coords: (n, 5) int32 of the tiles that were drawn, by (y, x).
        row: (n,) int64, their rows in the store that they were drawn from.
        label: (n,) int16.
        fraction: (n,) float32.
    """

    slide_id: str
    patient_id: str
    source: str
    fingerprint: str
    identity: str
    geometry: TileGeometry
    coords: NDArray[np.int32]
    row: NDArray[np.int64]
    label: NDArray[np.int16]
    fraction: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A sample of labelled tiles.

    Attributes:
        path: Its file.
        classes: What labels count; the first is the background.
        identity: Of what it was drawn from, and how.
        slides: By id, those without a tile, too.
    """

    path: Path
    classes: tuple[str, ...]
    identity: Identity
    slides: Mapping[str, SampledSlide]

    def digest(self, slide_id: str) -> str:
        """Tell a slide's tiles and labels apart from others: whatever other slides have."""
        slide = self.slides[slide_id]
        digest = hashlib.sha256(json.dumps([slide.identity, *self.classes]).encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(slide, name)).tobytes())
        return digest.hexdigest()

    def tiles(self, job: TaskJob) -> Tiles:
        """Find the sample's tiles in the stores that it was drawn from.

        Args:
            job: Whose output and tiling; if it names slides, only theirs.

        Raises:
            TaskError: If the tiles or their labels have changed since, or one slide is there under
                two names.
            StoreError: If a store cannot be read.
        """
        refs, folder = named_slides(job), root(job)
        wanted = self.slides if refs is None else refs
        if unknown := [name for name in wanted if name not in self.slides]:
            raise TaskError(f"The sample {self.path} was drawn without {unknown[0]}.")
        drawn = [name for name in wanted if len(self.slides[name].row)]
        parts = [
            self._part(part)
            for part in read_stores(job, folder, refs)
            if part.slides[0].slide_id in self.slides
        ]
        refuse_absent(folder, drawn, parts)
        refuse_twins(parts)
        said = {"name": self.path.stem, IDENTITY: self.identity.digest}
        return replace(join(parts), sample=said)

    def _part(self, part: Tiles) -> Tiles:
        slide = part.slides[0]
        drawn = self.slides[slide.slide_id]
        again = f"Draw it again: task=sample sample.name={self.path.stem} force=true."
        if slide.identity != drawn.identity:
            raise TaskError(
                f"The sample {self.path} was drawn from other tiles of {slide.slide_id} than "
                f"{slide.store} has. {again}"
            )
        found = part.take(drawn.row)
        if part.classes != self.classes or (found.label != drawn.label).any():
            raise TaskError(
                f"The labels of {slide.slide_id} have changed since the sample {self.path} was "
                f"drawn. {again}"
            )
        if slide.patient_id or not drawn.patient_id:
            return found
        ref = replace(slide.ref, extra={**slide.ref.extra, "patient_id": drawn.patient_id})
        return replace(found, slides=(replace(slide, ref=ref),))


def sample_path(job: TaskJob, name: str) -> Path:
    """Say where a sample is: by its name, or what is a path already.

    Raises:
        TaskError: If there are no tiles.
        ConfigError: If the name leads out of the output.
    """
    if name.endswith(SUFFIX) or "/" in name:
        return Path(name)
    return root(job) / SAMPLES / f"{name}{SUFFIX}"


def read_sample(job: TaskJob, name: str) -> Sample:
    """Read a sample by its name, or its path.

    Raises:
        InputError: If there is none.
        StoreError: If it cannot be read.
    """
    path = sample_path(job, name)
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob(f"*{SUFFIX}"))
        told = f"There are {', '.join(there)}." if there else "Draw one first, with task=sample."
        raise InputError(f"{path} is not there. {told}")
    return open_sample(path)


def open_sample(path: Path) -> Sample:
    """Read a sample's file.

    Raises:
        StoreError: If it cannot be read, or is no sample.
    """
    try:
        table = pq.read_table(path)
        record = json.loads((table.schema.metadata or {})[_RECORD.encode()])
        return _parse(path, table, record)
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is not a sample that task=sample wrote, or is damaged "
            f"({type(error).__name__}: {error}). Draw it again."
        ) from error


def write_sample(path: Path, tiles: Tiles, identity: Identity) -> None:
    """Write a sample.

    Args:
        path: Its final name.
        tiles: Of all its slides.
        identity: Of what it was drawn from, and how.

    Raises:
        StoreError: If it cannot be written.
    """
    names = np.array([slide.slide_id for slide in tiles.slides], object)
    patients = np.array([slide.patient_id for slide in tiles.slides], object)
    classes = np.array(tiles.classes, object)
    table = pa.table(
        {
            "key": tiles.keys(),
            "slide_id": names[tiles.slide],
            "patient_id": patients[tiles.slide],
            **{name: tiles.coords[:, n] for n, name in enumerate(_COORDS)},
            "row": tiles.row,
            "label": tiles.label,
            "label_fraction": tiles.fraction,
            "class": classes[tiles.label],
        }
    )
    record = {
        "classes": list(tiles.classes),
        IDENTITY: identity.digest,
        "identity_fields": dict(identity.fields),
        "slides": {slide.slide_id: _describe(tiles, n) for n, slide in enumerate(tiles.slides)},
    }
    told = table.replace_schema_metadata({_RECORD: json.dumps(record, ensure_ascii=False)})
    with publish(path) as private, wrap_errors(path):
        pq.write_table(told, private)


def _describe(tiles: Tiles, number: int) -> dict[str, Any]:
    slide = tiles.slides[number]
    return {
        "patient_id": slide.patient_id,
        "source": slide.source,
        "fingerprint": slide.fingerprint,
        IDENTITY: slide.identity,
        "geometry": asdict(slide.geometry),
    }


def _parse(path: Path, table: Any, record: Mapping[str, Any]) -> Sample:
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    coords = np.stack([columns[name] for name in _COORDS], axis=1).astype(np.int32)
    arrays = {
        "coords": coords,
        "row": columns["row"].astype(np.int64),
        "label": columns["label"].astype(np.int16),
        "fraction": columns["label_fraction"].astype(np.float32),
    }
    slides = dict(_slides(record["slides"], columns["slide_id"], arrays))
    identity = Identity(str(record[IDENTITY]), dict(record["identity_fields"]))
    classes = tuple(map(str, record["classes"]))
    return Sample(path=path, classes=classes, identity=identity, slides=slides)


def _slides(
    told: Mapping[str, Any], names: NDArray[Any], arrays: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, SampledSlide]]:
    order = np.argsort(names.astype(str), kind="stable")
    ordered = names[order].astype(str)
    for name, facts in told.items():
        rows = order[np.searchsorted(ordered, name) : np.searchsorted(ordered, name, "right")]
        yield (
            name,
            SampledSlide(
                slide_id=name,
                patient_id=str(facts["patient_id"]),
                source=str(facts["source"]),
                fingerprint=str(facts["fingerprint"]),
                identity=str(facts[IDENTITY]),
                geometry=_geometry(facts["geometry"]),
                **{key: array[rows] for key, array in arrays.items()},
            ),
        )


def _geometry(told: Mapping[str, Any]) -> TileGeometry:
    tuples: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in told.items()
    }
    return TileGeometry(**tuples)
