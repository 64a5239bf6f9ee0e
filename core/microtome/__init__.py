"""Whole-slide images to analysis-ready data, every stage a plugin.

::

    import microtome

    slide = microtome.open_slide("slide.svs")
    mask = slide.tissue()
    grid = slide.tiles(mask, size=256, magnification=20)
    tile = slide.read(grid, 0)
    features = slide.encode(grid, "handcrafted")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome._version import __version__

if TYPE_CHECKING:
    from microtome.api import (
        EmbeddedPatient,
        EmbeddedSlide,
        ExecutionOptions,
        FilterConfig,
        Model,
        Pipeline,
        PipelineResult,
        PreprocessingConfig,
        PreviewConfig,
        Reporter,
        RunResult,
        SegmentationConfig,
        SilentReporter,
        Slide,
        TileDataset,
        activate_progress_reporter,
        list_models,
        open_result,
        open_slide,
        region_features,
        register,
        run_slides,
        run_task,
        to_anndata,
    )

__all__ = [
    "EmbeddedPatient",
    "EmbeddedSlide",
    "ExecutionOptions",
    "FilterConfig",
    "Model",
    "Pipeline",
    "PipelineResult",
    "PreprocessingConfig",
    "PreviewConfig",
    "Reporter",
    "RunResult",
    "SegmentationConfig",
    "SilentReporter",
    "Slide",
    "TileDataset",
    "__version__",
    "activate_progress_reporter",
    "list_models",
    "open_result",
    "open_slide",
    "region_features",
    "register",
    "run_slides",
    "run_task",
    "to_anndata",
]


def __getattr__(name: str) -> Any:
    """Import the Python face when it is first used, so that plugins stay cheap to import."""
    if name in __all__:
        from microtome import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the Python face."""
    return sorted(__all__)
