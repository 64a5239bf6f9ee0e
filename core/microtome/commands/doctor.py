"""Check this installation: libraries, devices, limits, plugins."""

from __future__ import annotations

import argparse
import importlib.metadata
import locale
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from microtome import __version__
from microtome.errors import MicrotomeError
from microtome.plugin.registry import get_registry
from microtome.run.budget import cpu_budget

NEEDED = ("numpy", "PIL", "openslide", "h5py", "zarr", "cv2", "tifffile", "imagecodecs")
OPTIONAL = ("cucim", "torch", "torchvision", "timm")
TIMEOUT_S = 120.0
"""Longer than torch takes to import from a cold network disk; what hangs, hangs for ever."""

_PROBE = "import {name} as m; print(getattr(m, '__version__', 'no version'))"
_PROBES = {
    "openslide": "import openslide as m; print(m.__version__, 'with', m.__library_version__)",
    "torch": (
        "import torch as m; n = m.cuda.device_count() if m.cuda.is_available() else 0; "
        "print(m.__version__, *[f'cuda:{i} {m.cuda.get_device_name(i)}' for i in range(n)] "
        "or ['no CUDA device'], sep=', ')"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: What was looked at.
        state: ``"ok"``, ``"absent"`` (optional and not installed) or ``"broken"``.
        detail: A version, a number, or what is wrong.
    """

    name: str
    state: str
    detail: str


def main(argv: list[str]) -> int:
    """Print what was found; 1 if something that is needed or installed does not work."""
    parser = argparse.ArgumentParser("microtome doctor", description=__doc__)
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, help="seconds for one library to import"
    )
    timeout = parser.parse_args(argv).timeout
    broken = False
    for finding in examine(timeout):
        mark = {"ok": " ", "absent": "-", "broken": "✗"}[finding.state]
        sys.stdout.write(f"{mark} {finding.name:<22} {finding.detail}\n")
        sys.stdout.flush()
        broken |= finding.state == "broken"
    return int(broken)


def examine(timeout: float = TIMEOUT_S) -> Iterator[Finding]:
    """Look at everything, one finding at a time.

    Args:
        timeout: Seconds that one library may take to import.
    """
    yield Finding("microtome", "ok", __version__)
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in NEEDED:
        yield _library(name, timeout, needed=True)
    for name in OPTIONAL:
        yield _library(name, timeout, needed=False)
    yield from _machine()
    yield from _environment()
    yield from _plugins()


def _library(name: str, timeout: float, *, needed: bool) -> Finding:
    """Import a library in a child process, where it may hang or crash."""
    try:
        if find_spec(name) is None:
            return Finding(name, "broken" if needed else "absent", "not installed")
    except (ImportError, ValueError) as error:
        return Finding(name, "broken", str(error))
    code = _PROBES.get(name, _PROBE.format(name=name))
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),  # some leave log files where they are imported
        )
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", f"its import did not end within {timeout:g} s")
    if child.returncode < 0:
        return Finding(name, "broken", f"its import was killed by signal {-child.returncode}")
    last = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines()[-1:]
    detail = last[0] if last else f"exit code {child.returncode}"
    if name == "cucim" and detail == "no version":
        detail = _distribution_version("cucim-cu13", "cucim-cu12", "cucim")
    return Finding(name, "ok" if child.returncode == 0 else "broken", detail)


def _distribution_version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no version"


def _machine() -> Iterator[Finding]:
    slurm = os.environ.get("SLURM_CPUS_PER_TASK")
    said = f", of which SLURM granted {slurm}" if slurm else ""
    yield Finding("CPUs", "ok", f"{cpu_budget()} usable of {os.cpu_count()}{said}")
    for name, folder in (
        ("working directory", Path.cwd()),
        ("temporary files", Path(tempfile.gettempdir())),
    ):
        free = shutil.disk_usage(folder).free / 1e9
        yield Finding(name, "ok", f"{folder}, {free:.1f} GB free")


def _environment() -> Iterator[Finding]:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    token = bool(os.environ.get("HF_TOKEN")) or stored.is_file()
    yield Finding("Hugging Face token", "ok", "present" if token else "none: gated models need one")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    yield Finding("Hugging Face hub", "ok", "offline by HF_HUB_OFFLINE" if offline else "online")
    names, texts = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    fine = names.lower().replace("-", "") == "utf8"
    advice = "" if fine else "; set PYTHONUTF8=1, or names such as 切片.svs cannot be written"
    yield Finding(
        "encoding", "ok" if fine else "broken", f"file names {names}, text {texts}{advice}"
    )


def _plugins() -> Iterator[Finding]:
    try:
        registry = get_registry()
    except MicrotomeError as error:  # a clash refuses the whole registry
        yield Finding("plugins", "broken", str(error))
        return
    for broken in registry.broken:
        yield Finding(f"plugin {broken.name}", "broken", f"{broken.distribution}: {broken.reason}")
    if not registry.broken:
        yield Finding("plugins", "ok", "none broken; microtome plugins lists them")
