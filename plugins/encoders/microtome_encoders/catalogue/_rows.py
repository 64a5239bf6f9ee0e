"""What rows share: common transforms, and the spec of a row. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, EncoderSpec, Transform
from microtome_encoders.options import HubConfig

TIMM = "microtome_encoders.patch.timm:TimmEncoder"
TORCHVISION = "microtome_encoders.patch.torchvision:TorchvisionEncoder"
INSTALL = "pip install 'microtome[torch]'"

TIMM_LIBRARIES = ("torch", "safetensors", "timm", "huggingface_hub")
TORCHVISION_LIBRARIES = ("torch", "safetensors", "torchvision")

PATHOLOGY, NATURAL, VISION_LANGUAGE = "pathology", "natural", "vision-language"

CLASS_TOKEN = "class token"
CLASS_AND_MEAN = "class token, then the mean of the patch tokens"
AVERAGE = "global average of the last feature map"

PLAIN = Transform()
"""Shortest edge to 224, bilinear; ImageNet's colours."""
PLAIN_256 = Transform(resize=256)
BICUBIC = Transform(interpolation="bicubic")
BICUBIC_256 = replace(BICUBIC, resize=256)
UNCROPPED = Transform(crop=None)
EXACT = Transform(resize_mode="exact", crop=None)
EXACT_BICUBIC = replace(EXACT, interpolation="bicubic")

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
HALF: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
H_OPTIMUS: Colours = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT: Colours = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
"""Means and standard deviations, for `normalised`."""


def normalised(transform: Transform, colours: Colours) -> Transform:
    """Give a transform with other means and standard deviations."""
    mean, std = colours
    return replace(transform, mean=mean, std=std)


def at_20x(card: EncoderCard, patch_size: int) -> EncoderCard:
    """Give a card that recommends tiles of some side at 0.5 µm per pixel."""
    return replace(card, patch_size=patch_size, mpp=0.5, magnification=20.0)


MAP = ("tokens",)
VIT_GIVES = ("tokens", "attention")

_GIVES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "TimmEncoder": {"vit_": VIT_GIVES, "": MAP},
        "MettleEncoder": {"": VIT_GIVES},
        "KeepEncoder": {"": VIT_GIVES},
        "ConchEncoder": {"": MAP},
        "TorchvisionEncoder": {"vit_": VIT_GIVES, "": MAP},
        "TransformersEncoder": {"Siglip": MAP, "": VIT_GIVES},
        "ISightEncoder": {"": VIT_GIVES},
        "GemmaEncoder": {"": MAP},
        "RemoteEncoder": {"modeling_": MAP},
        "OpenClipEncoder": {"ViT": VIT_GIVES, "vit_": VIT_GIVES, "RN": MAP},
    }
)
"""What models give besides embeddings, by loader and by how their architecture's name begins."""

SCALES = (0.25, 1.0, 2.0)
"""What models of several magnifications were trained at besides 0.5 µm per pixel."""


def torch_spec(name: str, target: str, summary: str, **values: Any) -> EncoderSpec:
    """Make the spec of an encoder that needs torch and the library of its loader.

    Args:
        name: The name in configurations.
        target: Of the loader.
        summary: One line for listings.
        values: Other attributes of `EncoderSpec`; what timm's or torchvision's loader needs if
            they name no ``requires`` and no ``install``.
    """
    needed = TORCHVISION_LIBRARIES if target == TORCHVISION else TIMM_LIBRARIES
    values = {"requires": needed, "install": INSTALL, **values}
    return EncoderSpec(name=name, target=target, summary=summary, **values)


def row(name: str, target: str, recipe: Any, summary: str, **values: Any) -> EncoderSpec:
    """Make the spec of a row of the catalogue: its card and its recipe are the loader's.

    Args:
        name: The name in configurations.
        target: Of the loader, which is called as ``target(config, recipe=recipe)``.
        recipe: What the loader needs; its ``card`` is the spec's.
        summary: One line for listings.
        values: Other attributes of `EncoderSpec`; the config is `HubConfig`, and the model one of
            pathology, if they say nothing else. ``names`` may be a plain dictionary.
    """
    fixed = MappingProxyType({"recipe": recipe})
    gives = _GIVES.get(target.rpartition(":")[2], {})
    found = (what for start, what in gives.items() if recipe.architecture.startswith(start))
    values = {"config": HubConfig, "domain": PATHOLOGY, "gives": next(found, ()), **values}
    values["names"] = MappingProxyType(dict(values.get("names", {})))
    return torch_spec(name, target, summary, card=recipe.card, fixed=fixed, **values)
