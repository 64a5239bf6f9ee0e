"""Manifests of slides through a model, everything kept in one output folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.api.choices import check_settings
from microtome.api.collecting import PipelineResult, collect
from microtome.api.execution import ExecutionOptions
from microtome.api.fields import coerced
from microtome.api.jobs import Done, Job
from microtome.api.models import Model
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.samples import Sample, SlideInput, read_rows, read_samples, slides_of
from microtome.api.words import python_words
from microtome.errors import ConfigError, InputError, one_line
from microtome.store.atomic import write_bytes

PROCESS_LIST = "process_list.csv"

_COLUMNS = (
    *("sample_id", "patient_id", "image_path", "mask_path", "spacing_at_level_0", "backend"),
    *("tiling_status", "num_tiles", "mask_preview_path", "tiling_preview_path"),
    *("feature_status", "feature_path", "encoder_name", "error"),
)


class Pipeline:
    """Slides through a model into an output folder.

    ::

        model = microtome.Model.from_preset("uni2")
        execution = microtome.ExecutionOptions(output_dir="out", output_format="pt")
        result = microtome.Pipeline(model, execution=execution).run(manifest_path="slides.csv")

    Args:
        model: From `Model.from_preset`.
        preprocessing: How slides are tiled; by default as the model's card says.
        execution: Devices, threads and files; needs an ``output_dir``.

    Raises:
        ConfigError: A ``ValueError``: if there is no ``output_dir``, or the settings are not what
            the model was made for.
    """

    def __init__(
        self,
        model: Model,
        preprocessing: PreprocessingConfig | None = None,
        *,
        execution: ExecutionOptions | None = None,
    ) -> None:
        self.model = model
        self.preprocessing = coerced(PreprocessingConfig, preprocessing or {})
        self.execution = coerced(ExecutionOptions, execution or {})
        if self.execution.folder is None:
            raise ConfigError(
                "A pipeline keeps what it makes: give ExecutionOptions(output_dir=…)."
            )
        with python_words():
            check_settings(model, self.preprocessing, self.execution)

    def run(
        self,
        slides: Iterable[SlideInput] | None = None,
        manifest_path: str | Path | None = None,
        *,
        tiling_only: bool = False,
        on_error: str = "skip",
    ) -> PipelineResult:
        """Embed slides and keep the embeddings.

        Args:
            slides: As `Model.embed_slides` takes them; or
            manifest_path: a CSV with the columns ``sample_id`` and ``image_path``, and if wanted
                ``mask_path``, ``spacing_at_level_0`` and ``patient_id``, which a patient model
                needs.
            tiling_only: Whether to end with coordinates.
            on_error: ``"skip"`` to warn of what failed and keep it in the result, ``"raise"`` to
                raise once all is done.

        Raises:
            EmbeddingError: If something failed that is not to be skipped.
            InputError: If the manifest is faulty.
            ConfigError: A ``ValueError``: if the settings describe no run.
        """
        samples = self._samples(slides, manifest_path)
        stage = "coords" if tiling_only else ""
        return self._run(samples, self.preprocessing, stage=stage, on_error=on_error)

    def run_with_coordinates(
        self,
        coordinates_dir: str | Path,
        *,
        slides: Iterable[SlideInput] | None = None,
        on_error: str = "skip",
    ) -> PipelineResult:
        """Embed the tiles of coordinates that there are, instead of tiling.

        Args:
            coordinates_dir: Ours (``…/patches``), hs2p's (``…/tiles``), TRIDENT's or CLAM's.
            slides: Which slides; all of the folder, by the paths that its files name, if None.
            on_error: As of `run`.

        Raises:
            InputError: If the folder holds no coordinates, or does not say where a slide is.
            EmbeddingError: As of `run`.
            ConfigError: As of `run`.
        """
        folder = Path(coordinates_dir)
        samples = slides_of(folder, self.model.registry) if slides is None else read_samples(slides)
        settings = replace(self.preprocessing, read_coordinates_from=folder)
        return self._run(self._known(samples), settings, stage="", on_error=on_error)

    def embed_tiles(self, coordinates_dir: str | Path, slides: Iterable[SlideInput]) -> list[Any]:
        """Embed tiles alone, whatever the level of the model; see `Model.embed_tiles`."""
        settings = replace(self.preprocessing, read_coordinates_from=Path(coordinates_dir))
        result = self._run(read_samples(slides), settings, stage="tiles", on_error="raise")
        return [*result.hierarchical_artifacts, *result.tile_artifacts]

    def _samples(
        self, slides: Iterable[SlideInput] | None, manifest_path: str | Path | None
    ) -> tuple[Sample, ...]:
        if (slides is None) == (manifest_path is None):
            raise ConfigError("Give slides or manifest_path: one of the two.")
        if manifest_path is None:
            return self._known(read_samples(slides or ()))
        return self._known(read_rows(manifest_path), str(manifest_path))

    def _known(self, samples: tuple[Sample, ...], where: str = "The slides") -> tuple[Sample, ...]:
        """See that every slide of a patient model has a patient.

        Raises:
            InputError: If one has none.
        """
        lost = [s.sample_id for s in samples if not s.patient_id]
        if lost and self.model.level == "patient":
            raise InputError(
                f"{where}: {len(lost)} slides have no patient_id, the first is {lost[0]!r}; "
                f"{self.model.name} embeds patients."
            )
        return samples

    def _run(
        self,
        samples: tuple[Sample, ...],
        settings: PreprocessingConfig,
        *,
        stage: str,
        on_error: str,
    ) -> PipelineResult:
        folder = self.execution.folder or Path()
        job = Job(
            model=self.model,
            samples=samples,
            preprocessing=settings,
            execution=self.execution,
            output=folder,
            on_error=on_error,
            stage=stage,
        )
        done = job.run()
        failed = {**done.failed, **done.failed_patients}
        result = PipelineResult(process_list_path=folder / PROCESS_LIST, failed=failed)
        if stage != "coords":
            collect(done, result)
        write_process_list(folder / PROCESS_LIST, done, result)
        job.settle(done, [result])
        return result


def write_process_list(path: Path, done: Done, result: PipelineResult) -> None:
    """Write how every slide ended, atomically.

    Raises:
        StoreError: If it cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")
    rows.writeheader()
    kept: dict[str, Path] = {a.sample_id: a.path for a in result.tile_artifacts}
    kept |= {a.sample_id: a.path for a in result.hierarchical_artifacts}
    kept |= {a.sample_id: a.path for a in result.slide_artifacts}
    for sample in done.job.samples:
        rows.writerow(_row(sample, done, kept))
    write_bytes(path, text.getvalue().encode())


def _row(sample: Sample, done: Done, kept: Mapping[str, Path]) -> dict[str, Any]:
    name = sample.sample_id
    statuses = done.statuses.get(name, [])
    outputs = done.outputs(name) if statuses else {}
    tiled = bool(statuses) and all(status.tiles is not None for status in statuses)
    error = done.failed.get(name, "")
    features = "" if done.job.stage == "coords" else "error" if error else "success"
    return {
        "sample_id": name,
        "patient_id": sample.patient_id,
        "image_path": sample.word,
        "mask_path": sample.mask_path or outputs.get("tissue", ""),
        "spacing_at_level_0": ""
        if sample.spacing_at_level_0 is None
        else sample.spacing_at_level_0,
        "backend": statuses[0].reader if statuses else "",
        "tiling_status": "success" if tiled else "error",
        "num_tiles": min(s.tiles or 0 for s in statuses) if tiled else "",
        "mask_preview_path": outputs.get("mask overlay", ""),
        "tiling_preview_path": outputs.get("grid overlay", ""),
        "feature_status": features,
        "feature_path": kept.get(name, ""),
        "encoder_name": done.job.model.key,
        "error": one_line(error),
    }
