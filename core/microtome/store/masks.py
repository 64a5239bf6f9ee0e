"""Keep tissue masks as PNGs that any viewer shows, with what made them inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from microtome.errors import StoreError
from microtome.slide.types import TissueMask
from microtome.store.atomic import publish, wrap_errors
from microtome.store.identity import Identity

_CHUNK = "microtome"


@dataclass(frozen=True)
class StoredMask:
    """A mask that was kept.

    Attributes:
        mask: The mask.
        identity: What made it.
        extra: What else was noted with it.
    """

    mask: TissueMask
    identity: Identity
    extra: Mapping[str, Any]


def save_mask(
    path: Path,
    mask: TissueMask,
    *,
    identity: Identity,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a mask atomically: one channel, 0 glass, 255 tissue.

    A text chunk ``microtome`` holds its identity and scale as JSON.

    Args:
        path: The final name.
        mask: The mask; at least one pixel.
        identity: What made it.
        extra: Plain values to note with it.

    Raises:
        StoreError: If it cannot be written.
    """
    if not mask.array.size:
        raise StoreError(f"{path}: a mask of no pixel cannot be kept.")
    note = {
        "identity": identity.digest,
        "identity_fields": dict(identity.fields),
        "downsample": mask.downsample,
        "extra": dict(extra or {}),
    }
    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(note))
    image = Image.fromarray(mask.array.astype(np.uint8) * 255)
    with publish(path) as private, wrap_errors(path):
        image.save(private, "PNG", pnginfo=info)


def load_mask(path: Path) -> StoredMask:
    """Read a mask that `save_mask` wrote.

    Raises:
        StoreError: If it is no such mask.
    """
    try:
        # Not Image.open, which refuses images of a size that a mask may have.
        with PngImageFile(path) as image:
            note = json.loads(image.text[_CHUNK])
            pixels = np.asarray(image)
        x, y = note["downsample"]
        identity = Identity(note["identity"], note["identity_fields"])
    except (OSError, SyntaxError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is not a tissue mask of microtome, or is damaged. "
            "Delete it: the next run makes it again."
        ) from error
    mask = TissueMask(array=pixels > 127, downsample=(x, y))
    return StoredMask(mask, identity, note["extra"])
