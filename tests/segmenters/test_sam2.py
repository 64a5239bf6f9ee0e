"""SAM 2.1: its square, its batches, its options, and Hydra's global state left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("sam2")

import torch
from pictures import scene, view_of
from run_checks import run_tissue
from small_sam2 import DarkPredictor

from microtome.errors import ConfigError, MissingDependencyError, SegmenterError
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, get_registry
from microtome.store.masks import load_mask
from microtome.store.status import read_status
from microtome.testing import SegmenterContract, make_slide
from microtome_segmenters.options import Fit, Precision, Sam2Config, Sam2Model
from microtome_segmenters.sam2 import Sam2Segmenter


class TestSmallSam2(SegmenterContract):
    plugin = "sam2"
    options: ClassVar[Any] = {"weights": "random"}
    test_listing_it_imports_nothing_heavy = None  # asked of the whole room elsewhere

    @pytest.fixture
    def segmenter(self, small, registry, entry, config):
        return self.keep("segmenter", lambda: registry.create("segmenter", entry.spec.name, config))


@pytest.mark.parametrize(("width", "height"), [(700, 300), (300, 700), (64, 64), (1024, 5)])
@pytest.mark.parametrize("fit", list(Fit))
def test_the_mask_lies_where_the_picture_has_it(dark, width, height, fit):
    image, truth = scene(width, height)
    segmenter = Sam2Segmenter(Sam2Config(weights="random", fit=fit))
    (mask,) = segmenter.segment([view_of(image, downsample=16)])
    assert mask.downsample == (16.0, 16.0)
    assert mask.array.shape == truth.shape
    union = (mask.array | truth).sum()
    assert (mask.array & truth).sum() / union > (0.97 if min(width, height) > 50 else 0.8)


def test_a_square_keeps_the_aspect_on_white_unless_it_is_squashed(dark):
    image, _ = scene(600, 150)
    for fit, filled in ((Fit.pad, 256), (Fit.squash, 1024)):
        Sam2Segmenter(Sam2Config(weights="random", fit=fit)).segment([view_of(image)])
        (square,) = dark.calls[-1]
        assert square.shape == (1024, 1024, 3)
        expected = Image.fromarray(image).resize((1024, filled), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(square[:filled], np.asarray(expected))
        assert (square[filled:] == 255).all()


def test_what_holds_no_data_is_no_tissue(dark):
    image, _ = scene(400, 300)
    covered = np.arange(400) < 240 + np.zeros((300, 1), int)
    (mask,) = Sam2Segmenter(Sam2Config(weights="random")).segment([view_of(image, covered=covered)])
    assert mask.array[:, :240].any()
    assert not mask.array[:, 240:].any()


def test_the_threshold_is_a_probability(dark):
    image = np.full((64, 64, 3), 125, np.uint8)  # a logit of 1 there, which is 0.73
    for threshold, found in ((0.5, 1.0), (0.7, 1.0), (0.75, 0.0)):
        segmenter = Sam2Segmenter(Sam2Config(weights="random", threshold=threshold))
        assert segmenter.segment([view_of(image)])[0].fraction == found


def test_pictures_go_in_batches(dark):
    views = [view_of(scene(100 + 10 * i, 80)[0]) for i in range(5)]
    segmenter = Sam2Segmenter(Sam2Config(weights="random", batch_size=2))
    masks = segmenter.segment(views)
    assert [len(call) for call in dark.calls] == [2, 2, 1]
    assert [m.array.shape for m in masks] == [v.image.shape[:2] for v in views]


def test_a_batch_is_what_its_pictures_are_alone(small):
    views = [view_of(scene(width, 300)[0]) for width in (300, 400)]
    alone = Sam2Segmenter(Sam2Config(weights="random")).segment(views)
    batched = Sam2Segmenter(Sam2Config(weights="random", batch_size=2)).segment(views)
    for one, other in zip(alone, batched, strict=True):
        assert one.array.any()
        assert (one.array != other.array).mean() < 1e-3


def short_of_memory(monkeypatch, most):
    """Let the stand-in's device have memory for so many pictures."""
    keep = DarkPredictor.set_image_batch

    def set_image_batch(self, images):
        if len(images) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        keep(self, images)

    monkeypatch.setattr(DarkPredictor, "set_image_batch", set_image_batch)


def test_where_memory_is_short_batches_are_halved_and_it_is_told(dark, monkeypatch):
    views = [view_of(scene(100 + 10 * i, 80)[0]) for i in range(5)]
    expected = Sam2Segmenter(Sam2Config(weights="random")).segment(views)
    short_of_memory(monkeypatch, 2)
    dark.calls.clear()
    segmenter = Sam2Segmenter(Sam2Config(weights="random", batch_size=5))
    assert segmenter.notes == []
    masks = segmenter.segment(views)
    assert [len(call) for call in dark.calls] == [2, 2, 1]
    assert segmenter.batch_size == 2
    (note,) = segmenter.notes
    assert "no memory for 5 slides at once: the network is given 2" in note
    assert "segmenter.batch_size" in note
    for one, other in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(one.array, other.array)


