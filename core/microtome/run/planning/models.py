"""Slide and patient encoders in a run: what each needs, what each reads, what is planned of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError, naming_encoder
from microtome.plugin.aliases import listed
from microtome.plugin.registry import Registry
from microtome.plugin.specs import EncoderCard, TileNeed
from microtome.run.planning.devices import describe_fallback, resolve_device, resolve_precision
from microtome.run.planning.matching import (
    MadeModel,
    embedder_of,
    find_giver,
    find_slide_encoder,
    make_model,
    options_chosen,
)
from microtome.run.settings import RunConfig
from microtome.store.identity import describe

if TYPE_CHECKING:
    from microtome.run.planning.encoders import PlannedEncoder


@dataclass(eq=False, kw_only=True)
class PlannedModel:
    """A slide or patient encoder of a run, on its inputs: made, not loaded.

    Attributes:
        name: Of its arrays.
        made: The object and where it is from.
        registry: Likewise.
        device: Resolved.
        precision: Resolved.
        fields: What its identity depends on besides its inputs.
        reads: The run's feature sets by the key that it knows them by.
        contract: What it was promised of them.
        loaded: Whether its weights are.
    """

    name: str
    made: MadeModel
    registry: Registry
    device: str
    precision: str
    fields: Mapping[str, Any]
    reads: Mapping[str, str]
    contract: tuple[Mapping[str, Any], ...]
    loaded: bool = False

    @property
    def kind(self) -> str:
        """``"slide_encoder"`` or ``"patient_encoder"``."""
        return self.made.choice.kind

    @property
    def model(self) -> Any:
        """The object."""
        return self.made.model

    @property
    def card(self) -> EncoderCard | None:
        """What is known of the model."""
        own: EncoderCard | None = getattr(self.model, "card", None)
        return own or self.made.spec.card

    def ensure_loaded(self) -> None:
        """Load the weights once.

        Raises:
            EncoderError: If they cannot be had.
            PluginError: If the plugin fails in another way.
        """
        if not self.loaded:
            spec = self.made.spec
            with (
                naming_encoder(self.made.choice.name, spec.name, self.kind),
                self.registry.blame(self.kind, spec.name, "loaded"),
            ):
                self.model.load(self.device, self.precision)
            self.loaded = True

    def __str__(self) -> str:
        """Name it with its device and precision."""
        return f"{self.name} ({self.device}, {self.precision})"


@dataclass(eq=False, kw_only=True)
class PlannedPatientEncoder(PlannedModel):
    """A patient encoder of a run.

    Attributes:
        embeddings: The slide encoder whose embeddings it takes; empty where it takes tiles.
        embedder: What its ``embed`` is, where it names a slide encoder and takes tiles.
    """

    embeddings: str = ""
    embedder: PlannedModel | None = None


def array_keys(planned: PlannedModel, *, latents: bool) -> Sequence[str]:
    """Name the arrays that a finished slide has of an encoder, as far as its card tells."""
    has_latents = latents and planned.card is not None and planned.card.latents is not None
    groups = ("slide_features", "slide_latents") if has_latents else ("slide_features",)
    return [f"{group}/{planned.name}" for group in groups]


def plan_slide_encoders(
    config: RunConfig, registry: Registry, encoders: Sequence[PlannedEncoder], notes: list[str]
) -> tuple[PlannedModel, ...]:
    """Make a run's slide encoders, each on what it reads; a pooling on every feature set.

    Raises:
        ConfigError: If one needs features that this run does not compute.
        PluginError: If a plugin is unknown or misses a library.
    """
    choices = config.slide_encoders if config.task == "process" else ()
    planned = [
        each
        for choice in choices
        for each in _on_tiles(make_model(choice, registry), config, registry, encoders)
    ]
    _refuse_twins(planned, "slide encoders")
    notes += _fallbacks(planned)
    return tuple(planned)


def plan_patient_encoders(
    config: RunConfig,
    registry: Registry,
    encoders: Sequence[PlannedEncoder],
    slide_encoders: Sequence[PlannedModel],
    notes: list[str],
) -> tuple[PlannedPatientEncoder, ...]:
    """Make a run's patient encoders, each on what it reads.

    Raises:
        ConfigError: If one needs what this run does not compute.
        PluginError: If a plugin is unknown or misses a library.
    """
    planned: list[PlannedPatientEncoder] = []
    choices = config.patient_encoders if config.task == "process" else ()
    for made in (make_model(choice, registry) for choice in choices):
        if not made.takes_tiles:
            planned += _on_slides(made, config, registry, slide_encoders)
            continue
        embedder = embedder_of(made, config.slide_encoders, registry)
        if embedder is None or made.needs:
            bases = _on_tiles(made, config, registry, encoders)
        else:
            bases = _on_tiles(embedder, config, registry, encoders)
        for base in bases:
            planned.append(_patient(made, base, registry, embedder=embedder))
    _refuse_twins(planned, "patient encoders")
    notes += _fallbacks(planned)
    return tuple(planned)


def _patient(
    made: MadeModel, base: PlannedModel, registry: Registry, *, embedder: MadeModel | None
) -> PlannedPatientEncoder:
    """Put a patient encoder on the tiles that it, or its slide encoder, reads."""
    own = base.made is made
    own_embedder = None
    if embedder is not None:
        own_embedder = base if not own else _planned(embedder, registry, reads=base.reads)
    plain = _planned(made, registry, reads=base.reads, contract=base.contract)
    return PlannedPatientEncoder(
        **{
            **vars(plain),
            "name": base.name if own else f"{made.choice.name}-{base.name}",
            "fields": {**plain.fields, **_embeds(own_embedder)},
        },
        embedder=own_embedder,
    )


def _embeds(embedder: PlannedModel | None) -> dict[str, Any]:
    return {} if embedder is None else {"slide_encoder": dict(embedder.fields)}


def _on_slides(
    made: MadeModel, config: RunConfig, registry: Registry, slide_encoders: Sequence[PlannedModel]
) -> Iterator[PlannedPatientEncoder]:
    """Put a patient encoder on the embeddings of the slide encoder that it names, or of each."""
    named = made.slide_encoder
    found = find_slide_encoder(made, config.slide_encoders, registry) if named else None
    sources = [s for s in slide_encoders if not named or (found and s.made.choice == found)]
    if not sources:
        raise ConfigError(
            f"{made} takes embeddings of slides{f' by {named}' if named else ''}, which this run "
            f"does not make. Add slide_encoder={named or 'NAME'}."
        )
    for source in sources:
        promise = {"slide_encoder": source.made.spec.name, **options_chosen(source.made)}
        if source.card is not None:
            promise["dim"] = source.card.dim
        plain = _planned(made, registry, reads={}, contract=(promise,))
        name = f"{made.choice.name}-{source.name}"
        if named and len(sources) == 1 and getattr(made.spec, "slide_encoder", ""):
            name = made.choice.name
        yield PlannedPatientEncoder(**{**vars(plain), "name": name}, embeddings=source.name)


def _on_tiles(
    made: MadeModel, config: RunConfig, registry: Registry, encoders: Sequence[PlannedEncoder]
) -> Iterator[PlannedModel]:
    """Put an encoder on the feature sets that it needs, or a pooling on each that it can take."""
    by_name = {encoder.name: encoder for encoder in encoders}
    inputs = find_inputs(made, config, registry, {e.name: e.card.dim for e in encoders})
    if not made.is_free:
        contract = tuple(_promised(made, need) for need in made.needs)
        yield _planned(made, registry, reads=inputs[0], contract=contract)
        return
    for reads in inputs:
        # Each has an object of its own, which may learn the number of columns as it is loaded.
        one = replace(made, model=make_model(made.choice, registry).model)
        encoder = by_name[next(iter(reads))]
        contract = ({"encoder": encoder.spec.name, "dim": encoder.card.dim},)
        planned = _planned(one, registry, reads=reads, contract=contract)
        planned.name = f"{made.choice.name}-{encoder.name}"
        yield planned


def find_inputs(
    made: MadeModel, config: RunConfig, registry: Registry, dims: Mapping[str, int | None]
) -> list[Mapping[str, str]]:
    """Find the feature sets of a pass that an encoder is given, by the key that it knows them by.

    Args:
        made: The encoder.
        config: The pass.
        registry: The plugins.
        dims: Columns of the feature sets by name; None where not known yet.

    Returns:
        One mapping; for a pooling one for each feature set that it can take.

    Raises:
        ConfigError: If the pass does not compute what is needed.
    """
    if not made.is_free:
        reads = {need.key: _reads(made, need, config, registry) for need in made.needs}
        for need in made.needs:
            _check_dim(made, need, dims[reads[need.key]])
        return [reads]
    wanted = {need.dim for need in made.needs} - {None}
    taken = [name for name, dim in dims.items() if not wanted or dim in (None, *wanted)]
    if not taken:
        known = listed([f"{name} ({dim})" for name, dim in dims.items()]) or "none"
        columns = f" of {listed([str(dim) for dim in wanted])} columns" if wanted else ""
        raise ConfigError(
            f"{made} pools features{columns}, and this run computes {known}. Choose an encoder."
        )
    return [{name: name} for name in taken]


def _promised(made: MadeModel, need: TileNeed) -> dict[str, Any]:
    """Give what a need says, as identities hold it: what it leaves open is left out."""
    coords = getattr(made.spec, "coords", "")
    free = TileNeed()
    said = {f.name: getattr(need, f.name) for f in fields(need)}
    chosen = {name: value for name, value in said.items() if value != getattr(free, name)}
    chosen |= {"coords": coords} if coords else {}
    return chosen | ({"options": dict(need.options)} if need.options else {})


def _reads(made: MadeModel, need: TileNeed, config: RunConfig, registry: Registry) -> str:
    giver = find_giver(config.encoders, need, registry)
    if giver is None:
        raise ConfigError(
            f"{made} needs the features {need.key!r}, which this run does not compute: add "
            f"encoder={need.encoder}."
        )
    return giver.name


def _check_dim(made: MadeModel, need: TileNeed, dim: int | None) -> None:
    if dim is not None and need.dim not in (None, dim):
        raise ConfigError(
            f"{made} needs {need.dim} columns of {need.key!r}, and it gives {dim}: it is another "
            "model or another of its embeddings."
        )


def _planned(
    made: MadeModel,
    registry: Registry,
    *,
    reads: Mapping[str, str],
    contract: tuple[Mapping[str, Any], ...] = (),
) -> PlannedModel:
    """Settle device and precision, and say what the model's part in an identity is."""
    choice, spec = made.choice, made.spec
    card = getattr(made.model, "card", None) or spec.card
    with naming_encoder(choice.name, spec.name, choice.kind):
        device = resolve_device(spec, choice)
        precision = resolve_precision(spec, card, choice, device)
        described = describe(spec, made.options)
        if (weights := getattr(made.model, "weights", None)) is not None:
            with registry.blame(choice.kind, spec.name, "loaded"):
                described["weights"] = dict(weights())
    return PlannedModel(
        name=choice.name,
        made=made,
        registry=registry,
        device=device,
        precision=precision,
        fields={**described, "precision": precision},
        reads=reads,
        contract=contract,
    )


def _fallbacks(planned: Sequence[PlannedModel]) -> Iterator[str]:
    told = (describe_fallback(p.made.spec, p.made.choice, p.device) for p in planned)
    return iter(dict.fromkeys(filter(None, told)))


def _refuse_twins(planned: Sequence[PlannedModel], what: str) -> None:
    names = [each.name for each in planned]
    for name in (name for name in names if names.count(name) > 1):
        raise ConfigError(f"Two {what} are named {name!r}; give one a key of its own.")
