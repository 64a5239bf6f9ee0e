"""The epochs of a training, on any devices, so that a killed one goes on as if nothing was."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from microtome.errors import TaskError
from microtome.plugin.numerics import exact_convolutions
from microtome.run.progress import Reporter
from microtome_training.classifier import Description, PatchNetwork
from microtome_training.options.train import OptimizerKind, Schedule, TrainConfig
from microtome_training.training.augment import Augmentation, generator
from microtome_training.training.checkpoints import Checkpoints, EpochResult, History, say_history
from microtome_training.training.data import Batches, Epoch, TileSource, load, shuffle
from microtome_training.training.loggers import EventLog, open_log
from microtome_training.training.losses import PatchLoss

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_LARGER = 4
"""Validation, which keeps no gradients, takes batches so many times as large."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """All that a training is made of. Pickles, for processes that have a device each.

    Attributes:
        folder: Of the training.
        config: The options.
        description: Of the classifier.
        network: With the weights that it begins with.
        source: Gives the tiles.
        labels: (n,) int64 of all tiles.
        keys: Of all tiles.
        train: (m,) the training tiles, in the order of their keys.
        val: (v,) the validation tiles; empty for none.
        augmentation: Of the training tiles; None for features.
        workers: Processes that read, for each device.
    """

    folder: Path
    config: TrainConfig
    description: Description
    network: nn.Module
    source: TileSource
    labels: NDArray[np.int64]
    keys: Sequence[str]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    augmentation: Augmentation | None = field(default=None)
    workers: int = 0

    def epoch(self, number: int) -> Epoch:
        """Say what an epoch shows."""
        config = self.config
        return shuffle(
            self.train,
            self.labels,
            number=number,
            seed=config.seed,
            aug_factor=config.aug_factor,
        )

    def loss(self) -> PatchLoss:
        """Make its loss, classes weighted by what an epoch shows."""
        shown = self.labels[self.epoch(1).rows]
        return PatchLoss.of(
            self.config, np.bincount(shown, minlength=len(self.description.classes))
        )


def fit(fabric: Fabric, what: Fit, reporter: Reporter) -> History:
    """Train, or go on with a training, until it is over.

    Every device runs this; the first writes. All that is random is drawn from the seed and the
    epoch's number, so an epoch that is done again is the same.

    Args:
        fabric: The devices, launched.
        what: The training.
        reporter: Hears of every epoch; the first device's.

    Returns:
        The epochs.

    Raises:
        TaskError: If the loss is not finite.
        StoreError: If a checkpoint cannot be written.
    """
    # Whatever else is in the process: libraries switch gradients off for good.
    with torch.enable_grad(), exact_convolutions(), _kernels(what.config.deterministic):
        return _Loop(fabric, what, reporter).run()


class _Loop:
    def __init__(self, fabric: Fabric, what: Fit, reporter: Reporter) -> None:
        self._fabric, self._what, self._reporter = fabric, what, reporter
        identity = str(what.description.provenance.get("identity", ""))
        self._checkpoints = Checkpoints(what.folder, what.config.save_interval, identity)
        saved = self._checkpoints.load()
        self._history: History = saved["history"] if saved else History()
        self._loss = what.loss().to(fabric.device)
        self._network = _in_step(what.network, fabric)
        whole = PatchNetwork(self._network, what.description.takes)
        self._model, self._optimizer = fabric.setup(whole, _make_optimizer(whole, what.config))
        if saved:
            # Now that the parameters are where they stay: an optimizer's state goes where they are.
            self._network.load_state_dict(saved["network"])
            self._optimizer.load_state_dict(saved["optimizer"])
            fabric.strategy.precision.load_state_dict(saved["precision"])

    def run(self) -> History:
        """Go through the epochs."""
        config, fabric = self._what.config, self._fabric
        with self._log() as log:
            while not self._history.over(config.max_epochs, config.patience):
                result = self._epoch(len(self._history.epochs) + 1)
                self._history = self._history.with_next(result)
                if fabric.is_global_zero:
                    self._save()
                    self._reporter.note(say_history(self._history.epochs))
                    if log is not None:
                        log.log(result)
                fabric.barrier()
        return self._history

    def _log(self) -> AbstractContextManager[EventLog | None]:
        if not self._fabric.is_global_zero:
            return nullcontext()
        return open_log(self._what.config.logger, self._what.folder, self._history)

    def _save(self) -> None:
        rest = {
            "optimizer": self._optimizer.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "weights": dict(self._what.description.provenance.get("weights", {})),
        }
        description = self._what.description
        trained = {**description.provenance, "epoch": len(self._history.epochs)}
        described = Description(
            architecture=description.architecture,
            classes=description.classes,
            takes=description.takes,
            provenance=trained,
        )
        self._checkpoints.save(self._network, described, self._history, rest)

    def _epoch(self, number: int) -> EpochResult:
        train_loss, train_acc = self._train(number)
        if not len(self._what.val):
            return EpochResult(epoch=number, train_loss=train_loss, train_acc=train_acc)
        logits = self._validate()
        labels = torch.from_numpy(self._what.labels[self._what.val]).to(logits.device)
        loss = float(self._loss.of_all(logits, labels))
        self._refuse_unfinite(loss, number, "validation")
        return EpochResult(
            epoch=number,
            train_loss=train_loss,
            train_acc=train_acc,
            val_loss=loss,
            val_acc=float((logits.argmax(1) == labels).double().mean()),
            val_auroc=auroc(torch.softmax(logits, 1).cpu().numpy(), labels.cpu().numpy()),
        )

    def _train(self, number: int) -> tuple[float, float]:
        """Take the steps of an epoch; give the mean loss and accuracy as they went."""
        what, fabric = self._what, self._fabric
        epoch = what.epoch(number)
        whole = epoch.batches(what.config.batch_size)
        mine = [_share(part, fabric.global_rank, fabric.world_size) for part in whole]
        batches = Batches(what.source, what.labels, what.keys, epoch, mine, what.augmentation)
        # What a network itself draws, such as dropout.
        draw = generator("network", what.config.seed, number, fabric.global_rank)
        torch.manual_seed(int(draw.integers(2**62)))
        self._model.train()
        self._tell(f"epoch {number} of at most {what.config.max_epochs}", len(epoch.rows))
        sums = np.zeros(3)
        for step, (given, labels) in enumerate(load(batches, what.workers)):
            self._set_rate(number - 1 + step / len(whole))
            loss, right = self._step(given.to(fabric.device), labels.to(fabric.device))
            self._refuse_unfinite(loss, number, "training", step + 1)
            sums += (loss * len(whole[step]) / fabric.world_size, right, len(labels))
            if fabric.is_global_zero:
                self._reporter.advance(what.folder.name, len(whole[step]))
        loss_sum, right_sum, count = self._sum(torch.from_numpy(sums)).tolist()
        return loss_sum / len(epoch.rows), right_sum / count

    def _step(self, given: Tensor, labels: Tensor) -> tuple[float, int]:
        self._optimizer.zero_grad()
        logits = self._model(given)
        losses, weights = self._loss.sums(logits, labels)
        # Devices give the mean of their gradients, which is then that of the batch as a whole.
        loss = losses * self._fabric.world_size / self._sum(weights)
        self._fabric.backward(loss)
        self._optimizer.step()
        return float(loss.detach()), int((logits.detach().argmax(1) == labels).sum())

    @torch.no_grad()
    def _validate(self) -> Tensor:
        """Give the logits of the validation tiles, (v, C) float32, on every device."""
        what, fabric = self._what, self._fabric
        count = len(what.val)
        mine = np.array_split(np.arange(count), fabric.world_size)[fabric.global_rank]
        epoch = Epoch(rows=what.val, copies=np.zeros(count, np.int64), number=0)
        size = what.config.batch_size * _LARGER
        parts = np.array_split(mine, -(-len(mine) // size)) if len(mine) else []
        batches = Batches(what.source, what.labels, what.keys, epoch, parts)
        logits = torch.zeros((count, len(what.description.classes)), device=fabric.device)
        # The bare model: devices need not have equally many batches, or any at all.
        model = self._model.module.eval()
        if fabric.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        with fabric.autocast():
            for part, (given, _) in zip(parts, load(batches, what.workers), strict=True):
                logits[torch.from_numpy(part)] = model(given.to(fabric.device)).float()
        return self._sum(logits)

    def _sum(self, values: Tensor) -> Tensor:
        """Add up what the devices have, each zeros where the others have something."""
        if self._fabric.world_size == 1:
            return values
        # Not every device has doubles.
        moved = values.float().to(self._fabric.device)
        summed: Any = self._fabric.all_reduce(moved, reduce_op="sum")
        total: Tensor = summed
        return total

    def _set_rate(self, done: float) -> None:
        config = self._what.config
        rate = config.lr
        if config.schedule is Schedule.cosine:
            rate *= (1 + math.cos(math.pi * done / config.max_epochs)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _tell(self, stage: str, tiles: int) -> None:
        if self._fabric.is_global_zero:
            self._reporter.stage(self._what.folder.name, stage, tiles)

    def _refuse_unfinite(self, loss: float, epoch: int, which: str, batch: int = 0) -> None:
        if not math.isfinite(loss):
            where = f"epoch {epoch}" + (f", batch {batch}" if batch else "")
            raise TaskError(
                f"{self._what.folder}: the {which} loss is not finite in {where}, at "
                f"lr={self._what.config.lr:g}. Lower the learning rate, or use precision=fp32, "
                "with force=true or under another name."
            )


def auroc(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """Give the area under the ROC curve, the mean over the classes but the background.

    Returns:
        None where no class is both there and not there.
    """
    from sklearn.metrics import roc_auc_score

    found = [
        float(roc_auc_score(labels == number, probabilities[:, number]))
        for number in range(1, probabilities.shape[1])
        if 0 < (labels == number).sum() < len(labels)
    ]
    return sum(found) / len(found) if found else None


def _make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    parameters = [each for each in model.parameters() if each.requires_grad]
    if config.optimizer is OptimizerKind.sgd:
        return SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return AdamW(parameters, config.lr, weight_decay=config.weight_decay)


def _in_step(network: nn.Module, fabric: Fabric) -> nn.Module:
    """Have a network normalise a batch as a whole, wherever several GPUs share it."""
    if fabric.world_size == 1 or fabric.device.type != "cuda":  # there is none for CPUs
        return network
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    synced: nn.Module = convert(network)
    return synced


def _share(part: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """Give a device its share of a batch: one tile at least, so that none waits for another."""
    if len(part) < world:
        return part[[rank % len(part)]]
    share: NDArray[np.int64] = np.array_split(part, world)[rank]
    return share


@contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """Have torch use kernels that give the same twice, and then as it was before."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.backends.cudnn.benchmark = benchmark
