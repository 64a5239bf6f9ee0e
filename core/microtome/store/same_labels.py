"""Outputs of one slide that hold labels, and which of them have others than the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import MicrotomeError
from microtome.plugin.registry import Registry
from microtome.plugin.specs import WriterSpec
from microtome.slide.labels import LABEL, UNLABELLED
from microtome.store.attributes import parse_fields, read_images_record
from microtome.store.damage import Wrong
from microtome.store.identity import IDENTITY
from microtome.store.labels import parse_classes
from microtome.store.patches import LABELLED, PatchRecord


@dataclass(frozen=True, eq=False, kw_only=True)
class TileLabels:
    """Labels of a slide's tiles.

    Attributes:
        coords_identity: Digest of the identity of the tiles.
        coords: (n, 5).
        labels: (n,) index into ``classes``, -1 for none.
        classes: Their names.
    """

    coords_identity: object
    coords: NDArray[np.int32]
    labels: NDArray[np.int16]
    classes: tuple[str, ...]

    @classmethod
    def of_columns(
        cls,
        coords_identity: object,
        coords: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> TileLabels | None:
        """Take them from columns of tiles; None where there is none of labels."""
        classes = parse_classes(attributes)
        if LABEL not in columns or not classes or len(columns[LABEL]) != len(coords):
            return None
        labels = np.asarray(columns[LABEL], np.int16)
        return cls(coords_identity=coords_identity, coords=coords, labels=labels, classes=classes)

    def difference(self, other: TileLabels) -> str:
        """Say how these labels differ from others of the same tiles, half a sentence.

        Returns:
            Nothing where they do not, or where the tiles are others.
        """
        if self.coords_identity != other.coords_identity:
            return ""
        if self.classes != other.classes:
            return f"its classes are {', '.join(self.classes)}, not {', '.join(other.classes)}"
        ours, theirs = self._by_place(), other._by_place()
        changed = [place for place in ours if theirs.get(place, ours[place]) != ours[place]]
        if not changed:
            return ""
        return f"{len(changed)} of {len(ours)} tiles have another label, {changed[0]} for one"

    def _by_place(self) -> dict[tuple[int, int], int]:
        places = zip(self.coords[:, :2].tolist(), self.labels.tolist(), strict=True)
        return {(x, y): label for (x, y), label in places}


def read_labels(path: Path, spec: WriterSpec, registry: Registry) -> TileLabels | None:
    """Read the labels that an output of a slide holds.

    Args:
        path: The output.
        spec: What wrote it.
        registry: The writers.

    Returns:
        None where it holds none, or cannot be read: what is wrong then is told elsewhere.
    """
    if spec.consumes not in ("features", LABELLED) or not path.exists():
        return None
    try:
        with registry.blame("writer", spec.name, "used to read it"):
            writer = registry.create("writer", spec.name)
            if spec.consumes == "features":
                with writer.open_stored(path) as stored:
                    attributes, columns = stored.attributes, stored.columns
                    identity = attributes.get(IDENTITY)
                    return TileLabels.of_columns(identity, stored.coords, columns, attributes)
            record = read_images_record(path, spec, writer)
            return _of_patches(PatchRecord.parse(record, path))
    except MicrotomeError:
        return None


def _of_patches(told: PatchRecord) -> TileLabels:
    none = np.full(len(told.unlabelled), UNLABELLED, np.int16)
    return TileLabels(
        coords_identity=parse_fields(told.attributes).get("coords_identity"),
        coords=np.concatenate([told.coords, told.unlabelled]),
        labels=np.concatenate([told.labels, none]),
        classes=told.classes,
    )


def differing_labels(
    outputs: Mapping[Path, WriterSpec], named: Collection[Path], registry: Registry
) -> Iterator[tuple[Path, Wrong]]:
    """Find the outputs of a slide that have other labels than the last run gave.

    Nothing is read of a slide without a patch store.

    Args:
        outputs: Of the slide, with what wrote each.
        named: Those that the slide's record names: they are of the last run.
        registry: The writers.
    """
    if not any(spec.consumes == LABELLED for spec in outputs.values()):
        return
    ranked = sorted(outputs, key=lambda p: (p not in named, outputs[p].consumes == LABELLED, p))
    held = {path: read_labels(path, outputs[path], registry) for path in ranked}
    labelled = {path: labels for path, labels in held.items() if labels is not None}
    right = next(iter(labelled), None)
    for path, labels in labelled.items():
        if right is not None and (told := labels.difference(labelled[right])):
            what = f"its labels are not those of {right}: {told}"
            remedy = f"Run again with writer={outputs[path].name} and the same annotations"
            yield path, Wrong(what, remedy)


def stale_labels(
    outputs: Mapping[Path, WriterSpec], now: TileLabels, registry: Registry
) -> list[str]:
    """Tell of outputs of a slide that a run leaves as they are, with other labels than it gives.

    Args:
        outputs: Of writers that the run does not have.
        now: The labels.
        registry: The writers.
    """
    told = []
    for path, spec in outputs.items():
        labels = read_labels(path, spec, registry)
        if labels is not None and labels.difference(now):
            told.append(f"{path} was left with labels of before: renew it with writer={spec.name}")
    return told
