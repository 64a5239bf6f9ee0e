"""What a training keeps to go on from after it was killed, and for whoever uses it."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microtome.errors import TaskError
from microtome.store.atomic import publish, write_bytes
from microtome_training.classifier import (
    Classifier,
    Description,
    load_classifier,
    save_classifier,
)
from microtome_training.names import BEST, CHECKPOINTS, LAST

LOSSES = "epoch_losses.csv"


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What came of an epoch: a row of ``epoch_losses.csv``.

    Attributes:
        epoch: Its number, from 1.
        train_loss: Mean loss of its batches, as it went.
        train_acc: Share of the tiles shown that were right, as it went.
        val_loss: Of all validation tiles after it; None where there are none.
        val_acc: Likewise.
        val_auroc: Likewise, the mean over the positive classes; None also where validation has
            one class.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float | None = None
    val_acc: float | None = None
    val_auroc: float | None = None

    @property
    def watched(self) -> float:
        """What is to become small: the validation loss, or without validation the training's."""
        return self.train_loss if self.val_loss is None else self.val_loss


@dataclass(frozen=True)
class History:
    """The epochs of a training so far.

    Attributes:
        epochs: In order.
    """

    epochs: tuple[EpochResult, ...] = ()

    @property
    def best(self) -> int:
        """The epoch of the lowest loss that was watched, the first of equals; 0 before any."""
        if not self.epochs:
            return 0
        return min(self.epochs, key=lambda each: (each.watched, each.epoch)).epoch

    def over(self, max_epochs: int, patience: int) -> str:
        """Say why a training is over; empty while it goes on."""
        done = len(self.epochs)
        if patience and done - self.best >= patience:
            return f"no lower loss in {patience} epochs"
        return "all epochs are done" if done >= max_epochs else ""

    def with_next(self, result: EpochResult) -> History:
        """Add an epoch."""
        return History((*self.epochs, result))

    def to_csv(self) -> str:
        """Write the epochs as ``epoch,train_loss,train_acc,val_loss,val_acc,val_auroc``."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([field.name for field in fields(EpochResult)])
        for each in self.epochs:
            writer.writerow(["" if value is None else value for value in asdict(each).values()])
        return out.getvalue()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a training.

    Attributes:
        folder: Of the training.
        interval: Epochs between those that are kept; 0 for none.
        identity: Of the training: no other's checkpoints are taken for its own.
    """

    folder: Path
    interval: int = 0
    identity: str = ""

    def path(self, name: str) -> Path:
        """Name a checkpoint's file."""
        return self.folder / CHECKPOINTS / name

    def save(
        self,
        network: nn.Module,
        description: Description,
        history: History,
        rest: Mapping[str, Any],
    ) -> None:
        """Keep what an epoch left, ``last.pt`` at the end: killed before, the epoch is done again.

        Args:
            network: Bare, not as a device has it.
            description: Of the classifier.
            history: With this epoch.
            rest: States that only going on needs, plain values and tensors.

        Raises:
            StoreError: If something cannot be written.
        """
        epoch = len(history.epochs)
        if history.best == epoch:
            save_classifier(self.path(BEST), network, description)
        if self.interval and epoch % self.interval == 0:
            save_classifier(self.path(f"ckpt_epoch_{epoch}.pt"), network, description)
        write_bytes(self.folder / LOSSES, history.to_csv().encode())
        state = {
            "identity": self.identity,
            "network": network.state_dict(),
            "history": [asdict(each) for each in history.epochs],
            **rest,
        }
        with publish(self.path(LAST)) as private:
            torch.save(state, private)

    def load(self) -> dict[str, Any] | None:
        """Give what `save` kept last, the history as `History`; None if nothing was.

        Raises:
            TaskError: If it cannot be read, or is another training's.
        """
        path = self.path(LAST)
        if not path.is_file():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = state["identity"]
            epochs = tuple(EpochResult(**each) for each in state["history"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise TaskError(
                f"{path} cannot be read, so the training cannot go on: use force=true to begin "
                "again."
            ) from error
        self._refuse_other(path, identity)
        return {**state, "history": History(epochs)}

    def best(self, device: str) -> Classifier:
        """Load the best model.

        Args:
            device: Where it is to compute.

        Raises:
            ConfigError: If there is none.
            TaskError: If it cannot be read, or is another training's.
        """
        path = self.path(BEST)
        classifier = load_classifier(path, device)
        self._refuse_other(path, classifier.description.provenance.get("identity", ""))
        return classifier

    def _refuse_other(self, path: Path, identity: object) -> None:
        if identity != self.identity:
            raise TaskError(
                f"{path} is of another training than its folder says: use force=true to begin "
                "again."
            )


def say_history(epochs: Sequence[EpochResult]) -> str:
    """Put the last epoch into one line."""
    last = epochs[-1]
    told = [f"train loss {last.train_loss:.4f}", f"accuracy {last.train_acc:.3f}"]
    if last.val_loss is not None and last.val_acc is not None:
        told += [f"val loss {last.val_loss:.4f}", f"accuracy {last.val_acc:.3f}"]
    if last.val_auroc is not None:
        told.append(f"AUROC {last.val_auroc:.3f}")
    return f"epoch {last.epoch}: {', '.join(told)}"
