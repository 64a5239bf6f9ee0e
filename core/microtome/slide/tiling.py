"""Place tiles on a slide's tissue: one lattice, pure geometry, no pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, GeometryError
from microtome.slide import DEFAULT_MAGNIFICATION, DEFAULT_SIZE, GridConfig, Lattice, TissueRule
from microtome.slide.contours import ContourLimits, find_contours, four_point
from microtome.slide.geometry import TileTarget, level_to_slide, plan_geometry, slide_to_level
from microtome.slide.regions import REGION
from microtome.slide.types import Level, SlideInfo, TileGeometry, TileGrid, TissueMask

_MAX_PLACES = 1 << 25
"""Places on one lattice: ten times what the largest slides have at 40x with half overlap."""

_NO_AREA = 1e-6
"""Shares closer than this are equal: above the error of float64 sums over a whole mask, below
one level-0 pixel in a tile of 512."""

_BAND = 256
"""Mask rows summed at once, so that a large mask is never held as integers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lattice:
    """Every place that a slide has for a tile, or for a region of tiles.

    Attributes:
        sides: (width, height) of a place in level-0 pixels.
        extent: (width, height) of the slide at level 0.
        x: Left edges of the columns, at level 0.
        y: Top edges of the rows, at level 0.
    """

    sides: tuple[float, float]
    extent: tuple[int, int]
    x: NDArray[np.int64]
    y: NDArray[np.int64]

    def regions(self, tiles: int) -> _Lattice:
        """Give the places of squares of ``tiles`` × ``tiles``; the lattice holds whole ones."""
        sides = self.sides[0] * tiles, self.sides[1] * tiles
        return replace(self, sides=sides, x=self.x[::tiles], y=self.y[::tiles])


