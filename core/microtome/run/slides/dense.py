"""Token grids and attention in a store: their identity, and what is written beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.plugin.specs import Transform
from microtome.run.slides.identities import list_absent
from microtome.slide.batch import crop_offset, prepared_size
from microtome.slide.types import TileGeometry
from microtome.store.identity import Identity, make_identity

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.run.planning.encoders import PlannedEncoder
    from microtome.run.planning.plan import RunPlan


def dense_keys(planned: PlannedEncoder) -> dict[str, str]:
    """Name the arrays of an encoder: ``tokens/<encoder>`` by ``tokens``."""
    return {name: f"{name}/{planned.name}" for name in planned.asked}


def list_lacking(planned: PlannedEncoder, undense: Collection[str]) -> tuple[str, ...]:
    """Name what an encoder was asked for and some store lacks.

    Args:
        planned: The encoder.
        undense: What is lacking, as ``group/name``.
    """
    return tuple(name for name, key in dense_keys(planned).items() if key in undense)


def dense_identity(name: str, plan: RunPlan, features: Identity) -> Identity:
    """Identify token grids or attention by the features that they go with.

    Args:
        name: ``"tokens"`` or ``"attention"``.
        plan: The resolved run.
        features: Of the encoder.
    """
    own = {"array": name, "dtype": plan.config.dense_dtype, "features": features.digest}
    return make_identity(name, {**features.fields, **own})


def wanted_arrays(plan: RunPlan) -> tuple[str, ...]:
    """Name every token grid and attention of a run."""
    return tuple(key for each in plan.encoders for key in dense_keys(each).values())


def list_undense(
    plan: RunPlan, stored: StoredSlide, path: Path, features: Mapping[str, Identity]
) -> tuple[str, ...]:
    """Name the token grids and attention that a store lacks.

    Args:
        plan: The resolved run.
        stored: The slide as it is there.
        path: Of it.
        features: Identities of the run's feature sets, by name.

    Raises:
        IdentityError: If what is there was made by another configuration.
    """
    wanted = {
        key: dense_identity(name, plan, features[each.name])
        for each in plan.encoders
        for name, key in dense_keys(each).items()
    }
    return list_absent(stored, path, wanted)


def dense_layout(
    geometry: TileGeometry, transform: Transform | None, grid: tuple[int, int]
) -> dict[str, Any]:
    """Say where the cells of a token grid lie on their tile, in its pixels and at level 0.

    Args:
        geometry: Of the tiles.
        transform: What makes the encoder's input of a tile: a crop leaves out a margin of it.
        grid: (height, width) of the tokens.

    Returns:
        ``token_grid`` and ``input_size`` (width, height); ``token_size`` and ``token_offset`` of
        the first cell's corner, (x, y) in pixels of the tile, and ``…_level0``. An offset below 0
        says that the input was padded.
    """
    side = geometry.size
    own = transform or Transform(resize=None, crop=None)
    resized = prepared_size((side, side), replace(own, crop=None))[::-1]
    taken = prepared_size((side, side), own)[::-1]
    cells = grid[::-1]
    scale = [side / length for length in resized]
    size = [a / b * s for a, b, s in zip(taken, cells, scale, strict=True)]
    offset = [crop_offset(r, t) * s for r, t, s in zip(resized, taken, scale, strict=True)]
    level0 = [length / side for length in geometry.size_level0]
    return {
        "token_grid": list(cells),
        "input_size": list(taken),
        "token_size": size,
        "token_offset": offset,
        "token_size_level0": [a * b for a, b in zip(size, level0, strict=True)],
        "token_offset_level0": [a * b for a, b in zip(offset, level0, strict=True)],
    }


def dense_attributes(
    name: str, shape: tuple[int, ...], features: Mapping[str, Any], *, layout: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the attributes of token grids or attention, all but the identity.

    Args:
        name: ``"tokens"`` or ``"attention"``.
        shape: Of the array.
        features: The attributes of the encoder's features: its card, device and provenance.
        layout: From `dense_layout`.
    """
    own = {"dim": shape[3]} if name == "tokens" else {"heads": shape[1]}
    shared = {key: value for key, value in features.items() if key not in ("columns", "dim")}
    return {**shared, **own, **layout}
