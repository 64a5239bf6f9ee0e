"""The task ``predict``: probabilities of a trained model beside the tiles, tables and heatmaps."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import ConfigError, MicrotomeError, OutputError, StoreError, TaskError
from microtome.run.exchange.exporting import find_stores
from microtome.run.job import TaskJob, TaskOutcome
from microtome.run.planning.budget import hold_heap
from microtome.run.slides.attributes import provenance
from microtome.store.arrays import PREDICTIONS
from microtome.store.atomic import sweep
from microtome.store.identity import IDENTITY, Identity, make_identity
from microtome.store.status import SlideStatus
from microtome_training.changed import tell_edited
from microtome_training.names import FEATURES
from microtome_training.options.checks import check_heatmap
from microtome_training.options.predict import PredictConfig
from microtome_training.predicting.inputs import (
    find_checkpoint,
    find_layout,
    find_place,
    name_predictions,
    tile_first,
)
from microtome_training.predicting.predict import check_fit, predict_tiles
from microtome_training.predicting.publishing import (
    Predicted,
    find_predicted,
    publish_predictions,
    read_predicted,
)
from microtome_training.predicting.results import (
    ScoredTiles,
    ScoreOptions,
    draw_heatmaps,
    write_tables,
)
from microtome_training.predictions import Predictions, translate, write_predictions
from microtome_training.splitfile import SPLIT, read_split
from microtome_training.stores import read_slide
from microtome_training.tiles import TiledSlide, Tiles, join

if TYPE_CHECKING:
    from microtome.plugin.specs import WriterSpec
    from microtome.slide.types import SlideRef
    from microtome.store.layout import OutputLayout
    from microtome_training.classifier import Classifier

Floats = NDArray[np.float32]

EXIT_FAILED_SLIDES = 3


class PredictTask:
    """Gives every tile of the slides a trained model's probabilities.

    Args:
        config: The options.

    Raises:
        ConfigError: If they make no sense.
    """

    def __init__(self, config: PredictConfig) -> None:
        for name in ("batch_size", "top_k", "min_tiles"):
            if getattr(config, name) < 1:
                raise ConfigError(f"predict.{name}={getattr(config, name)} must be at least 1.")
        if not 0 <= config.threshold <= 1:
            raise ConfigError(f"predict.threshold={config.threshold:g} must be from 0 to 1.")
        if not 0 <= config.mpp_tolerance < math.inf:
            raise ConfigError(f"predict.mpp_tolerance={config.mpp_tolerance:g} must be 0 or more.")
        check_heatmap(config.heatmap)
        self._config = config

    def run(self, job: TaskJob) -> TaskOutcome:
        """Predict; a slide that cannot be done does not stop the others.

        Raises:
            ConfigError: If there is no such model, or several to choose from.
            TaskError: If there is nothing to predict.
        """
        path = find_checkpoint(job, self._config.checkpoint)
        name = name_predictions(self._config.name, path)
        from microtome_training.classifier import load_classifier  # torch, when the model is known

        device, precision = find_place(job)
        classifier = load_classifier(path, device, precision)
        layout = find_layout(job, path)
        found = job.find_slides()
        refs = {} if found is None else {ref.slide_id: ref for ref in found.slides}
        refused = () if found is None else found.refused
        failed = tile_first(job, classifier, layout, refs)
        failed |= {each.slide.slide_id: each.reason for each in refused}
        stores = find_stores(layout, job.registry)
        if found is not None:
            stores = {slide_id: stores[slide_id] for slide_id in refs if slide_id in stores}
        if not stores and not failed:
            raise TaskError(
                f"{layout.root} holds no tiles to predict. Name slides, which are then tiled as "
                "the model takes them, or tile some first: task=coords."
            )
        work = _Prediction(
            job=job,
            config=self._config,
            classifier=classifier,
            name=name,
            folder=layout.root / PREDICTIONS / name,
            refs=refs,
        )
        for folder in {store.parent for store, _ in stores.values()}:
            sweep(folder)
        sweep(work.folder, below=True)
        with job.reporter, hold_heap():
            for each in refused:
                job.reporter.note(f"{each.slide.slide_id} is left out: {each.reason}")
            job.reporter.start(len(stores))
            for slide_id, (store, spec) in sorted(stores.items()):
                job.reporter.finished(work.slide(slide_id, store, spec))
        return work.finish(layout, failed)


@dataclass(eq=False, kw_only=True)
class _Prediction:
    """One model's predictions of an output's slides.

    Attributes:
        job: The run.
        config: The options.
        classifier: The model.
        name: Of the predictions.
        folder: Where their tables and pictures go.
        refs: The slides that the run names, by id.
        states: How many slides are done, reused, empty or failed.
        failures: Why, by slide.
    """

    job: TaskJob
    config: PredictConfig
    classifier: Classifier
    name: str
    folder: Path
    refs: Mapping[str, SlideRef]
    states: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def slide(self, slide_id: str, store: Path, spec: WriterSpec) -> SlideStatus:
        """Predict one slide, store it and draw it.

        Raises:
            OutputError: If the output takes nothing more.
        """
        began = time.monotonic()
        status = SlideStatus(slide_id=slide_id, path=str(store), state="done", task="predict")
        try:
            tiles = self._read(slide_id, store, spec.name)
            status = replace(status, path=tiles.slides[0].source, tiles=len(tiles))
            predicted, state = self._predict(tiles)
            status = replace(status, state=state if len(tiles) else "empty")
            self._draw(tiles, predicted)
        except OutputError:  # nor would any other slide's be taken
            raise
        except MicrotomeError as error:
            told = {"type": type(error).__name__, "message": str(error)}
            status = replace(status, state="failed", stage="predict", error=told)
            self.failures[slide_id] = str(error)
        self.states[status.state] += 1
        return replace(status, seconds={"predict": round(time.monotonic() - began, 3)})

    def _read(self, slide_id: str, store: Path, writer: str) -> Tiles:
        ref = self.refs.get(slide_id)
        return read_slide(store, writer, self.job.registry, slide_id=slide_id, ref=ref)

    def _predict(self, tiles: Tiles) -> tuple[Predicted, str]:
        """Give a slide's predictions, new or stored, and which of both."""
        slide, job = tiles.slides[0], self.job
        check_fit(self.classifier, slide, job, mpp_tolerance=self.config.mpp_tolerance)
        identity = self._identity(slide)
        found = find_predicted(slide, self.name, identity, job.registry, force=job.config.force)
        if found is not None:
            return found, "reused"
        probabilities = predict_tiles(
            self.classifier,
            tiles,
            job,
            batch_size=self.config.batch_size,
            mpp_tolerance=self.config.mpp_tolerance,
        )
        given = Predicted(probabilities=probabilities, attributes=self._attributes(slide, identity))
        publish_predictions(slide, self.name, given, job.registry, force=job.config.force)
        return given, "done"

    def _identity(self, slide: TiledSlide) -> Identity:
        takes = self.classifier.takes
        fields: dict[str, Any] = {"model": self.classifier.digest, "coords": slide.identity}
        if self.classifier.precision != "fp32":
            fields["precision"] = self.classifier.precision
        if takes.kind == FEATURES:
            with slide.open(self.job.registry) as stored:
                made = stored.feature_attributes(takes.features)
            fields["features"] = {takes.features: str(made.get(IDENTITY))}
        return make_identity(PREDICTIONS, fields)

    def _attributes(self, slide: TiledSlide, identity: Identity) -> dict[str, Any]:
        return {
            "classes": list(self.classifier.classes),
            "model": self.classifier.digest,
            "patient_id": slide.patient_id,
            "device": self.classifier.device,
            "precision": self.classifier.precision,
            "microtome_version": __version__,
            "provenance": dict(provenance()),
            **identity.attributes(),
        }

    def _draw(self, tiles: Tiles, predicted: Predicted) -> None:
        options = self.config.heatmap
        if len(tiles) and (options.png or options.kind.value != "none"):
            self.job.reporter.stage(tiles.slides[0].slide_id, "heatmap")
            scored = self._scored(tiles, predicted.probabilities)
            draw_heatmaps(self.folder, scored, self.job, options=options, identity=predicted.digest)

    def _scored(self, tiles: Tiles, probabilities: Floats) -> ScoredTiles:
        classes = self.classifier.classes
        return ScoredTiles(tiles=tiles, probabilities=probabilities, classes=classes)

    def finish(self, layout: OutputLayout, failed: Mapping[str, str]) -> TaskOutcome:
        """Write the tables of all slides of the tiling that the model has predicted."""
        self.states["failed"] += len(failed.keys() - self.failures.keys())
        self.failures |= failed
        parts = list(self._gather(layout))
        for note in self._notes([tiles for tiles, _ in parts]):
            self.job.reporter.note(note)
        if parts:
            self._write([tiles for tiles, _ in parts], [found for _, found in parts])
        counts = ", ".join(f"{n} {state}" for state, n in sorted(self.states.items()) if n)
        total = self.states.total()
        lines = [f"{total} slide{'s' if total != 1 else ''}: {counts}"]
        if parts:
            of = "1 slide" if len(parts) == 1 else f"{len(parts)} slides"
            lines.append(f"tables, of {of} that this model has predicted: {self.folder}")
        lines += [f"failed: {', '.join(sorted(self.failures))}"] if self.failures else []
        record = {
            "model": {"path": str(self.classifier.path), "digest": self.classifier.digest},
            "name": self.name,
            "folder": str(self.folder),
            "counts": dict(self.states),
            "failed": dict(self.failures),
        }
        code = EXIT_FAILED_SLIDES if self.failures else 0
        return TaskOutcome(lines=tuple(lines), record=record, exit_code=code)

    def _gather(self, layout: OutputLayout) -> Iterator[tuple[Tiles, Floats]]:
        """Read what this model says of any slide of the tiling, in this run or before."""
        for slide_id, (store, spec) in sorted(find_stores(layout, self.job.registry).items()):
            try:
                tiles = self._read(slide_id, store, spec.name)
                found = read_predicted(tiles.slides[0], self.name, self.job.registry)
            except StoreError as error:
                if slide_id not in self.failures:
                    self.job.reporter.note(f"{slide_id} is left out of the tables: {error}")
                continue
            if found is None or found.attributes.get("model") != self.classifier.digest:
                continue
            patient_id = str(found.attributes.get("patient_id") or "")
            yield _of_patient(tiles, patient_id), found.probabilities

    def _notes(self, parts: Sequence[Tiles]) -> Iterator[str]:
        """Say what is not as one may take it in the labels of the tables."""
        yield from tell_edited(part.slides[0] for part in parts)
        known, lost = self.classifier.classes, Counter[str]()
        for part in parts:
            for number, name in enumerate(part.classes):
                if name not in known:
                    lost[name] += int((part.label == number).sum())
        if told := [f"{count:,} of {name}" for name, count in lost.items() if count]:
            yield (
                f"tiles of classes that the model does not know have no label in the tables: "
                f"{', '.join(told)}; it knows {', '.join(known)}"
            )

    def _write(self, parts: Sequence[Tiles], found: Sequence[Floats]) -> None:
        ordered = sorted(
            zip(parts, found, strict=True), key=lambda part: part[0].slides[0].slide_id
        )
        known = [_relabelled(part, self.classifier.classes) for part, _ in ordered]
        tiles = join(known, mpp_ratio=math.inf)
        probabilities = np.concatenate([each for _, each in ordered])
        classes, config = self.classifier.classes, self.config
        splits = read_split(self.classifier.path.parent.parent / SPLIT)
        predictions = Predictions.of_tiles(
            tiles,
            probabilities,
            classes=classes,
            splits={slide.slide_id: splits.find(slide) for slide in tiles.slides},
            model={"digest": self.classifier.digest, "path": str(self.classifier.path)},
        )
        write_predictions(self.folder / "predictions.parquet", predictions)
        options = ScoreOptions(
            threshold=config.threshold, top_k=config.top_k, min_tiles=config.min_tiles
        )
        write_tables(self.folder, [self._scored(tiles, probabilities)], options)


def _relabelled(tiles: Tiles, classes: tuple[str, ...]) -> Tiles:
    """Give tiles with the labels of a model's classes; those of other classes have none."""
    label = translate(tiles.label, tiles.classes, classes)
    return replace(tiles, label=label, classes=classes)


def _of_patient(tiles: Tiles, patient_id: str) -> Tiles:
    """Name the patient of a slide of whom this run does not say it."""
    (slide,) = tiles.slides
    if slide.patient_id or not patient_id:
        return tiles
    ref = replace(slide.ref, extra={**slide.ref.extra, "patient_id": patient_id})
    return replace(tiles, slides=(replace(slide, ref=ref),))
