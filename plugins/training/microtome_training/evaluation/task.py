"""Evaluates predictions: tables, plots and a page; and the task that does so with any file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome._version import __version__
from microtome.errors import StoreError, TaskError, one_line
from microtome.run.job import TaskOutcome
from microtome.store.arrays import PREDICTIONS as PREDICTED
from microtome.store.atomic import sweep, write_bytes, write_json
from microtome_training.changed import find_relabelled
from microtome_training.evaluation.curves import Plot, draw_plots, told_value
from microtome_training.evaluation.levels import SLIDE_MAX, TILE, Metric
from microtome_training.evaluation.metrics import Measured, SlideMeasures, measure
from microtome_training.evaluation.page import RELABELLED, Shown, metric_name, render_page
from microtome_training.evaluation.pictures import Pictures, SlidePictures, slide_openers
from microtome_training.names import TRAINING
from microtome_training.options.checks import check_measures
from microtome_training.options.evaluate import EvaluateConfig, MeasureOptions
from microtome_training.predicting.results import heatmap_path
from microtome_training.predictions import Predictions, read_predictions, write_predictions
from microtome_training.stores import root
from microtome_training.tiles import tell_some

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

COLUMNS = (
    *("level", "class", "metric", "value", "low", "high", "n"),
    *("positives", "draws", "note"),
)
"""Of ``metrics.csv``."""

METRICS_CSV, METRICS_JSON, PAGE = "metrics.csv", "metrics.json", "evaluation.html"
SLIDES_CSV, PLOTS, PREDICTIONS = "slide_metrics.csv", "plots", "predictions.parquet"
"""Names in an evaluation's folder."""

ALL, AUTO = "all", "auto"
_EVERY_PLOT = ("roc", "precision_recall", "confusion", "calibration", "scores")
_TOLD = ("macro_auroc", "auroc", "macro_auprc", "auprc", "balanced_accuracy", "accuracy", "loss")


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """An evaluation.

    Attributes:
        folder: Where its files are.
        split: Which split was measured.
        measured: What was measured.
    """

    folder: Path
    split: str
    measured: Measured

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE

    def lines(self) -> tuple[str, ...]:
        """Tell the most important measures, a line each."""
        counted = f"{len(self.measured.slides)} slides, {self.measured.confusion.sum():,} tiles"
        return (
            one_line(f"{self.split}: {counted}"),
            *(_line(each) for each in self.headlines()),
            *([f"  {self.measured.no_interval}"] if self.measured.no_interval else ()),
        )

    def headlines(self) -> tuple[Metric, ...]:
        """Choose the most important measures."""
        metrics = self.measured.metrics
        slides = [m for m in metrics if m.level == SLIDE_MAX and m.metric == "auroc"]
        tiles = [m for m in metrics if m.level == TILE]
        has_mean = any(m.metric == "macro_auroc" for m in tiles)
        names = [n for n in _TOLD if not (has_mean and n in ("auroc", "auprc"))]
        at = [m for m in tiles if m.metric.startswith("sensitivity_at") and not has_mean]
        return (*(m for name in names for m in tiles if m.metric == name), *at, *slides)


def evaluate(
    predictions: Predictions,
    folder: Path,
    *,
    split: str = AUTO,
    options: MeasureOptions | None = None,
    pictures: Pictures | None = None,
    facts: Mapping[str, object] | None = None,
) -> Report:
    """Measure predictions and write the tables, the plots and the page, each atomically.

    Args:
        predictions: Of any splits.
        folder: Where to: ``metrics.csv``, ``metrics.json``, ``slide_metrics.csv``, ``plots/`` and
            ``evaluation.html``.
        split: ``test``, ``val``, ``train``, ``all``, or ``auto``: test if there is any, else val,
            else what is of no split.
        options: How is measured.
        pictures: Of slides and tiles, for the page; none if None. What cannot be had is told there.
        facts: What else the page tells under provenance, in order.

    Returns:
        What was measured.

    Raises:
        TaskError: If there is no such split, or nothing in it has a label.
        ConfigError: If an option makes no sense.
        StoreError: If something cannot be written.
    """
    options = options or MeasureOptions()
    check_measures(options)
    name, chosen = choose_split(predictions, split)
    measured = measure(chosen, options)
    sizes = {"Splits": _told_splits(predictions)} if any(predictions.splits) else {}
    shown = Shown(
        predictions=chosen,
        measured=measured,
        split=name,
        options=options,
        facts={**sizes, **(facts or {})},
        pictures=pictures,
    )
    plots = draw_plots(measured, chosen.classes)
    write_bytes(folder / METRICS_CSV, _metrics_csv(measured))
    write_bytes(folder / SLIDES_CSV, _slides_csv(measured))
    for plot in plots:
        write_bytes(folder / PLOTS / f"{plot.name}.png", plot.light)
    _remove_old(folder, plots)
    write_bytes(folder / PAGE, render_page(shown, plots).encode("utf-8", "replace"))
    write_json(folder / METRICS_JSON, _as_json(shown))
    return Report(folder=folder, split=name, measured=measured)


