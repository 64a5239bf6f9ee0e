"""Rows of slide encoders: what each needs of tiles, and its card. Cheap to import.

A slide encoder's card says the dimension of its embedding, its latents if it has some, the
precision that its own card asks for and where its weights are; the tiles that it was made for are
its `TileNeed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, SlideEncoderSpec, TileNeed
from microtome_encoders.bag_options import AbmilConfig, Prism2Config, SlideHubConfig
from microtome_encoders.catalogue import patients
from microtome_encoders.catalogue._rows import INSTALL
from microtome_encoders.catalogue.remote import UNRUN
from microtome_encoders.recipe import Companion, SlideRecipe

POOLING = "microtome_encoders.slide.pooling"
CODE = "transformers>=4.57,<5"
"""What the code of every entry below runs with."""
CODE_INSTALL = "pip install 'microtome[transformers4]'"
ELSEWHERE = "is the one that other public pipelines pin, not confirmed on the hub."
LIBRARIES = ("torch", "safetensors", "huggingface_hub", "transformers", "einops")

MAHMOOD = EncoderCard(dim=512, licence="CC-BY-NC-ND-4.0", commercial=False, gated=True)
PAIGE = replace(MAHMOOD, dim=1280, precision="fp16")


def slide_encoders() -> Iterator[SlideEncoderSpec]:
    """Give the spec of every slide encoder."""
    yield from _poolings()
    yield _titan()
    yield _prism()
    yield _prism2()
    yield from _feather()
    yield _care()
    yield from patients.slide_rows()


def at_20x(encoder: str, dim: int, patch_size: int, **options: Any) -> TileNeed:
    """Give the need of tiles at nominal 20x that do not overlap."""
    return TileNeed(
        encoder=encoder,
        dim=dim,
        patch_size=patch_size,
        magnification=20.0,
        options=MappingProxyType(options),
    )


def _poolings() -> Iterator[SlideEncoderSpec]:
    """What pools any feature set: it needs none in particular, so it is applied to each."""
    for name, target, summary in (
        ("mean", "MeanPooling", "Mean of the tiles' features"),
        ("max", "MaxPooling", "Largest value of each of the tiles' features"),
        (
            "statistics",
            "StatisticsPooling",
            "Mean, standard deviation and maximum of the tiles' features",
        ),
    ):
        yield SlideEncoderSpec(name=name, target=f"{POOLING}:{target}", summary=summary)
    yield SlideEncoderSpec(
        name="abmil",
        target="microtome_encoders.slide.abmil:AbmilEncoder",
        summary="Gated attention over tiles, with weights that you trained",
        config=AbmilConfig,
        requires=("torch", "safetensors", "huggingface_hub"),
        install=INSTALL,
        caution="It has no published weights: give a file, slide_encoder.abmil.weights=PATH.",
    )


def _row(
    name: str, target: str, recipe: SlideRecipe, summary: str, peers: Sequence[str], **values: Any
) -> SlideEncoderSpec:
    """Make the spec of a model that its hub entry's code builds; its peers call it as we do."""
    values = {
        "config": SlideHubConfig,
        "requires": LIBRARIES,
        "install": CODE_INSTALL,
        "caution": UNRUN,
        **values,
    }
    return SlideEncoderSpec(
        name=name,
        target=f"microtome_encoders.slide.{target}",
        summary=summary,
        card=recipe.card,
        needs=(recipe.need,),
        names=MappingProxyType(dict.fromkeys(peers, name)),
        remote_code=True,
        fixed=MappingProxyType({"recipe": recipe}),
        **values,
    )


def _titan() -> SlideEncoderSpec:
    """Ding et al. 2025. Parameters are those of the whole model, its text encoder included."""
    card = replace(
        MAHMOOD,
        dim=768,
        pooling="attentional pooler over the grid of tiles",
        precision="fp16",
        hub_id="MahmoodLab/TITAN",
        revision="dac6773d9961cfc75503440676ff157a2c6e8d2e",
        params=158_900_000,
        paper="doi:10.1038/s41591-025-03982-3",
    )
    recipe = SlideRecipe(
        architecture="Titan",
        card=card,
        need=at_20x("conch_v15", 768, 512),
        removed=("text_encoder",),
        companions=(Companion(hub_id="MahmoodLab/TITAN", files=("tokenizer.json",)),),
        needs=CODE,
    )
    return _row(
        "titan",
        "titan:TitanEncoder",
        recipe,
        "TITAN, a vision transformer over the grid of tiles of CONCH 1.5",
        ("atlaspatch", "trident", "slide2vec", "lazyslide", "stamp"),
        requires=(*LIBRARIES, "einops_exts", "timm"),
        coords="level0",
        caution=f"Its memory grows with the square of a slide's tiles. {UNRUN}",
    )


