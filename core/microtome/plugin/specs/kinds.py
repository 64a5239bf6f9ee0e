"""The kinds of plugin that there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from microtome.plugin.specs.base import PluginSpec
from microtome.plugin.specs.encoders import EncoderSpec, PatientEncoderSpec, SlideEncoderSpec
from microtome.plugin.specs.running import EngineSpec, LayoutSpec, TaskSpec
from microtome.plugin.specs.stages import (
    AnnotationSpec,
    InspectorSpec,
    ReaderSpec,
    SegmenterSpec,
    TilerSpec,
    WriterSpec,
)

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
            TaskSpec,
            AnnotationSpec,
            LayoutSpec,
        )
    }
)
"""The kinds of plugin: in the order of the pipeline, what runs it, and other tools' files."""

RUN_KINDS: tuple[str, ...] = tuple(kind for kind, spec in SPECS.items() if spec.in_runs)
"""Those that a run is composed of."""
