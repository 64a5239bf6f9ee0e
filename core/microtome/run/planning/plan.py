"""Resolves a run before any slide is opened: plugins, target, devices, identities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError, InputError
from microtome.plugin.protocols import (
    Segmenter,
    Tiler,
)
from microtome.plugin.registry import Registry
from microtome.plugin.specs import EncoderCard, SegmenterSpec, TilerSpec
from microtome.run.planning.budget import Threads, cpu_budget, share_threads
from microtome.run.planning.encoders import PlannedEncoder, configured, plan_encoders
from microtome.run.planning.labels import check_labels
from microtome.run.planning.models import (
    PlannedModel,
    PlannedPatientEncoder,
    plan_patient_encoders,
    plan_slide_encoders,
)
from microtome.run.planning.quality import PlannedInspector, plan_inspectors
from microtome.run.planning.solve import solve
from microtome.run.planning.target import (
    check_regions,
    describe_target,
    has_target,
    name_tiling,
    settle_target,
    target_fields,
)
from microtome.run.planning.writers import PlannedImages, PlannedStore, PlannedWriter, plan_writers
from microtome.run.settings import (
    Choice,
    RunConfig,
    StagingSettings,
)
from microtome.slide.opening import AUTO
from microtome.store.identity import SPEC_FIELDS, describe
from microtome.store.layout import OutputLayout, refuse_taken

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False, kw_only=True)
class RunPlan:
    """A run with everything resolved that does not depend on a slide.

    Attributes:
        config: As asked for.
        registry: Where the plugins are from.
        segmenter: The object.
        segmenter_spec: Its spec.
        segmenter_fields: What its masks' identity depends on.
        tiler: The object.
        tiler_fields: What its grids' identity depends on.
        reader_fields: The reader's own options, so far as they change what it reads.
        inspectors: In the order asked for.
        encoders: In the order asked for.
        slide_encoders: Likewise, a pooling once for each feature set.
        patient_encoders: Likewise.
        stores: Writers of features.
        images: Writers of pixels.
        layout: Where outputs go.
        notes: What the user should be told before the run starts.
        round: What tells this round of commands from every other; empty for a run by itself.
    """

    config: RunConfig
    registry: Registry
    segmenter: Segmenter
    segmenter_spec: SegmenterSpec
    segmenter_fields: dict[str, Any]
    tiler: Tiler
    tiler_fields: dict[str, Any]
    reader_fields: dict[str, Any]
    inspectors: tuple[PlannedInspector, ...]
    encoders: tuple[PlannedEncoder, ...]
    stores: tuple[PlannedStore, ...]
    images: tuple[PlannedImages, ...]
    layout: OutputLayout
    notes: tuple[str, ...]
    slide_encoders: tuple[PlannedModel, ...] = ()
    patient_encoders: tuple[PlannedPatientEncoder, ...] = ()
    round: str = ""

    @property
    def segmenter_batch(self) -> int:
        """How many slides are segmented in one call."""
        return int(getattr(self.segmenter, "batch_size", self.segmenter_spec.batch))

    @property
    def writers(self) -> tuple[PlannedWriter, ...]:
        """Every writer."""
        return (*self.stores, *self.images)

    def share_threads(self, encoders: Sequence[PlannedEncoder]) -> Threads:
        """Share out the run's CPUs for a pass that feeds some of its encoders."""
        config = self.config
        return share_threads(
            cpu_budget(config.threads),
            encoders,
            workers=config.reader_threads,
            torch=config.torch_threads,
            replicas=max((len(encoder.devices) for encoder in encoders), default=1),
        )

    @property
    def first_line(self) -> str:
        """What the run computes, in one line."""
        task = self.config.task
        if task == "tissue":
            return f"tissue with {self.config.segmenter.plugin}"
        target = describe_target(self.tiler_fields)
        if task == "coords" or not self.encoders:
            return f"coordinates {target}, no encoder"
        told = [f"encoder {' and '.join(map(str, self.encoders))}", target]
        for kind in ("slide_encoder", "patient_encoder"):
            if models := getattr(self, f"{kind}s"):
                told.append(f"{kind.replace('_', ' ')} {' and '.join(map(str, models))}")
        return ", ".join(told)


def check_run(config: RunConfig, registry: Registry) -> None:
    """Refuse what is wrong with a run whatever its slides: before anything is made.

    Raises:
        ConfigError: If the configuration describes no run.
        PluginError: If a plugin is unknown, broken or misses a library.
        InputError: If the mpp CSV is not there.
    """
    check_labels(config)
    for each in check_settings(config, registry) if config.task == "process" else ():
        for kind in ("encoder", "slide_encoder", "patient_encoder"):
            for choice in getattr(each, f"{kind}s"):
                registry.load(kind, choice.plugin)


