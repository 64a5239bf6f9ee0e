"""The Python face: the same run, plugins and files as the command line, without Hydra."""

from microtome.api.anndata import to_anndata
from microtome.api.collecting import PipelineResult
from microtome.api.dataset import TileDataset
from microtome.api.embedding import EmbeddedPatient, EmbeddedSlide
from microtome.api.execution import ExecutionOptions
from microtome.api.models import Model
from microtome.api.pipelines import Pipeline
from microtome.api.preprocessing import (
    FilterConfig,
    PreprocessingConfig,
    PreviewConfig,
    SegmentationConfig,
)
from microtome.api.presets import list_models
from microtome.api.registering import register
from microtome.api.results import open_result
from microtome.api.runs import run_slides, run_task
from microtome.api.slide import Slide, open_slide
from microtome.run.progress import Reporter, SilentReporter, activate_progress_reporter
from microtome.store.regions import region_features

RunResult = PipelineResult
"""What slide2vec's users call it."""

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
