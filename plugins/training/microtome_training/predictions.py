"""Predictions of tiles as a table, in a file that anybody can open and nobody can run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.store.atomic import publish, wrap_errors

if TYPE_CHECKING:
    from microtome_training.tiles import Tiles

UNKNOWN = -1
"""The label of a tile that has none."""

FORMAT = 1
THRESHOLD = 0.5

_KEY = b"microtome"
_PROB = "prob_"
_PLACE = ("x", "y", "read_w", "read_h", "level")
_TEXT = ("slide_id", "patient_id", "split")
_SUM_ERROR = 1e-2
"""How far probabilities of a tile may be from 1 in sum: half precision is 0.1 % off."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """What a model says of tiles, beside what is known of them.

    Attributes:
        slide_ids: The slides, each once.
        patient_ids: Whose each slide is; empty where unknown.
        splits: What each slide is to the model: ``train``, ``val``, ``test``, or empty.
        slide: (n,) int32, the place of each tile's slide in ``slide_ids``.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        label: (n,) int16 index into ``classes``; -1 where unknown.
        probabilities: (n, C) float32, each row 1 in sum.
        classes: Their names, two or more; the first is the background.
        model: What made them, in plain values: ``digest``, ``seed``, what else is told.
        sources: Each slide's file as its run named it, where known.
        labelled: By slide id, what the labels are of: ``coords``, the identity of its tiles, and
            ``labels``, the digest of all of their labels, empty for a slide without; where known.
    """

    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    splits: tuple[str, ...]
    slide: NDArray[np.int32]
    coords: NDArray[np.int32]
    label: NDArray[np.int16]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    labelled: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no table of predictions.

        Raises:
            TaskError: Saying what is wrong.
        """
        shapes = self.slide.shape, self.coords.shape, self.label.shape, self.probabilities.shape
        count = len(self.slide)
        if shapes != ((count,), (count, 5), (count,), (count, len(self.classes))):
            raise TaskError(f"Predictions of {len(self.classes)} classes have shapes {shapes}.")
        if len({len(self.slide_ids), len(self.patient_ids), len(self.splits)}) > 1:
            raise TaskError("Predictions need a patient and a split for each slide, or ''.")
        _check_names("class", self.classes)
        _check_names("slide", self.slide_ids)
        if len(self.classes) < 2:
            raise TaskError(f"Predictions need two classes or more, not {list(self.classes)}.")
        self._check_values()

    def _check_values(self) -> None:
        probabilities, label = self.probabilities, self.label
        bad = ~(np.isfinite(probabilities) & (probabilities >= 0)).all(1)
        bad |= ~(np.abs(probabilities.sum(1, dtype=np.float64) - 1) <= _SUM_ERROR)
        if bad.any():
            raise TaskError(
                f"{self._name(int(bad.argmax()))}: {probabilities[bad.argmax()].tolist()} are no "
                f"probabilities, as of {int(bad.sum())} tiles: they must be from 0 to 1, and 1 in "
                "sum."
            )
        wrong = (label < UNKNOWN) | (label >= len(self.classes))
        if wrong.any():
            row = int(wrong.argmax())
            raise TaskError(
                f"{self._name(row)}: label {label[row]} is none of the {len(self.classes)} classes "
                f"{', '.join(self.classes)}, nor -1 for unknown."
            )

    def _name(self, row: int) -> str:
        x, y = self.coords[row, :2]
        return f"Tile {row} ({self.slide_ids[self.slide[row]]} at x={x}, y={y})"

    @classmethod
    def of_tiles(
        cls,
        tiles: Tiles,
        probabilities: NDArray[np.float32],
        *,
        classes: Sequence[str],
        splits: Mapping[str, str],
        model: Mapping[str, Any],
    ) -> Self:
        """Put a model's probabilities beside its tiles.

        Args:
            tiles: n tiles; where they are labelled with the model's classes in another order, or
                not all of them, labels go by name.
            probabilities: (n, C) float32.
            classes: The model's.
            splits: By slide id; of no split if left out.
            model: What made them, in plain values.

        Raises:
            TaskError: If the tiles have a class that the model does not know.
        """
        present = np.unique(tiles.slide)
        slides = [tiles.slides[index] for index in present]
        ids = tuple(slide.slide_id for slide in slides)
        return cls(
            slide_ids=ids,
            patient_ids=tuple(slide.patient_id for slide in slides),
            splits=tuple(splits.get(name, "") for name in ids),
            slide=np.searchsorted(present, tiles.slide).astype(np.int32),
            coords=np.asarray(tiles.coords, np.int32),
            label=_translate_all(tiles.label, tiles.classes, classes),
            probabilities=np.asarray(probabilities, np.float32),
            classes=tuple(classes),
            model=dict(model),
            sources={slide.slide_id: slide.source for slide in slides if slide.source},
            labelled={
                slide.slide_id: {"coords": slide.identity, "labels": slide.labels}
                for slide in slides
            },
        )

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.slide)

    @property
    def score(self) -> NDArray[np.float32]:
        """How probably a tile is not of the background, (n,)."""
        probabilities = self.probabilities
        return probabilities[:, 1] if len(self.classes) == 2 else 1 - probabilities[:, 0]

    def predicted(self, threshold: float = THRESHOLD) -> NDArray[np.int16]:
        """Give the class of each tile, (n,) int16.

        Of two classes the second one from ``threshold`` on, of more the most probable one.
        """
        is_binary = len(self.classes) == 2
        shares = self.probabilities
        called = shares[:, 1] >= threshold if is_binary else shares.argmax(1)
        return np.asarray(called, np.int16)

    def of_splits(self, *names: str) -> Predictions:
        """Give the tiles of slides of some splits, in order of slide, y and x.

        No other slides are left, and no order in which tiles came.
        """
        chosen = [i for i, split in enumerate(self.splits) if split in names]
        chosen.sort(key=lambda index: self.slide_ids[index])
        place = np.full(len(self.slide_ids), -1, np.int32)
        place[chosen] = np.arange(len(chosen))
        slide = place[self.slide]
        x, y, *rest = self.coords.T
        order = np.lexsort((*rest, x, y, slide))
        order = order[slide[order] >= 0]
        ids = tuple(self.slide_ids[index] for index in chosen)
        return replace(
            self,
            slide_ids=ids,
            patient_ids=tuple(self.patient_ids[index] for index in chosen),
            splits=tuple(self.splits[index] for index in chosen),
            slide=slide[order],
            coords=self.coords[order],
            label=self.label[order],
            probabilities=self.probabilities[order],
            sources={name: self.sources[name] for name in ids if name in self.sources},
            labelled={name: self.labelled[name] for name in ids if name in self.labelled},
        )

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Predictions:
        """Give some of the tiles, by a mask or by index; all slides stay."""
        names = ("slide", "coords", "label", "probabilities")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def write_predictions(path: Path, predictions: Predictions, *, csv: bool = False) -> None:
    """Write predictions, atomically, in order of slide, y and x.

    Args:
        path: The final name of the Parquet file.
        predictions: Of any splits.
        csv: Whether the same table goes beside it as CSV.

    Raises:
        StoreError: If it cannot be written.
    """
    table = to_table(predictions.of_splits(*set(predictions.splits)))
    with publish(path) as private, wrap_errors(path):
        pq.write_table(table, private, compression="zstd")
    if csv:
        beside = path.with_suffix(".csv")
        with publish(beside) as private, wrap_errors(beside):
            pacsv.write_csv(table, private)


