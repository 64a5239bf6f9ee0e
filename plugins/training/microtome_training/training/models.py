"""Networks that a classifier may be: one of ours, timm's, or a probe on features."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import ConfigError, TaskError, WeightsError
from microtome.plugin.weights.files import find_file, fit_state, read_state, tensors_only
from microtome.plugin.weights.hub import NAMES, WeightsFile, fetch_hub, fetch_url
from microtome.plugin.weights.refusals import asked_by
from microtome_training.names import LINEAR, MLP, OF_FEATURES, OURS, PRETRAINED, RANDOM, SMALL_CNN

_FETCH = "run this once where there is a network"
_WIDTHS = (16, 32, 64, 64)
_GROUPS = 8
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network, as a saved model says it.

    Attributes:
        model: ``small_cnn``, ``linear``, ``mlp`` or a name of timm's.
        classes: How many.
        dim: Columns of the features; 0 on pixels.
        hidden: Width of the hidden layer of ``mlp``.
        dropout: Share of values dropped before the last layer.
        arguments: Of timm's: ``img_size`` for one that is to take another size than its own.
    """

    model: str
    classes: int
    dim: int = 0
    hidden: int = 256
    dropout: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the network with random weights, by torch's own generator.

        Raises:
            ConfigError: If there is no such network.
            TaskError: If it cannot be built so.
        """
        if self.model == SMALL_CNN:
            return SmallCnn(self.classes, self.dropout)
        if self.model in OF_FEATURES:
            return _probe(self)
        return _create_timm(self)


class SmallCnn(nn.Module):
    """Four strided convolutions and a mean: 62 thousand parameters, for tiles of any size.

    Groups are normalised rather than batches, so that it behaves alike in training and after, and
    with batches of any size on any number of devices.
    """

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(before, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (n, C) of images (n, 3, h, w)."""
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


class Standardise(nn.Module):
    """Bring each feature to mean 0 and deviation 1, as measured on the training tiles."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def measure(self, parts: Iterable[Tensor]) -> None:
        """Take the statistics of features that come in parts, each (n, d), in one pass.

        Means and squares are merged as Chan, Golub and LeVeque (1979) do. A constant feature is
        left at its deviation of 1.
        """
        count, mean = 0, torch.zeros_like(self.mean, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for part in parts:
            values, new = part.double(), len(part)
            if not new:
                continue
            away = values.mean(0) - mean
            total = count + new
            squares += values.var(0, correction=0) * new + away.square() * (count * new / total)
            mean += away * (new / total)
            count = total
        deviation = (squares / max(1, count)).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-12, 1 / deviation, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise (n, d)."""
        return (features - self.mean) * self.scale


def _probe(architecture: Architecture) -> nn.Module:
    dim, hidden, classes = architecture.dim, architecture.hidden, architecture.classes
    layers: OrderedDict[str, nn.Module] = OrderedDict(standardise=Standardise(dim))
    if architecture.model == MLP:
        layers |= {"hidden": nn.Linear(dim, hidden), "relu": nn.ReLU()}
        dim = hidden
    layers |= {"dropout": nn.Dropout(architecture.dropout), "head": nn.Linear(dim, classes)}
    return nn.Sequential(layers)


def _create_timm(architecture: Architecture) -> nn.Module:
    import timm

    check_timm(architecture.model)
    try:
        model: nn.Module = timm.create_model(
            architecture.model,
            num_classes=architecture.classes,
            drop_rate=architecture.dropout,
            **architecture.arguments,
        )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"timm cannot build {architecture.model}: {error}") from error
    return model


def check_timm(model: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: If it does not, with those that are near.
    """
    import timm

    if not timm.is_model(model):
        known = (*OURS, *timm.list_models())
        near = difflib.get_close_matches(model, known, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"train.model={model} is neither {SMALL_CNN}, {LINEAR}, {MLP} nor a model of "
            f"timm {timm.__version__}.{hint}"
        )


@dataclass(frozen=True)
class Needs:
    """What a network on pixels takes.

    Attributes:
        mean: Per channel, of values in 0..1.
        std: Likewise.
        size: Side in pixels that it must have; None for any.
    """

    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF
    size: int | None = None


def find_needs(model: str) -> Needs:
    """Say what a network takes, without building it.

    Raises:
        ConfigError: If there is no such network.
    """
    if model == SMALL_CNN:
        return Needs()
    import timm

    check_timm(model)
    config: Any = timm.get_pretrained_cfg(model)
    if config is None:
        return Needs()
    size = int(config.input_size[-1]) if config.fixed_input_size else None
    return Needs(tuple(config.mean), tuple(config.std), size)


def find_weights(model: str, weights: str) -> WeightsFile | None:
    """Find the file that a network begins with; None for random weights.

    Args:
        model: Its name.
        weights: ``auto``, ``pretrained``, ``random`` or a path.

    Raises:
        ConfigError: If a network of ours is to be pretrained.
        WeightsError: If the file is not there, or cannot be downloaded.
    """
    ours = model in OURS
    if weights == RANDOM or (weights == "auto" and ours):
        return None
    with asked_by("train", _FETCH):
        if weights not in ("auto", PRETRAINED):
            path = find_file(weights)
            return None if path is None else WeightsFile(path)
        if ours:
            raise ConfigError(
                f"Of {model} there are no pretrained weights: leave train.weights out, or give "
                "the path of a file."
            )
        try:
            return _fetch_timm(model)
        except WeightsError as error:
            told = f"{error} Or begin with train.weights=random."
            raise WeightsError(told) from error


def _fetch_timm(model: str) -> WeightsFile:
    import timm

    check_timm(model)
    config: Any = timm.get_pretrained_cfg(model)
    if config is not None and config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else NAMES
        return fetch_hub(config.hf_hub_id, None, names)
    if config is not None and config.url:
        return fetch_url(config.url, f"timm's {model}")
    raise WeightsError(f"timm knows no pretrained weights of {model}.")


def load_weights(architecture: Architecture, file: WeightsFile, *, published: bool) -> nn.Module:
    """Make a network that begins with a file's weights, all but its last layer.

    Args:
        architecture: The network.
        file: The weights.
        published: Whether they are timm's own, which timm brings into its layout.

    Raises:
        WeightsError: If they do not fit.
    """
    if published:
        return _load_published(architecture, file)
    model = architecture.build()
    with asked_by("train", _FETCH):
        state = read_state(file.path)
        heads = _heads(model)
        own = {n: t for n, t in model.state_dict().items() if n.startswith(heads)}
        rest = {n: t for n, t in state.items() if not n.startswith(heads)}
        fit_state(model, rest | own, str(file.path))
    return model


def _load_published(architecture: Architecture, file: WeightsFile) -> nn.Module:
    import timm

    file.check()
    overlay = {"source": "", "file": str(file.path), "custom_load": False}
    with tensors_only(file.path):
        model: nn.Module = timm.create_model(
            architecture.model,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=architecture.classes,
            drop_rate=architecture.dropout,
            **architecture.arguments,
        )
    return model


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Name the last layers, whose size goes with the classes: prefixes of their tensors."""
    config: Any = getattr(model, "pretrained_cfg", None)
    named = config.get("classifier", ()) if config else ("head",)
    names = (named,) if isinstance(named, str) else tuple(named or ())
    return tuple(f"{name}." for name in names)
