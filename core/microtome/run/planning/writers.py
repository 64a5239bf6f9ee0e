"""Writers in a run: what is planned of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import ConfigError, StoreError
from microtome.plugin.options import configure
from microtome.plugin.protocols import PatchWriter, StoredSlide, StoreWriter, TileWriter
from microtome.plugin.registry import Registry
from microtome.plugin.specs import WriterSpec
from microtome.run.planning.labels import wants_labels
from microtome.run.settings import RunConfig
from microtome.store.arrays import keeps_arrays
from microtome.store.identity import describe
from microtome.store.patches import LABELLED


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedWriter:
    """A writer of a run.

    Attributes:
        name: Its node's key.
        spec: Its spec.
        fields: What its output's identity depends on.
    """

    name: str
    spec: WriterSpec
    fields: dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedStore(PlannedWriter):
    """A writer of coordinates and features."""

    writer: StoreWriter

    def open_stored(self, path: Path) -> StoredSlide:
        """Open a slide that is to be added to.

        Raises:
            StoreError: If it is none of this writer's, or is damaged; it says what to do, also
                where a stranger's writer does not.
        """
        try:
            return self.writer.open_stored(path)
        except StoreError as error:
            told = str(error)
            if "force=true" in told or "Delete" in told:
                raise
            raise StoreError(f"{told.rstrip('.')}. Move it away, or use force=true.") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedImages(PlannedWriter):
    """A writer of tile images."""

    writer: TileWriter | PatchWriter

    @property
    def labelled(self) -> bool:
        """Whether it takes the tiles that have a label, with it."""
        return self.spec.consumes == LABELLED


def plan_writers(
    config: RunConfig, registry: Registry
) -> tuple[tuple[PlannedStore, ...], tuple[PlannedImages, ...]]:
    """Make a run's writers.

    Raises:
        ConfigError: If they do not fit the task or each other.
        PluginError: If a plugin is unknown, broken or misses a library.
    """
    stores, images = [], []
    for choice in config.writers if config.task != "tissue" else ():
        spec = registry.find("writer", choice.plugin).spec
        if not isinstance(spec, WriterSpec):
            raise ConfigError(f"{choice.plugin!r} is no writer.")
        options = configure(spec) if choice.config is None else choice.config
        common: dict[str, Any] = {
            "name": choice.name,
            "spec": spec,
            "writer": registry.create("writer", spec.name, options),
            "fields": describe(spec, options),
        }
        if spec.consumes == "features":
            stores.append(PlannedStore(**common))
        elif spec.consumes in ("pixels", LABELLED):
            images.append(PlannedImages(**common))
        else:
            raise ConfigError(
                f"writer.{choice.name} consumes {spec.consumes!r}, which no run gives yet."
            )
    if config.task == "coords" and images:
        raise ConfigError(
            f"task=coords reads no tile, so writer {images[0].name!r} has nothing to write; "
            "for tile images without features say task=process encoder=[]."
        )
    if config.task != "tissue" and not stores and not images:
        raise ConfigError(f"task={config.task} needs a writer; writer=[] leaves none.")
    if config.encoders and config.task == "process" and not stores:
        raise ConfigError(
            "Features need a writer that keeps them: add one to writer=[…], or say encoder=[]."
        )
    if config.inspectors and config.task != "tissue" and not (stores or config.quality.drop):
        raise ConfigError(
            "Quality columns need a writer that keeps them: add one to writer=[…], or drop tiles "
            "by them with quality.drop=true."
        )
    _refuse_unlabelled(config, images, registry)
    _refuse_lost_arrays(config, stores)
    _refuse_shared_paths([*stores, *images])
    return tuple(stores), tuple(images)


def _refuse_unlabelled(
    config: RunConfig, images: Sequence[PlannedImages], registry: Registry
) -> None:
    """Refuse before any work to store images with labels where nothing can label them."""
    names = [image.name for image in images if image.labelled]
    if not names or wants_labels(config):
        return
    spec = registry.find("tiler", config.tiler.plugin).spec
    if not getattr(spec, "labels", False):
        raise ConfigError(
            f"writer={names[0]} stores tiles with their labels, and labels.classes is not given: "
            "say which groups of outlines are what, labels.classes.tumor=[Tumor,metastases], with "
            "annotations=FOLDER or a manifest's annotation_path, also where the output is labelled "
            "already; or take a tiler that brings labels."
        )


def _refuse_lost_arrays(config: RunConfig, stores: Sequence[PlannedStore]) -> None:
    """Refuse before any work what is neither features nor columns, where a writer keeps no more."""
    asked = [f"slide_encoder={choice.name}" for choice in config.slide_encoders]
    asked += [f"patient_encoder={choice.name}" for choice in config.patient_encoders]
    asked += [
        f"encoder.{choice.name}.{what}=true"
        for choice in config.encoders
        for what in ("tokens", "attention")
        if getattr(choice, what)
    ]
    asked += ["region_features=true"] * config.region_features
    regions = getattr(config.tiler.config, "region_tiles", None)
    asked += [] if regions is None else [f"tiler.region_tiles={regions}"]
    for store in stores if asked else ():
        if not keeps_arrays(store.writer):
            raise ConfigError(
                f"writer={store.name} keeps no arrays beside features, and {', '.join(asked)} asks "
                "for some. Use a writer that does, writer=hdf5 or writer=zarr, or leave that out."
            )


def _refuse_shared_paths(writers: Sequence[PlannedWriter]) -> None:
    taken: dict[tuple[str, str], str] = {}
    for writer in writers:
        place = (writer.spec.folder, writer.spec.suffix)
        if place in taken:
            raise ConfigError(
                f"The writers {taken[place]!r} and {writer.name!r} write the same files."
            )
        taken[place] = writer.name
