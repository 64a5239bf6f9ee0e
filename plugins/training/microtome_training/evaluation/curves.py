"""Plots of an evaluation as PNG, in light and dark, without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from microtome_training.evaluation.levels import BAND, SLIDE_MAX, SLIDE_TOP, TILE, Metric, Scored
from microtome_training.evaluation.metrics import Measured

_DPI = 190
_SIDE = 3.9  # inches of a square plot
_MOST_CURVES = 8
_MOST_PANELS = 6
_MOST_CELLS = 12
"""Classes up to which a cell of a confusion matrix has its share written in it."""


@dataclass(frozen=True)
class Theme:
    """Colours of a plot.

    Attributes:
        page: Behind it.
        ink: Of its text and axes.
        faint: Of its grid and of lines to compare with.
        lines: Of its curves, in turn; told apart by people who do not see all colours.
    """

    page: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme(
    page="#ffffff",
    ink="#1d232b",
    faint="#c9ced6",
    lines=("#1f5fae", "#c2531a", "#15806a", "#8a4fa8", "#b0892a", "#5a6472", "#c23b6b", "#3b8fc2"),
)
DARK = Theme(
    page="#171c24",
    ink="#e4e8ee",
    faint="#465162",
    lines=("#7db4f5", "#f09a63", "#5fcfb2", "#c99be6", "#e0c065", "#a9b4c2", "#f08bb0", "#8fd0f5"),
)


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: Of its file, without the suffix.
        title: Above it.
        alt: What it shows, in words, for those who do not see it.
        light: PNG on white.
        dark: PNG on a dark page.
    """

    name: str
    title: str
    alt: str
    light: bytes
    dark: bytes


def draw_plots(measured: Measured, classes: Sequence[str]) -> list[Plot]:
    """Draw what was measured: ROC, precision and recall, confusion, calibration, scores.

    Curves of which nothing can be drawn, for only one class occurs, are left out.

    Args:
        measured: What was measured.
        classes: Of the model.
    """
    plots = []
    curves = [each for each in _compared(measured) if _has_both(each)]
    if curves:
        told = [_told(measured, each, "auroc") for each in curves]
        alt = f"ROC curves. {'; '.join(told)}."
        plots.append(_plot("roc", "ROC", alt, lambda t: _roc(t, curves, told)))
        areas = [_told(measured, each, "auprc") for each in curves]
        alt = f"Precision by recall. {'; '.join(areas)}."
        name = "precision_recall"
        plots.append(_plot(name, "Precision and recall", alt, lambda t: _pr(t, curves, areas)))
    confusion = measured.confusion
    alt = f"Confusion matrix of tiles: {_told_cells(confusion, classes)}."
    plots.append(_plot("confusion", "Confusion", alt, lambda t: _confusion(t, confusion, classes)))
    tiles = [each for each in measured.scored if each.level == TILE][:_MOST_PANELS]
    errors = [_told(measured, each, "ece") for each in tiles]
    alt = f"Reliability: share of positive tiles by probability. {'; '.join(errors)}."
    plots.append(_plot("calibration", "Calibration", alt, lambda t: _reliability(t, tiles, errors)))
    of = ", ".join(each.class_name for each in tiles)
    alt = f"How probabilities of {of} are distributed over tiles that are and are not."
    plots.append(_plot("scores", "Scores", alt, lambda t: _scores(t, tiles)))
    return plots


def _plot(name: str, title: str, alt: str, draw: Callable[[Theme], Figure]) -> Plot:
    light, dark = (_png(draw(theme)) for theme in (LIGHT, DARK))
    return Plot(name, title, alt, light, dark)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # No name of a version: equal figures are equal files.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _compared(measured: Measured) -> Iterator[Scored]:
    """Choose what one plot compares: tiles with slides, or the classes of tiles."""
    tiles = [each for each in measured.scored if each.level == TILE]
    yield from tiles[:_MOST_CURVES]
    if len(tiles) == 1:
        yield from (each for each in measured.scored if each.level != TILE)


def _has_both(scored: Scored) -> bool:
    return bool(scored.truth.any() and not scored.truth.all())


def _told(measured: Measured, scored: Scored, metric: str) -> str:
    """Tell a measure of a curve in a line."""
    found = measured.find(scored.level, metric, scored.class_name)
    what = {TILE: "tiles", SLIDE_MAX: "slides, max", SLIDE_TOP: "slides, top-k mean"}
    is_alone = sum(each.level == scored.level for each in measured.scored) == 1
    name = what[scored.level] if is_alone else f"{what[scored.level]}, {scored.class_name}"
    return f"{name}: {metric.upper()} {told_value(found)}"


def told_value(metric: Metric) -> str:
    """Tell a measure's value with its interval: ``0.97 (0.95 to 0.99)``."""
    if metric.value is None:
        return "not defined"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def _told_cells(confusion: NDArray[np.int64], classes: Sequence[str]) -> str:
    told = (
        f"{confusion[true, called]} of {confusion[true].sum()} {classes[true]} predicted "
        f"{classes[called]}"
        for true, called in np.ndindex(*confusion.shape)
        if confusion[true, called]
    )
    return ", ".join(list(told)[: _MOST_CELLS**2])


def _figure(theme: Theme, width: float = _SIDE, height: float = _SIDE + 0.6) -> Figure:
    return Figure(figsize=(width, height), facecolor=theme.page, layout="constrained")


