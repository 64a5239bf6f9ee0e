"""The catalogue against the reference table, field by field.

The table, ``reference/encoders.yaml`` beside the shared slides, was read out of the code of other
tools: it knows nothing of the rows. Whatever differs is in `DIFFERENCES`, with the reason.
"""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
from row_checks import check_differences, make_registry, read_table

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LUNIT_RESNETS = ("lunit_resnet50_bt", "lunit_resnet50_swav", "lunit_resnet50_mocov2")
GEMMAS = ("gemma4_e4b", "gemma4_26b")
KAIKO = ("kaiko_vits8", "kaiko_vits16", "kaiko_vitb8", "kaiko_vitb16", "kaiko_vitl14")
OWN_FILES = (".pth", ".pt", ".bin", ".safetensors")
UNSAID = {"crop"}
"""Where None is what a row says and also what stands for a table that says nothing."""
NO_ROW = ("ctranspath", "handcrafted", "timm", "torchvision")
"""What is in the catalogue and not in the table, which has CHIEF's weights alone."""


def transform(resize, mode, crop, interpolation, colours=None):
    """Give what a row says of a transform of which the table says nothing but perhaps colours."""
    said = {"resize": resize, "resize_mode": mode, "crop": crop, "interpolation": interpolation}
    return said if colours is None else {**said, "mean": colours[0], "std": colours[1]}


# The reason, the rows, and what they say by field, where that is not what the table says.
DIFFERENCES = [
    (
        "the table names the library's own configuration, which the tests read where they can",
        LUNIT_RESNETS,
        transform(235, "shortest_edge", 224, "bicubic", IMAGENET),
    ),
    (
        "the table has both statistics at the patch-8 ViT alone; all five are used both ways",
        LUNIT_RESNETS,
        {"variants": {"norm_imagenet": 2048, "norm_lunit": 2048}},
    ),
    (
        "the table has both statistics at the patch-8 ViT alone; all five are used both ways",
        ("lunit_vit_small_patch16_dino",),
        {"variants": {"norm_imagenet": 384, "norm_lunit": 384}},
    ),
    (
        "the library's processor, which a test compares, makes a square of 768 px and no colours",
        GEMMAS,
        {
            "input_size": 768,
            **transform(768, "exact", None, "bicubic", ((0.0,) * 3, (1.0,) * 3)),
        },
    ),
    (
        "the table says nothing: it is CLIP's, of whose ViT-L/14 at 336 px the model is made",
        ("isight",),
        transform(
            *(336, "shortest_edge", 336, "bicubic"),
            ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ),
    ),
    (
        "the table leaves it to the library's configuration; the row's caution says so",
        ("prost40m",),
        transform(224, "shortest_edge", 224, "bilinear", IMAGENET),
    ),
    (
        "the table has ImageNet's colours and no geometry: for tiles of 224 px there is none",
        ("dino_bloom",),
        transform(224, "shortest_edge", 224, "bilinear", IMAGENET),
    ),
    (
        "of the configuration in the hub entry, with which the loader compares it",
        ("phaet",),
        {"mean": IMAGENET[0], "std": IMAGENET[1]},
    ),
    (
        "of the configuration in the hub entry, with which the loader compares it",
        ("mascaret",),
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    ),
    (
        "the table's notes say that half precision is a risk at 7 B parameters",
        ("dinov3_vit7b16", "dinov3_vit7b16_sat"),
        {"precision": "bf16"},
    ),
    (
        "the pages of the copies on the hub say it",
        KAIKO,
        {"licence": "kaiko non-commercial", "commercial": False},
    ),
    (
        "the page of the hub entry says it",
        ("red_dino",),
        {"licence": "Apache-2.0", "commercial": True},
    ),
    (
        "the licence of the repository, by the page of the copy on the hub",
        ("dino_bloom",),
        {"licence": "Apache-2.0", "commercial": True},
    ),
    (
        "the entry's name as the hub and slide2vec write it",
        ("hibou_b",),
        {"hub_id": "histai/hibou-b"},
    ),
    (
        "its tiles go through H-optimus-1, which is gated and not for commercial use",
        ("ticon",),
        {"commercial": False, "gated": True},
    ),
    ("the weights lie at no hub", ("dino_bloom",), {"hub_id": None}),
    (
        "the table names a drive, and this place second, which a program can fetch from",
        ("chief_ctranspath",),
        {"hub_id": "datasets/MahmoodLab/hest-bench"},
    ),
    ("the same, in a row's words", ("chief_ctranspath",), {"licence": "AGPL-3.0 , GPL-3.0"}),
    (
        "the same, in a row's words",
        ("crisp",),
        {"licence": "MIT, and CC-BY-NC-ND-4.0 of Virchow 2's weights in it"},
    ),
    (
        "the same, in a row's words",
        ("gpfm",),
        {"licence": "CC-BY-NC-ND-4.0 or MIT: sources contradict each other"},
    ),
    (
        "Virchow 2's, of which the model is made",
        ("crisp",),
        {"variants": {"cls": 1280, "cls_mean": 2560}},
    ),
    (
        "the commit that slide2vec takes TITAN's entry at, which the table has under titan",
        ("conch_v15",),
        {"revision": "dac6773d9961cfc75503440676ff157a2c6e8d2e"},
    ),
    (
        "the library's own class serves, so that no code of the entry runs",
        ("hibou_b", "hibou_l"),
        {"loader": "TransformersEncoder"},
    ),
    (
        "a short module over timm's ViT serves: neither a package nor remote code is needed",
        ("conch_v1", "conch_madeleine", "conch_v15"),
        {"loader": "ConchEncoder"},
    ),
    (
        "a short module serves, so that no code of the entry runs",
        ("keep",),
        {"loader": "KeepEncoder"},
    ),
    (
        "timm has the architecture, so that no repository's code runs",
        ("openmidnight", "dino_bloom", "chief_ctranspath"),
        {"loader": "TimmEncoder"},
    ),
]
OPENAI = {
    f"clip_{name}": f"timm/{hub}.openai"
    for name, hub in {
        "rn50": "resnet50_clip",
        "rn101": "resnet101_clip",
        "rn50x4": "resnet50x4_clip",
        "rn50x16": "resnet50x16_clip",
        "rn50x64": "resnet50x64_clip",
        "vit_b_32": "vit_base_patch32_clip_224",
        "vit_b_16": "vit_base_patch16_clip_224",
        "vit_l_14": "vit_large_patch14_clip_224",
        "vit_l_14_336": "vit_large_patch14_clip_336",
    }.items()
}
DIFFERENCES += [
    ("the copy that open_clip itself takes 'openai' from", (name,), {"hub_id": place})
    for name, place in OPENAI.items()
]

