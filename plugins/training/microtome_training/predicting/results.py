"""What is left of predictions: tables of slides and lesions, and heatmaps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import SlideError
from microtome_training.predicting.heatmaps import HeatmapFiles, ProbabilityMap, draw_heatmap
from microtome_training.predicting.lesions import find_lesions, write_lesions
from microtome_training.predicting.scores import SlideScore, score_slide, write_scores
from microtome_training.predictions import translate
from microtome_training.reading import open_tiled, rows_by_slide

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.options.predict import HeatmapConfig
    from microtome_training.tiles import TiledSlide, Tiles

SLIDES, LESIONS, HEATMAPS = "slides.csv", "lesions.csv", "heatmaps"
"""Names in a folder of results."""

Floats = NDArray[np.float32]

_UNFIT = re.compile(r'^\.|[%/\\:*?"<>|\x00-\x1f]|[ .]$')
"""What the name of a folder cannot have, or does not keep, on some system."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredTiles:
    """Tiles and what a model says of them.

    Attributes:
        tiles: n tiles.
        probabilities: (n, C) float32.
        classes: C names; the first is the background, which is no class to look for.
    """

    tiles: Tiles
    probabilities: Floats
    classes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How tiles become scores of slides, and lesions.

    Attributes:
        threshold: Probability from which a tile is positive.
        top_k: Tiles whose mean probability is a slide's ``top_k_mean``.
        min_tiles: Tiles that a lesion has at least.
    """

    threshold: float = 0.5
    top_k: int = 10
    min_tiles: int = 1


def write_tables(
    folder: Path, scored: Iterable[ScoredTiles], options: ScoreOptions | None = None
) -> list[SlideScore]:
    """Write ``slides.csv`` and ``lesions.csv``: a row for each slide, or lesion, and class.

    Args:
        folder: Where to.
        scored: The tiles, of a slide or of several; slides of theirs without any have a row all the
            same.
        options: The defaults if None.

    Returns:
        The slides' scores.

    Raises:
        StoreError: If a table cannot be written.
    """
    options = options or ScoreOptions()
    scores, lesions = [], []
    for slide, found in chain.from_iterable(map(probability_maps, scored)):
        scores.append(
            score_slide(
                found.probability,
                slide=(slide.slide_id, slide.patient_id),
                class_name=found.class_name,
                positive=found.positive,
                top_k=options.top_k,
                threshold=options.threshold,
            )
        )
        resolution = slide.info.resolution
        x, y = resolution.mpp_x, resolution.mpp_y
        lesions += find_lesions(
            found,
            threshold=options.threshold,
            min_tiles=options.min_tiles,
            mpp=None if x is None or y is None else (x, y),
        )
    write_scores(folder / SLIDES, scores)
    write_lesions(folder / LESIONS, lesions)
    return scores


def draw_heatmaps(
    folder: Path,
    scored: ScoredTiles,
    job: TaskJob,
    *,
    options: HeatmapConfig | None = None,
    identity: str = "",
) -> dict[str, dict[str, HeatmapFiles]]:
    """Draw the heatmaps of slides that have tiles, into ``heatmaps/``.

    Args:
        folder: Of the results.
        scored: Their tiles.
        job: Opens slides.
        options: The defaults if None.
        identity: What made the probabilities; pictures that show the same are left as they are.

    Returns:
        By slide id, then by class.

    Raises:
        SlideError: If a slide cannot be opened or read, once the others are drawn.
        StoreError: If a picture cannot be written.
    """
    drawn: dict[str, dict[str, HeatmapFiles]] = {}
    failed: list[SlideError] = []
    for slide, found in probability_maps(scored):
        if not len(found.coords):
            continue
        target = heatmap_path(folder, slide.slide_id, found.class_name, scored.classes)
        try:
            with open_tiled(slide, job) as opened:
                files = draw_heatmap(found, opened, target, options=options, identity=identity)
        except SlideError as error:  # the other slides have theirs all the same
            failed.append(error)
        else:
            drawn.setdefault(slide.slide_id, {})[found.class_name] = files
    if failed:
        raise failed[0]
    return drawn


def heatmap_path(folder: Path, slide_id: str, class_name: str, classes: Sequence[str]) -> Path:
    """Name a slide's heatmap, without its suffix: in a folder of its class where there are more.

    Signs of a class that a folder's name cannot have are written as in a URL, and so is ``%``: no
    two classes share a folder.
    """
    top = folder / HEATMAPS
    if len(classes) > 2:
        top /= _UNFIT.sub(lambda sign: f"%{ord(sign[0]):02X}", class_name)
    return top / slide_id


def by_slide(scored: ScoredTiles) -> Iterator[ScoredTiles]:
    """Give the tiles of each slide by themselves, those without any, too."""
    tiles = scored.tiles
    for slide, mine in zip(tiles.slides, rows_by_slide(tiles), strict=True):
        part = replace(tiles.take(mine), slides=(slide,), slide=np.zeros(len(mine), np.int32))
        yield replace(scored, tiles=part, probabilities=scored.probabilities[mine])


def probability_maps(scored: ScoredTiles) -> Iterator[tuple[TiledSlide, ProbabilityMap]]:
    """Give what is said of each slide and class but the background."""
    for one in by_slide(scored):
        (slide,), tiles, classes = one.tiles.slides, one.tiles, scored.classes
        labels = _labels(tiles, classes)
        for number, name in enumerate(classes[1:], 1):
            yield (
                slide,
                ProbabilityMap(
                    slide_id=slide.slide_id,
                    class_name=name,
                    coords=tiles.coords,
                    probability=one.probabilities[:, number],
                    geometry=slide.geometry,
                    extent=_extent(slide, tiles),
                    positive=None if labels is None else labels == number,
                ),
            )


def _labels(part: Tiles, classes: Sequence[str]) -> NDArray[np.int16] | None:
    labels = translate(part.label, part.classes, classes)
    return labels if (labels >= 0).any() else None


def _extent(slide: TiledSlide, part: Tiles) -> tuple[int, int]:
    """Give the slide's extent; where nothing says it, that of its tiles."""
    if slide.info.width and slide.info.height:
        return slide.info.width, slide.info.height
    last = part.coords[:, :2].max(axis=0) if len(part) else np.zeros(2)
    width, height = np.ceil(last + np.asarray(slide.geometry.size_level0)).astype(int)
    return int(width), int(height)
