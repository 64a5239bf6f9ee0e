"""QuPath: tissue, tiles and predictions as objects of a GeoJSON, written a part at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, LayoutError
from microtome.plugin.wording import unknown
from microtome.store.attributes import parse_list
from microtome.store.exchange import FoundSlide, LayoutFile, SlideFacts, TiledSlide
from microtome.store.publish import FeatureSet
from microtome_layouts import Origin, QupathConfig

_WHAT = ("tissue", "tiles", "predictions")
_GROUP, _LABEL, _CLASSES = "predictions/", "label", "classes"
_ROWS = 4096
"""Tiles written at a time."""

_COLORS = (
    *((150, 200, 150), (200, 0, 0), (0, 114, 178), (230, 159, 0), (160, 90, 160)),
    *((0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66), (120, 70, 40)),
)
"""By class: the background, the first class, and so on, over again after the last."""


@dataclass(frozen=True)
class _Drawn:
    """What the tiles of a slide are drawn with.

    Attributes:
        classes: JSON of each class's classification.
        columns: By name, (n,) numbers.
        label: (n,) index into ``classes``, -1 for none; None where tiles have no class.
        predicted: (n, C) probabilities, and the names of their classes; None without.
    """

    classes: Sequence[str]
    columns: Mapping[str, NDArray[Any]]
    label: NDArray[Any] | None = None
    predicted: FeatureSet | None = None
    names: Sequence[str] = ()


class QupathLayout:
    """Writes ``<slide>.geojson``."""

    def __init__(self, config: QupathConfig) -> None:
        self._config = config
        for each in config.what:
            if each not in _WHAT:
                raise ConfigError(unknown("part of what=", each, _WHAT))
        if not config.what:
            raise ConfigError(f"what=[] draws nothing; choose of {', '.join(_WHAT)}.")

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's file."""
        shift = self._shift(slide)
        key, predicted = self._predictions(slide)
        drawn = self._drawn(slide, predicted)
        tissue = slide.tissue if "tissue" in self._config.what else None

        def write(path: Path) -> None:
            with path.open("x", encoding="utf-8") as file:
                file.write('{"type": "FeatureCollection", "features": [')
                between = "\n"
                for feature in _features(slide, tissue, drawn, shift):
                    file.write(between + feature)
                    between = ",\n"
                file.write("\n]}\n")

        yield LayoutFile(
            path=f"{slide.slide_id}.geojson",
            write=write,
            columns=() if drawn is None else tuple(drawn.columns),
            predictions=(key,) if key else (),
            tissue=tissue is not None,
        )

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Refuse: what people draw in QuPath is read as annotations.

        Raises:
            LayoutError: Always.
        """
        raise LayoutError(
            f"{folder}: QuPath's GeoJSON is exported and not imported. What is drawn there labels "
            "tiles: annotations=FOLDER."
        )

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Refuse, as `find` does.

        Raises:
            LayoutError: Always.
        """
        raise LayoutError(f"{found.slide_id}: QuPath's GeoJSON is exported and not imported.")

    def _shift(self, slide: TiledSlide) -> tuple[int, int]:
        """Give the level-0 pixel at which the viewer begins to count."""
        if self._config.origin is Origin.level0:
            return 0, 0
        if "bounds" not in slide.attributes:
            raise LayoutError(
                f"{slide.slide_id} cannot be exported with origin=bounds: nothing says what its "
                "bounds are. Tile the slide anew, or use origin=level0."
            )
        bounds = parse_list(slide.attributes["bounds"])
        return (int(bounds[0]), int(bounds[1])) if bounds else (0, 0)

    def _predictions(self, slide: TiledSlide) -> tuple[str, FeatureSet | None]:
        if "predictions" not in self._config.what:
            return "", None
        there = sorted(key.removeprefix(_GROUP) for key in slide.predictions)
        name = self._config.predictions or (there[0] if len(there) == 1 else "")
        if not name and not there:
            return "", None
        if name not in there:
            of = f"none named {name!r}" if name else "several"
            raise LayoutError(
                f"{slide.slide_id} cannot be exported: of predictions it has {of}. Name one with "
                f"predictions=, of {', '.join(there) or 'none'}, or leave them out of what=."
            )
        return _GROUP + name, slide.predictions[_GROUP + name]

    def _drawn(self, slide: TiledSlide, predicted: FeatureSet | None) -> _Drawn | None:
        if self._config.what == ["tissue"] or (
            "tiles" not in self._config.what and predicted is None
        ):
            return None
        names, columns = parse_list(slide.attributes.get(_CLASSES)), {}
        if "tiles" in self._config.what:
            columns = {
                name: values
                for name, values in slide.columns.items()
                if values.dtype.kind in "biuf"
            }
        if predicted is not None:
            names = _class_names(slide, predicted)
        return _Drawn(
            classes=[_classification(name, place) for place, name in enumerate(names)],
            columns=columns,
            label=columns.get(_LABEL) if names else None,
            predicted=predicted,
            names=names if predicted is not None else (),
        )


