"""Jobs of a cluster: submitit's local ones, and those of a stand-in for SLURM."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest
from gates import Listener, assert_same, content, meanwhile, share_pids, shut_gate, until, waiting

from microtome.errors import EngineError
from microtome.store.claims import find_holders
from microtome.store.layout import OutputLayout

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="no submitit installed"
)

SBATCH = '''#!{python}
"""Starts a script's jobs as processes, each again while somebody asks for it to be requeued."""
import os, re, subprocess, sys
from pathlib import Path

script, here = sys.argv[1], Path(__file__).parent
(here / "script.sh").write_text(Path(script).read_text())
array = re.search(r"--array=(\\d+)-(\\d+)", Path(script).read_text())
numbers = range(int(array[1]), int(array[2]) + 1) if array else [None]
for number in numbers:
    name = "17" if number is None else f"17_{{number}}"
    env = dict(os.environ, SLURM_JOB_ID=name, SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1",
               SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0", JOB_NAME=name)
    if number is not None:
        env.update(SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID=str(number))
    loop = (f"while true; do rm -f {{here}}/requeue-{{name}}; bash {{script}}; "
            f"test -e {{here}}/requeue-{{name}} || break; done; touch {{here}}/ended-{{name}}")
    subprocess.Popen(["bash", "-c", loop], env=env, start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print("Submitted batch job 17")
'''

SRUN = """#!/bin/bash
shift  # --unbuffered
out=${2//%A_%a/$JOB_NAME}; out=${out//%j/$JOB_NAME}; out=${out//%t/0}
err=${4//%A_%a/$JOB_NAME}; err=${err//%j/$JOB_NAME}; err=${err//%t/0}
shift 4
exec "$@" >>"$out" 2>>"$err"
"""

SCONTROL = """#!/bin/bash
touch "$(dirname "$0")/requeue-$2" "$(dirname "$0")/requeued"
"""

SCANCEL = """#!/bin/bash
touch "$(dirname "$0")/cancelled-$1"
"""

SACCT = """#!/bin/bash
echo 'JobID|State|NodeList'
for path in "$(dirname "$0")"/ended-*; do
  test -e "$path" && echo "${path##*ended-}|COMPLETED|here"
done
exit 0
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put programs of SLURM's names first on the path; give their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "sbatch": SBATCH.format(python=sys.executable),
        "srun": SRUN,
        "scontrol": SCONTROL,
        "scancel": SCANCEL,
        "sacct": SACCT,
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Give the gate that the encoder ``gated`` waits at, shut."""
    with shut_gate(tmp_path, monkeypatch) as path:
        yield path


def states(result):
    return {status.slide_id: status.state for status in result.statuses}


def one_each(result, names):
    """Whether every slide was told of once, and done."""
    return sorted(s.slide_id for s in result.statuses) == sorted(names) and set(
        states(result).values()
    ) == {"done"}


def leases(output):
    return [holder.slide_id for holder in find_holders(OutputLayout(output))]


def handles(pid, signum):
    """Whether a process has a handler for a signal, and does not ignore it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\t(\w+)", status)[1], 16) >> (signum - 1) & 1)


def attempts(output):
    return list((output / ".claims").glob("*.attempts.json"))


def test_every_engine_gives_the_same(go, slides, tmp_path):
    folder, told = slides(*"abcdef"), Listener()
    alone = go(folder, engine="inline", output="alone")
    two = go(folder, output="local", workers={"workers": 2})
    jobs = go(
        folder,
        engine="slurm",
        output="jobs",
        reporter=told,
        workers={"cluster": "local", "jobs": 2},
    )
    assert all(one_each(result, "abcdef") for result in (alone, two, jobs))
    assert told.entered == set("abcdef")
    reference = content(tmp_path / "alone")
    assert_same(reference, content(tmp_path / "local"))
    assert_same(reference, content(tmp_path / "jobs"))
    assert not leases(tmp_path / "jobs")


def test_what_fails_or_is_done_again_is_so_once(go, slides, tmp_path):
    folder = slides("a", "b", "c")
    (folder / "bad.svs").write_bytes(b"II*\0 no slide")
    workers = {"cluster": "local", "jobs": 2}
    result = go(folder, engine="slurm", force=True, workers=workers)
    assert states(result) == {"a": "done", "b": "done", "c": "done", "bad": "failed"}
    assert len(result.statuses) == 4
    assert result.exit_code == 3
    logs = (tmp_path / "out").glob("runs/*/shares/*.jsonl")
    events = [line for log in logs for line in log.read_text().splitlines()]
    assert sum('"event": "started"' in line for line in events) == 4


def test_an_array_is_submitted_with_what_was_asked_for(go, slides, slurm, tmp_path):
    from submitit.core.utils import DelayedSubmission

    told = Listener()
    asked = {
        "jobs": 2,
        "partition": "gpu",
        "account": "lab",
        "qos": "low",
        "time_min": 90,
        "cpus": 2,
        "gpus": 1,
        "memory_gb": 8.0,
        "requeues": 3,
        "sbatch": ["--constraint=a100", "exclusive"],
        "setup": ["export COLOUR=purple"],
    }
    result = go(slides("a", "b", "c"), engine="slurm", reporter=told, workers=asked)
    assert one_each(result, "abc")
    assert "Submitted 2 jobs (17)" in told.texts[1]
    script = (slurm / "script.sh").read_text()
    for word in (
        "--array=0-1%2",
        "--partition=gpu",
        "--account=lab",
        "--qos=low",
        "--time=90",
        "--cpus-per-task=2",
        "--gpus-per-node=1",
        "--mem=8GB",
        "--constraint=a100",
        "--exclusive",
        "--signal=USR2@",
    ):
        assert f"#SBATCH {word}" in script
    assert "export COLOUR=purple" in script
    jobs = list((tmp_path / "out").glob("runs/*/shares/*_submitted.pkl"))
    assert {DelayedSubmission.load(job)._timeout_countdown for job in jobs} == {3}


# Some schedulers say both. What SIGTERM alone means is their business: the job only waits.
@pytest.mark.parametrize("first", [None, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_preempted_job_drops_its_slide_and_goes_on_later(
    go, slides, slurm, gate, tmp_path, first
):
    output = tmp_path / "out"

    def preempt():
        until(lambda: waiting(gate))
        pid = share_pids(output)[0]
        if first is not None:
            os.kill(pid, first)
            until(lambda: not leases(output))
            until(lambda: handles(pid, signal.SIGUSR2))
        os.kill(pid, signal.SIGUSR2)
        until(lambda: (slurm / "requeued").exists())
        assert not leases(output)
        assert not attempts(output)
        gate.unlink()

    with meanwhile(preempt):
        result = go(slides("a", "b"), engine="slurm", encoder="gated", workers={"jobs": 1})
    assert one_each(result, "ab")
    assert len(share_pids(output)) == 2


@pytest.mark.slow
def test_what_a_lost_job_left_is_done_by_the_others(go, slides, gate, tmp_path):
    output = tmp_path / "out"

    def lose():
        until(lambda: len(waiting(gate)) == 2)
        os.kill(share_pids(output)[0], signal.SIGKILL)
        gate.unlink()

    with meanwhile(lose):
        result = go(
            slides("a", "b", "c"),
            engine="slurm",
            encoder="gated",
            workers={"cluster": "local", "jobs": 2},
        )
    assert one_each(result, "abc")


def test_when_all_jobs_are_lost_the_run_says_so(go, slides, gate, tmp_path, monkeypatch):
    monkeypatch.setattr("microtome_engines.shares._LAG", 0.1)

    def lose():
        until(lambda: waiting(gate))
        os.kill(share_pids(tmp_path / "out")[0], signal.SIGKILL)

    with meanwhile(lose), pytest.raises(EngineError, match="ended with 2 slides unfinished"):
        go(slides("a", "b"), engine="slurm", encoder="gated", workers={"cluster": "local"})


def test_a_driver_that_is_interrupted_takes_its_jobs_back(go, slides, gate, tmp_path):
    output = tmp_path / "out"

    class Impatient(Listener):
        def stage(self, slide_id, stage, tiles=0):
            if stage == "tiles":
                until(lambda: waiting(gate))
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(
            slides("a", "b"),
            engine="slurm",
            encoder="gated",
            reporter=Impatient(),
            workers={"cluster": "local"},
        )
    until(lambda: not leases(output))
    assert not attempts(output)
    assert not list(output.glob("patches/*"))


def test_a_driver_need_not_wait(go, slides, slurm, gate, tmp_path):
    told = Listener()
    workers = {"wait": False}
    result = go(slides("a"), engine="slurm", encoder="gated", reporter=told, workers=workers)
    assert (result.exit_code, result.statuses) == (0, [])
    assert f"`microtome status {tmp_path / 'out'}`" in told.texts[-1]
    gate.unlink()
    until((tmp_path / "out/status/a.json").exists)
    until((slurm / "ended-17").exists)
    assert not leases(tmp_path / "out")


# submitit leaves the logs of such jobs open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_can_be_worked_on_in_the_calling_process(go, slides):
    result = go(slides("a", "b"), engine="slurm", workers={"cluster": "debug", "jobs": 2})
    assert one_each(result, "ab")


def test_where_there_is_no_slurm_the_run_says_so(go, slides, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match="where sbatch and srun are"):
        go(slides("a"), engine="slurm")


def test_what_sbatch_complains_of_is_told(go, slides, slurm):
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'Invalid qos specification' >&2; exit 1\n")
    with pytest.raises(EngineError, match="Invalid qos specification"):
        go(slides("a"), engine="slurm", workers={"qos": "platinum"})
