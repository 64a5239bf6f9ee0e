"""Plan the size of tiles in every frame: which level is read, how much of it, and how far apart.

The convention of the whole project:

* A point ``(x, y)`` is the top left corner in level-0 pixels; a size belongs to the level read.
* ``ratio`` is level-0 pixels per pixel of the target: nominal magnification over the target's,
  or the target's mpp over the slide's.
  A target that is a level of the slide has that level's downsample, and size and stride are its
  pixels.
* The level read is the coarsest that is not coarser than the target by more than
  ``max_upsample``, unless one is within ``level_tolerance`` of it.
* ``read = round(size x ratio / ds)`` and ``pitch = round(step x ratio / ds)`` are integers at
  that level, halves up, so without overlap both are equal and no column of tiles drifts.
* On the lattice of the slide (``lattice="slide"``) size and pitch are integers at level 0
  instead, halves to even, and the size read is what comes nearest at the level.
* A pixel ``l`` of a level is named by ``x = round(l x ds)``, and ``round(x / ds)`` is ``l``
  again for any ``ds >= 1``. Where ``ds`` is whole, so is ``x / ds``, and nobody interpolates;
  elsewhere ``x`` is the nearest that an integer can be, at most ``0.5 / ds`` of a pixel away,
  and readers interpolate over that rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, GeometryError, ResolutionError
from microtome.slide.resolution import PLAUSIBLE_MPP
from microtome.slide.types import Level, SlideInfo, TileGeometry

EDGES = ("drop", "pad")
RECIPES = ("pil-bilinear", "area")
LATTICES = ("level", "slide")

_FLOAT_SLACK = 1 + 1e-9
"""Lets 0.25 x 4.0000000001 pass for 1: the noise of a division, not a tolerance."""


@dataclass(frozen=True, kw_only=True)
class TileTarget:
    """What is asked of a tile, whatever the slide.

    Attributes:
        size: Side in pixels.
        step: Stride in pixels at the same resolution; ``size`` if None.
        magnification: Nominal target. Exactly one of this, ``mpp`` and ``target_level`` is given.
        mpp: Physical target, µm per pixel.
        target_level: Level of the slide whose pixels are those of the tile.
        max_upsample: How much coarser than the target the level read may be, from 1.
        edge: One of `EDGES`.
        resample: One of `RECIPES`.
        lattice: One of `LATTICES`: where sizes and strides are whole pixels.
        level_tolerance: A level whose downsample differs from the target's by less than this is
            read, whatever other levels there are; the finest of several.

    Raises:
        ConfigError: If the values do not describe a tile.
    """

    size: int
    step: int | None = None
    magnification: float | None = None
    mpp: float | None = None
    target_level: int | None = None
    max_upsample: float = 1.05
    edge: str = "drop"
    resample: str = "pil-bilinear"
    lattice: str = "level"
    level_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if [self.magnification, self.mpp, self.target_level].count(None) != 2:
            raise ConfigError(
                "Tiles need one target: give tiler.magnification (nominal), tiler.mpp (µm per "
                "pixel) or tiler.level (of the slide), one of them."
            )
        if self.target_level is not None:
            _at_least("tiler.level", self.target_level, 0)
            if self.lattice == "slide":
                raise ConfigError(
                    f"tiler.level={self.target_level} makes tiles of pixels of that level, and "
                    "tiler.lattice=slide lays them between those. Give tiler.lattice=level."
                )
        _at_least("tiler.size", self.size, 1)
        _at_least("tiler.step", self.stride, 1)
        _at_least("tiler.max_upsample", self.max_upsample, 1)
        _at_least("tiler.level_tolerance", self.level_tolerance, 0)
        for key, value in (("magnification", self.magnification), ("mpp", self.mpp)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"tiler.{key} is {value:g}; give a positive number.")
        _one_of("tiler.edge", self.edge, EDGES)
        _one_of("tiler.resample", self.resample, RECIPES)
        _one_of("tiler.lattice", self.lattice, LATTICES)

    @property
    def stride(self) -> int:
        """The step, or the size where no step is given."""
        return self.size if self.step is None else self.step

    def __str__(self) -> str:
        """Name the resolution as a user writes it: ``20x``, ``0.5 µm/px`` or ``level 2``."""
        if self.target_level is not None:
            return f"level {self.target_level}"
        return f"{self.mpp:g} µm/px" if self.mpp is not None else f"{self.magnification:g}x"


def plan_geometry(info: SlideInfo, target: TileTarget) -> TileGeometry:
    """Work out a target on one slide.

    Args:
        info: Of an open slide, its resolution resolved.
        target: What is asked for.

    Returns:
        The sizes in every frame: integers at the level that is read, or at level 0.

    Raises:
        ResolutionError: If the slide does not say how large its pixels are, or the target is
            physical and the slide's mpp only assumed.
        GeometryError: If the target is finer than level 0 by more than ``max_upsample``, a tile
            would be smaller than one pixel, or the slide has no such level.
    """
    if target.target_level is not None:
        index = _find_level(info, target.target_level)
        ds = info.levels[index].downsample
        ratio = ds, ds
    else:
        ratio = _ratio(info, target)
        index = _choose_level(info, target, ratio=ratio)
        ds = info.levels[index].downsample
    if target.lattice == "slide":
        read, size_level0 = _whole(target.size, ratio=ratio, ds=ds)
        pitch, pitch_level0 = _whole(target.stride, ratio=ratio, ds=ds)
    else:
        read = _pixels(info, target, length=target.size, ratio=ratio, ds=ds)
        pitch = _pixels(info, target, length=target.stride, ratio=ratio, ds=ds)
        size_level0, pitch_level0 = (read[0] * ds, read[1] * ds), (pitch[0] * ds, pitch[1] * ds)
    return TileGeometry(
        size=target.size,
        step=target.stride,
        level=index,
        level_downsample=ds,
        read_size=read,
        pitch=pitch,
        size_level0=size_level0,
        pitch_level0=pitch_level0,
        target_mpp=target.mpp,
        target_magnification=target.magnification,
        effective_mpp=_effective_mpp(info, target, read=read, ds=ds),
        edge=target.edge,
        resample=target.resample,
        target_level=target.target_level,
    )


def level_to_slide(pixels: NDArray[np.integer], level: Level) -> NDArray[np.int64]:
    """Name pixels of a level by points at level 0, on one axis or many."""
    points: NDArray[np.int64] = np.rint(pixels * level.downsample).astype(np.int64)
    return points


def slide_to_level(points: NDArray[np.integer], level: Level) -> NDArray[np.int64]:
    """Give the nearest pixels of a level to points at level 0: undoes `level_to_slide`."""
    return np.rint(points / level.downsample).astype(np.int64)


def _ratio(info: SlideInfo, target: TileTarget) -> tuple[float, float]:
    """Give level-0 pixels per target pixel, (x, y)."""
    found = info.resolution
    if target.mpp is not None:
        mpp_x, mpp_y = _physical(info, target)
        return target.mpp / mpp_x, target.mpp / mpp_y
    if found.magnification is None and found.mpp is not None:
        low, high = PLAUSIBLE_MPP
        told = "" if low <= found.mpp <= high else f", outside the plausible {low:g} to {high:g}"
        raise ResolutionError(
            f"{info.path}: {found.mpp:.6g} µm per pixel ({found.mpp_source}){told}, goes with no "
            f"magnification, so it cannot be tiled at {target}. Give the right one with mpp=0.25 "
            "or mpp_csv=FILE, or tile by µm per pixel with tiler.mpp=0.5."
        )
    if found.magnification is None:
        raise ResolutionError(
            f"{info.path}: neither magnification nor µm per pixel is known, so it cannot be tiled "
            f"at {target}. Say it with mpp=0.25 or mpp_csv=FILE."
        )
    nominal = found.magnification / (target.magnification or math.nan)
    if found.mpp_x is None or found.mpp_y is None:
        return nominal, nominal
    # Pixels that are not square become so: the coarser axis keeps the nominal ratio, so that no
    # slide is refused as too coarse for its shape alone.
    coarser = max(found.mpp_x, found.mpp_y)
    return nominal * coarser / found.mpp_x, nominal * coarser / found.mpp_y


def _physical(info: SlideInfo, target: TileTarget) -> tuple[float, float]:
    found = info.resolution
    if found.mpp_x is None or found.mpp_y is None:
        raise ResolutionError(
            f"{info.path}: its µm per pixel is not known, so it cannot be tiled at {target}. "
            "Say it with mpp=0.25 or mpp_csv=FILE."
        )
    if found.assumed:
        raise ResolutionError(
            f"{info.path}: its {found.mpp_x:g} µm per pixel is only {found.mpp_source}, too rough "
            f"for {target}. Say the true one with mpp= or mpp_csv=, or tile by "
            "tiler.magnification."
        )
    return found.mpp_x, found.mpp_y


def _choose_level(info: SlideInfo, target: TileTarget, *, ratio: tuple[float, float]) -> int:
    """Choose the finest level that is as good as the target's, or the coarsest allowed."""
    downsamples = [level.downsample for level in info.levels]
    near = [i for i, ds in enumerate(downsamples) if abs(ds - min(ratio)) < target.level_tolerance]
    if near:
        return min(near, key=downsamples.__getitem__)
    coarsest = min(ratio) * target.max_upsample * _FLOAT_SLACK
    fits = [i for i, ds in enumerate(downsamples) if ds <= coarsest]
    if not fits:
        finer = 1 / min(ratio)
        raise GeometryError(
            f"{info.path}: {target} is {finer:.3g} times finer than its level 0 "
            f"({_level0(info)}). Ask for a coarser target, or allow it with "
            f"tiler.max_upsample={math.ceil(finer * 100) / 100:g}."
        )
    return max(fits, key=downsamples.__getitem__)


