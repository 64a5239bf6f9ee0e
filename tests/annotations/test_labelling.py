"""From a viewer's file to the label of a tile, through groups that are part of others."""

from __future__ import annotations

import numpy as np
import pytest
from annotation_files import asap, asap_annotation, collection, feature, put

from microtome.run.inputs.annotated import read_annotations
from microtome.slide.labels import LabelRule, call_by_named, label_tiles

LEFT, RIGHT = ([(x, 0), (x + 100, 0), (x + 100, 100), (x, 100)] for x in (0, 100))
TILES = np.array([[0, 0, 100, 100], [100, 0, 200, 100]], float)

GROUPS = '<Group Name="Invasive" PartOfGroup="Tumor"/><Group Name="Tumor" PartOfGroup="None"/>'
FILES = {
    "slide.xml": asap(
        asap_annotation(LEFT, group="Invasive"),
        asap_annotation(RIGHT, group="Tumor"),
        groups=GROUPS,
    ),
    "slide.geojson": collection(
        [
            feature([LEFT], classification={"names": ["Tumor", "Invasive"]}),
            feature([RIGHT], classification={"name": "Tumor"}),
        ]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_group_counts_as_what_it_is_part_of_unless_named_itself(tmp_path, name) -> None:
    drawn = read_annotations(put(tmp_path / name, FILES[name]))
    inner = drawn[0].group.casefold()
    of_one = LabelRule(classes=("normal", "tumor"), groups={"tumor": 1}, exclude_others=True)
    apart = LabelRule(classes=("normal", "tumor", "inner"), groups={"tumor": 1, inner: 2})
    without = LabelRule(
        classes=("normal", "tumor"), groups={"tumor": 1}, exclude=frozenset({inner})
    )
    found = [
        label_tiles(TILES, call_by_named(drawn, rule), rule).label.tolist()
        for rule in (of_one, apart, without)
    ]
    assert found == [[1, 1], [2, 1], [-1, 1]]


def test_outlines_in_no_group_can_be_named(tmp_path) -> None:
    drawn = read_annotations(put(tmp_path / "slide.xml", asap(asap_annotation(LEFT, group="None"))))
    rule = LabelRule(classes=("normal", "tumor"), groups={"": 1})
    assert label_tiles(TILES, call_by_named(drawn, rule), rule).label.tolist() == [1, 0]
