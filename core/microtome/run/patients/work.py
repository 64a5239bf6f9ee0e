"""The work on one patient: which slides, what of each, and what is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import InputError, MicrotomeError, StoreError, naming_encoder
from microtome.run.patients.patients import Patient, PatientStatus
from microtome.run.planning.models import PlannedPatientEncoder
from microtome.run.planning.writers import PlannedStore
from microtome.run.slides.attributes import embedding_attributes
from microtome.run.slides.bagging import check_array, check_bag, make_bag, refuse_large
from microtome.run.slides.embedding import encode
from microtome.run.slides.identities import BAG_VERSION, refuse_difference
from microtome.slide.bags import PatientBag, TileBag
from microtome.slide.types import SlideRef
from microtome.store.arrays import array_names
from microtome.store.attributes import parse_fields
from microtome.store.identity import Identity, make_identity
from microtome.store.publish import ArraySource, FeatureSet, SlideContent, publish_slide

if TYPE_CHECKING:
    from microtome.plugin.protocols import SlideOutput, StoredSlide
    from microtome.run.planning.plan import RunPlan
    from microtome.store.status import SlideStatus

_GROUP = "patient_features"
_FINISHED = ("done", "reused")


class HeldError(MicrotomeError):
    """Another worker has a slide of the patient."""


class PatientWork:
    """The work on one patient.

    Args:
        plan: The resolved run.
        patient: Whose slides.
        statuses: Of slides, by id.
    """

    def __init__(
        self, plan: RunPlan, patient: Patient, statuses: Mapping[str, SlideStatus]
    ) -> None:
        self._plan, self._patient, self._statuses = plan, patient, statuses
        self._slides: list[SlideRef] = []
        self._left_out: dict[str, str] = {}
        self._identities: dict[str, str] = {}
        self._warnings: list[str] = []
        self._wrote = False

    def run(self) -> None:
        """Choose the slides, and embed them by every encoder whose embedding some store lacks.

        Raises:
            MicrotomeError: If the patient cannot be embedded.
        """
        self._choose()
        for planned in self._plan.patient_encoders:
            identity = self._identity(planned)
            self._identities[planned.name] = identity.digest
            lacking = [s for s in self._plan.stores if not self._has(s, planned, identity)]
            if lacking:
                found = self._embed(planned, identity)
                for store in lacking:
                    self._publish(store, f"{_GROUP}/{planned.name}", found)
                self._wrote = True

    def status(self, error: Mapping[str, str] | None, seconds: float) -> PatientStatus:
        """Say what became of the patient."""
        plan, name = self._plan, self._patient.patient_id
        state = "done" if self._wrote else "reused"
        if error is not None:
            state = "held" if error["type"] == HeldError.__name__ else "failed"
        paths = {s.name: plan.layout.patient(s.spec, name) for s in plan.stores}
        there = {key: plan.layout.relative(path) for key, path in paths.items() if path.exists()}
        return PatientStatus(
            patient_id=name,
            state=state,
            slides=tuple(ref.slide_id for ref in self._slides),
            left_out=dict(self._left_out),
            encoders=tuple(planned.name for planned in plan.patient_encoders),
            error=error,
            outputs=there,
            identities=dict(self._identities) if error is None else {},
            warnings=tuple(dict.fromkeys(self._warnings)),
            seconds=round(seconds, 3),
        )

    def _choose(self) -> None:
        """Leave out slides that failed or are empty, unless that is fatal.

        Raises:
            MicrotomeError: If none is left, one is held, or one failed and that is fatal.
        """
        failed = []
        for ref in self._patient.slides:
            status = self._statuses.get(ref.slide_id)
            if status is None or status.state == "held":
                raise HeldError(
                    f"another worker has its slide {ref.slide_id}; the same command embeds the "
                    "patient when that is done."
                )
            if status.state in _FINISHED:
                self._slides.append(ref)
                continue
            is_empty = status.state == "empty"
            why = "it has no tile" if is_empty else status.message
            self._left_out[ref.slide_id] = why.rstrip(".")
            failed += [] if is_empty else [ref.slide_id]
        if failed and self._plan.config.patient_failures == "fail":
            why = self._left_out[failed[0]]
            raise InputError(
                f"its slide {failed[0]} failed ({why}). patient_failures=leave_out embeds the "
                "patient without it."
            )
        if not self._slides:
            told = "; ".join(f"{name}: {why}" for name, why in self._left_out.items())
            raise InputError(f"none of its slides has an embedding ({told}).")

    def _identity(self, planned: PlannedPatientEncoder) -> Identity:
        fields = {
            "patient_encoder": dict(planned.fields),
            "slides": [self._made_of(planned, ref) for ref in self._slides],
            "contract": [dict(promise) for promise in planned.contract],
            "versions": {"bag": BAG_VERSION},
        }
        return make_identity(_GROUP, fields)

    def _made_of(self, planned: PlannedPatientEncoder, ref: SlideRef) -> Any:
        """Give the identities of what a slide contributes."""
        with self._open(ref) as stored:
            if planned.embeddings:
                return stored.array_attributes(_embedding(planned))["identity"]
            return {
                key: stored.feature_attributes(name)["identity"]
                for key, name in planned.reads.items()
            }

    def _has(self, store: PlannedStore, planned: PlannedPatientEncoder, wanted: Identity) -> bool:
        """Tell whether a store has this very embedding.

        Raises:
            IdentityError: If it has one by another encoder or another configuration.
        """
        path, key = self._path(store), f"{_GROUP}/{planned.name}"
        if self._plan.config.force or not path.exists():
            return False
        with store.writer.open_stored(path) as stored:
            if key not in array_names(stored):
                return False
            there = stored.array_attributes(key)
        if there.get("identity") == wanted.digest:
            return True
        by, own = (f.get("patient_encoder") for f in (parse_fields(there), wanted.fields))
        if by != own:
            refuse_difference(
                f"{key} in {path}",
                there,
                wanted,
                apart="a patient encoder key (+patient_encoder@patient_encoder.KEY=NAME)",
            )
        self._warnings.append(f"{planned.name} was made anew: its slides are others than before")
        return False

    def _embed(self, planned: PlannedPatientEncoder, identity: Identity) -> FeatureSet:
        if planned.embedder is not None:
            planned.embedder.ensure_loaded()
        planned.ensure_loaded()
        bag = self._of_slides(planned) if planned.embeddings else self._of_tiles(planned)
        made = planned.made
        with naming_encoder(made.choice.name, made.spec.name, planned.kind):
            output = planned.model.encode(bag)
        dim = planned.card.dim if planned.card is not None else np.shape(output)[-1]
        array = check_array(planned, _GROUP, output, (dim,))
        self._warnings += getattr(planned.model, "notes", ())
        return FeatureSet(
            ArraySource(array), embedding_attributes(planned, identity) | self._told(planned)
        )

    def _told(self, planned: PlannedPatientEncoder) -> dict[str, Any]:
        first = self._plan.stores[0]
        places = [self._plan.layout.slide(first.spec, ref.slide_id) for ref in self._slides]
        return {
            "patient_id": self._patient.patient_id,
            "num_slides": len(self._slides),
            "slides": [ref.slide_id for ref in self._slides],
            "left_out": dict(self._left_out),
            "source_patch_encoder": ", ".join(planned.reads.values()),
            "source_slide_encoder": planned.embeddings,
            "source_slide_paths": [self._plan.layout.relative(path) for path in places],
        }

    def _of_slides(self, planned: PlannedPatientEncoder) -> PatientBag:
        rows = []
        for ref in self._slides:
            with self._open(ref) as stored:
                rows.append(np.asarray(stored.array(_embedding(planned))))
        return self._bag(slide_embeddings=np.stack(rows))

    def _of_tiles(self, planned: PlannedPatientEncoder) -> PatientBag:
        self._refuse_large(planned)
        embedder = planned.embedder
        bags = tuple(self._tiles(planned, ref) for ref in self._slides)

        def embed(bag: TileBag) -> SlideOutput:
            if embedder is None:
                raise StoreError(f"{planned.name} names no slide encoder, and asks for one.")
            return encode(embedder, bag)

        return self._bag(slides=bags, embed=None if embedder is None else embed)

    def _tiles(self, planned: PlannedPatientEncoder, ref: SlideRef) -> TileBag:
        with self._open(ref) as stored:
            features: dict[str, NDArray[Any]] = {
                key: np.asarray(stored.features(name)) for key, name in planned.reads.items()
            }
            bag = make_bag(ref.slide_id, stored.coords, features, stored.attributes)
        for model in filter(None, (planned, planned.embedder)):
            self._warnings += check_bag(model, bag)
        return bag

    def _refuse_large(self, planned: PlannedPatientEncoder) -> None:
        """Refuse a patient whose tiles a model has no memory for, before they are read."""
        tiles = columns = rows = 0
        row_bytes = 0
        for ref in self._slides:
            with self._open(ref) as stored:
                bag = make_bag(ref.slide_id, stored.coords, {}, stored.attributes)
                read = planned.reads.values()
                row_bytes = sum(4 * stored.feature_shape(name)[1] for name in read)
            tiles, columns = tiles + len(bag), columns + bag.extent[0]
            rows = max(rows, bag.extent[1])
        cap = self._plan.config.bag_memory_gb
        for model in filter(None, (planned, planned.embedder)):
            refuse_large(model, tiles, (columns, rows), row_bytes=row_bytes, cap=cap)

    def _bag(self, **more: Any) -> PatientBag:
        ids = tuple(ref.slide_id for ref in self._slides)
        return PatientBag(patient_id=self._patient.patient_id, slide_ids=ids, **more)

    def _open(self, ref: SlideRef) -> StoredSlide:
        store = self._plan.stores[0]
        return store.writer.open_stored(self._plan.layout.slide(store.spec, ref.slide_id))

    def _path(self, store: PlannedStore) -> Path:
        return self._plan.layout.patient(store.spec, self._patient.patient_id)

    def _publish(self, store: PlannedStore, key: str, found: FeatureSet) -> None:
        """Publish a new patient's file, or put an embedding into the one that is there."""
        path = self._path(store)
        identity = make_identity("patient", {"patient": self._patient.patient_id})
        attributes = {
            "patient_id": self._patient.patient_id,
            "num_patches": 0,
            "writer": store.fields,
            "microtome_version": __version__,
            **identity.attributes(),
        }
        content = SlideContent(
            coords=np.empty((0, 5), np.int32), attributes=attributes, arrays={key: found}
        )
        publish_slide(path, store.writer, store.spec, content, force=path.exists())


def _embedding(planned: PlannedPatientEncoder) -> str:
    return f"slide_features/{planned.embeddings}"
