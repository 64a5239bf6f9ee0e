"""Needs of encoders of slides and patients, and the tilings that meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from microtome.errors import ConfigError
from microtome.plugin.aliases import listed
from microtome.plugin.specs import EncoderCard, TileNeed
from microtome.run.planning.matching import MadeModel

SAME_MPP = 0.01
"""Relative difference up to which two physical targets are one."""

NOMINAL_MPP = 0.05
"""Relative difference up to which a physical target is what a nominal one means."""


@dataclass(eq=False, kw_only=True)
class Tiling:
    """A tiling on its way: what is None is open yet.

    Attributes:
        size: Side of a tile in pixels.
        magnification: The nominal target.
        mpp: The physical target.
        level: The slides' level, whose resolution each slide is held against a need by itself.
        given: The tiler, where it places tiles as they are and nothing is filled in.
        needs: That it meets.
        whose: Encoders that have them.
    """

    size: int | None = None
    magnification: float | None = None
    mpp: float | None = None
    level: int | None = None
    given: str = ""
    needs: list[TileNeed] = field(default_factory=list)
    whose: list[MadeModel] = field(default_factory=list)

    def takes(self, need: TileNeed) -> bool:
        """Whether it is what a need asks for, or can still become that."""
        if need.patch_size is not None and self.size not in (None, need.patch_size):
            return False
        return self._meets(need) or (self.magnification is None and self.mpp is None)

    def _meets(self, need: TileNeed) -> bool:
        if self.level is not None or (need.mpp is None and need.magnification is None):
            return True
        if need.mpp is not None:
            physical = self.mpp is not None and isclose(self.mpp, need.mpp, rel_tol=SAME_MPP)
            nominal = self.magnification is not None and self.magnification == need.magnification
            return physical or nominal
        if self.mpp is not None and need.magnification is not None:
            return isclose(self.mpp, 10 / need.magnification, rel_tol=NOMINAL_MPP)
        return self.magnification == need.magnification

    def settle(self, need: TileNeed) -> None:
        """Take what a need says of what is open; a physical target before a nominal one."""
        self.size = need.patch_size if self.size is None else self.size
        if self.magnification is None and self.mpp is None and self.level is None:
            self.mpp = need.mpp
            self.magnification = need.magnification if need.mpp is None else None

    def suits(self, card: EncoderCard) -> bool:
        """Whether it is what an encoder's card recommends."""
        meant = TileNeed(patch_size=card.patch_size, magnification=card.magnification, mpp=card.mpp)
        return card.patch_size == self.size and self._meets(meant)

    def __str__(self) -> str:
        """Say what its tiles are: ``512 px at 20x``."""
        if self.given:
            return f"tiles by {self.given}"
        size = "tiles" if self.size is None else f"{self.size} px"
        if self.level is not None:
            return f"{size} of level {self.level}"
        if self.mpp is not None:
            return f"{size} at {self.mpp:g} µm/px"
        return size if self.magnification is None else f"{size} at {self.magnification:g}x"


def openness(needs: Sequence[TileNeed]) -> tuple[bool, bool, bool]:
    """Order needs by what they leave open: physical ones with a size come first."""
    return (
        all(need.patch_size is None for need in needs),
        all(need.mpp is None for need in needs),
        all(need.magnification is None for need in needs),
    )


def merge_needs(made: MadeModel, needs: Sequence[TileNeed]) -> TileNeed:
    """Give the one tiling that all needs of an encoder ask for: its features share their rows."""
    merged: dict[str, Any] = {}
    for name in ("patch_size", "magnification", "mpp"):
        values = {getattr(need, name) for need in needs} - {None}
        if len(values) > 1:
            raise ConfigError(
                f"{made} needs features of tiles with {name} {listed(sorted(map(str, values)))}, "
                "and one slide encoder can only take features of the same tiles."
            )
        merged[name] = values.pop() if values else None
    return TileNeed(**merged, overlap=all(need.overlap for need in needs))


def is_of_tiles(need: TileNeed) -> bool:
    """Tell whether a need decides a tiling; one of columns alone goes with any."""
    return bool(need.encoder or need.patch_size or need.magnification or need.mpp)


def describe_need(need: TileNeed) -> str:
    """Put a need into words: ``conch_v15 on tiles of 512 px at 20x without overlap``."""
    options = ", ".join(f"{name}={value}" for name, value in need.options.items())
    what = f"{need.encoder or 'any features'}{f' ({options})' if options else ''}"
    if need.dtype:
        what += f" in {need.dtype}"
    size = "tiles" if need.patch_size is None else f"tiles of {need.patch_size} px"
    at = ""
    if need.mpp is not None:
        at = f" at {need.mpp:g} µm/px"
    elif need.magnification is not None:
        at = f" at {need.magnification:g}x"
    return f"{what} on {size}{at}{'' if need.overlap else ' without overlap'}"