def check_settings(config: RunConfig, registry: Registry) -> tuple[RunConfig, ...]:
    """Refuse what is wrong with a run whatever its slides and the packages of its encoders.

    Returns:
        Its passes, as of `solve`.

    Raises:
        ConfigError: If the configuration describes no run.
        PluginError: If a plugin is unknown or broken, or one that is no encoder misses a library.
        InputError: If the mpp CSV is not there.
    """
    tiler_spec, tiler_config = plan_tiler(config, registry, {}, [])
    registry.create("tiler", tiler_spec.name, tiler_config)
    segmenter_spec, segmenter_config = configured(registry, "segmenter", config.segmenter)
    registry.create("segmenter", segmenter_spec.name, segmenter_config)
    _reader_fields(config, registry)
    plan_writers(config, registry)
    for choice in config.inspectors:
        registry.load("inspector", choice.plugin)
    check_labels(config)
    passes = solve(config, registry)
    if config.mpp_csv is not None and not config.mpp_csv.is_file():
        raise InputError(f"There is no file mpp_csv={config.mpp_csv}.")
    return passes


def make_plan(config: RunConfig, registry: Registry) -> RunPlan:
    """Resolve a run: find and make its plugins, settle the target, name the tiling.

    Raises:
        ConfigError: If the configuration describes no run.
        PluginError: If a plugin is unknown, broken or misses a library.
        EncoderError: If an encoder's model is not what it says.
    """
    check_labels(config)
    notes = list(config.derived)
    encoders = plan_encoders(config, registry, notes)
    cards = {encoder.name: encoder.card for encoder in encoders}
    tiler_spec, tiler_config = plan_tiler(config, registry, cards, notes)
    slide_encoders = plan_slide_encoders(config, registry, encoders, notes)
    stores, images = plan_writers(config, registry)
    segmenter_spec, segmenter_config = configured(registry, "segmenter", config.segmenter)
    if not isinstance(segmenter_spec, SegmenterSpec):
        raise ConfigError(f"{config.segmenter.plugin!r} is no segmenter.")
    segmenter: Segmenter = registry.create("segmenter", segmenter_spec.name, segmenter_config)
    segmenter_fields = describe(segmenter_spec, segmenter_config)
    if hasattr(segmenter, "weights"):
        segmenter_fields["weights"] = dict(segmenter.weights())
    tiler_fields = describe(tiler_spec, tiler_config) | target_fields(tiler_config)
    return RunPlan(
        config=config,
        registry=registry,
        segmenter=segmenter,
        segmenter_spec=segmenter_spec,
        segmenter_fields=segmenter_fields,
        tiler=registry.create("tiler", tiler_spec.name, tiler_config),
        tiler_fields=tiler_fields,
        reader_fields=_reader_fields(config, registry),
        inspectors=plan_inspectors(config, registry),
        encoders=encoders,
        slide_encoders=slide_encoders,
        patient_encoders=plan_patient_encoders(config, registry, encoders, slide_encoders, notes),
        stores=stores,
        images=images,
        layout=plan_layout(config, tiler_fields, registry),
        notes=tuple(notes),
        round=name_round(config),
    )


def name_round(config: RunConfig) -> str:
    """Name the round that a run is part of; empty for a run by itself.

    By its word and by what is asked for: one job of a sweep is not another.
    """
    if not config.claims.round:
        return ""
    asked = replace(
        config,
        run_dir=None,
        threads=None,
        reader_threads=None,
        torch_threads=None,
        tile_devices=(),
        engine=Choice(plugin="inline"),
        staging=StagingSettings(),
        resolved={},
    )
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def plan_tiler(
    config: RunConfig, registry: Registry, cards: Mapping[str, EncoderCard], notes: list[str]
) -> tuple[TilerSpec, Any]:
    """Give the tiler of a run with what its encoders' cards fill in, and note what that is.

    Raises:
        ConfigError: If its options make no sense together.
    """
    spec, options = configured(registry, "tiler", config.tiler)
    if has_target(options):
        options, told = settle_target(options, cards)
        notes += told if config.task != "tissue" else []
    if hasattr(options, "region_tiles") and config.task != "tissue":
        check_regions(config, options.region_tiles)
    return spec, options


def plan_layout(
    config: RunConfig, tiler_fields: Mapping[str, Any], registry: Registry
) -> OutputLayout:
    """Say where a pass's outputs go.

    Raises:
        ConfigError: If the tiling is named like a folder of something else.
    """
    name = name_tiling(tiler_fields) if config.tiling == "auto" else config.tiling
    refuse_taken(name, registry)
    return OutputLayout(config.output, name)


def _reader_fields(config: RunConfig, registry: Registry) -> dict[str, Any]:
    if config.reader.plugin == AUTO:
        return {}
    registry.load("reader", config.reader.plugin)  # a missing library is told before any slide
    fields = describe(*configured(registry, "reader", config.reader))
    return {name: value for name, value in fields.items() if name not in SPEC_FIELDS}
