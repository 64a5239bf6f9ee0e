"""What engines and layouts must be able to do."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from microtome.run.job import Job, TaskJob, TaskOutcome
    from microtome.store.exchange import FoundSlide, LayoutFile, SlideFacts, TiledSlide
    from microtome.store.status import SlideStatus


class Engine(Protocol):
    """What starts the workers of a run: in this process, in others, on other machines.

    Correctness is not its business: `SlideQueue` claims slides and the store publishes whole
    files, so any number of workers may go through one and the same list.
    """

    def run(self, job: Job) -> Generator[SlideStatus]:
        """Work through a job's slides and give each slide's status as it ends.

        Closing the iterator, or an exception raised in the driver, ends the workers; what they
        were working on is dropped and taken up by the next run.

        Args:
            job: The run's plan, its slides and who is told.

        Yields:
            One status a slide, in any order.

        Raises:
            MicrotomeError: If no worker can start.
        """


class Task(Protocol):
    """What a run does instead of taking slides to features."""

    def run(self, job: TaskJob) -> TaskOutcome:
        """Do it.

        What it publishes under a final name is complete at any instant, and what is finished
        already, by its identity, is not done again.

        Args:
            job: The run, the plugins, who is told.

        Returns:
            What became of it: the lines of the summary, and what the run's record says.

        Raises:
            MicrotomeError: If it cannot be done at all.
        """


class Layout(Protocol):
    """Another tool's files of a slide, written and read.

    It opens no slide and publishes nothing: the core gives it whole slides, and writes and
    publishes the files that it names.
    """

    def files(self, slide: TiledSlide) -> Iterable[LayoutFile]:
        """Name a slide's files and what writes them, in the order to publish: a sidecar last.

        Raises:
            LayoutError: If the layout cannot hold such a slide.
        """

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides that a folder holds in this layout, by id, without reading them.

        Raises:
            LayoutError: If it cannot be said which slides these are.
        """

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide that `find` found, its tiles in any order.

        Args:
            found: The slide.
            facts: What is known of it besides its files.

        Raises:
            LayoutError: If a file is not of this layout, or lacks what nobody told either.
        """

    def recognises(self, folder: Path) -> bool:
        """Tell by a few files whether a folder is of this layout, and of no other.

        Optional: ``tiler=stored`` without ``tiler.layout`` asks those that have it. A layout whose
        files name no level has an attribute ``any_level``, True.
        """
