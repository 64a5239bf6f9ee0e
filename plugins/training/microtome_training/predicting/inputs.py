"""What a prediction goes by: the model, its device, the tiling, and tiles where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError, TaskError
from microtome.run.exchange.exporting import find_stores
from microtome.run.settings import Choice, EncoderChoice
from microtome.slide import GridConfig
from microtome.store.arrays import is_name
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.survey import find_tilings
from microtome_training.devices import find_device, find_precision
from microtome_training.names import BEST, CHECKPOINTS, FEATURES, TRAINING

if TYPE_CHECKING:
    from microtome.run.job import TaskJob
    from microtome.slide.types import SlideRef
    from microtome_training.classifier import Classifier

_BEST = (CHECKPOINTS, BEST)
_GRID = "grid"
_NAMED = 5
_FAILED = ("failed", "quarantined", "held")


def find_checkpoint(job: TaskJob, given: str | None) -> Path:
    """Give the trained model that a run names, or the only one of its output.

    Raises:
        ConfigError: If there is no such file, or none or several to choose from.
    """
    if given is not None:
        if not (path := Path(given)).is_file():
            raise ConfigError(f"There is no trained model {path}: give the path of a best.pt.")
        return path.absolute()
    layouts = [OutputLayout(job.config.output, job.config.tiling)] if _is_named(job) else _all(job)
    found = [path for layout in layouts for path in _trained(layout)]
    if not found:
        raise ConfigError(
            f"{job.config.output} holds no trained model. Train one with task=train, or name one: "
            "predict.checkpoint=…/checkpoints/best.pt."
        )
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(job.config.output)) for path in found[:_NAMED])
        more = ", …" if len(found) > _NAMED else ""
        raise ConfigError(
            f"{job.config.output} holds {len(found)} trained models, {names}{more}: name one with "
            "predict.checkpoint=."
        )
    return found[0].absolute()


def find_place(job: TaskJob) -> tuple[str, str]:
    """Resolve the device and precision of a run; what nobody asks for is exact.

    Raises:
        ConfigError: If the device is not there, or cannot compute so.
    """
    device, precision = find_device(job.config.device), job.config.precision
    return device, find_precision("fp32" if precision == "auto" else precision, device)


def _is_named(job: TaskJob) -> bool:
    return job.config.tiling not in ("", "auto")


def name_predictions(given: str, checkpoint: Path) -> str:
    """Name predictions as the model's training is named, if nobody says otherwise.

    Raises:
        ConfigError: If it cannot be the name of an array.
    """
    of_training = checkpoint.parent.parent.name if checkpoint.parent.name == _BEST[0] else ""
    name = given if given != "auto" else of_training or checkpoint.stem
    if not is_name(name):
        raise ConfigError(f"predict.name={name!r} must be a plain name, without a slash.")
    return name


def _all(job: TaskJob) -> list[OutputLayout]:
    """Find the tilings of the output, and the output itself."""
    output = job.config.output
    if not output.is_dir() or not any(output.iterdir()):
        return []
    found = find_tilings(output, taken_folders(job.registry))
    return found if any(each.root == output for each in found) else [OutputLayout(output), *found]


def _trained(layout: OutputLayout) -> list[Path]:
    return sorted((layout.root / TRAINING).glob("/".join(("[!.]*", *_BEST))))


def find_layout(job: TaskJob, checkpoint: Path) -> OutputLayout:
    """Choose the tiling: the one that is named, that of the training, or the only one.

    Raises:
        TaskError: If there are several to choose from.
    """
    output = job.config.output
    if _is_named(job):
        return OutputLayout(output, job.config.tiling)
    layouts = _all(job)
    tiled = [layout for layout in layouts if find_stores(layout, job.registry)]
    own = [each for each in tiled if checkpoint.is_relative_to((each.root / TRAINING).absolute())]
    if own or len(tiled) == 1:
        return (own or tiled)[0]
    if tiled:
        names = ", ".join(each.relative(each.root) for each in tiled)
        raise TaskError(f"{output} holds several tilings: choose one with tiler.name=, of {names}.")
    return OutputLayout(output)


def tile_first(
    job: TaskJob, classifier: Classifier, layout: OutputLayout, refs: Mapping[str, SlideRef]
) -> dict[str, str]:
    """Tile those of the named slides that are not, as the model takes them; tell what failed."""
    if not refs or not _lacking(job, classifier, layout, refs):
        return {}
    takes = classifier.takes
    encoders: tuple[EncoderChoice, ...] = ()
    if takes.kind == FEATURES:
        plugin = str(takes.encoder.get("plugin", takes.features))
        chosen = {choice.name: choice for choice in job.config.encoders}
        default = EncoderChoice(plugin=plugin, key=takes.features)
        encoders = (chosen.get(takes.features, default),)
    tiling = "" if layout.root == layout.output else layout.relative(layout.root)
    result = job.run_slides(
        task="process" if encoders else "coords",
        encoders=encoders,
        slide_encoders=(),
        patient_encoders=(),
        tiling=tiling,
        tiler=_tiler(job, classifier),
    )
    stores = find_stores(layout, job.registry)
    return {
        status.slide_id: status.message
        for status in result.statuses
        if status.state in _FAILED and status.slide_id not in stores
    }


def _lacking(
    job: TaskJob, classifier: Classifier, layout: OutputLayout, refs: Mapping[str, SlideRef]
) -> bool:
    """Whether a named slide has no tiles, or not the features that the model takes."""
    stores, takes = find_stores(layout, job.registry), classifier.takes
    if refs.keys() - stores.keys():
        return True
    if takes.kind != FEATURES:
        return False
    for slide_id in refs:
        store, spec = stores[slide_id]
        with job.registry.create("writer", spec.name).open_stored(store) as stored:
            if takes.features not in stored.feature_names():
                return True
    return False


def _tiler(job: TaskJob, classifier: Classifier) -> Choice:
    """Give the run's tiler, with the model's tiles where the user says nothing of them."""
    choice, takes = job.config.tiler, classifier.takes
    if choice.plugin != _GRID:
        return choice
    config = choice.config or GridConfig()
    changes: dict[str, Any] = {"size": takes.size} if config.size is None else {}
    if config.magnification is None and config.mpp is None and config.level is None:
        if takes.magnification is not None:
            changes["magnification"] = takes.magnification
        elif takes.mpp is None:
            changes["level"] = takes.level
        else:
            changes["mpp"] = takes.mpp
    return replace(choice, config=replace(config, **changes))
