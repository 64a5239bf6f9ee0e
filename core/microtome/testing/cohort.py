"""A synthetic cohort for training: slides whose tumour is known, with the files of who drew it.

In the tumour nuclei lie closer, are larger and take less stain, as vesicular nuclei do, so that
mean colour says little of it; slides differ in stain and in how cellular their other tissue is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError
from microtome.testing.synthetic import (
    MASK_DOWNSAMPLE,
    SlideRecipe,
    SyntheticSlide,
    _enlarge,
    _expose,
    _noise,
    _stains,
    _tissue_outline,
    _write,
)

Polygon = NDArray[np.float64]
"""(k, 2) ``x, y`` in level-0 pixels, not closed."""

TUMOUR_GROUP, EXCLUDED_GROUP = "Tumor", "Exclusion"
"""What the groups are called in the files, as in CAMELYON's."""

_COLOURS = {TUMOUR_GROUP: (244, 250, 88), EXCLUDED_GROUP: (100, 100, 100)}
_TUMOUR_SHARE = 0.4  # of the tissue of a slide that has some
_CROWDING = 0.35  # how much the share of places that hold a nucleus varies over a slide
_LEAST_AREA = 2e-3  # of a slide, below which no outline is drawn


@dataclass(frozen=True, kw_only=True)
class _Nuclei:
    """How nuclei look: mean diameter and distance in µm, share of places taken, mean shade."""

    diameter: float
    distance: float
    share: float
    shade: float


