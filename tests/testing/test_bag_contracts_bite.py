"""Contracts of slide and patient encoders fail for those that break them."""

from __future__ import annotations

import pytest
from faulty_plugins import run_contracts

FAULTY = """
import numpy as np

from microtome.plugin import (
    EncoderCard, EncoderSpec, PatientEncoderSpec, SlideEncoderSpec, TileNeed, hookimpl
)
from microtome.plugin.protocols import SlideOutput


class Fine:
    card = EncoderCard(dim=8)
    needs = ()

    def __init__(self, config):
        self.calls = 0

    def load(self, device, precision):
        pass

    def encode(self, bag):
        return SlideOutput(embedding=bag.only.mean(0))


class Wide(Fine):
    card = EncoderCard(dim=9)


class Constant(Fine):
    def encode(self, bag):
        return SlideOutput(embedding=np.ones(8, np.float32))


class Fickle(Fine):
    def encode(self, bag):
        self.calls += 1
        return SlideOutput(embedding=bag.only.mean(0) + self.calls)


class Scribbler(Fine):
    def encode(self, bag):
        bag.only[0] = 0
        return super().encode(bag)


class Spread(Fine):
    def encode(self, bag):
        return SlideOutput(embedding=bag.only.std(0, ddof=1))


class Attentive(Fine):
    def encode(self, bag):
        return SlideOutput(embedding=bag.only.mean(0), attention=np.ones(1))


class Shrinking(Fine):
    def memory(self, tiles, extent):
        return 1000 - tiles


class Demanding(Fine):
    needs = (TileNeed(encoder="patch", dim=5),)


class Patient(Fine):
    def encode(self, patient):
        return patient.slide_embeddings.mean(0)


class FirstOnly(Fine):
    def encode(self, patient):
        return patient.slide_embeddings[0]


SLIDES = (Fine, Wide, Constant, Fickle, Scribbler, Spread, Attentive, Shrinking, Demanding)


@hookimpl
def microtome_encoders():
    yield EncoderSpec(name="patch", target="faulty:Fine", summary="x", card=EncoderCard(dim=4))


@hookimpl
def microtome_slide_encoders():
    for one in SLIDES:
        yield SlideEncoderSpec(
            name=one.__name__.lower(), target=f"faulty:{one.__name__}", summary="x"
        )


@hookimpl
def microtome_patient_encoders():
    for one in (Patient, FirstOnly):
        yield PatientEncoderSpec(
            name=one.__name__.lower(), target=f"faulty:{one.__name__}", summary="x"
        )
"""

CONTRACTS = """
import faulty
from microtome.testing import PatientEncoderContract, SlideEncoderContract

KINDS = {
    SlideEncoderContract: [one.__name__.lower() for one in faulty.SLIDES],
    PatientEncoderContract: ["patient", "firstonly"],
}
for _base, _names in KINDS.items():
    for _name in _names:
        _body = {"plugin": _name, "package": faulty, "test_listing_it_imports_nothing_heavy": None}
        globals()["Test" + _name] = type("Test" + _name, (_base,), _body)
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> set[tuple[str, str]]:
    return run_contracts(tmp_path_factory.mktemp("faulty"), FAULTY, CONTRACTS)


@pytest.mark.parametrize(
    ("plugin", "test"),
    [
        ("wide", "test_its_embedding_is_what_the_card_says"),
        ("constant", "test_other_slides_have_other_embeddings"),
        ("fickle", "test_it_gives_the_same_again"),
        ("scribbler", "test_it_leaves_its_input_as_it_is"),
        ("spread", "test_one_tile_makes_a_slide"),
        ("attentive", "test_its_embedding_is_what_the_card_says"),
        ("shrinking", "test_it_estimates_its_memory"),
        ("demanding", "test_what_it_needs_can_be_made"),
        ("firstonly", "test_every_slide_counts"),
    ],
)
def test_a_fault_is_caught(failed, plugin, test):
    assert (f"Test{plugin}", test) in failed


@pytest.mark.parametrize("plugin", ["fine", "patient"])
def test_what_is_right_passes(failed, plugin):
    assert [row for row in failed if row[0] == f"Test{plugin}"] == []
