"""One round: an output in some state, a command killed a few times, then left to finish."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.kills.checks import Truth, Verdict, check, check_complete
from bench.kills.launch import Nursery, Started, Stuck
from bench.kills.points import Trap
from microtome.testing import make_slide

ANY = "any moment"
SECONDS = 120
"""That a command may take on these slides; it takes one or two."""

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
ENGINES = {"inline": ("engine=inline",), "local": ("engine=local", "engine.workers=2")}


@dataclass(frozen=True)
class Scene:
    """What the output holds and what is asked of it.

    Attributes:
        start: The output to begin with: ``""`` for none, else ``"one"`` encoder, or ``"two"`` and
            one of slides, which pools the tiles of each, and one of patients, which pools those.
        words: Of the command, beside `OPTIONS`.
    """

    start: str
    words: tuple[str, ...]

    @property
    def forced(self) -> bool:
        """Whether finished work is done again."""
        return "force=true" in self.words


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
"""By point: how often a run passes it at least, and in which scenes."""

AFTER_A_KILL = ("taking a slide over", "sweeping")
"""Points that a run passes only where another one was killed before."""


@dataclass(frozen=True)
class Kill:
    """A kill that is planned.

    Attributes:
        point: Of `REACH`, or `ANY`.
        whom: ``"driver"``, ``"worker"`` or ``"both"``.
        count: At which passing of the point.
        moment: For `ANY`: when, as a share of what an undisturbed run takes.
    """

    point: str
    whom: str
    count: int = 1
    moment: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A round that is planned, wholly by its seed.

    Attributes:
        scene: Of `SCENES`.
        engine: Of `ENGINES`.
        kills: One after the other.
    """

    scene: str
    engine: str
    kills: tuple[Kill, ...]

    @classmethod
    def draw(cls, seed: int, number: int, *, local: float) -> Plan:
        """Draw a plan.

        Args:
            seed: Of all rounds.
            number: Of this round.
            local: Share of the rounds with workers.
        """
        rng = random.Random(f"{seed} {number}")
        engine = "local" if rng.random() < local else "inline"
        scene = rng.choice(list(SCENES))
        count = rng.choice((1, 2, 2))
        return cls(scene, engine, tuple(_draw(rng, scene, engine, i) for i in range(count)))


def every_point(seed: int) -> list[Plan]:
    """Plan a kill at each named point, without workers."""
    rng = random.Random(seed)
    plans = []
    for point, (most, scenes) in REACH.items():
        kill = Kill(point, "driver", count=rng.randint(1, most))
        # Leaves something to take over, and something to sweep.
        first = (Kill("inside Zarr's writing", "driver"),) if point in AFTER_A_KILL else ()
        plans.append(Plan(rng.choice(scenes.split()), "inline", (*first, kill)))
    return plans


def _draw(rng: random.Random, scene: str, engine: str, earlier: int) -> Kill:
    whom = "driver" if engine == "inline" else rng.choice(("driver", "worker", "both"))
    if rng.random() < 0.35:
        return Kill(ANY, whom, moment=rng.uniform(0, 1.1))
    if earlier and rng.random() < 0.3:
        point = rng.choice(AFTER_A_KILL)
    else:
        point = rng.choice([n for n, (_, scenes) in REACH.items() if scene in scenes.split()])
    most = REACH[point][0] if engine == "inline" else -(-REACH[point][0] // 2)
    return Kill(point, whom, count=rng.randint(1, most))


@dataclass
class Tally:
    """What all rounds found.

    Attributes:
        kills: By point, engine and whom.
        runs: Commands started.
        files: Looked at.
        wrong: Faults of files, each with its round.
        stuck: Commands that did not finish their slides, each with its round.
        seconds: The longest that a command took to finish after a kill.
    """

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    runs: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, verdict: Verdict, where: str) -> None:
        """Add what a look at an output found."""
        self.files += verdict.files
        self.wrong += [f"{where}: {fault}" for fault in verdict.faults]


