"""slide2vec and hs2p: coordinates as arrays with a sidecar, embeddings with another."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError, MissingDependencyError
from microtome.slide.types import Resolution
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
    read_note,
)
from microtome.store.features import ArraySource
from microtome.store.publish import FeatureSet
from microtome_layouts import Embeddings, Slide2vecConfig
from microtome_layouts.common import (
    Frame,
    feature_note,
    known_info,
    mpp_of,
    read_frame,
    square,
    whole,
)

_ARRAYS, _SIDECAR, _META = ".coordinates.npz", ".coordinates.meta.json", ".meta.json"
_TILES, _EMBEDDINGS = "tiles", "tile_embeddings"
_TOLERANCE = 0.05
"""By which hs2p takes a level for the spacing that was asked for."""

_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, BadZipFile, zlib.error, struct.error, pickle.UnpicklingError),
)
"""What the readers of arrays and tensors raise for files that are cut short or of another kind."""

_UNKNOWN = {
    "segmentation": (
        *("requested_seg_downsample", "seg_downsample", "seg_level", "seg_spacing_um", "sthresh"),
        *("sthresh_up", "mthresh", "close", "sam2_checkpoint_path", "sam2_config_path"),
        *("mask_path", "ref_tile_size_px", "tissue_mask_tissue_value", "mask_level"),
        "mask_spacing_um",
    ),
    "filtering": (
        *("a_t", "a_h", "white_threshold", "black_threshold", "fraction_threshold"),
        *("grayspace_saturation_threshold", "grayspace_fraction_threshold", "blur_threshold"),
        "qc_spacing_um",
    ),
}
"""Fields that hs2p's reader insists on, and that mean nothing for tiles of another tool."""