def to_table(predictions: Predictions) -> pa.Table:
    """Give predictions as an Arrow table, with what they are in its schema's metadata."""
    texts = (predictions.slide_ids, predictions.patient_ids, predictions.splits)
    columns: dict[str, Any] = {
        name: pa.array(text, pa.string()).take(pa.array(predictions.slide)).dictionary_encode()
        for name, text in zip(_TEXT, texts, strict=True)
    }
    columns |= dict(zip(_PLACE, np.asarray(predictions.coords, np.int32).T, strict=True))
    columns["label"] = np.asarray(predictions.label, np.int16)
    for number, name in enumerate(predictions.classes):
        columns[_PROB + name] = np.asarray(predictions.probabilities[:, number], np.float32)
    columns["pred"] = predictions.predicted()
    about = {
        "format": FORMAT,
        "classes": list(predictions.classes),
        "model": dict(predictions.model),
        "sources": dict(predictions.sources),
        "labelled": {name: dict(each) for name, each in predictions.labelled.items()},
    }
    text = json.dumps(about, ensure_ascii=True, sort_keys=True)
    return pa.table(columns).replace_schema_metadata({_KEY: text.encode()})


def read_predictions(path: Path) -> Predictions:
    """Read predictions that `write_predictions` wrote, or anybody's with its columns.

    Raises:
        TaskError: If the file is not there, is no Parquet, lacks a column, or its values are no
            predictions; says which.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise TaskError(f"{path}: no such predictions. task=predict makes them.") from None
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"{path} cannot be read as Parquet: {error}.") from error
    try:
        return _parse(table)
    except TaskError as error:
        raise TaskError(f"{path}: {TaskError.__str__(error)}") from error


def _parse(table: pa.Table) -> Predictions:
    about = _about(table.schema.metadata or {})
    # Of files without metadata, the columns' order is the classes'.
    found = [name.removeprefix(_PROB) for name in table.column_names if name.startswith(_PROB)]
    classes = tuple(map(str, about.get("classes", found)))
    needed = [*_TEXT, *_PLACE, "label", *(_PROB + name for name in classes)]
    missing = [name for name in needed if name not in table.column_names]
    if missing or not classes:
        lacks = ", ".join(missing) or f"{_PROB}<class>"
        raise TaskError(f"it lacks the columns {lacks}; it has {', '.join(table.column_names)}.")
    slide_ids, slide = _encode(table, "slide_id")
    whole = {name: _numbers(table, name, np.int32) for name in _PLACE}
    shares = [_numbers(table, _PROB + name, np.float32) for name in classes]
    return Predictions(
        slide_ids=slide_ids,
        patient_ids=_by_slide(table, "patient_id", slide_ids, slide),
        splits=_by_slide(table, "split", slide_ids, slide),
        slide=slide,
        coords=np.stack(list(whole.values()), axis=1),
        label=_numbers(table, "label", np.int16),
        probabilities=np.stack(shares, axis=1),
        classes=classes,
        model=dict(about.get("model", {})),
        sources=dict(about.get("sources", {})),
        labelled=dict(about.get("labelled", {})),
    )


def _about(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if _KEY not in metadata:
        return {}
    try:
        about = json.loads(metadata[_KEY])
        number = int(about["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"its metadata {_KEY.decode()!r} is damaged ({error}).") from error
    if number > FORMAT:
        raise TaskError(f"it has format {number}; this microtome knows {FORMAT}. Update it.")
    return dict(about)


def _encode(table: pa.Table, name: str) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Give a column of text as its values, each once, and the place of each row's."""
    column = table[name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise TaskError(f"the column {name} holds {column.type}, not text.")
    if column.null_count:
        raise TaskError(f"the column {name} is empty in {column.null_count} rows.")
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = tuple(encoded.dictionary.to_pylist())
    return values, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)


