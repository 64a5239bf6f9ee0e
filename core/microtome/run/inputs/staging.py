"""Slides copied to a local disk before they are worked on, the next while others are worked on.

Only slides that this process has claimed are copied, so that machines that share an output do not
all fetch the same one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from microtome._version import __version__
from microtome.errors import MicrotomeError, SlideOpenError, StoreError
from microtome.run.inputs.cache import Held, SlideCache, TooLargeError
from microtome.run.inputs.sources import CopyStoppedError, check_urls, find_source, is_url
from microtome.run.loading import lacks_embeddings, lacks_features
from microtome.run.planning.plan import RunPlan
from microtome.run.progress import FETCH, Reporter
from microtome.run.queue import Assignment, SlideQueue
from microtome.run.slides.identities import asked_for
from microtome.run.slides.pipeline import fail_slide
from microtome.slide.types import SlideRef
from microtome.store.status import FAILED, SlideStatus, read_status, write_status

_STALLED = 600.0
"""Seconds without a byte after which a copy is given up."""

_MIB = 1 << 20


class StagedQueue:
    """A `SlideQueue` that hands out slides once they are where they can be opened.

    Slides are only copied where ``staging.cache`` names a folder, or by their URL. What seems to be
    finished is left where it lies: the run only looks at it.

    Not safe for several threads: one driver asks for all its workers.

    Args:
        plan: The resolved run.
        slides: What is to be done.
        reporter: Hears of slides that are waited for.
        workers: How many the slides are for.
        keep_order: Whether slides are handed out in the order given, as far as copies come in it.

    Raises:
        ConfigError: If the cache cannot be written.
        InputError: If a URL is of no known kind.
        MissingDependencyError: If a library for one is missing.
    """

    def __init__(
        self,
        plan: RunPlan,
        slides: Sequence[SlideRef],
        reporter: Reporter,
        *,
        workers: int = 1,
        keep_order: bool = False,
    ) -> None:
        self._plan = plan
        self._reporter = reporter
        self._queue = SlideQueue(plan, slides, keep_order=keep_order)
        self._cache = _make_cache(plan, slides)
        self._most = plan.config.staging.ahead * workers
        self._ahead: list[_Fetch] = []
        self._ended: deque[SlideStatus] = deque()
        self._out: dict[str, _Fetch] = {}
        self._told = False

    @property
    def finished(self) -> bool:
        """Whether every slide was handed out and came back."""
        return self._queue.finished and not self._ended

    def take(self) -> Assignment | SlideStatus | None:
        """Give the next slide, or what became of it without any work.

        Returns:
            As `SlideQueue.take`; None also while slides are copied.

        Raises:
            StoreError: If a claim or a status cannot be written.
        """
        if self._cache is None:
            taken = self._queue.take()
        else:
            self._fetch_ahead(self._cache, max(1, self._most))
            taken = self._next()
            self._fetch_ahead(self._cache, self._most)
        told = self._told or self._plan.round  # in a round, waiting is what workers do at the end
        if taken is None and self._queue.held and not told:
            self._told = True
            told = f"{self._queue.held} slides are held by other workers; waiting for them."
            self._reporter.note(told)
        return taken

    def company(self, assignment: Assignment, *, workers: int = 1) -> tuple[SlideRef, ...]:
        """Name the slides that are segmented with one, as `SlideQueue.company` does.

        Where slides are copied, these are among those that are here already.
        """
        here = None
        if self._cache is not None:
            arrived = (fetch for fetch in self._ahead if fetch.finished)
            here = [f.staged for f in arrived if f.error is None and f.known is None]
        return self._queue.company(assignment, workers=workers, among=here)

    def done(self, assignment: Assignment) -> None:
        """Take a slide back whose status is written, whatever it says."""
        self._queue.done(self._let_go(assignment))

    def drop(self, assignment: Assignment) -> None:
        """Take a slide back that was interrupted: that was not its fault."""
        self._queue.drop(self._let_go(assignment))

    def give_back(self, assignment: Assignment) -> None:
        """Take a slide back to hand it out again, as `SlideQueue.give_back` does."""
        self._queue.give_back(self._let_go(assignment))

    def died(self, assignment: Assignment, how: str) -> SlideStatus | None:
        """Take a slide back whose worker died, as `SlideQueue.died` does."""
        return self._queue.died(self._let_go(assignment), how)

    def close(self) -> None:
        """Drop the slides that nobody was given yet."""
        for fetch in self._ahead:
            fetch.stop()
            self._queue.drop(fetch.assignment)
        self._ahead = []

    def _let_go(self, assignment: Assignment) -> Assignment:
        fetch = self._out.pop(assignment.ref.slide_id, None)
        if fetch is None:
            return assignment
        fetch.stop()
        return fetch.assignment

    def _fetch_ahead(self, cache: SlideCache, count: int) -> None:
        while len(self._ahead) < count and not self._ended:
            taken = self._queue.take(begin=False)
            if taken is None:
                return
            if isinstance(taken, SlideStatus):
                self._ended.append(taken)
            else:
                self._ahead.append(_Fetch(self._plan, cache, taken))

    def _next(self) -> Assignment | SlideStatus | None:
        if self._ended:
            return self._ended.popleft()
        for fetch in self._ahead:
            if fetch.finished:
                self._ahead.remove(fetch)
                return self._hand_out(fetch)
        for fetch in self._ahead:
            fetch.report(self._reporter)
        return None

    def _hand_out(self, fetch: _Fetch) -> Assignment | SlideStatus:
        assignment = fetch.assignment
        if fetch.error is not None:
            status = fail_slide(
                self._plan, assignment.ref, self._reporter, fetch.error, stage=FETCH
            )
        elif fetch.known is not None:
            status = fetch.known
            self._reporter.stage(status.slide_id, FETCH)
            write_status(self._plan.layout.status(status.slide_id), status)
        else:
            self._queue.begin(assignment)
            self._out[assignment.ref.slide_id] = fetch
            if fetch.told:
                self._reporter.note(fetch.told)
            return replace(assignment, ref=fetch.staged)
        fetch.stop()
        self._queue.done(assignment)
        return status


class _Fetch(threading.Thread):
    """A slide on its way to the cache, and its place there until it is worked on.

    Attributes:
        assignment: The slide.
        staged: The slide where it is now.
        error: Why it cannot be had.
        known: What became of it, if there is nothing to do.
        told: What the user should know.
    """

    def __init__(self, plan: RunPlan, cache: SlideCache, assignment: Assignment) -> None:
        # A copy that hangs in the system must not keep the run from ending.
        super().__init__(name=f"fetch {assignment.ref.slide_id}", daemon=True)
        self.assignment = assignment
        self.staged = assignment.ref
        self.error: Exception | None = None
        self.known: SlideStatus | None = None
        self.told = ""
        self._plan, self._cache = plan, cache
        self._held: Held | None = None
        self._total = self._copied = self._reported = 0
        self._heard = time.monotonic()
        self._turn = threading.Lock()
        self._stopped = False
        self._over = _stays(plan, assignment.ref)
        if not self._over:
            self.start()

    @property
    def finished(self) -> bool:
        """Whether it is known what becomes of it."""
        if self._over:
            return True
        silent = time.monotonic() - self._heard
        if silent > _STALLED:
            self.error = SlideOpenError(
                f"{self.assignment.ref.source} cannot be copied: no byte came for {silent:.0f} s."
            )
        return self.error is not None

    def run(self) -> None:
        """Fetch it."""
        try:
            self._fetch()
        except CopyStoppedError:
            pass
        except MicrotomeError as error:
            self.error = error
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            source = self.assignment.ref.source
            self.error = SlideOpenError(f"{source} cannot be copied: {reason.rstrip('.')}.")
        finally:
            with self._turn:
                self._over = True
                if self._stopped:
                    self._release()

    def report(self, reporter: Reporter) -> None:
        """Tell how much of it is here."""
        if not self._total:
            return
        slide_id = self.assignment.ref.slide_id
        if not self._reported:
            reporter.stage(slide_id, FETCH, -(-self._total // _MIB))
            self._reported = 1
        news = self._copied // _MIB + 1 - self._reported
        if news > 0:
            reporter.advance(slide_id, news)
            self._reported += news

    def stop(self) -> None:
        """Let go of it, now or when the copying notices."""
        with self._turn:
            self._stopped = True
            if self._over:
                self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _fetch(self) -> None:
        ref = self.assignment.ref
        source = find_source(ref)
        if is_url(ref.source):
            version = self._cache.version(source)
            self.known = _known(self._plan, replace(ref, version=version))
            if self.known is not None:
                return
        try:
            self._held = self._cache.fetch(source, self._tick, self._announce)
        except TooLargeError as error:
            if is_url(ref.source):
                raise
            self.told = f"{ref.slide_id} is read where it lies: {error}"
            return
        files = source.staged(self._held.folder)
        self.staged = replace(
            ref,
            path=files.primary,
            companions=files.companions,
            version=self._held.version,
        )

    def _announce(self, size: int) -> None:
        self._total = size

    def _tick(self, count: int) -> None:
        if self._stopped:
            raise CopyStoppedError
        self._heard = time.monotonic()
        self._copied += count


def _make_cache(plan: RunPlan, slides: Sequence[SlideRef]) -> SlideCache | None:
    urls = [ref.source for ref in slides if is_url(ref.source)]
    settings = plan.config.staging
    if not urls and settings.cache is None:
        return None
    check_urls(urls)
    folder = Path(settings.cache) if settings.cache else _users_cache()
    return SlideCache(folder.absolute(), int(settings.budget_gb * 2**30))


def _users_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "microtome" / "slides"


def _stays(plan: RunPlan, ref: SlideRef) -> bool:
    """Tell whether a slide is left where it lies."""
    if is_url(ref.source):
        return False
    return plan.config.staging.cache is None or _finished_before(plan, ref) is not None


def _known(plan: RunPlan, ref: SlideRef) -> SlideStatus | None:
    """Give what a run makes of a slide that is finished already, just as it is asked for now."""
    before = _finished_before(plan, ref)
    if before is None or before.asked != asked_for(plan, ref):
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(
        before,
        state="empty" if before.state == "empty" else "reused",
        seconds={},
        profile={},
        tiles_per_second=None,
        started=now,
        finished=now,
        version=__version__,
        round=plan.round,
    )


def _finished_before(plan: RunPlan, ref: SlideRef) -> SlideStatus | None:
    """Give the record of a slide that seems finished: what it names is there."""
    before = None
    with suppress(StoreError):
        before = read_status(plan.layout.status(ref.slide_id))
    if plan.config.force or before is None or before.state in FAILED:
        return None
    there = all((plan.config.output / path).exists() for path in before.outputs.values())
    lacking = lacks_features(plan, ref.slide_id) or lacks_embeddings(plan, ref.slide_id)
    wanted = plan.config.task != "process" or not lacking
    return before if there and wanted else None
