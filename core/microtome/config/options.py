"""The options of a run, as the command line knows them: names, types, defaults and help.

Plain data, so that the help page and completion need no OmegaConf.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any, get_type_hints

from microtome.plugin import option
from microtome.plugin.wording import phrase
from microtome.run.labelling import LabelSettings
from microtome.run.settings import (
    ClaimSettings,
    FilterSettings,
    QualitySettings,
    StagingSettings,
    TissueSettings,
)

Formats = Enum("Formats", ["wsi", "all"])
SlideId = Enum("SlideId", ["stem", "relpath"])
FeatureDtype = Enum("FeatureDtype", ["float32", "float16"])
Precision = Enum("Precision", ["auto", "fp32", "fp16", "bf16"])
PatientFailures = Enum("PatientFailures", ["leave_out", "fail"])

SINGLE = ("reader", "segmenter", "tiler", "engine")
"""Kinds of which a run has one: the node is at ``<kind>``."""

SEVERAL = ("inspector", "encoder", "slide_encoder", "patient_encoder", "writer")
"""Kinds of which a run has any number: the nodes are at ``<kind>.<key>``."""

_PATH_WORDS = {"weights", "checkpoint", "path", "file", "folder", "dir", "csv", "manifest", "cache"}


@dataclass
class ModelOptions:
    """What the run owns of every node with a model."""

    device: str = option("${device}", help="The run's `device`, or this encoder's own.")
    precision: Precision = option("${precision}", help="The run's `precision`, or its own.")


@dataclass
class EncoderOptions(ModelOptions):
    """What the run owns of every encoder node."""

    batch_size: int | None = option(
        "${batch_size}",
        help="The run's `batch_size`, or its own; null for as many tiles as a GPU has memory for.",
    )
    tokens: bool = option(
        False, help="Keep the grid of patch tokens of every tile, where the encoder gives it."
    )
    attention: bool = option(
        False, help="Keep the class token's attention over that grid, where the encoder gives it."
    )


@dataclass
class TilerOptions:
    """What the run owns of every tiler node."""

    name: str = option(
        "",
        help="The tiling's folder below the output; empty for none, `auto` to name it by its "
        "geometry (`20x_256px_0px`).",
    )


@dataclass
class RunOptions:
    """The keys at the top of a configuration, beside the kinds of plugin."""

    slides: list[str] = option(
        [], help="Files, folders, glob patterns, CSV manifests or URLs: the words without a key."
    )
    output: str = option("???", help="The output folder.")
    task: str = option(
        "process",
        help="`process` for features, `coords` for coordinates, `tissue` for the tissue mask, or "
        "an installed task.",
    )
    recursive: bool = option(False, help="Search folders to any depth.")
    formats: Formats = option(
        Formats.wsi, help="What a folder is searched for; `all` adds plain images."
    )
    slide_id: SlideId = option(
        SlideId.stem, help="Name outputs by the file's stem or by its path below the folder."
    )
    mpp: float | None = option(
        None, help="Level-0 µm per pixel of every slide; wins over what the files say."
    )
    mpp_csv: str | None = option(
        None, help="A CSV with the columns `wsi,mpp`; wins over what the files say."
    )
    annotations: str | None = option(
        None,
        help="A folder with a file of outlines for each slide, named as the slide, or one such "
        "file; tiles are labelled by them as `labels.classes` says.",
    )
    encoder_plugin: list[str] = option(
        [],
        help="Python files with encoders, or plugins of other kinds, of your own; they are run as "
        "code. One, or [a.py,b.py].",
    )
    feature_dtype: FeatureDtype = option(
        FeatureDtype.float32, help="How features are stored, whatever they were computed in."
    )
    dense_dtype: FeatureDtype = option(
        FeatureDtype.float16, help="How token grids and attention are stored."
    )
    visualize: Any = option(
        [], help="Overlays to draw: `grid`, `mask`, `contours`, a list of these, or `all`."
    )
    force: bool = option(False, help="Do finished work again.")
    batch_size: int = option(32, help="Tiles read at once, and encoded at once.")
    threads: int | None = option(
        None, help="CPU threads of the whole run; all that the machine gives by default."
    )
    reader_threads: int | None = option(
        None, help="Threads that read and write images; by what the encoders need by default."
    )
    torch_threads: int | None = option(
        None, help="Threads of torch on a CPU; by what the encoders need by default."
    )
    region_features: bool = option(
        False,
        help="Store features by region, too, beside those by tile; needs tiler.region_tiles.",
    )
    profile: bool = option(False, help="Tell at the end where the time went.")
    latents: bool = option(
        False, help="Keep the latents of slide encoders that have some, beside the embedding."
    )
    bag_memory_gb: float | None = option(
        None,
        help="GiB that a slide or patient encoder may take for one slide or patient; what is free "
        "on its device by default.",
    )
    patient_failures: PatientFailures = option(
        PatientFailures.leave_out,
        help="Whether a patient with a failed slide is embedded without it, or fails.",
    )
    device: str = option(
        "auto", help="Where encoders run: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`."
    )
    tile_devices: list[str] = option(
        [],
        help="Devices that share the tiles of each slide, `[cuda:0,cuda:1]`: every encoder of "
        "torch is on each of them.",
    )
    precision: Precision = option(
        Precision.auto, help="What encoders compute in; `auto` is the card's, fp32 on a CPU."
    )
    tissue: TissueSettings = field(
        default_factory=TissueSettings, metadata={"help": "How a tissue mask is cleaned."}
    )
    filter: FilterSettings = field(
        default_factory=FilterSettings, metadata={"help": "The content filter of tiles."}
    )
    quality: QualitySettings = field(
        default_factory=QualitySettings, metadata={"help": "What becomes of tiles with a reason."}
    )
    labels: LabelSettings = field(
        default_factory=LabelSettings, metadata={"help": "What outlines make of tiles."}
    )
    claims: ClaimSettings = field(
        default_factory=ClaimSettings, metadata={"help": "How workers share one output."}
    )
    staging: StagingSettings = field(
        default_factory=StagingSettings,
        metadata={"help": "How slides are copied from slow or remote storage."},
    )


def is_path_key(key: str) -> bool:
    """Tell whether a key's value is a path, which is taken literally.

    These are ``output`` and ``annotations``, and every key whose name's last word is one of
    ``weights``, ``checkpoint``, ``path``, ``file``, ``folder``, ``dir``, ``csv``, ``manifest`` and
    ``cache`` (``mpp_csv``, ``encoder.resnet18.weights``, ``segmenter.folder``). ``slides`` is one
    as well, but a list. Hydra's own keys are not.
    """
    if key.startswith("hydra"):
        return False
    return key in ("output", "annotations") or re.split(r"[._]", key)[-1] in _PATH_WORDS


def default_of(spec: Field[Any]) -> Any:
    """Give a dataclass field's default, or ``???`` where it has none."""
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    return "???" if spec.default is MISSING else spec.default


def help_of(schema: type) -> dict[str, str]:
    """Collect the help of a dataclass's fields, from their metadata or its docstring."""
    documented = _attributes(schema.__doc__ or "")
    return {f.name: f.metadata.get("help") or documented.get(f.name, "") for f in fields(schema)}


def type_of(schema: type, name: str) -> str:
    """Phrase a field's type for people: ``"int or null"``, ``"drop | pad"``."""
    return phrase(get_type_hints(schema)[name])


def _attributes(docstring: str) -> dict[str, str]:
    """Read the ``Attributes:`` section of a Google docstring."""
    _, _, section = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if start := re.match(r" {8}(\w+): (.+)", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
