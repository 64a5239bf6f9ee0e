"""Starts a training on the devices of a run: in this process, or in one for each device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from microtome.errors import ConfigError, MicrotomeError, TaskError
from microtome.run.progress import LineReporter, Reporter, SilentReporter
from microtome_training.devices import find_device, find_precision
from microtome_training.training.checkpoints import EpochResult, History
from microtome_training.training.loop import Fit, fit

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

_PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def launch(what: Fit, job: TaskJob) -> History:
    """Train on the devices of a run, in this process or in one for each device.

    Raises:
        ConfigError: If a device or precision is not there.
        TaskError: If a process failed.
    """
    device, config = find_device(job.config.device), what.config
    kind, _, index = device.partition(":")
    there = torch.cuda.device_count() if kind == "cuda" else config.devices
    if config.devices > there:
        raise ConfigError(f"train.devices={config.devices}, but torch sees {there} {kind} devices.")
    devices: Any = [int(index)] if index else config.devices
    precision: Any = _PRECISIONS[find_precision(job.config.precision, device)]
    fabric = Fabric(
        accelerator="gpu" if kind == "cuda" else kind,
        devices=devices,
        strategy="auto" if config.devices == 1 else "ddp_spawn",
        precision=precision,
    )
    if config.devices == 1:
        history: History = fabric.launch(partial(fit, what=what, reporter=job.reporter))
        return history
    return _spawn(fabric, what)


def _spawn(fabric: Fabric, what: Fit) -> History:
    from torch.multiprocessing.spawn import ProcessException

    each = max(1, torch.get_num_threads() // what.config.devices)
    try:
        found, error = fabric.launch(partial(_in_process, what=what, threads=each))
    except ProcessException as lost:
        last = str(lost).strip().splitlines()[-1].rstrip(".")
        raise TaskError(f"A process of the training failed: {last}.") from lost
    if error:
        raise TaskError(error)
    return History(tuple(EpochResult(**each) for each in found))


def _in_process(fabric: Fabric, *, what: Fit, threads: int) -> tuple[list[dict[str, Any]], str]:
    """Train in one of several processes; what all of them refuse is given back as a sentence."""
    torch.set_num_threads(threads)
    # What comes from another process is in memory that all of them share, and would all step on.
    what = replace(what, network=deepcopy(what.network))
    reporter: Reporter = LineReporter(sys.stderr) if fabric.is_global_zero else SilentReporter()
    try:
        return [asdict(each) for each in fit(fabric, what, reporter).epochs], ""
    except TaskError as error:
        return [], MicrotomeError.__str__(error)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch use some threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
