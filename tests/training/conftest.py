"""Fixtures of the training room: a small cohort, and an output with its tiles labelled."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from microtome.__main__ import main
from microtome.plugin.registry import get_registry
from microtome.run.job import TaskJob
from microtome.run.progress import SilentReporter
from microtome.run.settings import Choice, RunConfig
from microtome.testing import make_cohort

INDEX = ("task=index", "labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]")
TILES = ("tiler.size=128", "tiler.mpp=0.5", "engine=inline")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Make six slides, two of them to test on, once a session. Not to be written to."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), slides=6, size=(1024, 896))


@pytest.fixture(scope="session")
def labelled(cohort, tmp_path_factory):
    """Give an output with labelled tiles of the cohort, 128 px at 0.5 µm. Not to be written to."""
    output = tmp_path_factory.mktemp("labelled") / "out"
    assert main([str(cohort.manifest), f"output={output}", *INDEX, *TILES]) == 0
    return output


@pytest.fixture
def output(labelled, tmp_path):
    """Give a copy of it."""
    return shutil.copytree(labelled, tmp_path / "out")


@pytest.fixture
def make_job():
    """Give a maker of tasks' jobs: `make_job(output, *slides, force=True)`."""

    def make(output, *slides, **fields):
        config = RunConfig(
            slides=tuple(map(str, slides)),
            output=output,
            task="sample",
            own_task=Choice(plugin="sample"),
        )
        config = replace(config, **fields)
        return TaskJob(config=config, registry=get_registry(), reporter=SilentReporter())

    return make


@pytest.fixture
def one_thread():
    """Let torch use one thread: for such small work, sharing it out is what takes time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
