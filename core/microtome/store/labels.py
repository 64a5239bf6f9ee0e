"""Label columns of a stored slide: their classes, what made them, and what they must be.

Their identity is their own: a changed file of outlines makes no tile or feature stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.slide.labels import CLASSES, FRACTION, LABEL, UNLABELLED, count_labels
from microtome.store.attributes import parse_json, parse_list
from microtome.store.damage import AGAIN, Wrong
from microtome.store.identity import IDENTITY, Identity, make_identity

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide

LABELS_IDENTITY, LABELS_FIELDS = "labels_identity", "labels_fields"
"""Attributes of a slide: what made its labels, as ``identity`` and ``identity_fields`` say it of
its coordinates."""

LABELS = "labels"
"""The stage of that identity, and its name in a slide's record."""

_TYPES = {LABEL: np.dtype(np.int16), FRACTION: np.dtype(np.float32)}


def label_attributes(classes: Sequence[str], identity: Identity) -> dict[str, Any]:
    """Give the attributes that tell of a slide's labels."""
    return {
        CLASSES: list(classes),
        LABELS_IDENTITY: identity.digest,
        LABELS_FIELDS: dict(identity.fields),
    }


def parse_classes(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the classes of a slide's labels, the background first; empty where it has none."""
    return tuple(map(str, parse_list(attributes.get(CLASSES))))


def tell_labels(columns: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, int]:
    """Count the tiles of each class of a slide; empty where it has no labels."""
    classes = parse_classes(attributes)
    return count_labels(columns[LABEL], classes) if LABEL in columns and classes else {}


def check_labels(stored: StoredSlide, expected: str | None) -> Iterator[Wrong]:
    """Check a slide's labels, and what made them.

    Args:
        stored: The slide.
        expected: Their identity by the slide's record, if it has one.
    """
    attributes, columns = stored.attributes, stored.columns
    digest, fields = attributes.get(LABELS_IDENTITY), parse_json(attributes.get(LABELS_FIELDS))
    if expected is not None and digest != expected:
        yield Wrong("its labels are not those that its slide's record names", AGAIN)
    if digest is not None:
        if digest != make_identity(LABELS, fields).digest:
            yield Wrong("its labels_identity is not the hash of its labels_fields")
        if fields.get("coords") != attributes.get(IDENTITY):
            yield Wrong("its labels were made for other coordinates", AGAIN)
    if digest is None and LABEL not in columns:
        return
    for name, dtype in _TYPES.items():
        if name not in columns:
            yield Wrong(f"columns/{name} is missing beside other signs of labels", AGAIN)
            return
        if columns[name].dtype != dtype:
            yield Wrong(f"columns/{name} is {columns[name].dtype}, not {dtype}")
    yield from _check_values(columns[LABEL], columns[FRACTION], parse_classes(attributes))


def _check_values(label: Any, fraction: Any, classes: Sequence[str]) -> Iterator[Wrong]:
    if not classes:
        yield Wrong(f"its attribute {CLASSES} does not name the classes of its labels")
    elif ((label < UNLABELLED) | (label >= len(classes))).any():
        yield Wrong(f"columns/{LABEL} holds labels beyond its {len(classes)} classes")
    if not ((fraction >= 0) & (fraction <= 1)).all():
        yield Wrong(f"columns/{FRACTION} holds shares that are not from 0 to 1")
