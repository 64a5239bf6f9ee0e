"""Lesions: what hangs together of a slide's positive tiles, and how well lesions are found."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.store.publish import write_bytes

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from microtome_training.predicting.heatmaps import ProbabilityMap

COLUMNS = (
    *("slide_id", "class", "lesion", "probability", "x", "y", "mean_probability", "tiles"),
    *("area_um2",),
)
"""Of a table of lesions."""

FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a slide at which CAMELYON16 (Ehteshami Bejnordi et al. 2017) takes the mean
sensitivity."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """Positive tiles that hang together.

    Attributes:
        slide_id: The slide.
        class_name: What they are positive of.
        number: From 1, the most probable of its slide first.
        probability: The highest of its tiles'.
        x: Level-0 pixels; the middle of that tile of it which is nearest to its centre of gravity,
            so that the point is always inside.
        y: The same downwards.
        mean_probability: Of its tiles.
        tiles: Their number.
        area_um2: What they cover; None where nothing says how large a pixel is.
    """

    slide_id: str
    class_name: str
    number: int
    probability: float
    x: float
    y: float
    mean_probability: float
    tiles: int
    area_um2: float | None


@dataclass(frozen=True, kw_only=True)
class Froc:
    """How many lesions are found at how many false alarms.

    Attributes:
        threshold: (t,) probabilities, falling.
        false_positives: (t,) a slide, on average, from that probability on.
        sensitivity: (t,) share of lesions that are found.
        at: Sensitivity at each of `FROC_RATES`.
        lesions: How many there are.
        slides: Among how many slides.
    """

    threshold: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    at: Mapping[float, float]
    lesions: int
    slides: int

    @property
    def score(self) -> float:
        """The mean sensitivity at `FROC_RATES`."""
        return float(np.mean(list(self.at.values())))


def find_lesions(
    found: ProbabilityMap,
    *,
    threshold: float = 0.5,
    min_tiles: int = 1,
    mpp: tuple[float, float] | None = None,
) -> list[Lesion]:
    """Find a slide's lesions: tiles from a probability on, neighbours over edges and corners.

    Args:
        found: The slide's tiles.
        threshold: The probability.
        min_tiles: Tiles that a lesion has at least.
        mpp: (x, y) µm per level-0 pixel, if known.

    Returns:
        The most probable first.
    """
    rows = np.flatnonzero(found.probability >= threshold)
    if not rows.size:
        return []
    rows = rows[np.lexsort(found.coords[rows, :2].T)]  # ties go by place, not by order
    corners = found.coords[rows, :2].astype(np.float64)
    centres = corners + np.asarray(found.geometry.size_level0) / 2
    probability = found.probability[rows].astype(np.float64)
    belongs = _components(corners / np.asarray(found.geometry.pitch_level0))
    area = _area_um2(found, mpp)
    lesions = []
    order = np.argsort(belongs, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(belongs[order])) + 1):
        if len(mine) < min_tiles:
            continue
        x, y = _middle(centres[mine], probability[mine])
        lesions.append(
            Lesion(
                slide_id=found.slide_id,
                class_name=found.class_name,
                number=0,
                probability=float(probability[mine].max()),
                x=x,
                y=y,
                mean_probability=float(probability[mine].mean()),
                tiles=len(mine),
                area_um2=None if area is None else area * len(mine),
            )
        )
    return _numbered(lesions)


def write_lesions(path: Path, lesions: Iterable[Lesion]) -> None:
    """Write lesions as CSV, a row each, atomically.

    Raises:
        StoreError: If it cannot be written.
    """
    rows = (
        {
            "slide_id": each.slide_id,
            "class": each.class_name,
            "lesion": each.number,
            "probability": f"{each.probability:.6f}",
            "x": f"{each.x:.1f}",
            "y": f"{each.y:.1f}",
            "mean_probability": f"{each.mean_probability:.6f}",
            "tiles": each.tiles,
            "area_um2": "" if each.area_um2 is None else f"{each.area_um2:.1f}",
        }
        for each in lesions
    )
    write_table(path, COLUMNS, rows)


def read_lesions(path: Path | str) -> list[Lesion]:
    """Read lesions that `write_lesions` wrote, or a table of ``slide_id, probability, x, y``.

    Raises:
        TaskError: If it is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return [_parse(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise TaskError(
            f"{path} is no table of lesions ({error!r}). It has the columns "
            f"{', '.join(COLUMNS)}; slide_id, probability, x and y are needed."
        ) from error


def _parse(row: Mapping[str, str]) -> Lesion:
    probability = float(row["probability"])
    area = row.get("area_um2")
    return Lesion(
        slide_id=row["slide_id"],
        class_name=row.get("class") or "",
        number=int(row.get("lesion") or 0),
        probability=probability,
        x=float(row["x"]),
        y=float(row["y"]),
        mean_probability=float(row.get("mean_probability") or probability),
        tiles=int(row.get("tiles") or 0),
        area_um2=float(area) if area else None,
    )


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table as CSV, atomically.

    Raises:
        StoreError: If it cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def froc(
    lesions: Iterable[Lesion],
    annotations: Mapping[str, Sequence[BaseGeometry]],
    *,
    margin: float = 0.0,
) -> Froc:
    """Compare found lesions with drawn ones, as CAMELYON16 does.

    A drawn lesion is found from the highest probability of what lies in it; several finds in one
    count once. A find in none is a false positive.

    Args:
        lesions: Of one class.
        annotations: By slide, the areas of its lesions in level-0 pixels; a slide that has none
            is there with nothing. Other slides do not count.
        margin: Level-0 pixels by which an area is enlarged.

    Raises:
        ValueError: If there is no slide, or no drawn lesion.
    """
    total = sum(len(areas) for areas in annotations.values())
    if not total:
        raise ValueError("without a drawn lesion there is no sensitivity")
    by_slide: dict[str, list[Lesion]] = defaultdict(list)
    for lesion in lesions:
        by_slide[lesion.slide_id].append(lesion)
    hits: list[float] = []
    alarms: list[float] = []
    for slide_id, areas in annotations.items():
        found, false = _match(by_slide[slide_id], areas, margin)
        hits += found
        alarms += false
    threshold = np.unique([*hits, *alarms])[::-1]
    per_slide = np.array([np.sum(np.array(alarms) >= t) for t in threshold]) / len(annotations)
    sensitivity = np.array([np.sum(np.array(hits) >= t) for t in threshold]) / total
    return Froc(
        threshold=threshold,
        false_positives=per_slide,
        sensitivity=sensitivity,
        at={rate: _at(per_slide, sensitivity, rate) for rate in FROC_RATES},
        lesions=total,
        slides=len(annotations),
    )


def _at(
    false_positives: NDArray[np.float64], sensitivity: NDArray[np.float64], rate: float
) -> float:
    """Give the best sensitivity at that many false positives at most, which makes nothing up."""
    reached = sensitivity[false_positives <= rate]
    return float(reached.max()) if reached.size else 0.0


def _match(
    lesions: Sequence[Lesion], areas: Sequence[BaseGeometry], margin: float
) -> tuple[list[float], list[float]]:
    """Give the probability from which each area is found, and those of false positives."""
    best = np.zeros(len(areas))
    enlarged = [area.buffer(margin) if margin else area for area in areas]
    alarms = []
    for lesion in lesions:
        point = shapely.Point(lesion.x, lesion.y)
        inside = [number for number, area in enumerate(enlarged) if area.intersects(point)]
        best[inside] = np.maximum(best[inside], lesion.probability)
        if not inside:
            alarms.append(lesion.probability)
    return [float(value) for value in best if value > 0], alarms


def _components(places: NDArray[np.float64]) -> NDArray[np.int32]:
    """Tell which points, in steps of their lattice, hang together: (n,) from 0."""
    # Tiles lie at whole pixels, so nearly, not exactly, at whole steps.
    column, row = np.rint(places - places.min(axis=0)).astype(np.int64).T
    lattice = np.zeros((row.max() + 1, column.max() + 1), np.uint8)
    lattice[row, column] = 1
    _, numbers = cv2.connectedComponents(lattice, connectivity=8, ltype=cv2.CV_32S)
    found: NDArray[np.int32] = numbers[row, column] - 1
    return found


def _middle(centres: NDArray[np.float64], probability: NDArray[np.float64]) -> tuple[float, float]:
    heavy = np.average(centres, axis=0, weights=np.maximum(probability, 1e-9))
    nearest = int(np.argmin(((centres - heavy) ** 2).sum(axis=1)))
    x, y = centres[nearest]
    return float(x), float(y)


def _area_um2(found: ProbabilityMap, mpp: tuple[float, float] | None) -> float | None:
    """Give what a tile adds to an area: itself, or where tiles overlap a step of the lattice."""
    if mpp is None:
        return None
    sizes = zip(found.geometry.size_level0, found.geometry.pitch_level0, strict=True)
    x, y = (min(size, pitch) * um for (size, pitch), um in zip(sizes, mpp, strict=True))
    return x * y


def _numbered(lesions: Sequence[Lesion]) -> list[Lesion]:
    ordered = sorted(lesions, key=lambda each: (-each.probability, -each.tiles, each.y, each.x))
    return [replace(each, number=number) for number, each in enumerate(ordered, 1)]
