"""What is wrong with a picture of a slide: its tissue mask, the mask's regions, an overlay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.store.damage import AGAIN, REDRAW, Wrong, png_damage
from microtome.store.identity import digest_of
from microtome.store.masks import load_mask

PICTURE_NOTE = "microtome"
"""Text chunk of masks and overlays."""

_SHOWN = 12  # characters of a digest


def check_mask(path: Path) -> Iterator[Wrong]:
    """Check a tissue mask and that it is the one that its name says."""
    wrong = png_damage(path)
    if wrong:
        yield Wrong(wrong, REDRAW)
        return
    try:
        stored = load_mask(path)
    except StoreError as error:
        yield Wrong(str(error), "")
        return
    if stored.identity.digest != digest_of(stored.identity.fields):
        yield Wrong("its identity is not the hash of its identity_fields", REDRAW)
    if not stored.identity.digest.startswith(path.stem.rpartition(".")[2]):
        digest = stored.identity.digest[:_SHOWN]
        yield Wrong(f"it holds the mask {digest}…, not the one of its name", REDRAW)


def check_regions(path: Path) -> Iterator[Wrong]:
    """Check a GeoJSON of tissue: every region a polygon of closed rings of finite points."""
    try:
        features = json.loads(path.read_text("utf-8"))["features"]
        polygons = [feature["geometry"]["coordinates"] for feature in features]
        rings = [np.asarray(ring, np.float64) for rings in polygons for ring in rings]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        yield Wrong(f"it is no GeoJSON of regions, or is damaged ({reason})", REDRAW)
        return
    if not all(map(_is_ring, rings)):
        yield Wrong("it holds a ring that is not closed, or not of finite points", REDRAW)


def check_overlay(path: Path, identities: Mapping[str, str]) -> Iterator[Wrong]:
    """Check an overlay, and that it shows what the slide's record says.

    Args:
        path: The picture.
        identities: Digests by what they identify; what the overlay does not depend on is left out.
    """
    from PIL.PngImagePlugin import PngImageFile

    wrong = png_damage(path)
    if wrong:
        yield Wrong(wrong, REDRAW)
        return
    try:
        with PngImageFile(path) as image:
            shown: dict[str, str] = json.loads(image.text[PICTURE_NOTE])
    except (OSError, SyntaxError, KeyError, ValueError):
        yield Wrong("it does not say what it shows", REDRAW)
        return
    other = [name for name, digest in identities.items() if shown.get(name, digest) != digest]
    if other:
        yield Wrong(f"it shows other {' and '.join(other)} than its slide's record says", AGAIN)


def _is_ring(ring: NDArray[np.float64]) -> bool:
    is_line = ring.ndim == 2 and ring.shape[0] >= 4 and ring.shape[1] >= 2
    return is_line and bool(np.isfinite(ring).all() and (ring[0] == ring[-1]).all())
