"""What the code behind a spec must be able to do: duck-typed, no base class to inherit.

Pixels are uint8 RGB in NHWC order. Points are ``(x, y)`` at level 0, the top left corner;
sizes are ``(width, height)`` at the level they are read from.
"""

from microtome.plugin.protocols.encoders import (
    Encoder,
    EncoderOutput,
    PatientEncoder,
    SlideEncoder,
    SlideOutput,
)
from microtome.plugin.protocols.running import Engine, Layout, Task
from microtome.plugin.protocols.stages import AnnotationReader, Inspector, Reader, Segmenter, Tiler
from microtome.plugin.protocols.stores import (
    FeatureSource,
    PatchSink,
    PatchWriter,
    StoredPatches,
    StoredSlide,
    StoreWriter,
    TileSink,
    TileWriter,
)

# In the order of the contract's page.
__all__ = [  # noqa: RUF022
    "Reader",
    "Segmenter",
    "Tiler",
    "Inspector",
    "EncoderOutput",
    "Encoder",
    "SlideOutput",
    "SlideEncoder",
    "PatientEncoder",
    "FeatureSource",
    "StoredSlide",
    "StoreWriter",
    "TileSink",
    "TileWriter",
    "PatchSink",
    "PatchWriter",
    "StoredPatches",
    "Engine",
    "Task",
    "AnnotationReader",
    "Layout",
]
