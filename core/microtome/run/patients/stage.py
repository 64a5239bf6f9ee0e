"""The patient stage: after all slides of a pass, one embedding a patient and patient encoder.

What a patient's embedding depends on are the identities of what it was made of. With another slide
more, or one that was computed anew, it is another embedding: it is then made again and takes the
place of the old one, without ``force``. One of fewer slides never does, nor does what another
patient encoder made under the same key: that is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from microtome.errors import MicrotomeError, OutputError
from microtome.run.patients.patients import Patient, PatientStatus, claims_layout
from microtome.run.patients.work import HeldError, PatientWork
from microtome.store.claims import Claim, Claims

if TYPE_CHECKING:
    from microtome.run.planning.plan import RunPlan
    from microtome.run.progress import Reporter
    from microtome.store.status import SlideStatus

_POLL = 1.0
"""Seconds between two looks at patients that other workers hold."""


def embed_patients(
    plan: RunPlan,
    patients: Sequence[Patient],
    statuses: Sequence[SlideStatus],
    reporter: Reporter,
) -> Iterator[PatientStatus]:
    """Embed each patient whose slides are finished, and publish it.

    Whatever goes wrong with a patient ends in a status that says so; the others go on. A patient
    that another worker embeds at this moment comes after the others.

    Args:
        plan: The resolved run.
        patients: From `find_patients`.
        statuses: Of the slides.
        reporter: Told of each patient.

    Raises:
        OutputError: If the output takes nothing more, whatever the patient.
    """
    by_source = {status.path: status for status in statuses}
    for patient, claim in _claimed(plan, patients):
        try:
            status = _embed(plan, patient, by_source, is_held=claim is None)
        finally:
            if claim is not None:
                claim.end()
        reporter.note(str(status))
        yield status


def _claimed(plan: RunPlan, patients: Sequence[Patient]) -> Iterator[tuple[Patient, Claim | None]]:
    """Give each patient with its claim, or with none where another worker keeps it."""
    settings = plan.config.claims
    claims = Claims(claims_layout(plan.layout), settings.seconds)
    waiting = list(patients)
    while waiting:
        held = []
        for patient in waiting:
            claim = claims.take(patient.patient_id)
            if claim is None and settings.wait:
                held.append(patient)
            else:
                yield patient, claim
        if len(held) == len(waiting):
            time.sleep(_POLL)
        waiting = held


def _embed(
    plan: RunPlan, patient: Patient, statuses: Mapping[str, SlideStatus], *, is_held: bool
) -> PatientStatus:
    """Embed a patient by one encoder after the other: what fails keeps none from its embedding."""
    began = time.monotonic()
    works = [PatientWork(plan, patient, each, statuses) for each in plan.patient_encoders]
    errors: list[dict[str, str]] = []
    for work in works:
        try:
            if is_held:
                raise HeldError("another worker embeds it; the same command looks at it again.")
            work.run()
        except OutputError:
            raise
        except Exception as caught:  # noqa: BLE001 - one bad patient never stops the others
            kind, text = type(caught).__name__, str(caught)
            said = text if isinstance(caught, MicrotomeError) else f"{kind}: {text}"
            errors.append({"type": kind, "message": said})
    return _status(plan, patient, works, errors, time.monotonic() - began)


def _status(
    plan: RunPlan,
    patient: Patient,
    works: Sequence[PatientWork],
    errors: Sequence[Mapping[str, str]],
    seconds: float,
) -> PatientStatus:
    """Say what became of a patient over all its encoders."""
    state = "done" if any(work.wrote for work in works) else "reused"
    if errors:
        state = "held" if errors[0]["type"] == HeldError.__name__ else "failed"
    paths = {s.name: plan.layout.patient(s.spec, patient.patient_id) for s in plan.stores}
    told = [text for work in works for text in work.warnings]
    told += [error["message"] for error in errors[1:]]
    return PatientStatus(
        patient_id=patient.patient_id,
        state=state,
        slides=tuple(
            ref.slide_id for ref in patient.slides if all(ref in work.slides for work in works)
        ),
        left_out={name: why for work in works for name, why in work.left_out.items()},
        encoders=tuple(work.planned.name for work in works),
        error=errors[0] if errors else None,
        outputs={key: plan.layout.relative(path) for key, path in paths.items() if path.exists()},
        identities={work.planned.name: work.digest for work in works if work.digest},
        warnings=tuple(dict.fromkeys(told)),
        seconds=round(seconds, 3),
    )
