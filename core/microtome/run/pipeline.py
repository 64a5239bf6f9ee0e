"""One slide through the pipeline: open, tissue, coordinates, tiles, write, overlays, status."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import IdentityError, MicrotomeError, StoreError
from microtome.plugin.specs import ReaderSpec
from microtome.run.attributes import (
    RESAMPLE_VERSION,
    as_mapping,
    feature_attributes,
    slide_attributes,
)
from microtome.run.budget import cpu_budget
from microtome.run.pixels import PixelPass
from microtome.run.plan import PlannedEncoder, PlannedImages, PlannedStore, RunPlan
from microtome.run.progress import Reporter
from microtome.slide.imaging import render_view
from microtome.slide.opening import OpenedSlide, open_slide
from microtome.slide.overlay import draw_overlay
from microtome.slide.tissue import clean_mask, mask_regions, regions_geojson
from microtome.slide.types import SlideRef, SlideView, TileGrid, TissueMask
from microtome.store.identity import Identity, difference, fingerprint, make_identity
from microtome.store.masks import load_mask, save_mask
from microtome.store.publish import (
    FeatureScratch,
    FeatureSet,
    SlideContent,
    publish,
    publish_slide,
    write_json,
    write_png,
)
from microtome.store.status import SlideStatus, read_status, write_status

OVERLAY_PX = 1024
"""Longest side of an overlay."""


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
    except Exception as error:  # noqa: BLE001 - the slide boundary: one bad slide never stops the others
        status = work.failed(error)
    else:
        status = work.finished()
    write_status(plan.layout.status(ref.slide_id), status)
    return status


@dataclass(frozen=True, eq=False)
class StoreState:
    """What a store already holds of a slide, and what it lacks."""

    store: PlannedStore
    path: Path
    exists: bool
    missing: tuple[str, ...]
    replace: bool

    @property
    def complete(self) -> bool:
        """Whether there is nothing to write."""
        return self.exists and not self.missing and not self.replace


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
        outputs: What was written or found.
        tiles: Number of tiles, once known.
        wrote: Whether anything was computed.
        why: Why this reader.
        reader: Which reader.
        print: The slide's fingerprint.
        began: When, UTC.
    """

    plan: RunPlan
    ref: SlideRef
    reporter: Reporter
    stage: str = "open"
    seconds: dict[str, float] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    outputs: list[Path] = field(default_factory=list)
    tiles: int | None = None
    wrote: bool = False
    why: str = ""
    reader: str = ""
    print: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self, stack: ExitStack) -> None:
        """Take the slide through the stages that the task asks for."""
        with self._timed("open"):
            slide = stack.enter_context(self._open())
        with self._timed("tissue"):
            tissue_identity, mask = self._tissue(slide)
        if self.plan.config.task == "tissue":
            self._overlays(slide, mask, None)
            return
        with self._timed("coords"):
            grid = self.plan.tiler.plan(slide.info, mask)
            identity = self._coords_identity(tissue_identity)
        with self._timed("check"):
            states = [self._state(store, identity) for store in self.plan.stores]
            images = [image for image in self.plan.images if self._image_missing(image, identity)]
        if images or not all(state.complete for state in states):
            self._produce(slide, grid, identity, states, images)
        else:
            self.tiles = self._stored_tiles(states, grid)
        self._overlays(slide, mask, grid)

    def finished(self) -> SlideStatus:
        """Describe a slide that went well."""
        state = "empty" if self.tiles == 0 else "done" if self.wrote else "reused"
        return self._status(state)

    def failed(self, error: Exception) -> SlideStatus:
        """Describe a slide that did not."""
        expected = isinstance(error, MicrotomeError | OSError)
        text = (
            str(error) if isinstance(error, MicrotomeError) else f"{type(error).__name__}: {error}"
        )
        return self._status(
            "failed",
            error=text,
            error_type=type(error).__name__,
            traceback="" if expected else "".join(traceback.format_exception(error)),
        )

    def _status(self, state: str, **failure: str) -> SlideStatus:
        return SlideStatus(
            slide_id=self.ref.slide_id,
            path=str(self.ref.path),
            state=state,
            stage=self.stage,
            task=self.plan.config.task,
            fingerprint=self.print,
            reader=self.reader,
            reader_why=self.why,
            encoders=tuple(encoder.name for encoder in self.plan.encoders),
            tiles=self.tiles,
            seconds={stage: round(value, 3) for stage, value in self.seconds.items()},
            outputs=tuple(
                path.relative_to(self.plan.config.output).as_posix() for path in self.outputs
            ),
            identities=dict(self.identities),
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

    # --- open and tissue ---------------------------------------------------------------------

    def _open(self) -> OpenedSlide:
        self.print = fingerprint(self.ref.path, self.ref.companions)
        choice = self.plan.config.reader
        slide = open_slide(
            self.ref, reader=choice.plugin, config=choice.config, registry=self.plan.registry
        )
        self.reader, self.why = slide.info.reader, slide.why
        return slide

    def _tissue(self, slide: OpenedSlide) -> tuple[Identity, TissueMask]:
        """Load the slide's mask if a run with the same settings left one, else make it."""
        identity = self._tissue_identity(slide)
        self.identities["tissue"] = identity.digest
        layout = self.plan.layout
        path = layout.tissue(self.ref.slide_id, identity.digest, ".png")
        regions = layout.tissue(self.ref.slide_id, identity.digest, ".geojson")
        self.outputs += [path, regions]
        if path.exists() and regions.exists() and not self.plan.config.force:
            return identity, load_mask(path)
        mask = self._segment(slide)
        write_json(regions, regions_geojson(mask_regions(mask)))
        save_mask(path, mask, identity=identity, extra={"slide_id": self.ref.slide_id})
        self.wrote = True
        return identity, mask

    def _segment(self, slide: OpenedSlide) -> TissueMask:
        spec = self.plan.segmenter_spec
        view = render_view(
            slide.ref, slide.reader, slide.info, mpp=spec.input_mpp, max_px=spec.max_px
        )
        mask = self.plan.segmenter.segment([view])[0]
        return clean_mask(mask, self.plan.config.tissue, slide.info.resolution.mpp)

    def _tissue_identity(self, slide: OpenedSlide) -> Identity:
        sources = getattr(self.plan.segmenter, "sources", None)
        spec = self.plan.registry.find("reader", slide.info.reader).spec
        fields: dict[str, Any] = {
            "slide": self.print,
            "segmenter": self.plan.segmenter_fields,
            "cleaning": {k: v for k, v in asdict(self.plan.config.tissue).items() if v},
        }
        if slide.ref.mpp is not None:
            fields["mpp"] = slide.ref.mpp
        if isinstance(spec, ReaderSpec) and not spec.exact:
            fields["reader"] = {"plugin": spec.name, "output_version": spec.output_version}
        if sources is not None and (files := sources(slide.ref)):
            fields["sources"] = {file.name: fingerprint(file) for file in files}
        return make_identity("tissue", fields)

    # --- coordinates and what is already there -------------------------------------------------

    def _coords_identity(self, tissue: Identity) -> Identity:
        fields: dict[str, Any] = {"tissue": dict(tissue.fields), "tiler": self.plan.tiler_fields}
        if self.plan.config.filter.enabled:
            fields["filter"] = asdict(self.plan.config.filter) | {"resample": RESAMPLE_VERSION}
        identity = make_identity("coords", fields)
        self.identities["coords"] = identity.digest
        return identity

    def _feature_identity(self, encoder: PlannedEncoder, coords: Identity) -> Identity:
        return make_identity(
            "features",
            {
                "coords": coords.digest,
                "encoder": encoder.fields,
                "dtype": self.plan.config.feature_dtype,
                "resample_version": RESAMPLE_VERSION,
            },
        )

    def _state(self, store: PlannedStore, identity: Identity) -> StoreState:
        """Compare what a store holds with what this run would write."""
        path = self.plan.layout.slide(store.spec, self.ref.slide_id)
        self.outputs.append(path)
        wanted = {e.name: self._feature_identity(e, identity) for e in self.plan.encoders}
        self.identities |= {f"features/{name}": value.digest for name, value in wanted.items()}
        if not path.exists() or self.plan.config.force:
            return StoreState(store, path, path.exists(), tuple(wanted), self.plan.config.force)
        with store.writer.open_stored(path) as stored:
            self._refuse_other_slide(path, stored.attributes, identity)
            names = stored.feature_names()
            for name in set(wanted) & set(names):
                attributes = stored.feature_attributes(name)
                _refuse_difference(f"features/{name} in {path}", attributes, wanted[name])
            missing = tuple(name for name in wanted if name not in names)
            # Coordinates alone say nothing of the background; nothing is lost by writing anew.
            bare = bool(missing) and not names and "has_background" not in stored.columns
        return StoreState(store, path, exists=True, missing=missing, replace=bare)

    def _refuse_other_slide(
        self, path: Path, attributes: Mapping[str, Any], identity: Identity
    ) -> None:
        if "identity_fields" not in attributes:
            raise StoreError(f"{path} was not written by a run of microtome; use another output.")
        theirs = as_mapping(attributes["identity_fields"])
        slide = theirs.get("tissue", {}).get("slide")
        if slide != self.print and attributes.get("wsi_path") != str(self.ref.path):
            raise IdentityError(
                f"{path} holds another slide, {attributes.get('wsi_path')}; this one is "
                f"{self.ref.path}. Tell them apart with slide_id=relpath or a manifest's slide_id."
            )
        _refuse_difference(str(path), attributes, identity)

    def _image_missing(self, image: PlannedImages, identity: Identity) -> bool:
        path = self.plan.layout.slide(image.spec, self.ref.slide_id)
        self.outputs.append(path)
        wanted = self._image_identity(image, identity)
        self.identities[image.name] = wanted.digest
        if not path.exists() or self.plan.config.force:
            return True
        _refuse_difference(str(path), image.writer.read_attributes(path), wanted)
        return False

    def _image_identity(self, image: PlannedImages, coords: Identity) -> Identity:
        fields = {"coords": dict(coords.fields), "writer": image.fields}
        return make_identity("images", fields | {"resample_version": RESAMPLE_VERSION})

    def _stored_tiles(self, states: Sequence[StoreState], grid: TileGrid) -> int:
        for state in states:
            with state.store.writer.open_stored(state.path) as stored:
                return int(stored.coords.shape[0])
        return len(grid)

    # --- tiles and files -----------------------------------------------------------------------

    def _produce(
        self,
        slide: OpenedSlide,
        grid: TileGrid,
        identity: Identity,
        states: Sequence[StoreState],
        images: Sequence[PlannedImages],
    ) -> None:
        """Read the tiles once if anything needs them, and publish what was missing."""
        config = self.plan.config
        needed = {name for state in states if not state.complete for name in state.missing}
        encoders = [encoder for encoder in self.plan.encoders if encoder.name in needed]
        with ExitStack() as stack:
            scratches = {
                encoder.name: stack.enter_context(self._scratch(len(grid))) for encoder in encoders
            }
            attributes = slide_attributes(slide, grid.geometry, identity, len(grid))
            sinks = [
                stack.enter_context(self._sink(image, identity, attributes)) for image in images
            ]
            passed = PixelPass(
                filter=config.filter,
                encoders=[(encoder, scratches[encoder.name]) for encoder in encoders],
                sinks=sinks,
                batch_size=config.batch_size,
                readers=cpu_budget(config.threads),
                advance=self.reporter.advance,
            )
            if encoders or sinks or config.filter.enabled:
                with self._timed("tiles", len(grid)):
                    for encoder in encoders:
                        encoder.ensure_loaded()
                    passed.run(slide.reader, grid)
                kept, columns = passed.kept, {"has_background": passed.has_background}
            else:
                kept, columns = np.arange(len(grid), dtype=np.int64), {}
            self.tiles = len(kept)
            with self._timed("write"):
                content = SlideContent(
                    coords=grid.coords[kept],
                    columns={k: v[kept] for k, v in grid.columns.items()} | columns,
                    attributes=attributes | {"num_patches": len(kept)},
                    features={
                        encoder.name: FeatureSet(
                            scratches[encoder.name].source(len(kept), encoder.card.dim),
                            feature_attributes(
                                encoder, self.plan, self._feature_identity(encoder, identity)
                            ),
                        )
                        for encoder in encoders
                    },
                )
                for state in states:
                    if not state.complete:
                        self._publish(state, content)
        self.wrote = True

    def _scratch(self, rows: int) -> FeatureScratch:
        folder = self.plan.config.output
        return FeatureScratch(folder, rows, np.dtype(self.plan.config.feature_dtype))

    @contextmanager
    def _sink(
        self, image: PlannedImages, identity: Identity, attributes: Mapping[str, Any]
    ) -> Iterator[Any]:
        wanted = self._image_identity(image, identity)
        final = self.plan.layout.slide(image.spec, self.ref.slide_id)
        own = {"identity": wanted.digest, "identity_fields": dict(wanted.fields)}
        with publish(final, layout=image.spec.layout) as path:
            sink = image.writer.open(path, self.ref.slide_id, {**attributes, **own})
            yield sink
            sink.close()

    def _publish(self, state: StoreState, content: SlideContent) -> None:
        store = state.store
        mine = {name: content.features[name] for name in state.missing}
        if state.exists and not state.replace:
            self._refuse_other_rows(state, content.coords)
        publish_slide(
            state.path,
            store.writer,
            store.spec,
            SlideContent(content.coords, content.columns, content.attributes, mine),
            force=state.replace,
        )

    def _refuse_other_rows(self, state: StoreState, coords: NDArray[np.int32]) -> None:
        with state.store.writer.open_stored(state.path) as stored:
            if not np.array_equal(stored.coords, coords):
                raise StoreError(
                    f"{state.path} has the identity of this run but other coordinates; "
                    "nothing was added to it. Compute it again with force=true."
                )

    # --- overlays ------------------------------------------------------------------------------

    def _overlays(self, slide: OpenedSlide, mask: TissueMask, grid: TileGrid | None) -> None:
        kinds = [k for k in self.plan.config.visualize if grid is not None or k != "grid"]
        paths = {kind: self.plan.layout.visualization(self.ref.slide_id, kind) for kind in kinds}
        self.outputs += paths.values()
        if not self.wrote and self._same_as_before() and all(p.exists() for p in paths.values()):
            return
        with self._timed("overlays"):
            view: SlideView | None = None
            for kind, path in paths.items():
                view = view or render_view(
                    slide.ref, slide.reader, slide.info, mpp=None, max_px=OVERLAY_PX
                )
                write_png(path, draw_overlay(kind, view, mask=mask, grid=grid))

    def _same_as_before(self) -> bool:
        """Whether the slide's last status tells of the same tissue and coordinates."""
        before = read_status(self.plan.layout.status(self.ref.slide_id))
        return before is not None and all(
            before.identities.get(name) == self.identities.get(name)
            for name in ("tissue", "coords")
        )


def _refuse_difference(what: str, attributes: Mapping[str, Any], wanted: Identity) -> None:
    """Refuse what another configuration made, naming the difference.

    Raises:
        IdentityError: If the identities differ.
    """
    if attributes.get("identity") == wanted.digest:
        return
    fields = as_mapping(attributes.get("identity_fields", {}))
    raise IdentityError(
        f"{what} was made by another configuration: {difference(fields, wanted.fields)}. "
        "Give this run an output or a tiler.name of its own, or replace it with force=true."
    )
