"""What a run's tiles are to be: the user's word, else the encoders' cards, else 256 px at 20x."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError
from microtome.plugin.specs import EncoderCard
from microtome.slide import DEFAULT_MAGNIFICATION, DEFAULT_SIZE
from microtome.store.identity import SPEC_FIELDS

if TYPE_CHECKING:
    from microtome.run.settings import RunConfig
    from microtome.slide.types import TileGeometry

_SAME_MPP = 0.05
"""Relative difference up to which a tiling's mpp is the one that a card recommends."""


def has_target(options: Any) -> bool:
    """Say whether a tiler follows the run's target, as `TilerSpec` describes."""
    return all(hasattr(options, name) for name in ("size", "magnification", "mpp"))


def settle_target(options: Any, cards: Mapping[str, EncoderCard]) -> tuple[Any, list[str]]:
    """Fill in what the user left open of a tiler's size and resolution.

    Args:
        options: The tiler's configuration; see `has_target`.
        cards: The encoders' cards by name.

    Returns:
        The configuration with ``size`` and one of ``magnification``, ``mpp`` and ``level``, and
        what the user should be told: what was filled in, and which encoder was made for other
        tiles.

    Raises:
        ConfigError: If several targets are given.
    """
    _check_one(options)
    advice = [card for card in cards.values() if card.patch_size is not None]
    filled: dict[str, Any] = {}
    whose = "what the encoders' cards say" if advice else "the default"
    options = _sized_by_region(options)
    if options.size is None:
        filled["size"] = _agreed([card.patch_size for card in advice])
    if not _targets(options):
        nominal = _agreed([card.magnification for card in advice])
        if nominal is None:
            filled["mpp"] = _agreed([card.mpp for card in advice])
        if filled.get("mpp") is None:
            filled["magnification"] = nominal
    if advice and None in filled.values():
        whose = "the default, since the encoders' cards differ"
    if filled.get("size", 0) is None:
        filled["size"] = DEFAULT_SIZE
    if filled.get("magnification", 0) is None:
        filled["magnification"] = DEFAULT_MAGNIFICATION
    settled = replace(options, **filled)
    notes = [f"Tiles are {describe_target(vars(settled))}: {_filled_in(filled)} {whose}."]
    misfits = [misfit(name, card, settled) for name, card in cards.items()]
    return settled, [*(notes if filled else []), *filter(None, misfits)]


def _targets(options: Any) -> dict[str, float]:
    """Give what the user said of the resolution, by option."""
    said = {name: getattr(options, name, None) for name in ("magnification", "mpp", "level")}
    return {name: value for name, value in said.items() if value is not None}


def _check_one(options: Any) -> None:
    said = _targets(options)
    if len(said) > 1:
        given = " and ".join(f"tiler.{name}={value:g}" for name, value in said.items())
        raise ConfigError(
            f"{given} are {'two' if len(said) == 2 else 'three'} targets: magnification is "
            "nominal, mpp is physical, level is one of the slide's own. Give one of them."
        )


