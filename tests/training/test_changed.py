"""What has changed since tiles were labelled, or predictions made, is told; twins are refused."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from microtome.__main__ import main
from microtome.errors import TaskError
from microtome_training.predictions import Predictions, read_predictions, write_predictions
from microtome_training.sampling.files import read_sample
from microtome_training.stores import read_tiles

RUN = ("engine=inline", "device=cpu", "threads=1")
LABELS = ("labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]", "tiler.size=128")
TRAIN = (
    "task=train", "model=small_cnn", "input_size=32", "num_workers=0", "max_epochs=1",
    "aug_factor=1", "split.val_size=0.25", "evaluate.bootstrap=0", "heatmaps=false",
)  # fmt: skip
EVALUATE = ("task=evaluate", "bootstrap=0", "shown_slides=0", "shown_tiles=0")
PREDICT = ("task=predict", "heatmap.kind=none", "heatmap.png=false")


def run(capsys, *words):
    """Run a command that succeeds, and give what it tells of changes."""
    capsys.readouterr()
    assert main([*words, *RUN]) == 0
    told = capsys.readouterr().err.splitlines()
    return [line for line in told if "edited since" in line or "have changed since" in line]


def test_outlines_that_were_edited_are_told_until_they_are_labelled(cohort, tmp_path, capsys):
    outlines = shutil.copytree(cohort.asap, tmp_path / "asap")
    out, slides = f"output={tmp_path / 'out'}", [str(slide.path) for slide in cohort.slides]
    index = [*slides, out, "task=index", f"annotations={outlines}", *LABELS, "tiler.mpp=0.5"]
    assert main([*index, *RUN]) == 0
    tasks = ((out, "task=sample"), (out, *TRAIN), (out, *PREDICT))
    assert [run(capsys, *words) for words in tasks] == [[], [], []]
    for file in outlines.iterdir():  # the corner of each outline goes elsewhere
        text = file.read_text()
        if file.stem in ("slide_01", "test_01"):
            file.write_text(text.replace('X="', 'X="1', 1) + "\n")
    told = f"slide_01 ({outlines / 'slide_01.xml'}), test_01 ({outlines / 'test_01.xml'})"
    for words in tasks:
        (note,) = run(capsys, *words)
        assert f"the outlines of {told} were edited since their tiles were labelled" in note
        assert "task=index labels them anew" in note
    (outlines / "slide_01.xml").unlink()
    (note,) = run(capsys, *tasks[0])
    assert "slide_01" not in note
    assert "were edited since its tiles were labelled" in note


def predict_by_label(job, output):
    """Write predictions of an output's tiles as a training leaves them, and give them."""
    tiles = read_tiles(job)
    shares = np.eye(2, dtype=np.float32)[(tiles.label > 0).astype(int)]
    splits = {slide.slide_id: "test" for slide in tiles.slides}
    made = Predictions.of_tiles(tiles, shares, classes=tiles.classes, splits=splits, model={})
    path = output / "training" / "model" / "predictions.parquet"
    write_predictions(path, made)
    return path


def relabel(output, *slide_ids):
    for name in slide_ids:
        with h5py.File(output / "patches" / f"{name}.h5", "r+") as file:
            label = file["columns/label"][:]
            file["columns/label"][:] = np.where(label == 0, -1, label)


def test_labels_that_have_changed_since_are_told(output, make_job, capsys):
    path, words = predict_by_label(make_job(output), output), (f"output={output}", *EVALUATE)
    evaluation = path.parent / "evaluation" / "test"
    assert run(capsys, *words) == []
    assert json.loads((evaluation / "metrics.json").read_text())["labels_changed"] == []
    assert "Labels changed since" not in (evaluation / "evaluation.html").read_text()
    relabel(output, "test_01", "slide_02")
    (note,) = run(capsys, *words)
    assert "labels of slide_02, test_01 have changed since these predictions were made" in note
    assert note.endswith("predict again")
    told = json.loads((evaluation / "metrics.json").read_text())["labels_changed"]
    assert told == ["slide_02", "test_01"]
    page = (evaluation / "evaluation.html").read_text()
    assert "<dt>Labels changed since</dt><dd>slide_02, test_01</dd>" in page