def choose_split(predictions: Predictions, split: str) -> tuple[str, Predictions]:
    """Give the predictions of a split, in order, and its name.

    Raises:
        TaskError: If there are none; names the splits that there are.
    """
    there = set(predictions.splits)
    if split == ALL:
        return ALL, predictions.of_splits(*there)
    if split == AUTO:
        found = next((name for name in ("test", "val", "") if name in there), None)
        if found is None:
            raise TaskError(
                "There are predictions of train alone, which say nothing of other slides. Measure "
                "them all the same with evaluate.split=train."
            )
        return found or "no split", predictions.of_splits(found)
    if split not in there or not split:
        names = ", ".join(sorted(name for name in there if name)) or "no split at all"
        raise TaskError(f"There are no predictions of split {split!r}, but of {names}.")
    return split, predictions.of_splits(split)


class EvaluateTask:
    """``task=evaluate``."""

    def __init__(self, config: EvaluateConfig) -> None:
        check_measures(config)
        self._config = config

    def run(self, job: TaskJob) -> TaskOutcome:
        """Measure a file of predictions.

        Raises:
            TaskError: If it is not there, is none, or has no labels.
        """
        config = self._config
        path = Path(config.predictions_file) if config.predictions_file else _find(job)
        predictions = read_predictions(path)
        name, chosen = choose_split(predictions, config.split)
        beside = path.parent / "evaluation" / name.replace(" ", "-")
        folder = Path(config.folder) if config.folder else beside
        sweep(folder)
        sweep(folder / PLOTS)
        sources = dict(predictions.sources)
        found = job.find_slides()
        if found is not None:
            sources |= {ref.slide_id: str(ref.path) for ref in found.slides}
        openers = slide_openers(sources, job)
        pictures = SlidePictures(openers, heatmaps_of(path.parent, predictions.classes))
        with job.reporter:
            job.reporter.note(f"{path}: {len(chosen)} tiles of {len(chosen.slide_ids)} slides")
            relabelled = _tell_relabelled(chosen, job)
            report = evaluate(
                predictions,
                folder,
                split=config.split,
                options=config,
                pictures=pictures,
                facts={"Predictions": str(path), RELABELLED: relabelled},
            )
        if config.csv_copy:
            write_predictions(folder / PREDICTIONS, chosen, csv=True)
        there = one_line(f"{path} has {_told_splits(predictions)}")
        lines = (there, *report.lines(), one_line(f"Page: {report.page}"))
        return TaskOutcome(lines=lines, record=record_of(report) | {"folder": str(folder)})


def _tell_relabelled(predictions: Predictions, job: TaskJob) -> list[str]:
    """Name the slides whose labels have changed since, and tell of them."""
    try:
        changed = find_relabelled(predictions, job)
    except StoreError as error:  # which predictions that are there can do without
        job.reporter.note(f"whether labels have changed since cannot be told: {error}")
        return []
    if changed:
        job.reporter.note(
            f"labels of {tell_some(changed)} have changed since these predictions were made: "
            "predict again"
        )
    return changed


