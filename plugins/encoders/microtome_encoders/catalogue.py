"""The catalogue: known models as data, each a row for a generic loader. Cheap to import.

A card's values come from the model's own card and its published loading code. The dimension, the
number of parameters and the transform are checked against the built architecture by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, EncoderSpec, Transform
from microtome_encoders.options import HubConfig, VariantConfig, WeightsConfig
from microtome_encoders.recipe import Recipe

TIMM = "microtome_encoders.patch.timm:TimmEncoder"
TORCHVISION = "microtome_encoders.patch.torchvision:TorchvisionEncoder"
INSTALL = "pip install 'microtome[torch]'"

CLASS_TOKEN = "class token"
AVERAGE = "global average of the last feature map"

IMAGENET_256 = Transform(resize=256)
IMAGENET_224 = Transform()
DINOV2 = replace(IMAGENET_256, interpolation="bicubic")
VIRCHOW = replace(IMAGENET_224, interpolation="bicubic")
H_OPTIMUS = Transform(
    resize_mode="exact",
    crop=None,
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
)

UNI = EncoderCard(
    dim=1024,
    input_size=224,
    transform=IMAGENET_224,
    pooling=CLASS_TOKEN,
    precision="fp16",
    patch_size=256,
    mpp=0.5,
    magnification=20.0,
    hub_id="MahmoodLab/UNI",
    revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
    licence="CC-BY-NC-ND-4.0",
    commercial=False,
    gated=True,
    params=303_350_784,
    paper="doi:10.1038/s41591-024-02857-3",
)


def catalogue() -> Iterator[EncoderSpec]:
    """Give the spec of every row."""
    yield from _resnets()
    yield from _dinov2()
    yield from _uni()
    yield from _virchow()
    yield from _h_optimus()


def torch_spec(name: str, target: str, summary: str, **values: Any) -> EncoderSpec:
    """Make the spec of an encoder that needs torch and the library of its loader."""
    library = ("timm", "huggingface_hub") if target == TIMM else ("torchvision",)
    return EncoderSpec(
        name=name,
        target=target,
        summary=summary,
        requires=("torch", "safetensors", *library),
        install=INSTALL,
        **values,
    )


def _row(name: str, target: str, config: type, recipe: Recipe, summary: str) -> EncoderSpec:
    fixed = MappingProxyType({"recipe": recipe})
    return torch_spec(name, target, summary, config=config, card=recipe.card, fixed=fixed)


def _resnets() -> Iterator[EncoderSpec]:
    """He et al. 2016, with torchvision's first ImageNet-1k weights, as peers use them."""
    for depth, dim, params in (
        (18, 512, 11_176_512),
        (34, 512, 21_284_672),
        (50, 2048, 23_508_032),
        (101, 2048, 42_500_160),
        (152, 2048, 58_143_808),
    ):
        card = EncoderCard(
            dim=dim,
            input_size=224,
            transform=IMAGENET_256,
            pooling=AVERAGE,
            hub_id=f"torchvision/resnet{depth}",
            revision="IMAGENET1K_V1",
            licence="BSD-3-Clause (code); not stated for the weights",
            params=params,
            paper="arXiv:1512.03385",
        )
        recipe = Recipe(architecture=f"resnet{depth}.IMAGENET1K_V1", card=card)
        summary = f"ResNet-{depth}, supervised on ImageNet-1k"
        yield _row(f"resnet{depth}", TORCHVISION, WeightsConfig, recipe, summary)


def _dinov2() -> Iterator[EncoderSpec]:
    """Oquab et al. 2023. Position embeddings are kept at 518 px and resampled per input size."""
    for size, dim, params in (
        ("small", 384, 22_056_192),
        ("base", 768, 86_579_712),
        ("large", 1024, 304_367_616),
        ("giant", 1536, 1_136_479_232),
    ):
        architecture = f"vit_{size}_patch14_dinov2.lvd142m"
        card = EncoderCard(
            dim=dim,
            input_size=224,
            transform=DINOV2,
            pooling=CLASS_TOKEN,
            hub_id=f"timm/{architecture}",
            licence="Apache-2.0",
            commercial=True,
            params=params,
            paper="arXiv:2304.07193",
        )
        recipe = Recipe(architecture=architecture, card=card, arguments={"dynamic_img_size": True})
        summary = f"DINOv2 ViT-{size[0].upper()}/14, self-supervised on natural images"
        yield _row(f"dinov2_{size}", TIMM, HubConfig, recipe, summary)


def _uni() -> Iterator[EncoderSpec]:
    """Chen et al. 2024, and its successor."""
    recipe = Recipe(
        architecture="vit_large_patch16_224",
        card=UNI,
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
    )
    yield _row("uni_v1", TIMM, HubConfig, recipe, "UNI, ViT-L/16 on 100k slides")

    recipe = Recipe(
        architecture="vit_giant_patch14_224",
        card=replace(
            UNI,
            dim=1536,
            precision="bf16",
            hub_id="MahmoodLab/UNI2-h",
            revision=None,
            params=681_394_176,
        ),
        arguments={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "mlp_layer": "swiglu_packed",
            "act_layer": "silu",
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
    )
    yield _row("uni_v2", TIMM, HubConfig, recipe, "UNI 2, ViT-H/14 on 350k slides")


def _virchow() -> Iterator[EncoderSpec]:
    """Zimmermann et al. 2024. Tokens 1 to 4 are registers, which the mean leaves out."""
    recipe = Recipe(
        architecture="vit_huge_patch14_224",
        card=replace(
            UNI,
            dim=2560,
            transform=VIRCHOW,
            pooling="class token, then the mean of the patch tokens",
            patch_size=224,
            hub_id="paige-ai/Virchow2",
            revision=None,
            params=631_239_424,
            paper="arXiv:2408.00738",
        ),
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "mlp_layer": "swiglu_packed",
            "act_layer": "silu",
            "reg_tokens": 4,
            "dynamic_img_size": True,
        },
        variants={"cls": 1280, "cls_mean": 2560},
    )
    yield _row("virchow_v2", TIMM, VariantConfig, recipe, "Virchow 2, ViT-H/14 on 3.1M slides")


def _h_optimus() -> Iterator[EncoderSpec]:
    """Bioptimus 2024. Position embeddings are fixed at 224 px."""
    recipe = Recipe(
        architecture="vit_giant_patch14_reg4_dinov2",
        card=replace(
            UNI,
            dim=1536,
            transform=H_OPTIMUS,
            patch_size=224,
            hub_id="bioptimus/H-optimus-0",
            revision=None,
            licence="Apache-2.0",
            commercial=True,
            gated=False,
            params=1_134_774_272,
            paper="bioptimus/releases, models/h-optimus/v0 (2024)",
        ),
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    )
    yield _row("h_optimus_0", TIMM, HubConfig, recipe, "H-optimus-0, ViT-G/14 on 500k slides")
