"""The reader and the grid of a run, out of how slides are to be tiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.api.preprocessing import PreprocessingConfig
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry
    from microtome.plugin.specs import EncoderCard


def reader_options(backend: str, registry: Registry) -> dict[str, Any]:
    """Give the options of a run for a backend.

    Raises:
        ConfigError: If no reader has that name; says which there are.
    """
    if backend == "auto":
        return {}
    names = registry.names("reader")
    if backend not in names:
        told = ", ".join(["auto", *names])
        raise ConfigError(
            f"PreprocessingConfig.backend={backend!r}: no reader of that name is installed. A "
            f"plugin may bring one; available are {told}."
        )
    return {"reader": backend}


def grid_options(settings: PreprocessingConfig, card: EncoderCard | None) -> dict[str, Any]:
    """Give the options of the grid, as far as they are not left to the encoders' cards.

    Args:
        settings: What was asked for.
        card: Of the model, or of what it needs; its size counts where none was asked for.

    Raises:
        ConfigError: If a region is no whole number of tiles.
    """
    options: dict[str, Any] = {}
    size = settings.requested_tile_size_px
    if size is not None:
        options["size"] = size
    if settings.requested_spacing_um is not None:
        options["mpp"] = float(settings.requested_spacing_um)
    if settings.tolerance is not None:
        options["max_upsample"] = 1.0 + settings.tolerance
    if settings.tissue_threshold is not None:
        options["min_tissue"] = float(settings.tissue_threshold)
    side = size or (card.patch_size if card is not None else None)
    if settings.overlap:
        options["step"] = round(_known(side, "overlap") * (1 - settings.overlap))
    if settings.is_hierarchical:
        options |= _region_options(settings, side)
    return options | dict(settings.tiler)


def _region_options(settings: PreprocessingConfig, side: int | None) -> dict[str, Any]:
    region, tiles = settings.requested_region_size_px, settings.region_tile_multiple
    if region is None:
        return {"region_tiles": tiles}
    side = _known(side, "requested_region_size_px")
    if region % side or (tiles or region // side) * side != region or region // side < 2:
        wanted = "" if tiles is None else f", {tiles} as region_tile_multiple says"
        raise ConfigError(
            f"requested_region_size_px={region} is not a whole number, 2 or more, of tiles of "
            f"{side} px{wanted}. Leave it out: it is requested_tile_size_px × region_tile_multiple."
        )
    return {"region_tiles": region // side, "region_size": region}


def _known(side: int | None, why: str) -> int:
    if side is None:
        raise ConfigError(
            f"{why} needs the size of tiles, which no card says: give requested_tile_size_px."
        )
    return side
