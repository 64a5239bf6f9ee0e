"""The task predict: probabilities beside the tiles, what is refused, what is left."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import zarr
from run_checks import leftovers

import microtome
from microtome.__main__ import main
from microtome.errors import SlideOpenError
from microtome.plugin.registry import get_registry
from microtome.plugin.specs import Transform
from microtome.run.job import TaskJob
from microtome.run.progress import SilentReporter
from microtome.run.settings import RunConfig
from microtome.testing import make_slide
from microtome_training.classifier import Description, Takes, load_classifier, save_classifier
from microtome_training.options.predict import HeatmapConfig
from microtome_training.predicting.predict import predict_tiles
from microtome_training.predicting.results import ScoredTiles, draw_heatmaps
from microtome_training.predictions import read_predictions
from microtome_training.stores import read_stores, root
from microtome_training.tiles import join
from microtome_training.training.models import Architecture

CLASSES = ("normal", "tumor")
PIXELS = Takes(kind="pixels", size=128, mpp=0.5, transform=Transform(crop=None))


def save(path, *, takes=PIXELS, classes=CLASSES, seed=0):
    torch.manual_seed(seed)
    model = "small_cnn" if takes.kind == "pixels" else "linear"
    architecture = Architecture(model=model, classes=len(classes), dim=takes.dim)
    description = Description(architecture=architecture, classes=classes, takes=takes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(path, architecture.build(), description)
    return path


def best(output, name="model", **options):
    return save(output / "training" / name / "checkpoints" / "best.pt", **options)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(("a", "b")):
        make_slide(folder / f"{name}.svs", size=(800, 600), mpp=0.5, magnification=20, seed=number)
    return folder


def predict(*words):
    return main([*map(str, words), "task=predict", "engine=inline", "device=cpu"])


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stored(path, key="predictions/model"):
    with microtome.open_result(path) as found:
        return found.array(key), found.array_attributes(key), found.coords


@pytest.fixture(scope="module")
def done(slides, tmp_path_factory):
    output = tmp_path_factory.mktemp("done")
    best(output)
    assert predict(slides, f"output={output}") == 0
    return output


@pytest.fixture
def job_of():
    def make(**options):
        config = RunConfig(slides=(), **options)
        return TaskJob(config=config, registry=get_registry(), reporter=SilentReporter())

    return make


def test_slides_are_tiled_as_the_model_takes_them(done):
    with h5py.File(done / "patches" / "a.h5") as file:
        assert file.attrs["patch_size"] == 128
        assert file.attrs["target_mpp"] == 0.5
        assert file["predictions/model"].shape == (len(file["coords"]), 2)
        assert json.loads(file["predictions/model"].attrs["classes"]) == list(CLASSES)


def test_probabilities_are_the_models(done, slides):
    classifier = load_classifier(done / "training/model/checkpoints/best.pt")
    tiles = microtome.TileDataset(str(done / "patches" / "b.h5"))
    pixels = np.stack([tiles[row]["image"].transpose(1, 2, 0) for row in range(len(tiles))])
    found, attributes, coords = stored(done / "patches" / "b.h5")
    assert found.dtype == np.float32
    assert len(coords) > 5
    assert np.allclose(found, classifier.probabilities(pixels), atol=1e-5)
    assert attributes["model"] == classifier.digest


def test_tables_and_pictures(done):
    folder = done / "predictions" / "model"
    predictions = read_predictions(folder / "predictions.parquet")
    assert predictions.slide_ids == ("a", "b")
    assert predictions.classes == CLASSES
    a, _, coords = stored(done / "patches" / "a.h5")
    assert np.array_equal(predictions.probabilities[: len(a)], a)
    assert np.array_equal(predictions.coords[: len(a)], coords)
    assert (predictions.label == -1).all()
    rows = table(folder / "slides.csv")
    assert [row["slide_id"] for row in rows] == ["a", "b"]
    assert float(rows[0]["max"]) == pytest.approx(a[:, 1].max(), abs=1e-6)
    assert rows[0]["label"] == ""
    assert (folder / "lesions.csv").is_file()
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == [
        *("a.png", "a.tif", "b.png", "b.tif")
    ]


def test_output_is_sound_and_clean(done):
    assert main(["verify", str(done), "--deep"]) == 0
    assert not leftovers(done)


def test_run_again_reuses_all(done, slides, capsys):
    files = [*(done / "patches").iterdir(), *(done / "predictions/model/heatmaps").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert predict(f"output={done}") == 0
    assert "2 slides: 2 reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_zarr_holds_them_too(slides, tmp_path):
    best(tmp_path)
    words = (slides / "a.svs", f"output={tmp_path}", "writer=zarr", "heatmap.kind=none")
    assert predict(*words, "heatmap.png=false") == 0
    found = zarr.open(tmp_path / "patches" / "a.zarr", mode="r")
    assert found["predictions/model"].shape == (found["coords"].shape[0], 2)
    assert main(["verify", str(tmp_path), "--deep"]) == 0
    assert not (tmp_path / "predictions/model/heatmaps").exists()


def test_other_model_of_the_same_name_is_refused_and_force_replaces(slides, tmp_path, capsys):
    path = best(tmp_path)
    words = (slides / "a.svs", f"output={tmp_path}", "heatmap.kind=none", "heatmap.png=false")
    assert main([str(slides / "a.svs"), f"output={tmp_path}", "engine=inline", *_tiling()]) == 0
    assert predict(*words) == 0
    first, *_ = stored(tmp_path / "patches/a.h5")
    path.unlink()
    best(tmp_path, seed=1)
    capsys.readouterr()
    assert predict(*words) == 3
    told = capsys.readouterr()
    assert "model changed" in told.err
    assert "predict.name=" in told.err
    assert np.array_equal(stored(tmp_path / "patches/a.h5")[0], first)
    assert predict(*words, "predict.name=second") == 0
    assert predict(*words, "force=true") == 0
    assert not np.array_equal(stored(tmp_path / "patches/a.h5")[0], first)
    with microtome.open_result(tmp_path / "patches/a.h5") as found:
        assert found.feature_names() == ["handcrafted"]
        assert found.array_names() == ["predictions/model", "predictions/second"]
    assert main(["verify", str(tmp_path), "--deep"]) == 0


def _tiling(size=128, mpp=0.5):
    return (f"tiler.size={size}", f"tiler.mpp={mpp}")


def test_bad_slide_does_not_stop_the_others(slides, tmp_path, capsys):
    best(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.svs").write_bytes((slides / f"{name}.svs").read_bytes())
    output = tmp_path / "out"
    words = (tmp_path / "in", f"output={output}", "task=coords", "engine=inline")
    assert main([*map(str, words), *_tiling()]) == 0
    (tmp_path / "in" / "a.svs").write_bytes((slides / "b.svs").read_bytes())
    checkpoint = f"checkpoint={tmp_path / 'training/model/checkpoints/best.pt'}"
    assert predict(f"output={output}", checkpoint) == 3
    told = capsys.readouterr()
    assert "another file than its tiles were placed on" in told.err
    assert "2 slides: 1 done, 1 failed" in told.out
    assert [row["slide_id"] for row in table(output / "predictions/model/slides.csv")] == ["b"]


def test_slide_that_is_not_there_does_not_stop_the_others(slides, tmp_path, capsys):
    best(tmp_path)
    manifest = tmp_path / "cohort.csv"
    manifest.write_text(f"slide\n{slides / 'a.svs'}\n{slides / 'gone.svs'}\n")
    quiet = ("heatmap.kind=none", "heatmap.png=false")
    assert predict(manifest, f"output={tmp_path}", *quiet) == 3
    told = capsys.readouterr()
    assert "2 slides: 1 done, 1 failed" in told.out
    assert "gone" in told.err
    assert predict(manifest, f"output={tmp_path}", *quiet) == 3
    assert "2 slides: 1 failed, 1 reused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tiling", "told"),
    [
        (_tiling(size=64), ("tiles of 64 px", "takes tiles of 128 px")),
        (_tiling(mpp=1), ("1 µm per pixel", "learned from tiles of 0.5")),
    ],
)
def test_tiles_that_the_model_does_not_take(slides, tmp_path, capsys, tiling, told):
    best(tmp_path)
    words = (slides / "a.svs", f"output={tmp_path}", "task=coords", "engine=inline")
    assert main([*map(str, words), *tiling]) == 0
    assert predict(f"output={tmp_path}") == 3
    err = capsys.readouterr().err
    assert all(each in err for each in told)
    assert "Traceback" not in err


def test_slide_of_unknown_mpp(slides, tmp_path, capsys):
    best(tmp_path)
    bare = tmp_path / "bare.tif"
    make_slide(bare, size=(900, 700), record_mpp=False, magnification=None, aperio=False)
    assert predict(bare, f"output={tmp_path}") == 3
    assert "bare" in capsys.readouterr().err


def test_model_of_features(slides, tmp_path, capsys):
    path = slides / "a.svs"
    assert main([str(path), f"output={tmp_path}", "engine=inline", *_tiling()]) == 0
    with microtome.open_result(tmp_path / "patches/a.h5") as found:
        features = found.features("handcrafted")
        made = json.loads(found.feature_attributes("handcrafted")["identity_fields"])
    takes = Takes(
        kind="features",
        size=128,
        mpp=0.5,
        features="handcrafted",
        encoder=made["encoder"],
        dim=features.shape[1],
    )
    model = best(tmp_path, takes=takes)
    assert predict(slides, f"output={tmp_path}") == 0  # encodes the other one first
    found, *_ = stored(tmp_path / "patches/a.h5")
    assert np.allclose(found, load_classifier(model).probabilities(features), atol=1e-6)
    assert len(stored(tmp_path / "patches/b.h5")[0])
    assert main(["verify", str(tmp_path), "--deep"]) == 0
    best(tmp_path, "other", takes=replace(takes, encoder={**made["encoder"], "bins": 7}))
    capsys.readouterr()
    checkpoint = f"checkpoint={tmp_path / 'training/other/checkpoints/best.pt'}"
    assert predict(path, f"output={tmp_path}", checkpoint) == 3
    err = capsys.readouterr().err
    assert "are of another encoder than" in err
    assert "bins was 7" in err


def test_several_classes_have_folders_of_heatmaps(slides, tmp_path):
    best(tmp_path, classes=("normal", "tumor", "a/b"))
    words = ("heatmap.kind=none", "heatmap.thumbnail_px=300")
    assert predict(slides / "a.svs", f"output={tmp_path}", *words) == 0
    folder = tmp_path / "predictions/model"
    assert (folder / "heatmaps/tumor/a.png").is_file()
    assert (folder / "heatmaps/a%2Fb/a.png").is_file()
    assert [row["class"] for row in table(folder / "slides.csv")] == ["tumor", "a/b"]


def test_patients_and_splits_are_told(slides, tmp_path):
    model = best(tmp_path)
    (model.parent.parent / "split.csv").write_text(
        "slide_id,patient_id,split\na,p1,test\nz,p2,train\n"
    )
    manifest = tmp_path / "cohort.csv"
    manifest.write_text(f"slide,patient_id\n{slides / 'a.svs'},p1\n{slides / 'b.svs'},p2\n")
    quiet = ("heatmap.kind=none", "heatmap.png=false")
    assert predict(manifest, f"output={tmp_path / 'out'}", f"checkpoint={model}", *quiet) == 0
    # In a later run of one slide, the other one's row stays, with its patient.
    words = (slides / "b.svs", f"output={tmp_path / 'out'}", f"checkpoint={model}", *quiet)
    assert predict(*words) == 0
    predictions = read_predictions(tmp_path / "out/predictions/model/predictions.parquet")
    assert predictions.slide_ids == ("a", "b")
    assert predictions.patient_ids == ("p1", "p2")
    assert predictions.splits == ("test", "")


def test_empty_slide_is_done(tmp_path):
    best(tmp_path)
    make_slide(tmp_path / "in" / "e.svs", size=(900, 700), mpp=0.5, magnification=20, tissue=0)
    assert predict(tmp_path / "in" / "e.svs", f"output={tmp_path}") == 0
    (row,) = table(tmp_path / "predictions/model/slides.csv")
    assert (row["tiles"], row["max"]) == ("0", "")


def test_model_is_found_or_asked_for(slides, tmp_path, capsys):
    assert predict(slides, f"output={tmp_path}") == 2
    assert "holds no trained model" in capsys.readouterr().err
    best(tmp_path, "one")
    best(tmp_path, "two")
    assert predict(slides, f"output={tmp_path}") == 2
    err = capsys.readouterr().err
    assert "training/one/checkpoints/best.pt" in err
    assert "predict.checkpoint=" in err
    assert predict(slides, f"output={tmp_path}", "checkpoint=nowhere.pt") == 2
    assert "no trained model nowhere.pt" in capsys.readouterr().err
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no model")
    assert predict(slides, f"output={tmp_path}", f"checkpoint={bad}") == 1
    assert "is no classifier" in capsys.readouterr().err


def test_nothing_to_predict(tmp_path, capsys):
    best(tmp_path)
    assert predict(f"output={tmp_path}") == 1
    assert "holds no tiles to predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "predict.threshold=2",
        "top_k=0",
        "min_tiles=0",
        "mpp_tolerance=-1",
        "heatmap.opacity=3",
        "predict.name=a/b",
    ],
)
def test_options_that_make_no_sense(slides, tmp_path, capsys, word):
    best(tmp_path)
    assert predict(slides, f"output={tmp_path}", word) in (1, 2)
    assert word.partition("=")[0].rpartition(".")[2] in capsys.readouterr().err
    assert not (tmp_path / "patches").exists()


def test_labels_go_with_the_predictions(slides, tmp_path):
    best(tmp_path)
    ring = [[0, 0], [400, 0], [400, 600], [0, 600], [0, 0]]
    drawn = {
        "type": "Feature",
        "properties": {"classification": {"name": "Tumor"}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "a.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [drawn]})
    )
    words = (slides, f"output={tmp_path}", "heatmap.kind=none", "heatmap.thumbnail_px=200")
    labels = (f"annotations={tmp_path / 'drawn'}", "labels.classes.tumor=[Tumor]")
    assert predict(*words, *labels) == 0
    folder = tmp_path / "predictions/model"
    predictions = read_predictions(folder / "predictions.parquet")
    of_a = predictions.slide == 0
    centres = predictions.coords[of_a, 0] + 64
    assert np.array_equal(predictions.label[of_a], (centres < 400).astype(int))
    assert (predictions.label[~of_a] == 0).all()
    assert [row["label"] for row in table(folder / "slides.csv")] == ["1", "0"]


def test_classes_that_the_model_does_not_know_are_counted_once(labelled, tmp_path, capsys):
    output = shutil.copytree(labelled, tmp_path / "out")
    best(output, classes=("normal", "stroma"))
    predictions = output / "predictions" / "model" / "predictions.parquet"
    words = (f"output={output}", "heatmap.kind=none", "heatmap.png=false")
    assert predict(*words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "does not know" in line]
    found = read_predictions(predictions)
    with h5py.File(output / "patches" / "slide_01.h5") as file:
        label = file["columns/label"][:]
    assert (label == 1).any()
    assert (found.label[found.slide == 0] == np.where(label == 0, 0, -1)).all()
    stores = [h5py.File(path) for path in sorted((output / "patches").glob("*.h5"))]
    count = sum(int((store["columns/label"][:] == 1).sum()) for store in stores)
    for store in stores:
        store.close()
    assert len(told) == 1
    assert told[0].endswith(f"in the tables: {count} of tumor; it knows normal, stroma")


def test_tiles_may_come_in_any_order_and_of_several_slides(done, job_of):
    job = job_of(output=done)
    tiles = join([*read_stores(job, root(job), None)])
    classifier = load_classifier(done / "training/model/checkpoints/best.pt")
    order = np.random.default_rng(0).permutation(len(tiles))[:7]
    wanted = np.concatenate([stored(done / f"patches/{name}.h5")[0] for name in "ab"])
    found = predict_tiles(classifier, tiles.take(order), job, batch_size=2)
    assert np.allclose(found, wanted[order], atol=1e-5)


def test_slide_that_is_gone_costs_no_other_its_heatmap(done, job_of, tmp_path):
    job = job_of(output=done)
    tiles = join([*read_stores(job, root(job), None)])
    a, b = tiles.slides
    gone = replace(a, ref=replace(a.ref, path=tmp_path / "gone.svs"))
    scored = ScoredTiles(
        tiles=replace(tiles, slides=(gone, b)),
        probabilities=np.full((len(tiles), 2), 0.5, np.float32),
        classes=CLASSES,
    )
    with pytest.raises(SlideOpenError, match="is not there"):
        draw_heatmaps(tmp_path, scored, job, options=HeatmapConfig(thumbnail_px=200))
    assert sorted(path.name for path in (tmp_path / "heatmaps").iterdir()) == ["b.png", "b.tif"]
