"""CLAM: coordinates of one level, and of each encoder HDF5 files and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError, MissingDependencyError
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
)
from microtome_layouts import ClamConfig, TorchFiles
from microtome_layouts.common import Frame, extent_of, known_info, square, whole
from microtome_layouts.hdf5 import need, some_coords
from microtome_layouts.pairs import coords_writer, features_writer, find_slides, read_slide

_PREFIX = "features_"


class ClamLayout:
    """Reads and writes ``patches/``, ``features_<encoder>/h5_files/`` and ``pt_files/``."""

    def __init__(self, config: ClamConfig) -> None:
        self._config = config
        self._pt = config.pt is TorchFiles.yes
        if config.pt is not TorchFiles.no and find_spec("torch") is not None:
            self._pt = True
        elif self._pt:
            raise MissingDependencyError("pt=yes needs torch. Install with: pip install torch")

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's files."""
        attributes = _attributes(slide)
        path = f"patches/{slide.slide_id}.h5"
        yield LayoutFile(path=path, write=coords_writer(slide, attributes))
        for encoder in slide.features:
            yield self._file(slide, encoder, "h5", features_writer(slide, encoder, attributes))
            if self._pt:
                yield self._file(slide, encoder, "pt", _tensor_writer(slide, encoder))

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        return any(
            "patch_level" in attributes
            for _, attributes, _ in some_coords(folder / "patches", "*.h5")
        )

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides with coordinates in ``patches/``."""
        return find_slides(folder / "patches", encoders=self._encoders(folder))

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        return read_slide(found, facts, _side, self._frame)

    def _file(
        self, slide: TiledSlide, encoder: str, kind: str, write: Callable[[Path], None]
    ) -> LayoutFile:
        path = f"{_PREFIX}{encoder}/{kind}_files/{slide.slide_id}.{kind}"
        return LayoutFile(path=path, write=write, features=(encoder,))

    def _encoders(self, folder: Path) -> dict[str, Path]:
        found = {
            each.parent.name.removeprefix(_PREFIX): each
            for each in sorted(folder.glob("*/h5_files"))
        }
        own = folder / "h5_files"
        if own.is_dir():
            if not self._config.encoder:
                raise LayoutError(
                    f"{own} does not say what made its features. Name it: encoder=uni_v1."
                )
            found[self._config.encoder] = own
        return found

    def _frame(
        self,
        attributes: Mapping[str, Any],
        points: NDArray[Any],
        facts: SlideFacts,
        path: Path,
    ) -> Frame:
        names = ("patch_size", "patch_level", "downsample")
        size, level, downsample = (need(attributes, name, path) for name in names)
        if facts.resolution is None:
            raise LayoutError(
                f"{path}: CLAM's files say nothing of µm per pixel. Give the slides with --slides "
                "FOLDER, or --mpp for all."
            )
        info = known_info(facts, _extent(attributes), None, str(path))
        step = self._step(size, downsample, points, path)
        geometry = make_geometry(
            int(size),
            size * downsample,
            step_level0=step * downsample,
            level=(int(level), downsample),
            resolution=info.resolution,
        )
        return Frame(geometry=geometry, info=info)

    def _step(self, size: float, downsample: float, points: NDArray[Any], path: Path) -> float:
        if self._config.step_size is not None:
            return self._config.step_size
        near = size * downsample - 1
        if any(_is_nearer(points, axis, near) for axis in (0, 1)):
            raise LayoutError(
                f"{path}: its tiles overlap, and CLAM's files do not say by how much. Give CLAM's "
                "--step_size as step_size=…"
            )
        return size


def _attributes(slide: TiledSlide) -> dict[str, Any]:
    side = square(slide, "CLAM", at_level=True)
    geometry = slide.geometry
    downsample = geometry.level_downsample
    level = np.rint(np.array(extent_of(slide, "CLAM")) / downsample).astype(np.int64)
    return {
        "patch_size": int(side),
        "patch_level": geometry.level,
        "downsample": np.array([downsample, downsample]),
        "downsampled_level_dim": level,
        "level_dim": level,
        "name": slide.slide_id,
        "save_path": "patches",
        NOTE: slide.note,
    }


def _tensor_writer(slide: TiledSlide, encoder: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torch

        torch.save(torch.from_numpy(whole(slide.features[encoder]).astype(np.float32)), path)

    return write


def _side(attributes: Mapping[str, Any], path: Path) -> float:
    return need(attributes, "patch_size", path) * need(attributes, "downsample", path)


def _extent(attributes: Mapping[str, Any]) -> tuple[int, int]:
    """Give the size of level 0; nothing where it is only known of another level, rounded."""
    size = attributes.get("level_dim")
    if attributes.get("patch_level") != 0 or not isinstance(size, list) or len(size) != 2:
        return 0, 0
    return int(size[0]), int(size[1])


def _is_nearer(points: NDArray[Any], axis: int, distance: float) -> bool:
    """Whether two tiles of one row, or of one column, are nearer than that."""
    if len(points) < 2:
        return False
    order = np.lexsort((points[:, axis], points[:, 1 - axis]))
    along, across = points[order, axis], points[order, 1 - axis]
    gaps = np.diff(along.astype(np.float64))[np.diff(across) == 0]
    return bool(((gaps > 0) & (gaps < distance)).any())
