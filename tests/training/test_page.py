"""The evaluation: its tables, its plots and its page, also in a real browser."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import find_chromium, open_tab
from made_predictions import make_predictions
from PIL import Image
from run_checks import files, leftovers

from microtome.__main__ import main
from microtome.errors import MicrotomeError, SlideOpenError, TaskError
from microtome.run.settings import Choice
from microtome_training.evaluation import task as evaluation
from microtome_training.evaluation.metrics import tile_loss
from microtome_training.evaluation.pictures import SlidePictures, slide_openers
from microtome_training.evaluation.task import COLUMNS, choose_split, evaluate
from microtome_training.options.evaluate import MeasureOptions
from microtome_training.predicting.results import heatmap_path
from microtome_training.predictions import Predictions, write_predictions
from microtome_training.stores import read_tiles

FEW = MeasureOptions(bootstrap=40)
HOSTILE = "<script>alert('slide')</script>"


class Painted:
    """Pictures of one colour; none of one slide."""

    def __init__(self, missing=""):
        self.missing, self.asked = missing, []

    def thumbnail(self, slide_id):
        if slide_id == self.missing:
            raise SlideOpenError(f"{slide_id} is elsewhere")
        return np.full((30, 40, 3), 200, np.uint8)

    def tile(self, slide_id, place):
        self.asked.append((slide_id, *place[:2].tolist()))
        return np.full((16, 16, 3), 120, np.uint8)


def text_of(page):
    return html.unescape(re.sub(r"data:image/\w+;base64,[^\" ]+", "DATA", page.read_text()))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Give the report of an evaluation of hostile names, with pictures but of one slide."""
    made = make_predictions(slides=8, model={"digest": "abc", "seed": 42})
    made = replace(made, slide_ids=(HOSTILE, "a&b", *made.slide_ids[2:]))
    folder = tmp_path_factory.mktemp("evaluated")
    options = MeasureOptions(bootstrap=40, shown_slides=4)
    return evaluate(made, folder, options=options, pictures=Painted("slide04"))


