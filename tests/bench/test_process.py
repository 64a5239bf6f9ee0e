"""Measurements in processes of their own."""

from __future__ import annotations

import sys

import pytest
from bench.process import StepError, run_process

HOLD = """
import time
held = bytearray(80_000_000)
held[::4096] = bytes(len(held[::4096]))  # memory counts once it is written to
time.sleep(0.7)
"""


def test_the_last_result_counts():
    code = "print('RESULT {\"n\": 1}'); print('chatter'); print('RESULT {\"n\": 2}')"
    finished = run_process([sys.executable, "-c", code])
    assert finished.found == {"n": 2}
    assert finished.wall > 0


def test_a_failure_shows_what_was_written_last():
    with pytest.raises(StepError, match="no such tile"):
        run_process([sys.executable, "-c", "raise SystemExit('no such tile')"])


def test_a_missing_interpreter_is_told():
    with pytest.raises(StepError, match="cannot be started"):
        run_process(["/nowhere/python"])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_counts_what_a_process_started():
    started = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], check=True)"
    )
    finished = run_process([sys.executable, "-c", started], sample=0.05)
    assert 80 < finished.peak_mb < 150
    assert finished.peak_mb == max(size for _, size in finished.memory)
