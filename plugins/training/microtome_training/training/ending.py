"""The end of a training: its model's predictions of other slides, measured and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideError
from microtome.run.planning.budget import cpu_budget
from microtome_training.classifier import Classifier, softmax, to_tensor
from microtome_training.devices import find_device
from microtome_training.evaluation.pictures import SlidePictures, slide_openers
from microtome_training.evaluation.task import evaluate, heatmaps_of, record_of
from microtome_training.names import TEST, VAL
from microtome_training.predicting.results import (
    ScoredTiles,
    ScoreOptions,
    by_slide,
    draw_heatmaps,
    write_tables,
)
from microtome_training.predictions import Predictions, write_predictions
from microtome_training.training.checkpoints import Checkpoints
from microtome_training.training.cohort import Cohort
from microtome_training.training.data import TileSource, read_ahead
from microtome_training.training.prepare import open_source

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.options.train import TrainConfig
    from microtome_training.patchsource import FoundPatches

PREDICTIONS = "predictions.parquet"
Floats = NDArray[np.float32]


def finish(
    job: TaskJob,
    config: TrainConfig,
    cohort: Cohort,
    folder: Path,
    *,
    identity: str,
    source: TileSource | None = None,
) -> dict[str, Any]:
    """Predict the slides that validate and test, measure and draw those that test.

    Where no slide tests, those that validate.

    Args:
        job: The run.
        config: The options.
        cohort: The tiles.
        folder: Of the training, with its best model.
        identity: Of the training.
        source: Gives the tiles; opened if None.

    Returns:
        For the record: ``evaluation``, and ``lines`` of the summary.

    Raises:
        MicrotomeError: If something cannot be read or written.
    """
    saved = Checkpoints(folder, identity=identity)
    classifier = saved.best(find_device(job.config.device))
    rows = np.sort(np.concatenate([cohort.rows(VAL), cohort.rows(TEST)]))
    if not len(rows):
        return {"lines": ["nothing to measure: all slides train"]}
    if source is None:
        source, _ = open_source(cohort, classifier.description, job)
    job.reporter.stage(folder.name, "predict", len(rows))
    probabilities = predict_rows(classifier, source, rows, job=job, name=folder.name)
    tiles = replace(cohort.tiles, label=cohort.labels.astype(np.int16)).take(rows)
    predictions = Predictions.of_tiles(
        tiles,
        probabilities,
        classes=classifier.classes,
        splits=cohort.splits,
        model={"digest": classifier.digest, **classifier.description.provenance},
    )
    write_predictions(folder / PREDICTIONS, predictions)
    split = TEST if len(cohort.rows(TEST)) else VAL
    slides = {name for name, each in cohort.splits.items() if each == split}
    everything = ScoredTiles(tiles=tiles, probabilities=probabilities, classes=classifier.classes)
    shown = [one for one in by_slide(everything) if one.tiles.slides[0].slide_id in slides]
    _draw(job, config, folder, shown, classifier.digest)
    return _measure(
        job, config, folder=folder, predictions=predictions, split=split, patches=cohort.patches
    )


def predict_rows(
    classifier: Classifier, source: TileSource, rows: NDArray[np.int64], *, job: TaskJob, name: str
) -> Floats:
    """Give the probabilities of tiles of a training, (n, C) float32.

    Args:
        classifier: The model.
        source: Gives what it takes.
        rows: The tiles, by index.
        job: Says how many threads read, and hears how it goes.
        name: Of the training.
    """
    found = np.empty((len(rows), len(classifier.classes)), np.float32)
    for part, given in read_ahead(source, rows, cpu_budget(job.config.threads)):
        found[part] = softmax(classifier.logits(to_tensor(given)))
        job.reporter.advance(name, len(given))
    return found


def _draw(
    job: TaskJob, config: TrainConfig, folder: Path, shown: Sequence[ScoredTiles], model: str
) -> None:
    """Write the tables of slides and lesions, and draw heatmaps where slides can be opened."""
    options = ScoreOptions(threshold=config.evaluate.threshold, top_k=config.evaluate.top_k)
    write_tables(folder, shown, options)
    if not config.heatmaps:
        return
    job.reporter.stage(folder.name, "heatmaps")
    for one in shown:
        try:
            draw_heatmaps(folder, one, job, options=config.heatmap, identity=model)
        except SlideError as error:  # who trains on features or patches may not have the slides
            job.reporter.note(f"no heatmap of {one.tiles.slides[0].slide_id}: {error}")


def _measure(
    job: TaskJob,
    config: TrainConfig,
    *,
    folder: Path,
    predictions: Predictions,
    split: str,
    patches: FoundPatches | None,
) -> dict[str, Any]:
    job.reporter.stage(folder.name, "evaluate")
    pictures = SlidePictures(
        slide_openers(predictions.sources, job),
        heatmaps_of(folder, predictions.classes),
        None if patches is None else patches.picture,
    )
    report = evaluate(
        predictions,
        folder,
        split=split,
        options=config.evaluate,
        pictures=pictures,
        facts={"Training": folder.name},
    )
    return {"evaluation": record_of(report), "lines": list(report.lines())}