def test_without_memory_for_a_single_slide_it_is_refused(dark, monkeypatch):
    short_of_memory(monkeypatch, 0)
    segmenter = Sam2Segmenter(Sam2Config(weights="random", batch_size=2))
    with pytest.raises(SegmenterError, match=r"one of the slides: give segmenter\.device=cpu"):
        segmenter.segment([view_of(scene(100, 80)[0])] * 2)


def test_a_slide_says_that_batches_were_halved(dark, slide, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 1)
    make_slide(tmp_path / "two.svs", size=(1024, 768), seed=3)
    out = tmp_path / "out"
    chosen = ("segmenter=sam2", "segmenter.weights=random", "segmenter.batch_size=2")
    assert run_tissue(tmp_path, f"output={out}", *chosen) == 0
    (warning,) = read_status(out / "status/one.json").warnings
    assert "no memory for 2 slides at once" in warning
    assert len(list((out / "tissue").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "tpu"}, "none of auto, cpu, cuda"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"device": "cpu", "precision": Precision.fp16}, "needs a GPU"),
        ({"weights": "atlaspatch", "model": Sam2Model.large}, "is of segmenter.model=tiny"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_it_is_made(options, told):
    with pytest.raises(ConfigError, match=told):
        Sam2Segmenter(Sam2Config(**({"weights": "random"} | options)))


def test_without_the_package_one_sentence_says_how_to_install_it(monkeypatch):
    entry = get_registry().find("segmenter", "sam2")
    assert entry.spec.requires[-1] == "sam2"
    monkeypatch.setattr(Registered, "missing", property(lambda self: ("sam2",)))
    with pytest.raises(MissingDependencyError) as caught:
        get_registry().create("segmenter", "sam2", configure(entry.spec))
    assert str(caught.value).endswith("pip install --no-build-isolation 'microtome[sam2]'")


def test_it_runs_from_the_command_line_and_in_a_sweep(checkpoint, slide, tmp_path):
    out = tmp_path / "out"
    chosen = ("segmenter=sam2", f"segmenter.weights={checkpoint}")
    assert run_tissue(slide, f"output={out}", *chosen) == 0
    (mask,) = (out / "tissue").glob("*.png")
    stored = load_mask(mask)
    assert stored.identity.fields["segmenter"]["weights"]["weights"].startswith("sha256:")
    assert run_tissue("-m", slide, f"output={out}", *chosen, "segmenter.fit=pad,squash") == 0
    assert len(list((out / "tissue").glob("*.png"))) == 2
    assert mask in (out / "tissue").glob("*.png")


STARTED = "GlobalHydra.instance().is_initialized()"
NOTEBOOK = """
import sys, small_sam2
small_sam2.install()
import microtome_segmenters.sam2
microtome_segmenters.sam2.import_predictor = lambda: small_sam2.DarkPredictor
slide, out = sys.argv[1:]
{first}
from hydra.core.global_hydra import GlobalHydra
assert {started} is {before}, "at first"
from microtome.__main__ import main
words = [slide, "task=tissue", "segmenter=sam2", "segmenter.weights=random", "engine=inline"]
assert main([*words, f"output={{out}}/run"]) == 0
assert {started} is {before}, "after a run"
assert main(["-m", *words, f"output={{out}}/sweep", "segmenter.fit=pad,squash"]) == 0
assert {started} is {before}, "after a sweep"
import microtome
done = microtome.run_slides(slide, out + "/api", task="tissue",
                            segmenter={{"sam2": {{"weights": "random"}}}})
assert done.exit_code == 0
with microtome.open_slide(slide) as opened:
    assert opened.tissue("sam2", weights="random").array.any()
assert {started} is {before}, "after Python's own calls"
{last}
"""


@pytest.mark.parametrize(
    ("first", "before", "last"),
    [
        ("", False, "import sam2"),
        (
            "import sam2",
            True,
            "from hydra import compose; assert compose('configs/sam2.1/sam2.1_hiera_t.yaml').model",
        ),
    ],
    ids=["microtome first", "sam2 first"],
)
def test_hydras_global_state_is_left_to_whom_it_belongs(slide, tmp_path, first, before, last):
    code = NOTEBOOK.format(first=first, before=before, started=STARTED, last=last)
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(slide), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
        check=False,
    )
    assert done.returncode == 0, done.stderr