def _by_slide(
    table: pa.Table, name: str, slide_ids: Sequence[str], slide: NDArray[np.int32]
) -> tuple[str, ...]:
    """Give a column's value of each slide, of which there must be one."""
    values, place = _encode(table, name)
    first = np.zeros(len(slide_ids), np.int32)
    first[slide[::-1]] = place[::-1]
    other = first[slide] != place
    if other.any():
        row = int(other.argmax())
        one, two = values[first[slide[row]]], values[place[row]]
        raise TaskError(f"{slide_ids[slide[row]]} has two values of {name}: {one!r} and {two!r}.")
    return tuple(values[index] for index in first) if len(slide) else ()


def _numbers(table: pa.Table, name: str, kind: type[np.generic]) -> NDArray[Any]:
    column = table[name]
    wanted = pa.from_numpy_dtype(np.dtype(kind))
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if not is_number or column.null_count:
        empty = f"is empty in {column.null_count} rows" if is_number else f"holds {column.type}"
        raise TaskError(f"the column {name} {empty}; it must hold {wanted} in every row.")
    try:
        # Doubles may lose digits as float32, numbers of places may not lose anything.
        cast = column.cast(wanted, safe=not pa.types.is_floating(wanted))
    except pa.ArrowInvalid as error:
        raise TaskError(f"the column {name} does not hold {wanted}: {error}.") from error
    return np.asarray(cast.to_numpy())


def translate(
    label: NDArray[np.int16], old: Sequence[str], new: Sequence[str]
) -> NDArray[np.int16]:
    """Give labels by another list of classes, by name: (n,) int16, -1 for classes not in it."""
    place = {name: number for number, name in enumerate(new)}
    table = np.array([*(place.get(name, UNKNOWN) for name in old), UNKNOWN], np.int16)
    translated: NDArray[np.int16] = table[label]  # -1 is the last
    return translated


def _translate_all(
    label: NDArray[np.int16], old: Sequence[str], new: Sequence[str]
) -> NDArray[np.int16]:
    """Translate labels of which none may be lost.

    Raises:
        TaskError: If one is of a class that is not in the other list.
    """
    translated = translate(label, old, new)
    lost = np.unique(label[(label >= 0) & (translated < 0)]).tolist()
    if lost:
        raise TaskError(
            f"Tiles are labelled {', '.join(old[index] for index in lost)}, which the model does "
            f"not know: its classes are {', '.join(new)}. Label them with the model's "
            "labels.classes."
        )
    return translated


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            told = f"is named twice: {name!r}" if name else "has no name"
            raise TaskError(f"A {what} of the predictions {told}.")
        if not name.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in name):
            raise TaskError(
                f"The {what} {name!r} is no text that a table can hold: give it another name, a "
                "slide by the column slide_id of a manifest."
            )
        seen.add(name)
