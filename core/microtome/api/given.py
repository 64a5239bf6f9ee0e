"""Tiles that there are already: whether they are what the settings and the model ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.api.fields import given
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.samples import Sample
from microtome.errors import ConfigError, MicrotomeError
from microtome.plugin.options import configure
from microtome.plugin.specs import EncoderCard
from microtome.run.inputs.sources import is_url
from microtome.run.planning.target import misfit
from microtome.slide import opening
from microtome.slide.types import SlideRef, TileGrid, TissueMask

if TYPE_CHECKING:
    from microtome.api.models import Model

_SAME_MPP = 0.05
"""Relative difference up to which tiles have the spacing that was asked for."""

_PLACING = {
    "PreprocessingConfig": ("tolerance", "overlap", "tissue_threshold"),
    "FilterConfig": ("ref_tile_size", "a_t", "a_h"),
}
"""Fields that say where tiles are placed."""


def are_given(settings: PreprocessingConfig) -> bool:
    """Whether tiles are there already."""
    return bool(settings.read_coordinates_from or settings.read_tiles_from)


def placing_notes(settings: PreprocessingConfig) -> Iterator[str]:
    """Say which fields change nothing, since tiles are there already."""
    if not are_given(settings):
        return
    for part in settings.sections:
        owner = type(part).__name__
        names = _PLACING.get(owner, ())
        if owner == "SegmentationConfig" and settings.read_tiles_from is not None:
            names = tuple(vars(part))
        for name in (name for name in names if name in given(part)):
            yield (
                f"{owner}.{name}={getattr(part, name)!r} changes nothing: tiles are taken as they "
                "were placed."
            )


def check_tiles(model: Model, settings: PreprocessingConfig, samples: Sequence[Sample]) -> None:
    """Hold tiles that are there against what was asked for and the model's card.

    Slides that cannot be opened, and those at URLs, are left to the run.

    Args:
        model: Whose card counts if it is one of tiles and does not take others.
        settings: What was asked for.
        samples: The slides, or their archives.

    Raises:
        ConfigError: If the tiles of a slide are others; says which there are.
    """
    asked = [
        name
        for name in (
            *("requested_tile_size_px", "requested_spacing_um"),
            *("requested_region_size_px", "region_tile_multiple"),
        )
        if getattr(settings, name) is not None
    ]
    card = None
    if model.level == "tile" and not model.allow_non_recommended_settings:
        card = model.card
    if not asked and card is None:
        return
    tiler = _tiler(model, settings)
    for sample in samples:
        if (grid := _grid(model, settings, tiler, sample)) is not None:
            _check(model, settings, card, sample.sample_id, grid)


def _tiler(model: Model, settings: PreprocessingConfig) -> Any:
    name, options = "archive", dict(settings.tiler)
    if settings.read_coordinates_from is not None:
        name = "stored"
        options["folder"] = str(Path(settings.read_coordinates_from).absolute())
    registry = model.registry
    return registry.create("tiler", name, configure(registry.find("tiler", name).spec, **options))


def _grid(
    model: Model, settings: PreprocessingConfig, tiler: Any, sample: Sample
) -> TileGrid | None:
    """Read where the tiles of a slide are; None where the run will say what is wrong."""
    if is_url(str(sample.image_path)):
        return None
    ref = SlideRef(
        path=Path(sample.image_path), slide_id=sample.sample_id, mpp=sample.spacing_at_level_0
    )
    reader = settings.backend if settings.read_tiles_from is None else opening.AUTO
    # Tiles that are there are taken whatever the tissue is.
    mask = TissueMask(array=np.ones((1, 1), np.bool_), downsample=(1.0, 1.0))
    try:
        with opening.open_slide(ref, reader=reader, registry=model.registry) as opened:
            placed: TileGrid = opened.place_tiles(tiler, mask)
    except MicrotomeError:
        return None
    return placed


def _check(
    model: Model,
    settings: PreprocessingConfig,
    card: EncoderCard | None,
    slide: str,
    grid: TileGrid,
) -> None:
    geometry = grid.geometry
    mpp = None if geometry.effective_mpp is None else sum(geometry.effective_mpp) / 2
    have = f"{geometry.size} px" + ("" if mpp is None else f" at {mpp:.4g} µm/px")
    size, spacing = settings.requested_tile_size_px, settings.requested_spacing_um
    wrong = []
    if size not in (None, geometry.size):
        wrong.append(f"requested_tile_size_px={size}")
    nominal = geometry.target_magnification
    known = [each for each in (mpp, 10 / nominal if nominal else None) if each is not None]
    if spacing is not None and not any(isclose(m, spacing, rel_tol=_SAME_MPP) for m in known):
        wrong.append(f"requested_spacing_um={spacing:g}")
    if wrong:
        raise ConfigError(
            f"The tiles of {slide} are there already, {have}, and asked for is "
            f"{' and '.join(wrong)}. Leave that out, or place tiles anew."
        )
    if settings.is_hierarchical:
        _check_regions(settings, slide, grid)
    if card is None:
        return
    target = SimpleNamespace(
        size=geometry.size, magnification=nominal, mpp=None, level=geometry.target_level
    )
    if nominal is None:
        target.mpp = geometry.target_mpp if mpp is None else mpp
    if told := misfit(model.name, card, target):
        raise ConfigError(
            f"{slide}: {told} Model.from_preset(…, allow_non_recommended_settings=True) takes "
            "them all the same."
        )


def _check_regions(settings: PreprocessingConfig, slide: str, grid: TileGrid) -> None:
    tiles = grid.region_tiles
    region, multiple = settings.requested_region_size_px, settings.region_tile_multiple
    side = None if tiles is None else tiles * grid.geometry.size
    if tiles is not None and multiple in (None, tiles) and region in (None, side):
        return
    have = "no regions" if tiles is None else f"regions of {tiles} × {tiles} tiles, {side} px"
    raise ConfigError(
        f"The tiles of {slide} are there already, in {have}. Regions are placed, not made of tiles "
        "that are there: leave region_tile_multiple and requested_region_size_px out, or give "
        "coordinates that were placed with them."
    )
