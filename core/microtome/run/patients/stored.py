"""What an output still holds of a slide that failed, as this run would have made it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError
from microtome.run.slides.identities import (
    coords_identity,
    feature_identity,
    slide_identity,
    tissue_again,
)
from microtome.slide.types import SlideRef
from microtome.store.arrays import array_names
from microtome.store.attributes import parse_fields
from microtome.store.identity import IDENTITY, Identity

if TYPE_CHECKING:
    from microtome.plugin.protocols import StoredSlide
    from microtome.run.planning.models import PlannedPatientEncoder
    from microtome.run.planning.plan import RunPlan
    from microtome.store.status import SlideStatus


def is_stored(
    plan: RunPlan, planned: PlannedPatientEncoder, ref: SlideRef, status: SlideStatus
) -> bool:
    """Tell whether what a patient encoder takes of a failed slide is there from before.

    Args:
        plan: The resolved run.
        planned: The patient encoder.
        ref: The slide.
        status: How it failed.
    """
    store = plan.stores[0]
    path = plan.layout.slide(store.spec, ref.slide_id)
    if not path.exists():
        return False
    # What cannot be read, or no longer be told apart, is as good as not there.
    with suppress(MicrotomeError), store.writer.open_stored(path) as stored:
        coords = _coords(plan, ref, status, stored.attributes)
        return coords is not None and len(stored.coords) > 0 and _has(plan, planned, coords, stored)
    return False


def _coords(
    plan: RunPlan, ref: SlideRef, status: SlideStatus, attributes: Mapping[str, Any]
) -> Identity | None:
    """Give the identity of a slide's tiles; None for another slide's, or other tiles.

    A slide that cannot be opened is known by what it is called alone.

    Raises:
        MicrotomeError: If a file that decides its tiles is missing.
    """
    tissue = parse_fields(attributes).get("tissue", {})
    if "slide" not in tissue:  # imported
        return None
    same = status.fingerprint == tissue["slide"]
    if not same and (status.fingerprint or attributes.get("wsi_path") != ref.source):
        return None
    coords = coords_identity(plan, tissue_again(plan, ref, tissue), ref)
    return coords if coords.digest == attributes.get(IDENTITY) else None


def _has(
    plan: RunPlan, planned: PlannedPatientEncoder, coords: Identity, stored: StoredSlide
) -> bool:
    if planned.embeddings:
        key = f"slide_features/{planned.embeddings}"
        (model,) = (each for each in plan.slide_encoders if each.name == planned.embeddings)
        wanted = slide_identity(plan, model, coords).digest
        return key in array_names(stored) and stored.array_attributes(key)[IDENTITY] == wanted
    there = stored.feature_names()
    return all(
        encoder.name in there
        and stored.feature_attributes(encoder.name)[IDENTITY]
        == feature_identity(plan, encoder, coords).digest
        for encoder in plan.encoders
        if encoder.name in planned.reads.values()
    )
