"""Another tool's files into finished slides, with identities that say where they came from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import (
    IdentityError,
    InputError,
    LayoutError,
    MicrotomeError,
    OutputError,
)
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry
from microtome.plugin.specs import WriterSpec
from microtome.run.exchange.exporting import Chosen, Outcome
from microtome.run.exchange.foreign import (
    blocks,
    check_extent,
    check_rows,
    digest,
    digest_rows,
    hashes,
    in_order,
)
from microtome.run.inputs.finding import find_slides
from microtome.run.settings import RunConfig
from microtome.run.slides.attributes import provenance, tile_attributes
from microtome.slide.opening import open_slide
from microtome.slide.types import SlideRef
from microtome.store.atomic import sweep, wrap_errors
from microtome.store.attributes import parse_fields, parse_json
from microtome.store.exchange import FoundSlide, SlideFacts, TiledSlide
from microtome.store.features import FeatureScratch
from microtome.store.identity import (
    IDENTITY,
    Identity,
    describe,
    difference,
    fingerprint,
    make_identity,
)
from microtome.store.layout import OutputLayout, refuse_taken
from microtome.store.publish import FeatureSet, SlideContent, publish_slide
from microtome.store.quality import REASON
from microtome.store.status import SlideStatus, write_status

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoreWriter


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a user says besides the files.

    Attributes:
        writer: Name of the store to write.
        slides: A folder, file or manifest that names the slides themselves; None without them.
        mpp: µm per level-0 pixel of slides that nothing else says it of.
        features: The feature sets to import; all if None, none if empty.
        force: Replace slides that are there.
    """

    writer: str = "hdf5"
    slides: str | None = None
    mpp: float | None = None
    features: Collection[str] | None = None
    force: bool = False


def import_folder(
    folder: Path,
    chosen: Chosen,
    layout: OutputLayout,
    *,
    registry: Registry,
    options: ImportOptions,
) -> Iterator[Outcome]:
    """Import every slide of a folder; a bad one never stops the others.

    Args:
        folder: What the other tool left.
        chosen: Its layout.
        layout: The output and tiling to write to.
        registry: The writers and readers.
        options: What else is known.

    Yields:
        How each slide went.

    Raises:
        InputError: If the folder holds no slide of that layout, or the slides cannot be found.
        ConfigError: If the tiling is named like a folder of something else.
    """
    refuse_taken(layout.root.relative_to(layout.output).as_posix(), registry)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give what {chosen.spec.tool} wrote into.")
    with registry.blame("layout", chosen.spec.name, "used to look for slides"):
        found = chosen.layout.find(folder)
    if not found:
        raise InputError(
            f"{folder} holds no slide in the layout of {chosen.spec.tool}. Give the folder that "
            f"docs/layouts.md names for {chosen.spec.name}."
        )
    job = _Import(chosen, layout, registry, options, _slides(registry, layout, options))
    for slide_id in sorted(found):
        try:
            yield job.slide(found[slide_id])
        except OutputError:  # nor would any other slide's files be taken
            raise
        except MicrotomeError as error:
            yield Outcome(slide_id=slide_id, state="failed", text=str(error))


def _slides(
    registry: Registry, layout: OutputLayout, options: ImportOptions
) -> Mapping[str, SlideRef]:
    if options.slides is None:
        return {}
    config = RunConfig(
        slides=(options.slides,), output=layout.output, recursive=True, mpp=options.mpp
    )
    return {ref.slide_id: ref for ref in find_slides(config, registry).slides}


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reading:
    """A slide as it was found and read.

    Attributes:
        found: Its files.
        ref: The slide itself, if it is at hand.
        slide: What the files say.
        keep: The rows to keep, sorted by (y, x).
        columns: Per-tile values of these rows.
    """

    found: FoundSlide
    ref: SlideRef | None
    slide: TiledSlide
    keep: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    @property
    def name(self) -> str:
        """What records call the slide."""
        return (
            self.ref.source
            if self.ref is not None
            else self.slide.source or str(self.found.coords[0])
        )


