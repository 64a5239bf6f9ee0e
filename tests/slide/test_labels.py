"""What outlines make of tiles: pure geometry."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, Point, Polygon, box

from microtome.errors import AnnotationError, ConfigError
from microtome.run.labelling import LabelSettings
from microtome.slide.annotations import Annotation
from microtome.slide.groups import group_key
from microtome.slide.labels import (
    LabelRule,
    _cut_up,
    count_groups,
    count_labels,
    label_tiles,
    place_outlines,
    uniform_labels,
)

TUMOR = LabelRule(classes=("normal", "tumor"), groups={"tumor": 1})
TWO = LabelRule(
    classes=("normal", "tumor", "stroma"),
    groups={"tumor": 1, "stroma": 2, "hole": 0},
    exclude=frozenset({"pen"}),
)


def drawn(group, shape, **more):
    return Annotation(geometry=shape, group=group, **more)


def by_fraction(rule, least=0.5):
    return LabelRule(
        classes=rule.classes, groups=rule.groups, exclude=rule.exclude, centre=False,
        min_fraction=least,
    )  # fmt: skip


def boxes(*corners, size=10):
    corner = np.asarray(corners, np.float64).reshape(-1, 2)
    return np.concatenate([corner, corner + size], axis=1)


def lattice(count, size=10):
    side = np.arange(count) * float(size)
    x, y = np.meshgrid(side, side)
    return boxes(*zip(x.ravel(), y.ravel(), strict=True), size=size)


def label(tiles, annotations, rule=TUMOR):
    found = label_tiles(tiles, annotations, rule)
    assert found.label.dtype == np.int16
    assert found.fraction.dtype == np.float32
    return found.label.tolist(), found.fraction.astype(np.float64).round(4).tolist()


def blob(rng, x, y, radius, points):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    far = radius * (1 + 0.3 * np.sin(3 * angle) + 0.05 * rng.standard_normal(points))
    outline = np.stack([x + far * np.cos(angle), y + far * np.sin(angle)], axis=1)
    return shapely.make_valid(Polygon(outline))


def test_the_centre_decides_and_the_share_is_told():
    tiles = boxes((0, 0), (4, 0), (6, 0), (100, 0))
    assert label(tiles, [drawn("Tumor", box(0, 0, 10, 10))]) == (
        [1, 1, 0, 0],
        [1.0, 0.6, 0.6, 1.0],
    )


@pytest.mark.parametrize(
    ("least", "labels"), [(0.5, [1, 0]), (0.6, [1, 0]), (0.61, [0, 0]), (0, [1, 1])]
)
def test_enough_of_a_tile_decides(least, labels):
    tiles = boxes((4, 0), (9, 9))
    found, _ = label(tiles, [drawn("tumor", box(0, 0, 10, 10))], by_fraction(TUMOR, least))
    assert found == labels


def test_a_tile_that_only_touches_is_none_of_it():
    found, share = label(boxes((10, 0)), [drawn("tumor", box(0, 0, 10, 10))], by_fraction(TUMOR, 0))
    assert (found, share) == ([0], [1.0])


def test_a_hole_is_no_part_of_an_outline():
    ring = box(0, 0, 30, 30).difference(box(10, 10, 20, 20))
    found, share = label(lattice(3), [drawn("tumor", ring)])
    assert found == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert share == [1.0] * 9


@pytest.mark.parametrize("centre", [True, False])
def test_what_is_excluded_wins_whatever_the_order(centre):
    rule = TWO if centre else by_fraction(TWO)
    objects = [drawn("pen", box(0, 0, 8, 10)), drawn("tumor", box(0, 0, 20, 10))]
    for given in (objects, objects[::-1]):
        found, share = label(boxes((0, 0), (10, 0), (6, 0)), given, rule)
        assert found == [-1, 1, 1]
        assert share == [0.8, 1.0, 0.8]


@pytest.mark.parametrize(
    ("one", "other"), [(" Tumor", "TUMOR "), ("n\u00e9crose", "Ne\u0301crose"), ("Maß", "MASS")]
)
def test_a_group_is_the_same_however_it_is_written(one, other):
    assert group_key(one) == group_key(other)
    rule = LabelRule(classes=("normal", "tumor"), groups={group_key(one): 1})
    assert label(boxes((0, 0)), [drawn(other, box(0, 0, 10, 10))], rule)[0] == [1]
    with pytest.raises(ConfigError, match="is in both labels\\.classes\\.b and labels\\.exclude"):
        LabelSettings(classes={"b": [one]}, exclude=[other])


def test_groups_of_the_background_are_cut_out():
    objects = [drawn("tumor", box(0, 0, 30, 10)), drawn("hole", box(10, 0, 20, 10))]
    assert label(boxes((0, 0), (10, 0), (20, 0)), objects, TWO)[0] == [1, 0, 1]


@pytest.mark.parametrize("centre", [True, False])
def test_of_two_classes_the_larger_share_wins_and_then_the_first(centre):
    rule = TWO if centre else by_fraction(TWO, 0.1)
    objects = [drawn("stroma", box(0, 0, 10, 10)), drawn("tumor", box(2, 0, 20, 10))]
    assert label(boxes((0, 0), (2, 0), (8, 0)), objects, rule)[0] == [2, 1, 1]
    both = [drawn("stroma", box(0, 0, 10, 10)), drawn("tumor", box(0, 0, 10, 10))]
    assert label(boxes((0, 0)), both, rule) == ([1], [1.0])


def test_the_share_of_the_background_is_what_nothing_covers():
    objects = [
        drawn("stroma", box(0, 0, 3, 10)),
        drawn("tumor", box(2, 0, 4, 10)),
        drawn("pen", box(9, 0, 10, 10)),
    ]
    assert label(boxes((0, 0)), objects, TWO) == ([0], [0.5])


def test_outlines_of_one_group_count_once_where_they_overlap():
    objects = [drawn("tumor", box(0, 0, 6, 10)), drawn(" TUMOR ", box(2, 0, 6, 10))]
    assert label(boxes((0, 0)), objects) == ([1], [0.6])


def test_lines_and_points_have_no_say():
    objects = [drawn("tumor", LineString([(0, 0), (10, 10)])), drawn("tumor", Point(5, 5))]
    assert label(boxes((0, 0)), objects) == ([0], [1.0])
    assert count_groups(objects) == {}


def test_other_groups_have_none_unless_they_are_excluded():
    objects = [drawn("fat", box(0, 0, 10, 10))]
    assert label(boxes((0, 0)), objects)[0] == [0]
    rule = LabelRule(classes=TUMOR.classes, groups=TUMOR.groups, exclude_others=True)
    assert label(boxes((0, 0)), objects, rule)[0] == [-1]


def test_no_tile_and_no_outline():
    assert label(boxes(), [drawn("tumor", box(0, 0, 10, 10))]) == ([], [])
    assert label(boxes((0, 0)), []) == ([0], [1.0])


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_those_of_the_plain_definition(seed):
    rng = np.random.default_rng(seed)
    groups = ["tumor"] * 6 + ["stroma"] * 6 + ["pen", "hole"]
    objects = [
        drawn(group, blob(rng, *rng.uniform(0, 300, 2), rng.uniform(10, 80), 400))
        for group in groups
    ]
    tiles = lattice(30)
    area = {
        group: shapely.union_all([each.geometry for each in objects if each.group == group])
        for group in TWO.groups | dict.fromkeys(TWO.exclude)
    }
    cut = area["pen"].union(area["hole"])
    squares = shapely.box(*tiles.T)

    def share(shape):
        return shapely.area(shapely.intersection(squares, shape)) / 100

    shares = np.stack([share(area[name].difference(cut)) for name in ("tumor", "stroma")], axis=1)
    out = share(area["pen"])
    any_class = share(area["tumor"].union(area["stroma"]).difference(cut))
    wanted = np.where(shares.max(axis=1) >= 0.3, shares.argmax(axis=1) + 1, 0)
    wanted = np.where(out >= 0.3, -1, wanted)
    told = np.choose(wanted + 1, [out, 1 - any_class - out, *shares.T])
    found = label_tiles(tiles, objects, by_fraction(TWO, 0.3))
    np.testing.assert_array_equal(found.label, wanted)
    np.testing.assert_allclose(found.fraction, told, atol=1e-6)
    assert set(wanted.tolist()) == {-1, 0, 1, 2}


def test_pieces_of_a_large_outline_are_it():
    shape = blob(np.random.default_rng(1), 500, 500, 400, 20_000)
    pieces = _cut_up([shape])
    assert shapely.get_num_coordinates(pieces).max() <= 128
    assert shapely.area(pieces).sum() == pytest.approx(shape.area)


def test_an_outline_of_many_points_in_one_place_is_cut_for_ever_by_nobody():
    angle = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    shape = Polygon(np.stack([1e6 + 1e-7 * np.cos(angle), 1e6 + 1e-7 * np.sin(angle)], axis=1))
    _cut_up([shapely.make_valid(shape)])


def test_outlines_beside_the_slide_are_refused():
    objects = [
        drawn("fat", box(200, 0, 210, 10)),
        drawn("tumor", box(-20, 0, -5, 10), name="no. 7", where="line 12"),
    ]
    with pytest.raises(AnnotationError) as error:
        place_outlines(objects, TUMOR, (100, 50), "a.xml")
    assert str(error.value) == (
        "a.xml, line 12: the outline 'no. 7' of the group 'tumor' lies outside of the slide, at x "
        "-20 to -5 and y 0 to 10, where the slide has 100 × 50 px. The file may be another "
        "slide's, or count from the slide's bounds: labels.origin=bounds."
    )


def test_what_hangs_over_the_edge_is_clipped():
    objects = [drawn("tumor", box(90, 0, 120, 60)), drawn("fat", box(0, 0, 1, 1))]
    (placed,) = place_outlines(objects, TUMOR, (100, 50), "a.xml")
    assert placed.geometry.bounds == (90, 0, 100, 50)
    assert label(boxes((94, 0)), [placed]) == ([1], [0.6])


def test_counts_and_uniform_labels():
    labels = uniform_labels(2, -1)
    assert (labels.label.tolist(), labels.fraction.tolist()) == ([-1, -1], [0.0, 0.0])
    assert count_labels(labels.label, TWO.classes) == {
        "normal": 0, "tumor": 0, "stroma": 0, "unlabelled": 2,
    }  # fmt: skip
    assert count_labels(uniform_labels(3, 0).label, TUMOR.classes) == {"normal": 3, "tumor": 0}
