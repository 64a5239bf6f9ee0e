"""What a tiler promises."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from microtome.errors import GeometryError
from microtome.plugin.registry import Registered, Registry
from microtome.slide.types import SlideInfo, TileGrid, TissueMask
from microtome.testing.contracts.base import PluginContract
from microtome.testing.samples import make_info, make_mask


class TilerContract(PluginContract):
    """Subclass it for a tiler."""

    kind: ClassVar[str] = "tiler"

    @pytest.fixture(
        params=[(1, 4, 16), (1,), (1, 2.0005, 7.998)],
        ids=["pyramid", "one level", "fractional"],
    )
    def info(self, request: pytest.FixtureRequest) -> SlideInfo:
        """Slides at 40x: with three levels, with one, with downsamples that are not whole."""
        return make_info(levels=request.param)

    @pytest.fixture
    def mask(self, info: SlideInfo) -> TissueMask:
        """Ragged regions."""
        return make_mask(info)

    @pytest.fixture
    def tiler(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The tiler."""
        return registry.create("tiler", entry.spec.name, config)

    @pytest.fixture
    def grid(self, tiler: Any, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Its plan."""
        grid: TileGrid = tiler.plan(info, mask)
        return grid

    def test_it_places_tiles_on_tissue(self, grid: TileGrid) -> None:
        """Coordinates are int32 rows of five."""
        assert len(grid) > 0
        assert grid.coords.dtype == np.int32
        assert grid.coords.shape == (len(grid), 5)

    def test_rows_are_sorted_and_unique(self, grid: TileGrid) -> None:
        """By (y, x), so that the order never depends on how they were found."""
        x, y = grid.coords[:, :2].T.astype(np.int64)
        order = np.lexsort((x, y))
        assert np.array_equal(order, np.arange(len(grid)))
        assert len(np.unique(grid.coords[:, :2], axis=0)) == len(grid)

    def test_rows_agree_with_the_geometry(self, grid: TileGrid, info: SlideInfo) -> None:
        """One level and one size for the whole grid."""
        geometry = grid.geometry
        assert 0 <= geometry.level < len(info.levels)
        assert geometry.level_downsample == info.levels[geometry.level].downsample
        assert geometry.size > 0
        assert (grid.coords[:, 2:4] == geometry.read_size).all()
        assert (grid.coords[:, 4] == geometry.level).all()

    def test_tiles_lie_on_pixels_of_their_level(self, grid: TileGrid, info: SlideInfo) -> None:
        """Between two pixels a reader would interpolate."""
        downsample = info.levels[grid.geometry.level].downsample
        corner = grid.coords[:, :2].astype(float)
        nearest = np.rint(corner / downsample) * downsample
        assert np.abs(corner - nearest).max() <= 0.5 + 1e-6

    def test_tiles_are_inside_the_slide(self, grid: TileGrid, info: SlideInfo) -> None:
        """Whole with ``edge="drop"``; with ``edge="pad"`` at least their corner is."""
        level = info.levels[grid.geometry.level]
        corner = np.rint(grid.coords[:, :2] / level.downsample)
        assert (grid.coords[:, :2] >= 0).all()
        assert (corner < (level.width, level.height)).all()
        if grid.geometry.edge == "drop":
            assert (corner + grid.coords[:, 2:4] <= (level.width, level.height)).all()

    def test_columns_have_a_value_for_every_tile(self, grid: TileGrid) -> None:
        """They are stored beside the coordinates."""
        for values in grid.columns.values():
            assert values.shape == (len(grid),)

    def test_a_plan_depends_on_its_arguments_alone(
        self, tiler: Any, info: SlideInfo, mask: TissueMask, grid: TileGrid
    ) -> None:
        """Planned again, after another slide, it is the same; the mask is left as it is."""
        before = mask.array.copy()
        tiler.plan(info, make_mask(info, seed=1))
        again = tiler.plan(info, mask)
        assert np.array_equal(again.coords, grid.coords)
        assert again.geometry == grid.geometry
        assert np.array_equal(mask.array, before)

    def test_no_tissue_gives_no_tile(self, tiler: Any, info: SlideInfo) -> None:
        """An empty slide is a finished slide."""
        grid = tiler.plan(info, make_mask(info, seed=None))
        assert grid.coords.shape == (0, 5)
        assert grid.coords.dtype == np.int32

    def test_a_tiny_slide_gives_few_tiles_or_a_reason(self, tiler: Any) -> None:
        """Smaller than any tile."""
        info = make_info(size=(40, 30), levels=(1,))
        try:
            grid = tiler.plan(info, make_mask(info, downsample=2))
        except GeometryError:
            return
        assert len(grid) <= 40 * 30
