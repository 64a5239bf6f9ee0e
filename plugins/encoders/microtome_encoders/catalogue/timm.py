"""Rows whose loader is timm. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, EncoderSpec
from microtome_encoders.catalogue._rows import (
    BICUBIC,
    BICUBIC_256,
    CLASS_AND_MEAN,
    CLASS_TOKEN,
    EXACT,
    EXACT_BICUBIC,
    H_OPTIMUS,
    NATURAL,
    PLAIN,
    SCALES,
    TIMM,
    UNCROPPED,
    at_20x,
    normalised,
    row,
)
from microtome_encoders.options import VariantConfig
from microtome_encoders.recipe import Recipe

VIRCHOW: Mapping[str, Any] = MappingProxyType(
    {
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "global_pool": "",
        "mlp_layer": "swiglu_packed",
        "act_layer": "silu",
        "dynamic_img_size": True,
    }
)
"""What both Virchows give timm's ViT-H/14."""
VIT: Mapping[str, Any] = MappingProxyType({"init_values": 1e-5, "dynamic_img_size": True})

GATED_NC = EncoderCard(
    dim=1024,
    input_size=224,
    transform=PLAIN,
    pooling=CLASS_TOKEN,
    licence="CC-BY-NC-ND-4.0",
    commercial=False,
    gated=True,
)
"""What many models of pathology have in common: a gated class token, not for commercial use."""


def rows() -> Iterator[EncoderSpec]:
    """Give the spec of every row."""
    yield _resnet50_trunc()
    yield from _uni()
    yield _mstar()
    yield _pathorchestra()
    yield from _virchow()
    yield from _h_optimus()
    yield _h0_mini()
    yield _gigapath()
    yield _prost40m()
    yield _red_dino()


def _resnet50_trunc() -> EncoderSpec:
    """Lu et al. 2021: the baseline of CLAM."""
    card = EncoderCard(
        dim=1024,
        input_size=224,
        transform=PLAIN,
        pooling="global average of the third layer's map",
        hub_id="timm/resnet50.tv_in1k",
        licence="not stated for the weights",
        gated=False,
        params=8_543_296,
        paper="doi:10.1038/s41551-020-00682-w",
    )
    return row(
        "resnet50_trunc",
        TIMM,
        Recipe(architecture="resnet50", card=at_20x(card, 256), removed=("layer4",)),
        "ResNet-50 up to its third layer, supervised on ImageNet-1k",
        domain=NATURAL,
        names={"trident": "resnet50", "clam": "resnet50_trunc"},
        caution="TRIDENT calls it resnet50, which here is the whole network, of 2048 columns.",
    )


def _uni() -> Iterator[EncoderSpec]:
    """Chen et al. 2024, and its successor."""
    card = replace(
        at_20x(GATED_NC, 256),
        precision="fp16",
        hub_id="MahmoodLab/UNI",
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
        params=303_350_784,
        paper="doi:10.1038/s41591-024-02857-3",
    )
    yield row(
        "uni_v1",
        TIMM,
        Recipe(architecture="vit_large_patch16_224", card=card, arguments=VIT),
        "UNI, ViT-L/16 on 100k slides",
        names={
            "atlaspatch": "uni_v1",
            "trident": "uni_v1",
            "slide2vec": "uni",
            "lazyslide": "uni",
            "stamp": "uni",
            "clam": "uni_v1",
        },
    )
    card = replace(
        card,
        dim=1536,
        precision="bf16",
        hub_id="MahmoodLab/UNI2-h",
        revision=None,
        params=681_394_176,
    )
    arguments = {
        **VIT,
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "mlp_layer": "swiglu_packed",
        "act_layer": "silu",
        "reg_tokens": 8,
    }
    yield row(
        "uni_v2",
        TIMM,
        Recipe(architecture="vit_giant_patch14_224", card=card, arguments=arguments),
        "UNI 2, ViT-H/14 on 350k slides",
        names={
            "atlaspatch": "uni_v2",
            "trident": "uni_v2",
            "slide2vec": "uni2",
            "lazyslide": "uni2",
            "stamp": "uni2",
        },
    )


