"""What a run stores of regions: which tiles make one, and features by region on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microtome.run.slides.identities import list_absent
from microtome.slide.regions import Regions, find_regions
from microtome.slide.types import TileGrid
from microtome.store.arrays import REGION_COORDS, REGION_INDEX
from microtome.store.attributes import ATTRIBUTES_DIGEST
from microtome.store.features import ArraySource, StoredSource
from microtome.store.identity import Identity, make_identity
from microtome.store.publish import TOKEN, FeatureSet
from microtome.store.regions import FEATURES_BY_REGION, REGION_TILES, RegionSource

if TYPE_CHECKING:
    from pathlib import Path

    from microtome.plugin.protocols import StoredSlide
    from microtome.run.planning.plan import RunPlan
    from microtome.run.slides.holdings import StoreHolding


def by_region_identity(features: Identity) -> Identity:
    """Identify features by region, by those that are grouped."""
    return make_identity(FEATURES_BY_REGION, {"features": features.digest})


def region_attributes(grid: TileGrid) -> dict[str, Any]:
    """Say how large regions are among a slide's attributes; nothing for tiles of no regions.

    Args:
        grid: Of the slide.
    """
    tiles, geometry = grid.region_tiles, grid.geometry
    if tiles is None:
        return {}
    return {
        REGION_TILES: tiles,
        "region_size": geometry.size * tiles,
        "region_size_level0": round(geometry.size_level0[0] * tiles),
    }


def region_arrays(grid: TileGrid, coords: Identity) -> dict[str, FeatureSet]:
    """Give what is stored of a grid's regions beside its coordinates.

    Args:
        grid: Of tiles in whole regions, or of others: then it is nothing.
        coords: Its identity.
    """
    if grid.region_tiles is None:
        return {}
    regions = find_regions(grid)
    identity = make_identity("regions", {"coords": coords.digest})
    attributes = {REGION_TILES: grid.region_tiles, **identity.attributes()}
    arrays = {REGION_INDEX: regions.index, REGION_COORDS: regions.coords}
    return {key: FeatureSet(ArraySource(array), attributes) for key, array in arrays.items()}


def list_ungrouped(
    plan: RunPlan, stored: StoredSlide, path: Path, features: Mapping[str, Identity]
) -> tuple[str, ...]:
    """Name the feature sets that a store lacks by region.

    Args:
        plan: The resolved run.
        stored: The slide as it is there.
        path: Of it.
        features: Identities of the run's feature sets, by name.

    Raises:
        IdentityError: If features by region that are there were made by another configuration.
    """
    if not plan.config.region_features:
        return ()
    wanted = {f"{FEATURES_BY_REGION}/{n}": by_region_identity(features[n]) for n in features}
    return tuple(key.partition("/")[2] for key in list_absent(stored, path, wanted))


@contextmanager
def grouped_features(
    grid: TileGrid, holding: StoreHolding, computed: Mapping[str, FeatureSet]
) -> Iterator[dict[str, FeatureSet]]:
    """Give the features by region that a store lacks.

    Args:
        grid: Of tiles in whole regions.
        holding: Of the store.
        computed: The features of this run; others are read from the store itself.
    """
    ours = {n: computed[n] for n in holding.ungrouped if n in holding.missing}
    theirs = [name for name in holding.ungrouped if name not in ours]
    regions = find_regions(grid) if holding.ungrouped else None
    if not theirs or regions is None:
        yield {} if regions is None else _grouped(regions, ours)
        return
    with holding.store.writer.open_stored(holding.path) as stored:
        kept = {
            name: FeatureSet(StoredSource(stored, name), stored.feature_attributes(name))
            for name in theirs
        }
        yield _grouped(regions, {**ours, **kept})


def _grouped(regions: Regions, features: Mapping[str, FeatureSet]) -> dict[str, FeatureSet]:
    return {
        f"{FEATURES_BY_REGION}/{name}": FeatureSet(
            RegionSource(each.source, regions.index), _attributes(each.attributes)
        )
        for name, each in features.items()
    }


def _attributes(features: Mapping[str, Any]) -> dict[str, Any]:
    """Give the attributes of features by region: those of the features, with their own identity."""
    identity = by_region_identity(Identity(str(features["identity"]), {}))
    own = {k: v for k, v in features.items() if k not in (TOKEN, ATTRIBUTES_DIGEST)}
    return {**own, **identity.attributes()}
