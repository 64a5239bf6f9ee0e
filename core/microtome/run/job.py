"""What an engine is given to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.run.planning.plan import RunPlan
from microtome.slide.types import SlideRef

if TYPE_CHECKING:
    from microtome.run.progress import Reporter


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A run's slides, for an engine to have worked through.

    Attributes:
        plan: The resolved run. Other processes make their own of ``plan.config``, which can be
            pickled.
        slides: What is to be done, in the order of the command line.
        reporter: Hears of every stage and of what the user should know. The driver tells it of
            finished slides itself.
    """

    plan: RunPlan
    slides: tuple[SlideRef, ...]
    reporter: Reporter
