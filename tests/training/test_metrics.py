"""What is measured of predictions, held against scikit-learn and against counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import make_predictions
from sklearn import metrics as sk

from microtome.errors import ConfigError, TaskError
from microtome_training.evaluation.bootstrap import (
    MOST_BINS,
    curves,
    draw_units,
    interval,
    strata_by_class,
)
from microtome_training.evaluation.counting import calibration_error, curve_measures
from microtome_training.evaluation.metrics import measure, top_mean
from microtome_training.options.evaluate import MeasureOptions, ResampleBy

FEW = MeasureOptions(bootstrap=50)


def values(measured, level, class_name=""):
    return {
        each.metric: each.value
        for each in measured.metrics
        if (each.level, each.class_name) == (level, class_name)
    }


@pytest.mark.parametrize("digits", [None, 1])
def test_tiles_of_two_classes_are_measured_as_by_scikit_learn(digits):
    made = make_predictions(digits=digits)
    truth, score = made.label, made.probabilities[:, 1]
    called = score >= 0.5
    measured = measure(made, FEW)
    expected = {
        "auroc": sk.roc_auc_score(truth, score),
        "auprc": sk.average_precision_score(truth, score),
        "sensitivity": sk.recall_score(truth, called),
        "specificity": sk.recall_score(truth, called, pos_label=0),
        "precision": sk.precision_score(truth, called),
        "f1": sk.f1_score(truth, called),
    }
    own = values(measured, "tile", "tumor")
    assert {name: own[name] for name in expected} == pytest.approx(expected)
    expected = {
        "loss": sk.log_loss(truth, score.astype(np.float64)),
        "accuracy": sk.accuracy_score(truth, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
    }
    assert values(measured, "tile") == pytest.approx(expected, rel=1e-5)
    assert measured.confusion.tolist() == sk.confusion_matrix(truth, called).tolist()


def test_three_classes_are_measured_one_against_the_others_and_on_average():
    made = make_predictions(classes=3)
    truth, shares = made.label, made.probabilities
    called = shares.argmax(1)
    measured = measure(made, FEW)
    aurocs = [sk.roc_auc_score(truth == number, shares[:, number]) for number in range(3)]
    for number, name in enumerate(made.classes):
        own = values(measured, "tile", name)
        assert own["auroc"] == pytest.approx(aurocs[number])
        assert own["f1"] == pytest.approx(sk.f1_score(truth == number, called == number))
    together = values(measured, "tile")
    assert together["macro_auroc"] == pytest.approx(np.mean(aurocs))
    assert together["macro_f1"] == pytest.approx(sk.f1_score(truth, called, average="macro"))
    assert together["accuracy"] == pytest.approx(sk.accuracy_score(truth, called))
    macro = measured.find("tile", "macro_auroc")
    assert macro.low < macro.value < macro.high
    assert macro.draws == 50


def test_sensitivity_is_told_at_every_specificity_that_is_asked_for():
    made = make_predictions(digits=2)
    truth, score = made.label == 1, made.probabilities[:, 1]
    options = MeasureOptions(bootstrap=0, specificities=[0.5, 0.95])
    own = values(measure(made, options), "tile", "tumor")
    for wanted in (0.5, 0.95):
        reached = [
            (score[truth] >= t).mean()
            for t in [*np.unique(score), 2]
            if (score[~truth] < t).mean() >= wanted
        ]
        assert own[f"sensitivity_at_specificity_{wanted:g}"] == pytest.approx(max(reached))


@pytest.mark.parametrize("digits", [None, 1])
def test_a_draw_measures_what_copies_of_its_slides_would(digits):
    made = make_predictions(digits=digits)
    truth, score, unit = made.label == 1, made.probabilities[:, 1], made.slide
    drawn = draw_units(np.zeros(8, np.int64), 20, seed=3)
    ((hits, alarms),) = curves(truth, score, unit, drawn)
    measured = curve_measures(hits, alarms, [0.9])
    for number, weights in enumerate(drawn):
        copies = np.repeat(np.arange(len(unit)), weights[unit].astype(int))
        assert measured["auroc"][number] == pytest.approx(
            sk.roc_auc_score(truth[copies], score[copies])
        )
        assert measured["auprc"][number] == pytest.approx(
            sk.average_precision_score(truth[copies], score[copies])
        )


def test_scores_too_many_to_be_kept_apart_move_a_draw_by_less_than_a_thousandth():
    made = make_predictions(tiles=30_000, slides=12)
    truth, score, unit = made.label == 1, made.probabilities[:, 1], made.slide
    assert len(np.unique(score)) > 2 * MOST_BINS
    drawn = draw_units(np.arange(12) % 2, 5, seed=3)
    ((hits, alarms),) = curves(truth, score, unit, drawn)
    measured = curve_measures(hits, alarms, [0.95])
    for number, weights in enumerate(drawn[:, unit]):
        exact = sk.roc_auc_score(truth, score, sample_weight=weights)
        assert measured["auroc"][number] == pytest.approx(exact, abs=1e-4)
        exact = sk.average_precision_score(truth, score, sample_weight=weights)
        assert measured["auprc"][number] == pytest.approx(exact, abs=1e-3)
        down, up, _ = sk.roc_curve(truth, score, sample_weight=weights)
        exact = up[down <= 0.05].max()
        found = measured["sensitivity_at_specificity_0.95"][number]
        assert found == pytest.approx(exact, abs=2e-3)


def test_values_are_of_every_score_however_many_there_are():
    made = make_predictions(tiles=30_000, slides=12)
    truth, score = made.label == 1, made.probabilities[:, 1]
    own = values(measure(made, MeasureOptions(bootstrap=0)), "tile", "tumor")
    down, up, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    assert own["sensitivity_at_specificity_0.95"] == pytest.approx(up[down <= 0.05].max(), abs=1e-9)
    assert own["auroc"] == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-12)
    assert own["auprc"] == pytest.approx(sk.average_precision_score(truth, score), abs=1e-12)


def test_intervals_know_that_tiles_of_a_slide_are_no_independent_observations():
    made = make_predictions()
    names = ("slide", "coords", "label", "probabilities")
    tenfold = replace(made, **{name: np.repeat(getattr(made, name), 10, axis=0) for name in names})
    once, often = measure(made), measure(tenfold)
    for metric in ("auroc", "auprc", "sensitivity"):
        one, ten = (each.find("tile", metric, "tumor") for each in (once, often))
        assert one.high - one.low > 0.02
        assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_intervals_come_from_the_seed_and_from_no_order():
    made = make_predictions(patients=True)
    shuffled = made.take(np.random.default_rng(1).permutation(len(made)))
    back = replace(
        shuffled,
        slide_ids=made.slide_ids[::-1],
        patient_ids=made.patient_ids[::-1],
        slide=(7 - shuffled.slide).astype(np.int32),
    )
    first = measure(made.of_splits("test"), FEW).metrics
    assert measure(back.of_splits("test"), FEW).metrics == first
    other = measure(made.of_splits("test"), MeasureOptions(bootstrap=50, seed=7)).metrics
    assert [each.value for each in other] == [each.value for each in first]
    assert [each.low for each in other] != [each.low for each in first]


def test_no_draw_loses_the_rarest_class():
    present = np.zeros((20, 3), bool)
    present[:, 0] = True
    present[3:5, 1] = True  # two slides of twenty
    present[10:18, 2] = True
    drawn = draw_units(strata_by_class(present), 500, seed=0)
    assert (drawn.sum(1) == 20).all()
    assert (drawn @ present[:, 1] == 2).all()
    assert (drawn @ present[:, 2] == 8).all()


def test_patients_are_drawn_where_they_are_known():
    known = measure(make_predictions(patients=True), FEW)
    assert (known.units, known.unit_count) == ("patients", 4)
    by_slide = MeasureOptions(bootstrap=50, resample=ResampleBy.slide)
    assert measure(make_predictions(patients=True), by_slide).unit_count == 8
    assert measure(make_predictions(), FEW).units == "slides"
    by_patient = MeasureOptions(resample=ResampleBy.patient)
    with pytest.raises(TaskError, match="whose slide slide00 is"):
        measure(make_predictions(), by_patient)


@pytest.mark.parametrize(
    ("label", "why", "balanced"), [(0, "no tile is tumor", "normal"), (1, "every tile is", "tumor")]
)
def test_what_one_class_does_not_define_is_none_and_says_why(label, why, balanced):
    made = make_predictions()
    made = replace(made, label=np.full_like(made.label, label))
    measured = measure(made, FEW)
    for metric in ("auroc", "auprc", "sensitivity_at_specificity_0.95"):
        found = measured.find("tile", metric, "tumor")
        assert (found.value, found.low, found.high) == (None, None, None)
        assert why in found.note
    missing = "sensitivity" if label == 0 else "specificity"
    assert measured.find("tile", missing, "tumor").value is None
    balance = measured.find("tile", "balanced_accuracy")
    assert (balance.value, balance.note) == (None, f"every tile is {balanced}")
    assert measured.find("tile", "accuracy").value is not None
    assert measured.find("slide_max", "auroc", "tumor").value is None


def test_a_class_that_is_never_predicted_has_no_precision():
    made = make_predictions()
    sure = np.tile(np.float32([0.9, 0.1]), (len(made), 1))
    found = measure(replace(made, probabilities=sure), FEW).find("tile", "precision", "tumor")
    assert (found.value, found.note) == (None, "no tile is predicted tumor")


def test_one_slide_has_measures_but_no_interval():
    measured = measure(make_predictions(tiles=60, slides=1), FEW)
    found = measured.find("tile", "auroc", "tumor")
    assert found.value is not None
    assert (found.low, found.high, found.draws) == (None, None, 0)
    assert found.note == "too few slides to draw from (1): no interval"
    none = measure(make_predictions(), MeasureOptions(bootstrap=0)).find("tile", "loss")
    assert "bootstrap=0" in none.note


def test_an_interval_of_too_few_draws_is_none():
    low, high, usable = interval(np.array([0.5, 0.6, np.nan, 0.7]), 0.95)
    assert (low, high, usable) == (pytest.approx(0.505), pytest.approx(0.695), 3)
    assert interval(np.array([0.5, np.nan, np.nan]), 0.95) == (None, None, 1)


def test_a_class_that_occurs_on_one_slide_of_many_says_how_many_draws_were_usable():
    made = make_predictions(tiles=900, slides=9, classes=3)
    # Stroma shares its only slide with the rarest class there is: it is drawn, or not.
    label = np.where(made.label > 0, 0, made.label)
    label[made.slide == 0] = 2
    label[(made.slide == 0) & (np.arange(900) % 2 == 0)] = 1
    label[(made.slide == 1) & (np.arange(900) % 2 == 0)] = 1
    found = measure(replace(made, label=label.astype(np.int16)), FEW)
    assert found.find("tile", "auroc", "stroma").draws == 50
    assert 25 < found.find("tile", "auroc", "tumor").draws <= 50


def test_slides_are_scored_by_their_highest_tiles():
    made = make_predictions()
    measured = measure(made, MeasureOptions(bootstrap=0, top_k=3))
    score, positive = made.probabilities[:, 1], made.label == 1
    parts = [score[made.slide == number] for number in range(8)]
    truth = [positive[made.slide == number].any() for number in range(8)]
    highest = [part.max() for part in parts]
    best_three = [np.sort(part)[-3:].mean() for part in parts]
    found = values(measured, "slide_max", "tumor")
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, highest))
    assert found["accuracy"] == pytest.approx(np.mean((np.array(highest) >= 0.5) == truth))
    assert found["sensitivity"] == pytest.approx(sk.recall_score(truth, np.array(highest) >= 0.5))
    found = values(measured, "slide_top_k_mean", "tumor")
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, best_three))
    assert [slide.max_score for slide in measured.slides] == pytest.approx(highest)
    assert [slide.top_k_mean for slide in measured.slides] == pytest.approx(best_three)
    assert measured.find("slide_max", "auroc", "tumor").n == 8


@pytest.mark.parametrize("digits", [None, 1])
def test_slides_have_areas_of_their_own_where_they_have_both_classes(digits):
    made = make_predictions(digits=digits)
    for number, slide in enumerate(measure(made, FEW).slides):
        own = made.slide == number
        if number % 2:
            assert slide.auroc is None
        else:
            exact = sk.roc_auc_score(made.label[own], made.probabilities[own, 1])
            assert slide.auroc == pytest.approx(exact)
        assert slide.accuracy == pytest.approx((made.predicted() == made.label)[own].mean())


def test_a_slide_of_fewer_tiles_is_scored_by_all_of_them():
    slide, score = np.array([0, 1, 1]), np.float32([0.2, 0.4, 0.8])
    assert top_mean(slide, score, k=2).tolist() == pytest.approx([0.2, 0.6])


def test_tiles_without_a_label_are_left_out():
    made = make_predictions()
    label = made.label.copy()
    label[made.slide == 3] = -1
    label[::5] = -1
    known = label >= 0
    measured = measure(replace(made, label=label), FEW)
    assert measured.confusion.sum() == known.sum()
    assert "slide03" not in [slide.slide_id for slide in measured.slides]
    exact = sk.roc_auc_score(label[known], made.probabilities[known, 1])
    assert measured.find("tile", "auroc", "tumor").value == pytest.approx(exact)
    with pytest.raises(TaskError, match="None of 400 tiles has a label"):
        measure(replace(made, label=np.full_like(label, -1)))


def test_calibration_counts_how_far_shares_are_from_probabilities():
    bins = np.array([[10, 1.0, 3.0], [0, 0, 0], [30, 27.0, 24.0]])
    assert calibration_error(bins) == pytest.approx((2 + 3) / 40)
    made = make_predictions(tiles=20_000)
    drawn = np.random.default_rng(9).random(len(made)) < made.probabilities[:, 1]
    honest = measure(replace(made, label=drawn.astype(np.int16)), FEW)
    assert honest.find("tile", "ece", "tumor").value < 0.01
    assert measure(made, FEW).find("tile", "ece", "tumor").value > 0.05


@pytest.mark.parametrize(
    ("option", "value"),
    [("threshold", 0), ("confidence", 1), ("specificities", [0.9, 1.5]), ("top_k", 0), ("bins", 0)],
)
def test_options_that_make_no_sense_are_refused(option, value):
    with pytest.raises(ConfigError, match=rf"evaluate\.{option}="):
        measure(make_predictions(), MeasureOptions(**{option: value}))
