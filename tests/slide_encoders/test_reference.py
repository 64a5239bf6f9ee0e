"""The catalogue of slide and patient encoders against the reference table, field by field.

The table, ``reference/encoders.yaml`` beside the shared slides, was read out of the code of other
tools: it knows nothing of the rows. Whatever differs is in `DIFFERENCES`, with the reason.
"""

from __future__ import annotations

import re

import pytest
from row_checks import check_differences, make_registry, read_table

NO_ROW = {
    "threads": "unreleased: there is neither code nor weights",
    "cobra": "it takes any of four patch encoders and gives its dimension nowhere, and its "
    "mamba-ssm builds for GPUs alone, without published wheels",
    "eagle": "sources differ in the tiles that it takes: its own program says 256 µm, STAMP 2 µm "
    "per pixel, so that no contract can be stated; CHIEF's attention is kept by 'chief'",
    "mean_<encoder>": "'mean' takes any feature set: the dimension is that of the features",
}
POOLINGS = ("abmil", "max", "mean", "statistics")
"""They take any feature set, so they have neither card nor need: their own tests say the rest."""

# The reason, the rows, and what they say by field, where that is not what the table says.
DIFFERENCES = [
    (
        "the commit that raw2features takes it at",
        ("prism",),
        {"revision": "b5ef311e78a0811c71ecf618f6f7140e9ebb5fc6"},
    ),
    (
        "the commit that a public adapter of it takes it at",
        ("feather",),
        {"revision": "423c894c738294e8b0ac38938108180a2c21dd43"},
    ),
    (
        "TRIDENT's table says it; the page of the hub entry was not seen",
        ("feather", "feather_uni_v2"),
        {"licence": "CC-BY-NC-ND-4.0", "gated": True},
    ),
    (
        "TRIDENT's table says it; the page of the hub entry was not seen",
        ("care",),
        {"licence": "CC-BY-NC-4.0", "gated": True},
    ),
    (
        "the mean is TRIDENT's embedding, which the table's call is, the class token slide2vec's",
        ("gigapath",),
        {"variants": {"mean": 768, "cls": 768}},
    ),
    (
        "as of gigapath; the tiles, precision and unit of coordinates are the large model's, of "
        "which the table says nothing here",
        ("gigapath_flash",),
        {
            "variants": {"mean": 384, "cls": 384},
            **{"patch_size": 256, "magnification": 20.0, "coords": "grid", "precision": {"fp16"}},
        },
    ),
    (
        "the table says in brackets that it is conch_v1 at 224 px, which is an encoder here",
        ("madeleine",),
        {"encoder": "conch_madeleine"},
    ),
    (
        "the number is that of the part for slides; the table's is that of the whole model",
        ("moozy",),
        {"params": 42_830_000},
    ),
    (
        "slide2vec's embedding is the first, AtlasPatch's the second",
        ("moozy",),
        {"variants": {"slide": 768, "case": 768}},
    ),
    (
        "its package runs it in float32 unless it is told otherwise, as AtlasPatch does",
        ("moozy",),
        {"precision": {"fp32"}},
    ),
]
MODULES = {
    "git+prov_gigapath": "gigapath",
    "git+mahmoodlab/MADELEINE": "madeleine",
    "git+AtlasAnalyticsLab/MOOZY": "moozy",
}
"""What is imported of a repository."""
NO_MODULE = {"torch", "python", "CUDA", "CHIEF", "Phi3"}
"""What the table requires that is in every row, or no module: a clone, or a shim of our own."""

REGISTRY = make_registry()
ROWS = [e.spec.name for e in REGISTRY.entries("slide_encoder") if e.spec.name not in POOLINGS]


@pytest.fixture(scope="module")
def table(shared_data):
    return read_table(shared_data, "slide_and_patient_encoders")


def test_every_model_of_the_table_is_a_row_or_there_is_a_reason(table):
    assert table.keys() - NO_ROW.keys() - {"abmil"} == set(ROWS)
    assert NO_ROW.keys() <= table.keys()
    assert not NO_ROW.keys() & {e.spec.name for e in REGISTRY.entries("slide_encoder")}
    assert len(table) == 16


def test_a_model_of_patients_is_a_row_of_that_kind(table):
    levels = {name: entry["level"].split("+") for name, entry in table.items()}
    of_patients = [name for name in levels if "patient" in levels[name] and name not in NO_ROW]
    assert of_patients == ["moozy"]
    patient = REGISTRY.find("patient_encoder", "moozy").spec
    slide = REGISTRY.find("slide_encoder", "moozy").spec
    assert patient.takes == "tiles"
    assert patient.needs == slide.needs
    assert patient.card.dim == table["moozy"]["dim"]


