"""The tiles of a training: which ones, in which split, found where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError, TaskError
from microtome.store.layout import taken_folders
from microtome.store.survey import find_tilings
from microtome_training.names import TEST, TRAIN, VAL
from microtome_training.options.train import Source, TrainConfig
from microtome_training.patchsource import FoundPatches, find_patches
from microtome_training.reading import MadeFeatures, find_features
from microtome_training.sampling.files import read_sample
from microtome_training.splits import split_slides
from microtome_training.stores import read_tiles, root
from microtome_training.tiles import Tiles
from microtome_training.training.augment import generator

if TYPE_CHECKING:
    from microtome.run.job import TaskJob


@dataclass(frozen=True, eq=False, kw_only=True)
class Cohort:
    """The tiles of a training.

    Attributes:
        tiles: Those that are trained on, of a sample if there is one, and all that are labelled of
            slides that validate and test; of a patch store, what it has of them.
        splits: By slide id.
        labels: (n,) int64, those that are learned: permuted where that is asked for.
        source: Where pixels or features are from.
        patches: The patch store, if that is where.
        features: What the features are, if that is where.
        notes: What is to be told of the tiles.
    """

    tiles: Tiles
    splits: Mapping[str, str]
    labels: NDArray[np.int64]
    source: Source
    patches: FoundPatches | None = None
    features: MadeFeatures = field(default_factory=MadeFeatures)
    notes: tuple[str, ...] = ()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Give the tiles of a split, in the order of their keys' slides and places."""
        slides = [name for name, each in self.splits.items() if each == split]
        return np.nonzero(self.tiles.of_slides(slides))[0]

    def counts(self, split: str) -> NDArray[np.int64]:
        """Count the tiles of each class in a split: (C,)."""
        labels = self.labels[self.rows(split)]
        return np.bincount(labels, minlength=len(self.tiles.classes)).astype(np.int64)


def gather(job: TaskJob, config: TrainConfig) -> Cohort:
    """Read the tiles of a training, without pixels or features, and split them.

    A sample says which tiles are trained on. Slides are shared out by all of their labelled tiles,
    and all of these validate and test.

    Raises:
        TaskError: If they cannot be trained on; says why.
    """
    tiles, drawn = _read_tiles(job, config.sample)
    if len(tiles.classes) < 2:
        raise TaskError(
            f"All tiles are {' '.join(tiles.classes)}: label them with another class, "
            "labels.classes.NAME=[GROUP]."
        )
    source, patches, notes = find_source(config), None, []
    splits = dict(split_slides(tiles, config.split))
    kept = drawn | ~tiles.of_slides(name for name, split in splits.items() if split == TRAIN)
    if source is Source.patches:
        patches = find_patches(tiles, _folders(job, config), job.registry, wanted=drawn)
        if lost := int((kept & ~patches.has).sum()):
            notes.append(
                f"{patches.folder} has {int(kept.sum()) - lost} of {int(kept.sum())} labelled "
                "tiles: training, validation and test are of those alone"
            )
        kept &= patches.has
        patches = patches.take(kept)
    tiles = tiles.take(kept)
    features = MadeFeatures()
    if source is Source.features:
        features = find_features(tiles, config.features, job.registry)
    labels = tiles.label.astype(np.int64)
    if config.shuffle_labels:
        labels = generator("labels", config.seed).permutation(labels)
    cohort = Cohort(
        tiles=tiles,
        splits=splits,
        labels=labels,
        source=source,
        patches=patches,
        features=features,
        notes=tuple(notes),
    )
    _refuse_untaught(cohort, config)
    return cohort


def find_source(config: TrainConfig) -> Source:
    """Say where a training reads its tiles.

    Raises:
        ConfigError: If that is contradictory.
    """
    asked = {Source.features: bool(config.features), Source.patches: bool(config.patches_folder)}
    if config.source is Source.auto:
        if all(asked.values()):
            raise ConfigError("train.features and train.patches_folder: leave one of them out.")
        return next((source for source, is_asked in asked.items() if is_asked), Source.pixels)
    for source, is_asked in asked.items():
        if is_asked and config.source is not source:
            raise ConfigError(f"train.source={config.source.value} has no use for {source.value}.")
    if config.source is Source.features and not config.features:
        raise ConfigError("train.source=features needs their name: train.features=NAME.")
    return config.source


def _read_tiles(job: TaskJob, sample: str) -> tuple[Tiles, NDArray[np.bool_]]:
    """Read the labelled tiles, and which of them are of a sample: (n,) bool, all without one."""
    tiles = read_tiles(job)
    known = tiles.label >= 0
    if not sample:
        return tiles.take(known), np.ones(int(known.sum()), bool)
    part = read_sample(job, sample).tiles(job)
    places = {slide.slide_id: number for number, slide in enumerate(tiles.slides)}
    number = np.array([places[slide.slide_id] for slide in part.slides])
    first = np.searchsorted(tiles.slide, np.arange(len(tiles.slides)))
    drawn = np.zeros(len(tiles), bool)
    drawn[first[number[part.slide]] + part.row] = True
    whose = {slide.slide_id: slide for slide in part.slides}  # a sample knows its patients
    slides = tuple(whose.get(slide.slide_id, slide) for slide in tiles.slides)
    return replace(tiles, slides=slides, sample=part.sample).take(known), drawn[known]


def _folders(job: TaskJob, config: TrainConfig) -> list[Path]:
    """Say where a patch store may be: where it is said, else in the output's tilings."""
    if config.patches_folder:
        return [Path(config.patches_folder)]
    if job.config.tiling not in ("", "auto"):
        return [root(job)]
    found = find_tilings(job.config.output, taken_folders(job.registry))
    return list(dict.fromkeys((root(job), *(each.root for each in found))))


def _refuse_untaught(cohort: Cohort, config: TrainConfig) -> None:
    """See that there is a tile of each class to train on: all slides together had some.

    Raises:
        TaskError: If there is not.
    """
    tiles, learned = cohort.tiles, cohort.counts(TRAIN)
    if learned.all():
        return
    name = tiles.classes[int(learned.argmin())]
    there = np.bincount(tiles.label[cohort.rows(TRAIN)], minlength=len(tiles.classes))
    if config.shuffle_labels and there.all():
        raise TaskError(
            f"With the labels permuted, the class {name} has no tile on the slides that train. "
            f"Permute them otherwise, by another train.seed than {config.seed}."
        )
    of = f"the sample {config.sample}" if config.sample else "the patch store"
    raise TaskError(
        f"Of the class {name} {of} has no tile on the slides that train. Draw more of it, or "
        "share the slides out otherwise (split.seed)."
    )


def summarise(cohort: Cohort) -> dict[str, dict[str, int]]:
    """Count the tiles of each split by class."""
    classes = cohort.tiles.classes
    return {
        split: dict(zip(classes, cohort.counts(split).tolist(), strict=True))
        for split in (TRAIN, VAL, TEST)
        if split in cohort.splits.values()
    }
