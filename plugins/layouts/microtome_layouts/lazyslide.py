"""LazySlide: a SpatialData store a slide, tiles as shapes and features as tables."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import LayoutError
from microtome.plugin import NoConfig
from microtome.slide.types import Resolution
from microtome.store.exchange import (
    NOTE,
    FoundSlide,
    LayoutFile,
    SlideFacts,
    TiledSlide,
    make_geometry,
    read_by,
    read_note,
)
from microtome.store.features import ArraySource
from microtome.store.publish import FeatureSet
from microtome_layouts.common import (
    Frame,
    feature_note,
    known_info,
    read_frame,
    square,
    whole,
)

_SUFFIX, _TILES, _TISSUES = ".zarr", "tiles", "tissues"
_SPEC, _PROPERTIES = "tile_spec", "slide_properties"
_AGGREGATED = "agg_ops"
"""Where a table keeps what was made of all its rows together."""

_OWN = ("tile_id", "x", "y", "tissue_id", "geometry")
_NO_TISSUE = -1
"""Of tiles that belong to no tissue polygon that the store holds."""


class LazyslideLayout:
    """Reads and writes ``<slide>.zarr``."""

    def __init__(self, config: NoConfig) -> None:
        del config

    def files(self, slide: TiledSlide) -> Iterator[LayoutFile]:
        """Name a slide's one store."""
        square(slide, "LazySlide", at_level=True)
        if not len(slide.coords):
            raise LayoutError(
                f"{slide.slide_id} has no tile, and SpatialData holds no empty shapes."
            )

        def write(path: Path) -> None:
            with _quiet():
                _spatialdata(slide).write(path)

        yield LayoutFile(
            path=f"{slide.slide_id}{_SUFFIX}",
            write=write,
            features=tuple(slide.features),
            embeddings=tuple(slide.embeddings),
            layout="directory",
        )

    def recognises(self, folder: Path) -> bool:
        """Tell by some of its files whether a folder is of this layout."""
        return any(folder.glob(f"*{_SUFFIX}/shapes/{_TILES}"))

    def find(self, folder: Path) -> Mapping[str, FoundSlide]:
        """Find the stores in a folder."""
        found = {}
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            if path.name.startswith(".") or not (path / "shapes" / _TILES).is_dir():
                continue
            slide_id = path.name.removesuffix(_SUFFIX)
            tables = sorted(path.glob(f"tables/*_{_TILES}"))
            found[slide_id] = FoundSlide(
                slide_id=slide_id,
                coords=(path / "shapes" / _TILES, *_root_files(path)),
                features={each.name.removesuffix(f"_{_TILES}"): (each,) for each in tables},
            )
        return found

    def read(self, found: FoundSlide, facts: SlideFacts) -> TiledSlide:
        """Read a slide."""
        path = found.coords[0].parents[1]
        with _quiet():
            store = _open(path)
            tiles = store.shapes[_TILES].reset_index(drop=True)
            spec = dict(store.attrs.get(_SPEC, {}).get(_TILES, {}))
            side = _side(spec, path)
            frame = read_frame(store.attrs.get(NOTE), side, facts, str(path))
            frame = frame or _frame(store.attrs, spec, facts, path)
            ids = tiles["tile_id"].to_numpy() if "tile_id" in tiles else np.arange(len(tiles))
            features = {
                name: _read_features(store, f"{name}_{_TILES}", ids, path)
                for name in found.features
            }
        corners = tiles.geometry.bounds[["minx", "miny"]].to_numpy()
        return frame.slide(found.slide_id, corners, features=features, columns=_columns(tiles))


def _spatialdata(slide: TiledSlide) -> Any:
    from spatialdata import SpatialData

    tissue = _tissue(slide)
    shapes = {_TILES: _shapes(slide, tissue)}
    return SpatialData(
        shapes=shapes if tissue is None else {**shapes, _TISSUES: tissue},
        tables={f"{name}_{_TILES}": _table(slide, name) for name in slide.features},
        attrs=_attributes(slide, None if tissue is None else _TISSUES),
    )