def _sized_by_region(options: Any) -> Any:
    """Take the size of tiles from that of a region, where the user said only this."""
    side, tiles = (getattr(options, f"region_{what}", None) for what in ("size", "tiles"))
    if options.size is not None or not side or not tiles or side % tiles:
        return options
    return replace(options, size=side // tiles)


def check_regions(config: RunConfig, tiles: int | None) -> None:
    """Refuse what does not go with regions of tiles, or without them.

    Args:
        config: The run's.
        tiles: Along a region's side; None for tiles of no regions.

    Raises:
        ConfigError: If single tiles would be dropped, or features by region are wanted of none.
    """
    if tiles is None:
        if config.region_features:
            raise ConfigError(
                "region_features=true stores features by region, and there are no regions: give "
                "tiler.region_tiles=6 for 6 × 6 tiles."
            )
        return
    dropping = {"filter.enabled": config.filter.enabled, "quality.drop": config.quality.drop}
    for key in (key for key, drops in dropping.items() if drops):
        raise ConfigError(
            f"{key}=true drops single tiles, and tiler.region_tiles={tiles} keeps regions whole. "
            "Judge regions by tiler.min_tissue; inspectors without quality.drop mark tiles in the "
            "column reason."
        )


def target_fields(options: Any) -> dict[str, Any]:
    """Give the fields that a tiling's identity always spells out, defaults or not."""
    names = ("size", "step", "magnification", "mpp")
    fields = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if fields.get("step") is None and "size" in fields:
        fields["step"] = fields["size"]
    return fields


def describe_target(fields: Mapping[str, Any]) -> str:
    """Name a tiling's size and resolution: ``256 px at 20x``, ``256 px of level 2``."""
    if "size" not in fields:
        return f"tiles by {fields['plugin']}"
    tiles = fields.get("region_tiles")
    regions = f" in regions of {tiles} × {tiles}" if tiles else ""
    if fields.get("mpp") is not None:
        return f"{fields['size']} px at {fields['mpp']:g} µm/px{regions}"
    if fields.get("level") is not None:
        return f"{fields['size']} px of level {fields['level']}{regions}"
    if fields.get("magnification") is None:
        return f"{fields['size']} px{regions}"
    return f"{fields['size']} px at {fields['magnification']:g}x{regions}"


def name_tiling(fields: Mapping[str, Any]) -> str:
    """Name a tiling's folder by what it is, so that no two tilings share one.

    ``20x_256px_0px`` is magnification, size and overlap, ``level2_256px_0px`` level, size and
    overlap; any other option follows where it is not at its default:
    ``20x_256px_0px_min_tissue0.5``.

    Args:
        fields: What the tiling's identity depends on.
    """
    parts = [str(fields["plugin"])]
    named = {"size", "step", "magnification", "mpp", *SPEC_FIELDS}
    if {"size", "step", "magnification", "mpp"} <= fields.keys():
        size = f"{fields['size']}px_{fields['size'] - fields['step']}px"
        target = _name_target(fields)
        parts = [target, size] if fields["plugin"] == "grid" else [*parts, target, size]
        named.add("level")
    parts += [f"{name}{_in_a_name(fields[name])}" for name in sorted(fields) if name not in named]
    return "_".join(parts)


def _name_target(fields: Mapping[str, Any]) -> str:
    if fields["mpp"] is not None:
        return f"{fields['mpp']:g}mpp"
    level = fields.get("level")
    return f"{fields['magnification']:g}x" if level is None else f"level{level}"


def _in_a_name(value: Any) -> str:
    """Write a value so that it can stand in a folder's name."""
    if isinstance(value, list | tuple):
        return "-".join(map(_in_a_name, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.-]", "-", text)


def _agreed(values: Sequence[Any]) -> Any:
    """Give the one value that all agree on, else None."""
    return values[0] if len(set(values)) == 1 else None


def _filled_in(filled: Mapping[str, Any]) -> str:
    resolution = len(filled) > ("size" in filled)
    if resolution and "size" in filled:
        return "size and resolution are"
    return "the resolution is" if resolution else "the size is"


def misfit(name: str, card: EncoderCard, options: Any) -> str:
    """Say that an encoder was made for other tiles; empty where it was not."""
    if card.patch_size in (None, options.size) and not _other_resolution(card, options):
        return ""
    given = describe_target(vars(options))
    if _is_of_level(options):
        given += ", at each slide's own resolution"
    return f"{name} was made for {_describe_card(card)}, the run gives {given}."


def level_misfits(cards: Mapping[str, EncoderCard], geometry: TileGeometry) -> Iterator[str]:
    """Say of a slide that was tiled by level which encoders were made for another resolution.

    Args:
        cards: The encoders' cards by name.
        geometry: Of the slide's tiles; without a known mpp nothing is said.
    """
    level, effective = geometry.target_level, geometry.effective_mpp
    if level is None or effective is None:
        return
    mpp = sum(effective) / 2
    for name, card in cards.items():
        if _other_resolution(card, SimpleNamespace(magnification=None, mpp=mpp)):
            yield f"level {level} has {mpp:.4g} µm/px, {name} was made for {_describe_card(card)}"


def _describe_card(card: EncoderCard) -> str:
    wanted = f"{card.patch_size} px" if card.patch_size is not None else "tiles"
    if card.magnification is not None:
        return f"{wanted} at {card.magnification:g}x"
    return wanted if card.mpp is None else f"{wanted} at {card.mpp:g} µm/px"


def _is_of_level(options: Any) -> bool:
    return options.mpp is None and getattr(options, "level", None) is not None


def _other_resolution(card: EncoderCard, options: Any) -> bool:
    """Compare like with like; where a card has not the run's kind, 10 µm/px stand for 1x.

    Of a level nothing is known before slides are open, so it is another than any.
    """
    same_kind = options.magnification is not None and card.magnification is not None
    if same_kind and not card.also_mpp:
        return bool(options.magnification != card.magnification)
    wanted, given = _mpp_of(card), _mpp_of(options)
    if _is_of_level(options):
        return wanted is not None
    if wanted is None or given is None:
        return False
    return all(abs(given / mpp - 1) > _SAME_MPP for mpp in (wanted, *card.also_mpp))


def _mpp_of(side: Any) -> float | None:
    if side.mpp is None and side.magnification is not None:
        return float(10 / side.magnification)
    return None if side.mpp is None else float(side.mpp)
