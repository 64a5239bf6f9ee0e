"""From models and settings to a run of the one engine, and back to what it left."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from microtome.api.choices import check_settings, model_options, spread, tile_card, tile_size
from microtome.api.collecting import PipelineResult, collect, foresee
from microtome.api.embedding import EmbeddedPatient, EmbeddedSlide, Where, read_embedded
from microtome.api.execution import FILES, ExecutionOptions, idle, refuse_files
from microtome.api.fields import coerced, notes
from microtome.api.given import are_given, check_tiles, placing_notes
from microtome.api.grids import grid_options, reader_options
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.results import open_result
from microtome.api.runs import carry_out, compose, plan_run
from microtome.api.samples import Sample, write_rows
from microtome.api.words import PythonReporter, in_python, of_slide, python_words
from microtome.errors import ConfigError, EmbeddingError
from microtome.run.progress import make_reporter
from microtome.store.status import FAILED, SlideStatus

if TYPE_CHECKING:
    from microtome.api.models import Model
    from microtome.plugin.registry import Registry
    from microtome.run.patients.patients import PatientStatus
    from microtome.run.planning.plan import RunPlan
    from microtome.run.settings import RunConfig
    from microtome.run.summary import RunResult

_ON_ERROR = ("raise", "skip")


@contextmanager
def job(
    model: Model,
    samples: Sequence[Sample],
    preprocessing: PreprocessingConfig | Mapping[str, Any] | None,
    execution: ExecutionOptions | Mapping[str, Any] | None,
    *,
    on_error: str = "raise",
) -> Iterator[Job]:
    """Give a job, its output in a temporary folder unless there is an ``output_dir``.

    Raises:
        ConfigError: If the settings are not what the model was made for.
    """
    preprocessing = coerced(PreprocessingConfig, preprocessing or {})
    execution = coerced(ExecutionOptions, execution or {})
    with python_words():
        check_settings(model, preprocessing, execution)
    with ExitStack() as stack:
        output = execution.folder
        if output is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="microtome-"))
            output = Path(folder)
            refuse_files(preprocessing, execution)
        yield Job(
            model=model,
            samples=tuple(samples),
            preprocessing=preprocessing,
            execution=execution,
            output=output,
            on_error=on_error,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """Slides for a model.

    Attributes:
        model: The model.
        samples: The slides, in the order given.
        preprocessing: How they are tiled.
        execution: Devices, threads and files.
        output: The output folder.
        on_error: ``"raise"`` or ``"skip"``: what is done of what failed.
        stage: Where it ends: ``"coords"``, ``"tiles"``, or ``""`` for all that the model does.
    """

    model: Model
    samples: tuple[Sample, ...]
    preprocessing: PreprocessingConfig
    execution: ExecutionOptions
    output: Path
    on_error: str = "raise"
    stage: str = ""

    def __post_init__(self) -> None:
        if self.on_error not in _ON_ERROR:
            raise ConfigError(f"on_error={self.on_error!r} is not one of {', '.join(_ON_ERROR)}.")

    @python_words()
    def run(self) -> Done:
        """Do it: one run, or two where only some of the slides bring a mask.

        Raises:
            MicrotomeError: If it cannot start, files of something else are there, or the output
                takes nothing more.
        """
        if are_given(self.preprocessing):
            read_from = [self._read_from(sample) for sample in self.samples]
            check_tiles(self.model, self.preprocessing, read_from)
        with_mask = [sample for sample in self.samples if sample.mask_path is not None]
        without = [sample for sample in self.samples if sample.mask_path is None]
        if with_mask and without and self.model.level == "patient" and not self.stage:
            raise ConfigError(
                f"{len(with_mask)} of {len(self.samples)} slides bring a mask_path. For patients "
                "give one for all slides, or for none."
            )
        runs = [
            plan_run(*self.config(samples, masked=masked), tiles_only=self.stage == "tiles")
            for samples, masked in ((with_mask, True), (without, False))
            if samples
        ]
        done = Done(self, plans=[plan for plans in runs for plan in plans])
        if self.stage != "coords":
            foresee(done)
        reporter = PythonReporter(make_reporter())
        for plans in runs:
            done.add(carry_out(plans, reporter))
        return done

    def config(self, samples: Sequence[Sample], *, masked: bool) -> tuple[RunConfig, Registry]:
        """Compose the run of some slides, whose manifest is written.

        Args:
            samples: The slides.
            masked: Whether they bring masks of their own.
        """
        run_dir = self.output / "runs" / f"python-{uuid4().hex[:12]}"
        manifest = run_dir / "slides.csv"
        write_rows(manifest, [self._read_from(sample) for sample in samples])
        options = self.options(len(samples), masked=masked)
        config, registry = compose(manifest, self.output, options, run_dir=run_dir)
        told = (
            note for part in (*self.preprocessing.sections, self.execution) for note in notes(part)
        )
        placed = (*placing_notes(self.preprocessing), *idle(self.preprocessing, self.execution))
        config = replace(config, derived=(*told, *placed))
        return config, registry

    def _read_from(self, sample: Sample) -> Sample:
        """Give the slide as its pixels are read: its archive, where tiles come from archives."""
        folder = self.preprocessing.read_tiles_from
        if folder is None:
            return sample
        # As slide2vec names them, or as a run with writer=tar does.
        names = (f"{sample.sample_id}{suffix}" for suffix in (".tiles.tar", ".tar"))
        paths = [Path(folder).absolute() / name for name in names]
        found = next((path for path in paths if path.exists()), paths[-1])
        return replace(sample, image_path=found, mask_path=None, spacing_at_level_0=None)

    def options(self, slides: int, *, masked: bool) -> dict[str, Any]:
        """Give the options of the run, as `run_slides` takes them.

        Args:
            slides: How many there are.
            masked: Whether they bring masks of their own.
        """
        settings, registry = self.preprocessing, self.model.registry
        options = {
            "tiling": "auto",
            "force": not settings.resume,
            **({"task": "coords"} if self.stage == "coords" else {}),
            **reader_options(settings.backend, registry),
            **settings.segmentation.run_options(),
            **settings.filtering.run_options(*tile_size(self.model, settings)),
            **self.execution.run_options(),
            **spread(self.model, self.execution, slides),
            **model_options(self.model, settings, self.execution),
        }
        if settings.preview.kinds:
            options["visualize"] = list(settings.preview.kinds)
        if settings.save_tiles or not settings.on_the_fly:
            options["writer"] = [*options["writer"], "tar"]
        if self.on_error == "raise" and self.model.level == "patient":
            options["patient_failures"] = "fail"
        if masked and settings.segmentation.segmenter != "file":
            options["segmenter"] = "file"
        if self.model.files:
            options["encoder_plugin"] = [str(file.path) for file in self.model.files]
        return options | self._tiler() | dict(self.execution.run)

    def _tiler(self) -> dict[str, Any]:
        settings = self.preprocessing
        if settings.read_tiles_from is not None:
            return {"tiler": {"archive": dict(settings.tiler)}, "segmenter": "none"}
        if settings.read_coordinates_from is not None:
            folder = str(Path(settings.read_coordinates_from).absolute())
            return {"tiler": {"stored": {"folder": folder, **settings.tiler}}}
        return {"tiler": {"grid": grid_options(settings, tile_card(self.model))}}

    def embed_slides(self) -> list[EmbeddedSlide]:
        """Embed the slides, in the order given.

        Raises:
            EmbeddingError: If some failed and are not to be skipped.
        """
        done = self._run_and_keep()
        embedded = [done.read(s) for s in self.samples if s.sample_id not in done.failed]
        self.settle(done, embedded)
        return embedded

    def _run_and_keep(self) -> Done:
        """Do it, and write the files that embeddings are to be in."""
        done = self.run()
        if self.execution.output_format in FILES:
            collect(done, PipelineResult())
        return done

    def embed_patients(self) -> list[EmbeddedPatient]:
        """Embed the patients, in the order of first appearance.

        Raises:
            EmbeddingError: If slides or patients failed and are not to be skipped.
        """
        done = self._run_and_keep()
        embedded = [found for name in self.patients if (found := done.read_patient(name))]
        self.settle(done, embedded)
        return embedded

    def embed_patient(self) -> EmbeddedPatient:
        """Embed the one patient.

        Raises:
            EmbeddingError: If it cannot be embedded; says why.
        """
        done = self._run_and_keep()
        (name,) = self.patients
        found = done.read_patient(name)
        if found is None:
            failed = {**done.failed, **done.failed_patients}
            why = done.failed_patients.get(name, "the run ended before it").rstrip(".")
            told = f"The patient {name} could not be embedded: {why}."
            raise EmbeddingError(told, failed=failed, embedded=[])
        self.settle(done, [found])
        return found

    @property
    def patients(self) -> list[str]:
        """The patients, in the order of first appearance."""
        return list(dict.fromkeys(sample.patient_id for sample in self.samples))

    def settle(self, done: Done, embedded: Sequence[Any]) -> None:
        """Raise, or warn, if something failed.

        Raises:
            EmbeddingError: If it is to be raised.
        """
        failed = {**done.failed, **done.failed_patients}
        if not failed:
            return
        told = "; ".join(f"{name}: {why}" for name, why in failed.items())
        told = f"{len(failed)} could not be embedded. {told}"
        if self.on_error == "raise":
            raise EmbeddingError(told, failed=failed, embedded=embedded)
        warnings.warn(told, RuntimeWarning, stacklevel=4)


@dataclass(eq=False)
class Done:
    """What a job left.

    Attributes:
        job: The job.
        plans: Of its runs, pass by pass.
        statuses: How each slide ended in each pass, by ``sample_id``.
        patients: How each patient ended.
    """

    job: Job
    plans: list[RunPlan] = field(default_factory=list)
    statuses: dict[str, list[SlideStatus]] = field(default_factory=dict)
    patients: dict[str, PatientStatus] = field(default_factory=dict)

    def add(self, result: RunResult) -> None:
        """Take what one run left."""
        for status in result.statuses:
            self.statuses.setdefault(status.slide_id, []).append(status)
        self.patients |= {status.patient_id: status for status in result.patients}

    @cached_property
    def failed(self) -> dict[str, str]:
        """Slides that failed, with where and why."""
        found = {}
        for sample in self.job.samples:
            bad = [s for s in self.statuses.get(sample.sample_id, ()) if s.state in FAILED]
            if bad:
                message = of_slide(bad[0].message)
                found[sample.sample_id] = f"{bad[0].state} at {bad[0].stage}: {message}"
            elif sample.sample_id not in self.statuses:
                found[sample.sample_id] = "the run ended before it"
        return found

    @cached_property
    def failed_patients(self) -> dict[str, str]:
        """Patients that could not be embedded, and why."""
        errors = {name: status.error for name, status in self.patients.items()}
        return {name: in_python(error["message"]) for name, error in errors.items() if error}

    def where(self, sample_id: str) -> Where:
        """Say where the embeddings of a slide that did not fail lie."""
        level = self.job.model.level
        plan = next((p for p in self.plans if p.slide_encoders), self.plans[0])
        slide = plan.slide_encoders[0] if plan.slide_encoders else None
        return Where(
            path=self.store(plan, sample_id),
            features=next(iter(slide.reads.values())) if slide else plan.encoders[0].name,
            slide=slide.name if slide else "",
            latents=self.job.execution.save_latents and slide is not None,
            dense=tuple(
                group
                for group in ("tokens", "attention")
                if level == "tile" and self.job.model.options.get(group)
            ),
        )

    def store(self, plan: RunPlan, sample_id: str) -> Path:
        """Give the file of a slide."""
        return plan.layout.slide(plan.stores[0].spec, sample_id)

    def outputs(self, sample_id: str) -> dict[str, Path]:
        """Give the files that are kept of a slide, by what they are."""
        if self.job.execution.folder is None:
            return {}
        return {
            name: self.job.output / path
            for status in self.statuses[sample_id]
            for name, path in status.outputs.items()
        }

    def read(self, sample: Sample) -> EmbeddedSlide:
        """Read a slide that did not fail."""
        outputs = self.outputs(sample.sample_id)
        where = self.where(sample.sample_id)
        return read_embedded(
            where,
            sample_id=sample.sample_id,
            image_path=sample.image_path,
            mask_path=sample.mask_path or outputs.get("tissue"),
            mask_preview_path=outputs.get("mask overlay"),
            tiling_preview_path=outputs.get("grid overlay"),
            path=where.path if outputs else None,
        )

    def patient_plan(self) -> RunPlan:
        """Give the pass that embeds patients."""
        return next(plan for plan in self.plans if plan.patient_encoders)

    @property
    def patient_key(self) -> str:
        """Name of the embedding in a patient's file."""
        return f"patient_features/{self.patient_plan().patient_encoders[0].name}"

    def patient_path(self, patient_id: str) -> Path:
        """Give the file of a patient."""
        plan = self.patient_plan()
        return plan.layout.patient(plan.stores[0].spec, patient_id)

    def read_patient(self, patient_id: str) -> EmbeddedPatient | None:
        """Read a patient; None for one that could not be embedded."""
        if patient_id in self.failed_patients or patient_id not in self.patients:
            return None
        path, planned = self.patient_path(patient_id), self.patient_plan().patient_encoders[0]
        with open_result(path) as stored:
            embedding = stored.array(f"patient_features/{planned.name}")
        status = self.patients[patient_id]
        return EmbeddedPatient(
            patient_id=patient_id,
            patient_embedding=embedding,
            slide_embeddings=self._slide_embeddings(status.slides),
            left_out=dict(status.left_out),
            path=None if self.job.execution.folder is None else path,
        )

    def _slide_embeddings(self, names: Sequence[str]) -> dict[str, Any]:
        """Read the embeddings of a patient's slides; none where the run makes none."""
        plan = self.patient_plan()
        made = plan.slide_encoders[0].name if plan.slide_encoders else ""
        name = plan.patient_encoders[0].embeddings or made
        found = {}
        for sample_id in names if name else ():
            with open_result(self.store(plan, sample_id)) as stored:
                found[sample_id] = stored.array(f"slide_features/{name}")
        return found
