"""Makes all that a training needs out of what a run asks for, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from microtome.errors import ConfigError, TaskError
from microtome.plugin.specs import Transform
from microtome.plugin.specs.base import RUNTIME
from microtome.plugin.weights.files import file_digest
from microtome.store.identity import Identity, make_identity
from microtome_training.classifier import FEATURES, PIXELS, Description, Takes
from microtome_training.options.train import AugmentWhich, Source, TrainConfig
from microtome_training.patchsource import FoundPatches, find_patches
from microtome_training.splits import split_slides
from microtome_training.tiles import Tiles, read_tiles, root
from microtome_training.training.augment import Augmentation, generator
from microtome_training.training.data import PixelSource, TileSource, encoder_of, read_features
from microtome_training.training.models import (
    LINEAR,
    OF_FEATURES,
    OURS,
    PRETRAINED,
    RANDOM,
    Architecture,
    Standardise,
    find_needs,
    find_weights,
    load_weights,
    weights_path,
)

if TYPE_CHECKING:
    from microtome.run.job import TaskJob

VERSION = 1
"""Raised when a training with equal options gives another model."""

_LATER = ("evaluate", "heatmap")
_RESOLVED = (*_LATER, "split", "sample", "source", "model", "weights")
"""Options that an identity has by what they came to."""

_DEFAULT_MODEL = "resnet50"
TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True, eq=False, kw_only=True)
class Cohort:
    """The tiles of a training.

    Attributes:
        tiles: All that are labelled, and that are in the patch store if they are read from one.
        splits: By slide id.
        labels: (n,) int64, those that are learned: permuted where that is asked for.
        source: Where pixels or features are from.
        patches: The patch store, if that is where.
        encoder: What made the features, if that is where.
    """

    tiles: Tiles
    splits: Mapping[str, str]
    labels: NDArray[np.int64]
    source: Source
    patches: FoundPatches | None = None
    encoder: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Give the tiles of a split, in the order of their keys' slides and places."""
        slides = [name for name, each in self.splits.items() if each == split]
        return np.nonzero(self.tiles.of_slides(slides))[0]

    def counts(self, split: str) -> NDArray[np.int64]:
        """Count the tiles of each class in a split: (C,)."""
        labels = self.labels[self.rows(split)]
        return np.bincount(labels, minlength=len(self.tiles.classes)).astype(np.int64)


