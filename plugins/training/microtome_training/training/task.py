"""The task ``train``: a classifier of tiles, measured on slides that it has not seen."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from microtome.errors import ConfigError, IdentityError, MicrotomeError, TaskError
from microtome.run.job import TaskOutcome
from microtome.run.planning.budget import cpu_budget
from microtome.run.progress import LineReporter, Reporter, SilentReporter, duration
from microtome.store.atomic import sweep, write_bytes, write_json
from microtome.store.identity import Identity, difference
from microtome_training.devices import find_device, find_precision
from microtome_training.options.train import TrainConfig
from microtome_training.tiles import TRAINING, root
from microtome_training.training.checkpoints import BEST, Checkpoints, EpochResult, History
from microtome_training.training.data import TileSource, fits, hold
from microtome_training.training.ending import finish
from microtome_training.training.loop import Fit, fit
from microtome_training.training.prepare import (
    TEST,
    TRAIN,
    VAL,
    Cohort,
    check_options,
    describe_classifier,
    find_source,
    gather,
    identify,
    make_augmentation,
    make_network,
    model_of,
    open_source,
    summarise,
)

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

IDENTITY_FILE, RESULT, SPLIT = "identity.json", "result.json", "split.csv"
_PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
_MOST_WORKERS, _NAME_LENGTH = 4, 120
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


class TrainTask:
    """Trains a classifier of tiles, or goes on with a training that was broken off.

    Args:
        config: The options.

    Raises:
        ConfigError: If they make no sense.
    """

    def __init__(self, config: TrainConfig) -> None:
        check_options(config)
        self._config = config

    def run(self, job: TaskJob) -> TaskOutcome:
        """Train, predict what was not trained on, measure and draw.

        Raises:
            MicrotomeError: If it cannot be done.
        """
        config = self._config
        cohort = gather(job, config)
        identity = identify(cohort, config)
        folder = root(job) / TRAINING / name_training(config, job.config.label)
        if done := _claim(folder, identity, force=job.config.force):
            return _tell({**done, "state": "reused"}, folder)
        began = time.monotonic()
        sweep(folder)
        _write_split(folder / SPLIT, cohort)
        with job.reporter as reporter:
            reporter.start(1)
            for note in _notes(cohort):
                reporter.note(note)
            history, resumed, source = _train(job, config, cohort, identity, folder)
            measured = finish(job, config, cohort, folder, source=source)
        record = {
            "identity": identity.digest,
            "folder": str(folder),
            "model": model_of(config),
            "source": find_source(config).value,
            "tiles": summarise(cohort),
            "epochs": len(history.epochs),
            "best_epoch": history.best,
            "stopped": history.over(config.max_epochs, config.patience),
            "resumed_after": resumed,
            "seconds": round(time.monotonic() - began, 1),
            **measured,
        }
        write_json(folder / RESULT, record)
        return _tell(record, folder)


def name_training(config: TrainConfig, label: str) -> str:
    """Name a training's folder.

    Args:
        config: The options; their ``name`` wins, unless it is ``auto``.
        label: What tells a job of a sweep from the others.

    Raises:
        ConfigError: If the name is no name of a folder.
    """
    if config.name != "auto":
        if _UNFIT.search(config.name) or config.name.startswith("."):
            raise ConfigError(
                f"train.name={config.name} is to name a folder: letters, digits, '.', '_' and '-'."
            )
        return config.name
    swept = "__".join(word.removeprefix("train.") for word in re.split(r",(?=[\w.]+=)", label))
    name = _UNFIT.sub("-", swept if label else model_of(config)).strip("-.")
    if len(name) > _NAME_LENGTH:
        raise ConfigError("The sweep's words are too long to name a folder: give train.name.")
    return name


def _claim(folder: Path, identity: Identity, *, force: bool) -> dict[str, Any] | None:
    """Take a training's folder; give what came of it if it was finished already.

    Raises:
        IdentityError: If another training is there, unless ``force``.
        TaskError: If what is there cannot be read.
    """
    if force and folder.exists():
        shutil.rmtree(folder)
    path = folder / IDENTITY_FILE
    if path.exists():
        found = _read(path)
        if found.get("identity") != identity.digest:
            told = difference(found.get("fields", {}), identity.fields)
            raise IdentityError(
                f"{folder} is another training: {told}. Give this one a name, train.name=, or "
                "replace that one with force=true."
            )
        result = folder / RESULT
        return _read(result) if result.exists() else None
    write_json(path, {"identity": identity.digest, "fields": dict(identity.fields)})
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: use force=true to train again.") from error
    return dict(found)


def _train(
    job: TaskJob, config: TrainConfig, cohort: Cohort, identity: Identity, folder: Path
) -> tuple[History, int, TileSource | None]:
    """Go through the epochs that are left.

    Returns:
        All epochs, how many there were before, and what gives the tiles if that was opened.
    """
    saved = Checkpoints(folder).load()
    before: History = saved["history"] if saved else History()
    if before.over(config.max_epochs, config.patience):
        return before, len(before.epochs), None
    if before.epochs:
        job.reporter.note(f"{folder.name} goes on after epoch {len(before.epochs)}")
    description = describe_classifier(cohort, config, identity)
    source, description = open_source(cohort, description, job)
    network = make_network(cohort, config, description, source)
    count, threads = len(cohort.tiles), cpu_budget(job.config.threads)
    if fits(source, count, config.memory_gb):
        job.reporter.stage(folder.name, "read tiles", count)
        advance = lambda tiles: job.reporter.advance(folder.name, tiles)  # noqa: E731
        source = hold(source, count, threads, advance)
    workers = config.num_workers
    if workers is None:
        workers = min(_MOST_WORKERS, max(0, threads - 1))
    what = Fit(
        folder=folder, config=config, description=description, network=network, source=source,
        labels=cohort.labels, keys=cohort.tiles.keys(), train=cohort.rows(TRAIN),
        val=cohort.rows(VAL), augmentation=make_augmentation(cohort, config), workers=workers,
    )  # fmt: skip
    with _threads(job.config.torch_threads or threads):
        return launch(what, job), len(before.epochs), source


def launch(what: Fit, job: TaskJob) -> History:
    """Train on the devices of a run, in this process or in one for each device.

    Raises:
        ConfigError: If a device or precision is not there.
        TaskError: If a process failed.
    """
    device, config = find_device(job.config.device), what.config
    kind, _, index = device.partition(":")
    devices: Any = [int(index)] if index and config.devices == 1 else config.devices
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
    reporter: Reporter = LineReporter(sys.stderr) if fabric.is_global_zero else SilentReporter()
    try:
        return [asdict(each) for each in fit(fabric, what, reporter).epochs], ""
    except TaskError as error:
        return [], MicrotomeError.__str__(error)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use some threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_split(path: Path, cohort: Cohort) -> None:
    """Write a row for each slide: whose it is, its split, how many tiles of each class."""
    tiles = cohort.tiles
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["slide_id", "patient_id", "split", *tiles.classes])
    for number, slide in enumerate(tiles.slides):
        if slide.slide_id in cohort.splits:
            labels = cohort.labels[tiles.slide == number]
            counts = np.bincount(labels, minlength=len(tiles.classes)).tolist()
            row = [slide.slide_id, slide.patient_id, cohort.splits[slide.slide_id], *counts]
            writer.writerow(row)
    write_bytes(path, out.getvalue().encode("utf-8", "surrogateescape"))


def _notes(cohort: Cohort) -> Iterator[str]:
    """Say what is learned from, and what one may not expect."""
    for split, counts in summarise(cohort).items():
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        slides = sum(each == split for each in cohort.splits.values())
        yield f"{split}: {slides} slides, {told}"
    val = cohort.counts(VAL)
    if not val.sum():
        yield "no slide validates: the last epochs are judged by the training's own loss"
    elif (val > 0).sum() < 2:
        yield "validation has tiles of one class only, so its AUROC is not defined"
    if not cohort.counts(TEST).sum():
        yield "no slide tests: what is measured at the end is of slides that chose the best epoch"


def _tell(record: Mapping[str, Any], folder: Path) -> TaskOutcome:
    """Sum a training up."""
    state = "already trained" if record.get("state") == "reused" else "trained"
    lines = [
        f"{folder}: {state}, {record['model']} on {record['source']}, best epoch "
        f"{record['best_epoch']} of {record['epochs']} ({record['stopped']}), in "
        f"{duration(record['seconds'])}",
        f"model: {folder / 'checkpoints' / BEST}",
        *record.get("lines", ()),
    ]
    return TaskOutcome(lines=tuple(lines), record=dict(record))
