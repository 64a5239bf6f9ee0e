"""Options of a task: nested, in short and in full, swept, completed, and refused."""

from __future__ import annotations

import pytest
import task_standins
from config_standins import module

from microtome.__main__ import main


@pytest.fixture
def tasks(runs, registry):
    """Put the tasks beside the other stand-ins; gives the runs that were made."""
    registry.add(module("tasks", tasks=task_standins.specs()), "tasks", "microtome-tasks")
    return runs


def configs(runs):
    """Give the tasks' configurations."""
    return [run.own_task.config for run in runs]


@pytest.mark.parametrize(
    "words",
    [
        "task=learn loss=focal ohem.ratio=3 ohem.on=false",
        "loss=focal ohem.ratio=3 ohem.on=false task=learn",
        "task=learn learn.loss=focal learn.ohem.ratio=3 learn.ohem.on=false",
        "task=learn loss=focal learn.ohem.ratio=3 ohem.on=no",
        "task=LEARN loss=focal ohem.ratio=3 ohem.on=off",
    ],
)
def test_options_need_no_prefix_where_the_task_is_chosen(words, tasks):
    assert main([*words.split(), "output=out"]) == 0
    (run,) = tasks
    assert (run.task, run.own_task.plugin, run.slides, run.label) == ("learn", "learn", (), "")
    config = run.own_task.config
    assert config.loss is task_standins.Loss.focal
    assert config.ohem == task_standins.Mining(ratio=3.0, on=False)


def test_what_is_not_said_keeps_its_default(tasks):
    assert main(["task=learn", "output=out"]) == 0
    assert configs(tasks) == [task_standins.TrainConfig()]


def test_of_one_name_the_tasks_option_is_meant(tasks):
    plain = ["a.svs", "output=out", "batch_size=7"]
    assert main([*plain, "task=learn", "device=cpu"]) == 0
    assert main([*plain, "task=coords"]) == 0
    with_task, without = tasks
    assert with_task.own_task.config.batch_size == 7
    assert with_task.batch_size != 7
    assert (with_task.device, with_task.slides) == ("cpu", ("a.svs",))
    assert (without.own_task, without.batch_size) == (None, 7)


def test_a_path_is_taken_as_it_is(tasks):
    path = "my split (1),2.csv"
    assert main(["-m", "task=learn", "output=out", f"split_csv={path}", "loss=focal"]) == 0
    assert [config.split_csv for config in configs(tasks)] == [path]


def test_a_sweep_goes_over_options_and_names_each_job_by_them(tasks):
    words = "-m task=learn output=out loss=cross_entropy,focal ohem.ratio=0,3 batch_size=8"
    assert main(words.split()) == 0
    found = {(c.loss.name, c.ohem.ratio, c.batch_size) for c in configs(tasks)}
    assert found == {(loss, r, 8) for loss in ("cross_entropy", "focal") for r in (0.0, 3.0)}
    assert {run.label for run in tasks} == {
        f"learn.loss={loss},learn.ohem.ratio={r}"
        for loss in ("cross_entropy", "focal")
        for r in (0, 3)
    }


def test_a_sweep_goes_over_tasks(tasks):
    assert main(["-m", "task=learn,needy", "a.svs", "output=out"]) == 0
    assert [(run.task, run.label) for run in tasks] == [
        ("learn", "task=learn"),
        ("needy", "task=needy"),
    ]


WRONG = {
    "task=lern output=out": "no task named 'lern'. Did you mean 'learn'?",
    "task=learn": "No output folder is given",
    "task=learn output=out los=focal": "no option named 'los'. Did you mean 'loss'?",
    "task=learn output=out learn.los=focal": "no option of learn named 'los'. Did you mean 'loss'?",
    "task=learn output=out ohem.ratoi=3": "no option of learn.ohem named 'ratoi'. Did you mean",
    "task=learn output=out loss=hinge": "learn.loss=hinge does not fit: it takes one of",
    "task=learn output=out ohem.ratio=much": "learn.ohem.ratio=much does not fit: it takes a",
    "task=learn output=out ohem=3": "learn.ohem",
    "task=learn output=out other.least=2": "option other goes with task=other; this run is learn",
    "a.svs output=out other.least=2": "option other goes with task=other; this run is process",
    "a.svs output=out loss=focal": "loss goes with task=learn or task=other; this run is process",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_makes_no_sense_is_refused_in_a_line(words, tasks, capsys, tmp_path):
    before = {*tmp_path.iterdir()}
    assert main(words.split()) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert WRONG[words] in line
    assert tasks == []
    assert {*tmp_path.iterdir()} == before


def test_the_page_names_the_tasks(tasks, registry, capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in registry.names("task"):
        assert name in shown


def test_a_task_has_a_page_of_its_own(tasks, registry, capsys):
    assert main(["task=learn", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "task=learn: Learns\n" in shown
    rows = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines() if "=" in line
    }
    assert rows["loss=cross_entropy"] == "cross_entropy | focal. Which."
    assert rows["batch_size=64"] == "whole number. Of the task."
    assert rows["ohem.ratio=0.0"] == "number. How many to one."
    assert rows["split_csv=empty"] == "text. A file."
    assert main(["-h", "task=needy"]) == 0
    assert "It has no options." in capsys.readouterr().out
    for words in (
        ["task=coords", "--help"],
        ["task=lern", "--help"],
        ["--help", "--", "task=learn"],
    ):
        assert main(words) == 0
        assert "--info" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("task=le", ["task=learn"]),
        ("task=learn learn.lo", ["learn.loss="]),
        ("task=learn learn.loss=f", ["learn.loss=focal"]),
        ("task=learn lo", ["loss="]),
        ("task=learn loss=f", ["loss=focal"]),
        ("task=learn oh", ["ohem."]),
        ("task=learn ohem.", ["ohem.on=", "ohem.ratio="]),
        ("task=learn ohem.on=t", ["ohem.on=true"]),
        ("task=learn learn.ohem.on=t", ["learn.ohem.on=true"]),
        ("task=learn loss=focal ohem.ratio=3 spl", ["split_csv="]),
        ("loss=focal task=learn spl", ["split_csv="]),
    ],
)
def test_tab_completes_a_task_and_its_options(line, offered, tasks, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", f"microtome {line}")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == offered
