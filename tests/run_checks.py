"""What tests of whole runs look at."""

from __future__ import annotations


def files(folder):
    """Give every file below a folder and what is in it, the records of runs left out."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("runs", "status")
    }


def leftovers(folder):
    """Give the private files that a run should have swept."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def states(result):
    """Give the states of a run's slides, in order."""
    return [status.state for status in result.statuses]
