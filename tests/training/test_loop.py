"""The epochs of a training: its steps, its validation, its devices."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from small_fits import make_fit, run, weights

from microtome_training.classifier import load_classifier, to_tensor
from microtome_training.options.train import (
    AugmentOptions,
    AugmentWhich,
    OhemOptions,
    OptimizerKind,
    Schedule,
)
from microtome_training.training import loop
from microtome_training.training.launching import _spawn
from microtome_training.training.models import Architecture

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_validation_sees_tiles_as_they_are_and_drops_nothing(tmp_path):
    every = AugmentOptions(which=AugmentWhich.all)
    what = make_fit(tmp_path, max_epochs=1, dropout=0.7, augment=every)
    what = normalised(what)
    [epoch] = run(what).epochs
    model = load_classifier(tmp_path / "checkpoints" / "best.pt")
    logits = model.logits(to_tensor(what.source.read(what.val)))
    expected = what.loss().of_all(logits, torch.from_numpy(what.labels[what.val]))
    assert epoch.val_loss == pytest.approx(float(expected), rel=1e-6)


def normalised(what):
    """Take a network with batch normalisation, which has more to keep than parameters."""
    architecture = Architecture(model="resnet10t", classes=2, dropout=what.config.dropout)
    torch.manual_seed(0)
    described = replace(what.description, architecture=architecture)
    return replace(what, network=architecture.build(), description=described)


def test_the_learning_rate_falls_as_a_cosine_from_the_first_step(tmp_path, monkeypatch):
    plain, rates = loop._Loop._step, []

    def looking(self, given, labels):
        rates.append(self._optimizer.param_groups[0]["lr"])
        return plain(self, given, labels)

    monkeypatch.setattr(loop._Loop, "_step", looking)
    run(make_fit(tmp_path, max_epochs=3, lr=0.01, schedule=Schedule.cosine))
    done = np.arange(len(rates)) / len(rates)
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * each)) / 2 for each in done])


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_that_give_the_same_twice_are_an_option(tmp_path, monkeypatch, deterministic):
    plain, seen = loop._Loop._step, set()

    def looking(self, given, labels):
        seen.add(torch.are_deterministic_algorithms_enabled())
        return plain(self, given, labels)

    monkeypatch.setattr(loop._Loop, "_step", looking)
    run(make_fit(tmp_path, max_epochs=1, deterministic=deterministic))
    assert seen == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_tf32_is_off_in_training_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    what = make_fit(tmp_path, max_epochs=1)
    seen = []

    def looking(*_):
        seen.append((torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32))

    what.network.register_forward_pre_hook(looking)
    run(what)
    model = load_classifier(tmp_path / "checkpoints" / "best.pt")
    model._model.register_forward_pre_hook(looking)
    model.probabilities(what.source.read(what.val))
    assert set(seen) == {(True, False), (False, False)}
    assert torch.backends.cudnn.allow_tf32


def test_gpus_that_share_a_batch_normalise_it_as_a_whole(tmp_path):
    network = normalised(make_fit(tmp_path)).network
    alone = SimpleNamespace(world_size=1, device=torch.device("cuda"))
    cpus = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    assert loop._in_step(network, alone) is loop._in_step(network, cpus) is network
    names = list(network.state_dict())
    gpus = SimpleNamespace(world_size=2, device=torch.device("cuda"))
    synced = loop._in_step(network, gpus)
    assert list(synced.state_dict()) == names
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synced.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in synced.modules())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("held", [1, 33])
def test_devices_need_not_have_equally_many_validation_tiles(tmp_path, held):
    """Of 33, one device has 17, which are two batches, and the other 16, which are one."""
    what = normalised(make_fit(tmp_path, devices=2, max_epochs=1, batch_size=4, dropout=0.0))
    what = replace(what, val=np.arange(60 - held, 60), train=np.arange(16))
    two = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
    [epoch] = _spawn(two, what).epochs
    model = load_classifier(tmp_path / "checkpoints" / "best.pt")
    logits = model.logits(to_tensor(what.source.read(what.val)))
    expected = what.loss().of_all(logits, torch.from_numpy(what.labels[what.val]))
    assert epoch.val_loss == pytest.approx(float(expected), rel=1e-5)


def test_the_same_training_leaves_the_same_file(tmp_path):
    found = []
    for name in ("one", "two"):
        run(make_fit(tmp_path / name, max_epochs=1))
        found.append((tmp_path / name / "checkpoints" / "best.pt").read_bytes())
    assert found[0] == found[1]
