"""The tiles of a tiling as one table: whose they are, where they lie, what they are labelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.store.patches import tile_key

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.plugin.registry import Registry
    from microtome.slide.types import SlideInfo, SlideRef, TileGeometry

MPP_RATIO = 1.25
"""How far apart the µm per pixel of slides may be that are taken together, as a ratio: scanners of
one nominal magnification differ by up to a tenth, two magnifications by two and more."""

_NAMED = 5


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
        labels: Digest of its tiles' labels, all of them; empty where it has none.
        outlines: The file of outlines that its labels are of; None where nothing says.
        outlines_digest: Of that file's content as it was labelled; empty where nothing says.
    """

    ref: SlideRef
    store: Path
    writer: str
    geometry: TileGeometry
    info: SlideInfo
    identity: str
    fingerprint: str = ""
    features: tuple[str, ...] = ()
    labels: str = ""
    outlines: Path | None = None
    outlines_digest: str = ""

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


def join(parts: Sequence[Tiles], *, mpp_ratio: float = MPP_RATIO) -> Tiles:
    """Put the tiles of several slides together, by slide id.

    Raises:
        TaskError: If there are none, or they do not go together.
    """
    ordered = sorted(parts, key=lambda part: part.slides[0].slide_id)
    if not ordered:
        raise TaskError(f"There are no tiles. {do_first('Place them')}")
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


def do_first(what: str) -> str:
    """Say which command comes first."""
    return (
        f"{what} first: microtome SLIDES output=OUTPUT task=index annotations=FOLDER "
        "labels.classes.tumor=[Tumor]."
    )
