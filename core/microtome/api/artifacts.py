"""What runs keep of embeddings: in our stores, or as a file each with a sidecar written last."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from microtome.api.execution import FILES
from microtome.api.results import open_result
from microtome.errors import LayoutError, MissingDependencyError
from microtome.plugin.protocols import StoredSlide
from microtome.store.attributes import plain_attributes

SIDECAR = ".meta.json"
FOLDERS = {
    "tile": "tile_embeddings",
    "hierarchical": "hierarchical_embeddings",
    "slide": "slide_embeddings",
    "latents": "slide_latents",
    "patient": "patient_embeddings",
}
"""Folder of each kind of file."""

VALUES = "features"
"""Name of the embedding in an npz."""

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An embedding that is kept.

    Attributes:
        path: The file.
        format: ``"hdf5"``, ``"zarr"``, ``"pt"`` or ``"npz"``.
        key: In a store, what holds it: ``features/uni_v1``, ``slide_features/titan``.
        shape: Of the embedding.
        metadata_path: The sidecar, which is there once all is; None for a store.
    """

    path: Path
    format: str
    key: str
    shape: tuple[int, ...]
    metadata_path: Path | None = None

    @property
    def feature_dim(self) -> int:
        """Columns of the embedding."""
        return self.shape[-1]

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of it: the sidecar, or the store's attributes.

        Raises:
            StoreError: If it cannot be read.
        """
        if self.metadata_path is not None:
            return read_sidecar(self.metadata_path)
        with open_result(self.path) as stored:
            return dict(plain_attributes(attributes_of(stored, self.key)))

    def load(self) -> Array:
        """Read the embedding.

        Raises:
            StoreError: If it cannot be read.
            MissingDependencyError: If it is a tensor and torch is not installed.
        """
        if self.format in FILES:
            return read_values(self.path)
        group, _, name = self.key.partition("/")
        with open_result(self.path) as stored:
            if group == "features":
                return np.asarray(stored.features(name))
            return np.asarray(stored.array(self.key))


@dataclass(frozen=True, kw_only=True)
class TileEmbeddingArtifact(Artifact):
    """Tile embeddings of a slide, (N, D).

    Attributes:
        sample_id: The slide.
    """

    sample_id: str

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return self.shape[0]


@dataclass(frozen=True, kw_only=True)
class HierarchicalEmbeddingArtifact(Artifact):
    """Tile embeddings of a slide by region, (R, T, D); in a store the tiles' are kept, (N, D).

    Attributes:
        sample_id: The slide.
    """

    sample_id: str

    @property
    def num_regions(self) -> int:
        """Number of regions."""
        return self.shape[0]

    @property
    def tiles_per_region(self) -> int:
        """Number of tiles of each."""
        return self.shape[1]

    def load(self) -> Array:
        """Read the embedding, by region."""
        if self.format in FILES:
            return read_values(self.path)
        from microtome.store.regions import region_features

        with open_result(self.path) as stored:
            return region_features(stored, self.key.partition("/")[2])


@dataclass(frozen=True, kw_only=True)
class SlideEmbeddingArtifact(Artifact):
    """An embedding of a slide, (D,).

    Attributes:
        sample_id: The slide.
        latent_path: The file of its latents, if they are kept: in a store, the store.
    """

    sample_id: str
    latent_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PatientEmbeddingArtifact(Artifact):
    """An embedding of a patient, (D,).

    Attributes:
        patient_id: The patient.
        num_slides: Slides that it is of.
    """

    patient_id: str
    num_slides: int


TileArtifact = TileEmbeddingArtifact | HierarchicalEmbeddingArtifact


def attributes_of(stored: StoredSlide, key: str) -> Mapping[str, Any]:
    """Give the attributes of a feature set or array."""
    group, _, name = key.partition("/")
    return stored.feature_attributes(name) if group == "features" else stored.array_attributes(key)


def read_values(path: Path) -> Array:
    """Read the embedding of a ``.pt`` or ``.npz``.

    Raises:
        LayoutError: If it is damaged or holds no embedding.
        MissingDependencyError: If it is a tensor and torch is not installed.
    """
    if path.suffix == ".pt":
        return _read_pt(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[VALUES])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise LayoutError(f"{path} holds no array {VALUES!r}: {error}") from error


def _read_pt(path: Path) -> Array:
    if find_spec("torch") is None:
        raise MissingDependencyError(f"{path} needs torch. Install with: pip install torch")
    import pickle

    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
        # numpy knows no bfloat16, every value of which is one of float32.
        return np.asarray((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise LayoutError(f"{path} holds no tensor: {error}") from error


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read a sidecar.

    Raises:
        LayoutError: If it cannot be read.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise LayoutError(
            f"There is no sidecar {path}, which is written last: what it is of is not whole."
        ) from error
    except (OSError, ValueError) as error:
        raise LayoutError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise LayoutError(f"{path} holds no fields.")
    return found
