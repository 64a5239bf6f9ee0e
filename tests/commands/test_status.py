"""``microtome status``, on records written for it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from microtome.__main__ import main
from microtome.store.claims import Claims
from microtome.store.layout import OutputLayout
from microtome.store.status import SlideStatus, write_status

SECONDS = {"open": 0.5, "tiles": 4.0, "write": 0.25}


def status(slide_id: str, state: str, **known) -> SlideStatus:
    return SlideStatus(slide_id=slide_id, path=f"slides/{slide_id}.svs", state=state, **known)


@pytest.fixture
def out(tmp_path):
    """Two tilings: one of every state, and a slide that both have."""
    error = {"type": "SlideReadError", "message": "tile 7\tcannot be decoded"}
    finished = "2026-11-21T06:45:05+00:00"
    done = {"tiles": 200, "reader": "openslide", "seconds": SECONDS, "finished": finished}
    records = [
        status("case 1/a", "done", encoders=("uni", "mean"), outputs={"hdf5": "x.h5"}, **done),
        status("again", "reused", tiles=7),
        status("bare", "empty", tiles=0, warnings=("no tissue was found",)),
        status("bad", "failed", stage="tiles", error=error, reader="tiff"),
        status("poison", "quarantined", stage="open", error=error | {"message": "3 died"}),
    ]
    top, low = OutputLayout(tmp_path / "out"), OutputLayout(tmp_path / "out", "mpp/0.5")
    for record in records:
        write_status(top.status(record.slide_id), record)
    write_status(low.status("case 1/a"), status("case 1/a", "done", tiles=50))
    return tmp_path / "out"


@pytest.fixture
def rows(out, capsys):
    def read(*words: str):
        assert main(["status", str(out), "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return read


@pytest.fixture
def claim(out):
    taken = []

    def take(slide_id: str, **noted: str):
        found = Claims(OutputLayout(out), 60).take(slide_id)
        found.begin()
        if noted:
            found.note(**noted)
        taken.append(found)
        return found

    yield take
    for found in taken:
        found.drop()


def let_age(out, slide_id: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(out / f".claims/{slide_id}.lease", (then, then))


def test_what_tasks_keep_is_named(out, capsys):
    names = ("samples/kt.parquet", "samples/kt.json", "training/b/x", "training/a/x")
    for name in (*names, "training/.claims/a.lease", "mpp/0.5/predictions/a/x"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    assert main(["status", str(out)]) == 0
    *_, sample, training, predictions = capsys.readouterr().err.splitlines()
    assert (sample, training) == ("samples: kt", "training: a, b")
    assert predictions == "mpp/0.5/predictions: a"


def test_patients_are_counted(out, capsys):
    assert main(["status", str(out)]) == 0
    assert "patient" not in capsys.readouterr().err
    for place in ("", "mpp/0.5"):
        folder = OutputLayout(out, place).patients_folder
        (folder / "more").mkdir(parents=True)
        for name in ("P1.h5", "more/P2.h5", ".P3.h5.x.tmp"):
            (folder / name).touch()
    (folder / "P1.zarr").mkdir()
    main(["status", str(out)])
    assert capsys.readouterr().err.endswith("\n4 patients embedded\n")
    main(["status", str(out), "--tiling", "."])
    assert capsys.readouterr().err.endswith("\n2 patients embedded\n")


def test_every_slide_of_every_tiling(rows):
    found = {(row["tiling"], row["slide_id"]): row["state"] for row in rows()}
    assert found == {
        ("", "again"): "done",
        ("", "bad"): "failed",
        ("", "bare"): "empty",
        ("", "case 1/a"): "done",
        ("", "poison"): "quarantined",
        ("mpp/0.5", "case 1/a"): "done",
    }


def test_what_json_says(rows):
    (row,) = (r for r in rows("--tiling", ".", "--state", "done") if r["slide_id"] == "case 1/a")
    assert row["tiles"] == 200
    assert row["seconds"] == 4.75
    assert row["tiles_per_second"] == 50.0
    assert row["stages"] == SECONDS
    assert row["encoders"] == ["uni", "mean"]
    assert row["outputs"] == {"hdf5": "x.h5"}
    assert row["reader"] == "openslide"
    assert row["finished"] == "2026-11-21T06:45:05+00:00"
    assert row["host"] == ""


@pytest.mark.parametrize(
    ("states", "ids"),
    [
        ("failed,quarantined", ["bad", "poison"]),
        ("reused", ["again", "case 1/a", "case 1/a"]),
        ("empty", ["bare"]),
        ("running", []),
    ],
)
def test_states(rows, states, ids):
    assert [row["slide_id"] for row in rows("--state", states)] == ids


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--state", "done,lost"], "There is no state 'lost'. Available: done, empty"),
        (["--tiling", "20x"], "has no tiling '20x'. There: '.', 'mpp/0.5'."),
    ],
)
def test_words_that_name_nothing(out, capsys, words, told):
    assert main(["status", str(out), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_that_is_no_output(tmp_path, capsys):
    assert main(["status", str(tmp_path / "nowhere")]) == 1
    assert "is not an output of microtome" in capsys.readouterr().err


def test_lines_are_whole_and_have_no_line_end_inside(out, capsys):
    write_status(OutputLayout(out).status("a\nb\x1b[0m"), status("a\nb\x1b[0m", "done", tiles=1))
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr()
    head, *lines = [line.split("\t") for line in said.out.splitlines()]
    assert {len(line) for line in lines} == {len(head)}
    by_slide = {line[head.index("slide")]: dict(zip(head, line, strict=True)) for line in lines[:6]}
    assert by_slide["bad"]["reason"] == "tile 7\\tcannot be decoded"
    assert by_slide["bad"]["stage"] == "tiles"
    assert by_slide["case 1/a"]["tiles/s"] == "50"
    assert by_slide["a\\nb\\x1b[0m"]["state"] == "done"
    assert said.err == "6 slides in 2 tilings, 7 rows: 4 done, 1 empty, 1 failed, 1 quarantined\n"


def test_a_table_in_a_terminal_is_as_wide_as_it(out, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert main(["status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6
    assert max(map(len, lines)) <= 80
    assert any("quarantined" in line and "poison" in line for line in lines)


def test_a_table_of_nothing(out, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["status", str(out), "--state", "running"]) == 0
    assert capsys.readouterr().err == "0 slides: none\n"


def test_a_slide_in_work(out, rows, claim):
    claim("new", stage="tiles", reader="cucim")
    (row,) = rows("--state", "running")
    assert row["slide_id"] == "new"
    assert (row["stage"], row["reader"], row["pid"]) == ("tiles", "cucim", os.getpid())
    assert row["host"]
    assert row["since"]
    assert 0 <= row["renewed"] < 60
    assert row["reason"].startswith(f"process {os.getpid()} of ")


def test_a_finished_slide_in_work_again_is_running(rows, claim):
    claim("case 1/a", stage="open")
    (row,) = rows("--state", "running")
    assert (row["slide_id"], row["tiling"], row["tiles"]) == ("case 1/a", "", 200)


def test_a_claim_that_nobody_renews_is_stale_and_not_running(out, rows, claim):
    claim("new", stage="tiles")
    claim("bad")
    let_age(out, "new", 61)
    let_age(out, "bad", 61)
    assert rows("--state", "running") == []
    (row,) = rows("--state", "stale")
    assert (row["slide_id"], row["stage"]) == ("new", "tiles")
    assert "which is gone: the next run takes it over" in row["reason"]
    (row,) = rows("--state", "failed")
    assert "cannot be decoded; claimed by process" in row["reason"]
    assert row["renewed"] >= 61


def test_a_claim_of_a_dead_process_is_stale_at_once(out, rows):
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from microtome.store.claims import Claims\n"
        "from microtome.store.layout import OutputLayout\n"
        "claim = Claims(OutputLayout(Path(sys.argv[1])), 60).take('new')\n"
        "claim.begin()\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    (row,) = rows("--state", "stale")
    assert row["slide_id"] == "new"


def test_a_slide_on_which_workers_died(out, rows, claim):
    claim("new", stage="tiles", reader="cucim").die("killed by SIGSEGV")
    (row,) = rows("--state", "interrupted")
    assert row["deaths"] == 1
    assert "killed by SIGSEGV at tiles with reader cucim: the next run" in row["reason"]


def test_damaged_records_are_told_and_the_others_shown(out, capsys):
    (out / "status/bad.json").write_text("{")
    (out / "status/bare.json").write_text('{"slide_id": "bare", "path": 1, "state": "done"}')
    assert main(["status", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 4
    sentences = said.err.splitlines()
    assert len(sentences) == 2
    assert all(".json is " in line and "Delete it" in line for line in sentences)


def test_csv(out, tmp_path, capsys):
    write_status(OutputLayout(out).status("x\udcff"), status("x\udcff", "done", tiles=1))
    assert main(["status", str(out), "--csv", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out == ""
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = {(row["tiling"], row["slide_id"]): row for row in csv.DictReader(file)}
    assert found["", "bad"]["reason"] == "tile 7\tcannot be decoded"
    assert json.loads(found["", "case 1/a"]["stages"]) == SECONDS
    assert ("", "x\udcff") in found


def test_parquet(out, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    write_status(OutputLayout(out).status("x\udcff"), status("x\udcff", "done", tiles=1))
    assert main(["status", str(out), "--parquet", str(tmp_path / "a.parquet")]) == 0
    table = pq.read_table(tmp_path / "a.parquet")
    found = {(row["tiling"], row["slide_id"]): row for row in table.to_pylist()}
    assert found["", "case 1/a"]["tiles"] == 200
    assert dict(found["", "case 1/a"]["stages"]) == SECONDS
    assert found["", "case 1/a"]["encoders"] == ["uni", "mean"]
    assert ("", "x\ufffd") in found
    assert list(tmp_path.glob(".*")) == []


def test_parquet_of_no_slide_has_the_same_columns(out, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    for name, words in (("all", []), ("none", ["--state", "running"])):
        main(["status", str(out), "--parquet", str(tmp_path / name), *words])
    none = pq.read_table(tmp_path / "none")
    assert none.num_rows == 0
    assert none.schema == pq.read_table(tmp_path / "all").schema


def test_parquet_without_its_library(out, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["status", str(out), "--parquet", str(tmp_path / "a.parquet")]) == 1
    assert capsys.readouterr().err.endswith("Install with: pip install pyarrow\n")
    assert not (tmp_path / "a.parquet").exists()


def test_it_imports_nothing_that_reads_slides_or_stores(out):
    script = (
        "import json, sys\nfrom microtome.__main__ import main\n"
        f"code = main(['status', {str(out)!r}])\nprint(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    heavy = {"h5py", "zarr", "torch", "cv2", "PIL", "pyarrow", "hydra", "rich", "openslide"}
    assert heavy.isdisjoint(modules)