class Arena:
    """Slides, what undisturbed runs make of them, and where rounds are fought.

    Args:
        folder: To work in; must not exist.
        nursery: For the first runs.
        engines: Whose undisturbed run is timed: those with rounds killed at any moment.
    """

    def __init__(
        self, folder: Path, nursery: Nursery, engines: Sequence[str] = tuple(ENGINES)
    ) -> None:
        self.folder = folder
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
        self.takes: dict[str, float] = {}
        self._undisturbed(nursery, "one", (), "inline")
        self._undisturbed(nursery, "two", MORE, "inline")
        if "local" in engines:
            self._undisturbed(nursery, "workers", MORE, "local")
        self.truth = Truth(folder / "two")

    def words(self, output: Path, words: Sequence[str], engine: str) -> list[str]:
        """Give a command line."""
        manifest = str(self._slides / "slides.csv")
        return [manifest, f"output={output}", *OPTIONS, *words, *ENGINES[engine]]

    def _undisturbed(self, nursery: Nursery, name: str, words: Sequence[str], engine: str) -> None:
        began = time.monotonic()
        started = nursery.start(self.words(self.folder / name, words, engine))
        code = nursery.wait(started, SECONDS)
        self.takes[engine] = time.monotonic() - began
        if code:
            raise RuntimeError(f"an undisturbed run ended with {code}:\n{_tail(started)}")


def fight(arena: Arena, nursery: Nursery, plan: Plan, number: int, tally: Tally) -> None:
    """Do a round, and add what it found."""
    where = f"round {number} ({plan.scene}, {plan.engine})"
    output = arena.folder / f"round-{number}"
    scene = SCENES[plan.scene]
    if scene.start:
        shutil.copytree(arena.folder / scene.start, output)
    words = arena.words(output, scene.words, plan.engine)
    try:
        for kill in plan.kills:
            _strike(arena, nursery, words, kill, tally, where)
            tally.take(check(output, arena.truth, forced=scene.forced), f"{where}, {kill}")
            _see_kept(output, arena.truth, scene, tally, where)
        began = time.monotonic()
        started = nursery.start(words)
        code = nursery.wait(started, SECONDS)
        tally.runs += 1
        tally.seconds = max(tally.seconds, time.monotonic() - began)
        if code:
            tally.stuck.append(f"{where}: ended with {code}:\n{_tail(started)}")
        tally.take(check_complete(output, arena.truth), f"{where}, {plan}")
    except Stuck as error:
        tally.stuck.append(f"{where}: {error}; {plan}")
    if not any(where in fault for fault in (*tally.wrong, *tally.stuck)):
        shutil.rmtree(output)


def _strike(
    arena: Arena, nursery: Nursery, words: Sequence[str], kill: Kill, tally: Tally, where: str
) -> None:
    """Run the command and kill it, if it does not end first."""
    engine = "local" if "engine=local" in words else "inline"
    tally.runs += 1
    if kill.point == ANY:
        started = nursery.start(words)
        time.sleep(kill.moment * arena.takes[engine])
        driver, workers = [started.pid], started.workers() if engine == "local" else []
        chosen = {"driver": driver, "worker": workers[-1:] or driver, "both": driver + workers}
        started.kill(chosen[kill.whom])
        code = nursery.wait(started, SECONDS)
        killed = code == -9 or (kill.whom == "worker" and bool(workers))
    else:
        whom = {"worker": "self"}.get(kill.whom, kill.whom)
        started = nursery.start(words, Trap(point=kill.point, count=kill.count, whom=whom, mark=""))
        code = nursery.wait(started, SECONDS)
        killed = started.mark.exists()
    if killed:
        tally.kills[kill.point, engine, kill.whom] += 1
    if code not in (0, -9):
        tally.stuck.append(f"{where}, {kill}: ended with {code}:\n{_tail(started)}")


def _see_kept(output: Path, truth: Truth, scene: Scene, tally: Tally, where: str) -> None:
    """See that what was there still is: a file always, a folder unless it is being replaced."""
    if not scene.start:
        return
    for name in truth.stored:
        path = output / name
        if not (truth.output.parent / scene.start / name).exists():
            continue
        if not path.exists() and not (scene.forced and path.suffix == ".zarr"):
            tally.wrong.append(f"{where}: {path} is gone")


def _tail(started: Started) -> str:
    return started.said.read_text("utf-8", "replace")[-2000:]