def _mstar() -> EncoderSpec:
    """Xu et al. 2025."""
    card = replace(
        at_20x(GATED_NC, 224),
        transform=EXACT_BICUBIC,
        hub_id="Wangyh/mSTAR",
        params=303_350_784,
        paper="doi:10.1038/s41467-025-66220-x",
    )
    return row(
        "mstar",
        TIMM,
        Recipe(architecture="vit_large_patch16_224", card=card, arguments=VIT),
        "mSTAR, ViT-L/16 taught by reports and gene expression",
        names={"slide2vec": "mstar", "lazyslide": "mstar", "stamp": "mstar"},
        caution="The transform of its hub entry (mean and std 0.5, crop 0.9) is timm's stock and "
        "not its own; LazySlide resizes bilinearly.",
    )


def _pathorchestra() -> EncoderSpec:
    """Yan et al. 2025."""
    card = replace(
        GATED_NC,
        transform=UNCROPPED,
        hub_id="AI4Pathology/PathOrchestra",
        params=303_350_784,
        paper="arXiv:2503.24345",
    )
    return row(
        "pathorchestra",
        TIMM,
        Recipe(architecture="vit_large_patch16_224", card=card, arguments=VIT),
        "PathOrchestra, ViT-L/16 on 300k slides",
        names={"atlaspatch": "pathorchestra", "lazyslide": "path_orchestra"},
        caution="Its architecture is inferred from its dimension and patch size: another one would "
        "be refused by its weights, not run.",
    )


def _virchow() -> Iterator[EncoderSpec]:
    """Vorontsov et al. 2024; Zimmermann et al. 2024, with registers, which the mean leaves out."""
    card = replace(
        at_20x(GATED_NC, 224),
        dim=2560,
        transform=BICUBIC,
        pooling=CLASS_AND_MEAN,
        precision="fp16",
        hub_id="paige-ai/Virchow",
        licence="Apache-2.0",
        commercial=True,
        params=631_229_184,
        paper="doi:10.1038/s41591-024-03141-0",
    )
    recipe = Recipe(
        architecture="vit_huge_patch14_224",
        card=card,
        arguments=VIRCHOW,
        variants={"cls": 1280, "cls_mean": 2560},
    )
    peers = ("trident", "slide2vec", "lazyslide", "stamp")
    caution = "STAMP's {} is the class token alone, 1280 columns: that is variant=cls."
    yield row(
        "virchow_v1",
        TIMM,
        recipe,
        "Virchow, ViT-H/14 on 1.5M slides",
        config=VariantConfig,
        names={"atlaspatch": "virchow_v1", **dict.fromkeys(peers, "virchow")},
        caution=caution.format("virchow"),
    )
    card = replace(
        card,
        hub_id="paige-ai/Virchow2",
        licence="CC-BY-NC-ND-4.0",
        commercial=False,
        also_mpp=SCALES,
        params=631_239_424,
        paper="arXiv:2408.00738",
    )
    yield row(
        "virchow_v2",
        TIMM,
        replace(recipe, card=card, arguments={**VIRCHOW, "reg_tokens": 4}),
        "Virchow 2, ViT-H/14 on 3.1M slides",
        config=VariantConfig,
        names={"atlaspatch": "virchow_v2", **dict.fromkeys(peers, "virchow2")},
        caution=caution.format("virchow2"),
    )


def _h_optimus() -> Iterator[EncoderSpec]:
    """Bioptimus 2024 and 2025. Position embeddings are fixed at 224 px."""
    open_card = replace(
        at_20x(GATED_NC, 224),
        dim=1536,
        transform=normalised(EXACT, H_OPTIMUS),
        precision="fp16",
        hub_id="bioptimus/H-optimus-0",
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        params=1_134_774_272,
        paper="bioptimus/releases, models/h-optimus/v0 (2024)",
    )
    gated_card = replace(
        open_card,
        hub_id="bioptimus/H-optimus-1",
        licence="CC-BY-NC-ND-4.0",
        commercial=False,
        gated=True,
        paper="",
    )
    arguments = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False}
    for number, card, slides in ((0, open_card, "500k"), (1, gated_card, "1M")):
        name = f"h_optimus_{number}"
        peers = dict.fromkeys(("slide2vec", "lazyslide", "stamp"), f"h-optimus-{number}")
        recipe = Recipe(
            architecture="vit_giant_patch14_reg4_dinov2", card=card, arguments=arguments
        )
        yield row(
            name,
            TIMM,
            recipe,
            f"H-optimus-{number}, ViT-G/14 on {slides} slides",
            names={"atlaspatch": name, "trident": f"hoptimus{number}", **peers},
            caution="slide2vec and LazySlide resize bicubically, so their features of tiles that "
            "are not 224 px differ.",
        )


