"""Every command and snippet of the documentation does what the page says."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from microtome.__main__ import main
from microtome.commands import find_verbs
from microtome.plugin.registry import get_registry
from microtome.testing.synthetic import make_slide

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^<!-- before: (?P<before>[^\n]+) -->$"
    r"|(?P<compose>^<!-- compose only: [^\n]+ -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = {"pip", "uv", "conda", "python", "source", "eval", "echo"}
"""What a reader does to their machine, outside of microtome."""

SHOWN = {"text", "console"}


@dataclass(frozen=True)
class Block:
    """One fenced block, or a command that the page relies on."""

    language: str
    code: str
    title: str = ""
    compose: bool = False


def blocks(page: Path) -> Iterator[Block]:
    for match in BLOCK.finditer(page.read_text("utf-8")):
        if match["before"]:
            yield Block("bash", match["before"])
        else:
            compose = match["compose"] is not None
            yield Block(match["language"], match["code"], match["title"] or "", compose)


@dataclass
class Reader:
    """Somebody who does what a page says, in a folder with some slides."""

    page: str
    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    has_package: bool = False

    def follow(self, block: Block) -> None:
        if block.title:
            self.write(block.title, block.code)
        elif block.language == "bash":
            for line in block.code.replace("\\\n", "").splitlines():
                if words := shlex.split(line, comments=True):
                    self.command(words, compose=block.compose)
        elif block.language == "python":
            exec(compile(block.code, self.page, "exec"), self.names)
        else:
            assert block.language in SHOWN, f"{self.page}: what to do with {block.language}?"

    def write(self, title: str, code: str) -> None:
        path = self.folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, "utf-8")
        if title == "pyproject.toml":
            self.register(tomllib.loads(code)["project"])

    def register(self, project: dict[str, Any]) -> None:
        """Make the package look installed, as `pip install -e .` would."""
        self.has_package = True
        info = self.folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = project["entry-points"]["microtome"].items()
        lines = [f"{name} = {module}" for name, module in points]
        (info / "entry_points.txt").write_text("\n".join(["[microtome]", *lines]) + "\n")

    def command(self, words: list[str], *, compose: bool) -> None:
        program, *arguments = words
        if words == ["microtome", "doctor"]:
            # It imports torch and judges this machine, for a minute: tests/commands looks at it.
            assert (ROOT / "core/microtome/commands/doctor.py").exists()
        elif program == "microtome":
            self.microtome([*arguments, *(["--cfg", "job"] if compose else [])])
        elif program == "pytest":
            self.run("pytest", "-q", "-p", "no:cacheprovider", *arguments)
        elif program == "make":
            assert set(arguments) <= make_targets(), f"{self.page}: {shlex.join(words)}"
        else:
            assert program in NOT_RUN, f"{self.page}: nobody runs {shlex.join(words)}"

    def microtome(self, arguments: list[str]) -> None:
        """Run it here, which is faster, unless the page's own package has to be found."""
        if self.has_package:
            self.run("microtome", *arguments)
        else:
            here = arguments if is_verb(arguments) else [*arguments, "engine=inline"]
            assert main(here) == 0, f"{self.page}: microtome {shlex.join(arguments)}"

    def run(self, module: str, *arguments: str) -> None:
        path = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"{self.page}: {module} {shlex.join(arguments)}\n{said}"


def is_verb(arguments: list[str]) -> bool:
    """Whether it starts no run; or says itself which engine its run has."""
    words = [*find_verbs(), "--help", "--version", "--hydra-help", "-sc"]
    return bool({*words} & {*arguments}) or any(word.startswith("engine") for word in arguments)


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages take for granted: ``slide.svs``, ``slides/`` and ``masks/``."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "slides").mkdir()
    (folder / "masks").mkdir()
    slide = make_slide(folder / "slide.svs")
    make_slide(folder / "slides" / "a.svs", size=(1024, 1024), tissue=0.6, seed=1)
    make_slide(folder / "slides" / "b.svs", size=(1024, 1024), tissue=0.6, seed=2)
    cv2.imwrite(str(folder / "masks" / "slide.png"), slide.tissue.astype(np.uint8) * 255)
    return folder


@pytest.fixture
def folder(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with them, from which packages can be imported."""
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    get_registry.cache_clear()
    yield tmp_path
    get_registry.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.timeout(600)  # some import torch several times, on a machine that may be busy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_says_works(page: Path, folder: Path) -> None:
    found = list(blocks(page))
    assert len(found) == len(re.findall(r"^```\w", page.read_text("utf-8"), re.MULTILINE)) + len(
        re.findall(r"^<!-- before: ", page.read_text("utf-8"), re.MULTILINE)
    )
    reader = Reader(page.name, folder)
    for block in found:
        reader.follow(block)


def test_the_plugin_on_the_first_page_passes_its_contract(folder: Path) -> None:
    reader = Reader("README.md", folder)
    for block in blocks(ROOT / "README.md"):
        if block.title:
            reader.follow(block)
    test = "from microtome.testing import EncoderContract\n\n\n"
    test += "class TestAcme(EncoderContract):\n    plugin = 'acme'\n"
    (folder / "test_acme.py").write_text(test, "utf-8")
    reader.run("pytest", "-q", "-p", "no:cacheprovider", "test_acme.py")


def test_extras_that_the_documentation_names_exist() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
            "optional-dependencies"
        ]
    )
    named = {
        extra
        for page in PAGES
        for group in re.findall(r"(?:\.|microtome)\[([\w,-]+)\]", page.read_text("utf-8"))
        for extra in group.split(",")
    }
    assert named
    assert named <= extras
