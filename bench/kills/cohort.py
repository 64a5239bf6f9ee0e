"""Rounds over labelled tiles, stores of patches, samples, trainings and predictions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kills.checks import Verdict, is_private, leftovers, look_at_record, look_at_status, told
from bench.kills.contents import Contents, read_contents
from bench.kills.labels import look_at_labels
from bench.kills.launch import Nursery
from bench.kills.rounds import ENGINES, Repertoire, Ring, Scene
from microtome.plugin.registry import get_registry
from microtome.store.verify import verify_output
from microtome.testing import make_cohort

IMPORTS = (
    "h5py",
    "lmdb",
    "zarr",
    "webdataset",
    "matplotlib.figure",
    "sklearn.metrics",
    "microtome_annotations.asap",
    "microtome_writers.imagefolder",
    "microtome_writers.lmdb",
    "microtome_writers.patches",
    "microtome_writers.webdataset",
    "microtome_training.sampling.task",
    "microtome_training.training.task",
    "microtome_training.training.ending",
    "microtome_training.training.features",
    "microtome_training.training.launching",
    "microtome_training.training.loop",
    "microtome_training.training.models",
    "microtome_training.predicting.task",
    "microtome_training.evaluation.page",
)
"""What the commands of these rounds need."""

_ALWAYS = ("device=cpu", "threads=1", "claims.attempts=0", "claims.seconds=2")
_TILES = ("tiler.size=64", "tiler.mpp=1.0")
_LABELS = ("labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]")
_BOTH, _ALL = "writer=[hdf5,zarr]", "writer=[hdf5,zarr,imagefolder,lmdb,patches,webdataset]"
_ENCODER = "encoder=[handcrafted]"

INDEX = ("task=index", _BOTH, *_TILES, *_LABELS)
PLAIN = (_BOTH, _ENCODER, *_TILES)
LABEL = (*PLAIN, *_LABELS)
STORES = (_ALL, _ENCODER, *_TILES, *_LABELS)
SAMPLE = ("task=sample",)
TRAIN = (
    *("task=train", "max_epochs=3", "patience=0", "save_interval=1", "batch_size=32"),
    *("split.val_size=0.25", "num_workers=0", "evaluate.bootstrap=10"),
)
PIXELS = (*TRAIN, "model=small_cnn", "input_size=32")
PROBE = (*TRAIN, "features=handcrafted")
PREDICT = ("task=predict",)
FORCE = "force=true"

STARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("", PLAIN),
    "drawn": ("", STORES),
    "file": ("", ("writer=[hdf5]", _ENCODER, *_TILES, *_LABELS)),
    "folder": ("", ("writer=[zarr]", _ENCODER, *_TILES, *_LABELS)),
    "sampled": ("file", SAMPLE),
    "probed": ("file", PROBE),
    "trained": ("folder", PIXELS),
    "predicted": ("trained", PREDICT),
}
"""By name: the output that each begins with, and the words of the command that makes it."""

EDITED = "file"
"""The first start for which the annotations are as they stay; those before have earlier ones."""

SCENES = {
    "index": Scene("", INDEX),
    "label": Scene("plain", LABEL),
    "stores": Scene("", STORES),
    "edit": Scene("drawn", STORES),
    "sample": Scene("file", SAMPLE, workers=False),
    "resample": Scene("sampled", (*SAMPLE, "sample.seed=7", FORCE), workers=False, back=SAMPLE),
    "train": Scene("folder", PIXELS, workers=False),
    "probe": Scene("file", PROBE, workers=False),
    "retrain": Scene("probed", (*PROBE, "train.lr=0.01", FORCE), workers=False, back=PROBE),
    "measure": Scene("probed", (*PROBE, "evaluate.threshold=0.3"), workers=False, back=PROBE),
    "predict": Scene("probed", PREDICT, workers=False),
    "predict-folder": Scene("trained", PREDICT, workers=False),
    "repredict": Scene("predicted", (*PREDICT, FORCE), workers=False),
}

_TILED = "index label stores edit"
_TRAINED = "train probe retrain"
_FOLDERS = "index label stores edit predict-folder repredict"

REACH: Mapping[str, tuple[int, str]] = {
    "before a file's fsync": (2, " ".join(SCENES)),
    "after a rename, before its folder's fsync": (2, " ".join(SCENES)),
    "before the run's record": (1, " ".join(SCENES)),
    "before the status": (5, _TILED),
    "before a file's replace": (3, f"{_TILED} predict"),
    "before a folder's rename": (3, f"{_TILED} repredict"),
    "before a folder is moved aside": (3, "label edit repredict"),
    "a folder moved aside, its successor not there": (3, "label edit repredict"),
    "a published file copied, nothing added": (5, "predict"),
    "inside Zarr's writing": (40, _FOLDERS),
    "a lease made, nothing in it": (1, f"{_TILED} {_TRAINED} measure"),
    "giving a slide back": (1, f"{_TILED} {_TRAINED} measure"),
    "taking a slide over": (1, f"{_TILED} {_TRAINED} measure"),
    "sweeping": (1, " ".join(SCENES)),
    "before a store of patches": (9, "stores edit"),
    "before a class gets images": (5, "stores edit"),
    "before the record of images": (3, "stores edit"),
    "before the record of images goes": (3, "edit"),
    "taking images from a class": (4, "edit"),
    "before a sample, or its record": (2, "sample resample"),
    "before a checkpoint": (7, _TRAINED),
    "before a file of a training": (13, _TRAINED),
    "before a plot": (5, f"{_TRAINED} measure"),
    "before a heatmap": (2, "train probe predict predict-folder repredict"),
    "before a training is moved away": (1, "retrain"),
    "removing a training": (12, "retrain"),
    "before predictions go into a folder": (5, "predict-folder"),
    "before a table of predictions": (3, "predict predict-folder repredict"),
}
"""As of the other rounds."""

AFTER = {"taking a slide over": "giving a slide back", "sweeping": "before a file's fsync"}
"""As of the other rounds."""

COHORT = Repertoire(SCENES, REACH, AFTER)

_LOSSES, _LAST, _BEST = "epoch_losses.csv", "checkpoints/last.pt", "checkpoints/best.pt"


@dataclass(frozen=True)
class Held:
    """What an output holds, by the names below it.

    Attributes:
        output: It.
        files: What is in each; no records of runs.
    """

    output: Path
    files: Mapping[str, Contents]

    @classmethod
    def read(cls, output: Path) -> Held:
        """Read an output that an undisturbed run left."""
        names = {path.relative_to(output).as_posix(): path for path in find_final(output)}
        kept = {name: path for name, path in names.items() if _is_result(name)}
        return cls(output, {name: read_contents(path, output) for name, path in kept.items()})

    def is_on_the_way(self, name: str, found: Contents) -> bool:
        """Whether a file is one that a training had after one of its epochs."""
        if name.endswith("/result.json") and not found["ending"]:  # measured again, not yet
            return found == {**self.files.get(name, {}), "ending": {}}
        for ending in (_LOSSES, _LAST, _BEST):
            if name.endswith(ending) and name in self.files:
                return self._had(ending, name.removesuffix(ending), found)
        return False

    def _had(self, ending: str, top: str, found: Contents) -> bool:
        wanted = self.files[f"{top}{ending}"]
        if ending == _LOSSES:
            return bool(wanted["lines"][: len(found["lines"])] == found["lines"])
        if ending == _LAST:
            epochs = len(found["history"])
            after = self.files.get(f"{top}checkpoints/ckpt_epoch_{epochs}.pt", {})
            same = found["weights"] == after.get("weights")
            return bool(same and wanted["history"][:epochs] == found["history"])
        kept = (each for name, each in self.files.items() if name.startswith(f"{top}checkpoints/"))
        return any(found["weights"] == each["weights"] for each in kept)


def _is_result(name: str) -> bool:
    return name.partition("/")[0] not in ("runs", "status")


def find_final(output: Path) -> Iterator[Path]:
    """Give everything under a final name: files, and folders that are published whole."""
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if not is_private(path):
            in_class = path.parent.parent.name == "images"
            if path.is_dir() and path.suffix != ".zarr" and not in_class:
                yield from find_final(path)
            else:
                yield path


def look(output: Path, known: Sequence[Held], *, forced: bool = False) -> Verdict:
    """See that everything under a final name is what one of some outputs holds.

    Args:
        output: To look at.
        known: The outputs.
        forced: Whether a folder that the status tells of may be missing.
    """
    verdict = Verdict()
    found: dict[str, Contents] = {}
    for path in find_final(output):
        verdict.files += 1
        name = path.relative_to(output).as_posix()
        with told(verdict, path):
            if name.startswith("runs/"):
                verdict.faults += look_at_record(path)
            elif name.startswith("status/"):
                verdict.faults += look_at_status(path, output, forced)
            else:
                found[name] = read_contents(path, output)
                verdict.faults += _compare(path, name, found[name], known)
    verdict.faults += _look_at_images(output, found, known)
    return verdict


def _compare(path: Path, name: str, found: Contents, known: Sequence[Held]) -> list[str]:
    wanted = [held.files[name] for held in known if name in held.files]
    if not wanted:
        return [f"{path} is no output"]
    if found in wanted or any(held.is_on_the_way(name, found) for held in known):
        return []
    last = wanted[-1]
    differing = [k for k in {**found, **last} if found.get(k) != last.get(k)]
    return [f"{path}: {', '.join(map(str, differing[:5]))} differ from an undisturbed run's"]


def _look_at_images(
    output: Path, found: Mapping[str, Contents], known: Sequence[Held]
) -> Iterator[str]:
    """See that all images are there of a slide that has a record of them, and no others."""
    for name, record in found.items():
        top, _, rest = name.partition("/slides/")
        if not rest or not top.endswith("imagefolder"):
            continue
        own = f"/{Path(rest).stem}"
        there = {n: c for n, c in found.items() if _is_image(n, top, own)}
        wanted = [
            {n: c for n, c in held.files.items() if _is_image(n, top, own)}
            for held in known
            if held.files.get(name) == record
        ]
        if there not in wanted:
            yield f"{output / name} is there, and its images are not"


def _is_image(name: str, top: str, own: str) -> bool:
    return name.startswith(f"{top}/images/") and name.endswith(own)


def look_complete(output: Path, wanted: Held) -> Verdict:
    """See that an output holds all that another does, and nothing else."""
    verdict = look(output, [wanted])
    names = {path.relative_to(output).as_posix() for path in find_final(output)}
    verdict.faults += [f"{output / name} is missing" for name in wanted.files.keys() - names]
    for path in sorted((output / "status").glob("*.json")):
        verdict.faults += look_at_status(path, output, forced=False, finished=True)
    verdict.faults += [f"{path} was left over" for path in leftovers(output)]
    verdict.faults += look_at_labels(output)
    verified = verify_output(output, get_registry(), deep=True)
    verdict.faults += [f"verify: {fault.message}" for fault in verified.faults]
    return verdict


class Cohort(Ring):
    """Slides with tumour, whose outlines somebody edits after the first runs.

    Args:
        folder: To work in; must not exist.
        nursery: For the first runs.
        scenes: That will be fought.
        engines: With which.
    """

    def __init__(
        self,
        folder: Path,
        nursery: Nursery,
        scenes: Sequence[str] = tuple(SCENES),
        engines: Sequence[str] = tuple(ENGINES),
    ) -> None:
        super().__init__(folder, COHORT)
        cohort = make_cohort(folder / "cohort", slides=5, tests=1, size=(832, 800))
        rows = [f"{s.slide_id},{s.path},{s.patient_id},{cohort.mpp}" for s in cohort.slides]
        self._manifest = folder / "slides.csv"
        self._manifest.write_text("\n".join(["slide_id,slide,patient_id,mpp", *rows]))
        self._annotations = cohort.asap
        self._takes: dict[tuple[str, str], float] = {}
        self.ends: dict[str, Held] = {}
        self.starts: dict[str, Held] = {}
        needed = self._needed(scenes)
        for name, (start, words) in STARTS.items():
            if name == EDITED:
                self._edit()
            if name in needed:
                self._make(nursery, name, start, words)
                self.starts[name] = Held.read(folder / name)
        for name in scenes:
            self._end(nursery, name, engines)

    def _needed(self, scenes: Sequence[str]) -> set[str]:
        needed = {SCENES[name].start for name in scenes}
        for name in reversed(STARTS):
            if name in needed:
                needed.add(STARTS[name][0])
        return needed

    def _edit(self) -> None:
        """Draw the outlines of a slide elsewhere, take those of another away, add some to a third.

        As the pathologist does, under the names that the files have.
        """
        first, second, third, fourth = (
            self._annotations / f"slide_{number:02d}.xml" for number in range(1, 5)
        )
        shutil.copyfile(first, third)
        shutil.copyfile(fourth, second)
        fourth.unlink()

    def _make(
        self, nursery: Nursery, name: str, start: str, words: Sequence[str], engine: str = "inline"
    ) -> float:
        output = self.folder / name
        if start:
            shutil.copytree(self.folder / start, output)
        return self.run(nursery, self.words(output, words, engine))

    def _end(self, nursery: Nursery, name: str, engines: Sequence[str]) -> None:
        scene = SCENES[name]
        for engine in engines if scene.workers else ("inline",):
            output = f"{name}-{engine}"
            self._takes[name, engine] = self._make(
                nursery, output, scene.start, scene.words, engine
            )
            held = Held.read(self.folder / output)
            self.ends.setdefault(name, held)
            if held.files != self.ends[name].files:
                raise RuntimeError(f"{output} differs from what one process leaves")

    def words(self, output: Path, words: Sequence[str], engine: str) -> list[str]:
        """Give a command line."""
        labelled = (f"annotations={self._annotations}",) if set(_LABELS) <= {*words} else ()
        line = [str(self._manifest), f"output={output}", *words, *labelled, *_ALWAYS]
        return [*line, *ENGINES[engine]]

    def takes(self, scene: str, engine: str) -> float:
        """Say how many seconds an undisturbed run takes."""
        return self._takes[scene, engine]

    def look(self, output: Path, scene: str) -> Verdict:
        """See that each file is as at the start or as at the end, or as an epoch left it."""
        known = SCENES[scene]
        before = [self.starts[known.start]] if known.start else []
        return look(output, [*before, self.ends[scene]], forced=True)

    def look_complete(self, output: Path, scene: str) -> Verdict:
        """See that everything is as at the end."""
        return look_complete(output, self.ends[scene])

    def look_back(self, output: Path, scene: str) -> Verdict:
        """See that everything is there that was there at the start."""
        return look_complete(output, self.starts[SCENES[scene].start])
