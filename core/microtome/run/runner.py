"""Many slides through a run: one after the other, each finished one way or another."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from microtome._version import __version__
from microtome.errors import MicrotomeError, OutputError, StoreError
from microtome.plugin.files import add_files
from microtome.plugin.protocols import Engine
from microtome.plugin.registry import Registry, get_registry
from microtome.run.inputs.finding import SlideList, find_slides
from microtome.run.inputs.ids import Refused
from microtome.run.job import Job
from microtome.run.loading import load_for_patients
from microtome.run.patients.patients import claims_layout, find_patients
from microtome.run.patients.stage import embed_patients
from microtome.run.planning.budget import keep_memory
from microtome.run.planning.labels import check_files
from microtome.run.planning.plan import RunPlan, make_plan
from microtome.run.planning.solve import solve
from microtome.run.progress import Reporter, make_reporter
from microtome.run.settings import RunConfig
from microtome.run.signals import signals_interrupt
from microtome.run.slides.attributes import provenance
from microtome.run.slides.overlays import clashing
from microtome.run.summary import (
    RunResult,
    add_profiles,
    join_results,
    rounded,
    sum_up,
    summarise,
)
from microtome.run.tasks import run_task
from microtome.store.publish import sweep, write_json
from microtome.store.status import FAILED, SlideStatus

EXIT_DONE = 0
EXIT_STOPPED = 1
EXIT_FAILED_SLIDES = 3
EXIT_HELD_SLIDES = 4
EXIT_INTERRUPTED = 130


def run(config: RunConfig) -> int:
    """Do a run, reporting on stderr and summing up on stdout.

    Args:
        config: What to do.

    Returns:
        The exit code.

    Raises:
        MicrotomeError: If the run cannot start.
        KeyboardInterrupt: If it was interrupted; what was finished is kept and recorded.
    """
    registry = add_files(get_registry(), config.encoder_plugin)
    if config.own_task is not None:
        return run_task(config, registry)
    plans, results = plan_passes(config, registry), []
    for plan, result in zip(plans, run_passes(plans, make_reporter()), strict=True):
        results.append(result)
        sys.stdout.write(summarise(plan, result))
    joined = join_results(results)
    if len(results) > 1:
        sys.stdout.write(sum_up(joined, passes=len(results)))
    return joined.exit_code


def plan_passes(config: RunConfig, registry: Registry) -> list[RunPlan]:
    """Resolve every pass that a run takes, so that all is refused before the first begins.

    Several have a folder each below the run's own.

    Raises:
        MicrotomeError: As of `solve` and `make_plan`.
    """
    plans = [make_plan(each, registry) for each in solve(config, registry)]
    if len(plans) < 2 or config.run_dir is None:
        return plans
    return [
        replace(p, config=replace(p.config, run_dir=config.run_dir / p.layout.root.name))
        for p in plans
    ]


def run_passes(plans: Sequence[RunPlan], reporter: Reporter) -> Iterator[RunResult]:
    """Do one pass after the other; what all of them would tell is told by the first.

    Raises:
        MicrotomeError: As of `run_plan`.
    """
    told: set[str] = set()
    for plan in plans:
        result = run_plan(plan, reporter, told=told)
        told.update(result.notes)
        yield result


def run_plan(plan: RunPlan, reporter: Reporter, *, told: Collection[str] = ()) -> RunResult:
    """Do a resolved run.

    Args:
        plan: From `make_plan`.
        reporter: Hears how it goes.
        told: Notes that it heard already.

    Raises:
        OutputError: If the output took nothing more; what was finished is kept.
        MicrotomeError: If the run cannot start.
        KeyboardInterrupt: If it was interrupted; what was finished is kept and recorded.
    """
    slides = find_slides(plan.config, plan.registry)
    slides = _refuse_clashes(plan, slides)
    patients = find_patients(plan, slides)
    labels = check_files(plan.config, slides.slides, plan.registry)
    notes = [plan.first_line, *plan.notes, *labels, *_unused_masks(plan, slides), *slides.notes]
    result = RunResult(notes=notes)
    began, started = time.monotonic(), datetime.now(UTC)
    _sweep(plan, [ref.slide_id for ref in slides.slides], [p.patient_id for p in patients])
    with reporter, signals_interrupt(), keep_memory(plan.encoders):
        for note in result.notes:
            if note not in told:
                reporter.note(note)
        _notify(plan.registry, "run_started", reporter, run=_record(plan, slides, started))
        reporter.start(len(slides.slides) + len(slides.refused))
        try:
            load_for_patients(plan, [patient.patient_id for patient in patients])
            for status in _statuses(plan, slides, reporter):
                result.statuses.append(status)
                reporter.finished(status)
                _notify(plan.registry, "slide_finished", reporter, status=status.record())
            result.statuses = _in_order(result.statuses, slides)
            result.patients += embed_patients(plan, patients, result.statuses, reporter)
            place = {patient.patient_id: number for number, patient in enumerate(patients)}
            result.patients.sort(key=lambda status: place[status.patient_id])
        except KeyboardInterrupt as interrupt:
            result.exit_code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
            raise
        except MicrotomeError as error:
            result.exit_code, result.error = EXIT_STOPPED, str(error)
            if not isinstance(error, OutputError):
                raise
            raise OutputError(f"{error} {_so_far(result)}") from error
        finally:
            result.seconds = time.monotonic() - began
            if plan.config.profile:
                result.profile = add_profiles(result.statuses)
            broken_off = result.exit_code != EXIT_DONE
            if not broken_off:
                result.exit_code = _exit_code(result.counts, result.patient_counts)
            record = _record(plan, slides, started) | _outcome(result)
            # Why it was broken off is told, not that this could not be written down.
            with suppress(StoreError) if broken_off else nullcontext():
                _write_record(plan, result, record)
            _notify(plan.registry, "run_finished", reporter, run=record)
    return result


def _so_far(result: RunResult) -> str:
    finished = sum(status.state not in FAILED for status in result.statuses)
    return (
        f"The run ended there, with {finished} of its slides finished; the same command goes on "
        "with the others."
    )


def _write_record(plan: RunPlan, result: RunResult, record: Mapping[str, Any]) -> None:
    if plan.config.run_dir is not None:
        result.record = plan.config.run_dir / "run.json"
        write_json(result.record, record)


def _refuse_clashes(plan: RunPlan, slides: SlideList) -> SlideList:
    """Take out slides whose overlays have the name of another one's."""
    clashes = clashing(plan.layout, plan.config.visualize, slides.slides)
    refused = tuple(
        Refused(
            ref,
            f"The overlays of {ref.slide_id!r} and {clashes[ref.slide_id][0]!r} would both be "
            f"{clashes[ref.slide_id][1]}. Name one of them by a manifest's slide_id, or leave "
            "out visualize.",
        )
        for ref in slides.slides
        if ref.slide_id in clashes
    )
    apart = tuple(ref for ref in slides.slides if ref.slide_id not in clashes)
    return replace(slides, slides=apart, refused=slides.refused + refused)


