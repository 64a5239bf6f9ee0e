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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from microtome import __version__
from microtome.commands._arguments import VerbParser
from microtome.errors import MicrotomeError
from microtome.plugin.registry import get_registry
from microtome.run.planning import budget

NEEDED = ("numpy", "PIL", "openslide", "h5py", "zarr", "cv2", "tifffile", "imagecodecs")
OPTIONAL = ("cucim", "pyvips", "torch", "torchvision", "timm")
IN_TURN = ("torch", "torchvision", "timm")
"""Each imports those before it, which takes seconds: one child imports them all."""

TIMEOUT_S = 120.0
"""Longer than torch takes to import from a cold network disk; what hangs, hangs for ever."""

MOST_AT_ONCE = 4
"""Children at once: they wait for one disk."""

_MARK = "microtome doctor:"
_VERSION = "getattr(m, '__version__', 'no version')"
_VERSIONS = {
    "openslide": "m.__version__, 'with', m.__library_version__",
    "torch": (
        "m.__version__ + ',', ', '.join(f'cuda:{i} {m.cuda.get_device_name(i)} "
        "{m.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB' "
        "for i in range(m.cuda.device_count() if m.cuda.is_available() else 0)) or 'no CUDA device'"
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
    parser = VerbParser("microtome doctor", description=__doc__)
    parser.add_argument(
        "--timeout", type=_seconds, default=TIMEOUT_S, help="seconds for one library to import"
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
    """Look at everything; the libraries come last, each when its import has ended.

    Args:
        timeout: Seconds that one library may take to import.
    """
    pool = ThreadPoolExecutor(max(2, min(budget.cpu_budget(), MOST_AT_ONCE)))
    try:
        names = (*NEEDED, *OPTIONAL)
        in_turn = [name for name in IN_TURN if name in names]
        alone = [[name] for name in names if name not in in_turn]
        imports = [pool.submit(_libraries, group, timeout) for group in (in_turn, *alone)]
        yield Finding("microtome", "ok", __version__)
        yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
        yield from _machine()
        yield from _environment()
        yield from _plugins()
        for done in as_completed(imports):
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, up to a day")
    return seconds


def _libraries(names: Sequence[str], timeout: float) -> list[Finding]:
    """Look at libraries, those that are there by importing them in a child."""
    absent = {name: finding for name in names if (finding := _absent(name))}
    present = [name for name in names if name not in absent]
    told, wrong = _import(present, timeout) if present else ({}, "")
    findings = list(absent.values())
    for name in present:
        if name in told:
            findings.append(Finding(name, "ok", told[name]))
        else:
            findings.append(Finding(name, "broken", wrong))
            wrong = f"not looked at, since it needs {name}"
    return findings


def _absent(name: str) -> Finding | None:
    """Tell a library that is not installed."""
    try:
        if find_spec(name) is None:
            return Finding(name, "broken" if name in NEEDED else "absent", "not installed")
    except (ImportError, ValueError) as error:
        return Finding(name, "broken", str(error))
    return None


def _import(names: Sequence[str], timeout: float) -> tuple[dict[str, str], str]:
    """Import libraries in turn in a child process, where they may hang or crash.

    Returns:
        What each said of itself, and what is wrong with the first that said nothing.
    """
    lines = [
        f"import {name} as m; print({_MARK + name!r}, {_VERSIONS.get(name, _VERSION)}, flush=True)"
        for name in names
    ]
    try:
        child = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            capture_output=True,
            timeout=timeout * len(names),
            stdin=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),  # some leave log files where they are imported
        )
    except subprocess.TimeoutExpired as late:
        return _said(late.stdout or b""), f"its import did not end within {late.timeout:g} s"
    if child.returncode < 0:
        return _said(child.stdout), f"its import was killed by signal {-child.returncode}"
    errors = child.stderr.decode(errors="replace").strip().splitlines()
    return _said(child.stdout), errors[-1] if errors else f"exit code {child.returncode}"


def _said(output: bytes) -> dict[str, str]:
    """Read what libraries said of themselves between what they print anyhow."""
    lines = (line.partition(_MARK)[2] for line in output.decode(errors="replace").splitlines())
    said = dict(line.split(" ", 1) for line in lines if line)
    if said.get("cucim") == "no version":
        said["cucim"] = _distribution_version("cucim-cu13", "cucim-cu12", "cucim")
    return said


def _distribution_version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no version"


def _machine() -> Iterator[Finding]:
    yield Finding("CPUs", "ok", f"{budget.cpu_budget()} usable of {os.cpu_count()}")
    cpus = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    yield Finding("  by affinity", "ok", str(cpus or "not known here"))
    yield Finding("  by cgroup quota", "ok", str(budget.cgroup_quota() or "no limit"))
    yield Finding("  by SLURM", "ok", os.environ.get("SLURM_CPUS_PER_TASK", "no share said"))
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
    state = "offline by HF_HUB_OFFLINE" if offline else "online"
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    kept = len([*cache.glob("models--*")])
    yield Finding("Hugging Face hub", "ok", f"{state}; {kept} entries in the cache {cache}")
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
