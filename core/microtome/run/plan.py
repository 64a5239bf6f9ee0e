"""Resolves a run before any slide is opened: plugins, target, devices, identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from microtome.errors import ConfigError, EncoderError
from microtome.plugin.protocols import Encoder, Segmenter, StoreWriter, Tiler, TileWriter
from microtome.plugin.registry import Registry, configure
from microtome.plugin.specs import (
    EncoderCard,
    EncoderSpec,
    SegmenterSpec,
    TilerSpec,
    WriterSpec,
)
from microtome.run.devices import resolve_device, resolve_precision
from microtome.run.settings import OVERLAYS, TASKS, Choice, EncoderChoice, RunConfig
from microtome.store.identity import describe
from microtome.store.layout import OutputLayout

DEFAULT_SIZE = 256
DEFAULT_MAGNIFICATION = 20.0


@dataclass(eq=False, kw_only=True)
class PlannedEncoder:
    """An encoder of a run: made, not loaded.

    Attributes:
        name: Of its feature set.
        spec: Its spec.
        encoder: The object.
        device: Resolved.
        precision: Resolved.
        batch_size: Tiles at once.
        fields: What its features' identity depends on.
        loaded: Whether its weights are.
    """

    name: str
    spec: EncoderSpec
    encoder: Encoder
    device: str
    precision: str
    batch_size: int
    fields: dict[str, Any]
    loaded: bool = False

    @property
    def card(self) -> EncoderCard:
        """What is known of the model."""
        return self.encoder.card

    def ensure_loaded(self) -> None:
        """Load the weights once.

        Raises:
            EncoderError: If they cannot be had.
        """
        if not self.loaded:
            self.encoder.load(self.device, self.precision)
            self.loaded = True

    def __str__(self) -> str:
        """Name it with its dimension, device and precision."""
        return f"{self.name} ({self.card.dim} columns, {self.device}, {self.precision})"


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


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedImages(PlannedWriter):
    """A writer of tile images."""

    writer: TileWriter


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
        encoders: In the order asked for.
        stores: Writers of features.
        images: Writers of pixels.
        layout: Where outputs go.
        notes: What the user should be told before the run starts.
    """

    config: RunConfig
    registry: Registry
    segmenter: Segmenter
    segmenter_spec: SegmenterSpec
    segmenter_fields: dict[str, Any]
    tiler: Tiler
    tiler_fields: dict[str, Any]
    encoders: tuple[PlannedEncoder, ...]
    stores: tuple[PlannedStore, ...]
    images: tuple[PlannedImages, ...]
    layout: OutputLayout
    notes: tuple[str, ...]

    @property
    def writers(self) -> tuple[PlannedWriter, ...]:
        """Every writer."""
        return (*self.stores, *self.images)

    @property
    def first_line(self) -> str:
        """What the run computes, in one line."""
        task = self.config.task
        if task == "tissue":
            return f"tissue with {self.config.segmenter.plugin}"
        target = describe_target(self.tiler_fields)
        if task == "coords" or not self.encoders:
            return f"coordinates {target}, no encoder"
        return f"encoder {' and '.join(map(str, self.encoders))}, {target}"


def make_plan(config: RunConfig, registry: Registry) -> RunPlan:
    """Resolve a run: find and make its plugins, settle the target, name the tiling.

    Raises:
        ConfigError: If the configuration describes no run.
        PluginError: If a plugin is unknown, broken or misses a library.
        EncoderError: If an encoder's model is not what it says.
    """
    _check(config)
    notes: list[str] = []
    encoders = _plan_encoders(config, registry, notes)
    tiler_spec, tiler_config = _plan_tiler(config, registry, encoders, notes)
    stores, images = _plan_writers(config, registry)
    segmenter_spec, segmenter_config = _configured(registry, "segmenter", config.segmenter)
    if not isinstance(segmenter_spec, SegmenterSpec):
        raise ConfigError(f"{config.segmenter.plugin!r} is no segmenter.")
    tiler_fields = describe(tiler_spec, tiler_config) | _target_fields(tiler_config)
    return RunPlan(
        config=config,
        registry=registry,
        segmenter=registry.create("segmenter", segmenter_spec.name, segmenter_config),
        segmenter_spec=segmenter_spec,
        segmenter_fields=describe(segmenter_spec, segmenter_config),
        tiler=registry.create("tiler", tiler_spec.name, tiler_config),
        tiler_fields=tiler_fields,
        encoders=encoders,
        stores=stores,
        images=images,
        layout=OutputLayout(config.output, _tiling_name(config, tiler_config)),
        notes=tuple(notes),
    )


