"""``task="index"`` from Python, and what is told of a manifest beside a folder of outlines."""

from __future__ import annotations

import shutil

import pytest
from label_runs import GRID, LABELS, SQUARE, asap, of_class, read, square
from run_checks import states

import microtome
from microtome.errors import ConfigError


def index(slide, out, **options):
    given = {"segmenter": "none", "tiler": GRID, "labels": LABELS, **options}
    return microtome.run_slides(slide, out, task="index", **given)


def test_it_ends_with_labelled_coordinates(slide, ann, tmp_path):
    assert states(index(slide, tmp_path / "out", annotations=ann)) == ["done"]
    path = tmp_path / "out/patches/one.h5"
    assert of_class(read(path)[0]) == square(256, 256, 1024, 1024)
    with microtome.open_result(path) as stored:
        assert stored.feature_names() == []


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "give annotations=FOLDER"), ({"labels": {}}, "labels.classes names none")],
)
def test_what_labels_nothing_is_refused(slide, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        index(slide, tmp_path / "out", **options)


def test_a_file_that_the_manifest_overrules_is_told_and_is_no_stranger(label, slide, ann, tmp_path):
    asap(ann / "other name.xml", SQUARE)
    table = tmp_path / "m.csv"
    shutil.copy(slide, slide.with_name("two.svs"))
    lines = ["slide,annotation_path", "slides/one.svs,ann/other name.xml", "slides/two.svs,"]
    table.write_text("\n".join(lines))
    told = (
        f"{ann}: one.xml is not looked at: the manifest's annotation_path names another file for "
        "the slide."
    )
    notes = label(table, task="coords").notes
    assert told in notes
    assert not [note for note in notes if "named as no slide" in note and "one.xml" in note]
    (ann / "one.xml").unlink()
    assert told not in label(table, task="coords").notes
