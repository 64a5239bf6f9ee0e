"""The tiles of a slide as a slide encoder takes them: where they lie, and what they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.plugin.protocols import SlideOutput
from microtome.plugin.specs import TileNeed
from microtome.run.planning.devices import describe_way_out
from microtome.run.planning.memory import free_memory
from microtome.run.planning.models import PlannedModel
from microtome.run.planning.needs import NOMINAL_MPP, describe_need
from microtome.slide.bags import TileBag

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
    nominal = _numbers(attributes.get("target_magnification"))
    other = (attributes.get(name) for name in ("target_mpp", "target_level"))
    is_nominal = not any(_numbers(value) for value in other)
    step = int(attributes.get("step", -1))
    return TileBag(
        slide_id=slide_id,
        features=dict(features),
        coords=np.ascontiguousarray(coords[:, :2], np.int64),
        tile_size_level0=tile_side(attributes),
        size=int(attributes["patch_size"]),
        mpp=sum(mpp) / len(mpp) if mpp else None,
        slide_size=(int(attributes["level0_width"]), int(attributes["level0_height"])),
        step=step if step > 0 else None,
        magnification=nominal[0] if is_nominal and nominal else None,
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
    """See that tiles are what an encoder needs; of its features nothing is looked at.

    Returns:
        What the user should be told: that a nominal magnification is not what it means.

    Raises:
        EncoderError: If they are not.
    """
    told = [_check_tiles(planned, need, bag) for need in planned.made.needs]
    if any(not need.overlap for need in planned.made.needs):
        _check_spacing(planned, bag)
    return [text for text in told if text]


def _check_tiles(planned: PlannedModel, need: TileNeed, bag: TileBag) -> str:
    if need.patch_size not in (None, bag.size):
        raise _misfit(planned, need, bag, f"{bag.size} px", f"tiler.size={need.patch_size}")
    wanted = need.mpp or (10 / need.magnification if need.magnification else None)
    if wanted is None:
        return ""
    off = None if bag.mpp is None else abs(bag.mpp / wanted - 1)
    is_named = need.magnification is not None and bag.magnification == need.magnification
    if not is_named and (off is None or off > NOMINAL_MPP):
        have = "no known resolution" if bag.mpp is None else f"{bag.mpp:.4g} µm/px"
        if bag.magnification is not None:
            have += f", {bag.magnification:g}x by name"
        raise _misfit(planned, need, bag, have, f"tiler.mpp={wanted:g}")
    if off is None or off <= NOMINAL_MPP:
        return ""
    return (
        f"{planned.name} was made for {wanted:g} µm/px, and this slide's tiles have "
        f"{bag.mpp:.4g} µm/px ({off:.0%} off): tiler.mpp={wanted:g} gives them their true size"
    )


def _check_spacing(planned: PlannedModel, bag: TileBag) -> None:
    """Refuse tiles that leave gaps by their pitch, or of which two overlap wherever they lie."""
    need = next(need for need in planned.made.needs if not need.overlap)
    if bag.step not in (None, bag.size):
        have = f"{bag.size} px, {bag.step} px apart"
        raise _misfit(planned, need, bag, have, f"tiler.step={bag.size}")
    if _overlap(bag.coords, bag.tile_size_level0):
        have = f"a side of {bag.tile_size_level0} level-0 pixels, and some lie closer"
        raise _misfit(planned, need, bag, have, f"tiler.step={bag.size}")


def _overlap(coords: NDArray[np.int64], side: int) -> bool:
    """Tell whether two of these squares overlap, however they lie."""
    cells = coords // side + 1  # a margin, so that no neighbour wraps into the next row
    width = int(cells[:, 0].max(initial=0)) + 2
    keys = cells[:, 1] * width + cells[:, 0]
    order = np.argsort(keys)
    keys, coords = keys[order], coords[order]
    if (np.diff(keys) == 0).any():
        return True
    for step in (1, width - 1, width, width + 1):
        found = np.minimum(np.searchsorted(keys, keys + step), max(len(keys) - 1, 0))
        apart = np.abs(coords[found] - coords).max(1)
        if ((keys[found] == keys + step) & (apart < side)).any():
            return True
    return False


def _misfit(
    planned: PlannedModel, need: TileNeed, bag: TileBag, have: str, way_out: str
) -> EncoderError:
    return EncoderError(
        f"{planned.name} needs {describe_need(need)}, and the tiles of {bag.slide_id} have {have}. "
        f"Tile it with {way_out}."
    )


def refuse_large(
    planned: PlannedModel, tiles: int, extent: tuple[int, int], *, row_bytes: int, cap: float | None
) -> None:
    """Refuse what an encoder has no memory for, before it is computed.

    Args:
        planned: The encoder.
        tiles: That it would be given.
        extent: (columns, rows) of tiles of their bounding box.
        row_bytes: Of the features of one tile, all of which are in main memory.
        cap: GiB that it may take with them; None for what is free there and on its device.

    Raises:
        EncoderError: With the numbers and the way out.
    """
    estimate = getattr(planned.model, "memory", None)
    held = tiles * row_bytes
    taken = _TIMES_INPUT * held if estimate is None else estimate(tiles, extent)
    what = f"{tiles} tiles in a box of {extent[0]} × {extent[1]}"
    host = getattr(planned.model, "host_memory", None)
    if host is not None and cap is None and planned.device != "cpu":
        held += host(tiles, extent)
    _refuse_beyond(planned, what, held=held, taken=taken, cap=cap)


def refuse_patient(
    planned: PlannedModel,
    slides: Sequence[tuple[int, tuple[int, int]]],
    read: int,
    *,
    cap: float | None,
) -> None:
    """Refuse what a patient encoder has no memory for, before its tiles are read.

    Args:
        planned: The encoder.
        slides: Tiles and extent of each, as of `refuse_large`.
        read: Bytes of the features of them all.
        cap: As of `refuse_large`.

    Raises:
        EncoderError: With the numbers and the way out.
    """
    estimate = getattr(planned.model, "memory", None)
    taken = _TIMES_INPUT * read if estimate is None else estimate(slides)
    tiles = [count for count, _ in slides]
    what = f"{sum(tiles)} tiles of {len(tiles)} slides, {max(tiles)} of them of one"
    _refuse_beyond(planned, what, held=read, taken=taken, cap=cap)


def _refuse_beyond(
    planned: PlannedModel, what: str, *, held: int, taken: int, cap: float | None
) -> None:
    """Refuse what there is no memory for: features in main memory, the rest on the device."""
    if cap is not None or planned.device == "cpu":
        needs = {planned.device: held + taken}
    else:
        needs = {"cpu": held, planned.device: taken}
    for device, needed in needs.items():
        free = free_memory(device) if cap is None else cap * _GIB
        if free is None or needed <= free:
            continue
        where = f"are free on {device}" if cap is None else "bag_memory_gb allows"
        node = f"{planned.kind}.{planned.made.choice.name}"
        elsewhere = f"Use a device with more memory ({node}.device=…)"
        raise EncoderError(
            f"{planned.name} would take about {needed / _GIB:.3g} GiB for {what}, and "
            f"{free / _GIB:.3g} GiB {where}. {elsewhere}, raise bag_memory_gb if the estimate is "
            "too high, or leave specks of tissue out of the box (tissue.min_region_um2)."
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
            f"{planned.name} gave {group} that are not finite, computed in {planned.precision}: "
            f"{describe_way_out(planned.precision, f'{planned.kind}.{planned.made.choice.name}')}"
        )
    return stored


def _numbers(value: Any) -> list[float]:
    """Read a list of numbers out of an attribute; empty where it is none."""
    if value is None or isinstance(value, str):
        return []
    return [float(number) for number in np.ravel(value)]
