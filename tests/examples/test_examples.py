"""The example packages as strangers ship them: built, installed, run from the command line.

Into a fresh environment that sees this one's packages, offline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from microtome.testing import make_plain_image, make_slide

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PACKAGES = ("microtome-acme", "microtome-toolbox")
pytest.importorskip("build")
pytest.importorskip("hatchling")


def call(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def passed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name in PACKAGES:
        passed(
            call(
                *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
                *("--outdir", folder, EXAMPLES / name),
                cwd=folder,
            )
        )
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory, wheels):
    """The interpreter of a fresh environment with both packages installed."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False)
    paths = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # A .pth file of its own would not do: those in the other folder would be left out.
    outer = sysconfig.get_path("purelib")
    (own / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    python = home / "bin" / "python"
    install = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet")
    passed(call(*install, *sorted(wheels.glob("*.whl")), cwd=home))
    return python


@pytest.fixture
def microtome(python, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def microtome(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
        return call(python, "-m", "microtome", *words, cwd=tmp_path, **env)

    return microtome


@pytest.fixture
def slide(tmp_path):
    return make_slide(tmp_path / "slide (1).svs").path


def stored(folder: Path, name: str) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(folder / "patches" / f"{name}.h5") as file:
        return {key: value[:] for key, value in file["features"].items()}


def test_an_encoder_runs_with_its_option(microtome, slide, tmp_path):
    words = (slide, "output=out", "encoder=acme", "encoder.acme.power=0.5", "tiler.size=256")
    passed(microtome(*words))
    features = stored(tmp_path / "out", "slide (1)")["acme"]
    assert features.shape[1] == 48
    # Sixteen shares of each channel sum to one; each is stored as its square root.
    assert np.allclose((features**2).reshape(-1, 3, 16).sum(axis=2), 1, atol=1e-5)


def test_a_sweep_over_encoders_and_magnifications_shares_one_output(microtome, slide, tmp_path):
    sweep = ("encoder=acme,handcrafted", "tiler.magnification=10,20", "tiler.size=128")
    passed(microtome("-m", slide, "output=out", *sweep))
    folders = sorted(path.parent for path in (tmp_path / "out").glob("*/patches"))
    assert len(folders) == 2
    for folder in folders:
        assert sorted(stored(folder, "slide (1)")) == ["acme", "handcrafted"]
    masks = list((tmp_path / "out" / "tissue").glob("*.png"))
    assert len(masks) == 1


def test_all_four_of_the_second_package_run_by_configuration(microtome, tmp_path):
    make_plain_image(tmp_path / "a.ppm", size=(2048, 1536), tissue=0.5)
    pixels = (tmp_path / "a.ppm").read_bytes()
    (tmp_path / "a.ppm").write_bytes(pixels.replace(b"P6\n", b"P6\n# mpp = 0.5\n", 1))
    plugins = ("reader=ppm", "segmenter=darker", "tiler=sample", "writer=npz", "encoder=acme")
    options = ("tiler.count=7", "tiler.size=128", "tiler.magnification=20")
    passed(microtome("a.ppm", "output=out", *plugins, *options))
    with np.load(tmp_path / "out" / "patches" / "a.npz") as archive:
        assert archive["coords"].shape == (7, 5)
        assert archive["features/acme"].shape == (7, 48)
        assert json.loads(str(archive["attributes"]))["patch_size"] == 128


def test_a_wrong_option_is_one_sentence_that_names_the_right_one(microtome, slide, tmp_path):
    done = microtome(slide, "output=out", "encoder=acme", "encoder.acme.pwer=2")
    assert done.returncode == 2
    assert "power" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_packages_are_listed(microtome):
    assert "acme" in passed(microtome("--help"))
    listing = json.loads(passed(microtome("plugins", "--json")))
    assert "microtome-toolbox" in json.dumps(listing)


def test_a_name_is_completed(microtome):
    line = "microtome encoder=ac"
    done = microtome("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert "encoder=acme" in passed(done).split()


@pytest.mark.parametrize("name", PACKAGES)
def test_its_own_tests_pass(python, name, tmp_path):
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLES / name)
    passed(call(python, "-m", "pytest", *options, EXAMPLES / name / "tests", cwd=tmp_path))


def test_uninstalling_removes_it(tmp_path_factory, microtome, python, wheels):
    passed(call(python, "-m", "pip", "uninstall", "--yes", "--quiet", PACKAGES[0], cwd=wheels))
    try:
        assert "acme" not in passed(microtome("--help"))
        done = microtome("x.svs", "output=out", "encoder=acme")
        assert done.returncode == 2
        assert "acme" in done.stderr
    finally:
        install = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet")
        passed(call(*install, *wheels.glob("microtome_acme*.whl"), cwd=wheels))