def _class_names(slide: TiledSlide, predicted: FeatureSet) -> list[str]:
    """Name the classes of predictions as they do themselves, or as the slide's labels."""
    count = predicted.source.shape[1]
    for said in (predicted.attributes, slide.attributes):
        names = [str(name) for name in parse_list(said.get(_CLASSES))]
        if len(names) == count:
            return names
    raise LayoutError(
        f"{slide.slide_id} cannot be exported: nothing names the {count} classes of its "
        "predictions. Predict anew, or leave them out of what=."
    )


def _classification(name: str, place: int) -> str:
    color = _COLORS[place] if place < len(_COLORS) else _COLORS[1 + place % (len(_COLORS) - 1)]
    return json.dumps({"name": name, "color": color}, ensure_ascii=False)


def _features(
    slide: TiledSlide, tissue: Path | None, drawn: _Drawn | None, shift: tuple[int, int]
) -> Iterator[str]:
    if tissue is not None:
        yield from _tissue(tissue, shift)
    if drawn is None:
        return
    batches: Iterator[Any] = iter(())
    if drawn.predicted is not None:
        batches = iter(drawn.predicted.source.chunks(_ROWS))
    for start in range(0, len(slide.coords), _ROWS):
        rows = slice(start, start + _ROWS)
        yield from _tiles(slide, rows, drawn, shift, next(batches, None))


def _tissue(path: Path, shift: tuple[int, int]) -> Iterator[str]:
    try:
        regions = json.loads(path.read_text("utf-8"))["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{path} cannot be read as the tissue of a slide: {error!r}.") from error
    for region in regions:
        rings = [_ring(np.array(ring) - shift) for ring in region["geometry"]["coordinates"]]
        yield _feature(f"[{', '.join(rings)}]", json.dumps(region["properties"]))


def _tiles(
    slide: TiledSlide,
    rows: slice,
    drawn: _Drawn,
    shift: tuple[int, int],
    predicted: NDArray[Any] | None,
) -> Iterator[str]:
    corners = (slide.coords[rows, :2] - np.array(shift)).tolist()
    columns = [(name, values[rows].tolist()) for name, values in drawn.columns.items()]
    classes = None if drawn.label is None else drawn.label[rows].tolist()
    if predicted is not None:
        columns += [
            (f"prob_{name}", predicted[:, place].tolist()) for place, name in enumerate(drawn.names)
        ]
        known = np.isfinite(predicted).all(axis=1)
        classes = np.where(known, predicted.argmax(axis=1), -1).tolist()
    heads = [f"{json.dumps(name, ensure_ascii=False)}: " for name, _ in columns]
    width, height = slide.geometry.size_level0
    for row, (x, y) in enumerate(corners):
        ring = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        about = ['"objectType": "detection"']
        if classes is not None and 0 <= classes[row] < len(drawn.classes):
            about.append(f'"classification": {drawn.classes[classes[row]]}')
        numbers = (
            head + f"{values[row]:.10g}"
            for head, (_, values) in zip(heads, columns, strict=True)
            if math.isfinite(values[row])
        )
        about.append(f'"measurements": {{{", ".join(numbers)}}}')
        yield _feature(f"[{_ring(ring)}]", f"{{{', '.join(about)}}}")


def _ring(points: Any) -> str:
    return f"[{', '.join(f'[{x:.10g}, {y:.10g}]' for x, y in points)}]"


def _feature(rings: str, properties: str) -> str:
    geometry = f'{{"type": "Polygon", "coordinates": {rings}}}'
    return f'{{"type": "Feature", "geometry": {geometry}, "properties": {properties}}}'
