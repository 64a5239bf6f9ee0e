"""The tiles of a slide as a slide encoder takes them: where they lie, and what they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import SlideOutput
from microtome.plugin.specs import TileNeed
from microtome.run.planning.memory import free_memory
from microtome.run.planning.models import PlannedModel
from microtome.run.planning.solve import NOMINAL_MPP
from microtome.slide.bags import TileBag

MISNAMED_MPP = 0.1
"""Relative difference from 10 / magnification beyond which a nominal target is told."""

_TIMES_INPUT = 4
"""What a model takes that does not say: its input, a few times over."""

_GIB = 1 << 30
_ROUNDING = 1e-6


def make_bag(
    slide_id: str,
    coords: NDArray[Any],
    features: Mapping[str, NDArray[np.floating[Any]]],
    attributes: Mapping[str, Any],
) -> TileBag:
    """Make the bag of a slide: the one place where tiles become what slide encoders take.

    Args:
        slide_id: The slide.
        coords: (n, 2) or (n, 5) level-0 pixels, sorted by (y, x).
        features: (n, dim) each, by the key that the encoder knows them by.
        attributes: Of the slide, as it is stored or about to be.
    """
    mpp = _numbers(attributes.get("effective_mpp"))
    return TileBag(
        slide_id=slide_id,
        features=dict(features),
        coords=np.ascontiguousarray(coords[:, :2], np.int64),
        tile_size_level0=tile_side(attributes),
        size=int(attributes["patch_size"]),
        mpp=sum(mpp) / len(mpp) if mpp else None,
        slide_size=(int(attributes["level0_width"]), int(attributes["level0_height"])),
    )


def tile_side(attributes: Mapping[str, Any]) -> int:
    """Give the side of a tile in level-0 pixels, by which coordinates become a grid.

    Without overlap that is the pitch, rounded down where it is no whole number: columns that lie
    511 or 512 pixels apart stay apart when they are divided by 511, and merge by 512.

    Args:
        attributes: Of the slide.
    """
    size, step = int(attributes["patch_size"]), int(attributes.get("step", -1))
    pitch = _numbers(attributes.get("step_level0_exact"))
    if step >= size and pitch:
        return floor(min(pitch) + _ROUNDING)
    return int(attributes["patch_size_level0"])


def check_bag(planned: PlannedModel, bag: TileBag) -> list[str]:
    """See that a bag is what an encoder needs.

    Returns:
        What the user should be told: that a nominal magnification is not what it means.

    Raises:
        EncoderError: If it is not.
    """
    told = [_check_tiles(planned, need, bag) for need in planned.made.needs]
    if any(not need.overlap for need in planned.made.needs):
        _check_spacing(planned, bag)
    return [text for text in told if text]


def _check_tiles(planned: PlannedModel, need: TileNeed, bag: TileBag) -> str:
    if need.patch_size not in (None, bag.size):
        raise EncoderError(
            f"{planned.name} needs tiles of {need.patch_size} px, and {bag.slide_id} has tiles of "
            f"{bag.size} px."
        )
    wanted = need.mpp or (10 / need.magnification if need.magnification else None)
    if wanted is None or (bag.mpp is None and need.magnification is not None):
        return ""
    off = 1.0 if bag.mpp is None else abs(bag.mpp / wanted - 1)
    have = "no known resolution" if bag.mpp is None else f"{bag.mpp:.4g} µm/px"
    if need.magnification is None and off > NOMINAL_MPP:
        raise EncoderError(
            f"{planned.name} needs tiles at {wanted:g} µm/px, and those of {bag.slide_id} have "
            f"{have}. Tile it with tiler.mpp={wanted:g}."
        )
    if off <= MISNAMED_MPP:
        return ""
    return (
        f"{planned.name} was made for {wanted:g} µm/px, and this slide's tiles have {have} "
        f"({off:.0%} off): tiler.mpp={wanted:g} gives them their true size"
    )


def _check_spacing(planned: PlannedModel, bag: TileBag) -> None:
    """Refuse tiles of which two fall on one place of the grid, or lie off each other's grid."""
    cells = bag.coords // bag.tile_size_level0
    if len(np.unique(cells, axis=0)) != len(cells):
        raise EncoderError(
            f"{planned.name} takes tiles without overlap, and some of {bag.slide_id} lie closer "
            f"than their side of {bag.tile_size_level0} level-0 pixels. Tile it without overlap."
        )


def refuse_large(
    planned: PlannedModel, tiles: int, extent: tuple[int, int], *, row_bytes: int, cap: float | None
) -> None:
    """Refuse what an encoder has no memory for, before it is computed.

    Args:
        planned: The encoder.
        tiles: That it would be given.
        extent: (columns, rows) of tiles of their bounding box.
        row_bytes: Of the features of one tile.
        cap: GiB that it may take; None for what is free on its device.

    Raises:
        EncoderError: With the numbers and the way out.
    """
    estimate = getattr(planned.model, "memory", None)
    needed = _TIMES_INPUT * tiles * row_bytes if estimate is None else estimate(tiles, extent)
    free = free_memory(planned.device) if cap is None else cap * _GIB
    if free is None or needed <= free:
        return
    where = f"are free on {planned.device}" if cap is None else "bag_memory_gb allows"
    node = f"{planned.kind}.{planned.made.choice.name}"
    elsewhere = f"Use a device with more memory ({node}.device=…)"
    raise EncoderError(
        f"{planned.name} would take about {needed / _GIB:.3g} GiB for {tiles} tiles in a box of "
        f"{extent[0]} × {extent[1]}, and {free / _GIB:.3g} GiB {where}. {elsewhere}, raise "
        "bag_memory_gb if the estimate is too high, or leave specks of tissue out of the box "
        "(tissue.min_region_um2)."
    )


def check_output(planned: PlannedModel, output: SlideOutput, tiles: int) -> dict[str, Any]:
    """See that an encoder gave what its card says.

    Returns:
        By group, ``slide_features`` and what else there is: float32, finite.

    Raises:
        EncoderError: If a shape or a value is wrong.
    """
    card = planned.card
    dim = card.dim if card is not None else np.shape(output.embedding)[-1]
    wanted: dict[str, tuple[Any, Any]] = {"slide_features": (output.embedding, (dim,))}
    if output.latents is not None:
        latents = card.latents if card is not None else None
        wanted["slide_latents"] = (output.latents, latents or np.shape(output.latents))
    if output.attention is not None:
        wanted["slide_attention"] = (output.attention, (tiles,))
    return {
        group: check_array(planned, group, array, shape) for group, (array, shape) in wanted.items()
    }


def check_array(
    planned: PlannedModel, group: str, array: Any, shape: Iterable[int]
) -> NDArray[np.float32]:
    """See that an array is floating point, of its shape and finite, and give it as float32.

    Raises:
        EncoderError: If it is not.
    """
    given, shape = np.asarray(array), tuple(shape)
    if given.shape != shape or not np.issubdtype(given.dtype, np.floating):
        raise EncoderError(
            f"{planned.name} gave {group} of {given.dtype} and shape {given.shape}, where floating "
            f"point of shape {shape} was expected."
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(given, np.float32)
    if not np.isfinite(stored).all():
        raise EncoderError(
            f"{planned.name} gave {group} that are not finite, computed in {planned.precision}. "
            f"Try another: {planned.kind}.{planned.made.choice.name}.precision=fp32."
        )
    return stored


def _numbers(value: Any) -> list[float]:
    """Read a list of numbers out of an attribute; empty where it is none."""
    if value is None or isinstance(value, str):
        return []
    return [float(number) for number in np.ravel(value)]