def _tissue(slide: TiledSlide) -> Any:
    """Read a slide's tissue as shapes; None where it has none, as SpatialData has no empty ones."""
    from geopandas import GeoDataFrame
    from shapely.geometry import shape
    from spatialdata.models import ShapesModel

    if slide.tissue is None:
        return None
    try:
        data = json.loads(slide.tissue.read_text("utf-8"))
        polygons = [shape(feature["geometry"]) for feature in data["features"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{slide.tissue} cannot be read as GeoJSON: {error}") from error
    if not polygons:
        return None
    return ShapesModel.parse(GeoDataFrame({"tissue_id": range(len(polygons))}, geometry=polygons))


def _shapes(slide: TiledSlide, tissue: Any) -> Any:
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel

    x, y = slide.coords[:, 0], slide.coords[:, 1]
    width, height = map(round, slide.geometry.size_level0)
    boxes = box(x, y, x + width, y + height)
    none = np.full(len(x), _NO_TISSUE)
    found = none if tissue is None else _find_tissue(boxes, tissue.geometry.to_numpy())
    data = {"tile_id": np.arange(len(x)), "x": x, "y": y, "tissue_id": found}
    columns = {name: column for name, column in slide.columns.items() if name not in _OWN}
    return ShapesModel.parse(GeoDataFrame({**data, **columns}, geometry=boxes))


def _find_tissue(boxes: Any, polygons: Any) -> NDArray[np.int64]:
    """Give the polygon that each tile's centre is in, else the one that it has most of."""
    from shapely import STRtree, area, centroid, intersection

    found = np.full(len(boxes), _NO_TISSUE)
    tree = STRtree(polygons)
    tiles, pieces = tree.query(centroid(boxes), predicate="intersects")
    found[tiles[::-1]] = pieces[::-1]
    rest = np.flatnonzero(found == _NO_TISSUE)
    tiles, pieces = tree.query(boxes[rest], predicate="intersects")
    shared = area(intersection(boxes[rest][tiles], polygons[pieces]))
    # The largest share is written last; what only touches has none.
    order = np.argsort(shared, kind="stable")
    order = order[shared[order] > 0]
    found[rest[tiles[order]]] = pieces[order]
    return found


def _table(slide: TiledSlide, name: str) -> Any:
    from anndata import AnnData
    from pandas import Categorical, DataFrame
    from spatialdata.models import TableModel

    features = slide.features[name]
    values = whole(features)
    ids = np.arange(len(values))
    library = Categorical([_TILES]).repeat(len(ids))
    obs = DataFrame({"tile_id": ids, "library_id": library}, index=ids.astype(str))
    told: dict[str, Any] = {NOTE: feature_note(features)}
    if embedded := _embeddings(slide, name):
        told[_AGGREGATED] = embedded
    table = AnnData(X=values, obs=obs, uns=told)
    return TableModel.parse(table, region=_TILES, region_key="library_id", instance_key="tile_id")


def _embeddings(slide: TiledSlide, name: str) -> dict[str, Any]:
    """Give what slide encoders made of features, as ``feature_aggregation`` keeps its own.

    What was made of several feature sets stands with the first.
    """
    found = {}
    for key, given in slide.embeddings.items():
        group, _, encoder = key.partition("/")
        if group != "slide_features" or read_by(given.attributes)[0] != name:
            continue
        latents = slide.embeddings.get(f"slide_latents/{encoder}")
        found[f"agg_{encoder}"] = {
            "encoder": str(given.attributes.get("plugin", encoder)),
            "tile_key": _TILES,
            "features": whole(given)[np.newaxis],
            **({} if latents is None else {"latents": whole(latents)[np.newaxis]}),
            NOTE: feature_note(given),
        }
    return found


def _attributes(slide: TiledSlide, tissue: str | None) -> dict[str, Any]:
    geometry, info = slide.geometry, slide.info
    spec = {
        "height": geometry.size,
        "width": geometry.size,
        "stride_height": geometry.step,
        "stride_width": geometry.step,
        "mpp": geometry.target_mpp or (geometry.effective_mpp or (None,))[0],
        "ops_level": geometry.level,
        "ops_downsample": _factor(geometry.size, geometry.read_size[0]),
        "base_level": 0,
        "base_downsample": _factor(geometry.size, round(geometry.size_level0[0])),
        "tissue_name": tissue,
    }
    properties = {
        "shape": [info.height, info.width],
        "n_level": 1,
        "level_shape": [[info.height, info.width]],
        "level_downsample": [1.0],
        "mpp": info.resolution.mpp,
        "magnification": info.resolution.magnification,
        "bounds": [0, 0, info.width, info.height],
    }
    known = {_PROPERTIES: properties} if info.width else {}
    return {_SPEC: {_TILES: spec}, NOTE: slide.note, **known}


def _factor(size: int, pixels: int) -> float:
    """Give the factor by which a size, cut off to whole pixels as LazySlide does, is exact."""
    factor = pixels / size
    return factor if int(size * factor) == pixels else math.nextafter(factor, math.inf)


def _side(spec: Mapping[str, Any], path: Path) -> float:
    try:
        if spec["width"] != spec["height"]:
            raise LayoutError(f"{path}: tiles of {spec['width']} × {spec['height']} px.")
        return float(int(spec["width"] * spec["base_downsample"]))
    except KeyError as error:
        raise LayoutError(
            f"{path}: its attribute {_SPEC} lacks {error}, so tiles have no size."
        ) from error


def _frame(
    attrs: Mapping[str, Any], spec: Mapping[str, Any], facts: SlideFacts, path: Path
) -> Frame:
    properties = attrs.get(_PROPERTIES, {})
    height, width = properties.get("shape") or (0, 0)
    mpp, power = properties.get("mpp"), properties.get("magnification")
    stated = Resolution(
        mpp_x=mpp,
        mpp_y=mpp,
        mpp_source="unknown" if mpp is None else "LazySlide",
        magnification=power,
        magnification_source="unknown" if power is None else "LazySlide",
    )
    info = known_info(facts, (int(width), int(height)), stated, str(path))
    factor, level = float(spec["base_downsample"]), int(spec["ops_level"])
    geometry = make_geometry(
        int(spec["width"]),
        float(int(spec["width"] * factor)),
        step_level0=float(int(spec["stride_width"] * factor)),
        level=(level, factor / float(spec["ops_downsample"]) if level else 1.0),
        target=(spec.get("mpp"), None),
        resolution=info.resolution,
    )
    return Frame(geometry=geometry, info=info)


def _columns(tiles: Any) -> dict[str, NDArray[Any]]:
    """Give the numbers beside the tiles; what is no number a store of ours cannot hold."""
    columns = {name: tiles[name].to_numpy() for name in tiles.columns if name not in _OWN}
    return {name: values for name, values in columns.items() if values.dtype.kind in "biuf"}


def _read_features(store: Any, key: str, ids: NDArray[Any], path: Path) -> FeatureSet:
    table = store.tables[key]
    rows = {tile: row for row, tile in enumerate(table.obs["tile_id"].tolist())}
    if missing := [tile for tile in ids.tolist() if tile not in rows]:
        raise LayoutError(f"{path}: {key} lacks {len(missing)} of {len(ids)} tiles.")
    values = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    ordered = values[[rows[tile] for tile in ids.tolist()]]
    return FeatureSet(ArraySource(ordered), read_note(table.uns.get(NOTE)))


def _open(path: Path) -> Any:
    from spatialdata import read_zarr

    try:
        return read_zarr(path, selection=("shapes", "tables"))
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last by a codec
        raise LayoutError(f"{path} cannot be read as SpatialData: {error}") from error


def _root_files(path: Path) -> tuple[Path, ...]:
    """Name what holds a store's attributes, in Zarr 3 and in Zarr 2."""
    return tuple(path / name for name in ("zarr.json", ".zattrs") if (path / name).is_file())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what SpatialData's libraries tell of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