_NORMAL = _Nuclei(diameter=6.5, distance=11.0, share=0.6, shade=0.62)
_TUMOUR = _Nuclei(diameter=9.5, distance=10.0, share=0.8, shade=0.2)


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortSlide:
    """A slide of a synthetic cohort, and the truth about it.

    Attributes:
        slide_id: Its name; that of its file without the suffix.
        path: The file.
        patient_id: Whose it is.
        tumour: Outlines of the tumour; none of a slide without.
        excluded: Outlines of what is to be left out.
    """

    slide_id: str
    path: Path
    patient_id: str
    tumour: tuple[Polygon, ...]
    excluded: tuple[Polygon, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """A synthetic cohort.

    Attributes:
        folder: With everything in it.
        slides: By name.
        manifest: A CSV with ``slide_id, slide, patient_id, annotation_path, mpp``; its annotations
            are those of ``asap``.
        asap: Folder of ASAP's XML files, one for each slide with an outline.
        geojson: The same outlines as QuPath exports them.
        mpp: µm per level-0 pixel.
    """

    folder: Path
    slides: tuple[CohortSlide, ...]
    manifest: Path
    asap: Path
    geojson: Path
    mpp: float

    @property
    def slides_folder(self) -> Path:
        """The folder with the slides alone."""
        return self.folder / "slides"

    def __getitem__(self, slide_id: str) -> CohortSlide:
        """Give a slide by name."""
        return next(slide for slide in self.slides if slide.slide_id == slide_id)


def make_cohort(
    folder: Path | str,
    *,
    slides: int = 12,
    tests: int = 2,
    size: tuple[int, int] = (2048, 1792),
    seed: int = 0,
) -> Cohort:
    """Make a cohort of synthetic slides at 0.5 µm per pixel, with annotations and a manifest.

    The last ``tests`` slides are called ``test_…``; every second of them has no tumour, and of the
    others every third: they have no file of annotations. The first two patients have two slides
    each. The first slide has an outline of the group ``Exclusion``, too.

    Args:
        folder: Where to; made if need be.
        slides: How many in all.
        tests: How many of them are called so.
        size: (width, height) of each at level 0.
        seed: Equal seeds give equal slides.

    Raises:
        ConfigError: If there are more test slides than slides, or slides are too small for an
            outline.
    """
    if not 0 <= tests <= slides:
        raise ConfigError(f"A cohort of {slides} slides cannot have {tests} for testing.")
    top, made = Path(folder), []
    for number in range(slides):
        recipe = SlideRecipe(
            size=size,
            mpp=0.5,
            magnification=20,
            quality=80,
            tissue=0.5,
            pen=False,
            seed=1000 * seed + number,
        )
        made.append(_make_slide(top / "slides", recipe, number, others=slides - tests))
    return _with_files(top, tuple(made))


def _make_slide(folder: Path, recipe: SlideRecipe, number: int, *, others: int) -> CohortSlide:
    """Paint and write a slide.

    Args:
        folder: Where to.
        recipe: What it is to be.
        number: Its place in the cohort.
        others: How many slides come before those to test on.
    """
    is_test, paired = number >= others, min(4, others)
    name = f"test_{number - others + 1:02d}" if is_test else f"slide_{number + 1:02d}"
    has_tumour = (number - others) % 2 == 0 if is_test else number % 3 != 2
    patient = number // 2 if number < paired else number - paired // 2
    rng = np.random.default_rng(recipe.seed)
    tissue = _tissue_outline(rng, recipe)
    tumour = _tumour_outlines(rng, tissue) if has_tumour else ()
    path = folder / f"{name}.svs"
    _paint(rng, path, recipe, tissue, inside=_fill(tumour, recipe.size))
    return CohortSlide(
        slide_id=name,
        path=path,
        patient_id=f"patient_{patient + 1:02d}",
        tumour=tumour,
        excluded=_lowest_part(tissue) if number == 0 else (),
    )


def _paint(
    rng: np.random.Generator,
    path: Path,
    recipe: SlideRecipe,
    tissue: NDArray[np.bool_],
    *,
    inside: NDArray[np.bool_],
) -> None:
    cover = _enlarge(tissue, recipe.size)
    centres, haematoxylin = _nuclei(rng, recipe, cover, inside=inside)
    # How strongly a laboratory stains, and what its scanner makes of it.
    haematoxylin *= np.float32(rng.uniform(0.8, 1.25))
    density = _stains(rng, recipe.size, cover, haematoxylin)
    density *= rng.uniform(0.85, 1.15, 3).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(
        SyntheticSlide(
            path=path,
            recipe=recipe,
            image=_expose(rng, density),
            tissue=tissue,
            pen=np.zeros_like(tissue),
            nuclei=centres,
        )
    )


def _tumour_outlines(rng: np.random.Generator, tissue: NDArray[np.bool_]) -> tuple[Polygon, ...]:
    """Outline large smooth regions of the tissue.

    Raises:
        ConfigError: If there is no room for one.
    """
    import cv2

    height, width = tissue.shape
    field = _noise(rng, (width, height), 2.5)
    mask = tissue & (field > np.quantile(field[tissue], 1 - _TUMOUR_SHARE))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    found, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    large = [c for c in found if cv2.contourArea(c) > _LEAST_AREA * width * height]
    smooth = [cv2.approxPolyDP(contour, 0.7, closed=True).reshape(-1, 2) for contour in large]
    if not smooth:
        raise ConfigError(
            f"A slide of {width * MASK_DOWNSAMPLE} × {height * MASK_DOWNSAMPLE} px is too small to "
            "outline tumour on: make it 800 × 800 px or more."
        )
    return tuple((each.astype(np.float64) + 0.5) * MASK_DOWNSAMPLE for each in smooth)


def _lowest_part(tissue: NDArray[np.bool_]) -> tuple[Polygon, ...]:
    """Outline the lowest fifth of the tissue."""
    rows, columns = np.nonzero(tissue)
    left, right, bottom = columns.min(), columns.max() + 1, rows.max() + 1
    top = bottom - max(1, (bottom - rows.min()) // 5)
    box = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return (box * MASK_DOWNSAMPLE,)


def _fill(outlines: Sequence[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    import cv2

    canvas = np.zeros((size[1], size[0]), np.uint8)
    if outlines:
        cv2.fillPoly(canvas, [outline.round().astype(np.int32) for outline in outlines], 1)
    return canvas.astype(bool)


def _nuclei(
    rng: np.random.Generator,
    recipe: SlideRecipe,
    cover: NDArray[np.float32],
    *,
    inside: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Place nuclei of both kinds; give their centres and the haematoxylin that they hold."""
    import cv2

    canvas = np.zeros((recipe.size[1], recipe.size[0]), np.uint8)
    cellular = rng.uniform(0.7, 1.3)  # the other tissue of this slide
    centres = []
    for kind, outside, within in ((_TUMOUR, 0.1, 0.9), (_NORMAL, cellular, 0.3)):
        places = _places(rng, recipe, kind.distance)
        x, y = places.astype(int).T
        # Some large nuclei are anywhere, and some lymphocytes in the tumour.
        share = np.where(inside[y, x], within, outside) * kind.share
        crowding = share * (1 + _CROWDING * _noise(rng, recipe.size, 14)[y, x])
        keep = (cover[y, x] > 0.9) & (rng.random(len(places)) < crowding)
        _draw(rng, canvas, places[keep], kind=kind, mpp=recipe.mpp)
        centres.append(places[keep])
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.8)
    return np.concatenate(centres), soft.astype(np.float32) / np.float32(255)


def _places(rng: np.random.Generator, recipe: SlideRecipe, distance: float) -> NDArray[np.float64]:
    width, height = recipe.size
    pitch = distance / recipe.mpp
    grid = np.mgrid[pitch / 2 : height : pitch, pitch / 2 : width : pitch]
    points = grid[::-1].reshape(2, -1).T
    points = points + rng.uniform(-0.3, 0.3, points.shape) * pitch
    return np.clip(points, 0, (width - 1, height - 1))


def _draw(
    rng: np.random.Generator,
    canvas: NDArray[np.uint8],
    centres: NDArray[np.float64],
    *,
    kind: _Nuclei,
    mpp: float,
) -> None:
    """Draw nuclei as ellipses, in sixteenths of a pixel."""
    import cv2

    axes = kind.diameter / 2 / mpp * rng.uniform(0.75, 1.3, (len(centres), 2))
    shades = 255 * kind.shade * rng.uniform(0.75, 1.25, len(centres))
    turns = rng.uniform(0, 180, len(centres))
    sixteenths = (16 * np.concatenate([centres, axes], axis=1)).round().astype(int)
    for (x, y, a, b), shade, turn in zip(sixteenths.tolist(), shades, turns, strict=True):
        place, half = (x, y), (a, b)
        cv2.ellipse(
            canvas, place, half, float(turn), 0, 360, round(shade), -1, cv2.LINE_AA, shift=4
        )


def _with_files(folder: Path, slides: tuple[CohortSlide, ...]) -> Cohort:
    """Write annotations and the manifest."""
    cohort = Cohort(
        folder=folder,
        slides=slides,
        manifest=folder / "manifest.csv",
        asap=folder / "annotations" / "asap",
        geojson=folder / "annotations" / "geojson",
        mpp=0.5,
    )
    for each in (cohort.asap, cohort.geojson):
        each.mkdir(parents=True, exist_ok=True)
    rows = []
    for slide in slides:
        drawn = {TUMOUR_GROUP: slide.tumour, EXCLUDED_GROUP: slide.excluded}
        asap = cohort.asap / f"{slide.slide_id}.xml"
        if slide.tumour or slide.excluded:
            _write_asap(asap, drawn)
            _write_geojson(cohort.geojson / f"{slide.slide_id}.geojson", drawn)
        named = asap.relative_to(folder).as_posix() if asap.exists() else ""
        where = slide.path.relative_to(folder).as_posix()
        rows.append((slide.slide_id, where, slide.patient_id, named, cohort.mpp))
    with cohort.manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("slide_id", "slide", "patient_id", "annotation_path", "mpp"))
        writer.writerows(rows)
    return cohort


def _write_asap(path: Path, drawn: Mapping[str, Sequence[Polygon]]) -> None:
    top = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(top, "Annotations")
    groups = ElementTree.SubElement(top, "AnnotationGroups")
    outlines = [(group, outline) for group, found in drawn.items() for outline in found]
    for number, (group, outline) in enumerate(outlines):
        said = {"Name": f"Annotation {number}", "Type": "Polygon", "PartOfGroup": group}
        one = ElementTree.SubElement(annotations, "Annotation", said, Color=_hex(group))
        points = ElementTree.SubElement(one, "Coordinates")
        for order, (x, y) in enumerate(outline.tolist()):
            at = {"Order": str(order), "X": f"{x:g}", "Y": f"{y:g}"}
            ElementTree.SubElement(points, "Coordinate", at)
    for group in [group for group, found in drawn.items() if found]:
        said = {"Name": group, "PartOfGroup": "None", "Color": _hex(group)}
        ElementTree.SubElement(ElementTree.SubElement(groups, "Group", said), "Attributes")
    ElementTree.indent(top, "\t")
    ElementTree.ElementTree(top).write(path, encoding="utf-8", xml_declaration=True)


def _hex(group: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_COLOURS[group])


def _write_geojson(path: Path, drawn: Mapping[str, Sequence[Polygon]]) -> None:
    features: list[dict[str, Any]] = []
    for group, outlines in drawn.items():
        classification = {"name": group, "color": list(_COLOURS[group])}
        for outline in outlines:
            ring = [*outline.tolist(), outline[0].tolist()]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                    "properties": {"objectType": "annotation", "classification": classification},
                }
            )
    text = json.dumps({"type": "FeatureCollection", "features": features})
    path.write_text(text, encoding="utf-8")
