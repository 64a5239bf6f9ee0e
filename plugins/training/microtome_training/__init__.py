"""Tasks from labelled tiles to a classifier, its evaluation and its heatmaps. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator

from microtome.plugin import TaskSpec, TilerSpec, hookimpl
from microtome_training.options.evaluate import EvaluateConfig
from microtome_training.options.predict import PredictConfig
from microtome_training.options.sample import SampleConfig, SampledConfig
from microtome_training.options.train import TrainConfig

_INSTALL = "pip install 'microtome[train]'"
_REQUIRES = ("torch", "pyarrow", "sklearn", "matplotlib", "shapely")


@hookimpl
def microtome_tilers() -> Iterator[TilerSpec]:
    """Register the tiler of a sample's tiles."""
    yield TilerSpec(
        name="sampled",
        target="microtome_training.sampling.tiler:SampledTiler",
        summary="The tiles of a sample, with their labels",
        config=SampledConfig,
        labels=True,
        requires=("pyarrow",),
        install="pip install 'microtome[parquet]'",
    )


@hookimpl
def microtome_tasks() -> Iterator[TaskSpec]:
    """Register the tasks of training."""
    yield TaskSpec(
        name="sample",
        target="microtome_training.sampling.task:SampleTask",
        summary="Draw a balanced sample of labelled tiles",
        config=SampleConfig,
        takes_slides=False,
        folders=("samples",),
        requires=("pyarrow",),
        install="pip install 'microtome[parquet]'",
    )
    yield TaskSpec(
        name="predict",
        target="microtome_training.predicting.task:PredictTask",
        summary="Give tiles a trained model's probabilities, slides their scores and heatmaps",
        config=PredictConfig,
        folders=("predictions",),
        requires=_REQUIRES,
        install=_INSTALL,
    )
    yield TaskSpec(
        name="train",
        target="microtome_training.training.task:TrainTask",
        summary="Train a classifier of tiles and measure it on other slides",
        config=TrainConfig,
        takes_slides=False,
        folders=("training",),
        requires=("lightning_fabric", "torchvision", "timm", "jinja2", *_REQUIRES),
        install=_INSTALL,
    )
    yield TaskSpec(
        name="evaluate",
        target="microtome_training.evaluation.task:EvaluateTask",
        summary="Measure predictions of labelled tiles: tables, plots and a page",
        config=EvaluateConfig,
        takes_slides=False,
        requires=("pyarrow", "sklearn", "matplotlib", "jinja2", "shapely"),
        install=_INSTALL,
    )
