"""Outlines of a binary image along the edges of its pixels.

Pixel (column, row) covers ``[column, column + 1) × [row, row + 1)``. An outline through pixel
centres, as contour finders give, loses half a pixel all round and shrinks a one-pixel region to
a point; these enclose exactly their pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
Codes = NDArray[np.int64]


def edge_rings(array: NDArray[np.bool_]) -> list[tuple[Ring, tuple[int, int]]]:
    """Trace every boundary of a binary image.

    Each ring is simple: where two pixels touch at a corner only, it is cut in two, so polygons
    made of the rings are valid. True pixels are 4-connected.

    Args:
        array: (h, w) bool.

    Returns:
        For each ring its corners, (n, 2) ``x, y`` in pixels, closed, clockwise on screen around
        True pixels and the other way around holes; and (row, column) of a True pixel beside it.
    """
    stride = array.shape[1] + 1
    starts, followers = _directed_edges(array, stride)
    rings = []
    for loop in _loops(followers.tolist()):
        vertices = (starts[loop] // 4).tolist()
        for part in _simple_loops(vertices):
            corners = [vertices[i] for i in part]
            ring = np.stack([np.remainder(corners, stride), np.floor_divide(corners, stride)], 1)
            rings.append((_without_straight(ring), _pixel_of(int(starts[loop[part[0]]]), stride)))
    return rings


def signed_area(ring: Ring) -> float:
    """Give the area that a closed ring encloses: positive clockwise on screen, y downwards."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _directed_edges(array: NDArray[np.bool_], stride: int) -> tuple[Codes, Codes]:
    """List pixel edges with tissue on their right, and which edge follows each.

    An edge's code is ``4 * start vertex + direction``; directions are east, south, west, north.
    """
    padded = np.pad(array, 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corner = (0, 1, stride + 1, stride)
    codes = []
    for way, (neighbour, offset) in enumerate(zip(neighbours, corner, strict=True)):
        rows, columns = np.nonzero(inside & ~neighbour)
        codes.append(4 * (rows * stride + columns + offset) + way)
    starts = np.sort(np.concatenate(codes).astype(np.int64))
    heading = starts % 4
    ends = starts // 4 + np.asarray([1, stride, -1, -stride])[heading]
    followers = np.full(len(starts), -1, np.int64)
    # Turning right first keeps pixels that touch at a corner apart.
    for turn in (1, 0, 3):
        wanted = 4 * ends + (heading + turn) % 4
        at = np.minimum(np.searchsorted(starts, wanted), max(len(starts) - 1, 0))
        hit = (followers < 0) & (starts[at] == wanted) if len(starts) else np.zeros(0, bool)
        followers[hit] = at[hit]
    return starts, followers


def _loops(followers: list[int]) -> list[list[int]]:
    """Follow the edges around."""
    seen = bytearray(len(followers))
    loops = []
    for first in range(len(followers)):
        loop = []
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            loop.append(edge)
            edge = followers[edge]
        if loop:
            loops.append(loop)
    return loops


def _simple_loops(vertices: list[int]) -> list[list[int]]:
    """Cut a loop wherever it comes back to a vertex; gives positions into it."""
    path: list[int] = []
    at: dict[int, int] = {}
    parts = []
    for position, vertex in enumerate(vertices):
        if vertex in at:
            cut = at[vertex]
            parts.append(path[cut:])
            for index in path[cut:]:
                del at[vertices[index]]
            del path[cut:]
        at[vertex] = len(path)
        path.append(position)
    parts.append(path)
    return parts


def _without_straight(ring: NDArray[np.int64]) -> Ring:
    """Drop points on straight runs and close the ring."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([corners, corners[:1]]).astype(np.float64)


def _pixel_of(code: int, stride: int) -> tuple[int, int]:
    """Give (row, column) of the pixel on an edge's right hand."""
    vertex, direction = divmod(code, 4)
    row, column = divmod(vertex, stride)
    return row - (direction in (2, 3)), column - (direction in (1, 2))
