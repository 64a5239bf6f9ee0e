"""Patients of a run: whose slides are whose, and how each patient ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from microtome.errors import InputError, one_line
from microtome.run.progress import duration
from microtome.slide.types import SlideRef
from microtome.store.layout import OutputLayout

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
        slides: Ids of the slides that every embedding is of, sorted.
        left_out: Why the others are not in some embedding or other, by id.
        encoders: Names of the embeddings.
        error: ``{"type": …, "message": …}`` of a failed patient; what encoders made of it that did
            not fail is stored all the same.
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
        told = [f"without {', '.join(self.left_out)}"] if self.left_out else []
        more = f" ({'; '.join([*told, *self.warnings])})" if told or self.warnings else ""
        line = f"patient {self.patient_id}: {self.state}, {count} in {duration(self.seconds)}{more}"
        return one_line(line)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient of a run: the slides, sorted by id.

    Rows of a manifest are in some order or other; to an encoder that sees one it must not matter.
    """

    patient_id: str
    slides: tuple[SlideRef, ...]


def claims_layout(layout: OutputLayout) -> OutputLayout:
    """Give the layout whose claims are those on patients, apart from those on slides."""
    return OutputLayout(layout.output, layout.relative(layout.patients_folder))


def find_patients(plan: RunPlan, slides: SlideList) -> list[Patient]:
    """Group a run's slides by patient, if it has a patient encoder.

    Raises:
        InputError: If a slide has no patient.
        ConfigError: If a patient's id cannot name a file.
    """
    found = group_patients(slides) if plan.patient_encoders else []
    for patient in found:
        for store in plan.stores:
            plan.layout.patient(store.spec, patient.patient_id)
    return found


def group_patients(slides: SlideList) -> list[Patient]:
    """Group slides by patient, in order of first appearance.

    Raises:
        InputError: If a slide has no patient.
    """
    lost = [ref for ref in slides.slides if not ref.patient_id]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(
            f"Whose slide is {lost[0].source}{more}? A patient encoder needs it: name the slides "
            "in a CSV manifest with the columns slide and patient_id (or case_id)."
        )
    place = {source: number for number, source in enumerate(slides.order)}
    refs = [*slides.slides, *(refused.slide for refused in slides.refused)]
    grouped: dict[str, list[SlideRef]] = {}
    for ref in sorted(refs, key=lambda ref: place[ref.source]):
        if ref.patient_id:
            grouped.setdefault(ref.patient_id, []).append(ref)
    return [
        Patient(patient_id=name, slides=tuple(sorted(found, key=lambda ref: ref.slide_id)))
        for name, found in grouped.items()
    ]
