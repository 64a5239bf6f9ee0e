"""What is written of each epoch for other programs to draw."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import MissingDependencyError
from microtome_training.options.train import LoggerKind
from microtome_training.training.checkpoints import EpochResult, History

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "tensorboard"


class EventLog:
    """Writes the numbers of each epoch for tensorboard.

    Args:
        folder: Of the training.
        history: What is logged already by an earlier start: later steps there are void.

    Raises:
        MissingDependencyError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, history: History) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "train.logger=tensorboard needs tensorboard: pip install tensorboard"
            ) from error
        self._writer: SummaryWriter = SummaryWriter(
            str(folder / EVENTS), purge_step=len(history.epochs) + 1
        )

    def log(self, result: EpochResult) -> None:
        """Write an epoch."""
        for name, value in asdict(result).items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, result.epoch)
        self._writer.flush()

    def __enter__(self) -> EventLog:
        """Enter a ``with`` block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        self._writer.close()


def open_log(
    kind: LoggerKind, folder: Path, history: History
) -> AbstractContextManager[EventLog | None]:
    """Open the log that a training asks for; the CSV, which there always is, needs none."""
    return EventLog(folder, history) if kind is LoggerKind.tensorboard else nullcontext()
