"""One slide through the pipeline: open, tissue, coordinates, tiles, write, overlays, status."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import IdentityError, MicrotomeError, StoreError
from microtome.plugin.protocols import TileSink
from microtome.run.attributes import feature_attributes, slide_attributes
from microtome.run.budget import Threads
from microtome.run.holdings import Holdings, StoreHolding, take_stock
from microtome.run.identities import (
    coords_identity,
    feature_identity,
    image_identity,
    tissue_identity,
)
from microtome.run.overlays import draw_overlays
from microtome.run.pixels import PixelPass, Sink
from microtome.run.plan import PlannedEncoder, PlannedImages, RunPlan
from microtome.run.progress import Reporter
from microtome.run.settings import OVERLAYS
from microtome.run.tissue import find_tissue
from microtome.slide.clock import timed
from microtome.slide.opening import OpenedSlide, open_slide
from microtome.slide.tissue import mask_regions, regions_geojson
from microtome.slide.types import SlideRef, TileGrid, TissueMask
from microtome.store.attributes import write_folder_record
from microtome.store.identity import Identity, fingerprint
from microtome.store.masks import load_mask, save_mask
from microtome.store.publish import (
    FeatureScratch,
    FeatureSet,
    SlideContent,
    publish,
    publish_slide,
    write_json,
)
from microtome.store.status import SlideStatus, read_status, write_status


def process_slide(plan: RunPlan, ref: SlideRef, reporter: Reporter) -> SlideStatus:
    """Do for one slide what a run asks, and leave its status record.

    Whatever goes wrong with the slide, in microtome or in a stranger's plugin, ends in a status
    that says so; the run goes on.

    Args:
        plan: The resolved run.
        ref: The slide.
        reporter: Hears of every stage.
    """
    work = SlideWork(plan=plan, ref=ref, reporter=reporter)
    try:
        with ExitStack() as stack:
            work.run(stack)
        status = work.finished()
        write_status(plan.layout.status(ref.slide_id), status)
    except Exception as error:  # noqa: BLE001 - one bad slide never stops the others
        status = work.failed(error)
        if work.is_own and not work.is_refused(error):
            with suppress(StoreError):  # the run's own record tells of it too
                write_status(plan.layout.status(ref.slide_id), status)
    return status


@dataclass(eq=False, kw_only=True)
class SlideWork:
    """The work on one slide, stage by stage.

    Attributes:
        plan: The resolved run.
        ref: The slide.
        reporter: Hears of every stage.
        stage: The stage that it is in.
        seconds: Time spent by stage.
        identities: Digests by what they identify.
        outputs: What was written or found, by what it is.
        tiles: Number of tiles, once known.
        wrote: Whether anything was computed.
        reader: Which reader, once open.
        why: Why this one.
        fingerprint: The slide's.
        warnings: What the user should know of it.
        began: When, UTC.
    """

    plan: RunPlan
    ref: SlideRef
    reporter: Reporter
    stage: str = "open"
    seconds: dict[str, float] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    tiles: int | None = None
    wrote: bool = False
    reader: str = ""
    why: str = ""
    fingerprint: str = ""
    warnings: list[str] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self, stack: ExitStack) -> None:
        """Take the slide through the stages that the task asks for."""
        with self._timed("open"):
            slide = stack.enter_context(self._open())
        with self._timed("tissue"):
            tissue, mask = self._tissue(slide)
        if self.plan.config.task == "tissue":
            self._overlays(slide, mask, None)
            return
        with self._timed("coords"):
            grid = self.plan.tiler.plan(slide.info, mask)
            identity = coords_identity(self.plan, tissue)
            self.identities["coords"] = identity.digest
            if not len(grid):
                self.warnings.append(_why_empty(slide, mask, grid))
        with self._timed("check"):
            holdings = take_stock(self.plan, self.ref, self.fingerprint, identity)
            self.outputs |= {
                writer.name: self.plan.layout.slide(writer.spec, self.ref.slide_id)
                for writer in self.plan.writers
            }
            self.warnings += holdings.warnings
        if holdings.complete:
            coords = grid.coords if holdings.coords is None else holdings.coords
        else:
            coords = self._produce(slide, grid, identity, holdings)
        self.tiles = len(coords)
        self._overlays(slide, mask, replace(grid, coords=coords, columns={}))

    @property
    def is_own(self) -> bool:
        """Whether the status record of that name is this slide's, or nobody's."""
        path = self.plan.layout.status(self.ref.slide_id)
        if self.plan.config.force or not path.exists():
            return True
        before = read_status(path)
        same = before.path == str(self.ref.path) or before.fingerprint == self.fingerprint
        return same or before.state == "failed"

    def is_refused(self, error: Exception) -> bool:
        """Whether nothing was touched, so that the record of what is there still holds."""
        there = self.plan.layout.status(self.ref.slide_id).exists()
        return isinstance(error, IdentityError) and there

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
            | ({} if expected else {"traceback": "".join(traceback.format_exception(error))}),
        )

    def _status(self, state: str, **failure: Any) -> SlideStatus:
        layout = self.plan.layout
        return SlideStatus(
            slide_id=self.ref.slide_id,
            path=str(self.ref.path),
            state=state,
            task=self.plan.config.task,
            fingerprint=self.fingerprint,
            reader=self.reader,
            why=self.why,
            encoders=tuple(encoder.name for encoder in self.plan.encoders),
            tiles=self.tiles,
            seconds={stage: round(value, 3) for stage, value in self.seconds.items()},
            outputs={name: layout.relative(path) for name, path in self.outputs.items()},
            identities=dict(self.identities),
            warnings=tuple(self.warnings),
            started=self.began.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            **failure,
        )

    @contextmanager
    def _timed(self, stage: str, tiles: int = 0) -> Iterator[None]:
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
                f"this one is {self.ref.path}. Tell them apart with slide_id=relpath or a "
                "manifest's slide_id."
            )
        choice = self.plan.config.reader
        slide = open_slide(
            self.ref, reader=choice.plugin, config=choice.config, registry=self.plan.registry
        )
        self.reader, self.why = slide.info.reader, slide.why
        return slide

    def _tissue(self, slide: OpenedSlide) -> tuple[Identity, TissueMask]:
        """Load the mask if a run with the same settings left one, else make it."""
        identity = tissue_identity(self.plan, slide, self.fingerprint)
        self.identities["tissue"] = identity.digest
        layout, slide_id = self.plan.layout, self.ref.slide_id
        path = layout.tissue(slide_id, identity.digest, ".png")
        regions = layout.tissue(slide_id, identity.digest, ".geojson")
        self.outputs |= {"tissue": path, "regions": regions}
        if path.exists() and regions.exists() and not self.plan.config.force:
            return identity, load_mask(path).mask
        mask = find_tissue(
            slide, self.plan.segmenter, self.plan.segmenter_spec, self.plan.config.tissue
        )
        write_json(regions, regions_geojson(mask_regions(mask)), indent=None)
        save_mask(path, mask, identity=identity, extra={"slide_id": slide_id})
        self.wrote = True
        return identity, mask

    def _produce(
        self, slide: OpenedSlide, grid: TileGrid, identity: Identity, holdings: Holdings
    ) -> NDArray[np.int32]:
        """Read the tiles once if anything needs them, and publish what was missing."""
        encoders = [e for e in self.plan.encoders if e.name in holdings.missing]
        attributes = slide_attributes(slide, grid.geometry, identity, len(grid))
        with ExitStack() as stack:
            scratches = [stack.enter_context(self._scratch(e, len(grid))) for e in encoders]
            passed = PixelPass(
                filter=self.plan.config.filter,
                encoders=list(zip(encoders, scratches, strict=True)),
                sinks=[
                    Sink(
                        stack.enter_context(self._sink(image, identity, attributes)),
                        image.spec.concurrent,
                    )
                    for image in holdings.images
                ],
                batch_size=self.plan.config.batch_size,
                threads=self.plan.share_threads(encoders),
                advance=self.reporter.advance,
            )
            content = self._content(slide, grid, passed, attributes)
            features = {
                encoder.name: FeatureSet(
                    scratch.source(None if passed.keep.all() else np.flatnonzero(passed.keep)),
                    self._attributes(encoder, identity, passed.threads),
                )
                for encoder, scratch in passed.encoders
            }
            with self._timed("write"), timed("write"):
                for holding in holdings.stores:
                    self._publish(holding, replace(content, features=features))
            # What a sink's folder says of its tiles is known only now.
            attributes |= {"num_patches": len(content.coords), "coords": content.coords.tolist()}
        self.wrote = True
        return content.coords

    def _content(
        self, slide: OpenedSlide, grid: TileGrid, passed: PixelPass, attributes: Mapping[str, Any]
    ) -> SlideContent:
        """Make the one pass, unless nobody looks at a pixel, and give what was kept."""
        kept = np.ones(len(grid), np.bool_)
        columns: dict[str, NDArray[Any]] = {}
        if passed.needed:
            with self._timed("tiles", len(grid)):
                for encoder, _ in passed.encoders:
                    encoder.ensure_loaded()
                passed.run(slide.reader, grid)
            for encoder, _ in passed.encoders:
                self.warnings += getattr(encoder.encoder, "notes", ())
            kept, columns = passed.keep, {"has_background": passed.has_background}
        return SlideContent(
            coords=grid.coords[kept],
            columns={k: column[kept] for k, column in {**grid.columns, **columns}.items()},
            attributes={**attributes, "num_patches": int(kept.sum())},
            features={},
        )

    def _attributes(
        self, encoder: PlannedEncoder, coords: Identity, threads: Threads
    ) -> dict[str, Any]:
        identity = feature_identity(self.plan, encoder, coords)
        self.identities[f"features/{encoder.name}"] = identity.digest
        return feature_attributes(encoder, self.plan, identity, threads=threads)

    def _scratch(self, encoder: PlannedEncoder, rows: int) -> FeatureScratch:
        config = self.plan.config
        return FeatureScratch(
            config.output, rows, config.feature_dtype, name=encoder.name, dim=encoder.card.dim
        )

    @contextmanager
    def _sink(
        self, image: PlannedImages, coords: Identity, attributes: Mapping[str, Any]
    ) -> Iterator[TileSink]:
        identity = image_identity(image, coords)
        final = self.plan.layout.slide(image.spec, self.ref.slide_id)
        own = {"identity": identity.digest, "identity_fields": dict(identity.fields)}
        with publish(final, layout=image.spec.layout) as path:
            sink = image.writer.open(path, self.ref.slide_id, attributes)
            yield sink
            sink.close()
            write_folder_record(path, {**attributes, **own})

    def _publish(self, holding: StoreHolding, content: SlideContent) -> None:
        """Publish a new slide, or add to one what it lacks."""
        if holding.complete:
            return
        if holding.coords is not None and not np.array_equal(holding.coords, content.coords):
            raise StoreError(
                f"{holding.path} has the identity of this run but other coordinates; "
                "nothing was added to it. Compute it again with force=true."
            )
        mine = {name: content.features[name] for name in holding.missing}
        attributes = {**content.attributes, "writer": holding.store.fields}
        publish_slide(
            holding.path,
            holding.store.writer,
            holding.store.spec,
            replace(content, features=mine, attributes=attributes),
            force=holding.replace,
        )

    def _overlays(self, slide: OpenedSlide, mask: TissueMask, grid: TileGrid | None) -> None:
        named = {k: self.plan.layout.visualization(self.ref.slide_id, k) for k in OVERLAYS}
        # Those of an earlier run are kept true, asked for or not.
        wanted = {
            k for k, path in named.items() if k in self.plan.config.visualize or path.exists()
        }
        paths = {k: named[k] for k in OVERLAYS if k in wanted and (grid is not None or k != "grid")}
        self.outputs |= {f"{kind} overlay": path for kind, path in paths.items()}
        if paths:
            with self._timed("overlays"):
                draw_overlays(slide, paths, self.identities, mask=mask, grid=grid)


def _why_empty(slide: OpenedSlide, mask: TissueMask, grid: TileGrid) -> str:
    """Say why a slide has no tile."""
    if not mask.array.any():
        return "no tissue was found"
    width, height = grid.geometry.size_level0
    if width > slide.info.width or height > slide.info.height:
        return "the slide is smaller than one tile; tiler.edge=pad fills it up"
    return f"no tile holds enough tissue, which is {mask.fraction:.2%} of the slide"
