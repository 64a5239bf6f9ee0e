"""The slides of a run, handed out one by one: claimed, and with a record of what was tried before.

The one place that decides who works on what. Every engine takes its slides from here, so that any
number of runs, on any number of machines, may share an output.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from microtome._version import __version__
from microtome.errors import StoreError
from microtome.run.planning.plan import RunPlan
from microtome.run.working import History
from microtome.slide.types import SlideRef
from microtome.store.claims import Attempt, Claim, Claims
from microtome.store.status import SlideStatus, read_status, write_status

_TRIES = 3
"""Of one run at a slide, where no number of deaths quarantines it for good."""

_POLL = 1.0
"""Seconds between two looks at slides that other workers hold."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A slide to work on.

    Attributes:
        ref: Which.
        claim: Ours while it is worked on.
    """

    ref: SlideRef
    claim: Claim

    @property
    def history(self) -> History:
        """What its earlier workers advise.

        One that vanished without a word was mostly on a machine that was lost: only the second
        such says anything of the slide.
        """
        vanished = [attempt for attempt in self.claim.earlier if not attempt.how]
        told = [attempt for attempt in self.claim.earlier if attempt.how]
        telling = told + (vanished if len(vanished) > 1 else [])
        avoid = frozenset(attempt.reader for attempt in telling if attempt.reader)
        return History(deaths=len(told) + max(0, len(vanished) - 1), avoid=avoid)


class SlideQueue:
    """Hands out slides, largest first, each to one worker of all that share the output.

    Not safe for several threads: one driver asks for all its workers.

    Args:
        plan: The resolved run.
        slides: What is to be done.
        keep_order: Whether slides are handed out in the order given.
    """

    def __init__(
        self, plan: RunPlan, slides: Sequence[SlideRef], *, keep_order: bool = False
    ) -> None:
        self._plan = plan
        self._settings = plan.config.claims
        self._claims = Claims(plan.layout, self._settings.seconds)
        self._waiting = deque(slides if keep_order else sorted(slides, key=_bytes, reverse=True))
        self._held: deque[SlideRef] = deque()
        self._looked = -_POLL
        self._deaths: Counter[str] = Counter()
        self._accompanied: set[str] = set()
        self._out = 0

    @property
    def finished(self) -> bool:
        """Whether every slide was handed out and came back."""
        return not (self._waiting or self._held or self._out)

    @property
    def held(self) -> int:
        """Slides that other workers held when last looked at."""
        return len(self._held)

    def take(self, *, begin: bool = True) -> Assignment | SlideStatus | None:
        """Give the next slide, or what became of it without any work.

        Args:
            begin: Whether the attempt is recorded now; if not, `begin` must be called before the
                slide is worked on.

        Returns:
            A slide that is now this process's; the status of one that is quarantined, left to
            others, or finished by another worker of the same round; None where there is nothing
            to do now: ask again until `finished`.

        Raises:
            StoreError: If a claim cannot be written.
        """
        if not self._waiting:
            self._look_again()
        while self._waiting:
            ref = self._waiting.popleft()
            if known := self._of_this_round(ref):
                return known
            forget = self._settings.retry and not self._deaths[ref.slide_id]
            claim = self._claims.take(ref.slide_id, forget=forget)
            if claim is None:
                if not self._settings.wait:
                    return self._left_to_others(ref)
                self._held.append(ref)
                continue
            if known := self._of_this_round(ref):  # finished before we had the claim
                claim.drop()
                return known
            if 0 < self._settings.attempts <= len(claim.earlier):
                return self._quarantined(ref, claim)
            self._out += 1
            assignment = Assignment(ref, claim)
            if begin:
                self.begin(assignment)
            return assignment
        return None

    def company(
        self, assignment: Assignment, *, workers: int = 1, among: Iterable[SlideRef] | None = None
    ) -> tuple[SlideRef, ...]:
        """Name the slides that are segmented with one, as many as the segmenter takes at once.

        Each is named once, and takes nobody along itself: it should have its mask by then. A slide
        that somebody may have died on takes nobody along, nor does anybody take it.

        Args:
            assignment: The slide.
            workers: That are about to take the next ones.
            among: What there is to choose from, in order; what is still to be handed out if None.
        """
        count = self._plan.segmenter_batch - 1
        slide_id = assignment.ref.slide_id
        alone = slide_id in self._accompanied or assignment.claim.earlier
        if count < 1 or alone or self._plan.config.force:
            return ()
        candidates = self._waiting if among is None else among
        free = (
            ref
            for ref in candidates
            if ref.slide_id not in self._accompanied and not self._deaths[ref.slide_id]
        )
        chosen = tuple(islice(free, workers - 1, workers - 1 + count))
        self._accompanied.update(ref.slide_id for ref in chosen)
        return chosen

    def begin(self, assignment: Assignment) -> None:
        """Record the attempt at a slide, before anything that could end the process.

        Raises:
            StoreError: If that cannot be written; the slide is given back.
        """
        try:
            assignment.claim.begin()
        except StoreError:
            self.drop(assignment)
            raise

    def done(self, assignment: Assignment) -> None:
        """Take a slide back whose status is written, whatever it says."""
        self._out -= 1
        assignment.claim.end()

    def drop(self, assignment: Assignment) -> None:
        """Take a slide back that was interrupted: that was not its fault."""
        self._out -= 1
        assignment.claim.drop()

    def give_back(self, assignment: Assignment) -> None:
        """Take a slide back to hand it out again: its worker was told to end."""
        self.drop(assignment)
        self._waiting.append(assignment.ref)

    def died(self, assignment: Assignment, how: str) -> SlideStatus | None:
        """Take a slide back whose worker died.

        Args:
            assignment: The slide.
            how: What is known of the death, ``"killed by SIGSEGV"``.

        Returns:
            Its status if it is quarantined now; None if it is tried again, by milder means.
        """
        self._out -= 1
        claim = assignment.claim
        claim.die(how)
        self._deaths[claim.slide_id] += 1
        limit = self._settings.attempts
        if (len(claim.earlier) if limit else self._deaths[claim.slide_id]) < (limit or _TRIES):
            self._waiting.append(assignment.ref)
            return None
        return self._write_quarantined(assignment.ref, claim.earlier)

    def _of_this_round(self, ref: SlideRef) -> SlideStatus | None:
        """Read what another worker of the same round made of a slide."""
        if self._plan.round:
            with suppress(StoreError):  # no record yet
                status = read_status(self._plan.layout.status(ref.slide_id))
                if (status.round, status.path) == (self._plan.round, ref.source):
                    return status
        return None

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._held and now - self._looked >= _POLL:
            self._looked = now
            self._waiting, self._held = self._held, deque()

    def _quarantined(self, ref: SlideRef, claim: Claim) -> SlideStatus:
        status = self._write_quarantined(ref, claim.earlier)
        claim.drop()
        return status

    def _write_quarantined(self, ref: SlideRef, earlier: Sequence[Attempt]) -> SlideStatus:
        deaths = f"{len(earlier)} worker{'s' if len(earlier) > 1 else ''}"
        told = "; ".join(dict.fromkeys(map(str, earlier)))
        message = (
            f"{deaths} died on it: {told}. It is left alone from now on; claims.retry=true, or a "
            "larger claims.attempts, tries it again."
            if self._settings.attempts
            else f"{deaths} died on it: {told}. The next run tries it again."
        )
        status = self._status(ref, "quarantined", message, stage=earlier[-1].stage or "open")
        write_status(self._plan.layout.status(ref.slide_id), status)
        return status

    def _left_to_others(self, ref: SlideRef) -> SlideStatus:
        message = "Another worker holds it; claims.wait=true comes back to it."
        return self._status(ref, "held", message, stage="claim")

    def _status(self, ref: SlideRef, state: str, message: str, *, stage: str) -> SlideStatus:
        return SlideStatus(
            slide_id=ref.slide_id,
            path=ref.source,
            state=state,
            stage=stage,
            task=self._plan.config.task,
            error={"type": "WorkerDied" if state == "quarantined" else "Held", "message": message},
            version=__version__,
            round=self._plan.round,
        )


def _bytes(ref: SlideRef) -> int:
    """Measure a slide with all its files; one that is not there is told when its turn comes."""
    total = 0
    for path in (ref.path, *ref.companions):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total
