"""Slide and patient encoders in a run: what each needs, what each reads, what is planned of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError, naming_encoder
from microtome.plugin.aliases import listed
from microtome.plugin.registry import Registry, configure
from microtome.plugin.specs import BagEncoderSpec, EncoderCard, PatientEncoderSpec, TileNeed
from microtome.run.planning.devices import describe_fallback, resolve_device, resolve_precision
from microtome.run.settings import (
    EncoderChoice,
    ModelChoice,
    RunConfig,
    SlideEncoderChoice,
)
from microtome.store.identity import SPEC_FIELDS, describe

if TYPE_CHECKING:
    from microtome.run.planning.encoders import PlannedEncoder

_NO_CHOICE = frozenset({*SPEC_FIELDS, "plugin_sha256", "seed"})
"""Fields of an encoder's identity that do not say which of its embeddings it gives."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MadeModel:
    """A slide or patient encoder as it was chosen: made, not loaded.

    Attributes:
        choice: The user's.
        spec: Its spec.
        options: Its configuration.
        model: The object.
        needs: The feature sets that it takes; none where it pools any.
    """

    choice: ModelChoice
    spec: BagEncoderSpec
    options: Any
    model: Any
    needs: tuple[TileNeed, ...]

    @property
    def is_free(self) -> bool:
        """Whether it takes whatever encoder's features there are."""
        return not any(need.encoder for need in self.needs)

    @property
    def slide_encoder(self) -> str:
        """Of a patient encoder, the slide encoder that it was made for; empty for none."""
        own = getattr(self.model, "slide_encoder", "")
        return str(own or getattr(self.spec, "slide_encoder", ""))

    @property
    def takes_tiles(self) -> bool:
        """Whether it is given tiles: a slide encoder is."""
        return not isinstance(self.spec, PatientEncoderSpec) or self.spec.takes == "tiles"

    def __str__(self) -> str:
        """Name it as the command line does."""
        return f"{self.choice.kind}={self.choice.name}"


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


def make_model(choice: ModelChoice, registry: Registry) -> MadeModel:
    """Make a slide or patient encoder and ask what it needs.

    Raises:
        PluginError: If the plugin is unknown or misses a library.
        ConfigError: If the plugin is no such encoder.
    """
    spec = registry.find(choice.kind, choice.plugin).spec
    if not isinstance(spec, BagEncoderSpec):
        raise ConfigError(f"{choice.plugin!r} is no encoder of slides or patients.")
    options = configure(spec) if choice.config is None else choice.config
    with naming_encoder(choice.name, spec.name, choice.kind):
        model = registry.create(choice.kind, spec.name, options)
    needs = getattr(model, "needs", None)
    own: tuple[TileNeed, ...] = getattr(spec, "needs", ()) if needs is None else tuple(needs)
    return MadeModel(choice=choice, spec=spec, options=options, model=model, needs=own)


def array_keys(planned: PlannedModel, *, latents: bool) -> Sequence[str]:
    """Name the arrays that a finished slide has of an encoder, as far as its card tells."""
    has_latents = latents and planned.card is not None and planned.card.latents is not None
    groups = ("slide_features", "slide_latents") if has_latents else ("slide_features",)
    return [f"{group}/{planned.name}" for group in groups]


def embedder_of(made: MadeModel, registry: Registry) -> MadeModel | None:
    """Make the slide encoder that a patient encoder names; None where it names none."""
    if not made.slide_encoder:
        return None
    choice = made.choice
    slide = SlideEncoderChoice(
        plugin=made.slide_encoder, device=choice.device, precision=choice.precision
    )
    return make_model(slide, registry)


def gives(choice: EncoderChoice, need: TileNeed, registry: Registry) -> bool:
    """Tell whether a patch encoder is the one, with the options, that is needed."""
    spec = registry.find("encoder", choice.plugin).spec
    wanted = registry.find("encoder", need.encoder).spec
    if spec.name != wanted.name:
        return False
    given = configure(spec) if choice.config is None else choice.config
    return _chosen(spec, given) == _chosen(spec, configure(spec, **need.options))


