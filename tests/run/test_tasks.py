"""A run that is a task: what it is given, what is recorded, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import task_standins
from task_standins import SEEN

import microtome
from microtome.__main__ import main
from microtome.errors import ConfigError, MissingDependencyError, PluginError, TaskError
from microtome.plugin import registry
from microtome.run.progress import SilentReporter
from microtome.run.settings import RunConfig
from microtome.run.tasks import do_task
from microtome.testing import make_slide


@pytest.fixture(autouse=True)
def tasks(tmp_path, monkeypatch):
    """Install the stand-ins, and work in an empty folder; gives what was done."""
    info = tmp_path / "site/task_standins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: task-standins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microtome]\ntasks = task_standins\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    registry.get_registry.cache_clear()
    SEEN.clear()
    yield SEEN
    registry.get_registry.cache_clear()


def record(output="out"):
    """Read the record of the one run of an output."""
    (path,) = records(output)
    return json.loads(path.read_text("utf-8"))


def records(output):
    return sorted(Path(output).glob("runs/**/run.json"))


def test_a_task_is_done_told_and_recorded(capsys):
    assert main(["task=learn", "output=out", "loss=focal", "ohem.ratio=3"]) == 0
    assert capsys.readouterr().out == "trained with focal\ntwice\n"
    (config, job), *more = SEEN
    assert more == []
    assert config == task_standins.TrainConfig(
        loss=task_standins.Loss.focal, ohem=task_standins.Mining(ratio=3.0)
    )
    assert (job.config.output.name, job.config.label) == ("out", "")
    assert job.find_slides() is None
    found = record()
    assert (found["task"], found["exit_code"], found["outcome"]) == ("learn", 0, {"epochs": 2})
    assert found["config"]["learn"]["ohem"] == {"ratio": 3.0, "on": True}
    assert {"microtome_version", "provenance", "started", "finished", "seconds"} <= {*found}


@pytest.mark.parametrize(
    ("act", "code", "error"),
    [
        ("some", 3, None),
        ("refuse", 1, "There is nothing to train on. Label some tiles first."),
        ("stop", 130, None),
        ("terminate", 143, None),
        ("break", 1, "task 'learn' of task-standins cannot be done"),
    ],
)
def test_how_it_ends_is_the_exit_code_and_in_the_record(act, code, error, capsys):
    assert main(["task=learn", "output=out", f"act={act}"]) == code
    shown = capsys.readouterr()
    found = record()
    assert found["exit_code"] == code
    if error is None:
        assert "error" not in found
    else:
        assert error in found["error"]
        assert error in shown.err
        assert shown.out == ""


def test_a_fault_of_the_plugin_is_laid_at_its_door(capsys):
    assert main(["task=learn", "output=out", "act=break"]) == 1
    told = capsys.readouterr().err
    assert "task-standins" in told
    assert "ZeroDivisionError: by nought" in told
    assert "Traceback" not in told


GIVEN_BACK = {
    "nothing": "'learn' of task-standins gave back NoneType, and is to give a TaskOutcome.",
    "text": "'learn' of task-standins gave back a record that is a str, and is to be a mapping.",
    "path": "'learn' of task-standins gave back record['folder'], which JSON cannot hold",
    "infinite": "'learn' of task-standins gave back record['loss'], which JSON cannot hold",
}


@pytest.mark.parametrize("act", GIVEN_BACK)
def test_what_a_task_gives_back_is_looked_at(act, capsys):
    assert main(["-m", "task=learn", "output=out", f"act={act},none"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert GIVEN_BACK[act] in line
    ends = [json.loads(path.read_text("utf-8")) for path in records("out")]
    assert sorted(end["exit_code"] for end in ends) == [0, 1]
    assert sum(GIVEN_BACK[act] in end.get("error", "") for end in ends) == 1
    with pytest.raises(PluginError) as caught:
        microtome.run_task("learn", "python", act=act)
    assert GIVEN_BACK[act] in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        ("task=bare", "not installed. Install with: pip install no-such-library", 1),
        ("task=needy", "task=needy needs slides: name files, folders or a CSV manifest.", 2),
        ("task=learn batch_size=0", "batch_size=0 must be at least 1.", 1),
        (
            "task=other tiler.size=64 labels.classes.tumor=[A]",
            "goes by the tiles that are there, and tiler.size, labels.classes.tumor would change",
            2,
        ),
        ("task=other +encoder@encoder.x=handcrafted", "and encoder would change nothing", 2),
    ],
)
def test_what_cannot_begin_is_refused_and_nothing_is_done(words, told, code, capsys):
    assert main([*words.split(), "output=out"]) == code
    assert told in capsys.readouterr().err
    assert SEEN == []
    assert not Path("out").exists()


def test_the_configuration_is_shown_with_the_tasks_own(capsys):
    assert main(["task=learn", "output=out", "ohem.ratio=2", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "task: learn\n" in shown
    assert "  ohem:\n    ratio: 2\n    'on': true\n" in shown
    assert SEEN == []


def test_a_sweep_does_each_and_ends_with_the_worst(capsys):
    assert main(["-m", "task=learn", "output=out", "act=none,refuse,some"]) == 1
    assert [job.config.label for _, job in SEEN] == [
        "learn.act=none",
        "learn.act=refuse",
        "learn.act=some",
    ]
    codes = [json.loads(path.read_text("utf-8"))["exit_code"] for path in records("out")]
    assert sorted(codes) == [0, 1, 3]
    assert "learn.act=refuse): There is nothing to train on" in capsys.readouterr().err


def test_a_task_takes_its_slides_through_the_pipeline(tmp_path, capsys):
    for seed, name in enumerate(("a", "b")):
        make_slide(tmp_path / f"slides/{name}.svs", size=(512, 512), seed=seed)
    words = "slides output=out task=learn act=slides tiler.size=64 tiler.mpp=1 engine=inline"
    assert main(words.split()) == 0
    ((_, job),) = SEEN
    assert [ref.slide_id for ref in job.find_slides().slides] == ["a", "b"]
    for name in ("a", "b"):
        with microtome.open_result(tmp_path / f"out/patches/{name}.h5") as stored:
            assert stored.feature_names() == []
            assert len(stored.coords) > 0
    assert "'done': 2" in capsys.readouterr().out


def test_in_python_it_is_a_function():
    outcome = microtome.run_task(
        "learn", "out", loss="focal", ohem={"ratio": 3}, batch_size=7, device="cpu"
    )
    assert (outcome.lines, outcome.exit_code) == (("trained with focal", "twice"), 0)
    ((config, job),) = SEEN
    assert (config.loss.name, config.ohem.ratio, config.batch_size) == ("focal", 3.0, 7)
    assert (job.config.device, job.config.task) == ("cpu", "learn")
    found = record()
    assert found["config"]["learn"] == {"loss": "focal", "ohem": {"ratio": 3}, "batch_size": 7}
    assert found["outcome"] == {"epochs": 2}


def test_in_python_an_option_may_be_called_as_anything():
    for options in ({"name": "s2"}, {"other": {"name": "s2"}}, {"other": {}, "name": "s2"}):
        microtome.run_task("other", "out", **options)
        assert SEEN[-1][0] == task_standins.OtherConfig(name="s2")


def test_in_python_numbers_may_be_numpys_and_paths_paths():
    given = {"share": np.float32(0.5), "places": (np.int64(1), 2), "least": np.int16(3)}
    microtome.run_task("other", "out", **given)
    microtome.run_task("learn", "out", split_csv=Path("a.csv"), ohem={"ratio": 3})
    (other, _), (learn, _) = SEEN
    assert (other.share, other.places, other.least) == (0.5, (1, 2), 3)
    assert (str(learn.split_csv), learn.ohem.ratio) == ("a.csv", 3)


@pytest.mark.parametrize(
    ("name", "options", "error", "told"),
    [
        ("learn", {"ohem": {"ratoi": 3}}, PluginError, "of task learn.ohem named 'ratoi'. Did"),
        ("learn", {"ohem": 3}, PluginError, "task.learn.ohem=3 says nothing of its options"),
        ("learn", {"loss": "hinge"}, PluginError, "learn.loss=hinge is not one of"),
        ("learn", {"los": "focal"}, ConfigError, "'los'"),
        ("learn", {"learn": 3}, ConfigError, "learn=3 says nothing of its options"),
        ("learn", {"learn": {"los": 1}}, PluginError, "no option of task learn named 'los'"),
        ("learn", {"learn": {"act": ""}, "act": ""}, ConfigError, "act=… is given twice"),
        ("learn", {"least": 2}, ConfigError, "least goes with task=other; this run is learn"),
        ("learn", {"other": {}}, ConfigError, "other goes with task=other; this run is learn"),
        ("learn", {"batch_size": "7"}, PluginError, "batch_size='7' does not fit: it takes a whol"),
        ("learn", {"batch_size": 7.5}, PluginError, "it takes a whole number"),
        ("learn", {"batch_size": True}, PluginError, "it takes a whole number"),
        ("learn", {"ohem": {"ratio": "x"}}, PluginError, "ratio='x' does not fit: it takes a numb"),
        ("learn", {"ohem": {"on": "no"}}, PluginError, "on='no' does not fit: it takes true or f"),
        ("learn", {"act": 3}, PluginError, "act=3 does not fit: it takes a text"),
        ("other", {"share": "half"}, PluginError, "it takes a number, or null"),
        ("other", {"places": ["a"]}, PluginError, "it takes a list of whole numbers"),
        ("other", {"places": 3}, PluginError, "it takes a list of whole numbers"),
        ("learn", {"own_task": None}, ConfigError, "'own_task'"),
        ("learn", {"act": "refuse"}, TaskError, "nothing to train on"),
        ("learn", {"act": "break"}, PluginError, "task-standins"),
        ("lern", {}, PluginError, "Did you mean 'learn'"),
        ("needy", {}, ConfigError, "needs slides"),
        ("bare", {}, MissingDependencyError, "pip install no-such-library"),
        ("other", {"tiler": {"grid": {"size": 64}}}, ConfigError, "and tiler would change"),
        ("other", {"annotations": "a"}, ConfigError, "and annotations would change nothing"),
    ],
)
def test_in_python_what_cannot_be_done_raises(name, options, error, told):
    with pytest.raises(error, match=told):
        microtome.run_task(name, "out", **options)


def test_a_task_of_what_is_there_is_told_which_tiling_and_by_which_reader(capsys):
    words = ["task=other", "output=out", "tiler.name=a", "reader=tiff", "writer=zarr"]
    assert main(words) == 0
    assert SEEN.pop()[1].config.tiling == "a"
    outcome = microtome.run_task("other", "out", tiling="a", reader="tiff")
    assert outcome.lines
    assert SEEN.pop()[1].config.tiling == "a"


def test_a_run_of_slides_is_no_task():
    with pytest.raises(ConfigError, match="is a run of slides"):
        do_task(RunConfig(slides=("a",), output="out"), registry.get_registry(), SilentReporter())
