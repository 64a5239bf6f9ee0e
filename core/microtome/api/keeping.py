"""Keeps embeddings: as a file each with a sidecar written last, or where our stores have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from microtome.api.embedding import EmbeddedPatient, EmbeddedSlide
from microtome.api.results import open_result
from microtome.errors import IdentityError, LayoutError, MissingDependencyError, StoreError
from microtome.plugin.protocols import StoredSlide
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

    def write(
        self,
        kind: str,
        name: str,
        arrays: Mapping[str, Array],
        *,
        identity: str,
        metadata: Mapping[str, Any],
    ) -> tuple[Path, Path]:
        """Write an embedding and then its sidecar, unless both are there already.

        Args:
            kind: One of `FOLDERS`.
            name: The slide or patient.
            arrays: ``"features"``, and for an npz what belongs to it.
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
            raise IdentityError(
                f"{path} was made of something else, as {sidecar.name} says. Choose another "
                "output_dir, or replace it with PreprocessingConfig(resume=False)."
            )
        return same and path.exists()


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

    def tiles(self, slide: EmbeddedSlide, path: Path) -> TileArtifact:
        """Keep the tile embeddings of a slide.

        Args:
            slide: The slide.
            path: Of its store.
        """
        kind = "tile" if slide.region_size_lv0 is None else "hierarchical"
        made: type[Any] = TileEmbeddingArtifact
        if kind == "hierarchical":
            made = HierarchicalEmbeddingArtifact
        arrays = {VALUES: slide.tile_embeddings, "x": slide.x, "y": slide.y}
        kept = self._keep(kind, slide.sample_id, path, f"features/{slide.name}", arrays, slide)
        artifact: TileArtifact = made(sample_id=slide.sample_id, **kept)
        return artifact

    def slide(self, slide: EmbeddedSlide, path: Path, key: str) -> SlideEmbeddingArtifact | None:
        """Keep the embedding of a slide, and its latents; None for a slide without one.

        Args:
            slide: The slide.
            path: Of its store.
            key: Of its embedding in there.
        """
        if slide.slide_embedding is None:
            return None
        latents = None
        if slide.latents is not None:
            arrays = {VALUES: slide.latents}
            latent_key = key.replace("slide_features/", "slide_latents/")
            latents = self._keep("latents", slide.sample_id, path, latent_key, arrays, slide)
        arrays = {VALUES: slide.slide_embedding}
        kept = self._keep("slide", slide.sample_id, path, key, arrays, slide)
        latent_path = None if latents is None else latents["path"]
        return SlideEmbeddingArtifact(sample_id=slide.sample_id, latent_path=latent_path, **kept)

    def patient(
        self, patient: EmbeddedPatient, path: Path, key: str, slides: int
    ) -> PatientEmbeddingArtifact:
        """Keep the embedding of a patient.

        Args:
            patient: The patient.
            path: Of its store.
            key: Of its embedding in there.
            slides: How many it is of.
        """
        arrays = {VALUES: patient.patient_embedding}
        kept = self._keep("patient", patient.patient_id, path, key, arrays, None)
        return PatientEmbeddingArtifact(patient_id=patient.patient_id, num_slides=slides, **kept)

    def _keep(
        self,
        kind: str,
        name: str,
        store: Path,
        key: str,
        arrays: Mapping[str, Array],
        slide: EmbeddedSlide | None,
    ) -> dict[str, Any]:
        known = {"key": key, "shape": tuple(arrays[VALUES].shape)}
        if self.files is None:
            return {"path": store, "format": self.store, **known}
        with open_result(store) as stored:
            attributes = attributes_of(stored, key)
            identity = str(attributes.get("identity", ""))
            described = _describe(stored, slide) if slide is not None else {}
        metadata = {
            ("sample_id" if slide is not None else "patient_id"): name,
            "encoder_name": self.encoder,
            "encoder_level": self.level,
            "key": key,
            "store": _relative(store, self.files.output),
            **described,
        }
        path, sidecar = self.files.write(kind, name, arrays, identity=identity, metadata=metadata)
        return {"path": path, "format": self.files.format, "metadata_path": sidecar, **known}


def _describe(stored: StoredSlide, slide: EmbeddedSlide) -> dict[str, Any]:
    """Say of what tiles an embedding is, in the words that slide2vec's users know."""
    attributes = plain_attributes(stored.attributes)
    return {
        "num_tiles": slide.num_tiles,
        "tile_size_lv0": slide.tile_size_lv0,
        "requested_tile_size_px": attributes.get("patch_size"),
        "requested_spacing_um": attributes.get("target_mpp"),
        "requested_magnification": attributes.get("target_magnification"),
        "effective_spacing_um": attributes.get("effective_mpp"),
        "image_path": str(slide.image_path),
        "mask_path": None if slide.mask_path is None else str(slide.mask_path),
        "coordinates_identity": attributes.get("identity"),
    }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
