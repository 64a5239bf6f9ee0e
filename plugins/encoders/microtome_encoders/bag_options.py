"""What a user may choose of an encoder of slides. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from microtome.plugin import option, runtime
from microtome_encoders.options import Pinned, SourceConfig


@dataclass
class SlideHubConfig(Pinned, SourceConfig):
    """Options of a slide encoder whose weights live on the hub."""


class Prism2Embedding(Enum):
    """Which of PRISM2's embeddings."""

    base = "base"
    """Of the perceiver: for biomarkers, survival and new tasks."""
    diagnostic = "diagnostic"
    """Of the language model, asked for a diagnosis: for cancer and its subtypes."""


@dataclass
class Prism2Config(SlideHubConfig):
    """Options of PRISM2."""

    variant: Prism2Embedding = option(
        Prism2Embedding.base, help="Which embedding: 'base' (2560) or 'diagnostic' (3072)."
    )


@dataclass
class AbmilConfig(SourceConfig):
    """Options of attention-based pooling, which has no published weights."""

    weights: str = runtime(
        "",
        help="The file of weights that you trained (.safetensors, .pth, .pt, .bin), which must be "
        "given; 'random' to try a run.",
    )
    encoder: str = option(
        "",
        help="The patch encoder that its weights were trained on; empty for each of the run's that "
        "gives as many columns as they take.",
    )
    hidden: int = runtime(
        128, help="Width of the attention of weights=random; a file says its own."
    )


class GigapathEmbedding(Enum):
    """Which of GigaPath's embeddings."""

    mean = "mean"
    """The mean of the tiles' tokens after the eleventh of twelve layers, as in TRIDENT."""
    cls = "cls"
    """The class token after the last layer, as in slide2vec and LazySlide."""


@dataclass
class GigapathConfig(SlideHubConfig):
    """Options of GigaPath."""

    variant: GigapathEmbedding = option(
        GigapathEmbedding.mean, help="Which embedding: 'mean' or 'cls'."
    )


@dataclass
class ChiefConfig(SourceConfig):
    """Options of CHIEF, whose code and weights are no package and on no hub."""

    code_folder: str = runtime("", help="The folder of CHIEF's repository, which must be given.")
    weights: str = runtime(
        "",
        help="A file of weights, or 'random'; empty for model_weight/CHIEF_pretraining.pth in the "
        "repository's folder.",
    )


@dataclass
class MoozyConfig(SlideHubConfig):
    """Options of MOOZY."""

    max_tiles: int | None = option(
        None, help="Of a slide with more tiles, so many are taken, evenly from the top."
    )


class MoozyEmbedding(Enum):
    """Which of MOOZY's embeddings of a slide."""

    slide = "slide"
    """The class token over the tiles, as in slide2vec and LazySlide."""
    case = "case"
    """That of a patient with this slide alone, as in AtlasPatch."""


@dataclass
class MoozySlideConfig(MoozyConfig):
    """Options of MOOZY on a slide."""

    variant: MoozyEmbedding = option(
        MoozyEmbedding.slide, help="Which embedding: 'slide' or 'case'."
    )