def _h0_mini() -> EncoderSpec:
    """Filiot et al. 2025."""
    card = replace(
        at_20x(GATED_NC, 224),
        dim=1536,
        transform=normalised(BICUBIC, H_OPTIMUS),
        pooling=CLASS_AND_MEAN,
        precision="fp16",
        hub_id="bioptimus/H0-mini",
        params=85_739_520,
        paper="arXiv:2501.16239",
    )
    recipe = Recipe(
        architecture="vit_base_patch14_reg4_dinov2",
        card=card,
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 2.66667 * 2,
            "mlp_layer": "swiglu_packed",
            "act_layer": "silu",
            "global_pool": "",
        },
        variants={"cls": 768, "cls_mean": 1536},
    )
    return row(
        "h0_mini",
        TIMM,
        recipe,
        "H0-mini, ViT-B/14 distilled from H-optimus-0",
        config=VariantConfig,
        names={
            "atlaspatch": "h0_mini",
            "trident": "h0-mini",
            "slide2vec": "h0-mini",
            "lazyslide": "h0-mini",
        },
        caution="TRIDENT's default is the class token alone, 768 columns: that is variant=cls.",
    )


def _gigapath() -> EncoderSpec:
    """Xu et al. 2024. Its patches are of 16 px, whatever the name of its architecture says."""
    card = replace(
        at_20x(GATED_NC, 256),
        dim=1536,
        transform=BICUBIC_256,
        precision="fp16",
        hub_id="prov-gigapath/prov-gigapath",
        licence="Apache-2.0 with conditions",
        params=1_134_953_984,
        paper="doi:10.1038/s41586-024-07441-w",
    )
    arguments = {"img_size": 224, "patch_size": 16, "dynamic_img_size": True}
    peers = ("trident", "slide2vec", "lazyslide", "stamp")
    return row(
        "prov_gigapath",
        TIMM,
        Recipe(architecture="vit_giant_patch14_dinov2", card=card, arguments=arguments),
        "Prov-GigaPath's tile encoder, ViT-G/16 on 171k slides",
        names={
            "atlaspatch": "prov_gigapath",
            **dict.fromkeys(peers, "gigapath"),
            "tiatoolbox": "prov-gigapath",
        },
        caution="The transform of its hub entry resizes to 224 px; its own is 256 px, then the "
        "centre of 224.",
    )


def _prost40m() -> EncoderSpec:
    """Grisi et al. 2026."""
    card = EncoderCard(
        dim=384,
        input_size=224,
        transform=PLAIN,
        pooling=CLASS_TOKEN,
        hub_id="waticlems/Prost40M",
        licence="not stated",
        params=21_619_584,
    )
    arguments = {"img_size": 224, "patch_size": 14, "dynamic_img_size": True}
    return row(
        "prost40m",
        TIMM,
        Recipe(architecture="vit_small_patch16_224", card=at_20x(card, 224), arguments=arguments),
        "Prost40M, ViT-S/14 on the prostate",
        names={"slide2vec": "prost40m"},
        caution="Its transform is not confirmed: compare it with the configuration in its hub "
        "entry before use.",
    )


def _red_dino() -> EncoderSpec:
    """Zedda et al. 2025. Its page on the hub gives the licence."""
    card = EncoderCard(
        dim=1024,
        input_size=224,
        transform=EXACT,
        pooling=CLASS_TOKEN,
        hub_id="Snarcy/RedDino-large",
        licence="Apache-2.0",
        commercial=True,
        params=303_227_904,
    )
    arguments = {"img_size": 224, "dynamic_img_size": True}
    return row(
        "red_dino",
        TIMM,
        Recipe(architecture="vit_large_patch14_dinov2", card=card, arguments=arguments),
        "RedDino, ViT-L/14 on red blood cells",
        names={"stamp": "red-dino"},
        caution="Its architecture is inferred from its smaller siblings: another one would be "
        "refused by its weights, not run.",
    )
