"""A trained classifier: saved with all that it takes to use it, and loaded to be used."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from microtome.errors import ConfigError, TaskError
from microtome.plugin.numerics import exact_convolutions
from microtome.plugin.specs import Transform
from microtome.plugin.weights.files import file_digest
from microtome.slide.batch import prepare_tiles
from microtome.store.atomic import publish
from microtome_training.names import PIXELS
from microtome_training.training.models import Architecture

_VERSION = 1
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
)
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Takes:
    """What a classifier is given of a tile.

    Attributes:
        kind: ``"pixels"`` or ``"features"``.
        size: Side of the tiles in pixels.
        mpp: µm per pixel of the tiles that it learned from, or None where unknown.
        magnification: Their nominal magnification, or None where they were placed otherwise.
        level: The slides' level that they are of, or None where they were placed otherwise.
        transform: Of pixels: how a tile becomes the network's input.
        features: The name of the feature set.
        encoder: What made the features: its part of their identity; empty where nothing says.
        dim: Columns of the features.
    """

    kind: str
    size: int
    mpp: float | None = None
    magnification: float | None = None
    level: int | None = None
    transform: Transform | None = None
    features: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 0


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a saved model says of itself.

    Attributes:
        architecture: The network.
        classes: Their names; the first is the background.
        takes: What it is given.
        provenance: Of what it was trained, by which identity, up to which epoch.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    takes: Takes
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps({"version": _VERSION, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read it.

        Raises:
            ValueError: If it says no such thing.
            TypeError: Likewise.
            KeyError: Likewise.
        """
        found = json.loads(text)
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']}")
        takes = found["takes"]
        transform = takes.pop("transform")
        return cls(
            architecture=_architecture(found["architecture"]),
            classes=tuple(found["classes"]),
            takes=Takes(**takes, transform=transform and _transform(transform)),
            provenance=found["provenance"],
        )


class PatchNetwork(nn.Module):
    """A network with what goes before it: pixels are normalised where the network computes.

    Args:
        network: Of the architecture.
        takes: What it is given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, takes: Takes) -> None:
        super().__init__()
        self.network = network
        self.takes = takes
        transform = takes.transform or Transform()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(transform, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, batch: Tensor) -> Tensor:
        """Give logits (n, C) of prepared pixels (n, h, w, 3) uint8, or of features (n, d)."""
        if self.takes.kind == PIXELS:
            batch = (batch.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        logits: Tensor = self.network(batch)
        return logits


class Classifier:
    """A classifier that is ready for use.

    Attributes:
        description: What it says of itself.
        digest: SHA-256 of its file.
        path: That file.
        device: Where it computes.
        precision: In what: ``fp32``, ``fp16`` or ``bf16``.
    """

    def __init__(
        self, model: PatchNetwork, description: Description, path: Path, *, digest: str
    ) -> None:
        self.description, self.path, self.digest = description, path, digest
        self.device, self.precision = "cpu", "fp32"
        self._model = model.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes; the first is the background."""
        return self.description.classes

    @property
    def takes(self) -> Takes:
        """What it is given of a tile."""
        return self.description.takes

    def to(self, device: str, precision: str = "fp32") -> Classifier:
        """Move it to a device, to compute in a precision."""
        self._model.to(device)
        self.device, self.precision = device, precision
        return self

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize tiles (n, h, w, 3) to what the network takes."""
        transform = self.takes.transform
        return pixels if transform is None else prepare_tiles(pixels, transform)

    def probabilities(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Give the probabilities of the classes.

        Args:
            batch: (n, h, w, 3) uint8 tiles as they are stored, or (n, d) features.

        Returns:
            (n, C) float32; rows sum to 1.

        Raises:
            TaskError: If the batch is not what the classifier takes, or a value is not finite.
        """
        self._check(batch)
        given = self.prepare(batch) if self.takes.kind == PIXELS else batch.astype(np.float32)
        if not len(given):
            return np.empty((0, len(self.classes)), np.float32)
        return softmax(self.logits(to_tensor(given)))

    @torch.inference_mode()
    def logits(self, prepared: Tensor) -> Tensor:
        """Give (n, C) float32 logits of what is prepared already, on the CPU."""
        kind, dtype = torch.device(self.device).type, _DTYPES.get(self.precision)
        with exact_convolutions(), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            logits: Tensor = self._model(prepared.to(self.device))
        return logits.float().cpu()

    def _check(self, batch: NDArray[Any]) -> None:
        takes = self.takes
        size = takes.size
        wanted = (size, size, 3) if takes.kind == PIXELS else (takes.dim,)
        if batch.shape[1:] != wanted:
            told = " × ".join(map(str, batch.shape[1:]))
            raise TaskError(
                f"{self.path} takes {takes.kind} of {' × '.join(map(str, wanted))}, not {told}."
            )


def to_tensor(given: NDArray[Any]) -> Tensor:
    """Give an array as a tensor; it is copied where torch could not write to it."""
    return torch.from_numpy(np.require(given, requirements=["C", "W"]))


def softmax(logits: Tensor) -> NDArray[np.float32]:
    """Turn logits into probabilities.

    Raises:
        TaskError: If one is not finite.
    """
    probabilities: NDArray[np.float32] = torch.softmax(logits.float(), 1).cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise TaskError("The classifier gives values that are not finite: try precision=fp32.")
    return probabilities


def save_classifier(path: Path, network: nn.Module, description: Description) -> None:
    """Save a classifier atomically: plain tensors, and its description as JSON.

    Args:
        path: The final name.
        network: Of the description's architecture.
        description: What it says of itself.

    Raises:
        StoreError: If it cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    # Given a path, torch writes its name into the file: equal models would differ.
    with publish(path) as private, private.open("wb") as file:
        torch.save({"state_dict": state, "description": description.to_json()}, file)


def load_classifier(path: Path, device: str = "cpu", precision: str = "fp32") -> Classifier:
    """Load a classifier, without running any code that its file may hold.

    Args:
        path: ``best.pt`` of a training.
        device: Where it is to compute.
        precision: In what.

    Raises:
        ConfigError: If there is no such file.
        TaskError: If it is no classifier.
    """
    if not path.is_file():
        raise ConfigError(f"There is no trained model {path}: give the path of a best.pt.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        description = Description.from_json(saved["description"])
        network = description.architecture.build()
        network.load_state_dict(saved["state_dict"])
    except (*_UNREADABLE, OSError) as error:
        raise TaskError(
            f"{path} is no classifier that task=train left ({type(error).__name__}): give the path "
            "of its checkpoints/best.pt."
        ) from error
    model = PatchNetwork(network, description.takes)
    loaded = Classifier(model, description, path, digest=file_digest(path))
    return loaded.to(device, precision)


def _architecture(values: Mapping[str, Any]) -> Architecture:
    """Read a network's description: of what timm may be told, nothing but what we write."""
    found = Architecture(**values)
    if any(name != "img_size" or type(v) is not int for name, v in found.arguments.items()):
        raise ValueError(f"arguments {dict(found.arguments)}")
    return found


def _transform(values: Mapping[str, Any]) -> Transform:
    mean, std = (tuple(values[name]) for name in ("mean", "std"))
    return Transform(**{**values, "mean": mean, "std": std})