def _find_level(info: SlideInfo, index: int) -> int:
    if index < len(info.levels):
        return index
    there = [f"{i} ({level.width} × {level.height} px)" for i, level in enumerate(info.levels)]
    has = f"its levels are {', '.join(there)}" if len(there) > 1 else f"its only one is {there[0]}"
    raise GeometryError(
        f"{info.path}: it has no level {index}, {has}. Name one that all slides have, or tile by "
        "tiler.magnification or tiler.mpp."
    )


def _level0(info: SlideInfo) -> str:
    found = info.resolution
    known = (
        f"{found.magnification:g}x" if found.magnification is not None else "",
        f"{found.mpp:g} µm/px" if found.mpp is not None else "",
    )
    return ", ".join(filter(None, known))


def _pixels(
    info: SlideInfo, target: TileTarget, *, length: int, ratio: tuple[float, float], ds: float
) -> tuple[int, int]:
    """Give a length at the target as whole pixels of a level, (x, y)."""
    x, y = (math.floor(length * axis / ds + 0.5) for axis in ratio)
    if min(x, y) < 1:
        raise GeometryError(
            f"{info.path}: {length} px at {target} is less than one pixel of its level 0 "
            f"({_level0(info)}). Raise tiler.size and tiler.step."
        )
    return x, y


def _whole(
    length: int, *, ratio: tuple[float, float], ds: float
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Give a length at the target as pixels of a level and as whole ones of level 0, (x, y)."""
    x, y = (max(1, round(length * axis)) for axis in ratio)
    return (max(1, round(x / ds)), max(1, round(y / ds))), (x, y)


def _effective_mpp(
    info: SlideInfo, target: TileTarget, *, read: tuple[int, int], ds: float
) -> tuple[float, float] | None:
    found = info.resolution
    if found.mpp_x is None or found.mpp_y is None:
        return None
    return read[0] * ds * found.mpp_x / target.size, read[1] * ds * found.mpp_y / target.size


def _at_least(key: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{key} is {value:g}; give {least} or more.")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key} is {value!r}; available: {', '.join(known)}.")
