"""What became of a run, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import one_line
from microtome.run.planning.plan import RunPlan
from microtome.run.progress import duration
from microtome.slide.clock import STAGES
from microtome.store.status import FAILED, SlideStatus

if TYPE_CHECKING:
    from microtome.run.patients.patients import PatientStatus


@dataclass(eq=False, kw_only=True)
class RunResult:
    """What became of a run.

    Attributes:
        statuses: One a slide, in the order in which they were named, unless the run was broken
            off; of a run of several passes, one for each.
        patients: One a patient, in order of first appearance.
        notes: What the user was told on the way.
        seconds: Wall time.
        exit_code: 0 all done or empty, 1 broken off by an error, 3 failed slides, 4 slides that
            other workers hold, 130 / 143 interrupted.
        error: Why it was broken off, if it was.
        record: Where the run record is, if the run has a folder.
        profile: Seconds by stage, all threads together, if the run was to keep account.
    """

    statuses: list[SlideStatus] = field(default_factory=list)
    patients: list[PatientStatus] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    exit_code: int = 0
    error: str = ""
    record: Path | None = None
    profile: Mapping[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of slides by state."""
        return dict(Counter(status.state for status in self.statuses))

    @property
    def patient_counts(self) -> dict[str, int]:
        """Number of patients by state."""
        return dict(Counter(status.state for status in self.patients))


def join_results(results: Sequence[RunResult]) -> RunResult:
    """Put the results of a run's passes together; its exit code is the worst of theirs."""
    if len(results) == 1:
        return results[0]
    codes = [result.exit_code for result in results]
    return RunResult(
        statuses=[status for result in results for status in result.statuses],
        patients=[status for result in results for status in result.patients],
        notes=list(dict.fromkeys(note for result in results for note in result.notes)),
        seconds=sum(result.seconds for result in results),
        exit_code=next((code for code in _WORST if code in codes), 0),
        error="; ".join(filter(None, (result.error for result in results))),
        record=next((r.record for r in reversed(results) if r.record), None),
        profile=dict(sum((Counter(result.profile) for result in results), Counter())),
    )


_WORST = (143, 130, 1, 3, 4)
"""Exit codes, the worst first."""

_WORST_FIRST = ("failed", "quarantined", "held", "done", "empty", "reused")
"""States of slides and patients, the worst first; one that was worked on counts as done."""

_TOLD = {"labels": "by label", "reasons": "with a reason against them", "dropped": "left out"}


def summarise(plan: RunPlan, result: RunResult) -> str:
    """Say in a few lines what was done, with what, and where it is."""
    config = plan.config
    counts = ", ".join(f"{count} {state}" for state, count in sorted(result.counts.items()))
    slides = "slide" if len(result.statuses) == 1 else "slides"
    ended = f"{len(result.statuses)} {slides}: {counts} in {duration(result.seconds)}"
    lines = [ended if result.statuses else "No slide was worked on here."]
    lines.append(f"asked for: {plan.first_line}")
    if any(status.state not in FAILED for status in result.statuses):
        lines += [f"{w.name}: {plan.layout.slide(w.spec, '<slide>')}" for w in plan.writers]
        lines.append(f"tissue: {plan.layout.tissue_folder}")
        if config.visualize:
            lines.append(f"overlays: {plan.layout.visualization_folder}")
    lines += _patients(plan, result)
    lines += _tiles(result)
    lines += _failed(result)
    lines += _account(result)
    return "\n".join(lines) + "\n"


def _tiles(result: RunResult) -> Iterator[str]:
    """Count tiles by what is known of them, and say of how many slides where that is not all."""
    tiled = sum(bool(status.tiles) for status in result.statuses)
    for what, told in _TOLD.items():
        tiles: Counter[str] = Counter()
        for status in result.statuses:
            tiles.update(getattr(status, what))
        of = sum(bool(status.tiles and getattr(status, what)) for status in result.statuses)
        some = f" ({of} of {tiled} slides)" if what == "labels" and of < tiled else ""
        if tiles:
            yield f"tiles {told}{some}: {', '.join(f'{k} {n}' for k, n in tiles.items())}"
        if what == "labels" and (empty := [name for name, count in tiles.items() if not count]):
            yield f"no tile is {' or '.join(empty)}"


def _patients(plan: RunPlan, result: RunResult) -> Iterator[str]:
    """Say what became of patients, and where their embeddings are."""
    if not result.patients:
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(result.patient_counts.items()))
    total = len(result.patients)
    yield f"{total} patient{'s' if total != 1 else ''}: {counts}"
    if any(status.error is None for status in result.patients):
        yield from (f"{s.name}: {plan.layout.patient(s.spec, '<patient>')}" for s in plan.stores)
    for state in ("failed", "held"):
        if names := [one_line(each.patient_id) for each in result.patients if each.state == state]:
            yield f"{state}: {', '.join(names)}"


def sum_up(result: RunResult, *, passes: int) -> str:
    """Say in one line what became of slides and patients in several passes: the worst of each."""
    told = []
    for what, ended in (
        ("slide", [(each.path, each.state) for each in result.statuses]),
        ("patient", [(each.patient_id, each.state) for each in result.patients]),
    ):
        found: dict[str, set[str]] = {}
        for name, state in ended:
            found.setdefault(name, set()).add(state)
        counts = Counter(next(s for s in _WORST_FIRST if s in states) for states in found.values())
        if found:
            states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            told.append(f"{len(found)} {what}{'s' * (len(found) != 1)}: {states}")
    return f"{passes} passes, {'; '.join([*told, duration(result.seconds)])} in all.\n"


def _failed(result: RunResult) -> Iterator[str]:
    """Name the slides that failed; each was told with its reason when it did."""
    failed: dict[str, list[str]] = {}
    for status in result.statuses:
        if status.state in FAILED:
            where = f"{status.state} at {status.stage}"
            failed.setdefault(where, []).append(one_line(status.slide_id))
    for where, names in failed.items():
        yield f"{where}: {', '.join(names)}"
    if failed:
        yield f"why: as told{f', and in {result.record}' if result.record else ' above'}"


def _account(result: RunResult) -> Iterator[str]:
    """Say where the time went, by stage of the pass over the pixels and by stage of slides."""
    if not result.profile:
        return
    seconds = rounded(result.profile)
    total = sum(seconds.values()) or 1.0
    yield "the pass over the pixels, seconds of all threads together:"
    for stage, value in seconds.items():
        yield f"  {stage:<10}{value:>9.2f} s {value / total:>5.0%}"
    stages: Counter[str] = Counter()
    for status in result.statuses:
        stages.update(status.seconds)
    shown = ", ".join(f"{stage} {value:.2f} s" for stage, value in stages.items())
    yield f"slides, wall time: {shown}"


def add_profiles(statuses: Iterable[SlideStatus]) -> dict[str, float]:
    """Add up where the time of slides went, whichever processes worked on them."""
    total: Counter[str] = Counter()
    for status in statuses:
        total.update(status.profile)
    return dict(total)


def rounded(profile: Mapping[str, float]) -> dict[str, float]:
    """Put stages in the order of the work, strangers' last, in milliseconds' precision."""
    known = [stage for stage in STAGES if stage in profile]
    others = sorted(set(profile) - set(STAGES))
    return {stage: round(profile[stage], 3) for stage in (*known, *others)}