def record_of(report: Report) -> dict[str, Any]:
    """Tell an evaluation in plain values, for a run's record."""
    told = {
        "/".join(filter(None, (m.level, m.class_name, m.metric))): m.value
        for m in report.headlines()
    }
    return {"split": report.split, "page": PAGE, "metrics": told}


def _find(job: TaskJob) -> Path:
    """Find the only predictions of a tiling: those of a training, or what a model predicted.

    Raises:
        TaskError: If there are none, or several.
    """
    folder = root(job)
    found = [p for top in (TRAINING, PREDICTED) for p in folder.glob(f"{top}/[!.]*/{PREDICTIONS}")]
    if not found:
        raise TaskError(
            f"{folder} holds no predictions. Train a model with task=train, predict with "
            "task=predict, or name a file: evaluate.predictions_file=FILE."
        )
    if len(found) > 1:
        raise TaskError(
            f"{folder} holds several predictions: name one with evaluate.predictions_file=, of "
            f"{tell_some(sorted(map(str, found)))}."
        )
    return found[0]


def heatmaps_of(folder: Path, classes: Sequence[str]) -> Callable[[str], Path]:
    """Give what names the heatmap of a slide, of its first positive class.

    Args:
        folder: Of a training or of predictions.
        classes: Of the model.
    """

    def name(slide_id: str) -> Path:
        target = heatmap_path(folder, slide_id, classes[1], classes)
        return target.with_name(f"{target.name}.png")

    return name


def _line(metric: Metric) -> str:
    what = {TILE: "tiles"}.get(metric.level, "slides, highest tile")
    of = f" {metric.class_name}" if metric.class_name else ""
    why = f": {metric.note}" if metric.value is None else ""
    return one_line(f"  {metric_name(metric.metric)} ({what}{of}): {told_value(metric)}{why}")


def _told_splits(predictions: Predictions) -> str:
    """Tell how many slides and tiles the predictions of each split are of."""
    counts = np.bincount(predictions.slide, minlength=len(predictions.slide_ids)).tolist()
    slides, tiles = Counter(predictions.splits), Counter[str]()
    for split, count in zip(predictions.splits, counts, strict=True):
        tiles[split] += count
    return "; ".join(
        f"{split or 'no split'}: {slides[split]} slides, {tiles[split]:,} tiles"
        for split in sorted(slides)
    )


def _metrics_csv(measured: Measured) -> bytes:
    rows = (
        (
            *(each.level, each.class_name, each.metric),
            *map(_cell, (each.value, each.low, each.high)),
            *(each.n, _cell(each.positives), each.draws, each.note),
        )
        for each in measured.metrics
    )
    return _csv(COLUMNS, rows)


def _slides_csv(measured: Measured) -> bytes:
    names = tuple(field.name for field in fields(SlideMeasures))
    rows = (tuple(_cell(getattr(slide, name)) for name in names) for slide in measured.slides)
    return _csv(names, rows)


def _csv(columns: Any, rows: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _as_json(shown: Shown) -> dict[str, Any]:
    measured = shown.measured
    return {
        "format": 1,
        "microtome_version": __version__,
        "split": shown.split,
        "classes": list(shown.predictions.classes),
        "model": dict(shown.predictions.model),
        "labels_changed": shown.facts.get(RELABELLED, []),
        "options": json.loads(json.dumps(asdict(shown.options), default=lambda enum: enum.value)),
        "drawn": {"units": measured.units, "count": measured.unit_count},
        "metrics": [_renamed(asdict(each)) for each in measured.metrics],
        "confusion": measured.confusion.tolist(),
        "calibration": [
            {"level": each.level, "class": each.class_name, "bins": each.bins.tolist()}
            for each in measured.scored
            if each.level == TILE
        ],
        "slides": [asdict(slide) for slide in measured.slides],
    }


def _renamed(metric: dict[str, Any]) -> dict[str, Any]:
    return {"class" if name == "class_name" else name: value for name, value in metric.items()}


def _remove_old(folder: Path, plots: list[Plot]) -> None:
    """Remove plots of an evaluation that was here before and could draw more."""
    for name in set(_EVERY_PLOT) - {plot.name for plot in plots}:
        (folder / PLOTS / f"{name}.png").unlink(missing_ok=True)
