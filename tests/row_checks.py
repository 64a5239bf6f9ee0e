"""Checks of catalogue rows against facts that are written out by hand in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import microtome_encoders
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry
from microtome.plugin.specs import Transform
from microtome.slide.batch import TileBatch

COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "hibou": ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
    "sat493m": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "rudolfv2": ((0.7072, 0.5787, 0.7036), (0.2119, 0.2301, 0.1775)),
    "genbio": ((0.697, 0.575, 0.728), (0.188, 0.24, 0.187)),
    "h_optimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def make_registry():
    """Give a registry of our own encoders."""
    registry = Registry()
    registry.add(microtome_encoders, "encoders", "microtome")
    assert not registry.broken
    return registry


def parse_facts(table):
    """Give the rows of a table by name."""
    return {line.split()[0]: line.split("|") for line in table.strip().splitlines()}


def read_table(shared_data, part):
    """Give the entries of a part of the reference table by the names of rows, or skip."""
    path = shared_data.parent / "reference" / "encoders.yaml"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    entries = yaml.safe_load(path.read_text("utf-8"))[part]
    return {entry["id"].replace("-", "_"): entry for entry in entries}


def check_differences(differences, name, wanted, given, *, unsaid=frozenset()):
    """Hold a row's facts against the table's, but for the differences that are deliberate.

    Args:
        differences: The reason, the rows, and what they say by field instead.
        name: The row's.
        wanted: The table's facts by field.
        given: The row's.
        unsaid: Fields whose difference may look like none.
    """
    assert wanted.keys() == given.keys()
    deliberate = [said for _, names, said in differences if name in names]
    said = {field: value for part in deliberate for field, value in part.items()}
    assert {field: given[field] for field in given if field not in said} == {
        field: wanted[field] for field in wanted if field not in said
    }
    assert {field: given[field] for field in said} == said
    assert not [field for field in said.keys() - unsaid if said[field] == wanted[field]]


def check_facts(spec, columns):
    """Hold a card against: dim input | transform | precision tile | commercial access place."""
    sizes, transform, use, access = (column.split() for column in columns)
    card = spec.card
    assert [str(card.dim), str(card.input_size)] == sizes[1:]
    resize, mode, crop, interpolation, colours = transform
    mean, std = COLOURS[colours]
    assert card.transform == Transform(
        resize=int(resize),
        resize_mode={"edge": "shortest_edge", "exact": "exact"}[mode],
        crop=None if crop == "-" else int(crop),
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    tile = f"{card.patch_size}@{card.mpp}" if card.patch_size else "-"
    assert [card.precision, tile] == use
    commercial = {None: "?", True: "yes", False: "no"}[card.commercial]
    gated = {None: "?", True: "gated", False: "open"}[card.gated]
    assert [commercial, gated, card.hub_id or "-"] == access
    assert spec.caution == "" or spec.caution.endswith(".")
    assert card.licence
    assert card.pooling


def checks(what, *names):
    """Note what a test checks of which rows: the documentation's table is held against it.

    Args:
        what: ``"architecture"``, ``"layout"``, ``"names"`` or ``"stand-in"``, see `test_checked`.
        names: Of the rows; those that the test is parametrised by if none are given.
    """

    def note(test):
        marks = [mark.args for mark in getattr(test, "pytestmark", ())]
        rows = names or next(args[1] for args in marks if args[0] == "name")
        test.checks = (*getattr(test, "checks", ()), *((what, row) for row in rows))
        return test

    return note


def create(spec, registry, **options):
    """Make a row's encoder."""
    return registry.create("encoder", spec.name, configure(spec, **options))


def check_parameters(encoder, card):
    """Build a model on the meta device and count its parameters."""
    with torch.device("meta"):
        model = encoder.build().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == card.params
    return model


def check_architecture(encoder, card):
    """Build a model on the meta device: its parameters and its output are what the card says."""
    model = check_parameters(encoder, card)
    images = torch.empty(2, 3, card.input_size, card.input_size, device="meta")
    assert encoder.forward(model, images).shape == (2, card.dim)


def shrunk(spec, dim, **changes):
    """Give a row's recipe of a tiny network."""
    recipe = spec.fixed["recipe"]
    card = {"dim": dim, "revision": None, **changes.pop("card", {})}
    return replace(recipe, card=replace(recipe.card, **card), **changes)


def batch(side=224):
    """Give two tiles."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return TileBatch(pixels, np.zeros((2, 5), np.int32))


def embed(encoder, tiles):
    """Load an encoder and give its embedding."""
    encoder.load("cpu", "fp32")
    return encoder.encode(tiles).embedding


def assert_near(full, mixed):
    """Hold embeddings of a lower precision against those of fp32, by their direction."""
    lengths = np.linalg.norm(full, axis=1) * np.linalg.norm(mixed, axis=1)
    assert ((full * mixed).sum(1) / lengths).min() > 0.99
    assert not np.array_equal(full, mixed)
