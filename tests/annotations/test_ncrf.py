"""CAMELYON's outlines as JSON."""

from __future__ import annotations

import pytest
from annotation_files import put

from microtome.errors import AnnotationError
from microtome_annotations.ncrf import NcrfReader

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
INNER = [[40, 40], [60, 40], [60, 60], [40, 60]]


def polygon(vertices, name="_0"):
    return {"name": name, "vertices": vertices}


def read(tmp_path, tree):
    return NcrfReader().read(put(tmp_path / "slide.json", tree))


def test_what_is_negative_is_a_hole_and_a_group(tmp_path) -> None:
    found = read(tmp_path, {"positive": [polygon(SQUARE)], "negative": [polygon(INNER, "_2")]})
    assert [(a.group, a.name, a.geometry.area) for a in found] == [
        ("positive", "_0", 9_600),
        ("negative", "_2", 400),
    ]
    assert [a.where for a in found] == ["positive[0]", "negative[0]"]


def test_either_may_be_missing(tmp_path) -> None:
    assert [a.group for a in read(tmp_path, {"positive": [polygon(SQUARE)]})] == ["positive"]
    assert list(read(tmp_path, {"negative": []})) == []


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"positive": 3}, "positive: it is no list of polygons"),
        ({"positive": [polygon(SQUARE), 4]}, "positive[1]: it has no list of vertices"),
        ({"positive": [{"name": "_0"}]}, "positive[0]: it has no list of vertices"),
        ({"positive": [polygon(SQUARE[:2])]}, "positive[0].vertices: it has 2 points, and an area"),
        (
            {"negative": [polygon([[0, 0], [1, "a"]])]},
            "negative[0].vertices: its point 2 is [1, 'a'",
        ),
        ({"tumor": []}, "has neither 'positive' nor 'negative' polygons"),
        ([], "has neither 'positive' nor 'negative' polygons"),
    ],
)
def test_what_is_malformed_is_told_with_its_place(tmp_path, tree, told) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, tree)
    assert str(caught.value).startswith(str(tmp_path / "slide.json"))
    assert told in str(caught.value)
