"""Specs of encoders of tiles, slides and patients, and what is known of their models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from microtome.plugin.specs.base import PluginSpec


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
