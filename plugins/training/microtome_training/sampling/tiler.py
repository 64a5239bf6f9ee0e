"""The tiles of a sample, as a run places them: with their labels, for patch stores and encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import ConfigError, GeometryError
from microtome.slide.labels import CLASSES, FRACTION, LABEL
from microtome.slide.types import SlideRef, TileGrid
from microtome.store.identity import fingerprint
from microtome_training.sampling.files import Sample, SampledSlide, open_sample

if TYPE_CHECKING:
    from microtome.slide.types import SlideInfo, TissueMask
    from microtome_training.options.sample import SampledConfig

_SAME = 0.01
"""By which a level's downsample may differ between readers, as a share."""


class SampledTiler:
    """Places the tiles that a sample has of a slide.

    Args:
        config: Which sample.
        slide: Which slide, once known.
        sample: The sample, once read.

    Raises:
        ConfigError: If no sample is given, or it is not there.
        StoreError: If it cannot be read.
    """

    def __init__(
        self,
        config: SampledConfig,
        slide: SlideRef | None = None,
        sample: Sample | None = None,
    ) -> None:
        self._config, self._slide = config, slide
        self._sample = sample or _open(config.sample_file)

    def for_slide(self, slide: SlideRef) -> SampledTiler:
        """Give the tiler that knows the slide's id."""
        return SampledTiler(self._config, slide, self._sample)

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Give the tiles of a slide, whatever its tissue; none where none were drawn.

        Raises:
            GeometryError: If the sample was drawn without the slide, or from another of that name.
        """
        slide = self._slide or SlideRef(path=info.path, slide_id=info.path.stem)
        drawn = self._find(slide)
        if drawn.fingerprint and drawn.fingerprint != fingerprint(slide.path, slide.companions):
            raise GeometryError(
                f"{self._sample.path} was drawn from another slide named {slide.slide_id}, "
                f"{drawn.source}, whose content is not that of {slide.path}."
            )
        _check_level(self._sample.path, drawn, info)
        downsample = info.levels[drawn.geometry.level].downsample
        return TileGrid(
            coords=drawn.coords,
            geometry=replace(drawn.geometry, level_downsample=downsample),
            columns={LABEL: drawn.label, FRACTION: drawn.fraction},
            attributes={CLASSES: list(self._sample.classes)},
        )

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Say which tiles a slide gets and how they are labelled, for its identity.

        Raises:
            GeometryError: If the sample was drawn without the slide.
        """
        drawn = self._find(slide)
        return {"coords": drawn.identity, "sample": self._sample.digest(drawn.slide_id)}

    def slides(self) -> Mapping[str, str]:
        """Name the slides that the sample has tiles of, and their files."""
        found = self._sample.slides.values()
        return {slide.slide_id: slide.source for slide in found if len(slide.row)}

    def _find(self, slide: SlideRef) -> SampledSlide:
        if slide.slide_id not in self._sample.slides:
            raise GeometryError(
                f"The sample {self._sample.path} was drawn without {slide.slide_id}: it knows of "
                f"{len(self._sample.slides)} slides. Name those slides alone, or draw it anew."
            )
        return self._sample.slides[slide.slide_id]


def _open(name: str) -> Sample:
    if not name or not Path(name).is_file():
        wrong = f"tiler.sample_file={name} is not there" if name else ""
        wrong = wrong or "tiler=sampled is given no tiler.sample_file"
        raise ConfigError(
            f"{wrong}: give the path of the file that task=sample wrote, as it told it: "
            f"OUTPUT/samples/{Path(name).stem or 'sample'}.parquet."
        )
    return open_sample(Path(name))


def _check_level(path: Path, drawn: SampledSlide, info: SlideInfo) -> None:
    """See that the slide has the level that its tiles are of.

    Raises:
        GeometryError: If it has not.
    """
    geometry, levels = drawn.geometry, info.levels
    known = geometry.level < len(levels) and math.isclose(
        levels[geometry.level].downsample, geometry.level_downsample, rel_tol=_SAME
    )
    if not known:
        told = ", ".join(f"{level.downsample:g}" for level in levels)
        raise GeometryError(
            f"{path} has tiles of level {geometry.level} of {drawn.slide_id}, a downsample of "
            f"{geometry.level_downsample:g}; {info.path} has the downsamples {told}."
        )
