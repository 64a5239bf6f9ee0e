"""Read the tiles of a tiling from the stores of an output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import InputError, TaskError
from microtome.plugin.specs import WriterSpec
from microtome.run.slides.labels import ANNOTATION_PATH
from microtome.slide.labels import FRACTION, LABEL, UNLABELLED
from microtome.slide.types import SlideRef
from microtome.store.attributes import parse_fields, parse_json
from microtome.store.exchange import read_geometry, read_info
from microtome.store.identity import IDENTITY
from microtome.store.labels import LABELS_FIELDS, parse_classes
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.patches import LABELLED
from microtome.store.survey import find_tilings, written
from microtome_training.tiles import TiledSlide, Tiles, do_first, join, tell_some

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry
    from microtome.run.job import TaskJob

_GIVEN = ("override", "mpp_csv", "manifest")
_DONE = {"train": "trained", "sample": "drawn"}


def root(job: TaskJob) -> Path:
    """Give the folder of the tiling that a task is about.

    The one that ``tiler.name`` names; otherwise the only one of the output, or the one without a
    name.

    Raises:
        TaskError: If there are no tiles, or several tilings to choose from.
        InputError: If the folder is no output.
    """
    output, tiling = job.config.output, job.config.tiling
    specs = _stores(job.registry)
    if tiling and tiling != "auto":
        named = OutputLayout(output, tiling).root
        if not _holds(named, specs):
            raise TaskError(_no_tiles(named, job.registry))
        return named
    tilings = find_tilings(output, taken_folders(job.registry)) if output.is_dir() else []
    roots = [layout.root for layout in tilings if _holds(layout.root, specs)]
    if not roots:
        raise TaskError(_no_tiles(output, job.registry))
    if len(roots) > 1 and roots[0] != output:
        names = ", ".join(each.relative_to(output).as_posix() for each in roots)
        raise TaskError(f"{output} holds several tilings: choose one with tiler.name=, of {names}.")
    return roots[0]


def read_tiles(job: TaskJob) -> Tiles:
    """Read the labelled tiles of a tiling, without their pixels.

    Args:
        job: Whose output and tiling; if it names slides, only theirs, and patients are known by
            its manifest.

    Raises:
        TaskError: If there are none, slides that are named have none, one slide is there under two
            names, or the slides do not go together: other classes, tiles of another size or
            resolution.
        StoreError: If a store cannot be read.
        InputError: If slides that are named are not there.
    """
    folder = root(job)
    refs = named_slides(job)
    parts = [part for part in read_stores(job, folder, refs) if part.classes]
    if not parts:
        of_these = "" if refs is None else " of the slides that are named"
        raise TaskError(f"{folder}: no tiles{of_these} are labelled. {do_first('Label them')}")
    if refs is not None:
        refuse_absent(folder, refs, parts, what="labelled tiles")
    refuse_twins(parts)
    return join(parts)


def named_slides(job: TaskJob) -> dict[str, SlideRef] | None:
    """Find the slides that a task's run names, by id; None if it names none.

    Raises:
        InputError: If one is not there, or shares its id with another.
    """
    found = job.find_slides()
    if found is None:
        return None
    if found.refused:
        reason, task = found.refused[0].reason, job.config.task
        raise InputError(
            f"{reason} task={task} takes all slides that are named, so nothing was "
            f"{_DONE.get(task, 'done')}. Put that right, or do not name the slide: take its row "
            "out of the manifest."
        )
    return {ref.slide_id: ref for ref in found.slides}


def read_stores(
    job: TaskJob, folder: Path, refs: Mapping[str, SlideRef | None] | None
) -> Iterator[Tiles]:
    """Read the tiles of each slide of a tiling, those of a store that the run names first.

    Args:
        job: The run.
        folder: The tiling's root.
        refs: Which slides, by id, None for one that is where its store says; None for all.

    Raises:
        StoreError: If a store cannot be read.
    """
    seen: set[str] = set()
    chosen = [choice.plugin for choice in job.config.writers]
    for spec in sorted(_stores(job.registry), key=lambda spec: spec.name not in chosen):
        for path, slide_id, _ in written(folder / spec.folder, spec):
            if slide_id not in seen and (refs is None or slide_id in refs):
                seen.add(slide_id)
                ref = None if refs is None else refs[slide_id]
                yield read_slide(path, spec.name, job.registry, slide_id=slide_id, ref=ref)


def read_slide(
    path: Path, writer: str, registry: Registry, *, slide_id: str, ref: SlideRef | None = None
) -> Tiles:
    """Read the tiles of one store.

    Args:
        path: The store.
        writer: The plugin that reads it.
        registry: The plugins.
        slide_id: The slide's name.
        ref: The slide, if the run names it; otherwise it is where the store says.

    Raises:
        StoreError: If it cannot be read.
    """
    with registry.create("writer", writer).open_stored(path) as stored:
        attributes, coords = stored.attributes, np.asarray(stored.coords, np.int32)
        fields, count, columns = parse_fields(attributes), len(coords), stored.columns
        classes = parse_classes(attributes) if LABEL in columns else ()
        label = np.asarray(columns[LABEL], np.int16) if classes else None
        fraction = np.asarray(columns[FRACTION], np.float32) if classes else None
        outlines = str(attributes.get(ANNOTATION_PATH) or "")
        slide = TiledSlide(
            ref=_with_patient(ref or _as_stored(attributes, slide_id), attributes),
            store=path,
            writer=writer,
            geometry=read_geometry(attributes, str(path)),
            info=read_info(attributes),
            identity=str(attributes.get(IDENTITY, "")),
            fingerprint=str(fields.get("slide") or fields.get("tissue", {}).get("slide") or ""),
            features=tuple(stored.feature_names()),
            labels="" if label is None else _digest(label, classes),
            outlines=Path(outlines) if outlines else None,
            outlines_digest=str(parse_json(attributes.get(LABELS_FIELDS)).get("file") or ""),
        )
    return Tiles(
        slides=(slide,),
        slide=np.zeros(count, np.int32),
        row=np.arange(count, dtype=np.int64),
        coords=coords,
        label=np.full(count, UNLABELLED, np.int16) if label is None else label,
        fraction=np.ones(count, np.float32) if fraction is None else fraction,
        classes=classes,
    )


def refuse_absent(
    where: Path, wanted: Iterable[str], parts: Iterable[Tiles], *, what: str = "tiles"
) -> None:
    """See that every slide is there.

    Raises:
        TaskError: If one is not.
    """
    absent = sorted({*wanted} - {part.slides[0].slide_id for part in parts})
    if absent:
        raise TaskError(
            f"{where} holds no {what} of {tell_some(absent)}. Place and label those first "
            "(task=index), or leave them out."
        )


def refuse_twins(parts: Iterable[Tiles]) -> None:
    """See that no slide is there under two names, known by its content: it would count twice.

    Raises:
        TaskError: If one is.
    """
    seen: dict[str, TiledSlide] = {}
    for slide in sorted((part.slides[0] for part in parts), key=lambda slide: slide.slide_id):
        twin = seen.setdefault(slide.fingerprint, slide)
        if slide.fingerprint and twin is not slide:
            raise TaskError(
                f"{twin.slide_id} and {slide.slide_id} are one slide under two names, by its "
                "content, and would count twice. Name the slides that count, by a manifest, or "
                f"remove what is left of the old name: {_of_old(twin, slide)}."
            )


def _of_old(*twins: TiledSlide) -> str:
    """Name the stores of slides that are gone; all where that tells nothing apart."""
    gone = [slide for slide in twins if not slide.ref.path.is_file()]
    return " or ".join(str(slide.store) for slide in (gone if len(gone) == 1 else twins))


def _digest(label: NDArray[np.int16], classes: Sequence[str]) -> str:
    """Tell labels apart from others."""
    return hashlib.sha256(json.dumps(classes).encode() + label.astype("<i2").tobytes()).hexdigest()


def _as_stored(attributes: Mapping[str, Any], slide_id: str) -> SlideRef:
    """Give a slide as its store knows it; an mpp that a user gave holds on."""
    info, source = read_info(attributes), str(attributes.get("wsi_path", ""))
    given = info.resolution.mpp_source in _GIVEN
    return SlideRef(
        path=Path(source),
        slide_id=slide_id,
        mpp=info.resolution.mpp if given else None,
        mpp_source=info.resolution.mpp_source if given else "override",
        source=source,
    )


def _with_patient(ref: SlideRef, attributes: Mapping[str, Any]) -> SlideRef:
    """Say whose a slide is by what its run was told, where this one is not told."""
    patient = str(attributes.get("patient_id", ""))
    return replace(ref, extra={**ref.extra, "patient_id": ref.patient_id or patient})


def _stores(registry: Registry, consumes: str = "features") -> list[WriterSpec]:
    entries = registry.entries("writer")
    found = [e.spec for e in entries if isinstance(e.spec, WriterSpec) and not e.missing]
    return [spec for spec in found if spec.consumes == consumes]


def _no_tiles(folder: Path, registry: Registry) -> str:
    """Say that a folder has no tiles to go by, and what else there is of them."""
    names = [spec.name for spec in _stores(registry, LABELLED) if _holds(folder, [spec])]
    if not names:
        return f"{folder} holds no tiles. {do_first('Place them')}"
    there = ",".join(names)
    return (
        f"{folder} holds tiles as images alone ({there}), and no hdf5 or zarr store of them. If "
        "they are of a sample, train on it by its name in the tiling that it was drawn from: "
        "task=train sample=NAME. Or have a store written beside them by the command that wrote "
        f"them, with writer=[hdf5,{there}]."
    )


def _holds(folder: Path, specs: Iterable[WriterSpec]) -> bool:
    return any(True for spec in specs for _ in written(folder / spec.folder, spec))
