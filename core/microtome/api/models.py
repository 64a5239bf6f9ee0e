"""Models by name, and what they make of slides and patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microtome.api import jobs
from microtome.api.choices import check_model
from microtome.api.embedding import EmbeddedPatient, EmbeddedSlide
from microtome.api.execution import ExecutionOptions
from microtome.api.fields import coerced
from microtome.api.preprocessing import PreprocessingConfig
from microtome.api.presets import KINDS, ModelSpec, find_model
from microtome.api.runs import Chosen
from microtome.api.samples import (
    SlideInput,
    of_one_patient,
    read_samples,
    with_patients,
)
from microtome.errors import ConfigError
from microtome.plugin.files import PluginFile, add_files, find_files
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry, get_registry
from microtome.plugin.specs import EncoderCard, TileNeed

if TYPE_CHECKING:
    from microtome.api.artifacts import SlideEmbeddingArtifact, TileArtifact


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Model:
    """A model of tiles, slides or patients, and how it is to run. Made by `from_preset`.

    Attributes:
        name: Ours, whatever it was asked for by.
        level: ``"tile"``, ``"slide"`` or ``"patient"``.
        spec: What is known of it.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, or None for the card's on a GPU.
        options: Of the model, as configured.
        encoder: The patch encoder that a slide or patient model is to read, with its options; what
            the model itself names if None.
        slide_encoder: Of a patient model, the slide encoder, likewise.
        allow_non_recommended_settings: Whether tiles and precision may differ from the card's.
        files: Plugin files that it is from.
    """

    name: str
    level: str
    spec: ModelSpec
    device: str = "auto"
    precision: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    encoder: Chosen | None = None
    slide_encoder: Chosen | None = None
    allow_non_recommended_settings: bool = False
    files: tuple[PluginFile, ...] = ()

    @classmethod
    def from_preset(  # noqa: PLR0913 - by the names that users know
        cls,
        name: str,
        *,
        level: str | None = None,
        device: str = "auto",
        precision: str | None = None,
        output_variant: str | None = None,
        allow_non_recommended_settings: bool = False,
        encoder: Chosen | None = None,
        slide_encoder: Chosen | None = None,
        encoder_plugin: str | Path | Sequence[str | Path] = (),
        **options: Any,
    ) -> Model:
        """Choose a model by name; nothing is loaded yet.

        ::

            microtome.Model.from_preset("uni2", device="cuda")
            microtome.Model.from_preset("mean", level="slide", encoder="uni_v2")

        Args:
            name: Ours or another tool's; `list_models` lists ours.
            level: Needed only where one name is a model of several levels.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``; the card's on a GPU if None.
            output_variant: Of a model that has several embeddings, its option ``variant``.
            allow_non_recommended_settings: Whether size, spacing and precision may differ from the
                model's card. What a slide model needs is needed all the same.
            encoder: Of a slide or patient model, the patch encoder that it reads, as `run_slides`
                takes it: needed by poolings, and to give a needed encoder options.
            slide_encoder: Of a patient model, likewise.
            encoder_plugin: Files with models of the user's own.
            **options: The model's own, ``weights="random"`` for one.

        Raises:
            ConfigError: A ``ValueError``: if the name means several models, or the model has no
                such variant.
            UnknownPluginError: If there is no such model.
            PluginError: If it has no such option.
        """
        several = [encoder_plugin] if isinstance(encoder_plugin, str | Path) else encoder_plugin
        files = find_files(several)
        spec = find_model(name, level, add_files(get_registry(), files))
        if output_variant is not None:
            options["variant"] = _variant(spec, output_variant)
        model = cls(
            name=spec.name,
            level=next(level for level, kind in KINDS.items() if kind == spec.kind),
            spec=spec,
            device=device,
            precision=precision,
            options=options,
            encoder=encoder,
            slide_encoder=slide_encoder,
            allow_non_recommended_settings=allow_non_recommended_settings,
            files=files,
        )
        check_model(model)
        return model

    def __repr__(self) -> str:
        """Name it with its level, and what is known of its weights."""
        card = self.spec.card
        told = [repr(self.key), f"level={self.level!r}"]
        if card is not None:
            told += [] if "variant" in self.options else [f"dim={card.dim}"]
            told += [f"licence={card.licence!r}"] if card.licence else []
            told += [f"gated={card.gated}"] if card.gated is not None else []
        return f"Model({', '.join(told)})"

    @property
    def registry(self) -> Registry:
        """The plugins, those of its files with them."""
        return add_files(get_registry(), self.files)

    @property
    def key(self) -> str:
        """Name of what it makes: the model, and its variant if that is not the default."""
        variant = self.options.get("variant")
        default = getattr(self.spec.config(), "variant", None)
        is_other = variant is not None and str(variant) != str(getattr(default, "value", default))
        return TileNeed(encoder=self.name, options={"variant": variant} if is_other else {}).key

    @property
    def card(self) -> EncoderCard | None:
        """What is known of the model; None of a pooling, which depends on what it pools.

        Raises:
            MissingDependencyError: If only its options say it, and a library that it needs is not
                installed.
        """
        if self.spec.card is not None and not self.options:
            return self.spec.card
        known = {each.name for each in fields(self.spec.config)}
        own = {name: value for name, value in self.options.items() if name in known}
        made = self.registry.create(self.spec.kind, self.name, configure(self.spec, **own))
        card: EncoderCard | None = getattr(made, "card", None) or self.spec.card
        return card

    @property
    def feature_dim(self) -> int:
        """Columns of its embedding.

        Raises:
            ConfigError: Of a pooling, which has as many as what it pools makes of it.
        """
        card = self.card
        if card is None:
            raise ConfigError(f"{self.name} has as many columns as what it pools says.")
        return card.dim

    def embed_slide(
        self,
        slide: SlideInput,
        *,
        preprocessing: PreprocessingConfig | None = None,
        execution: ExecutionOptions | None = None,
        sample_id: str | None = None,
        mask_path: str | Path | None = None,
        spacing_at_level_0: float | None = None,
    ) -> EmbeddedSlide:
        """Embed a slide.

        Of several GPUs each has a part of its tiles.

        Args:
            slide: Its path or URL, or a mapping with ``image_path`` and what else is known of it:
                ``sample_id``, ``mask_path``, ``spacing_at_level_0``.
            preprocessing: How it is tiled; by default as the model's card says.
            execution: Devices, threads and files.
            sample_id: Of a path: its name; the file's stem if not given.
            mask_path: Of a path: a tissue mask of your own.
            spacing_at_level_0: Of a path: µm per level-0 pixel, which wins over the file.

        Raises:
            EmbeddingError: If the slide failed; says where and why.
            ConfigError: A ``ValueError``: if the settings describe no run, or are not what the
                model was made for.
        """
        beside = {
            "sample_id": sample_id,
            "mask_path": mask_path,
            "spacing_at_level_0": spacing_at_level_0,
        }
        given = {name: value for name, value in beside.items() if value is not None}
        if isinstance(slide, str | Path):
            slide = {"image_path": slide, **given}
        elif given:
            raise ConfigError(
                f"{', '.join(given)} is given beside a slide that is no path: put it into the "
                "slide's mapping."
            )
        return self.embed_slides([slide], preprocessing=preprocessing, execution=execution)[0]

    def embed_slides(
        self,
        slides: Iterable[SlideInput],
        *,
        preprocessing: PreprocessingConfig | None = None,
        execution: ExecutionOptions | None = None,
        on_error: str = "raise",
    ) -> list[EmbeddedSlide]:
        """Embed slides, in the order given whatever finishes first.

        Of several GPUs each works on slides of its own.

        Args:
            slides: As `embed_slide` takes one.
            preprocessing: How they are tiled.
            execution: Devices, threads and files.
            on_error: ``"raise"`` to raise once the other slides are done, ``"skip"`` to warn and
                leave out those that failed.

        Raises:
            EmbeddingError: If slides failed, unless they are skipped; it holds the others.
            ConfigError: A ``ValueError``: as of `embed_slide`.
        """
        self._refuse_level("embed_slides", "tile", "slide")
        samples = read_samples(slides)
        with jobs.job(self, samples, preprocessing, execution, on_error=on_error) as job:
            return job.embed_slides()

    def embed_patient(
        self,
        slides: Iterable[SlideInput],
        patient_id: str | None = None,
        *,
        preprocessing: PreprocessingConfig | None = None,
        execution: ExecutionOptions | None = None,
        on_error: str = "skip",
    ) -> EmbeddedPatient:
        """Embed one patient.

        Args:
            slides: All of the patient's.
            patient_id: The patient; by default what the slides say (``patient_id``), else the first
                slide's ``sample_id``.
            preprocessing: How slides are tiled.
            execution: Devices, threads and files.
            on_error: As of `embed_patients`.

        Raises:
            EmbeddingError: If the patient cannot be embedded.
            ConfigError: A ``ValueError``: if the model is none of patients, the slides name several
                patients, or as of `embed_slide`.
        """
        self._refuse_level("embed_patient", "patient")
        samples = of_one_patient(read_samples(slides), patient_id)
        with jobs.job(self, samples, preprocessing, execution, on_error=on_error) as job:
            return job.embed_patient()

    def embed_patients(
        self,
        slides: Iterable[SlideInput],
        patient_id_map: Mapping[str, str] | None = None,
        *,
        preprocessing: PreprocessingConfig | None = None,
        execution: ExecutionOptions | None = None,
        on_error: str = "skip",
    ) -> list[EmbeddedPatient]:
        """Embed patients, in the order in which they first appear among the slides.

        Args:
            slides: Of all patients, each with its ``patient_id``; one without is a patient of its
                own, by its ``sample_id``.
            patient_id_map: Patients by ``sample_id``, which win over what slides say.
            preprocessing: How slides are tiled.
            execution: Devices, threads and files.
            on_error: ``"skip"`` to embed a patient without the slides that failed, which are warned
                of and in `EmbeddedPatient.left_out`; ``"raise"`` to raise once all is done.

        Raises:
            EmbeddingError: If slides failed and are not to be skipped; it holds what was embedded.
            ConfigError: A ``ValueError``: if the model is none of patients, or as of `embed_slide`.
        """
        self._refuse_level("embed_patients", "patient")
        samples = with_patients(read_samples(slides), patient_id_map)
        with jobs.job(self, samples, preprocessing, execution, on_error=on_error) as job:
            return job.embed_patients()

    def embed_tiles(
        self,
        slides: Iterable[SlideInput],
        coordinates: str | Path,
        *,
        preprocessing: PreprocessingConfig | None = None,
        execution: ExecutionOptions | None = None,
    ) -> Sequence[TileArtifact]:
        """Embed the tiles of coordinates that there are, and keep them.

        Args:
            slides: As `embed_slide` takes one.
            coordinates: A folder of coordinates: ours (``…/patches``), hs2p's, TRIDENT's or CLAM's.
            preprocessing: What else there is to say; coordinates are not placed anew.
            execution: Needs an ``output_dir``.

        Returns:
            One artefact a slide, in the order given.

        Raises:
            EmbeddingError: If slides failed.
            ConfigError: A ``ValueError``: if there is no ``output_dir``, or as of `embed_slide`.
        """
        from microtome.api.pipelines import Pipeline

        pipeline = Pipeline(self, preprocessing, execution=execution)
        return pipeline.embed_tiles(coordinates, slides)

    def aggregate_tiles(
        self,
        tile_artifacts: Iterable[TileArtifact | str | Path],
        *,
        execution: ExecutionOptions | None = None,
    ) -> list[SlideEmbeddingArtifact]:
        """Make slide embeddings of tile embeddings that are there; no slide is opened.

        Args:
            tile_artifacts: What `embed_tiles` or a `Pipeline` gave, or paths of our stores; or one.
            execution: Of ``output_format="pt"`` or ``"npz"`` it needs an ``output_dir``; otherwise
                our stores, which lie there if it is given, take the embeddings in. Of its ``run``
                only ``bag_memory_gb`` is taken.

        Returns:
            One artefact a slide that has tiles, in the order given.

        Raises:
            EncoderError: If the features are not those that the model needs.
            ConfigError: A ``ValueError``: if the model is none of slides.
        """
        from microtome.api.aggregation import aggregate

        self._refuse_level("aggregate_tiles", "slide")
        return aggregate(self, tile_artifacts, coerced(ExecutionOptions, execution or {}))

    def _refuse_level(self, what: str, *levels: str) -> None:
        if self.level not in levels:
            instead = "embed_patients" if self.level == "patient" else "embed_slides"
            raise ConfigError(
                f"{what} needs a model of {' or '.join(levels)} level, and {self.name} is one of "
                f"{self.level} level: call {instead}, or choose from list_models({levels[-1]!r})."
            )


def _variant(spec: ModelSpec, value: str) -> str:
    if "variant" not in {each.name for each in fields(spec.config)}:
        raise ConfigError(f"{spec.name} has one embedding: leave out output_variant={value!r}.")
    return value
