"""What a run is asked to do, as one frozen value.

The command line composes it with Hydra, the Python API makes it directly. Nothing from here on
knows of either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from microtome.errors import ConfigError
from microtome.plugin.files import PluginFile
from microtome.run.labelling import LabelSettings

TASKS = ("process", "coords", "tissue")
"""What a run can end with: features, coordinates, or the tissue mask."""

PATIENT_FAILURES = ("leave_out", "fail")
"""What a slide that failed means for its patient."""

OVERLAYS = ("grid", "mask", "contours")
"""The overlays that ``visualize`` can name."""

PRECISIONS = ("fp32", "fp16", "bf16")
"""The precisions that a model can run with."""

DEFAULT_ENCODER = "handcrafted"
"""The encoder of a run that says nothing of encoders."""

DEFAULT_BATCH_SIZE = 32
"""Tiles: 6 MiB at 256 px; a CPU gains nothing from more."""

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _one_of(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}.")


def _at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value} must be at least 1.")


def _check_tile_devices(devices: Sequence[str]) -> None:
    told = f"tile_devices=[{','.join(devices)}]"
    for device in devices:
        if device == "auto" or not _DEVICE.fullmatch(device):
            raise ConfigError(f"{told}: {device!r} is no device such as cuda:0, cuda:1 or cpu.")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise ConfigError(
            f"{told}: one kind of device does not compute quite what another does, so all tiles "
            "of a slide go to one kind."
        )


def _within(key: str, value: float, most: float) -> None:
    if not 0 <= value <= most or math.isinf(value):
        upwards = "0 or more" if math.isinf(most) else f"from 0 to {most:g}"
        raise ConfigError(f"{key}={value:g} must be {upwards}.")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plugin that was chosen, with its configuration.

    Attributes:
        plugin: The plugin's name.
        key: The node's name in the configuration: a feature set's name for an encoder.
        config: An instance of the spec's ``config`` class; its defaults if None.
    """

    plugin: str
    key: str = ""
    config: Any = None

    @property
    def name(self) -> str:
        """The key, or the plugin's name where there is none."""
        return self.key or self.plugin


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Choice):
    """A model that was chosen, with the options that the run owns of every model.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        precision: ``"auto"`` (the card's on a GPU, fp32 on a CPU), ``"fp32"``, ``"fp16"`` or
            ``"bf16"``.
    """

    device: str = "auto"
    precision: str = "auto"
    kind: ClassVar[str] = "encoder"

    def __post_init__(self) -> None:
        where = f"{self.kind}.{self.name}"
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"{where}.device={self.device} is not auto, cpu, mps, cuda or a certain cuda:1."
            )
        _one_of(f"{where}.precision", self.precision, ("auto", *PRECISIONS))


@dataclass(frozen=True, kw_only=True)
class SlideEncoderChoice(ModelChoice):
    """A slide encoder that was chosen."""

    kind: ClassVar[str] = "slide_encoder"


@dataclass(frozen=True, kw_only=True)
class PatientEncoderChoice(ModelChoice):
    """A patient encoder that was chosen."""

    kind: ClassVar[str] = "patient_encoder"


@dataclass(frozen=True, kw_only=True)
class EncoderChoice(ModelChoice):
    """A patch encoder that was chosen, with the options that the run owns.

    Attributes:
        batch_size: Tiles that the encoder is given at once; None for as many as its device has
            memory for.
        tokens: Whether its token grid of every tile is kept, too.
        attention: Whether its class token's attention over that grid is kept, too.
    """

    batch_size: int | None = DEFAULT_BATCH_SIZE
    tokens: bool = False
    attention: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            _at_least_one(f"encoder.{self.name}.batch_size", self.batch_size)