class Slide2vecLayout:
    """Reads and writes ``tiles/`` and ``<encoder>/tile_embeddings/``."""

    def __init__(self, config: Slide2vecConfig) -> None:
        self._format = config.format.value
        if config.format is Embeddings.pt and find_spec("torch") is None:
            raise MissingDependencyError("format=pt needs torch. Install with: pip install torch")

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's files, each sidecar behind what it is for."""
        sidecar = _sidecar(slide)
        order = np.lexsort((slide.coords[:, 1], slide.coords[:, 0]))
        top = f"{_TILES}/{slide.slide_id}"
        yield LayoutFile(path=f"{top}{_ARRAYS}", write=_arrays_writer(slide, order))
        yield LayoutFile(path=f"{top}{_SIDECAR}", write=_json_writer(sidecar))
        for encoder, features in slide.features.items():
            path = f"{encoder}/{_EMBEDDINGS}/{slide.slide_id}"
            meta = self._meta(slide, encoder, sidecar)
            for name, write in (
                (f"{path}.{self._format}", self._features_writer(features, order)),
                (f"{path}{_META}", _json_writer(meta)),
            ):
                yield LayoutFile(path=name, write=write, features=(encoder,))

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        below = (folder / _TILES).glob(f"**/*{_SIDECAR}")
        return any(True for found in (folder.glob(f"*{_SIDECAR}"), below) for _ in found)

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the slides whose sidecars lie in a folder or its ``tiles/``."""
        found = {}
        for top in (folder, folder / _TILES):
            for path in sorted(
                top.glob(f"**/*{_SIDECAR}" if top.name == _TILES else f"*{_SIDECAR}")
            ):
                slide_id = path.relative_to(top).as_posix().removesuffix(_SIDECAR)
                arrays = path.with_name(path.name.replace(_SIDECAR, _ARRAYS))
                coords = (path, arrays) if arrays.exists() else (path,)
                features = _find_embeddings(folder, slide_id)
                found[slide_id] = FoundSlide(slide_id=slide_id, coords=coords, features=features)
        return found

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        meta = _read_json(found.coords[0])
        arrays = _read_arrays(found.coords[1:])
        try:
            tiling = dict(meta["tiling"])
            side, count = float(tiling["tile_size_lv0"]), int(tiling["n_tiles"])
            frame = read_frame(str(arrays.get(NOTE, "")), side, facts, str(found.coords[0]))
            frame = frame or _frame(meta, facts, found.coords[0])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, LayoutError):
                raise
            raise LayoutError(
                f"{found.coords[0]} is no sidecar of hs2p, or of another version: {error!r}."
            ) from error
        points = np.stack([arrays.get(axis, np.empty(0, np.int64)) for axis in "xy"], axis=1)
        if len(points) != count:
            raise LayoutError(
                f"{found.coords[0]} says {count} tiles, its arrays hold {len(points)}."
            )
        shares = arrays.get("tissue_fractions")
        return frame.slide(
            found.slide_id,
            points,
            features={name: _read_features(files) for name, files in found.features.items()},
            columns={} if shares is None or np.isnan(shares).any() else {"tissue_fraction": shares},
        )

    def _features_writer(
        self, features: FeatureSet, order: NDArray[np.int64]
    ) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            values = whole(features)[order]
            if self._format == Embeddings.pt.value:
                import torch

                torch.save(torch.from_numpy(values), path)
                return
            index = np.arange(len(values), dtype=np.int32)
            with path.open("xb") as file:  # numpy would add a suffix to a name
                np.savez(file, features=values, tile_index=index)

        return write

    def _meta(self, slide: TiledSlide, encoder: str, sidecar: Mapping[str, Any]) -> dict[str, Any]:
        features, tiling = slide.features[encoder], sidecar["tiling"]
        rows, dim = features.source.shape
        names = ("tile_size_lv0", "read_tile_size_px", "requested_tile_size_px")
        return {
            "sample_id": slide.slide_id,
            "artifact_type": _EMBEDDINGS,
            "format": self._format,
            "feature_dim": dim,
            "num_tiles": rows,
            "annotation": None,
            "encoder_name": encoder,
            "encoder_level": "tile",
            "coordinates_npz_path": f"{_TILES}/{slide.slide_id}{_ARRAYS}",
            "coordinates_meta_path": f"{_TILES}/{slide.slide_id}{_SIDECAR}",
            "tiles_tar_path": "",
            "image_path": slide.source,
            "mask_path": None,
            "backend": sidecar["provenance"]["backend"],
            "encoder_input_size_px": None,
            "requested_spacing_um": tiling["requested_spacing_um"],
            "compatibility": {},
            NOTE: feature_note(features),
        } | {name: tiling[name] for name in names}


def _sidecar(slide: TiledSlide) -> dict[str, Any]:
    """Describe tiles as hs2p's reader wants it: exactly these fields."""
    side = int(square(slide, "hs2p", at_level=True))
    mpp, geometry = mpp_of(slide, "hs2p"), slide.geometry
    spacing = geometry.target_mpp or mpp * geometry.size_level0[0] / geometry.size
    read = mpp * geometry.level_downsample
    unknown = {part: dict.fromkeys(names) for part, names in _UNKNOWN.items()}
    filters = {f"filter_{name}": False for name in ("white", "black", "grayspace", "blur")}
    return {
        "provenance": {
            "sample_id": slide.slide_id,
            "image_path": slide.source,
            "mask_path": None,
            "backend": "auto",
            "requested_backend": "auto",
            "spacing_at_level_0": mpp,
            "mask_backend": None,
            "requested_mask_backend": None,
        },
        "slide": {
            "dimensions": [slide.info.width, slide.info.height],
            "base_spacing_um": mpp,
            # Levels between that nobody told are null.
            "level_downsamples": [
                1.0,
                *[None] * max(0, geometry.level - 1),
                *([geometry.level_downsample] if geometry.level else []),
            ],
        },
        "tiling": {
            "requested_tile_size_px": geometry.size,
            "requested_spacing_um": spacing,
            "read_level": geometry.level,
            "read_tile_size_px": side,
            "read_spacing_um": read,
            "tile_size_lv0": round(geometry.size_level0[0]),
            "tolerance": _TOLERANCE,
            "step_px_lv0": round(geometry.pitch_level0[0]),
            "overlap": 1 - geometry.step / geometry.size,
            "min_tissue_fraction": 0.0,
            "is_within_tolerance": abs(read - spacing) <= _TOLERANCE * spacing,
            "n_tiles": len(slide.coords),
        },
        "segmentation": {"tissue_method": "microtome", **unknown["segmentation"]},
        "filtering": {**unknown["filtering"], **filters},
        "artifact": {
            "coordinate_space": "level0_px",
            "tile_order": "x_then_y",
            "annotation": None,
            "selection_strategy": "merged_default_tiling",
            "output_mode": "single_output",
        },
    }


