"""MOOZY (Kotp et al. 2026) of a patient: its transformer over the slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.errors import EncoderError
from microtome.slide.bags import PatientBag
from microtome_encoders.slide.moozy import Moozy


class MoozyPatientEncoder(Moozy):
    """A patient as the case token over the class tokens of the slides."""

    def memory(self, slides: Sequence[tuple[int, tuple[int, int]]]) -> int:
        """Estimate the bytes of attention over the largest slide: they go in one by one.

        Args:
            slides: Tiles of each, and the (columns, rows) of their bounding box.
        """
        return max((self.attention_bytes(tiles) for tiles, _ in slides), default=0)

    def encode(self, patient: PatientBag) -> NDArray[np.float32]:
        """Encode a patient with one slide at least.

        Returns:
            (768,) float32.

        Raises:
            EncoderError: If the encoder is not loaded, there is no slide with tiles, memory is
                short, or the output is not what the card says.
        """
        model = self._loaded()
        slides = [slide for slide in patient.slides if len(slide)]
        if not slides:
            raise EncoderError(f"No slide of the patient {patient.patient_id} has a tile.")
        with self.computing(patient.patient_id):
            tokens = [self.class_token(model, slide) for slide in slides]
            return self.array(self.case_token(model, torch.cat(tokens)), (self.card.dim,))
