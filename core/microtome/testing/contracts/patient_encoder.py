"""What a patient encoder promises."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from microtome.plugin.protocols import SlideOutput
from microtome.plugin.registry import Registered
from microtome.plugin.specs import PatientEncoderSpec
from microtome.slide.bags import PatientBag, TileBag
from microtome.testing.bags import make_bag
from microtome.testing.contracts.slide_encoder import BagEncoderContract


class PatientEncoderContract(BagEncoderContract):
    """Subclass it for a patient encoder; one with weights says ``options = {"weights": …}``.

    Attributes:
        dim: Columns of the features or embeddings that it is given, where it does not say.
    """

    kind: ClassVar[str] = "patient_encoder"
    dim: ClassVar[int] = 8

    def patient_of(self, encoder: Any, entry: Registered, slides: int, *, seed: int) -> PatientBag:
        """Make a patient with so many slides, of the kind that it takes.

        ``embed``, where it names a slide encoder, is the mean of the tiles.
        """
        ids = tuple(f"slide-{seed + number}" for number in range(slides))
        spec = entry.spec
        assert isinstance(spec, PatientEncoderSpec)
        if spec.takes == "slides":
            rng = np.random.default_rng(seed)
            embeddings = rng.standard_normal((slides, self.dim)).astype(np.float32)
            return PatientBag(patient_id="P", slide_ids=ids, slide_embeddings=embeddings)
        needs = self.needs_of(encoder, entry)
        named = getattr(encoder, "slide_encoder", "") or spec.slide_encoder
        bags = tuple(make_bag(needs, seed=seed + n, dim=self.dim) for n in range(slides))
        embed = _mean if named else None
        return PatientBag(patient_id="P", slide_ids=ids, slides=bags, embed=embed)

    def test_it_says_what_it_takes(self, entry: Registered) -> None:
        """Tiles of all slides, or the slides' embeddings."""
        assert isinstance(entry.spec, PatientEncoderSpec)
        assert entry.spec.takes in ("tiles", "slides")

    @pytest.mark.parametrize("slides", [1, 3])
    def test_its_embedding_is_what_the_card_says(
        self, encoder: Any, entry: Registered, slides: int
    ) -> None:
        """(dim,), floating point and finite, of one slide as of several."""
        embedding = self._embed(encoder, entry, slides)
        card = getattr(encoder, "card", None) or getattr(entry.spec, "card", None)
        assert embedding.ndim == 1
        assert card is None or embedding.shape == (card.dim,)
        assert np.issubdtype(embedding.dtype, np.floating)
        assert np.isfinite(embedding).all()

    def test_it_gives_the_same_again(self, encoder: Any, entry: Registered) -> None:
        """Bit for bit."""
        first = self._embed(encoder, entry, 2)
        assert np.array_equal(self._embed(encoder, entry, 2), first)

    def test_every_slide_counts(self, encoder: Any, entry: Registered) -> None:
        """A patient's embedding is of all slides, and of no other patient's."""
        assert not np.array_equal(self._embed(encoder, entry, 2), self._embed(encoder, entry, 3))
        other = self._embed(encoder, entry, 2, seed=7)
        assert not np.array_equal(self._embed(encoder, entry, 2), other)

    def _embed(self, encoder: Any, entry: Registered, slides: int, seed: int = 0) -> NDArray[Any]:
        patient = self.patient_of(encoder, entry, slides, seed=seed)
        return np.array(encoder.encode(patient))


def _mean(bag: TileBag) -> SlideOutput:
    return SlideOutput(embedding=bag.only.mean(0, dtype=np.float64))
