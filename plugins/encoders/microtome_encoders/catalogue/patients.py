"""Patient encoders, and slide encoders with packages of their own, as data. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from microtome.plugin.specs import EncoderCard, PatientEncoderSpec, SlideEncoderSpec, TileNeed
from microtome_encoders.bag_options import (
    ChiefConfig,
    GigapathConfig,
    MoozyConfig,
    MoozySlideConfig,
    SlideHubConfig,
)
from microtome_encoders.options import ConcatConfig
from microtome_encoders.recipe import SlideRecipe

POOLING = "microtome_encoders.patient.pooling:"
LIBRARIES = ("torch", "safetensors", "huggingface_hub")
UNRUN = "microtome's own tests run a stand-in for its package."

MOOZY_CARD = EncoderCard(
    dim=768,
    pooling="case token over the class tokens of the slides",
    hub_id="AtlasAnalyticsLab/MOOZY",
    licence="CC-BY-NC-SA-4.0",
    commercial=False,
    gated=False,
    params=64_100_000,
    paper="arXiv:2603.27048",
)
"""In fp32, as its package runs it unless told otherwise. Parameters to four digits, without those
of the patch encoder."""
MOOZY_NEED = TileNeed(
    encoder="lunit_vit_small_patch8_dino", dim=384, patch_size=224, magnification=20.0
)
MOOZY_PACKAGE: Mapping[str, Any] = MappingProxyType(
    {"requires": (*LIBRARIES, "moozy"), "install": "pip install 'microtome[torch]' moozy==0.1.0"}
)
GIGAPATH_COMMIT = "9d42a60babe04359978d5ad2eb94e7b3bcf9ca39"
"""It has the architecture of GigaPath-Flash too, and runs under numpy 2."""
MADELEINE_COMMIT = "de7c85acc2bdad352e6df8eee5694f8b6f288012"
"""At which the package that it installs is called madeleine."""


def patient_rows() -> Iterator[PatientEncoderSpec]:
    """Give the spec of every patient encoder."""
    for pool, words in (("mean", "Mean"), ("max", "Largest value of each column")):
        yield PatientEncoderSpec(
            name=pool,
            target=f"{POOLING}SlidePooling",
            summary=f"{words} of the embeddings of a patient's slides",
            takes="slides",
            fixed=MappingProxyType({"pool": pool}),
        )
    yield PatientEncoderSpec(
        name="concat",
        target=f"{POOLING}ConcatEncoder",
        summary="All tiles of a patient as those of one slide, by any slide encoder",
        config=ConcatConfig,
        takes="tiles",
    )
    yield PatientEncoderSpec(
        name="moozy",
        target="microtome_encoders.patient.moozy:MoozyPatientEncoder",
        summary="MOOZY, a transformer over slides, on 41k patients",
        config=MoozyConfig,
        card=MOOZY_CARD,
        takes="tiles",
        needs=(MOOZY_NEED,),
        fixed=_recipe(MOOZY_CARD, MOOZY_NEED, architecture="MOOZY", files=("moozy.pt",)),
        names=MappingProxyType({"atlaspatch": "moozy", "slide2vec": "moozy"}),
        caution=UNRUN,
        **MOOZY_PACKAGE,
    )


def slide_rows() -> Iterator[SlideEncoderSpec]:
    """Give the spec of every slide encoder with a package, or code, of its own."""
    yield from _gigapath()
    yield _chief()
    yield _madeleine()
    yield _moozy()


def _recipe(card: EncoderCard, need: TileNeed, **values: Any) -> Mapping[str, Any]:
    return MappingProxyType({"recipe": SlideRecipe(card=card, need=need, **values)})


def _slide(name: str, target: str, summary: str, **values: Any) -> SlideEncoderSpec:
    """Make the spec of a row whose recipe says its card and its need."""
    recipe: SlideRecipe = values["fixed"]["recipe"]
    values["names"] = MappingProxyType(dict(values["names"]))
    return SlideEncoderSpec(
        name=name,
        target=f"microtome_encoders.slide.{target}",
        summary=summary,
        card=recipe.card,
        needs=(recipe.need,),
        **values,
    )


def _gigapath() -> Iterator[SlideEncoderSpec]:
    """Xu et al. 2024, Usuyama et al. 2026. Tiles of both are 256 px at 20x, side by side."""
    card = EncoderCard(
        dim=768,
        pooling="mean of the tiles' tokens after the eleventh of twelve layers",
        precision="fp16",
        hub_id="prov-gigapath/prov-gigapath",
        licence="Apache-2.0 with conditions",
        commercial=False,
        gated=True,
        params=86_330_880,
        paper="doi:10.1038/s41586-024-07441-w",
    )
    flash = replace(
        card,
        dim=384,
        hub_id="prov-gigapath/prov-gigapath-flash",
        licence="Apache-2.0",
        params=21_500_000,
        paper="arXiv:2607.18218",
    )
    for name, made, encoder, columns, summary, peers in (
        (
            "gigapath",
            card,
            "prov_gigapath",
            1536,
            "Prov-GigaPath, LongNet on 171k slides",
            {"slide2vec": "gigapath-slide", "lazyslide": "gigapath-slide-encoder"},
        ),
        (
            "gigapath_flash",
            flash,
            "gigapath_flash",
            384,
            "GigaPath-Flash, the small LongNet over its small tile encoder",
            {"lazyslide": "gigapath-flash-slide-encoder"},
        ),
    ):
        need = TileNeed(encoder=encoder, dim=columns, patch_size=256, magnification=20.0)
        tool_name = name.replace("_", "-")
        stamp = {"stamp": "gigapath"} if name == "gigapath" else {}
        yield _slide(
            name,
            "gigapath:GigapathSlideEncoder",
            summary,
            config=GigapathConfig,
            coords="grid",
            fixed=_recipe(
                made,
                need,
                architecture=f"gigapath_slide_enc12l{made.dim}d",
                files=("slide_encoder.pth",),
                variants={"mean": made.dim, "cls": made.dim},
            ),
            requires=(*LIBRARIES, "timm", "einops", "fairscale", "flash_attn", "gigapath"),
            install="pip install 'microtome[torch]' einops fairscale "
            f"git+https://github.com/prov-gigapath/prov-gigapath@{GIGAPATH_COMMIT} && pip install "
            "flash-attn --no-build-isolation",
            names={"trident": tool_name, **peers, **stamp},
            caution="TRIDENT's embedding; slide2vec and LazySlide take the class token, which is "
            f"variant=cls. It needs an NVIDIA GPU. {UNRUN}",
        )


def _chief() -> SlideEncoderSpec:
    """Wang et al. 2024."""
    card = EncoderCard(
        dim=768,
        pooling="mean of the tiles' features, weighted by attention",
        licence="AGPL-3.0",
        commercial=False,
        gated=False,
        params=1_185_032,
        paper="doi:10.1038/s41586-024-07894-z",
    )
    need = TileNeed(encoder="chief_ctranspath", dim=768, patch_size=256, magnification=10.0)
    return _slide(
        "chief",
        "chief:ChiefSlideEncoder",
        "CHIEF, attention over the tiles, on 60k slides of 19 sites",
        config=ChiefConfig,
        fixed=_recipe(
            card,
            need,
            architecture="CHIEF",
            by_hand="the README of hms-dbmi/CHIEF says where CHIEF_pretraining.pth is downloaded "
            "by hand; put it there, or give encoder.NAME.weights=PATH.",
        ),
        requires=("torch", "safetensors", "addict", "yaml"),
        install="pip install 'microtome[torch]' addict pyyaml && git clone "
        "https://github.com/hms-dbmi/CHIEF  # then slide_encoder.chief.code_folder=CHIEF",
        names={"trident": "chief", "lazyslide": "chief-slide-encoder", "stamp": "chief"},
        caution="Its code is no package: clone hms-dbmi/CHIEF and give code_folder=FOLDER. No "
        "commit is pinned: the feature of 724a374 has 512 columns and is refused, and which commit "
        "has 768 was not confirmed; the code's hash is on record. microtome's own tests run a "
        "stand-in for it.",
    )


def _madeleine() -> SlideEncoderSpec:
    """Jaume et al. 2024."""
    card = EncoderCard(
        dim=512,
        pooling="attention in several heads, then a projection",
        precision="bf16",
        hub_id="MahmoodLab/madeleine",
        licence="CC-BY-NC-ND-4.0",
        commercial=False,
        gated=False,
        params=4_700_000,
        paper="arXiv:2408.02859",
    )
    need = TileNeed(encoder="conch_madeleine", dim=512, patch_size=256, magnification=10.0)
    return _slide(
        "madeleine",
        "madeleine:MadeleineSlideEncoder",
        "MADELEINE, slides of H&E aligned with other stains of theirs",
        config=SlideHubConfig,
        fixed=_recipe(card, need, architecture="MADELEINE", files=("model.pt",)),
        requires=(*LIBRARIES, "einops", "madeleine"),
        install="pip install 'microtome[torch]' "
        f"git+https://github.com/mahmoodlab/MADELEINE@{MADELEINE_COMMIT}",
        names=dict.fromkeys(("trident", "lazyslide", "stamp"), "madeleine"),
        caution=f"TRIDENT and STAMP give it features of CONCH at 448 px. {UNRUN}",
    )


def _moozy() -> SlideEncoderSpec:
    """Kotp et al. 2026."""
    card = replace(MOOZY_CARD, pooling="class token over the tiles", params=42_830_000)
    return _slide(
        "moozy",
        "moozy:MoozySlideEncoder",
        "MOOZY, a transformer over tiles, on 77k slides",
        config=MoozySlideConfig,
        coords="level0",
        fixed=_recipe(
            card,
            MOOZY_NEED,
            architecture="MOOZY",
            files=("moozy.pt",),
            variants={"slide": 768, "case": 768},
        ),
        names={"atlaspatch": "moozy", "slide2vec": "moozy-slide", "lazyslide": "moozy"},
        caution="AtlasPatch's embedding of a slide is that of a patient with this slide alone, "
        f"which is variant=case. {UNRUN}",
        **MOOZY_PACKAGE,
    )
