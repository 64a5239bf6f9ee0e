"""Loads the weights of a run before its slides, if any slide is sure to need them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from microtome.errors import StoreError
from microtome.run.planning.models import array_keys
from microtome.run.planning.plan import RunPlan
from microtome.slide.types import SlideRef
from microtome.store.arrays import array_names


def load_needed(plan: RunPlan, slides: Sequence[SlideRef]) -> None:
    """Load the encoders unless every slide has its features already.

    A missing file or a closed gate is told before any slide is opened.

    Raises:
        EncoderError: If weights cannot be had.
        PluginError: If a plugin fails in another way.
    """
    if needs_encoders(plan, slides):
        for encoder in plan.encoders:
            encoder.ensure_loaded()
    if any(lacks_embeddings(plan, ref.slide_id) for ref in slides):
        for model in plan.slide_encoders:
            model.ensure_loaded()


def load_for_patients(plan: RunPlan, patient_ids: Sequence[str]) -> None:
    """Load the patient encoders that some patient has no embedding by, and what they embed with.

    Patients come last: a missing file is not to be told after days of slides.

    Raises:
        EncoderError: If weights cannot be had.
        PluginError: If a plugin fails in another way.
    """
    for planned in plan.patient_encoders:
        key = f"patient_features/{planned.name}"
        if any(_lacks_patient(plan, patient_id, key) for patient_id in patient_ids):
            if planned.embedder is not None:
                planned.embedder.ensure_loaded()
            planned.ensure_loaded()


def _lacks_patient(plan: RunPlan, patient_id: str, key: str) -> bool:
    for store in plan.stores:
        path = plan.layout.patient(store.spec, patient_id)
        if plan.config.force or not path.exists():
            return True
        with suppress(StoreError), store.writer.open_stored(path) as stored:
            if key not in array_names(stored):
                return True
    return False


def needs_encoders(plan: RunPlan, slides: Sequence[SlideRef]) -> bool:
    """Tell whether any slide has not all the features that a run asks for."""
    return bool(plan.encoders) and any(lacks_features(plan, ref.slide_id) for ref in slides)


def lacks_embeddings(plan: RunPlan, slide_id: str) -> bool:
    """Tell whether a slide has not all the embeddings that a run asks for."""
    latents = plan.config.latents
    wanted = {key for each in plan.slide_encoders for key in array_keys(each, latents=latents)}
    for store in plan.stores if wanted else ():
        path = plan.layout.slide(store.spec, slide_id)
        if plan.config.force or not path.exists():
            return True
        with suppress(StoreError), store.writer.open_stored(path) as stored:
            if len(stored.coords) and wanted - set(array_names(stored)):
                return True
    return False


def lacks_features(plan: RunPlan, slide_id: str) -> bool:
    """Tell whether a slide has not all the features that a run asks for."""
    wanted = {encoder.name for encoder in plan.encoders}
    for store in plan.stores:
        path = plan.layout.slide(store.spec, slide_id)
        if plan.config.force or not path.exists():
            return True
        with (
            suppress(StoreError),
            store.writer.open_stored(path) as stored,
        ):  # told when its turn comes
            if wanted - set(stored.feature_names()):
                return True
    return False
