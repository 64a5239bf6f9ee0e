"""The groups of measurements by the name that ``--only`` takes, in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bench import pixels, whole
from bench.peers.compare import peers
from bench.results import Result
from bench.session import Session

GROUPS: Mapping[str, Callable[[Session], Iterator[Result]]] = {
    "start": whole.start,
    "coords": whole.coords,
    "readers": pixels.readers,
    "path": pixels.path,
    "native": pixels.native,
    "unaligned": pixels.unaligned,
    "odd": pixels.odd,
    "openslide": pixels.openslide,
    "encoders": whole.encoders,
    "write": whole.write,
    "resnet50": whole.resnet50,
    "memory": whole.memory,
    "peers": peers,
}


def about(group: str) -> str:
    """Give the first sentence of a group's description."""
    return (GROUPS[group].__doc__ or "").splitlines()[0]
