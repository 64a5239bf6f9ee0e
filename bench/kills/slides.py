"""Rounds over slides that are tiled and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.kills.checks import Truth, Verdict, check, check_complete
from bench.kills.launch import Nursery
from bench.kills.rounds import ENGINES, Repertoire, Ring, Scene
from microtome.testing import make_slide

OPTIONS = (
    "tiler.size=32",
    "tiler.magnification=20",
    "threads=2",
    "batch_size=8",
    "encoder=[handcrafted]",
    "writer=[hdf5,zarr,png]",
    "visualize=all",
    "claims.attempts=0",  # of three deaths it would conclude that the slide is to blame
    "claims.seconds=2",
)
MORE = ("+encoder@encoder.second=handcrafted", "slide_encoder=[mean]", "patient_encoder=[mean]")

# From "two" on there are one of slides, which pools the tiles of each, and one of patients.
SCENES = {
    "new": Scene("", MORE),
    "add": Scene("one", MORE),
    "force": Scene("two", (*MORE, "force=true")),
}

REACH: Mapping[str, tuple[int, str]] = {
    "before a file's fsync": (7, "new add force"),
    "before a file's replace": (3, "new add force"),
    "before a folder's rename": (6, "new force"),
    "after a rename, before its folder's fsync": (10, "new add force"),
    "before the status": (3, "new add force"),
    "before the tissue": (6, "new force"),
    "before an overlay": (9, "new"),
    "before the run's record": (1, "new add force"),
    "before a published file is copied": (3, "add"),
    "a published file copied, nothing added": (3, "add"),
    "before features go into a folder": (3, "add"),
    "before an array goes into a folder": (4, "add"),
    "before a patient's embedding": (4, "new add force"),
    "before a folder is moved aside": (6, "force"),
    "a folder moved aside, its successor not there": (6, "force"),
    "writing features to scratch": (15, "new add force"),
    "inside Zarr's writing": (140, "new add force"),
    "inside a folder of images": (110, "new force"),
    "a lease made, nothing in it": (3, "new add force"),
    "before an attempt is on record": (6, "new add force"),
    "giving a slide back": (6, "new add force"),
    "taking a slide over": (1, "new add force"),
    "sweeping": (1, "new add force"),
}

AFTER: Mapping[str, str] = {
    "taking a slide over": "inside Zarr's writing",
    "sweeping": "inside Zarr's writing",
}

SLIDES = Repertoire(SCENES, REACH, AFTER)


class Arena(Ring):
    """Slides that are tiled and encoded.

    Args:
        folder: To work in; must not exist.
        nursery: For the first runs.
        engines: Whose undisturbed run is timed: those with rounds killed at any moment.
    """

    def __init__(
        self, folder: Path, nursery: Nursery, engines: Sequence[str] = tuple(ENGINES)
    ) -> None:
        super().__init__(folder, SLIDES)
        self._slides = folder / "slides"
        self._slides.mkdir(parents=True)
        for number, tissue in enumerate((0.35, 0.5, 0.0)):
            make_slide(
                self._slides / f"slide {number}.svs",
                size=(384, 256),
                levels=(1, 2),
                mpp=0.5,
                magnification=20,
                tissue=tissue,
                pen=False,
                seed=number,
            )
        rows = ("slide 0.svs,P1", "slide 1.svs,P2", "slide 2.svs,P1")
        (self._slides / "slides.csv").write_text("\n".join(["slide,patient_id", *rows]))
        self._takes: dict[str, float] = {}
        for name, words, engine in (
            ("one", (), "inline"),
            ("two", MORE, "inline"),
            ("workers", MORE, "local"),
        ):
            if engine in engines:
                line = self.words(folder / name, words, engine)
                self._takes[engine] = self.run(nursery, line)
        self.truth = Truth(folder / "two")

    def words(self, output: Path, words: Sequence[str], engine: str) -> list[str]:
        """Give a command line."""
        manifest = str(self._slides / "slides.csv")
        return [manifest, f"output={output}", *OPTIONS, *words, *ENGINES[engine]]

    def takes(self, scene: str, engine: str) -> float:
        """Say how many seconds an undisturbed run takes, whatever it finds."""
        return self._takes[engine]

    def look(self, output: Path, scene: str) -> Verdict:
        """See that what is there is right, and that what was there still is.

        A file always, a folder unless it is being replaced.
        """
        known = self.repertoire.scenes[scene]
        verdict = check(output, self.truth, forced=known.forced)
        for name in self.truth.stored if known.start else ():
            path = output / name
            if not (self.folder / known.start / name).exists():
                continue
            if not path.exists() and not (known.forced and path.suffix == ".zarr"):
                verdict.faults.append(f"{path} is gone")
        return verdict

    def look_complete(self, output: Path, scene: str) -> Verdict:
        """See that everything is there, and nothing else."""
        return check_complete(output, self.truth)

    def look_back(self, output: Path, scene: str) -> Verdict:
        """See that everything is there that was there at the start: no scene tries this."""
        raise NotImplementedError(scene)
