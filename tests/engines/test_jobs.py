"""The job templates and the recipes: what they call microtome with runs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import yaml

from microtome.store.status import read_status
from microtome.testing import make_slide

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "jobs").glob("*.sh"))
PAGE = (ROOT / "docs/clusters.md").read_text("utf-8")

SCONTROL = """#!/bin/bash
echo "$@" >"$(dirname "$0")/said"
"""


@pytest.fixture
def bin(tmp_path):
    """Give a folder with stand-ins for the programs that templates call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "srun": '#!/bin/bash\nexec "$@"\n',
        "scontrol": SCONTROL,
        "microtome": f'#!/bin/bash\nexec {sys.executable} -m microtome "$@"\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


@pytest.fixture
def shell(tmp_path, bin):
    """Run a line or a script beside a folder ``slides`` with one slide."""
    (tmp_path / "slides").mkdir()
    make_slide(tmp_path / "slides/one.svs", size=(768, 640))

    def run(*words, **env):
        path = os.pathsep.join([str(bin), os.environ["PATH"]])
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "HF_HUB_OFFLINE": "1"} | env,
            capture_output=True,
            text=True,
        )

    return run


def titled(title):
    """Give a block of the page."""
    return re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```$', PAGE, re.M | re.S)[1]


def only(line):
    """Put the encoder that needs no weights into a recipe's line."""
    assert "encoder=resnet50" in line
    return line.replace("encoder=resnet50", "encoder=handcrafted")


def features(folder):
    with h5py.File(folder / "patches/one.h5") as file:
        return sorted(file["features"]) if "features" in file else []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_sound(template):
    assert os.access(template, os.X_OK)
    assert subprocess.run(["bash", "-n", template]).returncode == 0
    text = template.read_text("utf-8")
    head = text.split("set -euo")[0]
    for parameter in ("--job-name", "--cpus-per-task", "--mem", "--time", "--requeue", "--signal"):
        assert f"#SBATCH {parameter}" in head
    assert ("--gpus-per-node" in head) == ("ENCODERS" in text)


def test_the_page_names_every_template():
    assert set(re.findall(r"`jobs/([\w.]+\.sh)`", PAGE)) == {path.name for path in TEMPLATES}


def test_templates_build_on_one_another(shell, tmp_path):
    small = {"TILE_SIZE": "128", "WORKERS": "1", "ENCODERS": "handcrafted", "DEVICE": "cpu"}
    done = shell("bash", str(ROOT / "jobs/coords.slurm.sh"), OUTPUT="cohort", **small)
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == []
    done = shell("bash", str(ROOT / "jobs/features.slurm.sh"), OUTPUT="cohort", **small)
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == ["handcrafted"]


def test_the_jobs_of_an_array_are_a_round(shell, tmp_path):
    env = {"TILE_SIZE": "128", "ENCODERS": "handcrafted", "SLURM_ARRAY_JOB_ID": "17"}
    template = str(ROOT / "jobs/array.slurm.sh")
    assert shell("bash", template, OUTPUT="cohort", **env).returncode == 0
    before = (tmp_path / "cohort/status/one.json").read_bytes()
    assert read_status(tmp_path / "cohort/status/one.json").state == "done"
    assert shell("bash", template, OUTPUT="cohort", **env).returncode == 0
    assert (tmp_path / "cohort/status/one.json").read_bytes() == before
    env["SLURM_ARRAY_JOB_ID"] = "18"
    assert shell("bash", template, OUTPUT="cohort", **env).returncode == 0
    assert read_status(tmp_path / "cohort/status/one.json").state == "reused"


def test_the_job_of_many_gpus_runs(shell, tmp_path):
    env = {"TILE_SIZE": "128", "ENCODERS": "handcrafted", "DEVICES": "0,1"}
    done = shell("bash", str(ROOT / "jobs/multi_gpu.slurm.sh"), OUTPUT="cohort", **env)
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == ["handcrafted"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
@pytest.mark.parametrize("code", [0, 3, 138, 143])
def test_a_job_whose_time_is_up_is_queued_again(shell, bin, template, code):
    (bin / "microtome").write_text(f"#!/bin/bash\nexit {code}\n")
    assert shell("bash", str(template)).returncode == code
    said = bin / "said"
    assert said.exists() == (code > 128)
    if code > 128:
        assert said.read_text() == "requeue 7\n"


def test_the_job_of_kubernetes_runs(shell, tmp_path):
    job = yaml.safe_load(titled("microtome-job.yaml"))["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["completionMode"] == "Indexed"
    line = only(container["args"][0])
    assert container["env"][0]["name"] == "ROUND"
    done = shell(*container["command"], line, ROUND="3f9c-77")
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == ["handcrafted"]
    assert read_status(tmp_path / "cohort/status/one.json").round


def test_the_rule_of_snakemake_runs(shell, tmp_path):
    line = "".join(re.findall(r'^        "(.*)"$', titled("Snakefile"), re.M))
    line = only(line).replace("{input:q}", "slides/one.svs").replace("{threads}", "1")
    done = shell("bash", "-c", line)
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == ["handcrafted"]


def test_the_process_of_nextflow_runs(shell, tmp_path):
    script = re.search(r'"""(.*?)"""', titled("main.nf"), re.S)[1].replace("\\\\\n", "\\\n")
    for variable, value in {
        "${slide}": str(tmp_path / "slides/one.svs"),
        "${file(params.output).toAbsolutePath()}": str(tmp_path / "cohort"),
        "${task.cpus}": "1",
    }.items():
        assert variable in script
        script = script.replace(variable, value)
    assert "${" not in script
    done = shell("bash", "-c", only(script))
    assert done.returncode == 0, done.stderr
    assert features(tmp_path / "cohort") == ["handcrafted"]
