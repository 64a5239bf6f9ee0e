"""The CPU budget is the least of what was granted."""

from __future__ import annotations

import os

import pytest

from microtome.run import budget


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