def _unused_masks(plan: RunPlan, slides: SlideList) -> list[str]:
    """Say that masks were given which the segmenter does not look at."""
    given = sum(ref.mask_path is not None for ref in slides.slides)
    if not given or hasattr(plan.segmenter, "sources"):
        return []
    name = plan.segmenter_spec.name
    return [f"segmenter={name} does not use the {given} mask_path given; segmenter=file does."]


def _statuses(plan: RunPlan, slides: SlideList, reporter: Reporter) -> Iterator[SlideStatus]:
    """Do one slide after the other; those refused are told first and leave no record."""
    for refused in slides.refused:
        yield SlideStatus(
            slide_id=refused.slide.slide_id,
            path=refused.slide.source,
            state="failed",
            stage="inputs",
            task=plan.config.task,
            error={"type": "InputError", "message": refused.reason},
            version=__version__,
        )
    choice = plan.config.engine
    engine: Engine = plan.registry.create("engine", choice.plugin, choice.config)
    with closing(engine.run(Job(plan=plan, slides=slides.slides, reporter=reporter))) as statuses:
        yield from statuses


def _in_order(statuses: Sequence[SlideStatus], slides: SlideList) -> list[SlideStatus]:
    """Put the slides as they were named, whichever was finished first."""
    place = {source: number for number, source in enumerate(slides.order)}
    return sorted(statuses, key=lambda status: place.get(status.path, len(place)))


def _exit_code(*counted: Mapping[str, int]) -> int:
    states = {state for counts in counted for state, count in counts.items() if count}
    if states & {"failed", "quarantined"}:
        return EXIT_FAILED_SLIDES
    return EXIT_HELD_SLIDES if "held" in states else EXIT_DONE


def _sweep(plan: RunPlan, ids: Sequence[str], patient_ids: Sequence[str]) -> None:
    """Sweep every folder that this run writes into, and those of earlier runs."""
    layout = plan.layout
    patients = [layout.patient(s.spec, name) for s in plan.stores for name in patient_ids]
    patients += [claims_layout(layout).claim(name, "") for name in patient_ids]
    slides = [
        path
        for name in ids
        for path in (
            *(layout.slide(writer.spec, name) for writer in plan.writers),
            layout.tissue(name, ""),
            layout.status(name),
            layout.claim(name, ""),
            *(layout.visualization(name, kind) for kind in plan.config.visualize),
        )
    ]
    for folder in {path.parent for path in (*slides, *patients)}:
        sweep(folder)
    sweep(layout.runs_folder, below=True)


def _record(plan: RunPlan, slides: SlideList, started: datetime) -> dict[str, Any]:
    return {
        "microtome_version": __version__,
        "provenance": dict(provenance()),
        "config": dict(plan.config.resolved),
        "asked_for": plan.first_line,
        "encoders": {encoder.name: encoder.fields for encoder in plan.encoders},
        **{
            kind: {m.name: {"reads": dict(m.reads), **m.fields} for m in models}
            for kind in ("slide_encoders", "patient_encoders")
            if (models := getattr(plan, kind))
        },
        "derived": list(plan.config.derived),
        "segmenter": plan.segmenter_fields,
        "tiler": plan.tiler_fields,
        "slides": [{"slide_id": ref.slide_id, "path": ref.source} for ref in slides.slides],
        "left_aside": list(slides.notes),
        "started": started.isoformat(timespec="seconds"),
    }


def _outcome(result: RunResult) -> dict[str, Any]:
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 3),
        "counts": result.counts,
        **({"profile": rounded(result.profile)} if result.profile else {}),
        "exit_code": result.exit_code,
        **({"error": result.error} if result.error else {}),
        **({"patients": [p.record() for p in result.patients]} if result.patients else {}),
        "failed": {
            status.slide_id: {"stage": status.stage, **(status.error or {})}
            for status in result.statuses
            if status.state in FAILED
        },
    }


def _notify(registry: Registry, hook: str, reporter: Reporter, **what: Mapping[str, Any]) -> None:
    for complaint in registry.notify(f"microtome_{hook}", **what):
        reporter.note(complaint)
