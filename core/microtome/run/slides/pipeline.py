"""One slide through the pipeline: open, tissue, coordinates, tiles, write, overlays, status."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from microtome._version import __version__
from microtome.errors import (
    IdentityError,
    MicrotomeError,
    OutputError,
    SlideError,
    SlideReadError,
    StoreError,
)
from microtome.run.inputs.changes import Unchanged
from microtome.run.planning.plan import RunPlan
from microtome.run.planning.target import check_regions, level_misfits
from microtome.run.progress import Reporter
from microtome.run.settings import OVERLAYS
from microtome.run.slides.ahead import taking_along
from microtome.run.slides.attributes import tell_patients
from microtome.run.slides.holdings import take_stock
from microtome.run.slides.identities import (
    asked_for,
    coords_identity,
    label_digest,
    score_identity,
    slide_identity,
)
from microtome.run.slides.images import tell_stale_labels
from microtome.run.slides.labels import count_given, count_kept, give_labels, tell_renewal
from microtome.run.slides.overlays import draw_overlays
from microtome.run.slides.production import Production
from microtome.run.slides.tissue import TissueFiles, find_tissue, why_empty
from microtome.run.summary import rounded
from microtome.slide.clock import accounted
from microtome.slide.opening import OpenedSlide, open_slide
from microtome.slide.types import SlideRef, TileGrid, TissueMask
from microtome.store.identity import Identity, fingerprint
from microtome.store.labels import LABELS
from microtome.store.status import FAILED, SlideStatus, read_status, write_status


def process_slide(
    plan: RunPlan,
    ref: SlideRef,
    reporter: Reporter,
    *,
    avoid: frozenset[str] = frozenset(),
    trying: Callable[[str], None] = lambda reader: None,
    company: Sequence[SlideRef] = (),
) -> SlideStatus:
    """Do for one slide what a run asks, and leave its status record.

    Whatever goes wrong with the slide, in microtome or in a stranger's plugin, ends in a status
    that says so; the run goes on.

    Args:
        plan: The resolved run.
        ref: The slide.
        reporter: Hears of every stage.
        avoid: Readers that brought a worker down on it.
        trying: Told a reader's name before it is given the slide.
        company: Slides that are segmented with it, if it has no mask yet.

    Raises:
        OutputError: If the output takes nothing more, whatever the slide.
    """
    work = SlideWork(
        plan=plan, ref=ref, reporter=reporter, avoid=avoid, trying=trying, company=company
    )
    try:
        with ExitStack() as stack:
            work.run(stack)
        status = work.finished()
        write_status(plan.layout.status(ref.slide_id), status)
    except OutputError:
        raise
    except Exception as error:  # noqa: BLE001 - one bad slide never stops the others
        status = _fail(work, error)
    return status


def fail_slide(
    plan: RunPlan, ref: SlideRef, reporter: Reporter, error: Exception, *, stage: str
) -> SlideStatus:
    """Leave the record of a slide that failed before it could be worked on.

    Args:
        plan: The resolved run.
        ref: The slide.
        reporter: As of `process_slide`.
        error: Why.
        stage: Where.
    """
    return _fail(SlideWork(plan=plan, ref=ref, reporter=reporter, stage=stage), error)


def _fail(work: SlideWork, error: Exception) -> SlideStatus:
    status = work.failed(work.explain(error))
    if work.is_own and not work.is_refused(error):
        with suppress(StoreError):  # the run's own record tells of it too
            write_status(work.plan.layout.status(work.ref.slide_id), status)
    return status


@dataclass(eq=False, kw_only=True)
class SlideWork:
    """The work on one slide, stage by stage.

    Attributes:
        plan: The resolved run.
        ref: The slide.
        reporter: Hears of every stage.
        avoid: Readers that brought a worker down on it.
        trying: Told a reader's name before it is given the slide.
        company: Slides that are segmented with it, if it has no mask yet.
        stage: The stage that it is in.
        seconds: Time spent by stage.
        profile: Of the pass over the pixels, seconds of all threads together.
        identities: Digests by what they identify.
        outputs: What was written or found, by what it is.
        tiles: Number of tiles, once known.
        dropped: Tiles left out by their pixels, by reason.
        reasons: Tiles that are kept although there is a reason against them, by reason.
        labels: Tiles of each class, where they are labelled.
        tiles_per_second: Of the pass over the pixels, once it is done.
        wrote: Whether anything was computed.
        reader: Which reader, once open.
        why: Why this one.
        fingerprint: The slide's.
        warnings: What the user should know of it.
        unchanged: Its files as they were before they were opened.
        began: When, UTC.
    """

    plan: RunPlan
    ref: SlideRef
    reporter: Reporter
    avoid: frozenset[str] = frozenset()
    trying: Callable[[str], None] = lambda reader: None
    company: Sequence[SlideRef] = ()
    stage: str = "open"
    seconds: dict[str, float] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    tiles: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    tiles_per_second: float | None = None
    wrote: bool = False
    reader: str = ""
    why: str = ""
    fingerprint: str = ""
    warnings: list[str] = field(default_factory=list)
    unchanged: Unchanged = field(init=False)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.unchanged = Unchanged([self.ref.path, *self.ref.companions])

    def run(self, stack: ExitStack) -> None:
        """Take the slide through the stages that the task asks for."""
        stack.enter_context(accounted(self.profile))
        with self.timed("open"):
            slide = stack.enter_context(self._open())
        with self.timed("tissue"):
            tissue, mask = self._tissue(slide)
        if self.plan.config.task == "tissue":
            self._overlays(slide, mask, None)
            return
        with self.timed("coords"):
            grid = slide.place_tiles(self.plan.tiler, mask)
            check_regions(self.plan.config, grid.region_tiles)
            cards = {each.name: each.card for each in self.plan.encoders}
            self.warnings += level_misfits(cards, grid.geometry)
            identity = coords_identity(self.plan, tissue, self.ref)
            self.identities["coords"] = identity.digest
            self.identities |= {
                f"quality/{each.name}": score_identity(each, identity).digest
                for each in self.plan.inspectors
            }
            if not len(grid):
                self.warnings.append(why_empty(slide, mask, grid))
        labels, grid = give_labels(self, slide, grid, identity)
        with self.timed("check"):
            holdings = take_stock(
                self.plan,
                self.ref,
                self.fingerprint,
                identity,
                labels=label_digest(grid),
                labelled=self.identities.get(LABELS, ""),
            )
            self.outputs |= {
                writer.name: self.plan.layout.slide(writer.spec, self.ref.slide_id)
                for writer in self.plan.writers
            }
            self.warnings += [*holdings.warnings, *tell_patients(holdings, self.ref)]
            self.dropped, self.reasons = holdings.dropped, holdings.reasons
            self.labels = holdings.labels
        if holdings.complete:
            coords = grid.coords if holdings.coords is None else holdings.coords
            self.labels = self.labels or count_given(grid, coords, labels)
        else:
            if self.plan.encoders and hasattr(self.plan.segmenter, "release"):
                self.plan.segmenter.release()
            if labels is not None:
                with self.timed("labels"):
                    grid = labels.on(grid)
                self.warnings += [*labels.warnings, *tell_renewal(holdings, labels)]
            production = Production(
                work=self,
                slide=slide,
                grid=grid,
                identity=identity,
                holdings=holdings,
                labels=labels,
            )
            coords = production.run()
            self.labels = count_kept(grid, coords, labels) or self.labels
            self.wrote = True
            if len(grid) and not len(coords):
                told = ", ".join(f"{name} {count}" for name, count in self.dropped.items())
                self.warnings.append(f"all of its {len(grid)} tiles were left out: {told}")
        self.tiles = len(coords)
        self.warnings += tell_stale_labels(self, grid, identity, holdings)
        if self.tiles:
            self.identities |= {
                f"slide_features/{each.name}": slide_identity(self.plan, each, identity).digest
                for each in self.plan.slide_encoders
            }
        whole = len(coords) == len(grid)
        self._overlays(slide, mask, grid if whole else replace(grid, coords=coords, columns={}))

    @property
    def is_own(self) -> bool:
        """Whether the status record of that name is this slide's, or nobody's."""
        path = self.plan.layout.status(self.ref.slide_id)
        if self.plan.config.force or not path.exists():
            return True
        try:
            before = read_status(path)
        except StoreError:  # damaged: whose it was, nobody can tell
            return True
        same = before.path == self.ref.source or before.fingerprint == self.fingerprint
        return same or before.state in FAILED

    def is_refused(self, error: Exception) -> bool:
        """Whether nothing was touched, so that the record of what is there still holds."""
        there = self.plan.layout.status(self.ref.slide_id).exists()
        return isinstance(error, IdentityError) and there

    def explain(self, error: Exception) -> Exception:
        """Give the cause of an error: a reader cannot know that a file is being written."""
        if isinstance(error, SlideError) or not isinstance(error, MicrotomeError):
            try:
                self.unchanged.check()
            except SlideReadError as changed:
                return changed
        return error

    def finished(self) -> SlideStatus:
        """Describe a slide that went well."""
        return self._status("empty" if self.tiles == 0 else "done" if self.wrote else "reused")

    def failed(self, error: Exception) -> SlideStatus:
        """Describe a slide that did not."""
        expected = isinstance(error, MicrotomeError)
        return self._status(
            "failed",
            stage=self.stage,
            error={"type": type(error).__name__, "message": str(error)}
            if expected
            else _unexpected(error),
        )

    def _status(self, state: str, **failure: Any) -> SlideStatus:
        layout = self.plan.layout
        return SlideStatus(
            slide_id=self.ref.slide_id,
            path=self.ref.source,
            state=state,
            task=self.plan.config.task,
            fingerprint=self.fingerprint,
            reader=self.reader,
            why=self.why,
            encoders=tuple(encoder.name for encoder in self.plan.encoders),
            slide_encoders=tuple(each.name for each in self.plan.slide_encoders),
            tiles=self.tiles,
            dropped=dict(self.dropped),
            reasons=dict(self.reasons),
            labels=dict(self.labels),
            seconds={stage: round(value, 3) for stage, value in self.seconds.items()},
            profile=rounded(self.profile),
            tiles_per_second=self.tiles_per_second,
            outputs={name: layout.relative(path) for name, path in self.outputs.items()},
            identities=dict(self.identities),
            warnings=tuple(self.warnings),
            started=self.began.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            round=self.plan.round,
            asked=asked_for(self.plan, self.ref),
            **failure,
        )

    @contextmanager
    def timed(self, stage: str, tiles: int = 0) -> Iterator[None]:
        """Enter a stage, tell of it and count its time.

        Args:
            stage: Its name.
            tiles: That are ahead.
        """
        self.stage = stage
        self.reporter.stage(self.ref.slide_id, stage, tiles)
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    def _open(self) -> OpenedSlide:
        self.fingerprint = fingerprint(self.ref.path, self.ref.companions)
        if not self.is_own:
            before = read_status(self.plan.layout.status(self.ref.slide_id))
            raise IdentityError(
                f"The output holds another slide of the id {self.ref.slide_id!r}, {before.path}; "
                f"this one is {self.ref.source}. Tell them apart with slide_id=relpath or a "
                "manifest's slide_id."
            )
        choice = self.plan.config.reader
        slide = open_slide(
            self.ref,
            reader=choice.plugin,
            config=choice.config,
            registry=self.plan.registry,
            avoid=self.avoid,
            trying=self.trying,
        )
        self.reader, self.why = slide.info.reader, slide.why
        return slide

    def _tissue(self, slide: OpenedSlide) -> tuple[Identity, TissueMask]:
        """Load the mask if a run with the same settings left one, else make it."""
        plan = self.plan
        files = TissueFiles.of(plan, slide, self.fingerprint)
        self.identities["tissue"] = files.identity.digest
        self.outputs |= {"tissue": files.mask, "regions": files.regions}
        if not plan.config.force and (stored := files.load()) is not None:
            return files.identity, stored
        segmenter = taking_along(plan, self.company, self._blame_no_reader, self.warnings.append)
        mask = find_tissue(slide, segmenter, plan.segmenter_spec, plan.config.tissue)
        self.warnings += getattr(plan.segmenter, "notes", ())
        self.unchanged.check()
        files.save(mask)
        self.wrote = True
        return files.identity, mask

    @contextmanager
    def _blame_no_reader(self) -> Iterator[None]:
        """Leave this slide's reader out of what may happen: others are opened meanwhile."""
        self.trying("")
        yield
        self.trying(self.reader)

    def _overlays(self, slide: OpenedSlide, mask: TissueMask, grid: TileGrid | None) -> None:
        named = {k: self.plan.layout.visualization(self.ref.slide_id, k) for k in OVERLAYS}
        # Those of an earlier run are kept true, asked for or not.
        wanted = {
            k for k, path in named.items() if k in self.plan.config.visualize or path.exists()
        }
        paths = {k: named[k] for k in OVERLAYS if k in wanted and (grid is not None or k != "grid")}
        self.outputs |= {f"{kind} overlay": path for kind, path in paths.items()}
        if paths:
            with self.timed("overlays"):
                draw_overlays(slide, paths, self.identities, mask=mask, grid=grid)


def _unexpected(error: Exception) -> dict[str, str]:
    """Describe what no code of ours raises on purpose: mostly a plugin's mistake."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    told = (f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))
    said = " ".join(". ".join(told).split())
    return {
        "type": type(error).__name__,
        "message": f"{said}{where}",
        "traceback": "".join(traceback.format_exception(error)),
    }
