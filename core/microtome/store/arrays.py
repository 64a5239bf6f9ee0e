"""Arrays beside the features of a slide, each ``group/name``: what they are called, who has them.

A writer and a stored slide need not know arrays: what asks for them goes through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from microtome.errors import StoreError

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide, StoreWriter

FEATURES = "features"
"""Group of the feature sets, which every store has."""

RESERVED = (FEATURES, "coords", "columns", "passports")
"""Names at the top of a store that are no groups of arrays."""

REGION_INDEX, REGION_COORDS = "regions/index", "regions/coords"
"""(R, T) rows of the tiles of each region, and (R, 5) where the region lies."""

PREDICTIONS = "predictions"
"""Group of a classifier's probabilities: a row for each tile, a column for each class."""

BY_TILE = ("tokens", "attention", "slide_attention", PREDICTIONS)
"""Groups whose arrays have a row for each tile."""

BY_REGION = ("regions", "region_features")
"""Groups whose arrays have a row for each region."""

BY_SLIDE = ("slide_features", "slide_latents")
"""Groups whose arrays are a slide's as a whole."""

PATIENT_FEATURES = "patient_features"
"""Group of what is stored of a patient."""


def array_names(stored: StoredSlide, group: str = "") -> list[str]:
    """List the arrays of a stored slide as ``group/name``; none where its store knows no arrays.

    Args:
        stored: The slide.
        group: Those of one group; all if empty.
    """
    names = getattr(stored, "array_names", None)
    return [] if names is None else sorted(names(group))


def keeps_arrays(writer: StoreWriter) -> bool:
    """Whether a writer keeps arrays beside features."""
    return hasattr(writer, "add_array")


def refuse_arrays(writer: StoreWriter, path: object, keys: Iterable[str]) -> None:
    """Refuse arrays that a writer cannot keep.

    Raises:
        StoreError: If there are some.
    """
    keys = sorted(keys)
    if keys and not keeps_arrays(writer):
        raise StoreError(
            f"{path}: its writer ({type(writer).__name__}) keeps no arrays beside features, and "
            f"is given {', '.join(keys)}. Choose a writer that does: writer=hdf5 or writer=zarr."
        )


def is_name(name: str) -> bool:
    """Whether a column, feature set or array can be called so."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


def split_key(key: str) -> tuple[str, str]:
    """Split ``group/name``.

    Raises:
        StoreError: If it is no such key, or the group is not one of arrays.
    """
    group, slash, name = key.partition("/")
    if not slash or not is_name(group) or not is_name(name):
        raise StoreError(f"{key!r} cannot be the name of an array. It is named group/name.")
    if group in RESERVED:
        raise StoreError(
            f"{key!r} cannot be the name of an array: a store keeps its own {group} there. "
            "Use another group."
        )
    return group, name


def row_count(key: str, counts: Mapping[str, int]) -> int | None:
    """Give how many rows an array must have; None where anything goes.

    Args:
        key: ``group/name``.
        counts: ``"tiles"``, and ``"regions"`` where that is known.
    """
    group = key.partition("/")[0]
    if group in BY_TILE:
        return counts["tiles"]
    return counts.get("regions") if group in BY_REGION else None
