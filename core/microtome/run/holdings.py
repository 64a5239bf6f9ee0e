"""What the output already holds of a slide, and so what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import IdentityError, StoreError
from microtome.run.identities import feature_identity, image_identity, refuse_difference
from microtome.run.plan import PlannedImages, PlannedStore, RunPlan
from microtome.slide.types import SlideRef
from microtome.store.attributes import parse_fields, read_folder_record
from microtome.store.identity import Identity


@dataclass(frozen=True, eq=False, kw_only=True)
class StoreHolding:
    """What a store holds of a slide.

    Attributes:
        store: The writer.
        path: The final name.
        coords: (n, 5) of what is there, or None where there is nothing to keep.
        missing: Names of the feature sets to add.
        replace: Whether what is there gives way.
    """

    store: PlannedStore
    path: Path
    coords: NDArray[np.int32] | None
    missing: tuple[str, ...]
    replace: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is nothing to write."""
        return self.coords is not None and not self.missing and not self.replace


@dataclass(frozen=True, eq=False, kw_only=True)
class Holdings:
    """What the output holds of a slide, over all its writers.

    Attributes:
        stores: One a writer of features.
        images: Writers of pixels whose images are missing.
    """

    stores: tuple[StoreHolding, ...]
    images: tuple[PlannedImages, ...]

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return not self.images and all(holding.complete for holding in self.stores)

    @property
    def missing(self) -> frozenset[str]:
        """Names of the feature sets that some store lacks."""
        return frozenset(name for holding in self.stores for name in holding.missing)

    @property
    def coords(self) -> NDArray[np.int32] | None:
        """The stored coordinates, or None where no store has any."""
        return next((h.coords for h in self.stores if h.coords is not None), None)


def take_stock(plan: RunPlan, ref: SlideRef, slide_print: str, coords: Identity) -> Holdings:
    """Look at what is there.

    Args:
        plan: The resolved run.
        ref: The slide.
        slide_print: Its fingerprint.
        coords: The identity of its coordinates in this run.

    Raises:
        IdentityError: If what is there is of another slide or another configuration.
    """
    return Holdings(
        stores=tuple(_hold(plan, store, ref, slide_print, coords) for store in plan.stores),
        images=tuple(image for image in plan.images if _lacks(plan, image, ref, coords)),
    )


def _hold(
    plan: RunPlan, store: PlannedStore, ref: SlideRef, slide_print: str, coords: Identity
) -> StoreHolding:
    path = plan.layout.slide(store.spec, ref.slide_id)
    wanted = {e.name: feature_identity(plan, e, coords) for e in plan.encoders}
    if not path.exists() or plan.config.force:
        return StoreHolding(
            store=store, path=path, coords=None, missing=tuple(wanted), replace=plan.config.force
        )
    with store.writer.open_stored(path) as stored:
        _refuse_other_slide(path, stored.attributes, ref, slide_print)
        refuse_difference(str(path), stored.attributes, coords)
        names = stored.feature_names()
        for name in sorted(set(wanted) & set(names)):
            attributes = stored.feature_attributes(name)
            refuse_difference(f"features/{name} in {path}", attributes, wanted[name])
        missing = tuple(name for name in wanted if name not in names)
        # Coordinates alone say nothing of the background; nothing is lost by writing them anew.
        bare = bool(missing) and not names and "has_background" not in stored.columns
        kept = np.asarray(stored.coords, dtype=np.int32)
    return StoreHolding(store=store, path=path, coords=kept, missing=missing, replace=bare)


def _refuse_other_slide(
    path: Path, attributes: Mapping[str, Any], ref: SlideRef, slide_print: str
) -> None:
    if "identity_fields" not in attributes:
        raise StoreError(f"{path} was not written by a run of microtome; use another output.")
    theirs = parse_fields(attributes).get("tissue", {}).get("slide")
    held = attributes.get("wsi_path")
    if theirs != slide_print and held != str(ref.path):
        raise IdentityError(
            f"{path} holds another slide, {held}; this one is {ref.path}. "
            "Tell them apart with slide_id=relpath or a manifest's slide_id."
        )


def _lacks(plan: RunPlan, image: PlannedImages, ref: SlideRef, coords: Identity) -> bool:
    path = plan.layout.slide(image.spec, ref.slide_id)
    if not path.exists() or plan.config.force:
        return True
    record = read_folder_record(path) or {}
    refuse_difference(str(path), record, image_identity(image, coords))
    return False