@dataclass(frozen=True, kw_only=True)
class TissueSettings:
    """How a segmenter's mask is cleaned, whichever segmenter it was.

    Attributes:
        min_region_um2: Regions smaller than this are dropped, in µm².
        min_region_fraction: Regions smaller than this share of the mask are dropped.
        min_hole_um2: Holes smaller than this are filled, in µm².
        min_hole_fraction: Holes smaller than this share of the mask are filled.
    """

    min_region_um2: float = 0.0
    min_region_fraction: float = 0.0
    min_hole_um2: float = 0.0
    min_hole_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _within(f"tissue.{name}", value, 1.0 if name.endswith("fraction") else math.inf)


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """The content filter: drops white and black tiles by their pixels. Off by default.

    Attributes:
        enabled: Whether tiles are looked at before they are kept.
        white_saturation_below: HSV saturation (0..255) below which a bright pixel is white.
        white_value_from: HSV value (0..255) from which an unsaturated pixel is white.
        white_drop_from: Share of white pixels from which a tile is dropped.
        black_gray_below: Grey value (0..255) below which a pixel is black.
        black_drop_from: Share of black pixels from which a tile is dropped.
    """

    enabled: bool = False
    white_saturation_below: int = 15
    white_value_from: int = 200
    white_drop_from: float = 0.7
    black_gray_below: int = 50
    black_drop_from: float = 0.7

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "enabled":
                _within(f"filter.{name}", value, 1 if name.endswith("drop_from") else 256)


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What becomes of tiles that inspectors find a reason against.

    Attributes:
        drop: Whether they are left out of files and encoding, as by the content filter; otherwise
            they are kept, and the column ``reason`` tells them apart.
    """

    drop: bool = False


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """How workers share one output.

    Attributes:
        wait: Whether a run comes back to slides that other workers hold until they are free. If
            not, it leaves them to those and ends with exit code 4.
        seconds: A claim that was not renewed for so long is taken over. Every worker on one
            output must say the same.
        attempts: A slide whose worker died so many times is quarantined; 0 for never.
        retry: Whether what earlier runs died of is forgotten, quarantined slides included.
        round: Commands that were started together say the same word here, such as the number of
            their job array: what became of a slide in one of them then holds for all.
    """

    wait: bool = True
    seconds: float = 60.0
    attempts: int = 3
    retry: bool = False
    round: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.seconds < math.inf:
            raise ConfigError(f"claims.seconds={self.seconds:g} must be at least 1.")
        if self.attempts < 0:
            raise ConfigError(f"claims.attempts={self.attempts} must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class StagingSettings:
    """How slides are copied from slow or remote storage before they are opened.

    Attributes:
        cache: The folder on a local disk that slides are copied to; without one, only slides
            named by URL are, to the user's cache folder.
        budget_gb: GiB that the copies of all runs on this machine may take there.
        ahead: Slides that are copied for each worker while it works on another.
    """

    cache: str | None = None
    budget_gb: float = 100.0
    ahead: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.budget_gb < math.inf:
            raise ConfigError(f"staging.budget_gb={self.budget_gb:g} must be above 0.")
        if self.ahead < 0:
            raise ConfigError(f"staging.ahead={self.ahead} must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run needs to know.

    Attributes:
        slides: Files, folders, glob patterns or CSV manifests, taken literally where they exist.
        output: The output folder.
        run_dir: This run's own folder for its record, below ``<output>/runs``.
        task: One of `TASKS`, or the name of ``own_task``.
        own_task: A task plugin, which does the run instead of taking slides to features.
        label: What tells this job of a sweep from the others, in words; empty of a plain run.
        recursive: Whether folders are searched to any depth.
        formats: ``"wsi"`` or ``"all"``, which adds plain images found in folders.
        slide_id: ``"stem"`` or ``"relpath"``: how a slide's outputs are named.
        mpp: Level-0 µm per pixel for every slide; wins over the files.
        mpp_csv: A CSV with ``wsi,mpp``, which wins over the files.
        tiling: The folder of this tiling below the output; ``"auto"`` names it by its geometry.
        encoder_plugin: Files with plugins of the user's own.
        reader: The reader, or ``auto``.
        segmenter: The segmenter.
        tissue: How its mask is cleaned.
        tiler: The tiler.
        filter: The content filter.
        inspectors: Any number of inspectors.
        quality: What becomes of tiles that they find a reason against.
        annotations: A folder with a file of outlines for each slide, or one file.
        labels: How outlines become labels.
        encoders: Any number of encoders.
        slide_encoders: Any number of slide encoders; what they need of tiles and encoders is
            derived.
        patient_encoders: Any number of patient encoders.
        writers: Any number of writers.
        device: Of the models that the run adds itself.
        tile_devices: Devices of one kind, each of which has every encoder of torch and takes
            batches of a slide's tiles in turn; each encoder's own device if empty.
        precision: Of those.
        latents: Whether the latents of slide encoders that have some are kept, too.
        bag_memory_gb: GiB that a slide or patient encoder may take for one slide or patient; None
            for what is free on its device.
        patient_failures: One of `PATIENT_FAILURES`: whether a patient is embedded without a slide
            that failed, or not at all.
        patient_id_map: Patients by slide id, which win over the manifest's.
        feature_dtype: ``"float32"`` or ``"float16"``: of the stored features.
        dense_dtype: Likewise, of stored token grids and attention.
        region_features: Whether features are stored by region, too.
        visualize: Any of `OVERLAYS`.
        force: Whether finished work is done again.
        batch_size: Tiles read at once.
        threads: CPU threads for the whole run; None for what the machine gives.
        reader_threads: How many of them read, resample and write images; None to share them out
            by what the encoders need.
        torch_threads: How many torch may use on a CPU; None likewise.
        engine: What starts the workers.
        claims: How workers share one output.
        staging: How slides are copied before they are opened.
        profile: Whether the time of the pass over the pixels is accounted for by stage.
        resolved: The composed configuration as plain values, for the run record.
        derived: What was added to what the user said, and why, a sentence each.
    """

    slides: tuple[str, ...]
    output: Path
    run_dir: Path | None = None
    task: str = "process"
    own_task: Choice | None = None
    label: str = ""
    recursive: bool = False
    formats: str = "wsi"
    slide_id: str = "stem"
    mpp: float | None = None
    mpp_csv: Path | None = None
    tiling: str = ""
    # Before all plugins, whose configurations cannot be unpickled without their files.
    encoder_plugin: tuple[PluginFile, ...] = ()
    reader: Choice = Choice(plugin="auto")
    segmenter: Choice = Choice(plugin="classic")
    tissue: TissueSettings = TissueSettings()
    tiler: Choice = Choice(plugin="grid")
    filter: FilterSettings = FilterSettings()
    inspectors: tuple[Choice, ...] = ()
    quality: QualitySettings = QualitySettings()
    annotations: Path | None = None
    labels: LabelSettings = field(default_factory=LabelSettings)
    encoders: tuple[EncoderChoice, ...] = (EncoderChoice(plugin=DEFAULT_ENCODER),)
    slide_encoders: tuple[SlideEncoderChoice, ...] = ()
    patient_encoders: tuple[PatientEncoderChoice, ...] = ()
    writers: tuple[Choice, ...] = (Choice(plugin="hdf5"),)
    device: str = "auto"
    tile_devices: tuple[str, ...] = ()
    precision: str = "auto"
    latents: bool = False
    bag_memory_gb: float | None = None
    patient_failures: str = "leave_out"
    patient_id_map: Mapping[str, str] = field(default_factory=dict)
    feature_dtype: str = "float32"
    dense_dtype: str = "float16"
    region_features: bool = False
    visualize: tuple[str, ...] = ()
    force: bool = False
    batch_size: int = DEFAULT_BATCH_SIZE
    threads: int | None = None
    reader_threads: int | None = None
    torch_threads: int | None = None
    engine: Choice = Choice(plugin="inline")
    claims: ClaimSettings = ClaimSettings()
    staging: StagingSettings = StagingSettings()
    profile: bool = False
    resolved: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.own_task is None:
            _one_of("task", self.task, TASKS)
        _one_of("formats", self.formats, ("wsi", "all"))
        _one_of("slide_id", self.slide_id, ("stem", "relpath"))
        _one_of("feature_dtype", self.feature_dtype, ("float32", "float16"))
        _one_of("dense_dtype", self.dense_dtype, ("float32", "float16"))
        _one_of("patient_failures", self.patient_failures, PATIENT_FAILURES)
        if self.bag_memory_gb is not None and not 0 < self.bag_memory_gb < math.inf:
            raise ConfigError(f"bag_memory_gb={self.bag_memory_gb:g} must be above 0.")
        for name in self.visualize:
            _one_of("visualize", name, OVERLAYS)
        _check_tile_devices(self.tile_devices)
        _at_least_one("batch_size", self.batch_size)
        for name in ("threads", "reader_threads", "torch_threads"):
            if (count := getattr(self, name)) is not None:
                _at_least_one(name, count)
        if self.quality.drop and not self.inspectors:
            raise ConfigError(
                "quality.drop=true drops tiles by what inspectors see, and there is none: choose "
                "some, inspector=[blur,pen,artefact]."
            )
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise ConfigError(f"mpp={self.mpp:g} is no size: give µm per pixel, above 0.")
