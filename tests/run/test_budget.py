"""The CPU budget is the least of what was granted, and goes to what is the bottleneck."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from microtome.plugin import EncoderCard, EncoderSpec
from microtome.run.planning import budget


@pytest.fixture(autouse=True)
def granted(monkeypatch, tmp_path):
    """Eight CPUs by affinity, no quota, no SLURM."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(budget, "CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def test_affinity_alone():
    assert budget.cpu_budget() == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8)],
)
def test_cgroup_v2_quota(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    assert budget.cpu_budget() == expected


def test_cgroup_v1_quota(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert budget.cpu_budget() == 3


def test_cgroup_v1_without_a_limit(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert budget.cpu_budget() == 8


def test_slurm_caps_it(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert budget.cpu_budget() == 3


def test_slurm_never_raises_it(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert budget.cpu_budget() == 8


def test_what_was_asked_for_wins():
    assert budget.cpu_budget(5) == 5


def planned(*, requires=("torch",), device="cpu", params=11_700_000):
    return SimpleNamespace(
        spec=EncoderSpec(name="x", target="x:X", summary="x", requires=requires),
        card=EncoderCard(dim=4, params=params),
        device=device,
    )


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ([], (8, 1)),
        ([planned(requires=("cv2",), params=None)], (8, 1)),
        ([planned(device="cuda:1")], (8, 1)),
        ([planned(params=100)], (8, 1)),
        ([planned()], (2, 8)),
        ([planned(params=None)], (2, 8)),
        ([planned(device="cuda"), planned(params=100), planned()], (2, 8)),
    ],
)
def test_who_needs_the_cpus_gets_them(encoders, expected):
    threads = budget.share_threads(8, encoders)
    assert (threads.workers, threads.torch) == expected


def test_one_cpu_is_enough_for_everybody():
    assert budget.share_threads(1, [planned()]) == budget.Threads(1, 1)


def test_shares_that_were_asked_for_win():
    assert budget.share_threads(8, [planned()], workers=3) == budget.Threads(3, 8)
    assert budget.share_threads(8, [planned()], torch=5) == budget.Threads(3, 5)
    assert budget.share_threads(2, [planned()], torch=4) == budget.Threads(1, 4)
    assert budget.share_threads(8, [], workers=5, torch=2) == budget.Threads(5, 2)


def test_pools_are_held_for_the_time_of_a_block():
    cv2 = pytest.importorskip("cv2")
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas():
        return [
            pool["num_threads"]
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ]

    before = cv2.getNumThreads(), blas()
    cv2.setNumThreads(3)
    try:
        with budget.hold_pools(budget.Threads(2, 1)):
            assert cv2.getNumThreads() == 1
            assert set(blas()) <= {1}
        assert cv2.getNumThreads() == 3
        assert blas() == before[1]
    finally:
        cv2.setNumThreads(before[0])


def test_torch_has_its_share_and_a_worker_one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with (
        budget.hold_pools(budget.Threads(1, 3)),
        ThreadPoolExecutor(1, initializer=budget.work_alone) as pool,
    ):
        assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_reading_leaves_torch_as_it_was_in_a_thread_that_is_new_to_it():
    pytest.importorskip("torch")
    code = (
        "import torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from microtome.run.planning import budget\n"
        "torch.set_num_threads(3)\n"
        "def work():\n"
        "    with budget.keep_torch_threads():\n"
        "        with ThreadPoolExecutor(2, initializer=budget.work_alone) as pool:\n"
        "            assert set(pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}\n"
        "    return torch.get_num_threads()\n"
        "with ThreadPoolExecutor(1) as fresh, ThreadPoolExecutor(1) as later:\n"
        "    assert fresh.submit(work).result() == 3\n"
        "    assert later.submit(torch.get_num_threads).result() == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_that_a_network_frees_is_not_asked_for_again():
    """Page faults of the second of two equal blocks, with and without a network on the CPU."""

    def faults(encoders):
        with budget.keep_memory(encoders):
            np.ones(96 << 20, np.uint8)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(96 << 20, np.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = (96 << 20) // resource.getpagesize()
    light, heavy = planned(params=1), planned(params=25_000_000)
    assert faults([light]) > pages / 600  # as few as that with pages of 2 MiB
    assert faults([light, heavy]) < 20
    assert faults([light]) > pages / 600
