"""What tests of whole runs look at."""

from __future__ import annotations

import subprocess
import sys

from microtome.__main__ import main


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


def touch(*paths, data=b"x"):
    """Make files, and the folders that they lie in."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def ids(found):
    """Give the ids of the slides that were found, in order."""
    return [slide.slide_id for slide in found.slides]


def run_tissue(*words):
    """Give the exit code of a command line of the tissue's task alone, run in this process."""
    return main([*map(str, words), "task=tissue", "engine=inline"])


def leave_dead(*finals):
    """Leave private files and folders, under these names, of a process that is gone."""
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from microtome.store.atomic import private_path\n"
        "for word in sys.argv[1:]:\n"
        "    path = private_path(Path(word))\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text('half') if Path(word).suffix else path.mkdir()\n"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, finals)], check=True)