def describe_target(fields: dict[str, Any]) -> str:
    """Name a tiling's size and resolution: ``256 px at 20x``."""
    if "size" not in fields:
        return f"tiles by {fields['plugin']}"
    if fields.get("mpp") is not None:
        return f"{fields['size']} px at {fields['mpp']:g} µm/px"
    return f"{fields['size']} px at {fields['magnification']:g}x"


def _check(config: RunConfig) -> None:
    for key, value, allowed in (
        ("task", config.task, TASKS),
        ("formats", config.formats, ("wsi", "all")),
        ("slide_id", config.slide_id, ("stem", "relpath")),
        ("feature_dtype", config.feature_dtype, ("float32", "float16")),
        *(("visualize", name, OVERLAYS) for name in config.visualize),
    ):
        if value not in allowed:
            raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}.")
    if config.batch_size < 1:
        raise ConfigError(f"batch_size={config.batch_size} must be at least 1.")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be at least 1.")
    if config.mpp is not None and not 0 < config.mpp < float("inf"):
        raise ConfigError(f"mpp={config.mpp} must be a positive number of µm per pixel.")


def _configured(registry: Registry, kind: str, choice: Choice) -> tuple[Any, Any]:
    spec = registry.find(kind, choice.plugin).spec
    return spec, configure(spec) if choice.config is None else choice.config