def _style(axes: Any, theme: Theme, x: str, y: str) -> Any:
    axes.set_facecolor(theme.page)
    axes.set_xlabel(x, color=theme.ink)
    axes.set_ylabel(y, color=theme.ink)
    axes.tick_params(colors=theme.ink, which="both", labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    axes.grid(visible=True, color=theme.faint, linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    return axes


def _legend(figure: Figure, axes: Any, theme: Theme) -> None:
    """Name the curves below the plot, where they cover nothing."""
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside lower center", fontsize=8, labelcolor=theme.ink, frameon=False
    )


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")


def _roc(theme: Theme, curves: Sequence[Scored], told: Sequence[str]) -> Figure:
    from sklearn.metrics import roc_curve  # which is slow to import: mistakes are told before

    figure = _figure(theme)
    axes = _style(figure.add_subplot(), theme, "1 − specificity", "Sensitivity")
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1, linestyle="--")
    for color, scored, label in zip(theme.lines, curves, told, strict=False):
        down, up, _ = roc_curve(scored.truth, scored.score)
        axes.plot(down, up, color=color, label=as_drawn(label), **_line(scored))
        if scored.level == TILE and scored.band is not None:
            axes.fill_between(BAND, *scored.band, color=color, alpha=0.16, linewidth=0)
    _unit_square(axes)
    _legend(figure, axes, theme)
    return figure


def _pr(theme: Theme, curves: Sequence[Scored], told: Sequence[str]) -> Figure:
    from sklearn.metrics import precision_recall_curve

    figure = _figure(theme)
    axes = _style(figure.add_subplot(), theme, "Recall (sensitivity)", "Precision")
    for color, scored, label in zip(theme.lines, curves, told, strict=False):
        precision, recall, _ = precision_recall_curve(scored.truth, scored.score)
        axes.plot(
            recall, precision, color=color, label=as_drawn(label), **_line(scored),
            drawstyle="steps-post",
        )  # fmt: skip
        axes.axhline(scored.truth.mean(), color=color, linewidth=0.7, linestyle=":")
    _unit_square(axes)
    _legend(figure, axes, theme)
    return figure


def _line(scored: Scored) -> dict[str, Any]:
    """Give the line of a level: what is of slides is thinner and broken."""
    styles = {TILE: "-", SLIDE_MAX: "--", SLIDE_TOP: "-."}
    return {
        "linewidth": 2 if scored.level == TILE else 1.4,
        "linestyle": styles[scored.level],
    }


def _confusion(theme: Theme, confusion: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    side = max(_SIDE, 0.55 * len(classes) + 2)
    figure = _figure(theme, side, side)
    axes = _style(figure.add_subplot(), theme, "Predicted", "True")
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.grid(visible=False)
    colours = LinearSegmentedColormap.from_list("shares", [theme.page, theme.lines[0]])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1)
    names = [as_drawn(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 5 else 60)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= _MOST_CELLS:
        for true, called in np.ndindex(*confusion.shape):
            is_full = shares[true, called] > 0.5
            axes.text(
                called,
                true,
                f"{confusion[true, called]:,}\n{shares[true, called]:.1%}",
                ha="center",
                va="center",
                fontsize=9 if len(names) < 5 else 7,
                color=theme.page if is_full else theme.ink,
            )
    return figure


def _reliability(theme: Theme, tiles: Sequence[Scored], told: Sequence[str]) -> Figure:
    figure = _figure(theme)
    axes = _style(figure.add_subplot(), theme, "Mean probability", "Share that is of the class")
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1, linestyle="--")
    for color, scored, label in zip(theme.lines, tiles, told, strict=False):
        bins = scored.bins[scored.bins[:, 0] > 0]
        count = bins[:, 0]
        x, y = bins[:, 1] / count, bins[:, 2] / count
        axes.plot(x, y, color=color, linewidth=1.5, label=as_drawn(label))
        axes.scatter(x, y, s=12 + 90 * count / count.max(), color=color, alpha=0.75, linewidth=0)
    _unit_square(axes)
    _legend(figure, axes, theme)
    return figure


def _scores(theme: Theme, tiles: Sequence[Scored]) -> Figure:
    columns = 1 if len(tiles) == 1 else 2
    rows = -(-len(tiles) // columns)
    figure = _figure(theme, _SIDE * (1 if columns == 1 else 1.6), max(_SIDE, 2.4 * rows))
    edges = np.linspace(0, 1, 41)
    for place, scored in enumerate(tiles, 1):
        name = as_drawn(scored.class_name)
        axes = figure.add_subplot(rows, columns, place)
        _style(axes, theme, f"Probability of {name}", "Share of tiles")
        for color, mask, label in (
            (theme.lines[0], ~scored.truth, f"not {name}"),
            (theme.lines[1], scored.truth, f"true {name}"),
        ):
            if mask.any():
                shares = np.histogram(scored.score[mask], edges)[0] / mask.sum()
                axes.stairs(shares, edges, color=color, fill=True, alpha=0.25)
                label = f"{label} ({mask.sum():,})"
                axes.stairs(shares, edges, color=color, linewidth=1.5, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.4g}"))
        axes.legend(fontsize=8, labelcolor=theme.ink, frameon=False, loc="upper center")
    return figure


def as_drawn(text: str) -> str:
    """Write a name so that matplotlib draws it as it is: no formulas, no missing letters."""
    face = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    kept = (sign if face.get_char_index(ord(sign)) and sign.isprintable() else "?" for sign in text)
    return "".join(kept).replace("$", r"\$")
