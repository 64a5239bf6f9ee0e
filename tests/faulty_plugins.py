"""Plugins with faults, and which of their contracts' tests fail."""

from __future__ import annotations

import subprocess
import sys


def run_contracts(folder, plugins, contracts):
    """Give what failed, as (class, test), in a run of pytest of its own.

    Args:
        folder: Where the files are written.
        plugins: The text of the module ``faulty``.
        contracts: The text of the module with a contract of each plugin.
    """
    (folder / "faulty.py").write_text(plugins)
    (folder / "test_faulty.py").write_text(contracts)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = [line.split("::") for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return {(row[1], row[2].partition(" ")[0].partition("[")[0]) for row in rows}
