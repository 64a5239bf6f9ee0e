"""Embed patients: all slides of each, by a manifest that says whose slide is whose.

`microtome encode-patients manifest.csv output=out patient_encoder=moozy` computes what the patient
encoder needs of every slide, and writes patient_embeddings/PATIENT.h5. The manifest is a CSV with
the columns slide and patient_id (or slide_path and case_id), and mpp and mask_path if wanted. A
patient with a failed slide is embedded without it, which is told; patient_failures=fail has the
patient fail. It is the run without the verb, which is printed; every KEY=VALUE of a run may follow.
"""

from __future__ import annotations

from microtome.commands._runs import run_with


def main(argv: list[str]) -> int:
    """Translate, print and run.

    Returns:
        The run's exit code.
    """
    return run_with("encode-patients", "patient_encoder", __doc__, argv)
