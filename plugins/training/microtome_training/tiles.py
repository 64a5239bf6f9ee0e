"""The tiles of a tiling as one table: whose they are, where they lie, what they are labelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import InputError, TaskError
from microtome.plugin.specs import WriterSpec
from microtome.slide.labels import FRACTION, LABEL, UNLABELLED
from microtome.slide.types import SlideRef
from microtome.store.attributes import parse_fields
from microtome.store.exchange import read_geometry, read_info
from microtome.store.identity import IDENTITY
from microtome.store.labels import parse_classes
from microtome.store.layout import OutputLayout, taken_folders
from microtome.store.patches import tile_key
from microtome.store.survey import find_tilings, written

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.plugin.registry import Registry
    from microtome.run.job import TaskJob
    from microtome.slide.types import SlideInfo, TileGeometry

SAMPLES, TRAINING = "samples", "training"
"""Folders of this room below a tiling's root."""

MPP_RATIO = 1.25
"""How far apart the µm per pixel of slides may be that are taken together, as a ratio: scanners of
one nominal magnification differ by up to a tenth, two magnifications by two and more."""

_NAMED = 5
_GIVEN = ("override", "mpp_csv", "manifest")


@dataclass(frozen=True, eq=False, kw_only=True)
class TiledSlide:
    """A slide of which an output holds tiles.

    Attributes:
        ref: The slide, to open it and to name it; its ``patient_id`` is known if the run names a
            manifest that says it, or the run that placed its tiles did.
        store: The file, or folder, with its tiles.
        writer: The store plugin that reads it.
        geometry: Of its tiles.
        info: Of the slide, as the store says it: extent, resolution.
        identity: Digest of its coordinates' identity.
        fingerprint: Of the slide's content; empty where nothing says.
        features: Names of the feature sets that are stored beside the tiles.
    """

    ref: SlideRef
    store: Path
    writer: str
    geometry: TileGeometry
    info: SlideInfo
    identity: str
    fingerprint: str = ""
    features: tuple[str, ...] = ()

    @property
    def slide_id(self) -> str:
        """The slide's name."""
        return self.ref.slide_id

    @property
    def patient_id(self) -> str:
        """Whose it is; empty if unknown."""
        return self.ref.patient_id

    @property
    def source(self) -> str:
        """The slide's file as its run named it."""
        return self.ref.source

    @property
    def mpp(self) -> float | None:
        """µm per pixel of its tiles as an encoder is given them, or None where unknown."""
        effective = self.geometry.effective_mpp
        return None if effective is None else (effective[0] + effective[1]) / 2

    def open(self, registry: Registry) -> StoredSlide:
        """Open the store: its features, its other columns.

        Raises:
            StoreError: If it is no longer there, or is damaged.
        """
        stored: StoredSlide = registry.create("writer", self.writer).open_stored(self.store)
        return stored


@dataclass(frozen=True, eq=False, kw_only=True)
class Tiles:
    """Tiles of several slides, ordered by slide id and then by (y, x).

    Attributes:
        slides: By name. `take` keeps them all, so that ``slide`` stays an index.
        slide: (n,) int32, the place of each tile's slide in ``slides``.
        row: (n,) int64, its row in its slide's store.
        coords: (n, 5) int32 ``x, y, read_w, read_h, level``.
        label: (n,) int16 index into ``classes``; -1 for a tile that has none.
        fraction: (n,) float32, the share of its area that has the label.
        classes: Their names; the first is the background. Empty where nothing is labelled.
        sample: The sample that these are, with its identity; empty for all tiles of a tiling.
    """

    slides: tuple[TiledSlide, ...]
    slide: NDArray[np.int32]
    row: NDArray[np.int64]
    coords: NDArray[np.int32]
    label: NDArray[np.int16]
    fraction: NDArray[np.float32]
    classes: tuple[str, ...] = ()
    sample: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.row)

    def keys(self) -> list[str]:
        """Name every tile by its slide and place."""
        names = [slide.slide_id for slide in self.slides]
        places = zip(self.slide.tolist(), self.coords[:, :2].tolist(), strict=True)
        return [tile_key(names[slide], x, y) for slide, (x, y) in places]

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Tiles:
        """Give some of the tiles, by a mask or by index, in that order."""
        names = ("slide", "row", "coords", "label", "fraction")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def of_slides(self, slide_ids: Iterable[str]) -> NDArray[np.bool_]:
        """Tell which tiles are of certain slides: (n,) bool."""
        wanted = set(slide_ids)
        of_these = np.array([slide.slide_id in wanted for slide in self.slides], bool)
        mask: NDArray[np.bool_] = of_these[self.slide]
        return mask

    def positives(self) -> NDArray[np.int64]:
        """Count the tiles of each slide that are of a class other than the background."""
        positive = self.slide[self.label > 0]
        return np.bincount(positive, minlength=len(self.slides)).astype(np.int64)


