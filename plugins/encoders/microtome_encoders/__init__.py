"""Encoders: handcrafted statistics, any model of timm or torchvision, and a catalogue of models."""

from __future__ import annotations

from collections.abc import Iterator

from microtome.plugin.hookspecs import hookimpl
from microtome.plugin.specs import EncoderSpec, FileFormat, PatientEncoderSpec, SlideEncoderSpec
from microtome_encoders.catalogue import catalogue
from microtome_encoders.catalogue._rows import TIMM, TORCHVISION, VIT_GIVES, torch_spec
from microtome_encoders.catalogue.patients import patient_rows
from microtome_encoders.catalogue.slides import slide_encoders
from microtome_encoders.options import ModelConfig
from microtome_encoders.patch.columns import HANDCRAFTED_CARD


@hookimpl
def microtome_encoders() -> Iterator[EncoderSpec]:
    """Register the embedded default, the two libraries and the catalogue."""
    yield EncoderSpec(
        name="handcrafted",
        target="microtome_encoders.patch.handcrafted:HandcraftedEncoder",
        summary="Stain, colour, texture and nuclear-density statistics; no torch, no download",
        requires=("cv2",),
        install="pip install opencv-python-headless",
        card=HANDCRAFTED_CARD,
        concurrent=True,
    )
    yield torch_spec("timm", TIMM, "Any model of timm by name", config=ModelConfig, gives=VIT_GIVES)
    yield torch_spec(
        "torchvision",
        TORCHVISION,
        "Any classifier of torchvision by name",
        config=ModelConfig,
        gives=VIT_GIVES,
    )
    yield from catalogue()


@hookimpl
def microtome_slide_encoders() -> Iterator[SlideEncoderSpec]:
    """Register poolings, and the published models of whole slides."""
    yield from slide_encoders()


@hookimpl
def microtome_patient_encoders() -> Iterator[PatientEncoderSpec]:
    """Register poolings of a patient's slides, and the models of patients."""
    yield from patient_rows()


@hookimpl
def microtome_file_formats() -> Iterator[FileFormat]:
    """Register the plugin files of AtlasPatch."""
    yield FileFormat(
        function="register_feature_extractors",
        target="microtome_encoders.atlaspatch:adapt",
        importing="microtome_encoders.atlaspatch:stand_ins",
    )
