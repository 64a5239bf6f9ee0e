"""What a run would do, by what its plugins say of themselves: nothing is opened, loaded, written.

A package that is not installed keeps nothing from being shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from microtome.errors import ConfigError, naming_encoder
from microtome.plugin.files import add_files
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import BagEncoderSpec, EncoderCard, EncoderSpec
from microtome.run.inputs.finding import SlideList, find_slides
from microtome.run.patients.patients import group_patients
from microtome.run.planning.encoders import configured
from microtome.run.planning.labels import check_files
from microtome.run.planning.matching import (
    MadeModel,
    embedder_of,
    find_slide_encoder,
    make_model,
)
from microtome.run.planning.models import find_inputs
from microtome.run.planning.plan import check_settings, plan_layout, plan_tiler
from microtome.run.planning.target import describe_target, target_fields
from microtome.run.planning.writers import plan_writers
from microtome.run.settings import EncoderChoice, RunConfig
from microtome.store.identity import describe


@dataclass(frozen=True, kw_only=True)
class PreviewedModel:
    """A model of a pass.

    Attributes:
        name: Of its feature set, or of its arrays.
        entry: The plugin.
        card: What is known of the model, if anything is without its packages.
        reads: Names of what it is given: feature sets, or a slide encoder's embeddings.
    """

    name: str
    entry: Registered
    card: EncoderCard | None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PreviewedPass:
    """One pass over the slides: a tiling and what is computed of it.

    Attributes:
        tiles: What they are, in words.
        places: Where the outputs go, ``<slide>`` and ``<patient>`` standing for ids.
        models: By kind.
    """

    tiles: str
    places: tuple[str, ...]
    models: Mapping[str, tuple[PreviewedModel, ...]]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A run before it is done.

    Attributes:
        passes: In the order in which they would be done.
        notes: What was derived and why, and what else the run would tell first.
        slides: That it would do, and those that would be refused.
        patients: How many.
    """

    passes: tuple[PreviewedPass, ...]
    notes: tuple[str, ...]
    slides: SlideList
    patients: int


def preview(config: RunConfig, registry: Registry) -> Preview:
    """Say what a run would do.

    Args:
        config: The run.
        registry: The plugins.

    Raises:
        MicrotomeError: What the run would be refused for, but for missing packages of its
            encoders and for what only loading them would tell.
    """
    registry = add_files(registry, config.encoder_plugin)
    passes = check_settings(config, registry)
    slides = find_slides(config, registry)
    patients = len(group_patients(slides)) if config.patient_encoders else 0
    notes: list[str] = []
    shown = tuple(_preview_pass(each, registry, notes) for each in passes)
    known = dict.fromkeys([*(note for each in passes for note in each.derived), *notes])
    known |= dict.fromkeys(check_files(config, slides.slides, registry))
    return Preview(passes=shown, notes=(*known, *slides.notes), slides=slides, patients=patients)


def _preview_pass(config: RunConfig, registry: Registry, notes: list[str]) -> PreviewedPass:
    is_process = config.task == "process"
    encoders = tuple(_encoder(c, registry) for c in config.encoders) if is_process else ()
    cards = {each.name: each.card for each in encoders if each.card is not None}
    spec, options = plan_tiler(config, registry, cards, notes)
    fields = describe(spec, options) | target_fields(options)
    layout = plan_layout(config, fields, registry)
    if config.task == "tissue":
        return PreviewedPass(tiles="tissue", places=(str(layout.tissue_folder),), models={})
    stores, images = plan_writers(config, registry)
    places = [str(layout.slide(each.spec, "<slide>")) for each in (*stores, *images)]
    if config.patient_encoders:
        places += [str(layout.patient(each.spec, "<patient>")) for each in stores]
    dims = {e.name: None if e.card is None else e.card.dim for e in encoders}
    slides = tuple(_slide_encoders(config, registry, dims)) if is_process else ()
    models = {
        "encoder": encoders,
        "slide_encoder": slides,
        "patient_encoder": tuple(_patient_encoders(config, registry, dims, slides)),
    }
    return PreviewedPass(tiles=describe_target(fields), places=tuple(places), models=models)


def _encoder(choice: EncoderChoice, registry: Registry) -> PreviewedModel:
    """Give an encoder's card by its spec, or where its options decide and can, by the object."""
    entry = registry.find("encoder", choice.plugin)
    spec, options = configured(registry, "encoder", choice)
    card = spec.card if isinstance(spec, EncoderSpec) else None
    if card is None and not entry.missing:
        with naming_encoder(choice.name, spec.name):
            card = registry.create("encoder", spec.name, options).card
    return PreviewedModel(name=choice.name, entry=entry, card=card)


def _slide_encoders(
    config: RunConfig, registry: Registry, dims: Mapping[str, int | None]
) -> Iterator[PreviewedModel]:
    for choice in config.slide_encoders:
        made = make_model(choice, registry, or_spec=True)
        yield from _on_tiles(made, config, registry, dims)


def _patient_encoders(
    config: RunConfig,
    registry: Registry,
    dims: Mapping[str, int | None],
    slides: Sequence[PreviewedModel],
) -> Iterator[PreviewedModel]:
    for choice in config.patient_encoders:
        made = make_model(choice, registry, or_spec=True)
        if made.takes_tiles:
            embedder = None
            if not made.needs:
                embedder = embedder_of(made, config.slide_encoders, registry, or_spec=True)
            for base in _on_tiles(embedder or made, config, registry, dims):
                name = base.name if embedder is None else f"{choice.name}-{base.name}"
                yield _shown(made, registry, name, base.reads)
            continue
        sources = [each.name for each in slides]
        if made.slide_encoder:
            found = find_slide_encoder(made, config.slide_encoders, registry)
            sources = [s for s in sources if found and (s + "-").startswith(found.name + "-")]
        is_own = len(sources) == 1 and bool(getattr(made.spec, "slide_encoder", ""))
        for source in sources:
            name = choice.name if is_own else f"{choice.name}-{source}"
            yield _shown(made, registry, name, [source])


def _on_tiles(
    made: MadeModel, config: RunConfig, registry: Registry, dims: Mapping[str, int | None]
) -> Iterator[PreviewedModel]:
    """Show an encoder on what it is given, a pooling on each feature set."""
    for reads in find_inputs(made, config, registry, dims):
        name = f"{made.choice.name}-{next(iter(reads))}" if made.is_free else made.choice.name
        yield _shown(made, registry, name, [*reads.values()])


def _shown(made: MadeModel, registry: Registry, name: str, reads: Sequence[str]) -> PreviewedModel:
    spec = made.spec
    if not isinstance(spec, BagEncoderSpec):
        raise ConfigError(f"{made} is no encoder of slides or patients.")
    card = getattr(made.model, "card", None) or spec.card
    entry = registry.find(made.choice.kind, spec.name)
    return PreviewedModel(name=name, entry=entry, card=card, reads=tuple(reads))