def root(job: TaskJob) -> Path:
    """Give the folder of the tiling that a task is about.

    The one that ``tiler.name`` names; otherwise the only one of the output, or the one without a
    name.

    Raises:
        TaskError: If there are no tiles, or several tilings to choose from.
        InputError: If the folder is no output.
    """
    output, tiling = job.config.output, job.config.tiling
    specs = _stores(job.registry)
    if tiling and tiling != "auto":
        named = OutputLayout(output, tiling).root
        if not _holds(named, specs):
            raise TaskError(f"{named} holds no tiles. {_first('Place them')}")
        return named
    tilings = find_tilings(output, taken_folders(job.registry)) if output.is_dir() else []
    roots = [layout.root for layout in tilings if _holds(layout.root, specs)]
    if not roots:
        raise TaskError(f"{output} holds no tiles. {_first('Place them')}")
    if len(roots) > 1 and roots[0] != output:
        names = ", ".join(each.relative_to(output).as_posix() for each in roots)
        raise TaskError(f"{output} holds several tilings: choose one with tiler.name=, of {names}.")
    return roots[0]


def read_tiles(
    job: TaskJob, *, sample: str = "", labelled: bool = True, mpp_ratio: float = MPP_RATIO
) -> Tiles:
    """Read the tiles of a tiling, without their pixels.

    Args:
        job: Whose output and tiling; if it names slides, only theirs, and patients are known by
            its manifest.
        sample: Name, or path, of a sample: only its tiles.
        labelled: Whether all must be labelled; otherwise those that are not have -1.
        mpp_ratio: How far apart the µm per pixel of slides may be, as a ratio.

    Raises:
        TaskError: If there are none, slides that are named have none, or the slides do not go
            together: other classes, tiles of another size or resolution.
        StoreError: If a store cannot be read.
        InputError: If slides that are named are not there.
    """
    if sample:
        from microtome_training.sampling.files import read_sample

        return read_sample(job, sample).tiles(job, mpp_ratio=mpp_ratio)
    folder = root(job)
    refs = named_slides(job)
    parts = [part for part in read_stores(job, folder, refs) if part.classes or not labelled]
    if labelled and not parts:
        of_these = "" if refs is None else " of the slides that are named"
        raise TaskError(f"{folder}: no tiles{of_these} are labelled. {_first('Label them')}")
    if refs is not None:
        refuse_absent(folder, refs, parts, what="labelled tiles" if labelled else "tiles")
    return join(parts, mpp_ratio=mpp_ratio)


def named_slides(job: TaskJob) -> dict[str, SlideRef] | None:
    """Find the slides that a task's run names, by id; None if it names none.

    Raises:
        InputError: If one is not there, or shares its id with another.
    """
    found = job.find_slides()
    if found is None:
        return None
    if found.refused:
        first = found.refused[0]
        raise InputError(f"{first.slide.source} is left out: {first.reason}")
    return {ref.slide_id: ref for ref in found.slides}


def join(parts: Sequence[Tiles], *, mpp_ratio: float = MPP_RATIO) -> Tiles:
    """Put the tiles of several slides together, by slide id.

    Raises:
        TaskError: If there are none, or they do not go together.
    """
    ordered = sorted(parts, key=lambda part: part.slides[0].slide_id)
    if not ordered:
        raise TaskError(f"There are no tiles. {_first('Place them')}")
    slides = tuple(part.slides[0] for part in ordered)
    _check_geometry(slides, mpp_ratio)
    classes = _one_classes(ordered)
    together: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in ordered])
        for name in ("row", "coords", "label", "fraction")
    }
    counts = [len(part) for part in ordered]
    slide = np.repeat(np.arange(len(slides), dtype=np.int32), counts)
    return Tiles(slides=slides, slide=slide, classes=classes, **together)


def read_stores(job: TaskJob, folder: Path, refs: Mapping[str, SlideRef] | None) -> Iterator[Tiles]:
    """Read the tiles of each slide of a tiling, those of a store that the run names first.

    Args:
        job: The run.
        folder: The tiling's root.
        refs: Which slides, by id; None for all.

    Raises:
        StoreError: If a store cannot be read.
    """
    seen: set[str] = set()
    chosen = [choice.plugin for choice in job.config.writers]
    for spec in sorted(_stores(job.registry), key=lambda spec: spec.name not in chosen):
        for path, slide_id, _ in written(folder / spec.folder, spec):
            if slide_id not in seen and (refs is None or slide_id in refs):
                seen.add(slide_id)
                ref = None if refs is None else refs[slide_id]
                yield read_slide(path, spec.name, job.registry, slide_id=slide_id, ref=ref)


