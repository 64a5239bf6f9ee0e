"""Binary shapes: discs, regions, holes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def close(mask: Mask, radius: int) -> Mask:
    """Close gaps up to ``2 * radius`` pixels wide, at the image's border as inside."""
    if radius < 1:
        return mask
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), *(radius,) * 4, cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(radius))
    return closed[radius:-radius, radius:-radius] > 0


def opened(mask: Mask, radius: int) -> Mask:
    """Remove what is narrower than ``2 * radius`` pixels."""
    if radius < 1:
        return mask
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(radius)) > 0


def dilate(mask: Mask, radius: int) -> Mask:
    """Grow a mask by ``radius`` pixels."""
    if radius < 1:
        return mask
    return cv2.dilate(mask.astype(np.uint8), _disc(radius)) > 0


def drop_regions(mask: Mask, smaller_than: float) -> Mask:
    """Remove 8-connected regions of fewer pixels."""
    if not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= smaller_than
    kept[0] = False
    found: Mask = kept[labels]
    return found


def fill_holes(mask: Mask, smaller_than: float) -> Mask:
    """Fill holes of fewer pixels; what touches the image's border is no hole."""
    inverse = (~mask).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inverse, connectivity=4)
    filled = stats[:, cv2.CC_STAT_AREA] < smaller_than
    filled[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    filled[0] = False
    result: Mask = mask | filled[labels]
    return result


def touching(weak: Mask, strong: Mask, share: float = 0.0) -> Mask:
    """Keep the regions of ``weak`` in which more than ``share`` of the pixels are strong."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        weak.astype(np.uint8), connectivity=8
    )
    hits = np.bincount(labels[strong & weak], minlength=count)
    kept = hits > share * stats[:, cv2.CC_STAT_AREA]
    kept[0] = False
    found: Mask = kept[labels]
    return found


def _disc(radius: int) -> NDArray[np.uint8]:
    side = 2 * radius + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