def check_options(config: TrainConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        ConfigError: Saying which.
    """
    least = {
        "max_epochs": 1, "batch_size": 1, "aug_factor": 1, "devices": 1, "patience": 0,
        "save_interval": 0, "memory_gb": 0, "weight_decay": 0, "momentum": 0, "hidden": 1,
    }  # fmt: skip
    for name, most in least.items():
        if not getattr(config, name) >= most:
            raise ConfigError(f"train.{name}={getattr(config, name)} must be {most} or more.")
    if not 0 < config.lr < float("inf"):
        raise ConfigError(f"train.lr={config.lr:g} must be above 0.")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"train.dropout={config.dropout:g} must be 0 or more and below 1.")
    if config.focal.gamma < 0 or config.ohem.ratio < 0 or config.ohem.floor < 1:
        raise ConfigError("train.focal.gamma and .ohem.ratio must be 0 or more, .ohem.floor 1.")
    if config.batch_size < config.devices:
        raise ConfigError("train.batch_size is shared by train.devices: give each a tile.")
    source = find_source(config)
    if (config.model in OF_FEATURES) != (source is Source.features) and config.model != "auto":
        takes = FEATURES if config.model in OF_FEATURES else PIXELS
        raise ConfigError(
            f"train.model={config.model} takes {takes}, and the source is {source.value}: name "
            "stored features (train.features=NAME) with linear or mlp, and none with others."
        )
    Augmentation(config.augment, config.seed)


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


def model_of(config: TrainConfig) -> str:
    """Say which network is trained."""
    if config.model != "auto":
        return config.model
    return LINEAR if find_source(config) is Source.features else _DEFAULT_MODEL


def gather(job: TaskJob, config: TrainConfig) -> Cohort:
    """Read the tiles of a training, without pixels or features, and split them.

    Raises:
        TaskError: If they cannot be trained on; says why.
    """
    tiles = read_tiles(job, sample=config.sample)
    tiles = tiles.take(tiles.label >= 0)
    if len(tiles.classes) < 2:
        raise TaskError(
            f"All tiles are {' '.join(tiles.classes)}: label them with another class, "
            "labels.classes.NAME=[GROUP]."
        )
    source, patches, encoder = find_source(config), None, {}
    if source is Source.patches:
        folder = Path(config.patches_folder) if config.patches_folder else root(job)
        patches = find_patches(tiles, folder, job.registry)
        tiles = tiles.take(patches.has)
    if source is Source.features:
        encoder = encoder_of(tiles, config.features, job.registry)
    splits = dict(split_slides(tiles, config.split))
    labels = tiles.label.astype(np.int64)
    if config.shuffle_labels:
        labels = generator("labels", config.seed).permutation(labels)
    return Cohort(
        tiles=tiles, splits=splits, labels=labels, source=source, patches=patches, encoder=encoder
    )


def identify(cohort: Cohort, config: TrainConfig) -> Identity:
    """Identify a training: its options, its tiles with their labels, its split.

    Raises:
        TaskError: If weights that it begins with are not there.
    """
    tiles = cohort.tiles
    taken = list(zip(tiles.keys(), tiles.label.tolist(), strict=True))
    chosen = {
        "version": VERSION,
        "train": describe(config, leave=_RESOLVED),
        "model": model_of(config),
        "weights": _name_weights(config),
        "source": cohort.source.value,
        "classes": list(tiles.classes),
        "tiles": make_identity("tiles", {"tiles": taken}).digest,
        "coords": {s.slide_id: s.identity for s in _used(tiles)},
        "split": dict(sorted(cohort.splits.items())),
        "encoder": dict(cohort.encoder),
    }
    return make_identity("training", chosen)


def describe(config: Any, *, leave: tuple[str, ...] = _LATER) -> dict[str, Any]:
    """Give the options that change a result and are not at their defaults, as plain values."""
    default, found = type(config)(), {}
    for each in fields(config):
        if each.metadata.get(RUNTIME) or each.name in leave:
            continue
        value = getattr(config, each.name)
        if is_dataclass(value):
            if nested := describe(value):
                found[each.name] = nested
        elif value != getattr(default, each.name):
            found[each.name] = value.value if isinstance(value, Enum) else value
    return found


def _name_weights(config: TrainConfig) -> str:
    """Name the weights that a training begins with: a file by its content."""
    path = weights_path(config.weights)
    if path is None:
        ours = model_of(config) in OURS and config.weights == "auto"
        return RANDOM if ours or config.weights == RANDOM else PRETRAINED
    if not path.expanduser().is_file():
        raise TaskError(
            f"train.weights={path} names no file. Say pretrained, random or the path of a file."
        )
    return file_digest(path.expanduser())


def _used(tiles: Tiles) -> list[Any]:
    return [tiles.slides[number] for number in np.unique(tiles.slide).tolist()]


def describe_classifier(cohort: Cohort, config: TrainConfig, identity: Identity) -> Description:
    """Say what the trained classifier will be.

    Raises:
        ConfigError: If there is no such network.
        TaskError: If the features differ.
    """
    tiles, model = cohort.tiles, model_of(config)
    geometry = tiles.slides[int(tiles.slide[0])].geometry
    mpps = [slide.mpp for slide in _used(tiles) if slide.mpp is not None]
    takes = Takes(
        kind=FEATURES if cohort.source is Source.features else PIXELS,
        size=geometry.size,
        mpp=float(np.median(mpps)) if mpps else None,
        magnification=geometry.target_magnification,
    )
    architecture = Architecture(
        model=model, classes=len(tiles.classes), hidden=config.hidden, dropout=config.dropout
    )
    if takes.kind == FEATURES:
        takes = replace(takes, features=config.features, encoder=dict(cohort.encoder))
    else:
        needs = find_needs(model)
        size = config.input_size or needs.size
        if needs.size and size != needs.size:
            architecture = replace(architecture, arguments={"img_size": size})
        resize = None if size in (None, geometry.size) else size
        transform = Transform(
            resize=resize, resize_mode="exact", crop=None, mean=needs.mean, std=needs.std
        )
        takes = replace(takes, transform=transform)
    provenance = {"identity": identity.digest, "options": describe(config), "seed": config.seed}
    return Description(
        architecture=architecture, classes=tiles.classes, takes=takes, provenance=provenance
    )


def open_source(
    cohort: Cohort, description: Description, job: TaskJob
) -> tuple[TileSource, Description]:
    """Open where the tiles are; features say how wide they are.

    Raises:
        TaskError: If features are missing or differ.
        MicrotomeError: If something cannot be opened.
    """
    tiles, takes = cohort.tiles, description.takes
    if cohort.source is Source.features:
        held = read_features(tiles, takes.features, job.registry)
        dim = held.held.shape[1]
        described = replace(
            description,
            takes=replace(takes, dim=dim),
            architecture=replace(description.architecture, dim=dim),
        )
        return held, described
    transform = takes.transform or Transform(resize=None, crop=None)
    if cohort.patches is not None:
        return cohort.patches.source(transform, takes.size), description
    return PixelSource(tiles, transform), description


def make_network(
    cohort: Cohort, config: TrainConfig, description: Description, source: TileSource
) -> nn.Module:
    """Make the network as it begins: by the seed, and by the weights that were asked for.

    Raises:
        WeightsError: If they cannot be had or do not fit.
    """
    architecture = description.architecture
    file = find_weights(architecture.model, config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if file is None:
            network = architecture.build()
        else:
            published = weights_path(config.weights) is None
            network = load_weights(architecture, file, published=published)
    standardise = next((m for m in network.modules() if isinstance(m, Standardise)), None)
    if standardise is not None:
        standardise.measure(torch.from_numpy(source.read(cohort.rows(TRAIN))))
    return network


def make_augmentation(cohort: Cohort, config: TrainConfig) -> Augmentation | None:
    """Give the transforms of training tiles; None where there are none."""
    if cohort.source is Source.features or config.augment.which is AugmentWhich.none:
        return None
    return Augmentation(config.augment, config.seed)


def summarise(cohort: Cohort) -> dict[str, dict[str, int]]:
    """Count the tiles of each split by class."""
    classes = cohort.tiles.classes
    return {
        split: dict(zip(classes, cohort.counts(split).tolist(), strict=True))
        for split in (TRAIN, VAL, TEST)
        if split in cohort.splits.values()
    }
