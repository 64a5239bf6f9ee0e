"""The tiles of tile archives, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import GeometryError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.slide.types import SlideRef, TileGrid
from microtome_layouts.common import effective_mpp

if TYPE_CHECKING:
    from microtome.slide.types import SlideInfo, TissueMask
    from microtome_layouts import ArchiveConfig

_READER = "archive"


class ArchiveTiler:
    """Takes every tile that an archive holds, whatever its tissue."""

    def __init__(self, config: ArchiveConfig) -> None:
        del config

    def plan(self, info: SlideInfo, mask: TissueMask) -> TileGrid:
        """Take over the tiles.

        Raises:
            GeometryError: If the slide is no archive.
        """
        del mask
        if info.reader != _READER:
            raise GeometryError(
                f"{info.path} is no tile archive: tiler=archive takes the tiles of .tar files "
                "alone. Place tiles with tiler=grid."
            )
        with closing(_open(info.path)) as reader:
            grid: TileGrid = reader.tiles()
        geometry = replace(grid.geometry, effective_mpp=effective_mpp(info, grid.geometry))
        return replace(grid, geometry=geometry)

    def upstream(self, slide: SlideRef) -> Mapping[str, str]:
        """Say what an archive holds, for the identity.

        Raises:
            SlideOpenError: If it is none.
        """
        with closing(_open(slide.path)) as reader:
            return {"archive": reader.digest}


def _open(path: Path) -> Any:
    registry = get_registry()
    target: Any = registry.load("reader", _READER)
    return target(path, configure(registry.find("reader", _READER).spec))
