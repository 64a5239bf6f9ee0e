"""Lesions, their comparison with what people drew, and slides' scores."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from probability_maps import make_map
from shapely import box

from microtome.errors import TaskError
from microtome_training.predicting.lesions import (
    FROC_RATES,
    Lesion,
    find_lesions,
    froc,
    read_lesions,
    write_lesions,
)
from microtome_training.predicting.scores import score_slide, write_scores


def lesion(slide_id, probability, x, y):
    return Lesion(
        slide_id=slide_id,
        class_name="tumor",
        number=1,
        probability=probability,
        x=x,
        y=y,
        mean_probability=probability,
        tiles=1,
        area_um2=None,
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tiles_over_edges_and_corners_are_one_lesion():
    found = find_lesions(
        make_map(["8.....7", "9.....7", ".8...7.", ".......", "......6"]), mpp=(0.5, 0.5)
    )
    assert [each.tiles for each in found] == [3, 3, 1]
    assert [each.number for each in found] == [1, 2, 3]
    assert [each.probability for each in found] == pytest.approx([0.9, 0.7, 0.6])
    assert found[0].mean_probability == pytest.approx((0.8 + 0.9 + 0.8) / 3)
    assert found[0].area_um2 == pytest.approx(3 * 128 * 128)


def test_lesion_begins_at_the_threshold():
    assert [each.tiles for each in find_lesions(make_map(["54", "44"]), threshold=0.5)] == [1]
    assert find_lesions(make_map(["44"]), threshold=0.5) == []
    assert find_lesions(make_map([]), threshold=0.5) == []


def test_small_lesions_are_left_out():
    found = find_lesions(make_map(["88...9"]), min_tiles=2)
    assert [each.tiles for each in found] == [2]


def test_point_of_a_lesion_is_in_it():
    ring = make_map(["99999", "9...9", "9...9", "9...9", "99999"])
    (found,) = find_lesions(ring)
    inside = ring.coords[ring.probability > 0.5, :2]
    assert ((inside <= (found.x, found.y)) & ((found.x, found.y) < inside + 256)).all(axis=1).any()


def test_point_of_one_tile_is_its_middle():
    (found,) = find_lesions(make_map(["..", ".9"]))
    assert (found.x, found.y) == (384, 384)


def test_overlapping_tiles_are_neighbours_by_their_steps():
    found = find_lesions(make_map(["8.8", "8.8"], step=128), mpp=(0.5, 0.5))
    assert [each.tiles for each in found] == [2, 2]
    assert found[0].area_um2 == pytest.approx(2 * 64 * 64)


def test_fractional_steps_keep_neighbours_together():
    (found,) = find_lesions(make_map(["7" * 40] * 3, step=100.37))
    assert found.tiles == 120


def test_order_of_tiles_does_not_matter():
    found = make_map(["8.7", "..7", "9.."])
    turned = make_map(["8.7", "..7", "9.."], order=np.random.default_rng(0).permutation(9))
    assert find_lesions(found) == find_lesions(turned)


def test_table_of_lesions(tmp_path):
    write_lesions(tmp_path / "lesions.csv", find_lesions(make_map(["9.6"], slide_id="a,b")))
    rows = read(tmp_path / "lesions.csv")
    assert [row["slide_id"] for row in rows] == ["a,b", "a,b"]
    assert [row["probability"] for row in rows] == ["0.900000", "0.600000"]
    assert rows[0]["area_um2"] == ""
    assert (rows[0]["x"], rows[0]["y"]) == ("128.0", "128.0")


def test_table_of_lesions_is_read_back(tmp_path):
    found = find_lesions(make_map(["99.6"]), mpp=(0.5, 0.5))
    write_lesions(tmp_path / "lesions.csv", found)
    again = read_lesions(tmp_path / "lesions.csv")
    assert [(each.slide_id, each.x, each.y, each.area_um2) for each in again] == [
        (each.slide_id, each.x, each.y, each.area_um2) for each in found
    ]
    assert again[0].probability == pytest.approx(0.9)
    (tmp_path / "own.csv").write_text("slide_id,probability,x,y\na,0.5,1,2\n")
    assert [each.y for each in read_lesions(tmp_path / "own.csv")] == [2]
    (tmp_path / "bad.csv").write_text("slide_id,x,y\na,1,2\n")
    for name in ("bad.csv", "none.csv"):
        with pytest.raises(TaskError, match="slide_id, probability, x and y"):
            read_lesions(tmp_path / name)


def test_froc_counts_lesions_once_and_false_alarms_by_slide():
    drawn = {"a": [box(0, 0, 100, 100), box(200, 0, 300, 100)], "b": []}
    found = [
        lesion("a", 0.9, 50, 50),
        lesion("a", 0.6, 60, 60),
        lesion("a", 0.8, 150, 50),
        lesion("a", 0.4, 250, 50),
        lesion("b", 0.7, 10, 10),
        lesion("elsewhere", 0.99, 10, 10),
    ]
    curve = froc(found, drawn)
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.4])
    assert curve.false_positives.tolist() == [0, 0.5, 1, 1]
    assert curve.sensitivity.tolist() == [0.5, 0.5, 0.5, 1]
    assert curve.at == {0.25: 0.5, 0.5: 0.5, 1: 1, 2: 1, 4: 1, 8: 1}
    assert tuple(curve.at) == FROC_RATES
    assert curve.score == pytest.approx(5 / 6)
    assert (curve.lesions, curve.slides) == (2, 2)


def test_froc_takes_a_margin_and_no_find_at_all():
    near = [lesion("a", 0.9, 104, 50)]
    assert froc(near, {"a": [box(0, 0, 100, 100)]}).at[8] == 0
    assert froc(near, {"a": [box(0, 0, 100, 100)]}, margin=5).at[0.25] == 1
    nothing = froc([], {"a": [box(0, 0, 1, 1)]})
    assert nothing.score == 0
    with pytest.raises(ValueError, match="without a drawn lesion"):
        froc(near, {"a": []})


def test_slide_scores():
    values = np.array([0.1, 0.9, 0.5, 0.7], np.float32)
    score = score_slide(values, slide=("a", "p"), class_name="tumor", top_k=2)
    assert score.max == pytest.approx(0.9)
    assert score.top_k_mean == pytest.approx(0.8)
    assert (score.positive_share, score.positive_tiles, score.label) == (0.75, 3, None)
    few = score_slide(values, slide=("a", ""), class_name="tumor", top_k=10)
    assert few.top_k_mean == pytest.approx(0.55)


def test_slide_without_tiles_has_no_score(tmp_path):
    nothing = score_slide(np.empty(0, np.float32), slide=("a", "p"), class_name="tumor")
    assert (nothing.max, nothing.top_k_mean, nothing.positive_share) == (None, None, None)
    labelled = score_slide(
        np.array([0.25], np.float32),
        slide=("b", ""),
        class_name="tumor",
        positive=np.array([True]),
    )
    write_scores(tmp_path / "slides.csv", [nothing, labelled])
    first, second = read(tmp_path / "slides.csv")
    assert (first["max"], first["tiles"], first["label"]) == ("", "0", "")
    assert (second["max"], second["label"], second["patient_id"]) == ("0.250000", "1", "")
