"""Where a run's outputs lie: a pure function of the output, the tiling and the slide's name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.plugin.specs import WriterSpec

_SUFFIXES = {"grid": ".png", "mask": "_mask.png", "contours": "_contours.png"}
_DIGEST_CHARS = 12

PATIENTS = "patient_embeddings"
"""Name of the folder of what is stored of patients."""


class OutputLayout:
    """The folders of one output and tiling.

    Attributes:
        output: The output folder.
        root: Where the tiling's folders lie: the output itself when the tiling has no name.
        tissue_folder: Masks and regions, which all tilings share.
        runs_folder: A folder for each run.
        status_folder: One record a slide.
        visualization_folder: Overlays.
        patients_folder: One file a patient.
        claims_folder: Who works on which slide.
    """

    def __init__(self, output: Path, tiling: str = "") -> None:
        """Lay out an output.

        Args:
            output: The output folder; need not exist.
            tiling: Name of the tiling's folder, or empty for none.

        Raises:
            ConfigError: If the name leads out of the output.
        """
        self.output = output
        self.root = output / _inside(tiling, "tiler.name") if tiling else output
        self.tissue_folder = output / "tissue"
        self.runs_folder = output / "runs"
        self.status_folder = self.root / "status"
        self.visualization_folder = self.root / "visualization"
        self.patients_folder = self.root / PATIENTS
        self.claims_folder = self.root / ".claims"

    def slide(self, spec: WriterSpec, slide_id: str) -> Path:
        """Give the final name of a writer's output for a slide."""
        return _place(self.root / spec.folder, slide_id, spec.suffix)

    def patient(self, spec: WriterSpec, patient_id: str) -> Path:
        """Give the final name of a writer's output for a patient.

        Raises:
            ConfigError: If the id leads out of the output.
        """
        return self.patients_folder / f"{_inside(patient_id, 'patient_id')}{spec.suffix}"

    def tissue(self, slide_id: str, digest: str, suffix: str = ".png") -> Path:
        """Give the name of a slide's mask, or with ``.geojson`` its regions.

        Args:
            slide_id: The slide.
            digest: Of the mask's identity: masks of several segmenters lie side by side.
            suffix: With the dot.
        """
        return _place(self.tissue_folder, slide_id, f".{digest[:_DIGEST_CHARS]}{suffix}")

    def status(self, slide_id: str) -> Path:
        """Give the name of a slide's status record."""
        return _place(self.status_folder, slide_id, ".json")

    def claim(self, slide_id: str, suffix: str) -> Path:
        """Give the name of a file about who works on a slide."""
        return _place(self.claims_folder, slide_id, suffix)

    def visualization(self, slide_id: str, kind: str) -> Path:
        """Give the name of an overlay: ``kind`` is ``"grid"``, ``"mask"`` or ``"contours"``."""
        if kind not in _SUFFIXES:
            raise ConfigError(
                f"There is no overlay named {kind!r}. Available: {', '.join(_SUFFIXES)}."
            )
        return _place(self.visualization_folder, slide_id, _SUFFIXES[kind])

    def relative(self, path: Path) -> str:
        """Give a path below the output as records name it."""
        return path.relative_to(self.output).as_posix()


def _place(folder: Path, slide_id: str, suffix: str) -> Path:
    return folder / f"{_inside(slide_id, 'slide_id')}{suffix}"


def _inside(name: str, what: str) -> str:
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or {"", ".", ".."} & set(parts) or "\0" in name:
        raise ConfigError(
            f"{what}={name!r} does not name a place inside the output. "
            "Use a plain name, or folders/and/a/name."
        )
    return name