def _prism() -> SlideEncoderSpec:
    """Shaikovski et al. 2024. Its code wants the tokenizer of BioGPT."""
    card = replace(
        PAIGE,
        latents=(512, 1280),
        pooling="perceiver",
        hub_id="paige-ai/Prism",
        revision="b5ef311e78a0811c71ecf618f6f7140e9ebb5fc6",
        params=557_700_000,
        paper="arXiv:2405.10254",
    )
    recipe = SlideRecipe(
        architecture="Prism",
        card=card,
        need=at_20x("virchow_v1", 2560, 224),
        removed=("text_decoder",),
        companions=(
            Companion(
                hub_id="microsoft/biogpt",
                commit="eb0d815e95434dc9e3b78f464e52b899bee7d923",
                files=("vocab.json", "merges.txt"),
            ),
        ),
        needs=CODE,
    )
    return _row(
        "prism",
        "prism:PrismEncoder",
        recipe,
        "PRISM, a perceiver over the tiles of Virchow",
        ("atlaspatch", "trident", "slide2vec", "lazyslide", "stamp"),
        requires=(*LIBRARIES, "environs", "sacremoses"),
        install=f"{CODE_INSTALL} environs sacremoses",
        caution=f"Its commit, and that of BioGPT's tokenizer, {ELSEWHERE} {UNRUN}",
    )


def _prism2() -> SlideEncoderSpec:
    """Vorontsov et al. 2026. Its code wants Phi-3's configuration and tokenizer.

    Phi-3 is named without a commit there.
    """
    card = replace(
        PAIGE,
        dim=2560,
        precision="bf16",
        pooling="perceiver",
        hub_id="paige-ai/Prism2",
        revision="450352d0ddc6b42b21ce20794ce0fbefe6b5a47a",
        params=4_400_000_000,
        paper="doi:10.1038/s41591-026-04521-4",
    )
    recipe = SlideRecipe(
        architecture="Prism2",
        card=card,
        need=at_20x("virchow_v2", 1280, 224, variant="cls"),
        variants={"base": 2560, "diagnostic": 3072},
        files=("model.safetensors.index.json",),
        removed=("text_decoder", "img_projection"),
        companions=(
            Companion(
                hub_id="microsoft/Phi-3-mini-128k-instruct",
                commit="f3c06aed622e14ca0abf5115094e4fc9a9948f36",
                files=(
                    "config.json",
                    "tokenizer.json",
                    "tokenizer.model",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "added_tokens.json",
                ),
            ),
        ),
        needs=CODE,
    )
    return _row(
        "prism2",
        "prism2:Prism2Encoder",
        recipe,
        "PRISM2, a perceiver over the class tokens of Virchow2, and a language model",
        ("slide2vec", "lazyslide"),
        config=Prism2Config,
        requires=(*LIBRARIES, "flash_attn"),
        install=f"{CODE_INSTALL} && pip install flash-attn --no-build-isolation",
        caution="It wants a CUDA GPU, for flash-attn, and 20 GB of memory to be loaded. Phi-3's "
        f"commit {ELSEWHERE} {UNRUN}",
    )


def _feather() -> Iterator[SlideEncoderSpec]:
    """Trained on 24 000 slides of 108 diagnoses. Its published weights have no classifier."""
    for name, patch, need, revision, params in (
        (
            "feather",
            "CONCH 1.5",
            at_20x("conch_v15", 768, 512),
            "423c894c738294e8b0ac38938108180a2c21dd43",
            788_097,
        ),
        ("feather_uni_v2", "UNI2-h", at_20x("uni_v2", 1536, 256), None, 1_181_313),
    ):
        card = replace(
            MAHMOOD,
            pooling="gated attention",
            hub_id=f"MahmoodLab/abmil.base.{need.encoder}.pc108-24k",
            revision=revision,
            params=params,
            paper="arXiv:2506.09022",
        )
        recipe = SlideRecipe(
            architecture="ABMILModel",
            card=card,
            need=need,
            removed=("model.classifier",),
            needs=CODE,
        )
        yield _row(
            name,
            "feather:FeatherEncoder",
            recipe,
            f"FEATHER, gated attention over the tiles of {patch}",
            ("trident",),
            caution=f"Its commit {ELSEWHERE} {UNRUN}" if revision else UNRUN,
        )


def _care() -> SlideEncoderSpec:
    """2026. What it takes and gives is what its publishers' example does."""
    card = replace(
        MAHMOOD,
        licence="CC-BY-NC-4.0",
        pooling="adaptive regions",
        hub_id="Zipper-1/CARE",
        params=18_800_000,
        paper="arXiv:2602.21637",
    )
    recipe = SlideRecipe(
        architecture="CARE", card=card, need=at_20x("conch_v15", 768, 512), needs=CODE
    )
    return _row(
        "care",
        "care:CareEncoder",
        recipe,
        "CARE, regions that adapt to tissue, over the tiles of CONCH 1.5",
        ("trident",),
        coords="grid",
    )