class GridTiler:
    """Square tiles on one lattice per slide, kept by the tissue under them.

    The lattice starts at ``origin``, moved to the nearest pixel of the level that is read, and
    is the same for all tissue of a slide: no tile is placed twice. A tile's tissue fraction is
    exact: the area of tissue under it over its whole area, what lies outside the slide being no
    tissue. ``rule=fraction`` keeps tiles with at least ``min_tissue``, and more than none.
    ``rule=four_point`` keeps a tile if any of four probes, half way from its centre to its
    corners, is on a piece of tissue, unless its centre is in a hole of that piece that counts:
    of at least ``min_hole_px``, and one of the ``max_holes`` largest of the slide.

    With ``region_tiles`` the lattice is one of regions, each of so many tiles a side, and what is
    said above of a tile, its tissue and the slide's edge holds of a region; of each that is kept,
    every tile is.

    Args:
        config: The options; without a target, 256 px at 20x.

    Raises:
        ConfigError: If the options do not describe a grid.
    """

    def __init__(self, config: GridConfig | None = None) -> None:
        config = config or GridConfig()
        if not 0 <= config.min_tissue <= 1:
            raise ConfigError(f"tiler.min_tissue is {config.min_tissue:g}; give a share, 0 to 1.")
        if len(config.origin) != 2 or min(config.origin) < 0:
            raise ConfigError(
                f"tiler.origin is {list(config.origin)}; give x and y in level-0 pixels, both 0 "
                "or more."
            )
        for name in ("min_hole_px", "max_holes", "min_region_fraction"):
            value = getattr(config, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"tiler.{name} is {value:g}; give 0 or more.")
        self.config = config
        self.target = _target(config)
        _check_regions(config, self.target)

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Place tiles on a slide's tissue.

        Args:
            info: Of an open slide, its resolution resolved.
            mask: Where there is tissue.

        Returns:
            Coordinates sorted by (y, x), and the column ``tissue_fraction`` (n,) float32; with
            regions also `REGION` (n,) int32, the number of a tile's region in (y, x) order.

        Raises:
            ResolutionError: If the slide does not say how large its pixels are.
            GeometryError: If the slide cannot give such tiles.
        """
        geometry, tiles = plan_geometry(info, self.target), self.config.region_tiles
        lattice = self._lattice(info, geometry)
        fraction = _tissue_fraction(mask, lattice)
        columns: dict[str, NDArray[np.generic]] = {}
        if tiles:
            regions = lattice.regions(tiles)
            keep = self._keep(mask, regions, fraction=_tissue_fraction(mask, regions))
            numbers = np.cumsum(keep, dtype=np.int32).reshape(keep.shape) - 1
            row, column = np.nonzero(keep.repeat(tiles, axis=0).repeat(tiles, axis=1))
            columns[REGION] = numbers[row // tiles, column // tiles]
        else:
            row, column = np.nonzero(self._keep(mask, lattice, fraction=fraction))
        coords = np.empty((row.size, 5), np.int32)
        coords[:, 0], coords[:, 1] = lattice.x[column], lattice.y[row]
        coords[:, 2:4], coords[:, 4] = geometry.read_size, geometry.level
        columns["tissue_fraction"] = fraction[row, column].astype(np.float32)
        return TileGrid(
            coords=coords,
            geometry=geometry,
            columns=MappingProxyType(columns),
            region_tiles=tiles,
        )

    def _lattice(self, info: SlideInfo, geometry: TileGeometry) -> _Lattice:
        level = info.levels[geometry.level]
        side, pitch = geometry.read_size, geometry.pitch
        if self.config.lattice is Lattice.slide:
            level = Level(width=info.width, height=info.height, downsample=1.0)
            side, pitch = _rounded(geometry.size_level0), _rounded(geometry.pitch_level0)
        tiles = self.config.region_tiles or 1
        inside = (side[0] * tiles, side[1] * tiles) if geometry.edge == "drop" else (1, 1)
        origin = slide_to_level(np.array(self.config.origin), level).tolist()
        x, y = (
            _places(origin[axis], extent - inside[axis] + 1, pitch[axis], tiles)
            for axis, extent in enumerate((level.width, level.height))
        )
        if len(x) * len(y) > _MAX_PLACES:
            raise GeometryError(
                f"{info.path}: tiles of {geometry.size} px at a step of {geometry.step} have "
                f"{len(x)} × {len(y)} places, too many. "
                f"Raise tiler.{'size' if tiles > 1 else 'step'}."
            )
        return _Lattice(
            sides=geometry.size_level0,
            extent=(info.width, info.height),
            x=_at_level0(x, level),
            y=_at_level0(y, level),
        )

    def _keep(
        self, mask: TissueMask, lattice: _Lattice, *, fraction: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        if self.config.rule is TissueRule.four_point:
            limits = ContourLimits(
                min_hole_px=self.config.min_hole_px,
                max_holes=self.config.max_holes,
                min_region_fraction=self.config.min_region_fraction,
            )
            side = _rounded(lattice.sides)
            return four_point(find_contours(mask, limits), lattice.x, lattice.y, side=side)
        return fraction >= max(self.config.min_tissue - _NO_AREA, _NO_AREA)


def _target(config: GridConfig) -> TileTarget:
    nominal = config.magnification
    if nominal is None and config.mpp is None and config.level is None:
        nominal = DEFAULT_MAGNIFICATION
    return TileTarget(
        size=DEFAULT_SIZE if config.size is None else config.size,
        step=config.step,
        magnification=nominal,
        mpp=config.mpp,
        target_level=config.level,
        max_upsample=config.max_upsample,
        edge=config.edge.value,
        resample=config.resample.value,
        lattice=config.lattice.value,
        level_tolerance=config.level_tolerance,
    )


def _check_regions(config: GridConfig, target: TileTarget) -> None:
    """See that regions are whole multiples of a tile.

    Raises:
        ConfigError: If they are not.
    """
    tiles, size = config.region_tiles, config.region_size
    if tiles is None:
        if size is not None:
            raise ConfigError(
                f"tiler.region_size={size} does not say how many tiles a region has: give "
                "tiler.region_tiles=6 for 6 × 6."
            )
        return
    if tiles < 2:
        raise ConfigError(
            f"tiler.region_tiles is {tiles}; give 2 or more tiles along a region's side."
        )
    if target.stride != target.size:
        raise ConfigError(
            f"tiler.region_tiles={tiles} makes regions of tiles side by side, and tiler.step="
            f"{target.stride} is not tiler.size={target.size}. Leave tiler.step out."
        )
    if size is not None and size != target.size * tiles:
        raise ConfigError(
            f"tiler.region_size={size} is not tiler.size={target.size} × tiler.region_tiles="
            f"{tiles}, which is {target.size * tiles}. Leave tiler.region_size out."
        )


def _places(start: int, stop: int, pitch: int, tiles: int) -> range:
    """Give the places of tiles along one axis: those of regions that begin before ``stop``."""
    regions = len(range(start, stop, pitch * tiles))
    return range(start, start + regions * tiles * pitch, pitch)


def _rounded(size: tuple[float, float]) -> tuple[int, int]:
    return round(size[0]), round(size[1])


def _at_level0(places: range, level: Level) -> NDArray[np.int64]:
    return level_to_slide(np.arange(places.start, places.stop, places.step), level)


def _tissue_fraction(mask: TissueMask, lattice: _Lattice) -> NDArray[np.float64]:
    """Measure the share of every place on a lattice that is tissue, (len(y), len(x)).

    Exact: a mask pixel that a tile cuts counts by the area inside. Sums over columns come
    first, so a mask is passed over once however many tiles there are.
    """
    sides = lattice.sides
    (left, right), (top, bottom) = (
        (np.minimum(start, extent) / scale, np.minimum(start + side, extent) / scale)
        for start, side, extent, scale in zip(
            (lattice.x, lattice.y), sides, lattice.extent, mask.downsample, strict=True
        )
    )
    across = np.empty((mask.array.shape[0], len(lattice.x)))
    for start in range(0, len(across), _BAND):
        band = slice(start, start + _BAND)
        across[band] = _interval_sums(mask.array[band], left, right)
    tissue = _interval_sums(across.T, top, bottom).T
    area = sides[0] * sides[1] / (mask.downsample[0] * mask.downsample[1])
    return np.clip(tissue / area, 0.0, 1.0)


def _interval_sums(
    values: NDArray[np.bool_] | NDArray[np.float64],
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Integrate each row over intervals of fractional column numbers: (h, w) to (h, n)."""
    height, width = values.shape
    total = np.zeros((height, width + 1), np.int32 if values.dtype == np.bool_ else np.float64)
    np.cumsum(values, axis=1, dtype=total.dtype, out=total[:, 1:])
    return _interpolate(total, stop) - _interpolate(total, start)


def _interpolate(
    total: NDArray[np.int32] | NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Read running sums between columns; beyond the last they stay what they are."""
    last = total.shape[1] - 1
    at = np.clip(at, 0, last)
    below = at.astype(np.int64)
    weight = at - below
    return total[:, below] * (1 - weight) + total[:, np.minimum(below + 1, last)] * weight
