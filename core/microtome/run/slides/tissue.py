"""A slide's tissue: the picture that a segmenter wants, its mask, the cleaning, its files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from microtome.errors import StoreError
from microtome.plugin.protocols import Segmenter
from microtome.plugin.specs import SegmenterSpec
from microtome.run.planning.plan import RunPlan
from microtome.run.settings import TissueSettings
from microtome.run.slides.identities import tissue_identity
from microtome.slide.imaging import render_view
from microtome.slide.opening import OpenedSlide
from microtome.slide.tissue import clean_mask, mask_regions, regions_geojson
from microtome.slide.types import SlideView, TileGrid, TissueMask
from microtome.store.identity import Identity
from microtome.store.masks import load_mask, save_mask
from microtome.store.publish import write_json


def find_tissue(
    slide: OpenedSlide, segmenter: Segmenter, spec: SegmenterSpec, settings: TissueSettings
) -> TissueMask:
    """Draw a slide as a segmenter wants it, segment it, and clean the mask.

    Raises:
        SlideReadError: If the picture cannot be read.
        TissueError: If nothing honest can be said of the slide.
    """
    (mask,) = segmenter.segment([draw_view(slide, spec)])
    return clean_mask(mask, settings, slide.info.resolution.mpp)


def draw_view(slide: OpenedSlide, spec: SegmenterSpec) -> SlideView:
    """Draw a slide as a segmenter wants it.

    Raises:
        SlideReadError: If the picture cannot be read.
    """
    return render_view(
        slide.ref,
        slide.reader,
        slide.info,
        mpp=spec.input_mpp,
        max_px=spec.max_px,
        min_px=spec.min_px,
    )


@dataclass(frozen=True, kw_only=True)
class TissueFiles:
    """Where a slide's mask is kept.

    Attributes:
        slide_id: Of the slide.
        identity: What the mask depends on.
        mask: The image.
        regions: The same as GeoJSON.
    """

    slide_id: str
    identity: Identity
    mask: Path
    regions: Path

    @classmethod
    def of(cls, plan: RunPlan, slide: OpenedSlide, slide_print: str) -> Self:
        """Name the files of an open slide.

        Args:
            plan: The resolved run.
            slide: The slide.
            slide_print: Its fingerprint.
        """
        identity, slide_id = tissue_identity(plan, slide, slide_print), slide.ref.slide_id
        return cls(
            slide_id=slide_id,
            identity=identity,
            mask=plan.layout.tissue(slide_id, identity.digest, ".png"),
            regions=plan.layout.tissue(slide_id, identity.digest, ".geojson"),
        )

    def load(self) -> TissueMask | None:
        """Load what a run with the same settings left; None where there is nothing whole."""
        if self.mask.exists() and self.regions.exists():
            with suppress(StoreError):  # damaged: it is made again
                return load_mask(self.mask).mask
        return None

    def save(self, mask: TissueMask) -> None:
        """Publish a mask.

        Raises:
            StoreError: If it cannot be written.
        """
        write_json(self.regions, regions_geojson(mask_regions(mask)), indent=None)
        save_mask(self.mask, mask, identity=self.identity, extra={"slide_id": self.slide_id})


def why_empty(slide: OpenedSlide, mask: TissueMask, grid: TileGrid) -> str:
    """Say why a slide has no tile."""
    if not mask.array.any():
        return "no tissue was found"
    tiles = grid.region_tiles or 1
    place = "region" if grid.region_tiles else "tile"
    width, height = grid.geometry.size_level0
    if width * tiles > slide.info.width or height * tiles > slide.info.height:
        way_out = "; tiler.edge=pad fills it up" if grid.geometry.edge == "drop" else ""
        return f"the slide is smaller than one {place}{way_out}"
    return f"no {place} holds enough tissue, which is {mask.fraction:.2%} of the slide"
