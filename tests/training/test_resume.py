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
from functools import partial

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from microtome.errors import TaskError
from microtome.plugin.specs import Transform
from microtome.run.progress import SilentReporter
from microtome_training.classifier import Description, Takes
from microtome_training.options.train import (
    LoggerKind,
    OhemOptions,
    OptimizerKind,
    Schedule,
    TrainConfig,
)
from microtome_training.training import loop
from microtome_training.training.augment import Augmentation
from microtome_training.training.checkpoints import Checkpoints
from microtome_training.training.data import HeldSource
from microtome_training.training.launching import _spawn
from microtome_training.training.loop import Fit, fit
from microtome_training.training.models import Architecture

COUNT, HELD_OUT = 60, 16
AS_IT_IS = Transform(resize=None, crop=None)


@pytest.fixture(autouse=True)
def _one_thread():
    """Let torch use one thread: for such small work, sharing it out is what takes time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_fit(folder, *, workers=0, identity="a", **options):
    """Make a training of noise, of which some tiles are striped."""
    rng = np.random.default_rng(0)
    labels = (np.arange(COUNT) % 3 == 0).astype(np.int64)
    pixels = rng.integers(0, 255, (COUNT, 16, 16, 3), np.uint8)
    pixels[labels == 1, ::4] = 250
    config = TrainConfig(
        **{"max_epochs": 4, "patience": 0, "batch_size": 16, "dropout": 0.2, **options}
    )
    architecture = Architecture(model="small_cnn", classes=2, dropout=config.dropout)
    torch.manual_seed(0)
    return Fit(
        folder=folder,
        config=config,
        description=Description(
            architecture=architecture,
            classes=("normal", "tumor"),
            takes=Takes(kind="pixels", size=16, transform=AS_IT_IS),
            provenance={"identity": identity},
        ),
        network=architecture.build(),
        source=HeldSource(pixels),
        labels=labels,
        keys=[f"tile_{number}" for number in range(COUNT)],
        train=np.arange(COUNT - HELD_OUT),
        val=np.arange(COUNT - HELD_OUT, COUNT),
        augmentation=Augmentation(config.augment, config.seed),
        workers=workers,
    )


def run(what, precision="32-true"):
    torch.manual_seed(time.monotonic_ns())  # what a process happens to have drawn must not matter
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return fabric.launch(partial(fit, what=what, reporter=SilentReporter()))


def weights(folder):
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    return best["state_dict"]


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


def test_options_of_the_optimizer_reach_it(tmp_path):
    sgd = {"optimizer": OptimizerKind.sgd, "lr": 0.05, "max_epochs": 1, "dropout": 0.0}
    ways = {
        "plain": {"momentum": 0.0, "weight_decay": 0.0},
        "momentum": {"momentum": 0.9, "weight_decay": 0.0},
        "decay": {"momentum": 0.0, "weight_decay": 2.0},
    }
    norms = {}
    for name, options in ways.items():
        run(make_fit(tmp_path / name, **sgd, **options))
        kept = torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)
        group = kept["optimizer"]["param_groups"][0]
        assert {key: group[key] for key in options} == options
        norms[name] = float(weights(tmp_path / name)["body.9.weight"].norm())
    assert norms["decay"] < 0.9 * norms["plain"]
    assert norms["momentum"] != norms["plain"]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_tile_of_a_batch_is_on_one_device(world):
    for count in range(world, 20):
        part = np.random.default_rng(count).permutation(1000)[:count]
        shares = [loop._share(part, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(shares), part)
        assert min(map(len, shares)) >= 1


def test_devices_together_see_an_epoch_once(tmp_path):
    """Without processes: each device's part of the loop, and what the devices would add up."""
    what = make_fit(tmp_path)
    epoch = what.epoch(1)
    shown = [
        epoch.rows[loop._share(part, rank, 2)] for part in epoch.batches(16) for rank in range(2)
    ]
    times = np.where(what.labels[what.train] > 0, what.config.aug_factor, 1)
    assert sorted(np.concatenate(shown)) == sorted(np.repeat(what.train, times))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_does(tmp_path):
    """Without mining, which goes by each one's share, and dropout, which each draws for itself."""
    options = {"max_epochs": 2, "dropout": 0.0, "ohem": OhemOptions(ratio=0.0), "lr": 0.05}
    options |= {"optimizer": OptimizerKind.sgd, "batch_size": 15}
    what = make_fit(tmp_path / "two", devices=2, **options)
    two = _spawn(Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn"), what)
    one = run(make_fit(tmp_path / "one", **options))
    for first, second in zip(one.epochs, two.epochs, strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-5)
        assert second.train_acc == pytest.approx(first.train_acc, rel=1e-5)
        assert second.val_loss == pytest.approx(first.val_loss, rel=1e-5)
    begun = make_fit(tmp_path).network.state_dict()
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, before in begun.items():
        moved = float((first[name] - before).abs().max())
        assert moved > 1e-3
        assert float((first[name] - second[name]).abs().max()) < 1e-5


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
