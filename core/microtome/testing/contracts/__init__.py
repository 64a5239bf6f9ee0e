"""What each protocol promises, as pytest classes to subclass. Needs pytest."""

from microtome.testing.contracts.annotation import AnnotationContract
from microtome.testing.contracts.base import PluginContract
from microtome.testing.contracts.encoder import EncoderContract
from microtome.testing.contracts.engine import EngineContract
from microtome.testing.contracts.inspector import InspectorContract
from microtome.testing.contracts.layout import LayoutContract
from microtome.testing.contracts.patches import PatchWriterContract
from microtome.testing.contracts.patient_encoder import PatientEncoderContract
from microtome.testing.contracts.reader import ReaderContract
from microtome.testing.contracts.segmenter import SegmenterContract
from microtome.testing.contracts.slide_encoder import SlideEncoderContract
from microtome.testing.contracts.task import TaskContract
from microtome.testing.contracts.tiler import TilerContract
from microtome.testing.contracts.writer import TileWriterContract, WriterContract

__all__ = [
    "AnnotationContract",
    "EncoderContract",
    "EngineContract",
    "InspectorContract",
    "LayoutContract",
    "PatchWriterContract",
    "PatientEncoderContract",
    "PluginContract",
    "ReaderContract",
    "SegmenterContract",
    "SlideEncoderContract",
    "TaskContract",
    "TileWriterContract",
    "TilerContract",
    "WriterContract",
]
