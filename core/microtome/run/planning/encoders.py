"""Patch encoders in a run: what is planned of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microtome.errors import ConfigError, EncoderError, naming_encoder
from microtome.plugin.options import configure
from microtome.plugin.protocols import Encoder, EncoderOutput
from microtome.plugin.registry import Registry
from microtome.plugin.specs import EncoderCard, EncoderSpec
from microtome.run.planning.devices import describe_fallback, resolve_devices, resolve_precision
from microtome.run.planning.outputs import ask_encoder, find_shapes
from microtome.run.settings import DEFAULT_BATCH_SIZE, Choice, EncoderChoice, RunConfig
from microtome.run.slides.replicas import Replica
from microtome.store.identity import describe

if TYPE_CHECKING:
    from microtome.slide.batch import TileBatch


@dataclass(eq=False, kw_only=True)
class PlannedEncoder:
    """An encoder of a run: made, not loaded.

    Attributes:
        name: Of its feature set.
        spec: Its spec.
        encoder: The object.
        device: Resolved.
        precision: Resolved.
        asked_batch_size: Tiles at once, as asked for; None for as many as there is memory for.
        fields: What its features' identity depends on.
        registry: Where it is from.
        asked: What it was asked for besides embeddings: ``"tokens"``, ``"attention"``.
        replicas: The same on further devices, where several share a slide's tiles.
        loaded: Whether its weights are.
    """

    name: str
    spec: EncoderSpec
    encoder: Encoder
    device: str
    precision: str
    asked_batch_size: int | None
    fields: dict[str, Any]
    registry: Registry
    asked: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()
    loaded: bool = False
    _largest: int = 0
    _shapes: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def card(self) -> EncoderCard:
        """What is known of the model."""
        return self.encoder.card

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it is."""
        return tuple(each.device for each in self._everywhere)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told of how it runs, wherever it does."""
        told = (note for each in self._everywhere for note in getattr(each.encoder, "notes", ()))
        return tuple(dict.fromkeys(told))

    @property
    def _everywhere(self) -> tuple[Replica, ...]:
        return Replica(self.encoder, self.device), *self.replicas

    def ensure_loaded(self) -> None:
        """Load the weights once, onto one device after the other.

        Raises:
            EncoderError: If they cannot be had, or are others for one device than for the next.
            PluginError: If the plugin fails in another way.
        """
        if self.loaded:
            return
        with (
            naming_encoder(self.name, self.spec.name),
            self.registry.blame("encoder", self.spec.name, "loaded"),
        ):
            for each in self._everywhere:
                each.encoder.load(each.device, self.precision)
        found = [getattr(each.encoder, "loaded_weights", None) for each in self._everywhere]
        if any(weights != found[0] for weights in found):
            raise EncoderError(
                f"The weights of {self.name} changed while they were loaded onto "
                f"{', '.join(self.devices)}. Run it again."
            )
        self.loaded = True

    @property
    def batch_size(self) -> int:
        """Tiles at once. To find out how many there is memory for, the encoder must be loaded."""
        if self.asked_batch_size is not None:
            return self.asked_batch_size
        if not self._largest:
            self._largest = min(
                getattr(each.encoder, "largest_batch", lambda: DEFAULT_BATCH_SIZE)()
                for each in self._everywhere
            )
        return self._largest

    def find_shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Learn once what of a tile the loaded encoder gives besides the embedding.

        Args:
            size: Of the run's tiles.

        Raises:
            EncoderError: If it does not give what it was asked for.
        """
        if size not in self._shapes:
            self._shapes[size] = find_shapes(self, size)
        return self._shapes[size]

    def begin(self, batch: TileBatch, *, at: int = 0) -> Callable[[], EncoderOutput]:
        """Let the encoder begin with a batch, and give what waits for its output.

        An encoder without ``begin`` has its output when this returns.

        Args:
            batch: The tiles.
            at: Which of its devices.
        """
        encoder = self.replicas[at - 1].encoder if at else self.encoder
        if hasattr(encoder, "begin"):
            begun: Callable[[], EncoderOutput] = encoder.begin(batch)
            return begun
        output = encoder.encode(batch)
        return lambda: output

    def __str__(self) -> str:
        """Name it with its dimension, what else it gives, device and precision."""
        gives = "".join(f", {name}" for name in self.asked)
        where = " and ".join(self.devices)
        return f"{self.name} ({self.card.dim} columns{gives}, {where}, {self.precision})"


def configured(registry: Registry, kind: str, choice: Choice) -> tuple[Any, Any]:
    """Give the spec of a plugin that was chosen, and its configuration."""
    spec = registry.find(kind, choice.plugin).spec
    return spec, configure(spec) if choice.config is None else choice.config


def plan_encoders(
    config: RunConfig, registry: Registry, notes: list[str]
) -> tuple[PlannedEncoder, ...]:
    """Make the encoders of a run, and note those that run otherwise than one may think.

    Raises:
        MicrotomeError: As of `make_encoder`.
        ConfigError: If two have one name.
    """
    if config.task != "process":
        return ()
    devices = config.tile_devices
    planned = tuple(make_encoder(c, registry, tile_devices=devices) for c in config.encoders)
    names = [encoder.name for encoder in planned]
    for name in {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two encoders are named {name!r}; give one a key of its own.")
    if len(devices) > 1 and not any(encoder.replicas for encoder in planned):
        notes.append(
            f"tile_devices=[{','.join(devices)}] changes nothing: none of the run's encoders of "
            "tiles is one that runs on several (a model that needs torch)."
        )
    for encoder, choice in zip(planned, config.encoders, strict=True):
        if told := describe_fallback(encoder.spec, choice, encoder.device):
            notes.append(told)
    return planned


def make_encoder(
    choice: EncoderChoice, registry: Registry, *, tile_devices: Sequence[str] = ()
) -> PlannedEncoder:
    """Make an encoder and settle its device and precision, without loading weights.

    Args:
        choice: The user's.
        registry: The plugins.
        tile_devices: As of a `RunConfig`.

    Raises:
        ConfigError: If the device or precision is not to be had.
        PluginError: If the plugin is unknown or misses a library.
        EncoderError: If its card makes no sense.
    """
    spec, options = configured(registry, "encoder", choice)
    with naming_encoder(choice.name, spec.name):
        encoder: Encoder = registry.create("encoder", spec.name, options)
        if encoder.card.dim < 1:
            raise EncoderError(f"Its card says {encoder.card.dim} columns.")
        device, *others = resolve_devices(spec, choice, tile_devices)
        precision = resolve_precision(spec, encoder.card, choice, device)
        asked = ask_encoder(choice, spec, encoder, registry)
        replicas = [Replica(registry.create("encoder", spec.name, options), o) for o in others]
        for replica in replicas:
            ask_encoder(choice, spec, replica.encoder, registry)
        fields = describe(spec, options)
        weights = getattr(encoder, "weights", None)
        if weights is not None:
            with registry.blame("encoder", spec.name, "loaded"):
                fields["weights"] = dict(weights())
    fields["transform"] = _plain(encoder.card.transform)
    fields["precision"] = precision
    return PlannedEncoder(
        name=choice.name,
        spec=spec,
        encoder=encoder,
        device=device,
        precision=precision,
        asked_batch_size=choice.batch_size,
        fields=fields,
        registry=registry,
        asked=asked,
        replicas=tuple(replicas),
    )


def _plain(value: Any) -> Any:
    return None if value is None else {k: getattr(value, k) for k in value.__dataclass_fields__}
