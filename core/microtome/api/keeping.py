"""Keeps embeddings: as a file each with a sidecar written last, or where our stores have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from microtome._version import __version__
from microtome.api.artifacts import (
    FOLDERS,
    SIDECAR,
    VALUES,
    Array,
    HierarchicalEmbeddingArtifact,
    PatientEmbeddingArtifact,
    SlideEmbeddingArtifact,
    TileArtifact,
    TileEmbeddingArtifact,
    attributes_of,
    read_sidecar,
)
from microtome.api.embedding import Where, read_tiles
from microtome.api.results import open_result
from microtome.api.samples import Sample
from microtome.errors import IdentityError, LayoutError, MissingDependencyError, StoreError
from microtome.plugin.protocols import StoredSlide
from microtome.store.arrays import array_names
from microtome.store.atomic import publish, sweep, wrap_errors, write_json
from microtome.store.attributes import plain_attributes

VERSION = 1
"""Of the sidecar's content."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Writes embeddings as a file each.

    Attributes:
        output: The output folder.
        format: ``"pt"`` or ``"npz"``.
        replace: Whether files that were made of something else are replaced.
    """

    output: Path
    format: str
    replace: bool = False

    def __post_init__(self) -> None:
        if self.format == "pt" and find_spec("torch") is None:
            raise MissingDependencyError(
                "output_format='pt' needs torch; 'npz' does not. Install with: pip install torch"
            )

    def paths(self, kind: str, name: str) -> tuple[Path, Path]:
        """Give the names of a file and its sidecar.

        Raises:
            StoreError: If the name leads out of the output.
        """
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
            raise StoreError(f"{name!r} does not name a file inside {self.output}.")
        top = self.output / FOLDERS[kind]
        return top / f"{name}.{self.format}", top / f"{name}{SIDECAR}"

    def foresee(self, kind: str, name: str, key: str, store: Path) -> None:
        """Refuse a file that is there of another embedding, unless it is replaced.

        Args:
            kind: One of `FOLDERS`.
            name: The slide or patient.
            key: Of what is to be written, in our store.
            store: Our store.

        Raises:
            IdentityError: If the sidecar names another store or another array of it.
            LayoutError: If it cannot be read.
        """
        path, sidecar = self.paths(kind, name)
        if self.replace or not sidecar.exists():
            return
        known = read_sidecar(sidecar)
        if (known.get("store"), known.get("key")) != (_relative(store, self.output), key):
            raise self._other(path, sidecar)

    def write(
        self,
        kind: str,
        name: str,
        read: Callable[[], Mapping[str, Array]],
        *,
        identity: str,
        metadata: Mapping[str, Any],
    ) -> tuple[Path, Path]:
        """Write an embedding and then its sidecar, unless both are there already.

        Args:
            kind: One of `FOLDERS`.
            name: The slide or patient.
            read: Gives the arrays: ``"features"``, and for an npz what belongs to it.
            identity: Digest of what it was made of.
            metadata: What else the sidecar says.

        Returns:
            The two paths.

        Raises:
            IdentityError: If what is there was made of something else, unless it is replaced.
            StoreError: If it cannot be written.
        """
        path, sidecar = self.paths(kind, name)
        if self._holds(path, sidecar, identity):
            return path, sidecar
        arrays = read()
        sweep(path.parent)
        with wrap_errors(sidecar):
            # A crash between here and the end leaves no sidecar, which says: not whole.
            sidecar.unlink(missing_ok=True)
        with publish(path) as private, wrap_errors(path):
            _WRITERS[self.format](private, arrays)
        known = {
            "artifact_type": FOLDERS[kind],
            "format": self.format,
            "feature_dim": arrays[VALUES].shape[-1],
            "shape": list(arrays[VALUES].shape),
            **metadata,
            "compatibility": {"identity": identity},
            "microtome_version": __version__,
            "version": VERSION,
        }
        write_json(sidecar, known)
        return path, sidecar

    def _holds(self, path: Path, sidecar: Path, identity: str) -> bool:
        if not sidecar.exists():
            return False
        try:
            there = read_sidecar(sidecar).get("compatibility")
        except LayoutError:
            if self.replace:
                return False
            raise
        same = isinstance(there, Mapping) and there.get("identity") == identity
        if not same and not self.replace:
            raise self._other(path, sidecar)
        return same and path.exists()

    def _other(self, path: Path, sidecar: Path) -> IdentityError:
        return IdentityError(
            f"{path} was made of something else, as {sidecar.name} says. Choose another "
            "output_dir, or replace it with PreprocessingConfig(resume=False)."
        )


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    with path.open("xb") as file:  # numpy would add a suffix to a name
        named: dict[str, Any] = dict(arrays)
        np.savez(file, **named)


def _write_pt(path: Path, arrays: Mapping[str, Array]) -> None:
    import torch

    torch.save(torch.from_numpy(np.ascontiguousarray(arrays[VALUES])), path)


_WRITERS: Mapping[str, Callable[[Path, Mapping[str, Array]], None]] = {
    "npz": _write_npz,
    "pt": _write_pt,
}


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Says where embeddings are kept, writing those that are to be files of their own.

    Attributes:
        files: Writes them; None where our store is what is kept.
        store: The name of our store.
        encoder: The model.
        level: Of it.
    """

    files: Files | None
    store: str
    encoder: str
    level: str

    def tiles(self, sample: Sample, where: Where) -> TileArtifact:
        """Keep the tile embeddings of a slide.

        Args:
            sample: The slide.
            where: They lie.
        """
        with open_result(where.path) as stored:
            shape: tuple[int, ...] = stored.feature_shape(where.features)
            made: type[Any] = TileEmbeddingArtifact
            kind = "tile"
            if array_names(stored, "regions"):
                made, kind = HierarchicalEmbeddingArtifact, "hierarchical"
                shape = (*stored.array_shape("regions/index"), shape[1])
            kept = self._keep(kind, sample, stored, where.path, f"features/{where.features}", shape)
        artifact: TileArtifact = made(sample_id=sample.sample_id, **kept)
        return artifact

    def slide(self, sample: Sample, where: Where) -> SlideEmbeddingArtifact | None:
        """Keep the embedding of a slide, and its latents; None for a slide without one.

        Args:
            sample: The slide.
            where: They lie.
        """
        key, latent_key = f"slide_features/{where.slide}", f"slide_latents/{where.slide}"
        latents = None
        with open_result(where.path) as stored:
            if key not in array_names(stored, "slide_features"):
                return None
            if where.latents and latent_key in array_names(stored, "slide_latents"):
                shape = stored.array_shape(latent_key)
                latents = self._keep("latents", sample, stored, where.path, latent_key, shape)
            kept = self._keep("slide", sample, stored, where.path, key, stored.array_shape(key))
        latent_path = None if latents is None else latents["path"]
        return SlideEmbeddingArtifact(sample_id=sample.sample_id, latent_path=latent_path, **kept)

    def patient(
        self, patient_id: str, path: Path, key: str, slides: int
    ) -> PatientEmbeddingArtifact:
        """Keep the embedding of a patient.

        Args:
            patient_id: The patient.
            path: Of its store.
            key: Of its embedding in there.
            slides: How many it is of.
        """
        with open_result(path) as stored:
            kept = self._keep("patient", patient_id, stored, path, key, stored.array_shape(key))
        return PatientEmbeddingArtifact(patient_id=patient_id, num_slides=slides, **kept)

    def _keep(
        self,
        kind: str,
        of: Sample | str,
        stored: StoredSlide,
        store: Path,
        key: str,
        shape: Sequence[int],
    ) -> dict[str, Any]:
        known = {"key": key, "shape": tuple(shape)}
        if self.files is None:
            return {"path": store, "format": self.store, **known}
        name = of if isinstance(of, str) else of.sample_id
        metadata = {
            ("patient_id" if isinstance(of, str) else "sample_id"): name,
            "encoder_name": self.encoder,
            "encoder_level": self.level,
            "key": key,
            "store": _relative(store, self.files.output),
            **({} if isinstance(of, str) else _describe(stored, of)),
        }
        path, sidecar = self.files.write(
            kind,
            name,
            lambda: _arrays(stored, key),
            identity=str(attributes_of(stored, key).get("identity", "")),
            metadata=metadata,
        )
        return {"path": path, "format": self.files.format, "metadata_path": sidecar, **known}


def _arrays(stored: StoredSlide, key: str) -> dict[str, Array]:
    """Read what a file holds."""
    group, _, name = key.partition("/")
    if group != "features":
        return {VALUES: np.asarray(stored.array(key))}
    tiles = read_tiles(stored, name)
    return {VALUES: tiles["tile_embeddings"], "x": tiles["x"], "y": tiles["y"]}


def _describe(stored: StoredSlide, sample: Sample) -> dict[str, Any]:
    """Say of what tiles an embedding is, in the words that slide2vec's users know."""
    # Stores write None as text.
    plain = plain_attributes(stored.attributes)
    attributes = {name: None if value == "None" else value for name, value in plain.items()}
    return {
        "num_tiles": len(stored.coords),
        "tile_size_lv0": int(stored.attributes["patch_size_level0"]),
        "requested_tile_size_px": attributes.get("patch_size"),
        "requested_spacing_um": attributes.get("target_mpp"),
        "requested_magnification": attributes.get("target_magnification"),
        "effective_spacing_um": attributes.get("effective_mpp"),
        "image_path": str(sample.image_path),
        "mask_path": None if sample.mask_path is None else str(sample.mask_path),
        "coordinates_identity": attributes.get("identity"),
    }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
