"""The task ``train``: a classifier of tiles, measured on slides that it has not seen."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError
from microtome.run.job import TaskOutcome
from microtome.run.planning.budget import cpu_budget
from microtome.run.progress import duration
from microtome.store.atomic import write_json
from microtome.store.identity import Identity, difference, make_identity
from microtome_training.changed import tell_edited
from microtome_training.devices import find_device, find_precision
from microtome_training.names import BEST, CHECKPOINTS, TEST, TRAIN, TRAINING, VAL
from microtome_training.options.train import TrainConfig
from microtome_training.splitfile import SPLIT, write_split
from microtome_training.stores import root
from microtome_training.tiles import tell_some
from microtome_training.training.claiming import (
    RESULT,
    begin,
    clear,
    find_finished,
    hold_folder,
)
from microtome_training.training.cohort import Cohort, find_source, gather, summarise
from microtome_training.training.prepare import (
    check_options,
    describe_classifier,
    identify,
    make_augmentation,
    make_network,
    model_of,
    open_source,
)

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.training.checkpoints import History
    from microtome_training.training.data import TileSource

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
        config, asked = self._config, job.config
        if config.devices > 1 and ":" in asked.device:
            raise ConfigError(
                f"device={asked.device} is one device, and train.devices={config.devices} wants "
                f"more: say device={asked.device.partition(':')[0]}."
            )
        cohort = gather(job, config)
        identity = identify(cohort, config)
        folder = root(job) / TRAINING / name_training(config, asked.label)
        with job.reporter, hold_folder(folder, asked.claims, job.reporter):
            for note in tell_edited(cohort.tiles.slides):
                job.reporter.note(note)
            if asked.force:
                clear(folder)
            done = find_finished(folder, _any_precision(identity, asked.precision))
            if done is not None:
                return self._again(job, cohort, folder, done)
            precision = find_precision(asked.precision, find_device(asked.device))
            identity = _with_precision(identity, precision)
            begin(folder, identity)
            return self._whole(job, cohort, folder, identity)

    def _again(
        self, job: TaskJob, cohort: Cohort, folder: Path, done: Mapping[str, Any]
    ) -> TaskOutcome:
        """Tell of a training that is finished; measure and draw again if that is to differ."""
        before = done.get("ending", {})
        now = {**before, **_ending(self._config)}
        if before == now:
            return _tell({**done, "state": "reused"}, folder)
        from microtome_training.training.ending import finish

        job.reporter.start(1)
        why = difference(before, now) if before else "it was broken off"
        job.reporter.note(f"{folder.name} is measured again: {why}")
        write_json(folder / RESULT, {**done, "ending": {}})  # until all of it is of now
        measured = finish(job, self._config, cohort, folder, identity=done["identity"])
        record = {**done, "ending": now, **measured}
        write_json(folder / RESULT, record)
        return _tell({**record, "state": "measured again"}, folder)

    def _whole(self, job: TaskJob, cohort: Cohort, folder: Path, identity: Identity) -> TaskOutcome:
        """Train, or go on, and finish."""
        from microtome_training.training.ending import finish  # torch, when nothing is wrong

        config, began = self._config, time.monotonic()
        write_split(folder / SPLIT, cohort.tiles, cohort.labels, cohort.splits)
        job.reporter.start(1)
        for note in _notes(cohort):
            job.reporter.note(note)
        history, resumed, source = _train(job, config, cohort, identity, folder)
        measured = finish(job, config, cohort, folder, identity=identity.digest, source=source)
        record = {
            "identity": identity.digest,
            "ending": _ending(config),
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


def _with_precision(identity: Identity, precision: str) -> Identity:
    """Let an identity say in what is computed, unless that is fp32."""
    if precision == "fp32":
        return identity
    return make_identity("training", {**identity.fields, "precision": precision})


def _any_precision(identity: Identity, asked: str) -> list[Identity]:
    """Give the identities that a finished training may have; whoever asks for auto takes any."""
    precisions = ("fp32", "bf16", "fp16") if asked == "auto" else (asked,)
    return [_with_precision(identity, each) for each in precisions]


def _ending(config: TrainConfig) -> dict[str, Any]:
    """Give all that says how a training is measured and drawn, as plain values."""
    parts = {"evaluate": asdict(config.evaluate)}
    if config.heatmaps:
        parts["heatmap"] = asdict(config.heatmap)
    return {
        name: {key: each.value if isinstance(each, Enum) else each for key, each in part.items()}
        for name, part in parts.items()
    }


def _train(
    job: TaskJob, config: TrainConfig, cohort: Cohort, identity: Identity, folder: Path
) -> tuple[History, int, TileSource | None]:
    """Go through the epochs that are left.

    Returns:
        All epochs, how many there were before, and what gives the tiles if that was opened.
    """
    from microtome_training.training.checkpoints import Checkpoints, History
    from microtome_training.training.data import Keys, fits, hold
    from microtome_training.training.launching import launch, use_threads
    from microtome_training.training.loop import Fit

    saved = Checkpoints(folder, identity=identity.digest).load()
    before: History = saved["history"] if saved else History()
    if before.over(config.max_epochs, config.patience):
        return before, len(before.epochs), None
    if before.epochs:
        job.reporter.note(f"{folder.name} goes on after epoch {len(before.epochs)}")
    description = describe_classifier(cohort, config, identity)
    source, description = open_source(cohort, description, job)
    if saved:  # which has all weights: those that it began with need not be here any more
        network, weights = description.architecture.build(), saved["weights"]
    else:
        network, weights = make_network(cohort, config, description, source)
    provenance = {**description.provenance, "weights": weights}
    description = replace(description, provenance=provenance)
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
        labels=cohort.labels, keys=Keys(cohort.tiles), train=cohort.rows(TRAIN),
        val=cohort.rows(VAL), augmentation=make_augmentation(cohort, config), workers=workers,
    )  # fmt: skip
    with use_threads(job.config.torch_threads or threads):
        return launch(what, job), len(before.epochs), source


def _notes(cohort: Cohort) -> Iterator[str]:
    """Say what is learned from, and what one may not expect."""
    yield from cohort.notes
    for split, counts in summarise(cohort).items():
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        count = sum(each == split for each in cohort.splits.values())
        yield f"{split}: {count} slides, {told}"
    slides = [slide for slide in cohort.tiles.slides if slide.slide_id in cohort.splits]
    unknown = [slide.slide_id for slide in slides if not slide.patient_id]
    if unknown:
        of = "no patient is known, so slides are split"
        if len(unknown) < len(slides):
            of = (
                f"of {len(unknown)} of {len(slides)} slides the patient is not known, "
                f"{tell_some(unknown)}: each is split by itself"
            )
        yield f"{of}; a manifest with patient_id says whose they are"
    val = cohort.counts(VAL)
    if not val.sum():
        yield "no slide validates: the last epochs are judged by the training's own loss"
    elif (val > 0).sum() < 2:
        yield "validation has tiles of one class only, so its AUROC is not defined"
    if not cohort.counts(TEST).sum():
        yield "no slide tests: what is measured at the end is of slides that chose the best epoch"


def _tell(record: Mapping[str, Any], folder: Path) -> TaskOutcome:
    """Sum a training up."""
    known = {"reused": "already trained", "measured again": "already trained, measured again"}
    state = known.get(record.get("state", ""), "trained")
    lines = [
        f"{folder}: {state}, {record['model']} on {record['source']}, best epoch "
        f"{record['best_epoch']} of {record['epochs']} ({record['stopped']}), in "
        f"{duration(record['seconds'])}",
        f"model: {folder / CHECKPOINTS / BEST}",
        *record.get("lines", ()),
    ]
    if measured := record.get("evaluation"):
        lines.append(f"Page: {folder / measured['page']}")
    return TaskOutcome(lines=tuple(lines), record={**record, "folder": str(folder)})
