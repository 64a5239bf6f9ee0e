"""One round: an output in some state, a command killed a few times, then left to finish."""

from __future__ import annotations

import random
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.kills.checks import Verdict
from bench.kills.launch import Nursery, Started, Stuck
from bench.kills.points import Trap

ANY = "any moment"
SECONDS = 120
"""That a command may take on these slides; it takes one or two."""

ENGINES = {"inline": ("engine=inline",), "local": ("engine=local", "engine.workers=2")}


@dataclass(frozen=True)
class Scene:
    """What the output holds and what is asked of it.

    Attributes:
        start: The output to begin with: ``""`` for none, else one that its arena has.
        words: Of the command, beside those that all have.
        workers: Whether slides are shared out to workers, where a round has some.
        back: Of the command that what is there at the start is from, where it is tried again after
            the kills: it may be refused, and what it calls finished must be its own.
    """

    start: str
    words: tuple[str, ...]
    workers: bool = True
    back: tuple[str, ...] = ()

    @property
    def forced(self) -> bool:
        """Whether finished work is done again."""
        return "force=true" in self.words


@dataclass(frozen=True)
class Repertoire:
    """What rounds are drawn from.

    Attributes:
        scenes: By name.
        reach: By point: how often a run passes it at least, and in which scenes.
        after: Points that a run passes only where another one was killed before; and where it was,
            surely.
    """

    scenes: Mapping[str, Scene]
    reach: Mapping[str, tuple[int, str]]
    after: Mapping[str, str]

    def every_point(self, seed: int) -> list[Plan]:
        """Plan a kill at each named point, without workers."""
        rng = random.Random(seed)
        plans = []
        for point, (most, scenes) in self.reach.items():
            kill = Kill(point, "driver", count=rng.randint(1, most))
            first = (Kill(self.after[point], "driver"),) if point in self.after else ()
            plans.append(Plan(rng.choice(scenes.split()), "inline", (*first, kill)))
        return plans

    def draw(self, rng: random.Random, scene: str, engine: str, earlier: int) -> Kill:
        """Draw a kill, after so many earlier ones."""
        whom = "driver" if engine == "inline" else rng.choice(("driver", "worker", "both"))
        if rng.random() < 0.35:
            return Kill(ANY, whom, moment=rng.uniform(0, 1.1))
        own = {name: most for name, (most, scenes) in self.reach.items() if scene in scenes.split()}
        after = [name for name in self.after if name in own]
        if earlier and rng.random() < 0.3 and after:
            point = rng.choice(after)
        else:
            point = rng.choice(list(own))
        most = own[point] if engine == "inline" else -(-own[point] // 2)
        return Kill(point, whom, count=rng.randint(1, most))


@dataclass(frozen=True)
class Kill:
    """A kill that is planned.

    Attributes:
        point: Of the repertoire's reach, or `ANY`.
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
        scene: Of the repertoire's.
        engine: Of `ENGINES`.
        kills: One after the other.
    """

    scene: str
    engine: str
    kills: tuple[Kill, ...]

    @classmethod
    def draw(cls, of: Repertoire, seed: int, number: int, *, local: float) -> Plan:
        """Draw a plan.

        Args:
            of: What from.
            seed: Of all rounds.
            number: Of this round.
            local: Share of the rounds with workers.
        """
        rng = random.Random(f"{seed} {number}")
        engine = "local" if rng.random() < local else "inline"
        scene = rng.choice(list(of.scenes))
        engine = engine if of.scenes[scene].workers else "inline"
        count = rng.choice((1, 2, 2))
        return cls(scene, engine, tuple(of.draw(rng, scene, engine, i) for i in range(count)))


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


class Ring(ABC):
    """Where rounds are fought: slides, and what undisturbed runs make of them.

    Args:
        folder: To work in; must not exist.
        repertoire: What is fought.
    """

    def __init__(self, folder: Path, repertoire: Repertoire) -> None:
        self.folder = folder
        self.repertoire = repertoire

    @abstractmethod
    def words(self, output: Path, words: Sequence[str], engine: str) -> list[str]:
        """Give a command line."""

    @abstractmethod
    def takes(self, scene: str, engine: str) -> float:
        """Say how many seconds an undisturbed run takes."""

    @abstractmethod
    def look(self, output: Path, scene: str) -> Verdict:
        """See that everything under a final name is whole and right, whatever is missing."""

    @abstractmethod
    def look_complete(self, output: Path, scene: str) -> Verdict:
        """See that a run that ended well left everything, and nothing else."""

    @abstractmethod
    def look_back(self, output: Path, scene: str) -> Verdict:
        """See that everything is there that was there at the start."""

    def run(self, nursery: Nursery, words: Sequence[str]) -> float:
        """Run a command undisturbed, and say how many seconds it took.

        Raises:
            RuntimeError: If it fails.
        """
        began = time.monotonic()
        started = nursery.start(words)
        code = nursery.wait(started, SECONDS)
        if code:
            raise RuntimeError(f"an undisturbed run ended with {code}:\n{_tail(started)}")
        return time.monotonic() - began


def fight(arena: Ring, nursery: Nursery, plan: Plan, number: int, tally: Tally) -> None:
    """Do a round, and add what it found."""
    bout = _Bout(arena, nursery, plan, number, tally)
    try:
        bout.whole()
    except Stuck as error:
        tally.stuck.append(f"{bout.where}: {error}; {plan}")
    if not any(bout.where in fault for fault in (*tally.wrong, *tally.stuck)):
        shutil.rmtree(bout.output)


@dataclass(frozen=True)
class _Bout:
    arena: Ring
    nursery: Nursery
    plan: Plan
    number: int
    tally: Tally

    @property
    def where(self) -> str:
        return f"round {self.number} ({self.plan.scene}, {self.plan.engine})"

    @property
    def output(self) -> Path:
        return self.arena.folder / f"round-{self.number}"

    @property
    def scene(self) -> Scene:
        return self.arena.repertoire.scenes[self.plan.scene]

    def whole(self) -> None:
        """Kill as planned, then let the command finish."""
        arena, tally, name = self.arena, self.tally, self.plan.scene
        if self.scene.start:
            shutil.copytree(arena.folder / self.scene.start, self.output)
        for kill in self.plan.kills:
            self.strike(kill)
            tally.take(arena.look(self.output, name), f"{self.where}, {kill}")
        if self.scene.back:
            self.go_back()
        began = time.monotonic()
        started, code = self.run(self.scene.words)
        tally.seconds = max(tally.seconds, time.monotonic() - began)
        if code:
            self.tell_stuck(f"ended with {code}", started)
        tally.take(arena.look_complete(self.output, name), f"{self.where}, {self.plan}")

    def run(self, words: Sequence[str], trap: Trap | None = None) -> tuple[Started, int]:
        """Run a command to its end."""
        self.tally.runs += 1
        line = self.arena.words(self.output, words, self.plan.engine)
        started = self.nursery.start(line, trap)
        return started, self.nursery.wait(started, SECONDS)

    def strike(self, kill: Kill) -> None:
        """Run the command and kill it, if it does not end first."""
        if kill.point == ANY:
            started, code, killed = self.strike_at_a_moment(kill)
        else:
            whom = {"worker": "self"}.get(kill.whom, kill.whom)
            trap = Trap(point=kill.point, count=kill.count, whom=whom, mark="")
            started, code = self.run(self.scene.words, trap)
            killed = started.mark.exists()
        if killed:
            self.tally.kills[kill.point, self.plan.engine, kill.whom] += 1
        if code not in (0, -9):
            self.tell_stuck(f"{kill}: ended with {code}", started)

    def strike_at_a_moment(self, kill: Kill) -> tuple[Started, int, bool]:
        self.tally.runs += 1
        engine = self.plan.engine
        line = self.arena.words(self.output, self.scene.words, engine)
        started = self.nursery.start(line)
        time.sleep(kill.moment * self.arena.takes(self.plan.scene, engine))
        driver, workers = [started.pid], started.workers() if engine == "local" else []
        chosen = {"driver": driver, "worker": workers[-1:] or driver, "both": driver + workers}
        started.kill(chosen[kill.whom])
        code = self.nursery.wait(started, SECONDS)
        return started, code, code == -9 or (kill.whom == "worker" and bool(workers))

    def go_back(self) -> None:
        """Ask again for what was there at the start, which may be refused."""
        arena, name = self.arena, self.plan.scene
        started, code = self.run(self.scene.back)
        if code == 0:
            self.tally.take(arena.look_back(self.output, name), f"{self.where}, {self.plan}, back")
        elif code == 1:
            self.tally.take(arena.look(self.output, name), f"{self.where}, {self.plan}, refused")
        else:
            self.tell_stuck(f"going back ended with {code}", started)

    def tell_stuck(self, what: str, started: Started) -> None:
        self.tally.stuck.append(f"{self.where}: {what}:\n{_tail(started)}; {self.plan}")


def _tail(started: Started) -> str:
    return started.said.read_text("utf-8", "replace")[-2000:]
