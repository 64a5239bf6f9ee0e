"""What models are given against what their cards' own lines would give them, on Pillow images.

The cards' pipelines are written out here by hand, from the cards, not made of the catalogue's data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from timm.data import create_transform  # noqa: E402
from torchvision import models  # noqa: E402
from torchvision.transforms import (  # noqa: E402
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from microtome.plugin.options import configure  # noqa: E402
from microtome.plugin.specs import Transform  # noqa: E402
from microtome.slide.batch import TileBatch, prepare_tiles, tile_geometry  # noqa: E402
from microtome.testing.synthetic import make_plain_image  # noqa: E402
from microtome_encoders.catalogue import checkpoints, families  # noqa: E402
from microtome_encoders.catalogue import timm as of_timm  # noqa: E402
from microtome_encoders.catalogue import torchvision as of_torchvision  # noqa: E402
from microtome_encoders.options import HubConfig, VariantConfig  # noqa: E402
from microtome_encoders.patch.timm import TimmEncoder  # noqa: E402

SIZES = (224, 240, 256, 512)
"""Sides of tiles: what most cards ask for, JPEG tiles of 240, the usual 256, and its double."""

RESIZED = (240, 512)
"""Those that every card resizes, whose features are compared."""

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DINOV2 = Compose(
    [Resize(256, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), IMAGENET],
)
UNI = Compose([Resize(224), CenterCrop(224), ToTensor(), IMAGENET])
VIRCHOW = create_transform(  # of its hub entry's configuration, by timm
    input_size=(3, 224, 224),
    interpolation="bicubic",
    crop_pct=1.0,
    crop_mode="center",
    mean=IMAGENET.mean,
    std=IMAGENET.std,
)
H_OPTIMUS = Compose(
    [
        Resize((224, 224)),
        ToTensor(),
        Normalize((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    ]
)
HALF = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BICUBIC = InterpolationMode.BICUBIC
H0_MINI = Compose([Resize(224, BICUBIC), CenterCrop(224), ToTensor(), H_OPTIMUS.transforms[-1]])
SQUARE = Compose([Resize((224, 224)), ToTensor(), IMAGENET])
SQUARE_BICUBIC = Compose([Resize((224, 224), BICUBIC), ToTensor(), IMAGENET])
KAIKO = Compose([Resize(224), CenterCrop(224), ToTensor(), HALF])


def lunit(**crop):
    """Give what timm makes of a configuration on the hub."""
    return create_transform(
        input_size=(3, 224, 224),
        interpolation="bicubic",
        crop_mode="center",
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        **crop,
    )


CARDS = {
    **{
        name: models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
        for name in (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
            *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"),
        )
    },
    "vit_h_14": models.get_model_weights("vit_h_14").DEFAULT.transforms(),
    **{f"dinov2_{size}": DINOV2 for size in ("small", "base", "large", "giant")},
    **dict.fromkeys(("uni_v1", "uni_v2", "resnet50_trunc", "crown"), UNI),
    **dict.fromkeys(("pathorchestra", "chief_ctranspath", "ctranspath"), UNI),
    **dict.fromkeys(("dino_bloom", "prost40m"), UNI),
    **dict.fromkeys(("virchow_v1", "virchow_v2", "crisp"), VIRCHOW),
    **dict.fromkeys(("h_optimus_0", "h_optimus_1"), H_OPTIMUS),
    **dict.fromkeys(("h0_mini", "mettle"), H0_MINI),
    **dict.fromkeys(("openmidnight", "red_dino"), SQUARE),
    **dict.fromkeys(("gpfm", "mstar"), SQUARE_BICUBIC),
    **dict.fromkeys(("prov_gigapath", "gigapath_flash"), DINOV2),
    **{f"lunit_resnet50_{way}": lunit(crop_pct=0.95) for way in ("bt", "swav", "mocov2")},
    **{f"lunit_vit_small_patch{side}_dino": lunit(crop_pct=0.9) for side in (8, 16)},
    **{f"kaiko_vit{size}": KAIKO for size in ("s8", "s16", "b8", "b16", "l14")},
}
"""By the catalogue's name, from a Pillow image to a model's input."""

OWN_STD = {
    **dict.fromkeys(
        ("h_optimus_0", "h_optimus_1", "h0_mini", "mettle"), H_OPTIMUS.transforms[-1].std
    ),
    **{name: HALF.std for name in CARDS if name.startswith("kaiko")},
}

DISTINCT = {repr(pipeline): name for name, pipeline in reversed(CARDS.items())}
"""The first row of each pipeline."""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """By side, (3, side, side, 3): the most structured tissue, and one tile of noise."""
    path = tmp_path_factory.mktemp("tissue") / "tissue.png"
    image = make_plain_image(path, size=(1200, 1100), tissue=0.6).image
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return {side: np.stack([*_structured(image, side), noise[:side, :side]]) for side in SIZES}


def _structured(image, side, count=2):
    starts = [range(0, extent - side + 1, side) for extent in image.shape[:2]]
    cut = [image[y : y + side, x : x + side] for y in starts[0] for x in starts[1]]
    return sorted(cut, key=np.std)[-count:]


def batch_of(pixels):
    return TileBatch(pixels, np.zeros((len(pixels), 5), np.int32))


def by_card(name, pixels):
    return torch.stack([CARDS[name](Image.fromarray(tile)) for tile in pixels])


def levels_apart(name, pixels, transform):
    """Give the largest difference in grey levels, before normalisation, at the card's own colours.

    So a wrong mean or std counts as well.
    """
    ours = batch_of(pixels).tensor(transform, "cpu", torch.float32)
    std = torch.tensor(OWN_STD.get(name, IMAGENET.std)).view(3, 1, 1)
    return float(((ours - by_card(name, pixels)).abs() * std * 255).max())


def cosines(ours, theirs):
    """Give the smallest cosine, as it is and without what all tiles have in common.

    Random weights make most of every vector the same, which hides any difference of tiles.
    """
    common = theirs.mean(0)
    pairs = [(ours, theirs), (ours - common, theirs - common)]
    return min(float(torch.cosine_similarity(*pair).min()) for pair in pairs)


def test_every_row_is_held_to_its_card():
    files = (of_timm, of_torchvision, families, checkpoints)
    dinov2 = {f"dinov2_{size}" for size in ("small", "base", "large", "giant")}
    assert set(CARDS) - dinov2 == {spec.name for file in files for spec in file.rows()}


@pytest.mark.parametrize("name", CARDS)
def test_rows_of_one_pipeline_have_one_transform(registry, name):
    """So that one row of each pipeline is compared with it by pixels."""
    first = DISTINCT[repr(CARDS[name])]
    transforms = [registry.find("encoder", row).spec.card.transform for row in (name, first)]
    transforms = [replace(transform, crop=_crop(transform)) for transform in transforms]
    assert transforms[0] == transforms[1]


def _crop(transform):
    """Give the side of what comes out of a square tile."""
    return transform.crop or transform.resize


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("name", DISTINCT.values())
def test_pixels_are_the_cards(registry, tiles, name, side):
    transform = registry.find("encoder", name).spec.card.transform
    assert levels_apart(name, tiles[side], transform) <= 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "bilinear"},
        {"resize": 224},
        {"resize": 260},
        {"crop": 224, "resize_mode": "exact", "resize": 255},
        {"mean": (0.5, 0.456, 0.406)},
        {"std": (0.229, 0.25, 0.225)},
    ],
)
def test_what_is_not_the_cards_shows(registry, tiles, wrong):
    transform = registry.find("encoder", "dinov2_small").spec.card.transform
    assert levels_apart("dinov2_small", tiles[512], replace(transform, **wrong)) > 2


def encoder_of(registry, name):
    spec = registry.find("encoder", name).spec
    return registry.create("encoder", name, configure(spec, weights="random"))


def stand_in(registry, name):
    """Make a small transformer that is given, and gives, what a large row is and does."""
    recipe = registry.find("encoder", name).spec.fixed["recipe"]
    tokens = {"global_pool": ""} if recipe.variants else {}
    variants = {"cls": 192, "cls_mean": 384} if recipe.variants else {}
    small = replace(
        recipe,
        architecture="vit_tiny_patch16_224",
        arguments={"dynamic_img_size": True, "depth": 3, **tokens},
        variants=variants,
        card=replace(recipe.card, dim=variants.get("cls_mean", 192)),
    )
    config = VariantConfig if variants else HubConfig
    return TimmEncoder(config(weights="random"), recipe=small)


def compare(encoder, name, tiles):
    """Give the smallest cosine between an encoder's features and its model's on the card's input.

    The encoder has its tiles prepared ahead, part by part, as a run does it.
    """
    encoder.load("cpu", "fp32")
    transform = encoder.card.transform
    ours, theirs = [], []
    for pixels in map(tiles.get, RESIZED):
        parts = [prepare_tiles(pixels[i : i + 1], transform) for i in range(len(pixels))]
        prepared = {tile_geometry(transform): np.concatenate(parts)}
        batch = TileBatch(pixels, np.zeros((len(pixels), 5), np.int32), prepared)
        ours.append(torch.from_numpy(encoder.encode(batch).embedding))
        with torch.inference_mode():
            theirs.append(encoder.forward(encoder._model, by_card(name, pixels)))
    return cosines(torch.cat(ours), torch.cat(theirs))


@pytest.mark.parametrize("name", ["resnet18"])
def test_features_are_the_cards(registry, tiles, name):
    assert compare(encoder_of(registry, name), name, tiles) >= 0.9999


@pytest.mark.parametrize(
    "name", ["dinov2_large", "dinov2_giant", "uni_v1", "uni_v2", "virchow_v2", "h_optimus_0"]
)
def test_features_of_a_small_network_on_a_large_rows_input_are_the_cards(registry, tiles, name):
    assert compare(stand_in(registry, name), name, tiles) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet34", "resnet50", "resnet101", "resnet152"),
        *("dinov2_small", "dinov2_base", "dinov2_large", "uni_v1"),
    ],
)
def test_features_of_large_networks_are_the_cards(registry, tiles, name):
    assert compare(encoder_of(registry, name), name, tiles) >= 0.9999


@pytest.mark.parametrize(
    "wrong", [{"interpolation": "bilinear"}, {"resize": 260}, {"mean": (0.5, 0.456, 0.406)}]
)
def test_features_of_what_is_not_the_cards_are_others(registry, tiles, wrong):
    encoder = stand_in(registry, "dinov2_large")
    transform = replace(encoder.card.transform, **wrong)
    encoder._given = replace(encoder.recipe, card=replace(encoder.card, transform=transform))
    encoder.__dict__.pop("recipe")
    assert encoder.card.transform != Transform()
    assert compare(encoder, "dinov2_large", tiles) < 0.9999
