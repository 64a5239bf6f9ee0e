"""What an engine, or a task, is given to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microtome.run.planning.plan import RunPlan
from microtome.run.settings import RunConfig
from microtome.slide.types import SlideRef

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry
    from microtome.run.inputs.finding import SlideList
    from microtome.run.progress import Reporter
    from microtome.run.summary import RunResult


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


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskJob:
    """A run that is a task, for its plugin to do.

    Attributes:
        config: The run as it was asked for. Its own options say where (``output``, ``tiling``), of
            which slides, on which ``device``; the task's were given to the task as it was made.
        registry: The plugins.
        reporter: Hears how it goes, as of a run of slides; is entered by the task.
    """

    config: RunConfig
    registry: Registry
    reporter: Reporter

    def find_slides(self) -> SlideList | None:
        """Find the slides that the run names; None if it names none.

        Raises:
            InputError: If something named is not there, or a table is faulty.
        """
        from microtome.run.inputs.finding import find_slides

        return find_slides(self.config, self.registry) if self.config.slides else None

    def run_slides(self, **changes: Any) -> RunResult:
        """Take the run's slides through the pipeline, as a part of this task.

        Args:
            **changes: Fields of `RunConfig` that differ from this run's: ``encoders=()``.

        Raises:
            MicrotomeError: If that run cannot start.
        """
        from microtome.run.runner import plan_passes, run_passes
        from microtome.run.summary import join_results

        changed = {"task": "coords", "own_task": None} | changes
        config = replace(self.config, **changed)
        plans = plan_passes(config, self.registry)
        return join_results(list(run_passes(plans, self.reporter)))


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """What became of a task.

    Attributes:
        lines: The summary, printed on stdout.
        record: What the run's record says of it, as JSON holds it.
        exit_code: 0 all done, 3 where some slides failed and the others are done.
    """

    lines: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    exit_code: int = 0
