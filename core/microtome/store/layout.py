"""Where a run's outputs lie: a pure function of the output, the tiling and the slide's name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from microtome.errors import ConfigError
from microtome.plugin.specs import TaskSpec, WriterSpec

if TYPE_CHECKING:
    from microtome.plugin.registry import Registry

_SUFFIXES = {"grid": ".png", "mask": "_mask.png", "contours": "_contours.png"}
_DIGEST_CHARS = 12

PATIENTS = "patient_embeddings"
"""Name of the folder of what is stored of patients."""

OWN_FOLDERS = ("tissue", "runs", "status", "visualization", PATIENTS, ".claims")
"""Names of the folders that every output may have."""


def taken_folders(registry: Registry) -> set[str]:
    """Name the folders in which no tiling lies: those that every output has, writers', tasks'."""
    specs = [entry.spec for kind in ("writer", "task") for entry in registry.entries(kind)]
    writers = {spec.folder.partition("/")[0] for spec in specs if isinstance(spec, WriterSpec)}
    tasks = {name for spec in specs if isinstance(spec, TaskSpec) for name in spec.folders}
    return {*OWN_FOLDERS, *writers, *tasks} - {""}


def refuse_taken(tiling: str, registry: Registry) -> None:
    """See that a tiling is not named like a folder in which something else is written.

    Raises:
        ConfigError: If it is, in whatever case: there are systems that tell none apart.
    """
    taken = taken_folders(registry)
    for part in tiling.split("/"):
        if part.casefold() in {name.casefold() for name in taken}:
            raise ConfigError(
                f"tiler.name={tiling} names a tiling, and {part} is a folder in which something "
                f"else is written. Name it otherwise; taken are {', '.join(sorted(taken))}."
            )


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
