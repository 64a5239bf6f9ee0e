"""Makes all that a training needs out of what a run asks for, before anything is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import ConfigError, TaskError
from microtome.plugin.specs import Transform
from microtome.plugin.specs.base import RUNTIME
from microtome.plugin.weights.files import file_digest
from microtome.store.identity import Identity, make_identity
from microtome_training.names import (
    FEATURES,
    LINEAR,
    OF_FEATURES,
    OURS,
    PIXELS,
    PRETRAINED,
    RANDOM,
    TRAIN,
)
from microtome_training.options.checks import check_heatmap, check_measures
from microtome_training.options.train import AugmentWhich, Source, TrainConfig
from microtome_training.reading import rows_by_slide
from microtome_training.tiles import Tiles
from microtome_training.training.augment import Augmentation
from microtome_training.training.cohort import Cohort, find_source

if TYPE_CHECKING:
    from torch import nn

    from microtome.run.job import TaskJob
    from microtome_training.classifier import Description
    from microtome_training.training.data import TileSource

VERSION = 1
"""Raised when a training with equal options gives another model."""

_LATER = ("evaluate", "heatmap")
_RESOLVED = (*_LATER, "split", "sample", "source", "model", "weights")
"""Options that an identity has by what they came to."""

_DEFAULT_MODEL = "resnet50"


def check_options(config: TrainConfig) -> None:
    """Refuse options that make no sense, also those of what comes after the training.

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
    if config.model in OURS and config.weights == PRETRAINED:
        raise ConfigError(
            f"Of {config.model} there are no pretrained weights: leave train.weights out, or give "
            "the path of a file."
        )
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
    check_measures(config.evaluate)
    check_heatmap(config.heatmap)


def model_of(config: TrainConfig) -> str:
    """Say which network is trained."""
    if config.model != "auto":
        return config.model
    return LINEAR if find_source(config) is Source.features else _DEFAULT_MODEL


def identify(cohort: Cohort, config: TrainConfig) -> Identity:
    """Identify a training: its options, its tiles with their labels, its split.

    Raises:
        TaskError: If weights that it begins with are not there.
    """
    tiles = cohort.tiles
    chosen = {
        "version": VERSION,
        "train": describe(config, leave=_RESOLVED),
        "model": model_of(config),
        "weights": _name_weights(config),
        "source": cohort.source.value,
        "classes": list(tiles.classes),
        "tiles": _digest(tiles),
        "coords": {s.slide_id: s.identity for s in _used(tiles)},
        "split": dict(sorted(cohort.splits.items())),
        "encoder": dict(cohort.features.encoder),
        "patches": {} if cohort.patches is None else cohort.patches.identities(),
    }
    if cohort.source is Source.features:
        chosen["features"] = {
            s.slide_id: cohort.features.identities[s.slide_id] for s in _used(tiles)
        }
    return make_identity("training", chosen)


def _digest(tiles: Tiles) -> str:
    """Hash which tiles there are, and their labels."""
    digest = hashlib.sha256()
    for slide, rows in zip(tiles.slides, rows_by_slide(tiles), strict=True):
        if len(rows):
            digest.update(json.dumps([slide.slide_id, len(rows)]).encode())
            digest.update(tiles.coords[rows].astype("<i4").tobytes())
            digest.update(tiles.label[rows].astype("<i2").tobytes())
    return digest.hexdigest()


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
    path = _weights_path(config.weights)
    if path is None:
        ours = model_of(config) in OURS and config.weights == "auto"
        return RANDOM if ours or config.weights == RANDOM else PRETRAINED
    if not path.expanduser().is_file():
        raise TaskError(
            f"train.weights={path} names no file. Say pretrained, random or the path of a file."
        )
    return file_digest(path.expanduser())


def _weights_path(weights: str) -> Path | None:
    """Give the path that ``train.weights`` names, if it does."""
    return None if weights in ("auto", PRETRAINED, RANDOM) else Path(weights)


def _used(tiles: Tiles) -> list[Any]:
    return [tiles.slides[number] for number in np.unique(tiles.slide).tolist()]


def describe_classifier(cohort: Cohort, config: TrainConfig, identity: Identity) -> Description:
    """Say what the trained classifier will be.

    Raises:
        ConfigError: If there is no such network.
        TaskError: If the features differ.
    """
    from microtome_training.classifier import Description, Takes
    from microtome_training.training.models import Architecture, find_needs

    tiles, model = cohort.tiles, model_of(config)
    geometry = tiles.slides[int(tiles.slide[0])].geometry
    mpps = [slide.mpp for slide in _used(tiles) if slide.mpp is not None]
    takes = Takes(
        kind=FEATURES if cohort.source is Source.features else PIXELS,
        size=geometry.size,
        mpp=float(np.median(mpps)) if mpps else None,
        magnification=geometry.target_magnification,
        level=geometry.target_level,
    )
    architecture = Architecture(
        model=model, classes=len(tiles.classes), hidden=config.hidden, dropout=config.dropout
    )
    if takes.kind == FEATURES:
        takes = replace(takes, features=config.features, encoder=dict(cohort.features.encoder))
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
    from microtome_training.training.data import PixelSource
    from microtome_training.training.features import FeatureSource

    tiles, takes = cohort.tiles, description.takes
    if cohort.source is Source.features:
        source = FeatureSource(tiles, takes.features, job.registry)
        described = replace(
            description,
            takes=replace(takes, dim=source.dim),
            architecture=replace(description.architecture, dim=source.dim),
        )
        return source, described
    transform = takes.transform or Transform(resize=None, crop=None)
    if cohort.patches is not None:
        return cohort.patches.source(transform, takes.size), description
    return PixelSource(tiles, transform, job.config.reader), description


def make_network(
    cohort: Cohort, config: TrainConfig, description: Description, source: TileSource
) -> tuple[nn.Module, dict[str, str]]:
    """Make the network as it begins: by the seed, and by the weights that were asked for.

    Returns:
        The network, and which weights these are: source, file, commit and SHA-256; empty for
        random ones.

    Raises:
        WeightsError: If they cannot be had or do not fit.
    """
    import torch

    from microtome_training.training.data import read_ahead
    from microtome_training.training.models import Standardise, find_weights, load_weights

    architecture = description.architecture
    file = find_weights(architecture.model, config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if file is None:
            network = architecture.build()
        else:
            published = _weights_path(config.weights) is None
            network = load_weights(architecture, file, published=published)
    standardise = next((m for m in network.modules() if isinstance(m, Standardise)), None)
    if standardise is not None:
        parts = read_ahead(source, cohort.rows(TRAIN), threads=1)
        standardise.measure(torch.from_numpy(given) for _, given in parts)
    return network, {} if file is None else file.facts


def make_augmentation(cohort: Cohort, config: TrainConfig) -> Augmentation | None:
    """Give the transforms of training tiles; None where there are none."""
    if cohort.source is Source.features or config.augment.which is AugmentWhich.none:
        return None
    return Augmentation(config.augment, config.seed)
