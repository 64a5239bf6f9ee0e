"""One slide's labels: its file of outlines, read only where labels are to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import AnnotationError
from microtome.run.inputs.annotated import read_annotations
from microtome.run.labelling import Origin, OtherGroups, WithoutFile
from microtome.run.planning.labels import (
    digest_file,
    find_file,
    label_fields,
    label_rule,
    wants_labels,
)
from microtome.run.planning.plan import RunPlan
from microtome.slide.labels import (
    LABEL,
    UNLABELLED,
    Labels,
    call_by_named,
    clip_boxes,
    count_groups,
    label_tiles,
    place_outlines,
    uniform_labels,
)
from microtome.slide.types import SlideInfo, SlideRef, TileGeometry, TileGrid
from microtome.store.attributes import parse_json
from microtome.store.content import SlideContent
from microtome.store.identity import Identity, difference, make_identity
from microtome.store.labels import (
    LABELS,
    LABELS_FIELDS,
    LABELS_IDENTITY,
    label_attributes,
    tell_labels,
)

if TYPE_CHECKING:
    from microtome.run.slides.holdings import Holdings
    from microtome.run.slides.pipeline import SlideWork
    from microtome.slide.annotations import Annotation
    from microtome.slide.opening import OpenedSlide

ANNOTATION_PATH = "annotation_path"
"""Attribute of a slide: the file that its labels are of; empty without one."""

_SHIFT = "shift"
"""Field of the identity of labels whose outlines count from the slide's bounds: x, y."""

_SHOWN = 3


@dataclass(eq=False, kw_only=True)
class SlideLabels:
    """What labels a slide's tiles in this run.

    Attributes:
        plan: The resolved run.
        info: Of the open slide.
        geometry: Of its tiles.
        file: Its outlines; None where it has none.
        identity: Of the labels.
        warnings: What the user should know, once labels were made.
    """

    plan: RunPlan
    info: SlideInfo
    geometry: TileGeometry
    file: Path | None
    identity: Identity
    warnings: list[str] = field(default_factory=list)
    _outlines: list[Annotation] | None = None
    _last: tuple[NDArray[np.int32], Labels] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """What is stored of the slide with its labels."""
        told = label_attributes(self.plan.config.labels.names, self.identity)
        return told | {ANNOTATION_PATH: "" if self.file is None else str(self.file)}

    def of(self, coords: NDArray[np.int32]) -> Labels:
        """Label tiles.

        Args:
            coords: (n, 5) ``x, y, read_w, read_h, level``.

        Raises:
            AnnotationError: If the file cannot be read, or lies beside the slide.
        """
        if self._last is None or not np.array_equal(self._last[0], coords):
            self._last = (coords, self._make(coords))
        return self._last[1]

    def attach(self, content: SlideContent) -> SlideContent:
        """Give a slide's content these labels, in place of others."""
        return replace(
            content,
            columns={**content.columns, **self.of(content.coords).columns},
            attributes={**content.attributes, **self.attributes},
        )

    def on(self, grid: TileGrid) -> TileGrid:
        """Give a grid these labels, in place of those that its tiler brought."""
        return replace(
            grid,
            columns={**grid.columns, **self.of(grid.coords).columns},
            attributes={**grid.attributes, **self.attributes},
        )

    def _make(self, coords: NDArray[np.int32]) -> Labels:
        settings, corner = self.plan.config.labels, coords[:, :2].astype(np.float64)
        boxes = np.concatenate([corner, corner + self.geometry.size_level0], axis=1)
        boxes = clip_boxes(boxes, (self.info.width, self.info.height))
        on_slide: NDArray[np.bool_] = np.all(boxes[:, :2] < boxes[:, 2:], axis=1)
        if self.file is None:
            unknown = settings.missing is WithoutFile.unlabelled
            return uniform_labels(len(coords), UNLABELLED if unknown else 0).only(on_slide)
        if self._outlines is None:
            self._outlines = self._read(self.file)
        return label_tiles(boxes, self._outlines, label_rule(settings)).only(on_slide)

    def _read(self, file: Path) -> list[Annotation]:
        rule = label_rule(self.plan.config.labels)
        annotations: Sequence[Annotation] = read_annotations(file, self.info, self.plan.registry)
        if digest_file(file) != self.identity.fields["file"]:
            raise AnnotationError(
                f"{file} was changed while its slide was worked on. Run the slide again."
            )
        shift = self.identity.fields.get(_SHIFT)
        if shift is not None:
            annotations = _shifted(annotations, (shift[0], shift[1]))
            if self.info.bounds is None:
                self.warnings.append(
                    f"labels.origin=bounds: the reader {self.info.reader} names no bounds of it, "
                    f"so that {file.name} is taken to count from level 0"
                )
        annotations = call_by_named(annotations, rule)
        self._tell_groups(file, annotations)
        placed = place_outlines(annotations, rule, (self.info.width, self.info.height), file)
        self._tell_repaired(placed)
        return placed

    def _tell_repaired(self, outlines: Sequence[Annotation]) -> None:
        """Tell of outlines that were no area as they were drawn."""
        told = [
            f"{each.where}: {each.repaired}" if each.where else each.repaired
            for each in outlines
            if each.repaired
        ]
        if told:
            more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
            what = f"{len(told)} outline{'s' if len(told) > 1 else ''} repaired"
            self.warnings.append(f"{what} ({'; '.join(told[:_SHOWN])}{more})")

    def _tell_groups(self, file: Path, annotations: Sequence[Annotation]) -> None:
        """Tell of groups that nothing names, which may be misspelt.

        Raises:
            AnnotationError: If there are some and ``labels.others=fail``.
        """
        settings = self.plan.config.labels
        named = replace(label_rule(settings), exclude_others=False)
        groups = count_groups(annotations)
        others = {group: n for group, n in groups.items() if not named.is_used(group)}
        listed = ", ".join(f"{n} of {_called(group)}" for group, n in sorted(others.items()))
        if others and settings.others is OtherGroups.fail:
            raise AnnotationError(
                f"{file} has outlines of groups that no class names: {listed}. Name them in "
                "labels.classes or labels.exclude, or leave them aside with labels.others=ignore."
            )
        if len(others) == len(groups):
            there = f"it has {listed}" if listed else "it has no outline with an area"
            wanted = ", ".join(_called(g) for own in settings.classes.values() for g in own)
            self.warnings.append(f"{file.name} has no outline of {wanted}: {there}")
        elif others:
            done = "excluded" if settings.others is OtherGroups.exclude else "left aside"
            self.warnings.append(f"outlines {done}, of groups that no class names: {listed}")


