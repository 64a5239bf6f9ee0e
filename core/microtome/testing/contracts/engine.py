"""What an engine promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from microtome.plugin.registry import Registered, Registry
from microtome.run.job import Job
from microtome.run.planning.plan import make_plan
from microtome.run.progress import SilentReporter
from microtome.run.settings import RunConfig
from microtome.slide.types import SlideRef
from microtome.store.status import SlideStatus
from microtome.testing.contracts.base import PluginContract
from microtome.testing.synthetic import make_slide


class EngineContract(PluginContract):
    """Subclass it for an engine."""

    kind: ClassVar[str] = "engine"

    @pytest.fixture
    def slides(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[SlideRef, ...]:
        """Three slides, and a file that is none among them."""

        def make() -> tuple[SlideRef, ...]:
            folder = tmp_path_factory.mktemp("slides")
            names = ("one", "two", "three")
            for seed, name in enumerate(names):
                make_slide(folder / f"{name}.svs", size=(768, 640), seed=seed)
            (folder / "bad.svs").write_bytes(b"II*\0 and nothing else")
            order = ("one", "bad", "two", "three")
            return tuple(SlideRef(path=folder / f"{name}.svs", slide_id=name) for name in order)

        return self.keep("slides", make)

    @pytest.fixture
    def job(self, registry: Registry, slides: tuple[SlideRef, ...], tmp_path: Path) -> Job:
        """Coordinates and features of the slides, into a new output."""
        config = RunConfig(slides=(), output=tmp_path / "out", run_dir=tmp_path / "out/runs/one")
        plan = make_plan(config, registry)
        return Job(plan=plan, slides=slides, reporter=SilentReporter())

    @pytest.fixture
    def engine(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The engine."""
        return registry.create("engine", entry.spec.name, config)

    def test_every_slide_has_one_status(self, engine: Any, job: Job) -> None:
        """In any order; one bad slide never stops the others."""
        states = _states(list(engine.run(job)))
        assert states == {"one": "done", "two": "done", "three": "done", "bad": "failed"}

    def test_what_is_finished_is_found(self, engine: Any, job: Job) -> None:
        """A second run of the same slides computes nothing."""
        list(engine.run(job))
        files = {p: p.stat().st_mtime_ns for p in job.plan.layout.root.glob("patches/*")}
        assert len(files) == 3
        states = _states(list(engine.run(job)))
        assert states == {"one": "reused", "two": "reused", "three": "reused", "bad": "failed"}
        assert files == {p: p.stat().st_mtime_ns for p in files}

    def test_no_claim_is_left(self, engine: Any, job: Job) -> None:
        """Nor is anything half-written."""
        list(engine.run(job))
        layout = job.plan.layout
        assert not [path for path in layout.claims_folder.rglob("*") if path.is_file()]
        assert not list(layout.output.rglob(".*.tmp"))

    def test_a_run_can_be_left_in_the_middle(self, engine: Any, job: Job) -> None:
        """Closed after the first slide, it drops what it was working on; the next run goes on."""
        statuses = engine.run(job)
        first = next(statuses)
        statuses.close()
        assert not [path for path in job.plan.layout.claims_folder.rglob("*") if path.is_file()]
        states = _states(list(engine.run(job)))
        assert states.pop("bad") == "failed"
        assert set(states.values()) <= {"done", "reused"}
        assert first.state == "failed" or states[first.slide_id] == "reused"

    def test_no_slide_is_no_work(self, engine: Any, job: Job) -> None:
        """A run whose slides were all refused starts nothing."""
        empty = Job(plan=job.plan, slides=(), reporter=job.reporter)
        assert list(engine.run(empty)) == []


def _states(statuses: list[SlideStatus]) -> dict[str, str]:
    """Give the states by slide, and fail where a slide has two."""
    states = {status.slide_id: status.state for status in statuses}
    assert len(states) == len(statuses)
    return states
