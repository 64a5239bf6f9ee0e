"""One patient by one encoder: which slides, what of each, and what is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome._version import __version__
from microtome.errors import (
    IdentityError,
    InputError,
    MicrotomeError,
    StoreError,
    naming_encoder,
)
from microtome.run.patients.patients import Patient
from microtome.run.patients.stored import is_stored
from microtome.run.planning.models import PlannedPatientEncoder
from microtome.run.planning.writers import PlannedStore
from microtome.run.slides.attributes import embedding_attributes
from microtome.run.slides.bagging import (
    check_array,
    check_bag,
    make_bag,
    refuse_large,
    refuse_patient,
)
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
    """Another worker has the patient, or a slide of it."""


class PatientWork:
    """The work on one patient by one encoder.

    Args:
        plan: The resolved run.
        patient: Whose slides.
        planned: The encoder.
        statuses: Of slides, by what they are called.

    Attributes:
        planned: The encoder.
        slides: What the embedding is of.
        left_out: Why the others are not in it, by id.
        digest: Of the embedding's identity, once it is stored.
        warnings: Sentences for the user.
        wrote: Whether anything was computed.
    """

    def __init__(
        self,
        plan: RunPlan,
        patient: Patient,
        planned: PlannedPatientEncoder,
        statuses: Mapping[str, SlideStatus],
    ) -> None:
        self.planned = planned
        self.slides: list[SlideRef] = []
        self.left_out: dict[str, str] = {}
        self.digest = ""
        self.warnings: list[str] = []
        self.wrote = False
        self._plan, self._patient, self._statuses = plan, patient, statuses

    def run(self) -> None:
        """Choose the slides, and embed them if some store lacks their embedding.

        Raises:
            MicrotomeError: If the patient cannot be embedded.
        """
        self._choose()
        identity = self._identity()
        lacking = [s for s in self._plan.stores if not self._has(s, identity)]
        if lacking:
            found = self._embed(identity)
            for store in lacking:
                self._publish(store, found)
            self.wrote = True
        self.digest = identity.digest

    def _choose(self) -> None:
        """Leave out slides that failed or are empty, unless that is fatal.

        One that failed is taken all the same where what the encoder takes of it is there, from
        this run or an earlier one.

        Raises:
            MicrotomeError: If none is left, one is held, or one failed and that is fatal.
        """
        failed = []
        for ref in self._patient.slides:
            status = self._statuses.get(ref.source)
            if status is None or status.state == "held":
                raise HeldError(
                    f"another worker has its slide {ref.slide_id}; the same command embeds the "
                    "patient when that is done."
                )
            if status.state in _FINISHED or is_stored(self._plan, self.planned, ref, status):
                self.slides.append(ref)
                continue
            is_empty = status.state == "empty"
            why = "it has no tile" if is_empty else status.message
            self.left_out[ref.slide_id] = why.rstrip(".")
            failed += [] if is_empty else [ref.slide_id]
        if failed and self._plan.config.patient_failures == "fail":
            why = self.left_out[failed[0]]
            raise InputError(
                f"its slide {failed[0]} failed ({why}). patient_failures=leave_out embeds the "
                f"patient without it.{self._what_stays()}"
            )
        if not self.slides:
            told = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            raise InputError(f"none of its slides has an embedding ({told}).")

    def _what_stays(self) -> str:
        """Say what embedding an earlier run left, which this one does not replace."""
        for store in (s for s in self._plan.stores if self._path(s).exists()):
            path = self._path(store)
            with suppress(StoreError), store.writer.open_stored(path) as stored:
                if self._key in array_names(stored):
                    count = len(json.loads(stored.array_attributes(self._key)["slides"]))
                    return (
                        f" {self._key} in {path}, which an earlier run made of {count} of its "
                        f"{len(self._patient.slides)} slides, stays: delete it if it must not be "
                        "used."
                    )
        return ""

    def _identity(self) -> Identity:
        planned = self.planned
        fields = {
            "patient_encoder": dict(planned.fields),
            "slides": [self._made_of(ref) for ref in self.slides],
            "contract": [dict(promise) for promise in planned.contract],
            "versions": {"bag": BAG_VERSION},
        }
        return make_identity(_GROUP, fields)

    def _made_of(self, ref: SlideRef) -> Any:
        """Give the identities of what a slide contributes."""
        planned = self.planned
        with self._open(ref) as stored:
            if planned.embeddings:
                return stored.array_attributes(_embedding(planned))["identity"]
            return {
                key: stored.feature_attributes(name)["identity"]
                for key, name in planned.reads.items()
            }

    def _has(self, store: PlannedStore, wanted: Identity) -> bool:
        """Tell whether a store has this very embedding.

        Raises:
            IdentityError: If it has one by another encoder or another configuration, or of slides
                that this run has not.
        """
        path, key = self._path(store), self._key
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
        self._refuse_loss(path, there, wanted)
        name = self.planned.name
        self.warnings.append(f"{name} was made anew: its slides are others than before")
        return False

    def _refuse_loss(self, path: Path, there: Mapping[str, Any], wanted: Identity) -> None:
        """Refuse to replace an embedding by one that lacks a slide, whatever it is called now."""
        made_of = parse_fields(there).get("slides", [])
        ids = {ref.slide_id for ref in self.slides}
        lost = [
            name
            for name, made in zip(json.loads(there["slides"]), made_of, strict=True)
            if name not in ids and made not in wanted.fields["slides"]
        ]
        if lost:
            why = self.left_out.get(lost[0], "this run does not have it")
            raise IdentityError(
                f"{self._key} in {path} is of {len(made_of)} slides, and would lose {lost[0]} "
                f"({why}). It was left as it is: run the patient with all its slides, or replace "
                "it with force=true."
            )

    def _embed(self, identity: Identity) -> FeatureSet:
        planned = self.planned
        if planned.embedder is not None:
            planned.embedder.ensure_loaded()
        planned.ensure_loaded()
        bag = self._of_slides() if planned.embeddings else self._of_tiles()
        made = planned.made
        with naming_encoder(made.choice.name, made.spec.name, planned.kind):
            output = planned.model.encode(bag)
        dim = planned.card.dim if planned.card is not None else np.shape(output)[-1]
        array = check_array(planned, _GROUP, output, (dim,))
        self.warnings += getattr(planned.model, "notes", ())
        told = embedding_attributes(planned, identity) | self._told()
        return FeatureSet(ArraySource(array), told)

    def _told(self) -> dict[str, Any]:
        planned, first = self.planned, self._plan.stores[0]
        places = [self._plan.layout.slide(first.spec, ref.slide_id) for ref in self.slides]
        return {
            "patient_id": self._patient.patient_id,
            "num_slides": len(self.slides),
            "slides": [ref.slide_id for ref in self.slides],
            "left_out": dict(self.left_out),
            "source_patch_encoder": ", ".join(planned.reads.values()),
            "source_slide_encoder": planned.embeddings,
            "source_slide_paths": [self._plan.layout.relative(path) for path in places],
        }

    def _of_slides(self) -> PatientBag:
        rows = []
        for ref in self.slides:
            with self._open(ref) as stored:
                rows.append(np.asarray(stored.array(_embedding(self.planned))))
        return self._bag(slide_embeddings=np.stack(rows))

    def _of_tiles(self) -> PatientBag:
        self._refuse_large()
        embedder = self.planned.embedder
        bags = tuple(self._tiles(ref) for ref in self.slides)

        def embed(bag: TileBag) -> SlideOutput:
            if embedder is None:
                raise StoreError(f"{self.planned.name} names no slide encoder, and asks for one.")
            row_bytes = sum(features[0].nbytes for features in bag.features.values())
            cap = self._plan.config.bag_memory_gb
            refuse_large(embedder, len(bag), bag.extent, row_bytes=row_bytes, cap=cap)
            return encode(embedder, bag)

        return self._bag(slides=bags, embed=None if embedder is None else embed)

    def _tiles(self, ref: SlideRef) -> TileBag:
        planned = self.planned
        with self._open(ref) as stored:
            features: dict[str, NDArray[Any]] = {
                key: np.asarray(stored.features(name)) for key, name in planned.reads.items()
            }
            bag = make_bag(ref.slide_id, stored.coords, features, stored.attributes)
        for model in filter(None, (planned, planned.embedder)):
            self.warnings += check_bag(model, bag)
        return bag

    def _refuse_large(self) -> None:
        """Refuse a patient that the encoder has no memory for, before the tiles are read."""
        sizes, read = [], 0
        for ref in self.slides:
            with self._open(ref) as stored:
                bag = make_bag(ref.slide_id, stored.coords, {}, stored.attributes)
                columns = sum(stored.feature_shape(n)[1] for n in self.planned.reads.values())
            sizes.append((len(bag), bag.extent))
            read += 4 * len(bag) * columns
        refuse_patient(self.planned, sizes, read, cap=self._plan.config.bag_memory_gb)

    def _bag(self, **more: Any) -> PatientBag:
        ids = tuple(ref.slide_id for ref in self.slides)
        return PatientBag(patient_id=self._patient.patient_id, slide_ids=ids, **more)

    def _open(self, ref: SlideRef) -> StoredSlide:
        store = self._plan.stores[0]
        return store.writer.open_stored(self._plan.layout.slide(store.spec, ref.slide_id))

    @property
    def _key(self) -> str:
        return f"{_GROUP}/{self.planned.name}"

    def _path(self, store: PlannedStore) -> Path:
        return self._plan.layout.patient(store.spec, self._patient.patient_id)

    def _publish(self, store: PlannedStore, found: FeatureSet) -> None:
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
            coords=np.empty((0, 5), np.int32), attributes=attributes, arrays={self._key: found}
        )
        publish_slide(path, store.writer, store.spec, content, force=path.exists())


def _embedding(planned: PlannedPatientEncoder) -> str:
    return f"slide_features/{planned.embeddings}"
