"""The page of an evaluation: one HTML file without a network, a script or another file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from microtome._version import __version__
from microtome.errors import MicrotomeError
from microtome_training.evaluation.curves import Plot
from microtome_training.evaluation.levels import SLIDE_MAX, SLIDE_TOP, TILE, Metric
from microtome_training.evaluation.metrics import Measured, SlideMeasures, tile_loss
from microtome_training.evaluation.pictures import THUMBNAIL_PX, Pictures
from microtome_training.options.evaluate import MeasureOptions
from microtome_training.predictions import Predictions

_TILE_PX = 160
_QUALITY = 85
_OF_ONE_SLIDE = 4
"""Wrong tiles shown of one slide at most: more of them show nothing new."""

_NAMES = {
    "loss": "Loss (log loss)",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "ece": "Calibration error (ECE)",
}
RELABELLED = "Labels changed since"
"""Name of the fact which slides' labels are no longer those beside their predictions."""

_LEVELS = {TILE: "Tiles", SLIDE_MAX: "Slides, by their highest tile"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on the page.

    Attributes:
        data: It, as ``data:`` URL; empty where there is none.
        why_none: Why there is none.
        alt: What it shows.
    """

    data: str = ""
    why_none: str = ""
    alt: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Shown:
    """What the page is of.

    Attributes:
        predictions: Those that were measured, labelled or not.
        measured: What was measured of them.
        split: Which split they are of.
        options: How they were measured.
        facts: What else is told under provenance: seeds, sizes of splits.
        pictures: Of slides and tiles; None for a page without.
    """

    predictions: Predictions
    measured: Measured
    split: str
    options: MeasureOptions
    facts: Mapping[str, object]
    pictures: Pictures | None


def render_page(shown: Shown, plots: Sequence[Plot]) -> str:
    """Write the page.

    Args:
        shown: What it is of.
        plots: To be drawn into it.

    Returns:
        HTML, the same for the same input.
    """
    # Names of slides and classes come from files of others: nothing of them is markup.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
    text = files(__package__).joinpath("templates/evaluation.html").read_text("utf-8")
    predictions, measured = shown.predictions, _told_once(shown.measured)
    worst, best = _ends(measured.slides, shown.options.shown_slides)
    return environment.from_string(text).render(
        split=shown.split,
        classes=predictions.classes,
        slides=measured.slides,
        tiles=sum(slide.n for slide in measured.slides),
        unlabelled=int((predictions.label < 0).sum()),
        positives=sum(slide.positives for slide in measured.slides),
        units=f"{measured.unit_count} {measured.units}",
        options=shown.options,
        headlines=_headlines(measured, shown.options),
        no_interval=measured.no_interval,
        tables=_tables(measured, predictions.classes, shown.options.top_k),
        confusion=measured.confusion.tolist(),
        plots=[(plot, _url(plot.light, "png"), _url(plot.dark, "png")) for plot in plots],
        ends=[
            ("Worst slides", "highest mean loss of their tiles", _with_pictures(worst, shown)),
            ("Best slides", "lowest mean loss of their tiles", _with_pictures(best, shown)),
        ],
        wrong=list(_wrong(shown)),
        provenance=_provenance(shown),
        version=__version__,
    )


def _told_once(measured: Measured) -> Measured:
    """Leave out of each measure's note why none has an interval."""
    why = measured.no_interval
    if not why:
        return measured
    notes = [each.note.removeprefix(why).removeprefix("; ") for each in measured.metrics]
    pairs = zip(measured.metrics, notes, strict=True)
    return replace(measured, metrics=tuple(replace(each, note=note) for each, note in pairs))


def _headlines(measured: Measured, options: MeasureOptions) -> list[tuple[str, Metric]]:
    """Choose what is told first: one class against the background, or the averages."""
    tiles = {each.metric: each for each in measured.metrics if each.level == TILE}
    slides = [each for each in measured.metrics if each.level == SLIDE_MAX]
    chosen = [("tiles", tiles[name]) for name in ("macro_auroc", "macro_auprc") if name in tiles]
    chosen = chosen or [("tiles", tiles[name]) for name in ("auroc", "auprc")]
    chosen.append(("tiles", tiles["balanced_accuracy"]))
    chosen += [("slides, max", each) for each in slides if each.metric == "auroc"][:1]
    return [(f"{metric_name(each.metric)}, {what}", each) for what, each in chosen]


def _tables(
    measured: Measured, classes: Sequence[str], top_k: int
) -> Iterator[tuple[str, list[str], list[tuple[str, list[Metric | None]]]]]:
    """Give tables of measures: a caption, names of columns, rows of measures."""
    names = _LEVELS | {SLIDE_TOP: f"Slides, by the mean of their {top_k} highest tiles"}
    by_place = {(each.level, each.class_name, each.metric): each for each in measured.metrics}
    if len(classes) == 2:
        both: tuple[str, ...] = (classes[1], "")
        columns = [(level, both) for level in names]
        yield f"{classes[1]} against {classes[0]}", list(names.values()), _rows(by_place, columns)
        return
    for level, name in names.items():
        own = [c for c in classes if any(place[:2] == (level, c) for place in by_place)]
        together = [""] if level == TILE else []
        heads = [*("All classes" for _ in together), *own]
        yield name, heads, _rows(by_place, [(level, (c,)) for c in (*together, *own)])


def _rows(
    by_place: Mapping[tuple[str, str, str], Metric],
    columns: Sequence[tuple[str, tuple[str, ...]]],
) -> list[tuple[str, list[Metric | None]]]:
    rows: dict[str, list[Metric | None]] = {}
    for place, (level, class_names) in enumerate(columns):
        for (at, class_name, metric), each in by_place.items():
            if at == level and class_name in class_names:
                name = metric.removeprefix("macro_")
                rows.setdefault(name, [None] * len(columns))[place] = each
    order = {name: number for number, name in enumerate(_NAMES)}
    ordered = sorted(rows.items(), key=lambda row: order.get(row[0], order["auprc"] + 0.5))
    return [(metric_name(name), cells) for name, cells in ordered]


def metric_name(metric: str) -> str:
    """Name a measure for people."""
    if metric.startswith("macro_"):
        return f"{metric_name(metric.removeprefix('macro_'))}, mean of classes"
    at = metric.removeprefix("sensitivity_at_specificity_")
    return _NAMES.get(metric, metric) if at == metric else f"Sensitivity at specificity {at}"


def _ends(
    slides: Sequence[SlideMeasures], count: int
) -> tuple[list[SlideMeasures], list[SlideMeasures]]:
    """Give the worst and the best slides, none twice."""
    ordered = sorted(slides, key=lambda slide: (-slide.loss, slide.slide_id))
    best = min(count, len(ordered) // 2)
    worst = min(count, len(ordered) - best)
    return ordered[:worst], ordered[len(ordered) - best :][::-1]


def _with_pictures(
    slides: Sequence[SlideMeasures], shown: Shown
) -> list[tuple[SlideMeasures, Picture]]:
    return [(slide, _thumbnail(slide.slide_id, shown.pictures)) for slide in slides]


def _thumbnail(slide_id: str, pictures: Pictures | None) -> Picture:
    alt = f"Slide {slide_id}"
    if pictures is None:
        return Picture(why_none="no picture was asked for", alt=alt)
    try:
        image = pictures.thumbnail(slide_id)
    except (MicrotomeError, OSError) as error:
        return Picture(why_none=str(error), alt=alt)
    return Picture(data=_jpeg(image, THUMBNAIL_PX), alt=alt)


def _wrong(shown: Shown) -> Iterator[tuple[str, int, list[tuple[dict[str, object], Picture]]]]:
    """Give the most wrong tiles of each kind: a heading, how many there are, those shown."""
    labelled = shown.predictions.take(shown.predictions.label >= 0)
    called, label = labelled.predicted(shown.options.threshold), labelled.label
    loss, classes = tile_loss(labelled), labelled.classes
    kinds = (
        (f"{classes[0]} predicted as another class", (label == 0) & (called > 0)),
        (
            f"{' or '.join(classes[1:])} predicted {classes[0]}"
            if len(classes) < 5
            else f"other classes predicted {classes[0]}",
            (label > 0) & (called == 0),
        ),
        ("one class predicted as another", (label > 0) & (called > 0) & (called != label)),
    )
    for heading, is_wrong in kinds[: 2 if len(classes) == 2 else 3]:
        rows = np.flatnonzero(is_wrong)
        rows = rows[np.argsort(-loss[rows], kind="stable")]
        few = _few_of_each(rows, labelled.slide[rows], shown.options.shown_tiles)
        yield heading, len(rows), [_tile(labelled, row, called[row], shown) for row in few]


def _few_of_each(
    rows: NDArray[np.int64], slide: NDArray[np.int32], count: int
) -> NDArray[np.int64]:
    """Give the first rows, at most `_OF_ONE_SLIDE` of one slide."""
    seen: dict[int, int] = {}
    kept = []
    for row, of in zip(rows.tolist(), slide.tolist(), strict=True):
        seen[of] = seen.get(of, 0) + 1
        if seen[of] <= _OF_ONE_SLIDE:
            kept.append(row)
        if len(kept) == count:
            break
    return np.array(kept[:count], np.int64)


def _tile(
    predictions: Predictions, row: int, called: int, shown: Shown
) -> tuple[dict[str, object], Picture]:
    slide_id = predictions.slide_ids[predictions.slide[row]]
    x, y = (int(value) for value in predictions.coords[row, :2])
    label = int(predictions.label[row])
    told: dict[str, object] = {
        "slide_id": slide_id,
        "x": x,
        "y": y,
        "label": predictions.classes[label],
        "predicted": predictions.classes[called],
        "probability": float(predictions.probabilities[row, called]),
    }
    alt = f"Tile of {slide_id} at {x}, {y}"
    if shown.pictures is None:
        return told, Picture(why_none="no picture was asked for", alt=alt)
    try:
        image = shown.pictures.tile(slide_id, predictions.coords[row])
    except (MicrotomeError, OSError) as error:
        return told, Picture(why_none=str(error), alt=alt)
    return told, Picture(data=_jpeg(image, _TILE_PX), alt=alt)


def _provenance(shown: Shown) -> list[tuple[str, str]]:
    options, measured = shown.options, shown.measured
    told: dict[str, object] = {f"Model: {k}": v for k, v in shown.predictions.model.items()}
    told |= dict(shown.facts)
    told["Threshold"] = options.threshold
    drawn = f"{options.bootstrap} draws of {measured.unit_count} {measured.units}"
    told["Intervals"] = (
        "none"
        if measured.no_interval
        else f"{options.confidence:.0%}, percentiles of {drawn}, seed {options.seed}"
    )
    told["Classes"] = ", ".join(shown.predictions.classes)
    told["microtome"] = __version__
    return [(name, text) for name, value in told.items() if (text := _plain(value))]


def _plain(value: object) -> str:
    """Tell a value in words; empty where there is nothing to tell."""
    if isinstance(value, Mapping):
        parts = {name: _plain(each) for name, each in value.items()}
        return ", ".join(f"{name} {told}" for name, told in parts.items() if told)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "" if value is None else str(value)


def _jpeg(image: NDArray[np.uint8], longest: int) -> str:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return _url(buffer.getvalue(), "jpeg")


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