def read_slide(
    path: Path, writer: str, registry: Registry, *, slide_id: str, ref: SlideRef | None = None
) -> Tiles:
    """Read the tiles of one store.

    Args:
        path: The store.
        writer: The plugin that reads it.
        registry: The plugins.
        slide_id: The slide's name.
        ref: The slide, if the run names it; otherwise it is where the store says.

    Raises:
        StoreError: If it cannot be read.
    """
    with registry.create("writer", writer).open_stored(path) as stored:
        attributes, coords = stored.attributes, np.asarray(stored.coords, np.int32)
        fields = parse_fields(attributes)
        slide = TiledSlide(
            ref=_with_patient(ref or _as_stored(attributes, slide_id), attributes),
            store=path,
            writer=writer,
            geometry=read_geometry(attributes, str(path)),
            info=read_info(attributes),
            identity=str(attributes.get(IDENTITY, "")),
            fingerprint=str(fields.get("slide") or fields.get("tissue", {}).get("slide") or ""),
            features=tuple(stored.feature_names()),
        )
        count, columns = len(coords), stored.columns
        classes = parse_classes(attributes) if LABEL in columns else ()
        label = np.asarray(columns[LABEL], np.int16) if classes else None
        fraction = np.asarray(columns[FRACTION], np.float32) if classes else None
    return Tiles(
        slides=(slide,),
        slide=np.zeros(count, np.int32),
        row=np.arange(count, dtype=np.int64),
        coords=coords,
        label=np.full(count, UNLABELLED, np.int16) if label is None else label,
        fraction=np.ones(count, np.float32) if fraction is None else fraction,
        classes=classes,
    )


def _as_stored(attributes: Mapping[str, Any], slide_id: str) -> SlideRef:
    """Give a slide as its store knows it; an mpp that a user gave holds on."""
    info, source = read_info(attributes), str(attributes.get("wsi_path", ""))
    given = info.resolution.mpp_source in _GIVEN
    return SlideRef(
        path=Path(source),
        slide_id=slide_id,
        mpp=info.resolution.mpp if given else None,
        mpp_source=info.resolution.mpp_source if given else "override",
        source=source,
    )


def _with_patient(ref: SlideRef, attributes: Mapping[str, Any]) -> SlideRef:
    """Say whose a slide is by what its run was told, where this one is not told."""
    patient = str(attributes.get("patient_id", ""))
    return replace(ref, extra={**ref.extra, "patient_id": ref.patient_id or patient})


def _stores(registry: Registry) -> list[WriterSpec]:
    entries = registry.entries("writer")
    found = [e.spec for e in entries if isinstance(e.spec, WriterSpec) and not e.missing]
    return [spec for spec in found if spec.consumes == "features"]


def _holds(folder: Path, specs: Iterable[WriterSpec]) -> bool:
    return any(True for spec in specs for _ in written(folder / spec.folder, spec))


def refuse_absent(
    where: Path, wanted: Iterable[str], parts: Iterable[Tiles], *, what: str = "tiles"
) -> None:
    """See that every slide is there.

    Raises:
        TaskError: If one is not.
    """
    absent = sorted({*wanted} - {part.slides[0].slide_id for part in parts})
    if absent:
        raise TaskError(
            f"{where} holds no {what} of {tell_some(absent)}. Place and label those first "
            "(task=index), or leave them out."
        )


def _check_geometry(slides: Sequence[TiledSlide], mpp_ratio: float) -> None:
    """See that the tiles of all slides show the same size of tissue in as many pixels.

    Raises:
        TaskError: If they do not.
    """
    sizes = {slide.geometry.size: slide for slide in slides}
    if len(sizes) > 1:
        told = " and ".join(f"{s.slide_id} of {size} px" for size, s in sorted(sizes.items())[:2])
        raise TaskError(f"The tiles differ in size: {told}. Tile all slides alike.")
    known = [(slide.mpp, slide) for slide in slides if slide.mpp is not None]
    if not known:
        return
    (low, fine), (high, coarse) = (pick(known, key=lambda each: each[0]) for pick in (min, max))
    if high / low > mpp_ratio:
        raise TaskError(
            f"The tiles differ in resolution: {fine.slide_id} has {low:.3g} µm per pixel, "
            f"{coarse.slide_id} {high:.3g}. Tile all slides at one tiler.mpp, or correct what a "
            "slide says of its mpp (mpp_csv=)."
        )
    unknown = [slide.slide_id for slide in slides if slide.mpp is None]
    if unknown and math.isfinite(mpp_ratio):
        raise TaskError(
            f"Of {tell_some(unknown)} nothing says how many µm a pixel is, of {fine.slide_id} it "
            f"is {low:.3g}. Give it with mpp_csv=, and tile those slides anew."
        )


def _one_classes(parts: Sequence[Tiles]) -> tuple[str, ...]:
    labelled = [part for part in parts if part.classes]
    for part in labelled:
        if part.classes != labelled[0].classes:
            first, other = labelled[0], part
            raise TaskError(
                f"{first.slides[0].slide_id} is labelled with the classes "
                f"{', '.join(first.classes)}, {other.slides[0].slide_id} with "
                f"{', '.join(other.classes)}. Label all slides with the same labels.classes."
            )
    return labelled[0].classes if labelled else ()


def tell_some(names: Sequence[str]) -> str:
    """Name the first few, and say how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _first(what: str) -> str:
    return (
        f"{what} first: microtome SLIDES output=OUTPUT task=index annotations=FOLDER "
        "labels.classes.tumor=[Tumor]."
    )
