"""One assigned slide, worked on as its history advises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from microtome.run.planning.plan import RunPlan
from microtome.run.progress import Reporter
from microtome.run.settings import DEFAULT_BATCH_SIZE
from microtome.run.slides.pipeline import process_slide
from microtome.slide.types import SlideRef
from microtome.store.status import SlideStatus

_MILDER = 4
"""By how much batches shrink with every worker that died on a slide."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What is known of a slide's earlier workers. Can be pickled.

    Attributes:
        deaths: How many died on it.
        avoid: Readers that had it then.
    """

    deaths: int = 0
    avoid: frozenset[str] = field(default_factory=frozenset)


def work_on(
    plan: RunPlan,
    ref: SlideRef,
    history: History,
    reporter: Reporter,
    *,
    trying: Callable[[str], None],
    company: Sequence[SlideRef] = (),
) -> SlideStatus:
    """Do for one slide what a run asks; by milder means where workers died on it.

    Args:
        plan: The resolved run.
        ref: The slide.
        history: Of the slide.
        reporter: Hears of every stage.
        trying: Told a reader's name before it is given the slide.
        company: Slides that are segmented with it, if it has no mask yet.
    """
    with _milder(plan, history.deaths) as mild:
        return process_slide(
            mild, ref, reporter, avoid=history.avoid, trying=trying, company=company
        )


@contextmanager
def _milder(plan: RunPlan, deaths: int) -> Iterator[RunPlan]:
    """Plan a slide again that workers died on: small batches, one thread that reads."""
    if not deaths:
        yield plan
        return
    shrink = _MILDER**deaths
    asked = [encoder.asked_batch_size for encoder in plan.encoders]
    for encoder, size in zip(plan.encoders, asked, strict=True):
        encoder.asked_batch_size = max(1, (size or DEFAULT_BATCH_SIZE) // shrink)
    batch_size = max(1, plan.config.batch_size // shrink)
    try:
        yield replace(plan, config=replace(plan.config, batch_size=batch_size, reader_threads=1))
    finally:
        for encoder, size in zip(plan.encoders, asked, strict=True):
            encoder.asked_batch_size = size
