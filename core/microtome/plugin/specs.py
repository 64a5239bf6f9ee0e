"""What a plugin says of itself: frozen values that are cheap to make and to list.

A spec never holds code. It names its code as a string, ``"package.module:Name"``, which the
registry imports when the plugin is chosen, so listing 200 plugins imports no heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

RUNTIME = "microtome.runtime"


def runtime(default: Any, *, help: str = "") -> Any:
    """Declare a configuration field that does not change results.

    Such a field (a batch size, a device, a number of workers) is left out of identities, so
    changing it does not make finished work stale.

    Args:
        default: The field's default: an immutable value, or a ``list`` (copied).
        help: One sentence for the documentation.
    """
    metadata = {RUNTIME: True, "help": help}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option(default: Any, *, help: str) -> Any:
    """Declare a configuration field that changes results, with a sentence of help.

    Args:
        default: The field's default: an immutable value, or a ``list`` (copied).
        help: One sentence for the documentation.
    """
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class NoConfig:
    """The configuration of a plugin that has nothing to configure."""


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """What every kind of plugin says of itself.

    Attributes:
        name: The name in configurations: lower case, ``[a-z0-9_]+``, unique in its kind.
        target: Where the code is, ``"package.module:Name"``; ``":Name"`` for the module with the
            hook itself, as in a single file.
        summary: One line for listings.
        config: A plain, non-frozen dataclass with the plugin's options and their defaults.
            Types must be ones that OmegaConf knows (``int``, ``float | None``, ``list[str]``,
            an ``Enum``), imported at run time. Mark fields that change no result with
            `runtime`.
        requires: Names of modules that the code imports, checked without importing them.
        install: The command that installs them, shown when one is missing.
        output_version: Raised only when the plugin's results change; part of every identity.
        file_sha256: Of the single file that the plugin is from, which the registry fills in; part
            of every identity. Empty for one of a package.
    """

    kind: ClassVar[str]
    in_runs: ClassVar[bool] = True

    name: str
    target: str
    summary: str
    config: type = NoConfig
    requires: tuple[str, ...] = ()
    install: str = ""
    output_version: int = 1
    file_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ReaderSpec(PluginSpec):
    """A slide reader. Its target is called as ``target(path, config)`` and gives a `Reader`.

    Attributes:
        extensions: Lower-case suffixes with the dot (``".svs"``) that the reader may open.
        priority: Order in which ``reader=auto`` tries readers for one extension, highest first.
        vouches: Whether the reader has ``vouch(path)``, which ``reader=auto`` then asks first.
    """

    kind: ClassVar[str] = "reader"

    extensions: tuple[str, ...]
    priority: int = 0
    vouches: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec(PluginSpec):
    """A tissue segmenter. Its target is called as ``target(config)`` and gives a `Segmenter`.

    Attributes:
        input_mpp: The resolution of the image it wants, in µm per pixel.
        max_px: The longest side of that image in pixels; the image is coarser than
            ``input_mpp`` when the slide is larger. 0 for a segmenter that looks at no image.
        min_px: The image is finer than ``input_mpp`` when its longest side would be shorter than
            this: a region cut out of a slide has few pixels at a slide's resolution.
        batch: How many slides are segmented in one call, as far as a run has so many that lack
            a mask.
    """

    kind: ClassVar[str] = "segmenter"

    input_mpp: float = 8.0
    max_px: int = 4096
    min_px: int = 0
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class TilerSpec(PluginSpec):
    """A tiler. Its target is called as ``target(config)`` and gives a `Tiler`.

    A tiler that follows the run's target resolution has the fields ``size``, ``magnification``
    and ``mpp`` in its configuration, as the built-in grid has: the run fills them from the
    encoders' cards when the user gives none.
    """

    kind: ClassVar[str] = "tiler"


@dataclass(frozen=True, kw_only=True)
class InspectorSpec(PluginSpec):
    """An inspector of tiles. Its target is called as ``target(config)`` and gives an `Inspector`.

    A threshold on a column is an option of type ``float | None`` named ``<column>_above`` or
    ``<column>_below``, declared with `runtime`: it changes no score. A tile whose score lies beyond
    it has that reason; None sets no threshold.

    Attributes:
        columns: What it gives of every tile: a sentence by name. A column is stored as
            ``<inspector>_<column>``.
    """

    kind: ClassVar[str] = "inspector"

    columns: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a tile becomes an encoder's input, as data.

    Geometry first (on uint8, as Pillow does it), then ``(pixel / 255 - mean) / std``.

    Attributes:
        resize: Target size in pixels, or None to leave the tile as it is.
        resize_mode: ``"shortest_edge"`` keeps the aspect ratio, ``"exact"`` gives a square.
        crop: Side of the central crop in pixels, or None.
        interpolation: Pillow's filter: ``"bilinear"``, ``"bicubic"``, ``"lanczos"``,
            ``"nearest"`` or ``"box"``; always antialiased.
        mean: Per channel, of values in 0..1.
        std: Per channel, of values in 0..1.
    """

    resize: int | None = 224
    resize_mode: str = "shortest_edge"
    crop: int | None = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """What is known of an encoder: written next to its features.

    Attributes:
        dim: Columns of the embedding.
        input_size: Side of the model's input in pixels, or None where any size will do.
        transform: The model's own preprocessing, or None for an encoder that takes raw pixels.
        pooling: How tokens or maps become one vector, in words.
        precision: The precision that the model's card asks for on a GPU: ``"fp32"``, ``"fp16"``
            or ``"bf16"``.
        patch_size: Recommended tile side in pixels at ``mpp``.
        mpp: Recommended resolution in µm per pixel.
        magnification: The nominal magnification that goes with ``mpp``.
        also_mpp: Further resolutions that the model was trained at.
        hub_id: Where the weights live.
        revision: The pinned revision of the weights, or None where not pinned.
        licence: Of the weights.
        commercial: Whether the licence admits commercial use; None where not known.
        gated: Whether access must be asked for; None where not known.
        gate: The hub entry where it must be asked for, if that is not ``hub_id``.
        params: Number of parameters, or None.
        paper: DOI, arXiv number or address.
        latents: Of a slide encoder that has latents, their shape ``(count, dim)``.
    """

    dim: int
    input_size: int | None = None
    transform: Transform | None = None
    pooling: str = ""
    precision: str = "fp32"
    patch_size: int | None = None
    mpp: float | None = None
    magnification: float | None = None
    also_mpp: tuple[float, ...] = ()
    hub_id: str | None = None
    revision: str | None = None
    licence: str = ""
    commercial: bool | None = None
    gated: bool | None = None
    gate: str | None = None
    params: int | None = None
    paper: str = ""
    latents: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(PluginSpec):
    """A patch encoder. Its target is called as ``target(config)`` and gives an `Encoder`.

    Every encoder also has the common options ``device``, ``precision`` and ``batch_size``,
    which the run owns; they are not in ``config``.

    Attributes:
        card: What is known without loading anything; None where the configuration decides
            (any model by name).
        fixed: Keyword arguments that the target also gets, ``target(config, **fixed)``: what a
            row of a catalogue says and a user does not choose.
        concurrent: Whether ``encode`` may be called by several threads at once, and a tile's
            features do not depend on which tiles come with it. Such an encoder, mostly one that is
            not torch, runs on every CPU, in the threads that read.
        domain: What the model learned from, for listings: ``"pathology"``, ``"natural"``,
            ``"vision-language"``.
        names: What other tools call the model, by the tool's name in lower case.
        caution: A sentence for who knows the model from elsewhere, such as that a tool means
            another model by the same name.
        remote_code: Whether loading it runs code that its hub entry holds.
        gives: What it can give besides the embedding: ``"tokens"``, ``"attention"``. Where the
            configuration decides, the encoder's own attribute ``gives`` wins.
    """

    kind: ClassVar[str] = "encoder"

    card: EncoderCard | None = None
    concurrent: bool = False
    domain: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    caution: str = ""
    remote_code: bool = False
    gives: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class TileNeed:
    """The tiles and features that a slide encoder was made for: its side of a contract.

    A run makes what is missing, and refuses what does not fit. What is None or empty is free.

    Attributes:
        encoder: The patch encoder, by name.
        options: Its options that are not at their defaults: ``{"variant": "cls"}``.
        dim: Columns of its features.
        patch_size: Side of a tile in pixels at the target resolution.
        magnification: The nominal target.
        mpp: The physical target in µm per pixel, where the model was made for one.
        overlap: Whether tiles may overlap.
        dtype: ``"float32"`` where features that were stored in half precision would not do.
    """

    encoder: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    dim: int | None = None
    patch_size: int | None = None
    magnification: float | None = None
    mpp: float | None = None
    overlap: bool = False
    dtype: str = ""

    @property
    def key(self) -> str:
        """Name the feature set: the encoder, and its options where they are not the defaults."""
        return "_".join([self.encoder, *map(str, self.options.values())])


