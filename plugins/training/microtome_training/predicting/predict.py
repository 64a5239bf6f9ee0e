"""A trained model's probabilities of tiles, after seeing that they are what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.store.identity import difference
from microtome_training.names import FEATURES
from microtome_training.options.predict import MPP_TOLERANCE
from microtome_training.reading import (
    IMPORTED,
    Batch,
    made_by,
    read_features,
    read_pixels,
    require_features,
    rows_by_slide,
)

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome_training.classifier import Classifier
    from microtome_training.tiles import TiledSlide, Tiles


def predict_tiles(
    classifier: Classifier,
    tiles: Tiles,
    job: TaskJob,
    *,
    batch_size: int = 64,
    mpp_tolerance: float = MPP_TOLERANCE,
) -> NDArray[np.float32]:
    """Give a model's probabilities of tiles, of pixels read from their slides or stored features.

    Args:
        classifier: The model.
        tiles: n tiles, in any order.
        job: Says how slides are read; its reporter hears of each slide's progress.
        batch_size: Tiles that the model is given at once.
        mpp_tolerance: Share by which tiles may differ from the model's in µm per pixel.

    Returns:
        (n, C) float32; rows sum to 1.

    Raises:
        TaskError: If the tiles are not what the model takes; says both.
        SlideError: If a slide cannot be opened or read.
        StoreError: If features cannot be read.
    """
    probabilities = np.empty((len(tiles), len(classifier.classes)), np.float32)
    for slide, mine in zip(tiles.slides, rows_by_slide(tiles), strict=True):
        if not len(mine):
            continue
        mine = mine[np.argsort(tiles.row[mine], kind="stable")]
        check_fit(classifier, slide, job, mpp_tolerance=mpp_tolerance)
        job.reporter.stage(slide.slide_id, "predict", len(mine))
        for rows, given in _batches(classifier, slide, tiles.take(mine), job, batch_size):
            probabilities[mine[rows]] = classifier.probabilities(given)
            job.reporter.advance(slide.slide_id, len(rows))
    return probabilities


def check_fit(
    classifier: Classifier,
    slide: TiledSlide,
    job: TaskJob,
    *,
    mpp_tolerance: float = MPP_TOLERANCE,
) -> None:
    """Refuse a slide whose tiles are not what a model takes.

    Raises:
        TaskError: If they are of another size, resolution or level, or their features are missing
            or another encoder's.
    """
    takes, name = classifier.takes, slide.slide_id
    if slide.geometry.size != takes.size:
        raise TaskError(
            f"{name} has tiles of {slide.geometry.size} px, and {classifier.path} takes tiles of "
            f"{takes.size} px. Tile it so in another tiling: tiler.size={takes.size} tiler.name=…."
        )
    if takes.mpp is not None:
        _check_mpp(classifier, slide, takes.mpp, mpp_tolerance)
    elif takes.level not in (None, slide.geometry.target_level):
        raise TaskError(
            f"{classifier.path} learned from tiles of level {takes.level}, of which nothing says "
            f"how many µm a pixel is, and those of {name} are not of that level. Tile it so in "
            f"another tiling: tiler.level={takes.level} tiler.name=…."
        )
    if takes.kind == FEATURES:
        require_features(slide, takes.features)
        _check_encoder(classifier, slide, job)


def _check_mpp(classifier: Classifier, slide: TiledSlide, mpp: float, tolerance: float) -> None:
    if slide.mpp is None:
        raise TaskError(
            f"Nothing says how many µm a pixel of {slide.slide_id} is, and {classifier.path} "
            f"learned from tiles of {mpp:.4g}. Give it with mpp_csv=, and tile the slide anew."
        )
    if max(slide.mpp / mpp, mpp / slide.mpp) > 1 + tolerance:
        raise TaskError(
            f"{slide.slide_id} has tiles of {slide.mpp:.4g} µm per pixel, and {classifier.path} "
            f"learned from tiles of {mpp:.4g}. Tile it so in another tiling, or raise "
            "predict.mpp_tolerance."
        )


def _check_encoder(classifier: Classifier, slide: TiledSlide, job: TaskJob) -> None:
    takes = classifier.takes
    with slide.open(job.registry) as stored:
        made = made_by(stored.feature_attributes(takes.features))
        dim = stored.feature_shape(takes.features)[1]
    # Whether an encoder of ours made what was imported, no file says.
    is_told = takes.encoder and made and (IMPORTED in takes.encoder) == (IMPORTED in made)
    if is_told and made != dict(takes.encoder):
        told = difference(takes.encoder, made)
        raise TaskError(
            f"features/{takes.features} of {slide.slide_id} are of another encoder than "
            f"{classifier.path} learned from: {told}. Encode the slide as then."
        )
    if takes.dim and dim != takes.dim:
        raise TaskError(
            f"features/{takes.features} of {slide.slide_id} have {dim} columns, and "
            f"{classifier.path} takes {takes.dim}."
        )


def _batches(
    classifier: Classifier, slide: TiledSlide, tiles: Tiles, job: TaskJob, batch_size: int
) -> Iterator[Batch]:
    takes = classifier.takes
    if takes.kind == FEATURES:
        return read_features(slide, tiles.row, takes.features, job, batch_size=batch_size)
    return read_pixels(slide, tiles.coords, job, batch_size=batch_size)