def _arrays_writer(slide: TiledSlide, order: NDArray[np.int64]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        coords = slide.coords[order].astype(np.int64)
        unknown = np.full(len(coords), np.nan)
        shares = np.asarray(slide.columns.get("tissue_fraction", unknown), np.float32)
        with path.open("xb") as file:
            np.savez_compressed(
                file,
                tile_index=np.arange(len(coords), dtype=np.int32),
                x=coords[:, 0],
                y=coords[:, 1],
                tissue_fractions=shares[order],
                microtome=np.array(slide.note),
            )

    return write


def _json_writer(content: Mapping[str, Any]) -> Callable[[Path], None]:
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)

    def write(path: Path) -> None:
        path.write_text(f"{text}\n", "utf-8")

    return write


def _find_embeddings(folder: Path, slide_id: str) -> dict[str, tuple[Path, ...]]:
    """Find embeddings with their sidecar, which is written last: without it they are not whole."""
    found: dict[str, tuple[Path, ...]] = {}
    for top in (folder / _EMBEDDINGS, *sorted(folder.glob(f"*/{_EMBEDDINGS}"))):
        meta = top / f"{slide_id}{_META}"
        if not meta.is_file():
            continue
        try:
            named = _read_json(meta)
        except LayoutError:
            named = {}
        name = str(named.get("encoder_name") or top.parent.name)
        values = top / f"{slide_id}.{named.get('format', 'npz')}"
        found[name] = (values, meta)
    return found


def _frame(meta: Mapping[str, Any], facts: SlideFacts, path: Path) -> Frame:
    tiling, slide, provenance = meta["tiling"], meta["slide"], meta["provenance"]
    mpp = slide["base_spacing_um"]
    stated = None
    if mpp:
        stated = Resolution(mpp_x=float(mpp), mpp_y=float(mpp), mpp_source="hs2p")
    width, height = map(int, slide["dimensions"])
    info = known_info(facts, (width, height), stated, str(path))
    level, side = int(tiling["read_level"]), float(tiling["tile_size_lv0"])
    downsample = side / float(tiling["read_tile_size_px"]) if level else 1.0
    geometry = make_geometry(
        int(tiling["requested_tile_size_px"]),
        side,
        step_level0=float(tiling["step_px_lv0"]),
        level=(level, downsample),
        target=(float(tiling["requested_spacing_um"]), None),
        resolution=info.resolution,
    )
    return Frame(geometry=geometry, info=info, source=str(provenance["image_path"]))


def _read_arrays(paths: tuple[Path, ...]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for path in paths:
        try:
            # Opened here, because numpy leaves open what it finds to be damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found |= {name: arrays[name] for name in arrays.files}
        except _DAMAGE as error:
            raise LayoutError(
                f"{path} cannot be read as arrays of numpy: it is damaged or another kind of file "
                f"({type(error).__name__})."
            ) from error
    return found


def _read_features(files: tuple[Path, ...]) -> FeatureSet:
    values, meta = files
    if values.suffix == ".pt":
        array = _read_tensor(values)
    else:
        arrays = _read_arrays((values,))
        if "features" not in arrays:
            raise LayoutError(f"{values} holds no array 'features', only {', '.join(arrays)}.")
        array = arrays["features"]
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise LayoutError(f"{values} holds {array.dtype} of shape {array.shape}, not (tiles, dim).")
    return FeatureSet(ArraySource(array), read_note(_read_json(meta).get(NOTE)))


def _read_tensor(path: Path) -> NDArray[Any]:
    if find_spec("torch") is None:
        raise MissingDependencyError(f"{path} needs torch. Install with: pip install torch")
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
        # numpy knows no bfloat16, every value of which is one of float32.
        array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    except _DAMAGE as error:
        raise LayoutError(
            f"{path} cannot be read as a tensor: it is damaged or another kind of file "
            f"({type(error).__name__})."
        ) from error
    return array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LayoutError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise LayoutError(f"{path} holds no fields.")
    return found
