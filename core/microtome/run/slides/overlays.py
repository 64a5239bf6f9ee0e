"""A slide's overlays: drawn when what they show has changed, and not otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.slide.imaging import render_view
from microtome.slide.opening import OpenedSlide
from microtome.slide.overlay import draw_overlay
from microtome.slide.types import SlideRef, TileGrid, TissueMask
from microtome.store.layout import OutputLayout
from microtome.store.publish import write_bytes

LONGEST_PX = 1024
"""Longest side of an overlay."""

_CHUNK = "microtome"


def draw_overlays(
    slide: OpenedSlide,
    paths: Mapping[str, Path],
    identities: Mapping[str, str],
    *,
    mask: TissueMask,
    grid: TileGrid | None,
) -> None:
    """Draw those overlays that are missing, or show another mask or other tiles.

    Args:
        slide: The open slide.
        paths: Final names by kind.
        identities: What the slide's mask and coordinates are; written into the pictures.
        mask: The tissue.
        grid: The tiles, or None where only tissue was looked for.
    """
    shows = {
        kind: {name: identities.get(name) for name in _depends_on(kind)}
        | {"slide": slide.ref.slide_id}
        for kind in paths
    }
    stale = [kind for kind, path in paths.items() if _shown(path) != shows[kind]]
    if not stale:
        return
    view = render_view(slide.ref, slide.reader, slide.info, mpp=None, max_px=LONGEST_PX)
    for kind in stale:
        picture = draw_overlay(kind, view, mask=mask, grid=grid)
        write_bytes(paths[kind], _png(picture, shows[kind]))


def clashing(
    layout: OutputLayout, kinds: Sequence[str], slides: Iterable[SlideRef]
) -> dict[str, tuple[str, Path]]:
    """Find slides whose overlays have one name: ``a``'s mask and ``a_mask``'s grid.

    Returns:
        By slide id: another slide's id, and the name that both would write.
    """
    owners: dict[Path, str] = {}
    clashes: dict[str, tuple[str, Path]] = {}
    for slide in slides:
        for kind in kinds:
            path = layout.visualization(slide.slide_id, kind)
            owner = owners.setdefault(path, slide.slide_id)
            if owner != slide.slide_id:
                clashes[slide.slide_id] = (owner, path)
    return clashes


def _depends_on(kind: str) -> tuple[str, ...]:
    return ("tissue", "coords") if kind == "grid" else ("tissue",)


def _shown(path: Path) -> dict[str, str | None] | None:
    """Read what a picture shows; None where there is none that says."""
    from PIL import Image

    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            shown: dict[str, str | None] = json.loads(image.info[_CHUNK])
    except (OSError, KeyError, ValueError):
        return None
    return shown


def _png(picture: NDArray[np.uint8], shows: Mapping[str, str | None]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(shows))
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
