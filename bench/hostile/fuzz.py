"""Damages good files: bytes flipped, overwritten, cut out, repeated, in the place that is meant."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bench.hostile.sample import Sample

Span = tuple[int, int]
"""First byte and the one behind the last."""

_WORDS = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000)

_REGIONS = {"header": 1, "tags": 5, "data": 3, "anywhere": 2}
"""How often each is damaged."""


def damage(sources: Sequence[Path], folder: Path, *, variants: int, seed: int) -> Iterator[Sample]:
    """Write damaged copies of files, every source in turn.

    Args:
        sources: Good files.
        folder: Where to.
        variants: How many.
        seed: Of everything random.
    """
    for number in range(variants):
        source = sources[number % len(sources)]
        rng = random.Random(f"{seed} {number}")
        region = rng.choices(list(_REGIONS), list(_REGIONS.values()))[0]
        name, act = rng.choice(_ACTS)
        data = bytearray(source.read_bytes())
        act(data, _choose(rng, source, region), rng)
        path = folder / f"{number:04d}-{name}-{region}-{source.name}"
        path.write_bytes(data)
        yield Sample(group=f"damaged {source.suffix}", path=path, mpp=0.5)


def _choose(rng: random.Random, source: Path, region: str) -> Span:
    spans = _regions(source)[region]
    # Tags by their number, pixels by their size: a file is mostly pixels of few tiles.
    return rng.choice(spans)


@lru_cache(maxsize=64)
def _regions(path: Path) -> dict[str, list[Span]]:
    size = path.stat().st_size
    everything = {"header": [(0, min(16, size))], "anywhere": [(0, size)]}
    tags, data = _tiff_regions(path)
    head = [(0, min(1024, size))]
    return {**everything, "tags": tags or head, "data": data or [(size // 8, size)]}


def _tiff_regions(path: Path) -> tuple[list[Span], list[Span]]:
    import tifffile

    tags: list[Span] = []
    data: list[Span] = []
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            for page in tiff.pages:
                for tag in page.tags:  # type: ignore[union-attr]
                    tags.append((tag.offset, tag.offset + tiff.tiff.tagsize))
                    if tag.valueoffset != tag.offset + 8:
                        tags.append(
                            (tag.valueoffset, tag.valueoffset + min(tag.valuebytecount, 64))
                        )
                spans = zip(page.dataoffsets, page.databytecounts, strict=True)
                data += [(offset, offset + count) for offset, count in spans if count]
    except tifffile.TiffFileError:
        return [], []
    return tags, data


@dataclass(frozen=True)
class _Flip:
    """Flips some bits."""

    most: int

    def __call__(self, data: bytearray, span: Span, rng: random.Random) -> None:
        for _ in range(rng.randint(1, self.most)):
            data[rng.randrange(*span)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, span: Span, rng: random.Random) -> None:
    """Put a telling number somewhere."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(*span)
    order = rng.choice(("little", "big"))
    value = rng.choice(_WORDS) & (1 << 8 * width) - 1
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _noise(data: bytearray, span: Span, rng: random.Random) -> None:
    at, length = rng.randrange(*span), rng.choice((4, 64, 2000))
    data[at : at + length] = rng.randbytes(len(data[at : at + length]))


def _blank(data: bytearray, span: Span, rng: random.Random) -> None:
    at, length = rng.randrange(*span), rng.choice((8, 512, 20000))
    data[at : at + length] = bytes([rng.choice((0, 255))]) * len(data[at : at + length])


def _truncate(data: bytearray, span: Span, rng: random.Random) -> None:
    del data[rng.randrange(*span) :]


def _cut_out(data: bytearray, span: Span, rng: random.Random) -> None:
    at = rng.randrange(*span)
    del data[at : at + rng.choice((1, 2, 12, 4096))]


def _repeat(data: bytearray, span: Span, rng: random.Random) -> None:
    at, length = rng.randrange(*span), rng.choice((1, 12, 4096))
    data[at:at] = data[at : at + length]


_ACTS: list[tuple[str, Callable[[bytearray, Span, random.Random], None]]] = [
    ("flip", _Flip(4)),
    ("flips", _Flip(256)),
    ("overwrite", _overwrite),
    ("overwrite2", _overwrite),
    ("noise", _noise),
    ("blank", _blank),
    ("truncate", _truncate),
    ("cut", _cut_out),
    ("repeat", _repeat),
]
