"""What the output already holds of a slide, and so what is left to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import IdentityError, StoreError
from microtome.plugin.protocols import StoredSlide
from microtome.plugin.specs import WriterSpec
from microtome.run.planning.models import array_keys
from microtome.run.planning.plan import RunPlan
from microtome.run.planning.writers import PlannedImages, PlannedStore
from microtome.run.slides.attributes import patient_of
from microtome.run.slides.dense import list_undense, wanted_arrays
from microtome.run.slides.identities import (
    differs_by_labels,
    feature_identity,
    image_identity,
    refuse_difference,
    score_identity,
    slide_identity,
)
from microtome.run.slides.regions import list_ungrouped
from microtome.slide.types import SlideRef
from microtome.store.arrays import array_names
from microtome.store.atomic import restore
from microtome.store.attributes import parse_fields, parse_json, read_images_record
from microtome.store.identity import Identity, difference
from microtome.store.labels import LABELS_IDENTITY, tell_labels
from microtome.store.patches import PatchRecord
from microtome.store.quality import (
    REASON,
    Scores,
    bit_names,
    count_reasons,
    join_limits,
    parse_quality,
)

DROPPED = "dropped"
"""Attribute of a slide: how many tiles were left out by their pixels, by reason."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoreHolding:
    """What a store holds of a slide.

    Attributes:
        store: The writer.
        path: The final name.
        coords: (n, 5) of what is there, or None where there is nothing to keep.
        missing: Names of the feature sets to add.
        replace: Whether what is there gives way.
        bare: Whether it is coordinates alone, and more is to come: all is given anew.
        columns: Of what is there, (n,) each.
        attributes: Of what is there.
        quality: What is there of inspectors, also of those that the run does not have.
        unscored: Names of the inspectors whose columns are to be added.
        relimited: Whether limits on columns that are there have changed.
        relabelled: Whether labels are to be added, or made anew.
        reassigned: Whether the run says another patient's than what is there.
        ungrouped: Names of the feature sets to add by region.
        unembedded: Names of the slide encoders whose arrays are to be added.
        undense: Token grids and attention to add, as ``group/name``.
    """

    store: PlannedStore
    path: Path
    coords: NDArray[np.int32] | None
    missing: tuple[str, ...]
    replace: bool = False
    columns: Mapping[str, NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    quality: Mapping[str, Scores] = field(default_factory=lambda: MappingProxyType({}))
    unscored: tuple[str, ...] = ()
    relimited: bool = False
    relabelled: bool = False
    reassigned: bool = False
    bare: bool = False
    ungrouped: tuple[str, ...] = ()
    unembedded: tuple[str, ...] = ()
    undense: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether what is there stays."""
        return self.coords is not None and not (self.replace or self.bare)

    @property
    def computed(self) -> bool:
        """Whether nothing is missing that takes pixels."""
        return self.kept and not (self.missing or self.unscored or self.undense)

    @property
    def complete(self) -> bool:
        """Whether there is nothing to write."""
        changed = self.relimited or self.relabelled or self.reassigned
        return self.computed and not (changed or self.ungrouped or self.unembedded)


@dataclass(frozen=True, eq=False, kw_only=True)
class Holdings:
    """What the output holds of a slide, over all its writers.

    Attributes:
        stores: One a writer of features.
        images: Writers of pixels whose images are missing.
        coords: (n, 5) of the tiles that are there, or None where nothing is.
        warnings: What stays beside the new without being of its configuration.
    """

    stores: tuple[StoreHolding, ...]
    images: tuple[PlannedImages, ...]
    coords: NDArray[np.int32] | None
    warnings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return not self.images and all(holding.complete for holding in self.stores)

    @property
    def computed(self) -> bool:
        """Whether what is left to do takes no pixels."""
        return not self.images and all(holding.computed for holding in self.stores)

    @property
    def reasons(self) -> dict[str, int]:
        """How many tiles of what is there have which reason."""
        for holding in self.stores:
            if REASON in holding.columns:
                names = bit_names(join_limits(holding.quality.values()))
                return count_reasons(holding.columns[REASON], names)
        return {}

    @property
    def labels(self) -> dict[str, int]:
        """How many tiles of what is there are of which class."""
        told = (tell_labels(holding.columns, holding.attributes) for holding in self.stores)
        return next((counts for counts in told if counts), {})

    @property
    def dropped(self) -> dict[str, int]:
        """How many tiles were left out by their pixels when what is there was made."""
        told = (parse_json(holding.attributes.get(DROPPED)) for holding in self.stores)
        return next((counts for counts in told if counts), {})

    @property
    def unscored(self) -> frozenset[str]:
        """Names of the inspectors whose columns some store lacks."""
        return frozenset(name for holding in self.stores for name in holding.unscored)

    @property
    def unembedded(self) -> frozenset[str]:
        """Names of the slide encoders whose arrays some store lacks."""
        return frozenset(name for holding in self.stores for name in holding.unembedded)

    @property
    def missing(self) -> frozenset[str]:
        """Names of the feature sets that some store lacks."""
        return frozenset(name for holding in self.stores for name in holding.missing)

    @property
    def undense(self) -> frozenset[str]:
        """Token grids and attention that some store lacks."""
        return frozenset(key for holding in self.stores for key in holding.undense)


def take_stock(
    plan: RunPlan,
    ref: SlideRef,
    slide_print: str,
    coords: Identity,
    *,
    labels: str = "",
    labelled: str = "",
) -> Holdings:
    """Look at what is there.

    Args:
        plan: The resolved run.
        ref: The slide.
        slide_print: Its fingerprint.
        coords: The identity of its coordinates in this run.
        labels: As of `label_digest`.
        labelled: The identity of its labels, in a run that gives some.

    Raises:
        IdentityError: If what is there is of another slide or another configuration.
    """
    stores = tuple(_hold(plan, store, ref, slide_print, coords) for store in plan.stores)
    if labelled:
        stores = tuple(_with_labels(holding, labelled) for holding in stores)
    wanted = {image.name: image_identity(image, coords, labels) for image in plan.images}
    records = [(i, _image_record(plan, i, ref, slide_print, wanted[i.name])) for i in plan.images]
    held = [holding.coords for holding in stores if holding.coords is not None]
    held += [
        _image_coords(image, record, plan.layout.slide(image.spec, ref.slide_id))
        for image, record in records
        if record is not None
    ]
    return Holdings(
        stores=stores,
        images=tuple(image for image, record in records if record is None),
        coords=held[0] if held else None,
        warnings=_left_behind(plan, ref, coords) if plan.config.force else (),
    )


def _hold(
    plan: RunPlan, store: PlannedStore, ref: SlideRef, slide_print: str, coords: Identity
) -> StoreHolding:
    path = plan.layout.slide(store.spec, ref.slide_id)
    wanted = {e.name: feature_identity(plan, e, coords) for e in plan.encoders}
    restore(path)
    if not path.exists() or plan.config.force:
        return StoreHolding(
            store=store,
            path=path,
            coords=None,
            missing=tuple(wanted),
            replace=plan.config.force,
            unscored=tuple(inspector.name for inspector in plan.inspectors),
            ungrouped=tuple(wanted) if plan.config.region_features else (),
            undense=wanted_arrays(plan),
            unembedded=tuple(each.name for each in plan.slide_encoders),
        )
    with store.open_stored(path) as stored:
        _refuse_other_slide(path, stored.attributes, ref, slide_print)
        refuse_difference(str(path), stored.attributes, coords, apart="a tiler.name")
        _refuse_other_options(path, stored.attributes, store)
        names = stored.feature_names()
        for name in sorted(set(wanted) & set(names)):
            attributes = stored.feature_attributes(name)
            refuse_difference(
                f"features/{name} in {path}",
                attributes,
                wanted[name],
                apart="an encoder key (+encoder@encoder.KEY=NAME)",
            )
        missing = tuple(name for name in wanted if name not in names)
        quality = parse_quality(stored.attributes)
        unscored = list_unscored(plan, path, quality, coords)
        # Coordinates alone say nothing of the background; nothing is lost by writing them anew.
        bare = not names and "has_background" not in stored.columns
        return StoreHolding(
            store=store,
            path=path,
            coords=np.asarray(stored.coords, dtype=np.int32),
            missing=missing,
            bare=bare and bool(missing or unscored),
            columns=dict(stored.columns),
            attributes=dict(stored.attributes),
            quality=quality,
            unscored=unscored,
            unembedded=_list_unembedded(plan, path, stored, coords),
            relimited=any(
                quality[each.name].limits != each.limits
                for each in plan.inspectors
                if each.name in quality
            ),
            reassigned=ref.patient_id not in ("", patient_of(stored.attributes)),
            ungrouped=list_ungrouped(plan, stored, path, wanted),
            undense=list_undense(plan, stored, path, wanted),
        )


def _with_labels(holding: StoreHolding, labels: str) -> StoreHolding:
    """See whether a store lacks the labels of an identity."""
    return replace(holding, relabelled=holding.attributes.get(LABELS_IDENTITY) != labels)


def _list_unembedded(
    plan: RunPlan, path: Path, stored: StoredSlide, coords: Identity
) -> tuple[str, ...]:
    """Name the slide encoders whose arrays are not there, after seeing that those there are theirs.

    Raises:
        IdentityError: If one that is there was made by another configuration.
    """
    if not len(stored.coords):
        return ()  # no tiles, no embedding
    there = array_names(stored)
    for each in plan.slide_encoders:
        wanted = slide_identity(plan, each, coords)
        for key in (k for k in there if k.startswith("slide_") and k.endswith(f"/{each.name}")):
            refuse_difference(
                f"{key} in {path}",
                stored.array_attributes(key),
                wanted,
                apart="a slide encoder key (+slide_encoder@slide_encoder.KEY=NAME)",
            )
    latents = plan.config.latents
    return tuple(
        each.name
        for each in plan.slide_encoders
        if not set(array_keys(each, latents=latents)) <= set(there)
    )


def list_unscored(
    plan: RunPlan, path: Path, quality: Mapping[str, Scores], coords: Identity
) -> tuple[str, ...]:
    """Name the inspectors whose columns are not there, after seeing that those there are theirs.

    Raises:
        IdentityError: If scores that are there were made by another configuration.
    """
    for each in plan.inspectors:
        if each.name in quality:
            refuse_difference(
                f"columns/{each.name}_* in {path}",
                quality[each.name].identity.attributes(),
                score_identity(each, coords),
                apart="an inspector key (+inspector@inspector.KEY=NAME)",
            )
    return tuple(each.name for each in plan.inspectors if each.name not in quality)


def _refuse_other_slide(
    path: Path, attributes: Mapping[str, Any], ref: SlideRef, slide_print: str
) -> None:
    if "identity_fields" not in attributes:
        raise StoreError(f"{path} was not written by a run of microtome; use another output.")
    theirs = parse_fields(attributes).get("tissue", {}).get("slide")
    held = attributes.get("wsi_path")
    if theirs != slide_print and held != ref.source:
        raise IdentityError(
            f"{path} holds another slide, {held}; this one is {ref.source}. "
            "Tell them apart with slide_id=relpath or a manifest's slide_id."
        )


def _refuse_other_options(path: Path, attributes: Mapping[str, Any], store: PlannedStore) -> None:
    held = parse_json(attributes.get("writer"))
    if held != store.fields:
        raise IdentityError(
            f"{path} was written with other options: {difference(held, store.fields)}. "
            "Give this run an output of its own, or replace it with force=true."
        )


def _image_record(
    plan: RunPlan, image: PlannedImages, ref: SlideRef, slide_print: str, wanted: Identity
) -> Mapping[str, Any] | None:
    """Read the record of a slide's images; None where they are to be made."""
    path = plan.layout.slide(image.spec, ref.slide_id)
    restore(path)
    if not path.exists() or plan.config.force:
        return None
    record = read_images_record(path, image.spec, image.writer)
    _refuse_other_slide(path, record, ref, slide_print)
    if differs_by_labels(record, wanted):
        return None  # what people drew has changed, and nobody wants both
    refuse_difference(str(path), record, wanted, apart="a tiler.name")
    return record


def _image_coords(image: PlannedImages, record: Mapping[str, Any], path: Path) -> NDArray[np.int32]:
    if image.labelled:
        return PatchRecord.parse(record, path).tiles
    return np.asarray(json.loads(record["coords"]), dtype=np.int32).reshape(-1, 5)


def _left_behind(plan: RunPlan, ref: SlideRef, coords: Identity) -> tuple[str, ...]:
    """Say what ``force`` leaves of another configuration."""
    own = {writer.spec.name for writer in plan.writers}
    told = []
    for entry in plan.registry.entries("writer"):
        spec = entry.spec
        if not isinstance(spec, WriterSpec) or entry.missing or spec.name in own:
            continue
        path = plan.layout.slide(spec, ref.slide_id)
        if not path.exists():
            continue
        with suppress(StoreError):  # what cannot be read is no business of this run
            if _coords_there(plan, spec, path) != coords.digest:
                told.append(f"{path} is of another configuration and was left")
    return tuple(told)


def _coords_there(plan: RunPlan, spec: WriterSpec, path: Path) -> object:
    """Give the identity of the coordinates of what a writer wrote."""
    writer = plan.registry.create("writer", spec.name)
    if spec.consumes == "features":
        with writer.open_stored(path) as stored:
            return stored.attributes.get("identity")
    return parse_fields(read_images_record(path, spec, writer)).get("coords_identity")
