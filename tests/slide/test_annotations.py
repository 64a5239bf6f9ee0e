"""The model of annotations: outlines as people draw them become areas."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.slide.annotations import as_points, make_area

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]
CORNER = st.tuples(st.integers(-20, 20), st.integers(-20, 20))


def windings(ring: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Count how often a closed ring goes around each place."""
    around = np.zeros(len(places), int)
    x, y = places.T
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        left = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        around += (y0 <= y) & (y1 > y) & (left > 0)
        around -= (y0 > y) & (y1 <= y) & (left < 0)
    return around


@settings(max_examples=60, deadline=None)
@given(st.lists(CORNER, min_size=3, max_size=9))
def test_inside_is_what_the_pen_went_around(corners) -> None:
    drawn = shapely.make_valid(shapely.Polygon([*corners, corners[0]]))
    if drawn.area == 0:
        with pytest.raises(ValueError, match=r"enclose no area|an area needs three"):
            make_area([[corners]])
        return
    area, wrong = make_area([[corners]])
    assert area.is_valid
    assert area.geom_type in ("Polygon", "MultiPolygon")
    assert area.area > 0
    assert bool(wrong) != shapely.Polygon(corners).is_valid
    places = np.random.default_rng(0).uniform(-20, 20, (200, 2))  # on no line
    around = windings(np.array(corners, float), places)
    assert np.array_equal(shapely.contains_xy(area, *places.T), around != 0)


def test_rings_are_closed_and_holes_kept() -> None:
    hole = [(2, 2), (4, 2), (4, 4), (2, 4)]
    for rings in ([SQUARE, hole], [[*SQUARE, SQUARE[0]], [*hole, hole[0]]]):
        area, wrong = make_area([rings])
        assert (area.area, len(area.interiors), wrong) == (96, 1, "")


def test_a_hole_over_the_edge_is_repaired_and_told() -> None:
    area, wrong = make_area([[SQUARE, [(5, 5), (15, 5), (15, 8), (5, 8)]]])
    assert area.area == 100 - 15
    assert wrong


def test_points_of_more_axes_are_places() -> None:
    points = as_points([[1, 2, 3], [4, 5, 6]])
    assert (points.tolist(), points.dtype) == ([[1, 2], [4, 5]], np.float64)
    assert as_points([]).shape == (0, 2)


@pytest.mark.parametrize("values", [None, 3, "ab", [None], [[1]], [[1, "2"]], [[1, 2], [3]], {}])
def test_what_is_no_list_of_places(values) -> None:
    with pytest.raises(ValueError, match=r"stands where its points should|is no place"):
        as_points(values)