def _called(group: str) -> str:
    """Name a group so that it cannot be taken for how many there are."""
    return repr(group) if group else "no group"


def give_labels(
    work: SlideWork, slide: OpenedSlide, grid: TileGrid, coords: Identity
) -> tuple[SlideLabels | None, TileGrid]:
    """Find what labels a slide's tiles; they have their labels where images depend on them.

    Args:
        work: The slide's, which hears of the stage and of the identity.
        slide: Open.
        grid: Its tiles.
        coords: Their identity.

    Raises:
        InputError: As of `find_file`.
        AnnotationError: As of `SlideLabels.of`.
    """
    if not wants_labels(work.plan.config):
        return None, grid
    with work.timed(LABELS):
        labels = find_labels(work.plan, work.ref, slide.info, grid.geometry, coords)
        work.identities[LABELS] = labels.identity.digest
        by_label = any(image.labelled for image in work.plan.images)
        return labels, labels.on(grid) if by_label else grid


def find_labels(
    plan: RunPlan, ref: SlideRef, info: SlideInfo, geometry: TileGeometry, coords: Identity
) -> SlideLabels:
    """Find what labels a slide's tiles, in a run that labels them.

    Args:
        plan: The resolved run.
        ref: The slide.
        info: What it says of itself.
        geometry: Of its tiles.
        coords: The identity of its coordinates.

    Raises:
        InputError: As of `find_file`.
        AnnotationError: If no format recognises its file.
    """
    file = find_file(plan.config, ref, plan.registry)
    fields = {"coords": coords.digest, **label_fields(plan.config.labels, file, plan.registry)}
    if file is not None and plan.config.labels.origin is Origin.bounds:
        fields[_SHIFT] = [*(info.bounds or (0, 0))[:2]]
    return SlideLabels(
        plan=plan, info=info, geometry=geometry, file=file, identity=make_identity(LABELS, fields)
    )


def _shifted(annotations: Sequence[Annotation], by: tuple[int, int]) -> list[Annotation]:
    from shapely import affinity

    return [replace(each, geometry=affinity.translate(each.geometry, *by)) for each in annotations]


def count_kept(
    grid: TileGrid, coords: NDArray[np.int32], labels: SlideLabels | None
) -> dict[str, int]:
    """Count the labels of the tiles that were kept; of those that a tiler gave, of all or none.

    Args:
        grid: With its labels.
        coords: (n, 5) of the tiles that were kept.
        labels: What labelled them, if not the tiler.
    """
    if labels is not None:
        return tell_labels(labels.of(coords).columns, labels.attributes)
    return tell_labels(grid.columns, grid.attributes) if len(coords) == len(grid) else {}


def count_given(
    grid: TileGrid, coords: NDArray[np.int32], labels: SlideLabels | None
) -> dict[str, int]:
    """Count as `count_kept`, where a grid has labels: that of a slide with patch stores alone."""
    return count_kept(grid, coords, labels) if LABEL in grid.columns else {}


def tell_renewal(holdings: Holdings, labels: SlideLabels) -> list[str]:
    """Say why labels that are there are made anew; nothing where there are none yet."""
    for holding in holdings.stores:
        if holding.kept and holding.relabelled and LABELS_IDENTITY in holding.attributes:
            before = parse_json(holding.attributes.get(LABELS_FIELDS))
            why = _changed(before, labels.identity.fields, labels.file)
            return [f"labels made anew, all else kept: {why}"]
    return []


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], file: Path | None) -> str:
    if file is None or not before.get("file"):
        return "it has no file of outlines any more" if file is None else f"{file} is new"
    told = [f"{file} has changed"] if before["file"] != now["file"] else []
    others = [{k: v for k, v in each.items() if k != "file"} for each in (before, now)]
    if others[0] != others[1]:
        told.append(difference(*others))
    return "; ".join(told)
