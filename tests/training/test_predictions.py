"""The file of predictions: what it holds, and what is refused as one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import make_predictions
from run_checks import leftovers

from microtome.errors import StoreError, TaskError
from microtome_training.predictions import (
    Predictions,
    read_predictions,
    to_table,
    write_predictions,
)
from microtome_training.stores import read_tiles
from microtome_training.tiles import Tiles


def same(one, two):
    names = ("slide_ids", "patient_ids", "splits", "classes", "model", "sources", "labelled")
    arrays = ("slide", "coords", "label", "probabilities")
    assert all(getattr(one, name) == getattr(two, name) for name in names)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays)
    return True


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_written_is_read(tmp_path, classes):
    made = make_predictions(
        classes=classes,
        patients=True,
        model={"digest": "abc", "seed": 42},
        sources={"slide00": "/slides/a b.svs"},
        labelled={"slide00": {"coords": "c", "labels": "l"}},
    )
    write_predictions(tmp_path / "p.parquet", made)
    assert same(read_predictions(tmp_path / "p.parquet"), made)


def test_the_columns_are_the_documented_ones(tmp_path):
    write_predictions(tmp_path / "p.parquet", make_predictions(patients=True), csv=True)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == [
        *("slide_id", "patient_id", "split", "x", "y", "read_w", "read_h", "level", "label"),
        *("prob_normal", "prob_tumor", "pred"),
    ]
    about = json.loads(table.schema.metadata[b"microtome"])
    assert about["classes"] == ["normal", "tumor"]
    row = table.slice(7, 1).to_pylist()[0]
    assert row["pred"] == int(row["prob_tumor"] >= 0.5)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].replace('"', "") == ",".join(table.column_names)
    assert len(lines) == 1 + len(table)


def test_the_file_does_not_depend_on_the_order_of_tiles_and_slides(tmp_path):
    made = make_predictions()
    shuffled = made.take(np.random.default_rng(0).permutation(len(made)))
    turned = replace(
        shuffled, slide_ids=made.slide_ids[::-1], slide=(7 - shuffled.slide).astype(np.int32)
    )
    for name, each in (("a", made), ("b", turned)):
        write_predictions(tmp_path / name, each)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_are_kept_whatever_they_are(tmp_path):
    names = ("<script>alert(1)</script>", "a,b\n.svs", "スライド")
    made = make_predictions(
        tiles=30, slides=3, slide_ids=names, classes=2, patient_ids=('"', "\\", "'")
    )
    write_predictions(tmp_path / "p.parquet", replace(made, classes=("no, thing", "prob_x=1")))
    read = read_predictions(tmp_path / "p.parquet")
    assert set(read.slide_ids) == set(names)
    assert read.classes == ("no, thing", "prob_x=1")
    with pytest.raises(TaskError, match="no text that a table can hold"):
        make_predictions(tiles=3, slides=1, slide_ids=("\udcff",))


def test_no_tiles_are_a_table_too(tmp_path):
    made = make_predictions().take(np.zeros(400, bool))
    write_predictions(tmp_path / "p.parquet", made)
    assert len(read_predictions(tmp_path / "p.parquet")) == 0


def test_a_file_that_cannot_be_replaced_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    write_predictions(path, make_predictions())
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreError, match="free some space"):
        write_predictions(path, make_predictions(seed=1))
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


def spoil(table, **columns):
    """Replace columns of a table; None drops one."""
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if values is not None:
            table = table.add_column(place, name, values)
    return table


COUNT = 400
SPOILT = {
    "no_label": ({"label": None}, "it lacks the columns label; it has slide_id"),
    "no_class": ({"prob_tumor": None}, "it lacks the columns prob_tumor"),
    "text": ({"x": pa.array(["a"] * COUNT)}, "the column x holds string"),
    "halves": ({"x": pa.array([0.5] * COUNT)}, "the column x does not hold int32"),
    "numbers": ({"slide_id": pa.array([1] * COUNT)}, "the column slide_id holds int64, not text"),
    "empty": ({"label": pa.array([None] * COUNT, pa.int16())}, "label is empty in 400 rows"),
    "class": ({"label": pa.array([2] * COUNT)}, r"label 2 is none of the 2 classes normal, tumor"),
    "nan": ({"prob_tumor": pa.array([np.nan] * COUNT)}, "are no probabilities, as of 400 tiles"),
    "sum": ({"prob_tumor": pa.array([1.0] * COUNT)}, "must be from 0 to 1, and 1 in sum"),
    "leak": (
        {"split": pa.array(["train", "test"] * (COUNT // 2))},
        "slide00 has two values of split: 'train' and 'test'",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_no_predictions_is_refused_in_a_sentence(tmp_path, what):
    columns, why = SPOILT[what]
    path = tmp_path / "p.parquet"
    pq.write_table(spoil(to_table(make_predictions()), **columns), path)
    with pytest.raises(TaskError, match=why) as refused:
        read_predictions(path)
    assert str(refused.value).startswith(str(path))


def test_what_is_no_parquet_is_refused(tmp_path):
    with pytest.raises(TaskError, match="no such predictions"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("slide_id,x\n")
    with pytest.raises(TaskError, match="cannot be read as Parquet"):
        read_predictions(tmp_path / "text.parquet")


def test_a_file_of_a_later_format_is_refused(tmp_path):
    table = to_table(make_predictions())
    pq.write_table(
        table.replace_schema_metadata({b"microtome": b'{"format": 99}'}), tmp_path / "p.parquet"
    )
    with pytest.raises(TaskError, match="it has format 99; this microtome knows 1"):
        read_predictions(tmp_path / "p.parquet")


def test_anybody_may_write_such_a_file(tmp_path):
    made = make_predictions()
    plain = to_table(made).replace_schema_metadata(None)
    wide = spoil(plain, label=pa.array(made.label.astype(np.int64)))
    texts = {name: wide[name].cast(pa.string()) for name in ("slide_id", "patient_id", "split")}
    pq.write_table(spoil(wide, **texts), tmp_path / "p.parquet")
    assert same(read_predictions(tmp_path / "p.parquet"), made)


def test_predictions_of_tiles_go_by_the_names_of_classes(labelled, make_job):
    tiles = read_tiles(make_job(labelled))
    assert isinstance(tiles, Tiles)
    assert tiles.classes == ("normal", "tumor")
    shares = np.tile(np.float32([0.2, 0.3, 0.5]), (len(tiles), 1))
    given = {"splits": {tiles.slides[0].slide_id: "val"}, "model": {"digest": "d"}}
    made = Predictions.of_tiles(tiles, shares, classes=("tumor", "other", "normal"), **given)
    for old, new in ((0, 2), (1, 0), (-1, -1)):
        assert (made.label[tiles.label == old] == new).all()
    assert made.splits[0] == "val"
    assert set(made.splits[1:]) == {""}
    assert made.sources[made.slide_ids[0]] == tiles.slides[0].source
    with pytest.raises(TaskError, match="labelled tumor, which the model does not know"):
        Predictions.of_tiles(tiles, shares, classes=("normal", "fat", "other"), **given)
