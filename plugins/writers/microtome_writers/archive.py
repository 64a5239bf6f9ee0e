"""A tar file of tile images a slide, as WebDataset reads it, with an index of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from microtome.store.archives import TileImage, archive_damage, read_archive, write_archive
from microtome_writers import TarConfig
from microtome_writers.images import Codec, Place, Scratch, ScratchSink


class TarWriter:
    """Writes tiles as ``<slide>_<x>_<y>.png`` into one tar file, x and y at level 0."""

    def __init__(self, config: TarConfig) -> None:
        self._codec = Codec("tar", config)

    def open(self, path: Path, slide_id: str, attributes: Mapping[str, Any]) -> ScratchSink:
        """Begin one slide at a path that does not exist yet.

        Args:
            path: The file to make.
            slide_id: The slide; the last part of it begins every name.
            attributes: Unused: what the store keeps comes last, with `ScratchSink.record`.
        """
        stem = sample_name(PurePosixPath(slide_id).name)
        return ScratchSink(path, self._codec.encode, partial(self._finish, path, stem))

    def read_record(self, path: Path) -> Mapping[str, Any]:
        """Give back what the sink was given to record."""
        return read_archive(path).record

    def damage(self, path: Path, *, deep: bool) -> Iterator[str]:
        """Say what is wrong with the images; with ``deep`` every one is read."""
        return archive_damage(path, deep=deep)

    def _finish(
        self,
        path: Path,
        stem: str,
        attributes: Mapping[str, Any],
        places: list[Place],
        scratch: Scratch,
    ) -> None:
        images = [
            TileImage(
                name=f"{stem}_{x}_{y}.{self._codec.suffix}",
                size=scratch.size((x, y)),
                checksum=scratch.checksum((x, y)),
            )
            for x, y in places
        ]
        write_archive(path, attributes, images, lambda number: scratch.get(places[number]))


def sample_name(name: str) -> str:
    """Give a name as WebDataset can have it, which takes one up to its first dot for the sample."""
    return name.replace(".", "_")