@dataclass(frozen=True, kw_only=True)
class BagEncoderSpec(PluginSpec):
    """What encoders of slides and of patients have in common. Each is called ``target(config)``.

    Every one also has the common options ``device`` and ``precision``, which the run owns.

    Attributes:
        card: What is known without loading anything; None where it depends on what is pooled.
        fixed: As of `EncoderSpec`.
        names: As of `EncoderSpec`.
        caution: As of `EncoderSpec`.
        remote_code: As of `EncoderSpec`.
    """

    card: EncoderCard | None = None
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    caution: str = ""
    remote_code: bool = False
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class SlideEncoderSpec(BagEncoderSpec):
    """A slide encoder. Its target is called as ``target(config)`` and gives a `SlideEncoder`.

    Attributes:
        needs: The feature sets that it takes, mostly one. None at all is for a pooling that takes
            any: it is then applied to every feature set of the run, each by itself.
        coords: The unit of the coordinates that its plugin gives the model, made of a bag's, which
            are level-0 pixels: ``"level0"``, or ``"grid"`` (divided by a tile's side there). Empty
            where it takes none. Part of the contract that is stored with an embedding.
    """

    kind: ClassVar[str] = "slide_encoder"

    needs: tuple[TileNeed, ...] = ()
    coords: str = ""