def test_of_what_an_output_does_not_hold_nothing_is_told(output, make_job, tmp_path, capsys):
    path = predict_by_label(make_job(output), output)
    words = (f"predictions_file={path}", *EVALUATE)
    relabel(output, "slide_01")
    (output / "patches" / "slide_01.h5").unlink()
    with h5py.File(output / "patches" / "slide_02.h5", "r+") as file:
        file.attrs["identity"] = "0" * 64  # other tiles
    relabel(output, "slide_02")
    assert run(capsys, f"output={output}", *words) == []
    assert run(capsys, f"output={tmp_path / 'elsewhere'}", *words) == []


def test_predictions_that_do_not_say_their_labels_are_read_as_before(output, make_job, capsys):
    path = predict_by_label(make_job(output), output)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"microtome"])
    assert about.pop("labelled").keys() == set(read_predictions(path).slide_ids)
    pq.write_table(table.replace_schema_metadata({b"microtome": json.dumps(about)}), path)
    relabel(output, "slide_01")
    assert read_predictions(path).labelled == {}
    assert run(capsys, f"output={output}", *EVALUATE) == []


def test_a_slide_under_two_names_is_refused(output, make_job, capsys):
    patches = output / "patches"
    shutil.copy(patches / "slide_02.h5", patches / "renamed.h5")
    with pytest.raises(TaskError, match=r"^renamed and slide_02 are one slide.*would count twice"):
        read_tiles(make_job(output))
    both = f"{patches / 'renamed.h5'} or {patches / 'slide_02.h5'}"
    assert main([f"output={output}", "task=sample", *RUN]) == 1
    assert f"remove what is left of the old name: {both}." in capsys.readouterr().err
    with h5py.File(patches / "slide_02.h5", "r+") as file:
        file.attrs["wsi_path"] = str(output / "gone.svs")
    with pytest.raises(TaskError, match=f"of the old name: {patches / 'slide_02.h5'}."):
        read_tiles(make_job(output))


def test_slides_that_are_named_leave_out_the_other_name(output, cohort, make_job):
    patches = output / "patches"
    shutil.copy(patches / "slide_02.h5", patches / "renamed.h5")
    slides = [slide.path for slide in cohort.slides]
    assert len(read_tiles(make_job(output, *slides)).slides) == 6


def test_slides_of_unknown_content_are_no_twins(output, make_job):
    patches = output / "patches"
    shutil.copy(patches / "slide_02.h5", patches / "renamed.h5")
    for name in ("renamed", "slide_02"):
        with h5py.File(patches / f"{name}.h5", "r+") as file:
            fields = json.loads(file.attrs["identity_fields"])
            fields["tissue"] = {}
            file.attrs["identity_fields"] = json.dumps(fields | {"slide": ""})
    assert len(read_tiles(make_job(output)).slides) == 7


def test_a_sample_of_a_slide_under_two_names_is_refused(output, make_job, monkeypatch):
    shutil.copy(output / "patches" / "slide_02.h5", output / "patches" / "renamed.h5")
    with monkeypatch.context() as patched:  # as it was drawn before twins were looked for
        patched.setattr("microtome_training.stores.refuse_twins", lambda parts: None)
        assert main([f"output={output}", "task=sample", *RUN]) == 0
    with pytest.raises(TaskError, match="renamed and slide_02 are one slide under two names"):
        read_sample(make_job(output), "sample").tiles(make_job(output))


@pytest.mark.parametrize(("words", "done"), [(("task=sample",), "drawn"), (TRAIN, "trained")])
def test_a_slide_that_is_not_there_stops_a_task_and_it_says_so(
    output, cohort, tmp_path, capsys, words, done
):
    manifest = tmp_path / "named.csv"
    rows = [f"{slide.slide_id},{slide.path}" for slide in cohort.slides]
    manifest.write_text("\n".join(["slide_id,slide", *rows, f"lost,{tmp_path / 'lost.svs'}"]))
    assert main([str(manifest), f"output={output}", *words, *RUN]) == 1
    told = capsys.readouterr().err
    assert "left out" not in told
    assert f"there is no file '{tmp_path / 'lost.svs'}'" in told
    assert "named.csv" in told
    assert f"takes all slides that are named, so nothing was {done}." in told
    assert "take its row out of the manifest" in told