def _plan_encoders(
    config: RunConfig, registry: Registry, notes: list[str]
) -> tuple[PlannedEncoder, ...]:
    if config.task != "process":
        return ()
    planned = tuple(make_encoder(choice, registry) for choice in config.encoders)
    names = [encoder.name for encoder in planned]
    for name in {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two encoders are named {name!r}; give one a key of its own.")
    for encoder, choice in zip(planned, config.encoders, strict=True):
        if "torch" in encoder.spec.requires and encoder.device == "cpu" and choice.device == "auto":
            notes.append(f"{encoder.name} runs on the CPU: torch sees no GPU.")
    return planned


def make_encoder(choice: EncoderChoice, registry: Registry) -> PlannedEncoder:
    """Make an encoder and settle its device and precision, without loading weights.

    Raises:
        ConfigError: If the device or precision is not to be had.
        PluginError: If the plugin is unknown or misses a library.
        EncoderError: If its card makes no sense.
    """
    if choice.batch_size < 1:
        raise ConfigError(
            f"encoder.{choice.name}.batch_size={choice.batch_size} must be at least 1."
        )
    spec, options = _configured(registry, "encoder", choice)
    encoder: Encoder = registry.create("encoder", spec.name, options)
    if encoder.card.dim < 1:
        raise EncoderError(f"The card of {choice.name} says {encoder.card.dim} columns.")
    device = resolve_device(spec, choice)
    precision = resolve_precision(encoder.card, choice, device)
    fields = describe(spec, options)
    weights = getattr(encoder, "weights", None)
    if weights is not None:
        fields["weights"] = dict(weights())
    fields["transform"] = _plain(encoder.card.transform)
    fields["precision"] = precision
    return PlannedEncoder(
        name=choice.name,
        spec=spec,
        encoder=encoder,
        device=device,
        precision=precision,
        batch_size=choice.batch_size,
        fields=fields,
    )


def _plain(value: Any) -> Any:
    return None if value is None else {k: getattr(value, k) for k in value.__dataclass_fields__}


def _plan_tiler(
    config: RunConfig,
    registry: Registry,
    encoders: Sequence[PlannedEncoder],
    notes: list[str],
) -> tuple[TilerSpec, Any]:
    spec, options = _configured(registry, "tiler", config.tiler)
    if not all(hasattr(options, name) for name in ("size", "magnification", "mpp")):
        return spec, options
    if options.magnification is not None and options.mpp is not None:
        raise ConfigError(
            f"tiler.magnification={options.magnification:g} and tiler.mpp={options.mpp:g} are two "
            "targets: magnification is nominal, mpp is physical. Give one of them."
        )
    size, magnification, mpp = options.size, options.magnification, options.mpp
    cards = [encoder.card for encoder in encoders if encoder.card.patch_size is not None]
    if size is None:
        size = _agreed([card.patch_size for card in cards]) or DEFAULT_SIZE
    if magnification is None and mpp is None:
        magnification = _agreed([card.magnification for card in cards])
        mpp = _agreed([card.mpp for card in cards]) if magnification is None else None
        if magnification is None and mpp is None:
            magnification = DEFAULT_MAGNIFICATION
    resolved = replace(options, size=size, magnification=magnification, mpp=mpp)
    if options.size is None or (options.magnification is None and options.mpp is None):
        whose = "as the encoders' cards say" if cards else "the default"
        if cards and len({(c.patch_size, c.magnification, c.mpp) for c in cards}) > 1:
            whose = "the default, since the encoders' cards differ"
        notes.append(f"Tiles are {describe_target(_target_fields(resolved))}, {whose}.")
    notes += [note for encoder in encoders if (note := _geometry_note(encoder, resolved))]
    return spec, resolved


def _agreed(values: Sequence[Any]) -> Any:
    """Give the one value that all agree on, else None."""
    return values[0] if len(set(values)) == 1 else None


def _geometry_note(encoder: PlannedEncoder, options: Any) -> str:
    """Say that a tiling is not what an encoder was trained for."""
    card = encoder.card
    differs = card.patch_size not in (None, options.size)
    if options.mpp is not None and card.mpp is not None:
        differs |= abs(options.mpp / card.mpp - 1) > 0.05
    if options.magnification is not None and card.magnification is not None:
        differs |= options.magnification != card.magnification
    if not differs:
        return ""
    wanted = f"{card.patch_size} px"
    if card.magnification is not None:
        wanted += f" at {card.magnification:g}x"
    return f"{encoder.name} was made for {wanted}, the run gives {describe_target(vars(options))}."


def _target_fields(options: Any) -> dict[str, Any]:
    """Give the fields that a tiling's identity always spells out, defaults or not."""
    names = ("size", "step", "magnification", "mpp")
    fields = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if fields.get("step") is None and "size" in fields:
        fields["step"] = fields["size"]
    return fields


def _tiling_name(config: RunConfig, options: Any) -> str:
    """Name the tiling's folder: ``20x_256px_0px`` for ``auto``."""
    if config.tiling != "auto":
        return config.tiling
    fields = _target_fields(options)
    if "size" not in fields:
        return config.tiler.plugin
    target = (
        f"{fields['mpp']:g}mpp" if fields["mpp"] is not None else f"{fields['magnification']:g}x"
    )
    return f"{target}_{fields['size']}px_{fields['size'] - fields['step']}px"


def _plan_writers(
    config: RunConfig, registry: Registry
) -> tuple[tuple[PlannedStore, ...], tuple[PlannedImages, ...]]:
    stores, images = [], []
    for choice in config.writers if config.task != "tissue" else ():
        spec, options = _configured(registry, "writer", choice)
        common = {
            "name": choice.name,
            "spec": spec,
            "writer": registry.create("writer", spec.name, options),
            "fields": describe(spec, options),
        }
        if spec.consumes == "features":
            stores.append(PlannedStore(**common))
        elif spec.consumes == "pixels":
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
    _refuse_shared_paths([*stores, *images])
    return tuple(stores), tuple(images)


def _refuse_shared_paths(writers: Sequence[PlannedWriter]) -> None:
    taken: dict[tuple[str, str], str] = {}
    for writer in writers:
        place = (writer.spec.folder, writer.spec.suffix)
        if place in taken:
            raise ConfigError(
                f"The writers {taken[place]!r} and {writer.name!r} write the same files."
            )
        taken[place] = writer.name