def find_giver(
    encoders: Sequence[EncoderChoice], need: TileNeed, registry: Registry
) -> EncoderChoice | None:
    """Find the patch encoder that gives what is needed, first by the key that it goes by."""
    found = [choice for choice in encoders if gives(choice, need, registry)]
    return next((c for c in found if c.name == need.key), found[0] if found else None)


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
            planned += _on_slides(made, registry, slide_encoders)
            continue
        embedder = embedder_of(made, registry)
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
    made: MadeModel, registry: Registry, slide_encoders: Sequence[PlannedModel]
) -> Iterator[PlannedPatientEncoder]:
    """Put a patient encoder on the embeddings of the slide encoder that it names, or of each."""
    named = made.slide_encoder
    sources = [s for s in slide_encoders if named in ("", s.made.spec.name, s.made.choice.name)]
    if not sources:
        raise ConfigError(
            f"{made} takes embeddings of slides{f' by {named}' if named else ''}, which this run "
            f"does not make. Add slide_encoder={named or 'NAME'}."
        )
    plain = _planned(made, registry, reads={})
    for source in sources:
        name = f"{made.choice.name}-{source.name}"
        if named and len(sources) == 1 and getattr(made.spec, "slide_encoder", ""):
            name = made.choice.name
        yield PlannedPatientEncoder(**{**vars(plain), "name": name}, embeddings=source.name)


def _on_tiles(
    made: MadeModel, config: RunConfig, registry: Registry, encoders: Sequence[PlannedEncoder]
) -> Iterator[PlannedModel]:
    """Put an encoder on the feature sets that it needs, or a pooling on each that it can take."""
    if not made.is_free:
        reads = {need.key: _reads(made, need, config, registry) for need in made.needs}
        by_name = {encoder.name: encoder for encoder in encoders}
        for need in made.needs:
            _check_dim(made, need, by_name[reads[need.key]].card.dim)
        contract = tuple(_promised(need) for need in made.needs)
        yield _planned(made, registry, reads=reads, contract=contract)
        return
    dims = {need.dim for need in made.needs} - {None}
    taken = [e for e in encoders if not dims or e.card.dim in dims]
    if not taken:
        known = listed([f"{e.name} ({e.card.dim})" for e in encoders]) or "none"
        wanted = f" of {listed([str(dim) for dim in dims])} columns" if dims else ""
        raise ConfigError(
            f"{made} pools features{wanted}, and this run computes {known}. Choose an encoder."
        )
    for encoder in taken:
        # Each has an object of its own, which may learn the number of columns as it is loaded.
        one = replace(made, model=make_model(made.choice, registry).model)
        contract = ({"encoder": encoder.spec.name, "dim": encoder.card.dim},)
        reads = {encoder.name: encoder.name}
        planned = _planned(one, registry, reads=reads, contract=contract)
        planned.name = f"{made.choice.name}-{encoder.name}"
        yield planned


def _promised(need: TileNeed) -> dict[str, Any]:
    """Give what a need says, as identities hold it: what it leaves open is left out."""
    free = TileNeed()
    said = {f.name: getattr(need, f.name) for f in fields(need)}
    chosen = {name: value for name, value in said.items() if value != getattr(free, name)}
    return chosen | ({"options": dict(need.options)} if need.options else {})


def _reads(made: MadeModel, need: TileNeed, config: RunConfig, registry: Registry) -> str:
    giver = find_giver(config.encoders, need, registry)
    if giver is None:
        raise ConfigError(
            f"{made} needs the features {need.key!r}, which this run does not compute: add "
            f"encoder={need.encoder}."
        )
    return giver.name


def _check_dim(made: MadeModel, need: TileNeed, dim: int) -> None:
    if need.dim not in (None, dim):
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


def _chosen(spec: Any, options: Any) -> dict[str, Any]:
    return {k: v for k, v in describe(spec, options).items() if k not in _NO_CHOICE}
