"""Trainings on a few small tiles, for tests of the loop."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from microtome.plugin.specs import Transform
from microtome.run.progress import SilentReporter
from microtome_training.classifier import Description, Takes
from microtome_training.options.train import TrainConfig
from microtome_training.training.augment import Augmentation
from microtome_training.training.data import HeldSource
from microtome_training.training.loop import Fit, fit
from microtome_training.training.models import Architecture

COUNT, HELD_OUT = 60, 16


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
            takes=Takes(kind="pixels", size=16, transform=Transform(resize=None, crop=None)),
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
    """Run a training on the CPU; asked for fp16 there, a Fabric would take bf16."""
    torch.manual_seed(time.monotonic_ns())  # what a process happens to have drawn must not matter
    if precision == "16-mixed":
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision(precision, "cpu")])
    else:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return fabric.launch(partial(fit, what=what, reporter=SilentReporter()))


def weights(folder):
    """Give the best model's tensors."""
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    return best["state_dict"]
