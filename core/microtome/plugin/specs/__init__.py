"""What a plugin says of itself: frozen values that are cheap to make and to list.

A spec never holds code. It names its code as a string, ``"package.module:Name"``, which the
registry imports when the plugin is chosen, so listing 200 plugins imports no heavy library.
"""

from microtome.plugin.specs.base import RUNTIME, NoConfig, PluginSpec, option, runtime
from microtome.plugin.specs.encoders import (
    BagEncoderSpec,
    EncoderCard,
    EncoderSpec,
    PatientEncoderSpec,
    SlideEncoderSpec,
    TileNeed,
    Transform,
)
from microtome.plugin.specs.kinds import RUN_KINDS, SPECS
from microtome.plugin.specs.running import EngineSpec, FileFormat, LayoutSpec, TaskSpec
from microtome.plugin.specs.stages import (
    AnnotationSpec,
    InspectorSpec,
    ReaderSpec,
    SegmenterSpec,
    TilerSpec,
    WriterSpec,
)

# In the order of the contract's page.
__all__ = [  # noqa: RUF022
    "RUNTIME",
    "runtime",
    "option",
    "NoConfig",
    "PluginSpec",
    "ReaderSpec",
    "SegmenterSpec",
    "TilerSpec",
    "InspectorSpec",
    "Transform",
    "EncoderCard",
    "EncoderSpec",
    "TileNeed",
    "BagEncoderSpec",
    "SlideEncoderSpec",
    "PatientEncoderSpec",
    "WriterSpec",
    "EngineSpec",
    "TaskSpec",
    "AnnotationSpec",
    "LayoutSpec",
    "FileFormat",
    "SPECS",
    "RUN_KINDS",
]
