"""The task ``train``: what it leaves, what it refuses, what it does again."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import torch

from microtome.__main__ import main
from microtome_training.classifier import load_classifier
from microtome_training.options.train import TrainConfig
from microtome_training.training.checkpoints import EpochResult, History
from microtome_training.training.task import name_training

RUN = ("engine=inline", "device=cpu", "threads=1")
QUICK = (
    "task=train", "model=small_cnn", "input_size=32", "num_workers=0", "max_epochs=2", "patience=0",
    "lr=3e-3", "aug_factor=2", "split.val_size=0.25", "evaluate.bootstrap=20", "heatmap.kind=none",
    "heatmaps=false",
)  # fmt: skip


def train(output, *words, cohort=None):
    slides = [] if cohort is None else [str(cohort.manifest)]
    return main([*slides, f"output={output}", *RUN, *QUICK, *words])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(labelled, cohort, tmp_path_factory):
    """Give the folder of a training of two epochs. Not to be written to."""
    import shutil

    output = shutil.copytree(labelled, tmp_path_factory.mktemp("trained") / "out")
    assert train(output, "save_interval=1", "heatmaps=true", cohort=cohort) == 0
    return output / "training" / "small_cnn"


def test_a_training_leaves_what_is_documented(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert {
        "identity.json", "result.json", "split.csv", "epoch_losses.csv", "predictions.parquet",
        "checkpoints/best.pt", "checkpoints/last.pt", "checkpoints/ckpt_epoch_1.pt",
        "checkpoints/ckpt_epoch_2.pt", "metrics.csv", "metrics.json", "evaluation.html",
        "slides.csv", "lesions.csv",
    } <= names  # fmt: skip
    assert [name for name in names if name.startswith("heatmaps/test_")]
    assert not [name for name in names if ".tmp" in name]


def test_the_losses_are_in_the_documented_columns(trained):
    found = rows(trained / "epoch_losses.csv")
    assert list(found[0]) == [
        "epoch", "train_loss", "train_acc", "val_loss", "val_acc", "val_auroc",
    ]  # fmt: skip
    assert [row["epoch"] for row in found] == ["1", "2"]
    assert all(np.isfinite(float(row["val_loss"])) for row in found)


def test_slides_named_test_are_tested_on_and_nobody_is_in_two_splits(trained, cohort):
    found = {row["slide_id"]: row for row in rows(trained / "split.csv")}
    assert {name for name, row in found.items() if row["split"] == "test"} == {
        slide.slide_id for slide in cohort.slides if slide.slide_id.startswith("test")
    }
    patients = {(row["patient_id"], row["split"]) for row in found.values()}
    assert len(patients) == len({patient for patient, _ in patients})
    assert {row["split"] for row in found.values()} == {"train", "val", "test"}


def test_the_best_model_is_that_of_the_lowest_validation_loss(trained):
    result = json.loads((trained / "result.json").read_text())
    losses = [float(row["val_loss"]) for row in rows(trained / "epoch_losses.csv")]
    assert result["best_epoch"] == 1 + int(np.argmin(losses))
    best = load_classifier(trained / "checkpoints" / "best.pt")
    assert best.description.provenance["epoch"] == result["best_epoch"]


def test_a_model_says_all_that_it_takes(trained):
    best = load_classifier(trained / "checkpoints" / "best.pt")
    assert best.classes == ("normal", "tumor")
    assert (best.takes.kind, best.takes.size) == ("pixels", 128)
    assert best.takes.mpp == pytest.approx(0.5)
    assert best.takes.transform.resize == 32
    tiles = np.random.default_rng(0).integers(0, 255, (5, 128, 128, 3), np.uint8)
    probabilities = best.probabilities(tiles)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert best.probabilities(tiles[:0]).shape == (0, 2)


def test_a_model_is_plain_tensors_and_text(trained):
    saved = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    assert json.loads(saved["description"])["classes"] == ["normal", "tumor"]


def test_other_tiles_are_refused_by_a_model(trained):
    from microtome.errors import TaskError

    best = load_classifier(trained / "checkpoints" / "best.pt")
    with pytest.raises(TaskError, match=r"takes pixels of 128 × 128 × 3, not 64 × 64 × 3"):
        best.probabilities(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_finished_training_is_reused_and_another_refused(trained, cohort, capsys):
    output = trained.parents[1]
    before = (trained / "checkpoints" / "best.pt").stat().st_mtime_ns
    assert train(output, "save_interval=1", cohort=cohort) == 0
    assert "already trained" in capsys.readouterr().out
    assert (trained / "checkpoints" / "best.pt").stat().st_mtime_ns == before
    assert train(output, "loss=cross_entropy", cohort=cohort) == 1
    told = capsys.readouterr().err
    assert "train.loss was its default and is 'cross_entropy'" in told
    assert "train.name=" in told


def test_force_trains_again(output, cohort):
    folder = output / "training" / "small_cnn"
    words = ("max_epochs=1", "memory_gb=0")
    assert train(output, *words, cohort=cohort) == 0
    (folder / "stale").touch()
    assert train(output, *words, "force=true", cohort=cohort) == 0
    assert not (folder / "stale").exists()
    assert (folder / "result.json").exists()


def test_a_probe_on_features_reads_no_pixels(output, cohort, monkeypatch):
    assert main([str(cohort.manifest), f"output={output}", *RUN, "encoder=handcrafted",
                 "tiler.size=128", "tiler.mpp=0.5"]) == 0  # fmt: skip
    monkeypatch.setattr("microtome_training.training.data.PixelSource.__init__", None)
    words = ("model=auto", "features=handcrafted", "input_size=null", "max_epochs=8", "lr=0.02")
    assert train(output, *words, "name=probe", cohort=cohort) == 0
    folder = output / "training" / "probe"
    best = load_classifier(folder / "checkpoints" / "best.pt")
    assert (best.takes.kind, best.takes.features) == ("features", "handcrafted")
    assert best.takes.encoder["plugin"] == "handcrafted"
    assert float(rows(folder / "epoch_losses.csv")[-1]["val_auroc"]) > 0.9


def test_a_sweep_trains_one_model_for_each_job(output, cohort):
    words = ("loss=focal,cross_entropy", "ohem.ratio=0,3", "max_epochs=1")
    assert train(output, "-m", *words, cohort=cohort) == 0
    found = {path.parent.name for path in output.glob("training/*/result.json")}
    assert found == {
        f"loss-{loss}__ohem.ratio-{ratio}" for loss in ("focal", "cross_entropy") for ratio in "03"
    }


def test_killed_while_it_is_replaced_the_old_one_is_whole_or_gone(output, monkeypatch):
    from microtome_training.training import claiming

    folder = output / "training" / "small_cnn"
    assert train(output, "max_epochs=1") == 0
    before = {path.name for path in folder.rglob("*")}

    def killed(path):
        assert {each.name for each in path.rglob("*")} == before
        assert not folder.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(claiming, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            claiming.clear(folder)
    assert train(output, "max_epochs=1", "loss=cross_entropy") == 0
    assert json.loads((folder / "result.json").read_text())["resumed_after"] == 0


def test_a_checkpoint_of_another_training_is_not_gone_on_with(output, capsys):
    """As a folder is that lost its identity and its result, but not its checkpoints."""
    folder = output / "training" / "small_cnn"
    assert train(output, "max_epochs=1") == 0
    for name in ("identity.json", "result.json"):
        (folder / name).unlink()
    assert train(output, "max_epochs=1", "loss=cross_entropy") == 1
    assert "last.pt is of another training" in capsys.readouterr().err
    assert train(output, "max_epochs=1", "loss=cross_entropy", "force=true") == 0


def test_a_training_that_failed_before_its_first_epoch_claims_nothing(
    output, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    words = ("model=resnet10t", "max_epochs=1", "lr=1e-30", "optimizer=sgd", "momentum=0")
    assert train(output, *words) == 1
    assert "train.weights=random" in capsys.readouterr().err
    assert train(output, *words, "weights=random") == 0
    assert train(output, *words) == 1
    assert "is another training: weights was 'random'" in capsys.readouterr().err


def test_it_begins_with_the_weights_of_a_file_and_goes_on_without_it(output, tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    begun = timm.create_model("resnet10t", num_classes=7).state_dict()
    save_file(begun, tmp_path / "begun.safetensors")
    words = ("model=resnet10t", f"weights={tmp_path / 'begun.safetensors'}", "max_epochs=1")
    still = ("lr=1e-30", "optimizer=sgd", "momentum=0", "weight_decay=0")
    assert train(output, *words, *still) == 0
    folder = output / "training" / "resnet10t"
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    parameters = {name for name, _ in timm.create_model("resnet10t").named_parameters()}
    rest = parameters - {"fc.weight", "fc.bias"}
    for name in rest:  # zeros are moved by such a rate, too
        torch.testing.assert_close(best["state_dict"][name], begun[name], rtol=0, atol=1e-20)
    assert best["state_dict"]["fc.weight"].shape != begun["fc.weight"].shape
    weights = json.loads(best["description"])["provenance"]["weights"]
    assert (weights["file"], len(weights["sha256"])) == ("begun.safetensors", 64)
    (folder / "result.json").unlink()  # as if it was killed before its end
    monkeypatch.setattr("microtome_training.training.models.find_weights", None)
    assert train(output, *words, *still) == 0


def test_a_probe_is_as_wide_as_it_is_asked_to_be(output, cohort):
    assert main([str(cohort.manifest), f"output={output}", *RUN, "encoder=handcrafted",
                 "tiler.size=128", "tiler.mpp=0.5"]) == 0  # fmt: skip
    words = ("model=mlp", "hidden=17", "features=handcrafted", "input_size=null", "max_epochs=1")
    assert train(output, *words, cohort=cohort) == 0
    best = output / "training" / "mlp" / "checkpoints" / "best.pt"
    state = torch.load(best, weights_only=True)["state_dict"]
    assert state["head.weight"].shape == (2, 17)


def test_another_way_to_measure_measures_again_and_trains_not(output, capsys, monkeypatch):
    folder = output / "training" / "small_cnn"
    assert train(output, "max_epochs=1") == 0
    best = (folder / "checkpoints" / "best.pt").stat().st_mtime_ns
    monkeypatch.setattr("microtome_training.training.loop._Loop._step", None)
    assert train(output, "max_epochs=1", "evaluate.threshold=0.3") == 0
    told = capsys.readouterr()
    assert "evaluate.threshold was 0.5 and is 0.3" in told.err
    assert "already trained, measured again" in told.out
    assert json.loads((folder / "metrics.json").read_text())["options"]["threshold"] == 0.3
    assert train(output, "max_epochs=1", "evaluate.threshold=0.3", "heatmaps=true") == 0
    assert list(folder.glob("heatmaps/*"))
    assert train(output, "max_epochs=1", "evaluate.threshold=0.3") == 0
    assert "small_cnn: already trained, small_cnn" in capsys.readouterr().out
    assert (folder / "checkpoints" / "best.pt").stat().st_mtime_ns == best


def test_killed_while_it_is_measured_again_it_is_measured_as_it_is_asked(
    output, capsys, monkeypatch
):
    folder = output / "training" / "small_cnn"
    assert train(output, "max_epochs=1") == 0
    result = json.loads((folder / "result.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr("microtome_training.training.ending.record_of", None)
        assert train(output, "max_epochs=1", "evaluate.threshold=0.3") == 1
    assert json.loads((folder / "metrics.json").read_text())["options"]["threshold"] == 0.3
    assert train(output, "max_epochs=1") == 0
    assert "is measured again: it was broken off" in capsys.readouterr().err
    assert json.loads((folder / "metrics.json").read_text())["options"]["threshold"] == 0.5
    assert json.loads((folder / "result.json").read_text()) == result


def test_what_changes_the_numbers_is_another_training(output, capsys):
    assert train(output, "max_epochs=1", "precision=bf16") == 0
    for words, told in (
        (["precision=fp32"], "precision was 'bf16' and is its default"),
        (["precision=bf16", "devices=2"], "train.devices was its default and is 2"),
    ):
        assert train(output, "max_epochs=1", *words) == 1
        assert told in capsys.readouterr().err
    assert train(output, "max_epochs=1", "precision=auto") == 0  # any will do
    assert "already trained" in capsys.readouterr().out


def test_two_do_not_train_the_same_at_once(output, capsys):
    """The second says who is at it; `claims.wait` makes it wait, which is the default."""
    from microtome.run.progress import SilentReporter
    from microtome.run.settings import ClaimSettings
    from microtome_training.training.claiming import hold_folder

    folder = output / "training" / "small_cnn"
    with hold_folder(folder, ClaimSettings(), SilentReporter()):
        assert train(output, "max_epochs=1", "claims.wait=false") == 1
        assert f"process {os.getpid()} on " in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()
    assert train(output, "max_epochs=1", "claims.wait=false") == 0


def test_one_waits_for_another_that_trains_the_same(tmp_path, monkeypatch):
    from microtome.run.progress import SilentReporter
    from microtome.run.settings import ClaimSettings
    from microtome_training.training import claiming

    notes, folder = [], tmp_path / "training" / "a"
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "note", notes.append)
    first = claiming.hold_folder(folder, ClaimSettings(), reporter)
    first.__enter__()
    monkeypatch.setattr(claiming.time, "sleep", lambda _: first.__exit__(None, None, None))
    with claiming.hold_folder(folder, ClaimSettings(), reporter):
        pass
    assert len(notes) == 1
    assert notes[0].endswith("works on the training a: waiting for it")


def test_a_models_file_cannot_tell_timm_what_we_do_not(trained, tmp_path):
    from microtome.errors import TaskError

    saved = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    described = json.loads(saved["description"])
    for arguments in ({"checkpoint_path": "x.pt"}, {"img_size": "64"}):
        described["architecture"]["arguments"] = arguments
        torch.save({**saved, "description": json.dumps(described)}, tmp_path / "other.pt")
        with pytest.raises(TaskError, match="no classifier that task=train left"):
            load_classifier(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["max_epochs=0"], "train.max_epochs=0 must be 1 or more"),
        (["lr=0"], "train.lr=0 must be above 0"),
        (["model=resnet5O"], "neither small_cnn, linear, mlp nor a model of timm"),
        (["model=linear"], "train.model=linear takes features"),
        (["features=uni"], "train.model=small_cnn takes pixels"),
        (["features=uni", "model=mlp", "input_size=null"], "holds no features of 'uni'"),
        (["patches_folder=nowhere"], "nowhere holds no patch store"),
        (["precision=fp16"], "fp16 needs a GPU"),
        (["weights=none.pt"], "none.pt names no file"),
        (["evaluate.threshold=2"], "evaluate.threshold=2 must be above 0 and below 1"),
        (["heatmap.opacity=2"], "heatmap.opacity=2 must be from 0 to 1"),
        (["device=cuda:1", "devices=2"], "device=cuda:1 is one device, and train.devices=2"),
        (["name=../up"], "is to name a folder"),
        (["device=cuda:7"], "torch sees 0 cuda devices"),
        (["weights=pretrained"], "Of small_cnn there are no pretrained weights"),
    ],
)
def test_what_makes_no_sense_is_told(output, capsys, words, told):
    if words == ["device=cuda:7"] and torch.cuda.device_count() > 7:
        pytest.skip("there is such a device")
    assert train(output, *words) in (1, 2)
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err


def test_pretrained_weights_that_are_not_here_are_told_in_a_sentence(output, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(output / "none"))
    assert train(output, "model=resnet18") == 1
    told = capsys.readouterr().err
    assert "Or begin with train.weights=random." in told
    assert "encoder.NAME" not in told


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("", "small_cnn"),
        ("train.loss=focal,train.ohem.ratio=0", "loss-focal__ohem.ratio-0"),
        ("train.lr=0.001", "lr-0.001"),
    ],
)
def test_a_training_is_named_by_what_is_swept(label, name):
    assert name_training(TrainConfig(model="small_cnn"), label) == name


def test_a_training_stops_when_validation_gets_no_better():
    losses = [3.0, 2.0, 2.5, 2.0]
    history = History()
    for epoch, loss in enumerate(losses, 1):
        history = history.with_next(
            EpochResult(epoch=epoch, train_loss=0.0, train_acc=1.0, val_loss=loss)
        )
    assert history.best == 2
    assert history.over(50, 2) == "no lower loss in 2 epochs"
    assert not history.over(50, 3)
    assert not history.over(50, 0)
    assert history.over(4, 0) == "all epochs are done"


def test_the_first_epoch_is_the_same_from_every_store(output, cohort):
    stores = ("imagefolder", "lmdb", "patches", "webdataset")
    assert main([
        str(cohort.manifest), f"output={output}", *RUN, "tiler.size=128", "tiler.mpp=0.5",
        f"writer=[hdf5,{','.join(stores)}]", "encoder=[]", f"annotations={cohort.asap}",
        "labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]",
    ]) == 0  # fmt: skip
    first = {}
    for store in ("pixels", *stores):
        words = ["max_epochs=1", f"name={store}"]
        if store != "pixels":
            from microtome.plugin.registry import get_registry

            folder = get_registry().find("writer", store).spec.folder
            words.append(f"patches_folder={output / folder.removesuffix('/slides')}")
        assert train(output, *words, cohort=cohort) == 0
        first[store] = rows(output / "training" / store / "epoch_losses.csv")
    assert all(found == first["pixels"] for found in first.values())
    words = ("max_epochs=1", "name=lmdb", f"patches_folder={output / 'patches'}")
    assert train(output, *words) == 1  # of the same keys and labels, but maybe of other pixels


def test_the_defaults_are_those_that_users_know():
    known = {"batch_size": 64, "max_epochs": 50, "patience": 2, "lr": 1e-3, "aug_factor": 5}
    known |= {"save_interval": 5, "seed": 42}
    config = TrainConfig()
    assert {name: getattr(config, name) for name in known} == known
    assert (config.ohem.ratio, config.focal.gamma, config.split.val_size) == (3.0, 2.0, 0.1)
    assert (config.loss.name, config.split.test_name) == ("focal", "test")


HEAVY = ("torch", "lightning_fabric", "sklearn", "timm")
TOLD_FIRST = """
import sys
from microtome.__main__ import main
for line in sys.argv[2:]:
    main(line.split("|"))
    print("imported", [name for name in sys.argv[1].split(",") if name in sys.modules])
"""


def test_mistakes_are_told_and_trainings_reused_before_torch_is_imported(trained, cohort):
    import subprocess
    import sys

    output = f"output={trained.parents[1]}"
    again = [str(cohort.manifest), output, *RUN, *QUICK, "save_interval=1", "heatmaps=true"]
    lines = [
        again,
        [*again, "name=other", "split.file=lack.csv"],
        [output, "task=evaluate", "predictions_file=lack.parquet"],
        [output, "task=predict", "checkpoint=lack.pt"],
        [output, "task=train", "features=uni", "model=linear"],
    ]
    words = [sys.executable, "-c", TOLD_FIRST, ",".join(HEAVY), *map("|".join, lines)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "already trained" in done.stdout
    for told in ("lack.csv", "lack.parquet", "lack.pt", "no features of 'uni'"):
        assert told in done.stderr
    assert done.stdout.count("imported []") == len(lines)
