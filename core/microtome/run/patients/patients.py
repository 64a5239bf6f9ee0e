"""Patients of a run: whose slides are whose, and how each patient ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microtome.errors import InputError, one_line
from microtome.run.progress import duration
from microtome.slide.types import SlideRef

if TYPE_CHECKING:
    from microtome.run.inputs.finding import SlideList
    from microtome.run.planning.plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class PatientStatus:
    """How one patient ended in one run.

    Attributes:
        patient_id: The patient.
        state: ``"done"``, ``"reused"``, ``"failed"``, or ``"held"`` for one with a slide that
            another worker has.
        slides: Ids of the slides that the embedding is of, in the order of the input.
        left_out: Why the others are not in it, by id.
        encoders: Names of the embeddings.
        error: ``{"type": …, "message": …}`` of a failed patient.
        outputs: Paths below the output folder, by writer.
        identities: Digests by name of the embedding.
        warnings: Sentences for the user.
        seconds: Wall time.
    """

    patient_id: str
    state: str
    slides: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    encoders: tuple[str, ...] = ()
    error: Mapping[str, str] | None = None
    outputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    identities: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Give it as plain values, as the run record holds it."""
        plain = {name: dict(v) if isinstance(v, Mapping) else v for name, v in vars(self).items()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}

    def __str__(self) -> str:
        """Say in one line what became of the patient."""
        if self.error is not None:
            return one_line(f"patient {self.patient_id}: {self.state}: {self.error['message']}")
        count = f"{len(self.slides)} slide{'s' if len(self.slides) != 1 else ''}"
        told = [f"without {name}: {why}" for name, why in self.left_out.items()]
        more = f" ({'; '.join([*told, *self.warnings])})" if told or self.warnings else ""
        line = f"patient {self.patient_id}: {self.state}, {count} in {duration(self.seconds)}{more}"
        return one_line(line)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient of a run: the slides, in the order of the input."""

    patient_id: str
    slides: tuple[SlideRef, ...]


def find_patients(plan: RunPlan, slides: SlideList) -> list[Patient]:
    """Group a run's slides by patient, in order of first appearance.

    Raises:
        InputError: If a slide has no patient.
        ConfigError: If a patient's id cannot name a file.
    """
    if not plan.patient_encoders:
        return []
    lost = [ref for ref in slides.slides if not ref.patient_id]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(
            f"Whose slide is {lost[0].source}{more}? A patient encoder needs it: name the slides "
            "in a CSV manifest with the columns slide and patient_id (or case_id)."
        )
    refs = [*slides.slides, *(refused.slide for refused in slides.refused)]
    known = dict.fromkeys([*slides.patients, *(ref.patient_id for ref in refs)])
    grouped: dict[str, list[SlideRef]] = {name: [] for name in known if name}
    for ref in refs:
        if ref.patient_id:
            grouped[ref.patient_id].append(ref)
    for name in grouped:
        for store in plan.stores:
            plan.layout.patient(store.spec, name)
    return [Patient(patient_id=n, slides=tuple(found)) for n, found in grouped.items() if found]
