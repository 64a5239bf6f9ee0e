"""The patient stage: after all slides of a pass, one embedding a patient and patient encoder.

What a patient's embedding depends on are the identities of what it was made of. With another slide,
or one that was computed anew, it is another embedding: it is then made again and takes the place of
the old one, without ``force``. What another patient encoder made under the same key is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from microtome.errors import MicrotomeError, OutputError
from microtome.run.patients.patients import Patient, PatientStatus
from microtome.run.patients.work import PatientWork

if TYPE_CHECKING:
    from microtome.run.planning.plan import RunPlan
    from microtome.run.progress import Reporter
    from microtome.store.status import SlideStatus


def embed_patients(
    plan: RunPlan,
    patients: Sequence[Patient],
    statuses: Sequence[SlideStatus],
    reporter: Reporter,
) -> Iterator[PatientStatus]:
    """Embed each patient whose slides are finished, and publish it.

    Whatever goes wrong with a patient ends in a status that says so; the others go on.

    Args:
        plan: The resolved run.
        patients: From `find_patients`.
        statuses: Of the slides.
        reporter: Told of each patient.

    Raises:
        OutputError: If the output takes nothing more, whatever the patient.
    """
    by_id = {status.slide_id: status for status in statuses}
    for patient in patients:
        began = time.monotonic()
        work = PatientWork(plan, patient, by_id)
        try:
            work.run()
            error = None
        except OutputError:
            raise
        except Exception as caught:  # noqa: BLE001 - one bad patient never stops the others
            kind, text = type(caught).__name__, str(caught)
            said = text if isinstance(caught, MicrotomeError) else f"{kind}: {text}"
            error = {"type": kind, "message": said}
        status = work.status(error, time.monotonic() - began)
        reporter.note(str(status))
        yield status
