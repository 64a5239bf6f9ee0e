"""The kit for those who test plugins: contracts to subclass, synthetic slides to run on.

A contract is a pytest class. Subclass it, name the plugin, and pytest runs what the protocol
promises::

    from microtome.testing import EncoderContract


    class TestAcme(EncoderContract):
        plugin = "acme"

Only the contracts need pytest: they are imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.testing.bags import make_bag
from microtome.testing.cohort import Cohort, CohortSlide, make_cohort
from microtome.testing.samples import make_info, make_mask, make_view, sample_mask
from microtome.testing.synthetic import (
    MASK_DOWNSAMPLE,
    SlideRecipe,
    SyntheticSlide,
    make_plain_image,
    make_slide,
)

if TYPE_CHECKING:
    from microtome.testing.contracts import (
        AnnotationContract,
        EncoderContract,
        EngineContract,
        InspectorContract,
        LayoutContract,
        PatchWriterContract,
        PatientEncoderContract,
        ReaderContract,
        SegmenterContract,
        SlideEncoderContract,
        TaskContract,
        TilerContract,
        TileWriterContract,
        WriterContract,
    )

__all__ = [
    "MASK_DOWNSAMPLE",
    "AnnotationContract",
    "Cohort",
    "CohortSlide",
    "EncoderContract",
    "EngineContract",
    "InspectorContract",
    "LayoutContract",
    "PatchWriterContract",
    "PatientEncoderContract",
    "ReaderContract",
    "SegmenterContract",
    "SlideEncoderContract",
    "SlideRecipe",
    "SyntheticSlide",
    "TaskContract",
    "TileWriterContract",
    "TilerContract",
    "WriterContract",
    "make_bag",
    "make_cohort",
    "make_info",
    "make_mask",
    "make_plain_image",
    "make_slide",
    "make_view",
    "sample_mask",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # Before the import: failed assertions then show their values, as in a test of one's own.
    pytest.register_assert_rewrite("microtome.testing.contracts")
    from microtome.testing import contracts

    return getattr(contracts, name)
