"""The commands of the page ``docs/training/index.md``, typed in order, do what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from microtome.__main__ import main
from microtome.testing import make_cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training" / "index.md"
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = {
    "task=train": (
        "max_epochs=1", "input_size=32", "num_workers=0", "evaluate.bootstrap=20", "heatmaps=false",
        "train.split.val_size=0.25",
    ),
    "task=predict": ("heatmap.kind=none", "heatmap.png=false"),
}  # fmt: skip
"""What a test cannot wait for."""


def commands():
    """Give the page's command lines of microtome, without the word itself."""
    for block in BLOCK.findall(PAGE.read_text("utf-8")):
        for line in block.replace("\\\n", "").splitlines():
            first, *words = shlex.split(line.removeprefix("$ "), comments=True) or [""]
            if first == "microtome":
                yield words


def read_state(folder, top):
    """Give the tables of losses of a folder's trainings by name."""
    return {path.parent.name: path.read_text() for path in (folder / top).rglob("*losses.csv")}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Give the folder in which somebody typed all of them, and what each said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("followed"))
        patch.setattr("microtome_training.evaluation.task.draw_plots", lambda *args: [])
        cohort = make_cohort("cohort", slides=6, size=(1024, 896))
        Path("new_slides").mkdir()
        first = cohort.slides[0].path
        shutil.copy(first, f"new_slides/unseen{first.suffix}")
        for words in commands():
            quick = [word for task, more in QUICK.items() if task in words for word in more]
            run = ["engine=inline", "device=cpu", "threads=1"]
            assert main([*words, *run, *quick]) == 0, words
        yield Path.cwd() / "out"


def test_each_command_of_the_page_succeeds(followed):
    stores = sorted(path.name for path in (followed / "patches").iterdir() if path.suffix)
    assert len(stores) == 7, "six slides and a new one, each once"
    assert "unseen.h5" in stores
    assert len([*(followed / "balanced" / "lmdb").iterdir()]) == 6
    assert (followed / "training" / "small_cnn" / "evaluation.html").is_file()
    assert (followed / "predictions" / "small_cnn" / "predictions.parquet").is_file()
    assert main(["verify", str(followed)]) == 0


def test_the_sweep_of_the_page_trains_models_that_differ(followed):
    swept = read_state(followed, "training")
    del swept["small_cnn"]
    assert len(swept) == 4
    assert len(set(swept.values())) == 4