@dataclass(frozen=True, kw_only=True)
class PatientEncoderSpec(BagEncoderSpec):
    """A patient encoder. Its target is called as ``target(config)`` and gives a `PatientEncoder`.

    Attributes:
        takes: ``"tiles"`` of all slides of a patient, by ``needs``, or ``"slides"``: the
            embeddings that slide encoders gave.
        needs: As of `SlideEncoderSpec`, where it takes tiles.
        slide_encoder: Where it takes slides, the slide encoder that it was made for. Empty for a
            pooling that takes any: it is applied to every slide encoder of the run.
    """

    kind: ClassVar[str] = "patient_encoder"

    takes: str = "slides"
    needs: tuple[TileNeed, ...] = ()
    slide_encoder: str = ""


@dataclass(frozen=True, kw_only=True)
class WriterSpec(PluginSpec):
    """A writer. Its target is called as ``target(config)``.

    Attributes:
        consumes: ``"features"`` for a store of coordinates and features (`StoreWriter`),
            ``"pixels"`` for tile images (`TileWriter`).
        suffix: Of the final name, with the dot; empty for a plain folder.
        layout: ``"file"`` or ``"directory"``: decides how the store publishes it.
        folder: The folder under the tiling's root that holds its outputs, one a slide.
        concurrent: Whether its `TileSink` takes tiles from several threads at once.
    """

    kind: ClassVar[str] = "writer"

    consumes: str
    suffix: str
    layout: str
    folder: str = "patches"
    concurrent: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineSpec(PluginSpec):
    """What starts the workers of a run. Its target is called as ``target(config)``: an `Engine`.

    An engine changes no result, so neither its name nor its options are part of an identity.

    Attributes:
        early: What may start before a command line is composed, while nothing is known but the
            engine's name: a context manager, as ``"package.module:name"``, open until the run is
            over. Empty for none.
    """

    kind: ClassVar[str] = "engine"

    early: str = ""


@dataclass(frozen=True, kw_only=True)
class LayoutSpec(PluginSpec):
    """Another tool's files. Its target is called as ``target(config)`` and gives a `Layout`.

    No part of a run: ``microtome export`` and ``microtome import`` go by it. An option marked
    `runtime` changes nothing in the files.

    Attributes:
        tool: The tool's name as it writes it.
        loses: What a slide's files in this layout cannot hold, in words.
    """

    kind: ClassVar[str] = "layout"
    in_runs: ClassVar[bool] = False

    tool: str
    loses: str = ""


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A kind of plugin file that another tool defines, and how it is adapted.

    Attributes:
        function: The name of the function by which such a file is known.
        target: What adapts it, ``"package.module:name"``: called with the file's module, it gives
            an object with hooks, which is registered.
        importing: A context manager, as ``"package.module:name"``, in which the code of any
            plugin file is run: the place to answer for modules that only the other tool has.
    """

    function: str
    target: str
    importing: str


SPECS: Mapping[str, type[PluginSpec]] = MappingProxyType(
    {
        spec.kind: spec
        for spec in (
            ReaderSpec,
            SegmenterSpec,
            TilerSpec,
            InspectorSpec,
            EncoderSpec,
            SlideEncoderSpec,
            PatientEncoderSpec,
            WriterSpec,
            EngineSpec,
            LayoutSpec,
        )
    }
)
"""The kinds of plugin: in the order of the pipeline, what runs it, and other tools' files."""

RUN_KINDS: tuple[str, ...] = tuple(kind for kind, spec in SPECS.items() if spec.in_runs)
"""Those that a run is composed of."""
