"""Labels of tiles: what people drew, counted tile by tile. Pure geometry, no pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import AnnotationError
from microtome.slide.groups import group_key

if TYPE_CHECKING:
    from microtome.slide.annotations import Annotation

LABEL, FRACTION = "label", "label_fraction"
"""Columns of a slide: int16 index into its classes, -1 for none; float32 share of the tile's area
that has that label."""

CLASSES = "classes"
"""Attribute of a slide: what its labels count, the background first."""

UNLABELLED = -1

_MOST_POINTS = 128
"""Of one piece of an outline: larger ones are cut, so that a tile meets few points."""

_HALVINGS = 40
"""After which a piece stays as it is: it is smaller than a pixel."""

_DIGITS = 6
"""Of shares that are compared: above the error of an area, below a pixel in a tile of 512."""


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """What groups of outlines mean, and when a tile is of one.

    Attributes:
        classes: Names, the background first, which is label 0.
        groups: Label by group, as of `group_key`. Groups of label 0 are cut out of the others.
        exclude: Groups in which nothing is labelled, which win over all others.
        exclude_others: Whether groups that are not named are excluded, too, not left aside.
        centre: Whether a tile is what its centre lies in; else what covers enough of it.
        min_fraction: Enough of a tile, as a share; more than nothing at least.
    """

    classes: tuple[str, ...]
    groups: Mapping[str, int]
    exclude: frozenset[str] = frozenset()
    exclude_others: bool = False
    centre: bool = True
    min_fraction: float = 0.5

    def is_used(self, group: str) -> bool:
        """Whether outlines of a group have a say."""
        named = group_key(group) in self.groups or group_key(group) in self.exclude
        return named or self.exclude_others


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of some tiles.

    Attributes:
        label: (n,) int16.
        fraction: (n,) float32, 0 to 1.
    """

    label: NDArray[np.int16]
    fraction: NDArray[np.float32]

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Them as they are stored."""
        return {LABEL: self.label, FRACTION: self.fraction}

    def only(self, known: NDArray[np.bool_]) -> Labels:
        """Take the labels from all tiles but some."""
        fraction = np.where(known, self.fraction, 0).astype(np.float32)
        return Labels(np.where(known, self.label, UNLABELLED).astype(np.int16), fraction)


def count_labels(label: NDArray[Any], classes: Sequence[str]) -> dict[str, int]:
    """Count the tiles of each class, and those without a label where there are some."""
    counts = np.bincount(label.astype(np.int64) + 1, minlength=len(classes) + 1).tolist()
    told = dict(zip(classes, counts[1:], strict=False))
    return told | ({"unlabelled": counts[0]} if counts[0] else {})


def uniform_labels(count: int, label: int) -> Labels:
    """Give every tile one label; the share is all of it, or nothing without a label."""
    share = 0.0 if label == UNLABELLED else 1.0
    return Labels(np.full(count, label, np.int16), np.full(count, share, np.float32))


def clip_boxes(boxes: NDArray[np.float64], extent: tuple[int, int]) -> NDArray[np.float64]:
    """Give the part of each tile that is on its slide; without an area where none is.

    Args:
        boxes: (n, 4) ``x, y, x, y`` at level 0.
        extent: (width, height) of the slide at level 0.
    """
    return np.clip(boxes, 0.0, np.array([*extent, *extent], np.float64))


def label_tiles(
    boxes: NDArray[np.float64], annotations: Iterable[Annotation], rule: LabelRule
) -> Labels:
    """Label tiles by the outlines that they lie in.

    Where an excluded area is enough of a tile (or has its centre), the tile is unlabelled. Of the
    classes that are enough of it the one with the largest share wins, of equal ones the first. A
    tile of none is background, and its share is what no class and no excluded area covers.

    Args:
        boxes: (n, 4) float64 ``x, y, x, y`` at level 0, of tiles, or of their parts on the slide.
        annotations: At level 0. Lines and points have no area and no say.
        rule: What they mean.

    Returns:
        A label and a share for each tile.
    """
    outlines = _by_label(annotations, rule)
    excluded = _Layer(outlines.get(UNLABELLED, ()))
    cut = excluded.shape
    background = _union(outlines.get(0, ()))
    if background is not None:
        cut = background if cut is None else cut.union(background)
    layers = [_Layer(outlines.get(label, ()), cut) for label in range(1, len(rule.classes))]
    shares = np.stack([layer.shares(boxes) for layer in layers], axis=1)
    shut_out = excluded.shares(boxes)
    if len(layers) == 1:
        covered = shares[:, 0]
    else:
        covered = _Layer(
            [p for label, ps in outlines.items() if label > 0 for p in ps], cut
        ).shares(boxes)
    if rule.centre:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        hits = np.stack([layer.holds(centres) for layer in layers], axis=1)
        is_out = excluded.holds(centres)
    else:
        hits, is_out = _enough(shares, rule), _enough(shut_out, rule)
    # A centre may lie on an outline that has no share of the tile.
    ranked = np.where(hits, np.round(shares, _DIGITS), -1.0)
    best = ranked.argmax(axis=1)
    label = np.where(hits.any(axis=1), best + 1, 0)
    fraction = np.where(label > 0, shares[np.arange(len(boxes)), best], 1.0 - covered - shut_out)
    label, fraction = np.where(is_out, UNLABELLED, label), np.where(is_out, shut_out, fraction)
    return Labels(label.astype(np.int16), np.clip(fraction, 0.0, 1.0).astype(np.float32))


def call_by_named(annotations: Iterable[Annotation], rule: LabelRule) -> list[Annotation]:
    """Call outlines by the nearest group that the rule names, of those that theirs is part of."""
    named = replace(rule, exclude_others=False)
    found = []
    for each in annotations:
        chain = (each.group, *each.within)
        group = next((group for group in chain if named.is_used(group)), each.group)
        found.append(each if group == each.group else replace(each, group=group))
    return found


def place_outlines(
    annotations: Iterable[Annotation], rule: LabelRule, extent: tuple[int, int], file: object
) -> list[Annotation]:
    """Give the outlines that have a say, as far as they lie on the slide.

    Args:
        annotations: At level 0.
        rule: Tells which have a say.
        extent: (width, height) of the slide at level 0.
        file: For the message.

    Raises:
        AnnotationError: If one lies wholly beside the slide: they are another slide's.
    """
    import shapely

    width, height = extent
    placed = []
    for each in annotations:
        if not (rule.is_used(each.group) and is_area(each)):
            continue
        x, y, right, bottom = each.geometry.bounds
        if right <= 0 or bottom <= 0 or x >= width or y >= height:
            where = f"{file}, {each.where}" if each.where else str(file)
            raise AnnotationError(
                f"{where}: the outline{f' {each.name!r}' if each.name else ''} of the group "
                f"{each.group!r} lies outside of the slide, at x {x:.0f} to {right:.0f} and y "
                f"{y:.0f} to {bottom:.0f}, where the slide has {width} × {height} px. The file may "
                "be another slide's, or count from the slide's bounds: labels.origin=bounds."
            )
        if x < 0 or y < 0 or right > width or bottom > height:
            inside = shapely.intersection(each.geometry, shapely.box(0, 0, width, height))
            each = replace(each, geometry=inside)
        placed.append(each)
    return placed


def is_area(annotation: Annotation) -> bool:
    """Whether something was drawn that tiles can lie in."""
    return bool(annotation.geometry.area > 0)


def count_groups(annotations: Iterable[Annotation]) -> Counter[str]:
    """Count the outlines of each group, as the file writes it."""
    return Counter(each.group for each in annotations if is_area(each))


def _enough(shares: NDArray[np.float64], rule: LabelRule) -> NDArray[np.bool_]:
    least = max(rule.min_fraction, 10.0**-_DIGITS)
    enough: NDArray[np.bool_] = np.round(shares, _DIGITS) >= least
    return enough


def _by_label(annotations: Iterable[Annotation], rule: LabelRule) -> dict[int, list[Any]]:
    """Sort outlines by what they mean; those that mean nothing are left aside."""
    found: dict[int, list[Any]] = {}
    for each in annotations:
        group = group_key(each.group)
        if not is_area(each) or not rule.is_used(group):
            continue
        label = UNLABELLED if group in rule.exclude else rule.groups.get(group, UNLABELLED)
        found.setdefault(label, []).append(each.geometry)
    return found


def _union(shapes: Sequence[Any]) -> Any | None:
    import shapely

    return shapely.union_all(list(shapes)) if shapes else None


class _Layer:
    """Some outlines as one area, in pieces that are quickly laid over tiles.

    Args:
        shapes: The outlines, which may overlap.
        cut: What is no part of the area.
    """

    def __init__(self, shapes: Sequence[Any], cut: Any | None = None) -> None:
        import shapely

        self.shape = _union(shapes)
        if self.shape is not None and cut is not None:
            self.shape = self.shape.difference(cut)
        self._pieces = _cut_up([] if self.shape is None else [self.shape])
        shapely.prepare(self._pieces)
        self._tree = shapely.STRtree(self._pieces)

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which points lie in the area, its outline included.

        Args:
            points: (n, 2) x, y.
        """
        import shapely

        found = np.zeros(len(points), np.bool_)
        found[self._tree.query(shapely.points(points), predicate="intersects")[0]] = True
        return found

    def shares(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the share of each box that the area covers.

        Args:
            boxes: (n, 4) x, y, x, y.
        """
        import shapely

        squares = shapely.box(*boxes.T)
        box, piece = self._tree.query(squares)
        left, top, right, bottom = boxes[box].T
        x, y, x_end, y_end = shapely.bounds(self._pieces)[piece].T
        width = np.minimum(right, x_end) - np.maximum(left, x)
        height = np.minimum(bottom, y_end) - np.maximum(top, y)
        area = np.maximum(width, 0) * np.maximum(height, 0)
        # What a piece's bounds have in common with a box is exact for a piece that fills them.
        rest = np.flatnonzero((area > 0) & ~_fills(self._pieces)[piece])
        rest = rest[~shapely.contains_properly(self._pieces[piece[rest]], squares[box[rest]])]
        common = shapely.intersection(self._pieces[piece[rest]], squares[box[rest]])
        area[rest] = shapely.area(common)
        covered = np.bincount(box, area, minlength=len(boxes))
        whole, share = shapely.area(squares), np.zeros(len(boxes))
        np.divide(covered, whole, out=share, where=whole > 0)
        return share


def _fills(pieces: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which pieces are whole rectangles."""
    import shapely

    x, y, right, bottom = shapely.bounds(pieces).reshape(-1, 4).T
    full = (right - x) * (bottom - y)
    fills: NDArray[np.bool_] = shapely.area(pieces) >= full * (1 - 1e-12)
    return fills


def _cut_up(shapes: Iterable[Any]) -> NDArray[Any]:
    """Cut areas into polygons of few points, each in halves across its longer side."""
    import shapely

    waiting = _polygons(np.asarray([*shapes], object))
    done: list[NDArray[Any]] = []
    for left in reversed(range(_HALVINGS)):
        small = (shapely.get_num_coordinates(waiting) <= _MOST_POINTS) | (left == 0)
        done.append(waiting[small])
        large = waiting[~small]
        x, y, right, bottom = shapely.bounds(large).reshape(-1, 4).T
        wide = right - x >= bottom - y
        across, down = (
            np.where(wide, (x + right) / 2, right),
            np.where(wide, bottom, (y + bottom) / 2),
        )
        first = shapely.box(x, y, across, down)
        second = shapely.box(np.where(wide, across, x), np.where(wide, y, down), right, bottom)
        halves = [shapely.intersection(large, half) for half in (first, second)]
        waiting = _polygons(np.concatenate(halves))
    return np.concatenate(done)


def _polygons(shapes: NDArray[Any]) -> NDArray[Any]:
    """Give the polygons that shapes are made of; lines that cutting left are none."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(shapes))  # multipolygons within collections, too
    kept: NDArray[Any] = parts[shapely.area(parts) > 0]
    return kept