def test_every_difference_is_of_a_row():
    assert {name for _, names, _ in DIFFERENCES for name in names} <= set(ROWS)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_states_nothing_of_what_it_takes(name):
    spec = REGISTRY.find("slide_encoder", name).spec
    assert spec.needs == ()
    assert spec.card is None
    assert not spec.remote_code


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_table_says(table, name):
    spec = REGISTRY.find("slide_encoder", name).spec
    wanted, given = said_by_the_table(table[name]), said_by_the_row(spec, table[name])
    check_differences(DIFFERENCES, name, wanted, given)


@pytest.mark.parametrize("name", ROWS)
def test_a_need_is_of_an_encoder_that_gives_it(name):
    """Name, variant, dimension, and tiles that the encoder itself was made for."""
    (need,) = REGISTRY.find("slide_encoder", name).spec.needs
    spec = REGISTRY.find("encoder", need.encoder).spec
    recipe = spec.fixed["recipe"]
    variant = need.options.get("variant")
    assert need.options.keys() <= {"variant"}
    assert need.dim == (recipe.variants[variant] if variant else spec.card.dim)
    assert not need.overlap
    assert need.mpp is None


@pytest.mark.parametrize("name", ROWS)
def test_a_card_says_the_rest(name):
    spec = REGISTRY.find("slide_encoder", name).spec
    assert spec.card.paper
    assert spec.card.pooling
    assert spec.card.licence
    assert spec.card.params
    assert spec.caution.endswith(".")
    assert set(spec.names) <= {"atlaspatch", "trident", "slide2vec", "lazyslide", "stamp"}


def said_by_the_table(entry):
    """Give the table's facts of a model in the words of a row."""
    encoder, variant = needed(entry["requires_patch_encoder"])
    return {
        "dim": entry["dim"],
        "variants": entry.get("variants", {}),
        "encoder": encoder,
        "variant": variant,
        "patch_size": entry.get("patch_px"),
        "magnification": entry.get("mag"),
        "coords": unit_of(str(entry.get("needs_coords", ""))),
        "hub_id": place_of(entry["hub_id"]),
        "revision": entry.get("revision", "").split(" ")[0] or None,
        "precision": set(re.findall(r"fp32|fp16|bf16", str(entry.get("precision", "fp32")))),
        "gated": entry.get("gated"),
        "licence": entry.get("licence", ""),
        "params": entry.get("params"),
        "latents": tuple(map(int, re.findall(r"(\d+)x(\d+)", str(entry.get("outputs")))[0]))
        if "x" in str(entry.get("outputs", ""))
        else None,
        "requires": libraries_of(entry),
        "names": {tool for tool in entry["providers"] if tool.isalnum()},
        "remote_code": "transformers" in entry["loader"],
    }


def said_by_the_row(spec, entry):
    """Give a row's facts; where the table allows several precisions, all if the row has one."""
    card, recipe, (need,) = spec.card, spec.fixed["recipe"], spec.needs
    wanted = said_by_the_table(entry)
    millions = card.params and f"{card.params / 1e6:.1f}M"
    billions = card.params and f"{card.params / 1e9:.1f} B"
    same = wanted["params"] in (None, millions, billions, billions.replace(" ", ""))
    named = {*spec.requires, *re.findall(r"^\w+", recipe.needs)}
    return {
        "dim": card.dim,
        "variants": dict(recipe.variants),
        "encoder": need.encoder,
        "variant": need.options.get("variant", ""),
        **{key: getattr(need, key) for key in ("patch_size", "magnification")},
        "coords": spec.coords,
        **{key: getattr(card, key) for key in ("hub_id", "revision")},
        "precision": wanted["precision"]
        if card.precision in wanted["precision"]
        else {card.precision},
        "gated": card.gated,
        "licence": card.licence,
        "params": wanted["params"] if same else card.params,
        "latents": card.latents,
        "requires": wanted["requires"] if wanted["requires"] <= named else named,
        "names": wanted["names"] if wanted["names"] <= spec.names.keys() else set(spec.names),
        "remote_code": spec.remote_code,
    }


def needed(said):
    """Give the patch encoder and its variant, where that is not the default one."""
    encoder, _, more = said.replace("-", "_").partition(" ")
    return encoder, "cls" if more.startswith("(cls 1280") else ""


def unit_of(said):
    """Give the unit of coordinates."""
    if "grid index" in said or "floor(" in said:
        return "grid"
    return "level0" if said else ""


def place_of(said):
    """Give the hub entry, or None for what lies elsewhere."""
    place = said.split(" ")[0]
    return place if "/" in place else None


def libraries_of(entry):
    """Give the modules that the table requires, without versions and what every row needs."""
    named = {re.split(r"[><=\s]", str(each))[0] for each in entry.get("requires", ())}
    plain = (name.replace("-", "_") for name in named)
    return {MODULES.get(name, name) for name in plain} - NO_MODULE