MODULES = {
    "musk": "MuskEncoder",
    "isight": "ISightEncoder",
    "ticon": "TiconEncoder",
    "mettle": "MettleEncoder",
    "gemma4_e4b": "GemmaEncoder",
    "gemma4_26b": "GemmaEncoder",
}
"""The table calls these custom, vendored, or a part of a model: each has a short module."""

LIBRARIES = {
    "torchvision": "TorchvisionEncoder",
    "timm": "TimmEncoder",
    "transformers": "TransformersEncoder",
    "open_clip": "OpenClipEncoder",
}
LAYERS = {"timm.layers.SwiGLUPacked": "swiglu_packed", "torch.nn.SiLU": "silu"}
REGISTRY = make_registry()
ROWS = [entry.spec.name for entry in REGISTRY.entries("encoder") if entry.spec.name not in NO_ROW]


@pytest.fixture(scope="module")
def table(shared_data):
    return read_table(shared_data, "patch_encoders")


def test_every_model_of_the_table_is_a_row(table):
    assert sorted(table) == sorted(ROWS)
    assert len(table) == 94


def test_every_difference_is_of_a_row():
    assert {name for _, names, _ in DIFFERENCES for name in names} <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_table_says(table, name):
    spec = REGISTRY.find("encoder", name).spec
    wanted, given = said_by_the_table(name, table[name]), said_by_the_row(spec, table[name])
    check_differences(DIFFERENCES, name, wanted, given, unsaid=UNSAID)


