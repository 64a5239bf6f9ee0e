"""The synthetic cohort: the same by seed, its files true to what was painted."""

from __future__ import annotations

import csv
import hashlib
import json
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import tifffile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from microtome.errors import ConfigError
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome.testing import make_cohort

SIZE = (900, 800)
SIDE = 96


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_seed_gives_the_same_files_and_another_gives_others(tmp_path):
    made = [
        digests(make_cohort(tmp_path / str(n), slides=2, tests=1, size=SIZE, seed=seed).folder)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert made[0] == made[1]
    assert all(made[0][name] != made[2][name] for name in made[0] if name.suffix == ".svs")


def test_who_is_who(cohort):
    names = ["slide_01", "slide_02", "slide_03", "slide_04", "test_01", "test_02"]
    assert [slide.slide_id for slide in cohort.slides] == names
    assert [slide.slide_id for slide in cohort.slides if not slide.tumour] == [
        "slide_03",
        "test_02",
    ]
    patients = [slide.patient_id[-1] for slide in cohort.slides]
    assert patients == ["1", "1", "2", "2", "3", "4"]
    assert [slide.slide_id for slide in cohort.slides if slide.excluded] == ["slide_01"]
    assert cohort["slide_02"] is cohort.slides[1]
    rows = list(csv.DictReader(cohort.manifest.read_text().splitlines()))
    assert [row["slide_id"] for row in rows] == names
    for row, slide in zip(rows, cohort.slides, strict=True):
        assert cohort.folder / row["slide"] == slide.path
        assert row["patient_id"] == slide.patient_id
        assert bool(row["annotation_path"]) == bool(slide.tumour)
        assert not row["annotation_path"] or (cohort.folder / row["annotation_path"]).is_file()


def test_slides_open_at_half_a_micrometre(cohort):
    for slide in cohort.slides[:2]:
        with open_slide(SlideRef(path=slide.path, slide_id="a"), reader="openslide") as opened:
            assert opened.info.resolution.mpp == pytest.approx(cohort.mpp)
            assert opened.info.resolution.magnification == 20
            assert (opened.info.width, opened.info.height) == (1024, 896)


def test_both_files_hold_the_outlines(cohort):
    for slide in cohort.slides:
        truth = [("Tumor", each) for each in slide.tumour]
        truth += [("Exclusion", each) for each in slide.excluded]
        asap = cohort.asap / f"{slide.slide_id}.xml"
        assert asap.exists() == bool(truth)
        if not truth:
            continue
        found = [
            (one.get("PartOfGroup"), [(float(c.get("X")), float(c.get("Y"))) for c in one[0]])
            for one in ElementTree.parse(asap).getroot().iter("Annotation")
        ]
        features = json.loads((cohort.geojson / f"{slide.slide_id}.geojson").read_text())
        drawn = [
            (each["properties"]["classification"]["name"], each["geometry"]["coordinates"][0])
            for each in features["features"]
        ]
        for (group, outline), (one, points), (other, ring) in zip(truth, found, drawn, strict=True):
            assert group == one == other
            assert np.allclose(points, outline)
            assert np.allclose(ring[:-1], outline)
            assert ring[0] == ring[-1]
            assert (outline >= 0).all()
            assert (outline <= (1024, 896)).all()


def look(slides):
    """Give the mean colours, the granularity and the labels of tiles on tissue."""
    colours, grain, labels = [], [], []
    for slide in slides:
        image = tifffile.imread(slide.path, key=0)
        inside = np.zeros(image.shape[:2], np.uint8)
        if slide.tumour:
            cv2.fillPoly(inside, [each.round().astype(int) for each in slide.tumour], 1)
        for y in range(0, image.shape[0] - SIDE + 1, SIDE):
            for x in range(0, image.shape[1] - SIDE + 1, SIDE):
                tile, share = image[y : y + SIDE, x : x + SIDE], inside[y : y + SIDE, x : x + SIDE]
                if (tile.min(axis=2) < 215).mean() > 0.9 and not 0.2 < share.mean() < 0.8:
                    colours.append(tile.mean(axis=(0, 1)))
                    grain.append(tile.std(axis=(0, 1)))
                    labels.append(share.mean() > 0.5)
    return np.array(colours), np.array(grain), np.array(labels)


def test_tumour_is_told_by_texture_and_hardly_by_colour(tmp_path):
    """What a classifier reaches of held-out slides by colour alone, and with the spread of it."""
    cohort = make_cohort(tmp_path, slides=8, size=(1280, 1024))
    colours, grain, labels = look(cohort.slides[1::2])
    held_colours, held_grain, held_labels = look(cohort.slides[::2])

    def reach(train, held):
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        model = LogisticRegression(max_iter=1000).fit((train - mean) / deviation, labels)
        return roc_auc_score(held_labels, model.decision_function((held - mean) / deviation))

    assert 20 < held_labels.sum() < len(held_labels) - 20
    assert reach(colours, held_colours) < 0.85
    assert reach(np.hstack([colours, grain]), np.hstack([held_colours, held_grain])) > 0.95


def test_what_makes_no_cohort_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 slides cannot have 3"):
        make_cohort(tmp_path, slides=2, tests=3)
    with pytest.raises(ConfigError, match="too small to outline"):
        make_cohort(tmp_path, slides=1, tests=0, size=(160, 160))
