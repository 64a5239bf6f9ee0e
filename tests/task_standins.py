"""Tasks that remember what they were given, and do what their option ``act`` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.plugin import TaskSpec, hookimpl, option
from microtome.run.job import TaskOutcome
from microtome.run.signals import Terminated

Loss = Enum("Loss", ["cross_entropy", "focal"])

SEEN: list[tuple[Any, Any]] = []
"""The configuration and the job of each task that was done."""


@dataclass
class Mining:
    """Nested options."""

    ratio: float = option(0.0, help="How many to one.")
    on: bool = option(True, help="Whether.")


@dataclass
class TrainConfig:
    """Options of the stand-in, one of which a run has, too."""

    loss: Loss = option(Loss.cross_entropy, help="Which.")
    batch_size: int = option(64, help="Of the task.")
    ohem: Mining = field(default_factory=Mining)
    split_csv: str = option("", help="A file.")
    act: str = option("", help="What to do.")


@dataclass
class OtherConfig:
    """Options of another task."""

    loss: str = option("none", help="Something else by the same name.")
    least: int = option(1, help="A number.")
    name: str = option("", help="Called as the function's own argument.")
    share: float | None = option(None, help="A number or none.")
    places: list[int] = option([], help="Numbers.")


class TrainTask:
    """Does what it is told."""

    def __init__(self, config):
        if getattr(config, "batch_size", 1) < 1:
            raise TaskError(f"batch_size={config.batch_size} must be at least 1.")
        self.config = config

    def run(self, job):
        """Remember the job, and act."""
        SEEN.append((self.config, job))
        acts = {
            "refuse": TaskError("There is nothing to train on. Label some tiles first."),
            "stop": KeyboardInterrupt(),
            "terminate": Terminated(),
            "break": ZeroDivisionError("by nought"),
        }
        act = getattr(self.config, "act", "")
        if act in acts:
            raise acts[act]
        gives = {
            "nothing": None,
            "text": TaskOutcome(record="done"),
            "path": TaskOutcome(record={"epochs": 2, "folder": Path("a")}),
            "infinite": TaskOutcome(record={"loss": [float("nan")]}),
        }
        if act in gives:
            return gives[act]
        if act == "slides":
            result = job.run_slides(encoders=())
            return TaskOutcome(lines=(f"{result.counts}",), exit_code=result.exit_code)
        return TaskOutcome(
            lines=(f"trained with {getattr(self.config.loss, 'name', 'none')}", "twice"),
            record={"epochs": 2},
            exit_code=3 if act == "some" else 0,
        )


def specs(target="task_standins:TrainTask"):
    """Give the specs of the stand-ins."""
    return [
        TaskSpec(name="learn", target=target, summary="Learns", config=TrainConfig),
        TaskSpec(
            name="other",
            target=target,
            summary="Does more",
            config=OtherConfig,
            takes_slides=False,
        ),
        TaskSpec(name="needy", target=target, summary="Needs slides", needs_slides=True),
        TaskSpec(
            name="bare",
            target=target,
            summary="Cannot be had",
            requires=("no_such_library",),
            install="pip install no-such-library",
        ),
    ]


@hookimpl
def microtome_tasks():
    """Register them."""
    yield from specs()