def test_the_tables_hold_what_was_measured(evaluated):
    with (evaluated.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert tuple(rows[0])[:7] == ("level", "class", "metric", "value", "low", "high", "n")
    assert len(rows) == len(evaluated.measured.metrics)
    told = json.loads((evaluated.folder / "metrics.json").read_text())
    for row, metric, plain in zip(rows, evaluated.measured.metrics, told["metrics"], strict=True):
        assert (row["level"], row["class"], row["metric"]) == (
            *(metric.level, metric.class_name, metric.metric),
        )
        assert float(row["value"]) == pytest.approx(metric.value, rel=1e-4)
        assert plain["value"] == metric.value
        assert plain["class"] == metric.class_name
    assert told["confusion"] == evaluated.measured.confusion.tolist()
    with (evaluated.folder / "slide_metrics.csv").open() as file:
        slides = list(csv.DictReader(file))
    assert {slide["slide_id"] for slide in slides} >= {HOSTILE, "a&b"}


def test_what_is_not_defined_is_an_empty_cell_with_its_reason(tmp_path):
    made = make_predictions()
    evaluate(replace(made, label=np.zeros_like(made.label)), tmp_path, options=FEW)
    with (tmp_path / "metrics.csv").open() as file:
        rows = {(row["level"], row["metric"]): row for row in csv.DictReader(file)}
    undefined = rows["tile", "auroc"]
    assert (undefined["value"], undefined["low"], undefined["draws"]) == ("", "", "0")
    assert undefined["note"] == "no tile is tumor"
    told = json.loads((tmp_path / "metrics.json").read_text())
    values = {(each["level"], each["metric"]): each["value"] for each in told["metrics"]}
    assert values["tile", "auroc"] is None
    # A curve of one class is none.
    assert not (tmp_path / "plots" / "roc.png").exists()
    assert "no tile is tumor" in text_of(tmp_path / "evaluation.html")


def test_the_plots_are_pictures(evaluated):
    plots = sorted(path.name for path in (evaluated.folder / "plots").iterdir())
    assert plots == [
        *("calibration.png", "confusion.png", "precision_recall.png", "roc.png", "scores.png"),
    ]
    for name in plots:
        with Image.open(evaluated.folder / "plots" / name) as image:
            assert min(image.size) > 500
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert not leftovers(evaluated.folder)


def test_names_of_slides_are_no_markup(evaluated):
    page = evaluated.page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page


def test_the_page_needs_no_network(evaluated):
    page = evaluated.page.read_text()
    loaded = re.findall(r"(?:src|srcset|href)=\"([^\"]{0,20})", page)
    assert loaded
    assert all(each.startswith(("data:image/", "#")) for each in loaded)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "url(" not in page


def test_every_picture_has_words_and_every_table_heads(evaluated):
    page = evaluated.page.read_text()
    alts = re.findall(r"<img [^>]*?alt=\"([^\"]*)\"", page)
    assert len(alts) == page.count("<img ")
    assert all(alts)
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_a_picture_that_cannot_be_had_says_why(evaluated):
    assert "No picture: slide04 is elsewhere" in text_of(evaluated.page)


def test_slides_are_told_from_the_worst_and_from_the_best(evaluated):
    text = text_of(evaluated.page)
    ordered = sorted(evaluated.measured.slides, key=lambda slide: -slide.loss)
    part = text[text.index("Worst slides") : text.index("Most wrong tiles</h2>")]
    told = re.findall(r'<span class="name">(.*?)</span>', part)
    assert told == [slide.slide_id for slide in [*ordered[:4], *ordered[:3:-1]]]


@pytest.fixture
def unplotted(monkeypatch):
    """Draw no plots, which take most of the time."""
    monkeypatch.setattr(evaluation, "draw_plots", lambda *args: [])


@pytest.mark.usefixtures("unplotted")
def test_the_most_wrong_tiles_are_shown_and_few_of_one_slide(tmp_path):
    made, pictures = make_predictions(), Painted()
    evaluate(made, tmp_path, options=replace(FEW, shown_tiles=6), pictures=pictures)
    loss, called = tile_loss(made), made.predicted()
    for kind, label in ((0, 0), (1, 1)):
        wrong = np.flatnonzero((made.label == label) & (called != label))
        wrong = wrong[np.argsort(-loss[wrong], kind="stable")]
        expected, of = [], []
        for row in wrong:
            if of.count(made.slide[row]) < 4:
                of.append(made.slide[row])
                expected.append((made.slide_ids[made.slide[row]], *made.coords[row, :2].tolist()))
        assert pictures.asked[kind * 6 : kind * 6 + 6] == expected[:6]


def test_equal_predictions_are_an_equal_evaluation(tmp_path):
    made = make_predictions()
    shuffled = made.take(np.random.default_rng(0).permutation(len(made)))
    for name, each in (("a", made), ("b", shuffled)):
        evaluate(each, tmp_path / name, options=FEW, pictures=Painted())
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_names_of_classes_are_drawn_and_told_as_they_are(tmp_path):
    made = make_predictions(classes=3)
    names = ("_normal", "$\\frac{a}$", "<b>腫瘍</b>")
    report = evaluate(replace(made, classes=names), tmp_path, options=FEW, pictures=Painted())
    text = report.page.read_text()
    assert "<b>腫瘍" not in text
    assert "&lt;b&gt;腫瘍" in text
    assert "macro_auroc" in (tmp_path / "metrics.csv").read_text()
    assert "one class predicted as another" in text


def test_the_lines_tell_the_measures_with_their_intervals(evaluated):
    lines = evaluated.lines()
    found = evaluated.measured.find("tile", "auroc", "tumor")
    told = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    assert lines[0] == "test: 8 slides, 400 tiles"
    assert f"  AUROC (tiles tumor): {told}" in lines


def test_the_split_is_test_before_val_and_never_train():
    splits = ("train", "val", "test", "", *["train"] * 4)
    made = make_predictions(splits=splits)
    name, chosen = choose_split(made, "auto")
    assert (name, chosen.slide_ids) == ("test", ("slide02",))
    assert choose_split(made, "val")[1].slide_ids == ("slide01",)
    assert len(choose_split(made, "all")[1]) == 400
    assert choose_split(make_predictions(split="val"), "auto")[0] == "val"
    assert choose_split(make_predictions(split=""), "auto")[0] == "no split"
    with pytest.raises(TaskError, match=r"predictions of train alone.*evaluate\.split=train"):
        choose_split(make_predictions(split="train"), "auto")
    with pytest.raises(TaskError, match=r"split 'tset', but of test, train, val\."):
        choose_split(made, "tset")


def predict_by_label(job, output, *, seed=0, classes=("normal", "tumor")):
    """Write predictions of an output's tiles that are mostly right, and give them."""
    tiles = read_tiles(job)
    rng = np.random.default_rng(seed)
    score = np.clip(0.5 + 0.3 * (tiles.label - 0.5) + rng.normal(0, 0.2, len(tiles)), 0, 1)
    shares = np.stack([1 - score, score], axis=1).astype(np.float32)
    ids = [slide.slide_id for slide in tiles.slides]
    splits = {name: "test" if number % 2 else "val" for number, name in enumerate(ids)}
    model = {"digest": "abc"}
    made = Predictions.of_tiles(tiles, shares, classes=classes, splits=splits, model=model)
    write_predictions(output / "training" / "model" / "predictions.parquet", made)
    return made


@pytest.mark.usefixtures("unplotted")
def test_the_task_measures_a_file_with_pixels_of_its_slides(output, make_job, capsys):
    made = predict_by_label(make_job(output), output)
    folder = output / "training" / "model"
    assert main(["task=evaluate", f"output={output}", "split=val", "bootstrap=20"]) == 0
    told = capsys.readouterr().out
    first, second = told.splitlines()[:2]
    assert "predictions.parquet has test: 3 slides, " in first
    assert "; val: 3 slides, " in first
    assert second.startswith("val: 3 slides")
    assert "AUROC (tiles tumor): 0." in told
    assert told.splitlines()[-1] == f"Page: {folder / 'evaluation' / 'val' / 'evaluation.html'}"
    text = text_of(folder / "evaluation" / "val" / "evaluation.html")
    assert "No picture" not in text
    assert text.count('<img src="DATA"') > len(made.slide_ids) // 2
    # Another file, another place, and another split, which draws what it says.
    words = [f"predictions_file={folder / 'predictions.parquet'}", f"folder={output / 'mine'}"]
    words += [f"output={output}", "csv_copy=true", "split=test", "bootstrap=0"]
    assert main(["task=evaluate", *words]) == 0
    rows = (output / "mine" / "predictions.csv").read_text().splitlines()
    assert len(rows) - 1 == len(made.of_splits("test"))


@pytest.mark.usefixtures("unplotted")
def test_what_a_model_predicted_is_found_like_a_training(output, make_job, capsys):
    predict_by_label(make_job(output), output)
    (output / "training").rename(output / "predictions")
    assert main(["task=evaluate", f"output={output}", "bootstrap=0"]) == 0
    assert (output / "predictions" / "model" / "evaluation" / "test").is_dir()
    predict_by_label(make_job(output), output)
    capsys.readouterr()
    assert main(["task=evaluate", f"output={output}"]) == 1
    told = capsys.readouterr().err
    assert "predictions/model/predictions.parquet" in told
    assert "training/model/predictions.parquet" in told


@pytest.mark.usefixtures("unplotted")
def test_why_there_is_no_interval_is_told_once(tmp_path):
    report = evaluate(make_predictions(tiles=60, slides=2), tmp_path, options=FEW)
    why = "too few slides to draw from (2)"
    assert report.measured.no_interval == f"{why}: no interval"
    assert text_of(report.page).count(why) == 1
    with (tmp_path / "metrics.csv").open() as file:
        notes = [row["note"] for row in csv.DictReader(file)]
    assert sum(why in note for note in notes) > 5
    assert report.lines()[-1] == f"  {why}: no interval"
    text = text_of(report.page)
    assert "draws of" not in text
    assert "<dt>Intervals</dt><dd>none</dd>" in text


@pytest.mark.usefixtures("unplotted")
def test_what_made_the_model_is_told_in_words_and_what_is_empty_not_at_all(tmp_path):
    options = {"max_epochs": 3, "ohem": {"ratio": 0.0}, "betas": [0.9, 0.99], "split": {}}
    model = {"digest": "abc", "options": options, "weights": {}, "note": None, "sha": ""}
    report = evaluate(make_predictions(model=model), tmp_path, options=FEW)
    told = text_of(report.page).partition('id="provenance"')[2]
    in_words = "max_epochs 3, ohem ratio 0.0, betas 0.9, 0.99"
    assert f"<dt>Model: options</dt><dd>{in_words}</dd>" in told
    assert "<dt>Model: digest</dt><dd>abc</dd>" in told
    assert "{" not in told
    for name in ("weights", "note", "sha"):
        assert f"Model: {name}" not in told
    assert "percentiles of 40 draws of 8 slides" in told
    assert not any("no interval" in line for line in report.lines())


def test_a_heatmap_is_the_picture_of_a_slide_that_has_one(output, make_job, tmp_path):
    def unopened():
        raise AssertionError("the slide was opened")

    target = heatmap_path(tmp_path, "a/b", "tumor", ("normal", "tumor"))
    path = target.with_name(f"{target.name}.png")
    path.parent.mkdir(parents=True)
    Image.new("RGB", (20, 10), (1, 2, 3)).save(path)
    pictures = SlidePictures({"a/b": unopened}, lambda slide_id: path)
    assert pictures.thumbnail("a/b").tolist() == np.full((10, 20, 3), (1, 2, 3)).tolist()


def test_tiles_come_from_a_patch_store_where_there_is_one():
    pictures = SlidePictures({}, tiles=lambda slide_id, place: np.full((4, 4, 3), place[0]))
    assert (pictures.tile("a", np.int32([7, 0, 4, 4, 0])) == 7).all()
    with pytest.raises(MicrotomeError, match="nothing says where a is"):
        pictures.thumbnail("a")


def test_the_task_says_what_it_lacks(output, make_job, capsys):
    assert main(["task=evaluate", f"output={output}"]) == 1
    assert "holds no predictions. Train a model" in capsys.readouterr().err
    made = predict_by_label(make_job(output), output)
    path = output / "training" / "model" / "predictions.parquet"
    write_predictions(path, replace(made, label=np.full_like(made.label, -1)))
    assert main(["task=evaluate", f"output={output}"]) == 1
    assert "has a label to measure its prediction by" in capsys.readouterr().err
    assert main(["task=evaluate", f"output={output}", "threshold=2"]) == 2
    assert "evaluate.threshold=2 must be" in capsys.readouterr().err


def test_a_real_browser_shows_the_page(evaluated, tmp_path):
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium: name one by MICROTOME_CHROMIUM, or put it on the PATH")
    with open_tab(chromium, tmp_path / "profile") as tab:
        for width, is_dark in ((1280, False), (1280, True), (390, False)):
            tab.show(evaluated.page, width=width, dark=is_dark)
            assert tab.problems == []
            assert all(url.startswith(("file:", "data:")) for url in tab.requests)
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert tab.evaluate(broken) == 0
            assert tab.evaluate("document.images.length") > 10
            # Tables scroll in themselves, the page never sideways.
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        rows = tab.evaluate(
            "[...document.querySelectorAll('table.metrics tbody th')].map(e => e.innerText)"
        )
        assert {"AUROC", "AUPRC (average precision)", "Sensitivity at specificity 0.95"} <= set(
            rows
        )
        assert tab.evaluate("document.scripts.length") == 0
        assert HOSTILE in tab.evaluate("document.body.innerText")
        inks = []
        for is_dark in (False, True):
            tab.show(evaluated.page, dark=is_dark)
            inks.append(tab.evaluate("getComputedStyle(document.body).color"))
        assert inks[0] != inks[1]
        tab.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == 1280
        assert image.height > 2000


@pytest.mark.parametrize("reader", ["openslide", "tiff"])
def test_pictures_are_by_the_reader_that_was_asked_for(labelled, cohort, make_job, reader):
    job = make_job(labelled)
    job = replace(job, config=replace(job.config, reader=Choice(plugin=reader)))
    with slide_openers({"a": str(cohort.slides[0].path)}, job)["a"]() as opened:
        assert opened.info.reader == reader