@pytest.mark.parametrize("name", ROWS)
def test_an_architecture_is_given_what_the_table_gives_it(table, name):
    """Arguments of timm that both name."""
    arguments = REGISTRY.find("encoder", name).spec.fixed["recipe"].arguments
    theirs = table[name].get("create_kwargs", {})
    both = arguments.keys() & theirs.keys()
    assert {key: arguments[key] for key in both} == {
        key: pytest.approx(value, rel=1e-5)
        if isinstance(value := LAYERS.get(theirs[key], theirs[key]), float)
        else value
        for key in both
    }


def said_by_the_table(name, entry):
    """Give the table's facts of a model in the words of a row."""
    place, _, tag = entry["hub_id"].partition(" ")
    revision = entry.get("revision")
    transform, tile = entry["transform"], entry.get("recommended", {})
    facts = {
        "loader": MODULES.get(name) or loader_of(entry["loader"]),
        "hub_id": place.removeprefix("hf-hub:"),
        "revision": next(iter(revision.values())) if revision else None,
        "dim": entry["dim"],
        "input_size": entry["input_size"],
        "variants": {
            {"cls_patch_mean": "cls_mean", "cls_token": "cls"}.get(key, key): dim
            for key, dim in entry.get("variants", {}).items()
        },
        **{key: transform.get(key) for key in ("resize", "resize_mode", "interpolation")},
        "crop": transform.get("center_crop"),
        **{key: tuple(transform[key]) if key in transform else None for key in ("mean", "std")},
        "patch_size": tile.get("patch_px"),
        "mpp": tile.get("mpp"),
        "magnification": tile.get("mag"),
        "also_mpp": tuple(mpp for mpp in tile.get("also_mpp", ()) if mpp != tile["mpp"]),
        "precision": [said.split()[0] for said in entry.get("precision", {"": "fp32"}).values()],
        "licence": licence_of(entry["licence"]),
        "commercial": entry.get("commercial_use"),
        "gated": entry["gated"],
        "domain": entry["domain"],
        "names": {tool: str(called).split()[0] for tool, called in entry["names"].items()},
    }
    if facts["hub_id"] == "torchvision":
        model, tag = tag.split()[:2]
        facts |= {"hub_id": f"torchvision/{model}", "revision": tag}
    return facts


def said_by_the_row(spec, entry):
    """Give a row's facts; where the table allows several, all of them if the row has one."""
    card, recipe = spec.card, spec.fixed["recipe"]
    wanted = said_by_the_table(spec.name, entry)
    allowed = card.precision in wanted["precision"]
    names = wanted["names"]
    same = spec.names.keys() == names.keys() and all(
        fnmatch(spec.names[tool], names[tool]) for tool in names
    )
    return {
        "loader": spec.target.rpartition(":")[2],
        **{key: getattr(card, key) for key in ("hub_id", "revision", "dim", "input_size")},
        "variants": dict(recipe.variants),
        **{
            key: getattr(card.transform, key)
            for key in ("resize", "resize_mode", "interpolation", "crop", "mean", "std")
        },
        **{key: getattr(card, key) for key in ("patch_size", "mpp", "magnification")},
        "also_mpp": tuple(mpp for mpp in card.also_mpp if mpp != card.mpp),
        "precision": wanted["precision"] if allowed else card.precision,
        "licence": licence_of(card.licence),
        **{key: getattr(card, key) for key in ("commercial", "gated")},
        "domain": spec.domain,
        "names": names if same else dict(spec.names),
    }


def loader_of(said):
    """Give the loader of what the table says: code of the entry goes before the library."""
    if "remote_code" in said or "remote code" in said:
        return "RemoteEncoder"
    return LIBRARIES.get(said.split()[0], said)


def licence_of(said):
    """Leave out remarks in brackets; whoever says that it is not stated says one thing."""
    plain = " ".join(part.split(")")[-1].strip() for part in said.split("(")).strip()
    return "not stated" if "not stated" in said or plain.startswith("not ") else plain


def test_a_file_that_the_table_names_is_the_rows(table):
    """Behind the place, or alone where the row has a place of its own."""
    for name, entry in table.items():
        recipe = REGISTRY.find("encoder", name).spec.fixed["recipe"]
        for word in entry["hub_id"].split()[1:]:
            if word.endswith(OWN_FILES) and recipe.files:
                assert word in recipe.files, name
