"""Slide and patient encoders as they were chosen, and what of a run is the one that each names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microtome.errors import ConfigError, naming_encoder
from microtome.plugin.aliases import listed
from microtome.plugin.options import configure
from microtome.plugin.registry import Registry
from microtome.plugin.specs import BagEncoderSpec, PatientEncoderSpec, TileNeed
from microtome.run.settings import EncoderChoice, ModelChoice, SlideEncoderChoice
from microtome.store.identity import SPEC_FIELDS, describe

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


def make_model(choice: ModelChoice, registry: Registry, *, or_spec: bool = False) -> MadeModel:
    """Make a slide or patient encoder and ask what it needs.

    Args:
        choice: The user's.
        registry: The plugins.
        or_spec: Go by its spec alone where a library is missing; ``model`` is then None.

    Raises:
        PluginError: If the plugin is unknown or misses a library.
        ConfigError: If the plugin is no such encoder.
    """
    entry = registry.find(choice.kind, choice.plugin)
    spec = entry.spec
    if not isinstance(spec, BagEncoderSpec):
        raise ConfigError(f"{choice.plugin!r} is no encoder of slides or patients.")
    options = configure(spec) if choice.config is None else choice.config
    model = needs = None
    if not (or_spec and entry.missing):
        with naming_encoder(choice.name, spec.name, choice.kind):
            model = registry.create(choice.kind, spec.name, options)
            needs = getattr(model, "needs", None)
    own: tuple[TileNeed, ...] = getattr(spec, "needs", ()) if needs is None else tuple(needs)
    return MadeModel(choice=choice, spec=spec, options=options, model=model, needs=own)


def find_slide_encoder(
    made: MadeModel, choices: Sequence[SlideEncoderChoice], registry: Registry
) -> SlideEncoderChoice | None:
    """Find the slide encoder that a patient encoder names.

    A model that was made for a slide encoder takes that one, with default options. One that names
    it by its own options takes what the run has by that name, whatever its options.

    Args:
        made: The patient encoder.
        choices: The slide encoders of the run.
        registry: The plugins.

    Raises:
        ConfigError: If several are meant.
    """
    name = made.slide_encoder
    if name not in registry.names("slide_encoder"):
        return next((choice for choice in choices if choice.name == name), None)
    spec = registry.find("slide_encoder", name).spec
    found = [choice for choice in choices if choice.plugin == spec.name]
    if getattr(made.spec, "slide_encoder", ""):
        wanted = _chosen(spec, configure(spec))
        found = [c for c in found if _chosen(spec, c.config or configure(spec)) == wanted]
    elif len(found) > 1 and name not in {choice.name for choice in found}:
        keys = listed([choice.name for choice in found])
        raise ConfigError(f"{made} is by {name}, which {keys} all are. Say which, by its key.")
    return next((c for c in found if c.name == name), found[0] if found else None)


def embedder_of(
    made: MadeModel,
    choices: Sequence[SlideEncoderChoice],
    registry: Registry,
    *,
    or_spec: bool = False,
) -> MadeModel | None:
    """Make the slide encoder that a patient encoder names; None where it names none.

    Args:
        made: The patient encoder.
        choices: The slide encoders of the run, whose options hold here, too.
        registry: The plugins.
        or_spec: As of `make_model`.
    """
    if not made.slide_encoder:
        return None
    own = SlideEncoderChoice(
        plugin=made.slide_encoder, device=made.choice.device, precision=made.choice.precision
    )
    found = find_slide_encoder(made, choices, registry)
    return make_model(found or own, registry, or_spec=or_spec)


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


def options_chosen(made: MadeModel) -> dict[str, Any]:
    """Give the options of a model that are not at their defaults and say what it gives."""
    return _chosen(made.spec, made.options)


def _chosen(spec: Any, options: Any) -> dict[str, Any]:
    return {k: v for k, v in describe(spec, options).items() if k not in _NO_CHOICE}
