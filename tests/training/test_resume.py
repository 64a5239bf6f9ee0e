"""A training that was broken off goes on as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_fits import make_fit, run, weights

from microtome.errors import TaskError
from microtome_training.options.train import (
    LoggerKind,
    OptimizerKind,
    Schedule,
)
from microtome_training.training import loop
from microtome_training.training.checkpoints import Checkpoints


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": OptimizerKind.sgd, "schedule": Schedule.cosine, "lr": 0.01},
    ],
    ids=["adamw", "sgd-cosine"],
)
@pytest.mark.parametrize("step", [1, 5, 9], ids=["first epoch", "mid-epoch", "later"])
def test_broken_off_and_resumed_it_ends_as_uninterrupted(tmp_path, monkeypatch, options, step):
    whole = run(make_fit(tmp_path / "whole", **options))
    steps = iter(range(1, 100))
    plain = loop._Loop._step

    def breaking(self, given, labels):
        if next(steps) == step:
            raise KeyboardInterrupt
        return plain(self, given, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_step", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(make_fit(tmp_path / "broken", **options))
    resumed = run(make_fit(tmp_path / "broken", **options))
    assert resumed == whole
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(first[name], second[name]) for name in first)
    csvs = [(tmp_path / n / "epoch_losses.csv").read_text() for n in ("whole", "broken")]
    assert csvs[0] == csvs[1]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_in_mixed_precision_too(tmp_path, precision):
    options = {"max_epochs": 2, "dropout": 0.0}
    whole = run(make_fit(tmp_path / "whole", **options), precision)
    run(make_fit(tmp_path / "broken", **{**options, "max_epochs": 1}), precision)
    assert run(make_fit(tmp_path / "broken", **options), precision) == whole
    last = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)
        for name in ("whole", "broken")
    ]
    assert last[0]["precision"] == last[1]["precision"]
    assert ("scale" in last[0]["precision"]) == (precision == "16-mixed")
    first, second = (each["network"] for each in last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.dtype == torch.float32 for tensor in first.values())
    exact = run(make_fit(tmp_path / "exact", **options))
    assert exact.epochs[-1].train_loss == pytest.approx(whole.epochs[-1].train_loss, rel=0.05)
    assert exact != whole


@pytest.mark.parametrize("name", ["best.pt", "epoch_losses.csv", "last.pt"])
def test_killed_while_it_writes_an_epoch_it_ends_the_same(tmp_path, monkeypatch, name):
    whole = run(make_fit(tmp_path / "whole"))
    from microtome.store import atomic

    plain, seen = os.replace, []

    def breaking(private, path):
        if str(path).endswith(name):
            seen.append(path)
            if len(seen) == 2:
                raise KeyboardInterrupt
        return plain(private, path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(make_fit(tmp_path / "broken"))
    assert run(make_fit(tmp_path / "broken")) == whole
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_library_that_switched_gradients_off_is_no_matter(tmp_path):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        assert len(run(make_fit(tmp_path / "here")).epochs) > 0
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(before)


def test_a_training_that_is_over_takes_no_step(tmp_path, monkeypatch):
    whole = run(make_fit(tmp_path))
    monkeypatch.setattr(loop._Loop, "_step", None)
    assert run(make_fit(tmp_path)) == whole


def test_a_loss_that_is_not_finite_ends_it_in_a_sentence(tmp_path):
    with pytest.raises(TaskError, match=r"training loss is not finite in epoch \d+, batch \d+"):
        run(make_fit(tmp_path, optimizer=OptimizerKind.sgd, lr=1e30))


def test_a_damaged_checkpoint_is_told(tmp_path):
    run(make_fit(tmp_path, max_epochs=1))
    Checkpoints(tmp_path).path("last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(TaskError, match=r"last\.pt cannot be read.*force=true"):
        run(make_fit(tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_is_logged_also_after_a_break(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(make_fit(tmp_path, max_epochs=2, logger=LoggerKind.tensorboard))
    history = run(make_fit(tmp_path, max_epochs=4, logger=LoggerKind.tensorboard))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    logged = {event.step: event.value for event in read.Scalars("val_loss")}
    assert logged == {each.epoch: pytest.approx(each.val_loss, rel=1e-6) for each in history.epochs}


def test_what_is_kept_is_loaded_where_the_parameters_are(tmp_path, monkeypatch):
    """The set-up moves parameters, to a GPU or as here to doubles, and no optimizer's state."""
    whole = run(make_fit(tmp_path / "whole"), "64-true")
    run(make_fit(tmp_path / "broken", max_epochs=2), "64-true")
    plain, seen = loop._Loop._step, []

    def looking(self, given, labels):
        seen.extend(
            (own.dtype, own.device) == (tensor.dtype, tensor.device)
            for tensor, state in self._optimizer.state.items()
            for name, own in state.items()
            if name != "step"
        )
        return plain(self, given, labels)

    monkeypatch.setattr(loop._Loop, "_step", looking)
    assert run(make_fit(tmp_path / "broken"), "64-true") == whole
    assert seen
    assert all(seen)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_another_trainings_checkpoint_is_not_taken_for_its_own(tmp_path, name):
    run(make_fit(tmp_path, max_epochs=1))
    saved = Checkpoints(tmp_path, identity="b")
    with pytest.raises(TaskError, match=rf"{name} is of another training"):
        saved.load() if name == "last.pt" else saved.best("cpu")


def test_processes_that_read_change_nothing(tmp_path):
    found = [
        run(make_fit(tmp_path / str(n), workers=n, max_epochs=2, dropout=0.5)) for n in (0, 1, 2)
    ]
    assert found[0] == found[1] == found[2]


WORDS = (
    "task=train", "model=small_cnn", "input_size=32", "num_workers=0", "patience=0", "lr=3e-3",
    "split.val_size=0.25", "evaluate.bootstrap=0", "heatmaps=false", "device=cpu", "threads=1",
    "engine=inline",
)  # fmt: skip


def test_killed_outright_and_started_again_it_measures_the_same(labelled, cohort, tmp_path):
    """The whole command, by a signal that nothing can catch."""
    from microtome.__main__ import main

    outputs = [shutil.copytree(labelled, tmp_path / name / "out") for name in ("whole", "killed")]
    words = [[str(cohort.manifest), f"output={each}", *WORDS, "max_epochs=6"] for each in outputs]
    assert main(words[0]) == 0
    last = outputs[1] / "training" / "small_cnn" / "checkpoints" / "last.pt"
    code = "import sys; from microtome.__main__ import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *words[1]]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (last.parents[1] / "result.json").exists()
    assert main(words[1]) == 0
    found = [each / "training" / "small_cnn" for each in outputs]
    results = [json.loads((folder / "result.json").read_text()) for folder in found]
    assert results[1]["resumed_after"] >= 1
    metrics = [json.loads((folder / "metrics.json").read_text())["metrics"] for folder in found]
    assert metrics[0] == metrics[1]
    losses = []
    for folder in found:
        with (folder / "epoch_losses.csv").open(newline="") as file:
            losses.append(list(csv.reader(file)))
    assert losses[0] == losses[1]
