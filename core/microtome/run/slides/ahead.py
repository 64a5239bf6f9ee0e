"""Slides that are segmented before their turn, in one call with the one whose turn it is.

A network on a GPU segments several pictures nearly as fast as one. A mask is published whole under
a name that its identity gives, so it needs no claim: whoever comes to the slide finds it, and two
that make it at once make the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

from microtome.errors import SlideError, one_line
from microtome.plugin.protocols import Segmenter
from microtome.run.inputs.changes import Unchanged
from microtome.run.planning.plan import RunPlan
from microtome.run.slides.tissue import TissueFiles, draw_view
from microtome.slide.opening import open_slide
from microtome.slide.tissue import clean_mask
from microtome.slide.types import SlideRef, SlideView, TissueMask
from microtome.store.identity import fingerprint


def taking_along(
    plan: RunPlan,
    company: Sequence[SlideRef],
    opening: Callable[[], AbstractContextManager[None]],
    note: Callable[[str], None],
) -> Segmenter:
    """Give the run's segmenter, which also segments other slides at its next call.

    Args:
        plan: The resolved run.
        company: The other slides.
        opening: Entered while they are opened and read.
        note: Hears, in a sentence, of what was left because of something that is no slide's fault.
    """
    if not company:
        return plan.segmenter
    return cast("Segmenter", _Together(plan, company, opening, note))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Guest:
    """A slide that is taken along.

    Attributes:
        files: Where its mask will be.
        view: Its picture.
        unchanged: Its files as they were before they were opened.
        mpp: µm per level-0 pixel, or None.
    """

    files: TissueFiles
    view: SlideView
    unchanged: Unchanged
    mpp: float | None


class _Together:
    """Segments the next slides with the one that is asked for, and publishes their masks.

    Whatever goes wrong with them is told at their own turn, and costs the one that is asked for
    nothing but time. What goes wrong with all of them together is told with that one.
    """

    def __init__(
        self,
        plan: RunPlan,
        company: Sequence[SlideRef],
        opening: Callable[[], AbstractContextManager[None]],
        note: Callable[[str], None],
    ) -> None:
        self._plan, self._company, self._opening = plan, company, opening
        self._note = note

    def segment(self, views: Sequence[SlideView]) -> list[TissueMask]:
        """Segment views, and the guests with them.

        Raises:
            TissueError: If nothing honest can be said of one of the views.
        """
        segmenter = self._plan.segmenter
        with self._opening():
            guests = [guest for ref in self._company if (guest := self._invite(ref)) is not None]
        if not guests:
            return segmenter.segment(views)
        masks: list[TissueMask] = []
        with self._spared(guests):
            masks = segmenter.segment([*views, *(guest.view for guest in guests)])
        if not masks:
            return segmenter.segment(views)
        for guest, mask in zip(guests, masks[len(views) :], strict=True):
            with self._spared():
                guest.unchanged.check()
                guest.files.save(clean_mask(mask, self._plan.config.tissue, guest.mpp))
        return masks[: len(views)]

    @contextmanager
    def _spared(self, guests: Sequence[_Guest] = ()) -> Iterator[None]:
        """The slide boundary of guests: what goes wrong with them is told at their own turn.

        Args:
            guests: Those that are segmented with the slide whose turn it is. That one is told
                if what went wrong is more than one of them being what cannot be judged.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the slide whose turn it is owes it nothing
            if guests and not isinstance(error, SlideError):
                self._note(_left(guests, error))

    def _invite(self, ref: SlideRef) -> _Guest | None:
        """Open a slide and draw it; None where it has its mask, or cannot be had."""
        plan = self._plan
        choice = plan.config.reader
        with self._spared():
            unchanged = Unchanged([ref.path, *ref.companions])
            slide_print = fingerprint(ref.path, ref.companions)
            with open_slide(
                ref, reader=choice.plugin, config=choice.config, registry=plan.registry
            ) as slide:
                files = TissueFiles.of(plan, slide, slide_print)
                if files.load() is None:
                    return _Guest(
                        files=files,
                        view=draw_view(slide, plan.segmenter_spec),
                        unchanged=unchanged,
                        mpp=slide.info.resolution.mpp,
                    )
        return None


def _left(guests: Sequence[_Guest], error: Exception) -> str:
    """Say which slides were not segmented ahead, and why."""
    names = ", ".join(guest.files.slide_id for guest in guests)
    kind = type(error).__name__
    why = " ".join(str(error).split())[:200].rstrip(".") or kind
    # torch's own error, which nothing here may import, has the same word in its name.
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        why = f"memory is short for {len(guests) + 1} slides at once, so lower the segmenter's "
        why += "batch_size"
    elif why != kind:
        why = f"{kind}: {why}"
    return one_line(f"{names} could not be segmented in one call with this slide ({why}).")
