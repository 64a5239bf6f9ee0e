"""Gathers what a run kept, and writes what is to be a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from microtome.api.artifacts import (
    HierarchicalEmbeddingArtifact,
    PatientEmbeddingArtifact,
    SlideEmbeddingArtifact,
    TileEmbeddingArtifact,
)
from microtome.api.execution import FILES
from microtome.api.keeping import Files, Keeper
from microtome.api.samples import Sample

if TYPE_CHECKING:
    from microtome.api.jobs import Done, Job


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """What a pipeline kept, in the order of the manifest; known as ``microtome.RunResult``, too.

    Attributes:
        tile_artifacts: Tile embeddings; of a slide or patient model with ``save_tile_embeddings``.
        hierarchical_artifacts: Tile embeddings by region, in place of those.
        slide_artifacts: Slide embeddings; of a patient model with ``save_slide_embeddings``.
        patient_artifacts: Patient embeddings, in the order of first appearance.
        process_list_path: A CSV with a row a slide: how it ended, where it is, what was wrong.
        failed: Slides and patients that failed by id, with where and why.
    """

    tile_artifacts: list[TileEmbeddingArtifact] = field(default_factory=list)
    hierarchical_artifacts: list[HierarchicalEmbeddingArtifact] = field(default_factory=list)
    slide_artifacts: list[SlideEmbeddingArtifact] = field(default_factory=list)
    patient_artifacts: list[PatientEmbeddingArtifact] = field(default_factory=list)
    process_list_path: Path | None = None
    failed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def find_files(job: Job) -> Files | None:
    """Give what writes the files of a job; None where its store is what is kept.

    Raises:
        MissingDependencyError: If the format needs torch, and there is none.
    """
    kind = job.execution.output_format
    if kind not in FILES:
        return None
    return Files(output=job.output, format=kind, replace=not job.preprocessing.resume)


def foresee(done: Done) -> None:
    """Refuse files that are there of other embeddings, before anything is computed.

    Args:
        done: What is planned of a job.

    Raises:
        IdentityError: If there is one, unless files are replaced.
        MissingDependencyError: If the format needs torch, and there is none.
    """
    files = find_files(done.job)
    if files is None:
        return
    wants_tiles, wants_slides = _wanted(done.job)
    kind = "hierarchical" if done.job.preprocessing.is_hierarchical else "tile"
    for sample in done.job.samples:
        where = done.where(sample.sample_id)
        if wants_tiles:
            files.foresee(kind, sample.sample_id, f"features/{where.features}", where.path)
        if wants_slides and where.slide:
            files.foresee("slide", sample.sample_id, f"slide_features/{where.slide}", where.path)
    for name in _patients(done.job):
        files.foresee("patient", name, done.patient_key, done.patient_path(name))


def _wanted(job: Job) -> tuple[bool, bool]:
    """Say whether embeddings of tiles, and of slides, are kept."""
    level = "tile" if job.stage == "tiles" else job.model.level
    wants_slides = level == "slide" or (level == "patient" and job.execution.save_slide_embeddings)
    return level == "tile" or job.execution.save_tile_embeddings, wants_slides


def _patients(job: Job) -> list[str]:
    return job.patients if job.model.level == "patient" and job.stage != "tiles" else []


def collect(done: Done, result: PipelineResult) -> None:
    """Keep every embedding that is wanted of a job.

    Args:
        done: What the job left.
        result: Takes the artefacts.

    Raises:
        IdentityError: If a file was made of something else, unless files are replaced.
        StoreError: If a file cannot be written.
    """
    job, model = done.job, done.job.model
    keeper = Keeper(
        files=find_files(job), store=job.execution.store, encoder=model.key, level=model.level
    )
    wants_tiles, wants_slides = _wanted(job)
    for sample in job.samples if wants_tiles or wants_slides else ():
        if sample.sample_id not in done.failed:
            _keep_slide(keeper, done, sample, result, wants_tiles, wants_slides)
    for name in _patients(job):
        if name not in done.failed_patients:
            count, path = len(done.patients[name].slides), done.patient_path(name)
            result.patient_artifacts.append(keeper.patient(name, path, done.patient_key, count))


def _keep_slide(
    keeper: Keeper,
    done: Done,
    sample: Sample,
    result: PipelineResult,
    wants_tiles: bool,
    wants_slides: bool,
) -> None:
    where, outputs = done.where(sample.sample_id), done.outputs(sample.sample_id)
    known = replace(sample, mask_path=sample.mask_path or outputs.get("tissue"))
    if wants_tiles:
        kept = keeper.tiles(known, where)
        if isinstance(kept, HierarchicalEmbeddingArtifact):
            result.hierarchical_artifacts.append(kept)
        else:
            result.tile_artifacts.append(kept)
    if wants_slides and where.slide:
        embedded = keeper.slide(known, where)
        if embedded is not None:
            result.slide_artifacts.append(embedded)