@dataclass(frozen=True)
class _Import:
    chosen: Chosen
    layout: OutputLayout
    registry: Registry
    options: ImportOptions
    slides: Mapping[str, SlideRef]

    def slide(self, found: FoundSlide) -> Outcome:
        """Import a slide."""
        began = datetime.now(UTC)
        ref = self.slides.get(found.slide_id)
        if ref is None and self.options.slides is not None:
            raise InputError(f"{self.options.slides} holds no slide {found.slide_id!r}.")
        with self.registry.blame("layout", self.chosen.spec.name, "used to import"):
            read, warnings = self._read(replace(found, features=self._wanted(found)), ref)
            identity, features = self._identities(read)
        final, writer, spec = self._store(found.slide_id)
        text = ", ".join(features) or "coordinates alone"
        there = not self.options.force and _is_there(final, writer, identity, features)
        if there and self.layout.status(found.slide_id).exists():
            return Outcome(slide_id=found.slide_id, state="reused", text=text)
        with ExitStack() as stack, wrap_errors(final):
            content = self._content(read, identity, features, stack)
            sweep(final.parent)
            publish_slide(final, writer, spec, content, force=self.options.force)
        status = SlideStatus(
            slide_id=found.slide_id,
            path=read.name,
            state="done" if read.keep.size else "empty",
            task="import",
            fingerprint="" if ref is None else fingerprint(ref.path, ref.companions),
            encoders=tuple(features),
            tiles=int(read.keep.size),
            outputs={spec.name: self.layout.relative(final)},
            identities={"coords": identity.digest}
            | {f"features/{name}": made.digest for name, made in features.items()},
            warnings=warnings,
            version=__version__,
            started=began.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_status(self.layout.status(found.slide_id), status)
        return Outcome(
            slide_id=found.slide_id,
            state="imported",
            text=f"{read.keep.size} tiles, {text}",
            warnings=warnings,
        )

    def _wanted(self, found: FoundSlide) -> Mapping[str, tuple[Path, ...]]:
        wanted = self.options.features
        if wanted is None:
            return found.features
        if missing := sorted({*wanted} - {*found.features}):
            raise LayoutError(
                f"{found.slide_id} has no features {', '.join(missing)}; there are "
                f"{', '.join(found.features) or 'none'}."
            )
        return {name: files for name, files in found.features.items() if name in wanted}

    def _facts(self, ref: SlideRef | None) -> SlideFacts:
        if ref is None:
            return SlideFacts(mpp=self.options.mpp)
        with open_slide(ref, registry=self.registry) as slide:
            return SlideFacts(info=slide.info, mpp=self.options.mpp)

    def _read(self, found: FoundSlide, ref: SlideRef | None) -> tuple[_Reading, tuple[str, ...]]:
        slide = self.chosen.layout.read(found, self._facts(ref))
        keep, warnings = in_order(found.slide_id, slide)
        check_extent(slide)
        check_rows(slide)
        # The names of its bits are in no other tool's files.
        columns = {name: each[keep] for name, each in slide.columns.items() if name != REASON}
        return _Reading(found=found, ref=ref, slide=slide, keep=keep, columns=columns), warnings

    def _identities(self, read: _Reading) -> tuple[Identity, dict[str, Identity]]:
        """Identify what is imported by the tool and by all that was read.

        Not by whole files: a tool adds features to them, or beside them, and what was imported
        before is still the same.
        """
        slide, ref = read.slide, read.ref
        tool, resolution = describe(self.chosen.spec, self.chosen.config), slide.info.resolution
        fields: dict[str, Any] = {
            "imported": {"layout": tool, "coords": digest(slide.coords[read.keep])},
            "geometry": slide.geometry,
            "level0": {
                "size": (slide.info.width, slide.info.height),
                "mpp": (resolution.mpp_x, resolution.mpp_y),
                "magnification": resolution.magnification,
            },
        }
        if read.columns:
            fields["columns"] = {name: digest(each) for name, each in read.columns.items()}
        if ref is not None:
            fields["slide"] = fingerprint(ref.path, ref.companions)
        coords = make_identity("coords", fields)
        return coords, {
            name: make_identity(
                "features",
                {
                    "coords": coords.digest,
                    "imported": {"layout": tool, "values": digest_rows(given, read.keep)},
                },
            )
            for name, given in slide.features.items()
        }

    def _store(self, slide_id: str) -> tuple[Path, StoreWriter, WriterSpec]:
        spec = self.registry.find("writer", self.options.writer).spec
        if not isinstance(spec, WriterSpec) or spec.consumes != "features":
            raise InputError(f"The writer {spec.name!r} stores no features. Use hdf5 or zarr.")
        return self.layout.slide(spec, slide_id), self.registry.create("writer", spec.name), spec

    def _content(
        self,
        read: _Reading,
        identity: Identity,
        features: Mapping[str, Identity],
        stack: ExitStack,
    ) -> SlideContent:
        return SlideContent(
            coords=read.slide.coords[read.keep],
            columns=read.columns,
            attributes=self._attributes(read, identity),
            features={
                name: self._features(name, read, made, stack) for name, made in features.items()
            },
        )

    def _attributes(self, read: _Reading, identity: Identity) -> dict[str, Any]:
        slide = read.slide
        named = read.ref or SlideRef(path=Path(slide.source), slide_id=slide.slide_id)
        attributes = tile_attributes(
            named, slide.info, slide.geometry, identity=identity, tiles=int(read.keep.size)
        )
        if read.ref is None and not slide.source:
            attributes |= {"wsi_path": None, "filename": None}
        if read.ref is None:
            del attributes["bounds"]  # nobody looked
        if not slide.info.width:
            attributes |= {"level0_width": None, "level0_height": None}
        attributes |= slide.attributes
        spec = self.registry.find("writer", self.options.writer).spec
        return attributes | {
            "reader": "import",
            "imported_from": self.chosen.spec.tool,
            "imported_files": hashes(read.found.coords),
            "writer": describe(spec, configure(spec)),
        }

    def _features(
        self, name: str, read: _Reading, identity: Identity, stack: ExitStack
    ) -> FeatureSet:
        """Bring features into the order of the coordinates, a part in memory at a time."""
        given = read.slide.features[name]
        rows, dim = given.source.shape
        dtype = np.float16 if given.source.dtype == np.float16 else np.float32
        scratch = stack.enter_context(
            FeatureScratch(self.layout.output, rows, dtype, name=name, dim=dim)
        )
        for start, block in blocks(given):
            scratch.write(np.arange(start, start + len(block)), block)
        theirs = dict(given.attributes)
        own = {
            "encoder": name,
            "dim": dim,
            "imported_from": self.chosen.spec.tool,
            "imported_files": hashes(read.found.features[name]),
            "original_identity": theirs.pop(IDENTITY, None),
            "weights": parse_json(theirs.pop("weights", {})) or {"unknown": "imported"},
            "microtome_version": __version__,
            "provenance": dict(provenance()),
            "identity": identity.digest,
            "identity_fields": dict(identity.fields),
        }
        return FeatureSet(scratch.source(read.keep), theirs | own)


def _is_there(
    final: Path, writer: StoreWriter, identity: Identity, features: Mapping[str, Identity]
) -> bool:
    """Whether all of it was imported before.

    Raises:
        IdentityError: If what is there is something else.
    """
    if not final.exists():
        return False
    with writer.open_stored(final) as stored:
        held = {*stored.feature_names()} & {*features}
        _refuse_other(str(final), stored.attributes, identity)
        for name in sorted(held):
            there = stored.feature_attributes(name)
            _refuse_other(f"features/{name} in {final}", there, features[name])
    return held == {*features}


def _refuse_other(what: str, attributes: Mapping[str, Any], wanted: Identity) -> None:
    if attributes.get(IDENTITY) == wanted.digest:
        return
    raise IdentityError(
        f"{what} was made from something else: "
        f"{difference(parse_fields(attributes), wanted.fields)}. Import into another output or "
        "--tiling NAME, or replace it with --force."
    )
