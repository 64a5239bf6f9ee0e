"""Stand-ins for slide and patient encoders, each with one property worth a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from microtome.plugin import (
    EncoderCard,
    PatientEncoderSpec,
    SlideEncoderSpec,
    TileNeed,
    hookimpl,
    option,
)
from microtome.plugin.protocols import SlideOutput

PHYSICAL = TileNeed(encoder="mean", patch_size=128, mpp=0.5, dim=3)
NOMINAL = TileNeed(encoder="mean", patch_size=128, magnification=20, dim=3)
SCALED = TileNeed(
    encoder="mean", options={"scale": 2.0}, patch_size=128, magnification=20, dtype="float32"
)
COARSE = TileNeed(encoder="mean", patch_size=128, magnification=10)
WIDE = TileNeed(encoder="mean", patch_size=128, magnification=20, dim=4)
LAPPED = TileNeed(encoder="mean", magnification=20, overlap=True)


@dataclass
class SumConfig:
    """Options of the stand-ins."""

    times: float = option(1.0, help="Multiplies every value.")


class Sum:
    """Gives the sum of the features, and how far the tiles lie apart."""

    seen: ClassVar[list] = []

    def __init__(self, config, fault=""):
        self.config, self.fault = config, fault
        self.loaded = 0

    def load(self, device, precision):
        """Count how often."""
        self.loaded += 1

    def encode(self, bag):
        """Give the sum over the tiles of each feature set, one after the other."""
        Sum.seen.append(bag)
        if self.fault == "raises":
            raise RuntimeError("no such layer")
        sums = [features.sum(0, dtype=np.float64) for features in bag.features.values()]
        embedding = (self.config.times * np.concatenate(sums)).astype(np.float32)
        if self.fault == "nan":
            embedding[0] = np.nan
        if self.fault == "wide":
            embedding = np.append(embedding, np.float32(0))
        return SlideOutput(
            embedding=embedding,
            latents=np.ones((2, 4), np.float32),
            attention=np.full(len(bag), 1 / len(bag), np.float32),
        )


class Greedy(Sum):
    """Takes a terabyte."""

    def memory(self, tiles, extent):
        """Say so."""
        return 1 << 40


class Chooser(Sum):
    """Needs what its options say."""

    @property
    def needs(self):
        """Ask for a scale."""
        return (TileNeed(encoder="mean", options={"scale": self.config.times}),)


class Together:
    """Gives the mean of a patient's tiles, by the slide encoder that it names if it names one."""

    slide_encoder = ""

    def __init__(self, config, slide_encoder=""):
        self.slide_encoder = slide_encoder

    def load(self, device, precision):
        """Load nothing."""

    def encode(self, patient):
        """Take what there is: embeddings, tiles, or what makes embeddings of tiles."""
        if patient.slide_embeddings is not None:
            return patient.slide_embeddings.mean(0)
        if patient.embed is not None:
            return np.mean([patient.embed(bag).embedding for bag in patient.slides], axis=0)
        return np.concatenate([bag.only for bag in patient.slides]).mean(0)


CARD = EncoderCard(dim=3, latents=(2, 4))


def _slide(name, needs, target="Sum", card=CARD, coords="level0", **fixed):
    return SlideEncoderSpec(
        name=name,
        target=f"bag_standins:{target}",
        summary="A stand-in",
        config=SumConfig,
        needs=needs,
        coords=coords,
        card=card,
        fixed=fixed,
    )


def _patient(name, **more):
    return PatientEncoderSpec(
        name=name, target="bag_standins:Together", summary="A stand-in", **more
    )


class Plugins:
    """The stand-ins as a plugin."""

    @staticmethod
    @hookimpl
    def microtome_slide_encoders():
        """Register the slide encoders."""
        yield _slide("nominal", (NOMINAL,))
        yield _slide("physical", (PHYSICAL,))
        yield _slide("scaled", (SCALED,))
        yield _slide("coarse", (COARSE,))
        yield _slide("lapped", (LAPPED,))
        yield _slide("mismade", (WIDE,))
        yield _slide("torn", (NOMINAL, COARSE))
        yield _slide("pool", (), card=None, coords="")
        yield _slide("three", (TileNeed(dim=3),), card=None, coords="")
        yield _slide("seven", (TileNeed(dim=7),), card=None, coords="")
        yield _slide("sized", (TileNeed(patch_size=64),), card=None, coords="")
        yield _slide("raises", (NOMINAL,), fault="raises")
        yield _slide("nan", (NOMINAL,), fault="nan")
        yield _slide("wide", (NOMINAL,), fault="wide")
        yield _slide("greedy", (NOMINAL,), target="Greedy")
        yield _slide("chooser", (), target="Chooser")

    @staticmethod
    @hookimpl
    def microtome_patient_encoders():
        """Register the patient encoders."""
        yield _patient("over_slides")
        yield _patient("of_nominal", slide_encoder="nominal", card=EncoderCard(dim=3))
        yield _patient("of_tiles", takes="tiles", needs=(NOMINAL,))
        yield _patient("by_nominal", takes="tiles", fixed={"slide_encoder": "nominal"})
