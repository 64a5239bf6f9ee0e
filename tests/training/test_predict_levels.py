"""Models that learned from tiles of a level: how slides are tiled for them, what is refused."""

from __future__ import annotations

import h5py
import pytest
import torch

import microtome
from microtome.__main__ import main
from microtome.plugin.specs import Transform
from microtome.testing import make_slide
from microtome_training.classifier import Description, Takes, load_classifier, save_classifier
from microtome_training.training.models import Architecture

BARE = {"record_mpp": False, "magnification": None, "aperio": False}
OF_LEVEL = Takes(kind="pixels", size=64, level=1, transform=Transform(crop=None))
OF_MPP = Takes(kind="pixels", size=64, level=1, mpp=0.5, transform=Transform(crop=None))


@pytest.fixture
def save(tmp_path):
    def saved(takes):
        torch.manual_seed(0)
        architecture = Architecture(model="small_cnn", classes=2, dim=0)
        description = Description(
            architecture=architecture, classes=("normal", "tumor"), takes=takes
        )
        path = tmp_path / "training/model/checkpoints/best.pt"
        path.parent.mkdir(parents=True)
        save_classifier(path, architecture.build(), description)
        return path

    return saved


@pytest.fixture
def predict(tmp_path):
    def run(slide, *words):
        quiet = ("engine=inline", "device=cpu", "heatmap.kind=none", "segmenter=none")
        return main([str(slide), f"output={tmp_path}", "task=predict", *quiet, *words])

    return run


def _attributes(tmp_path):
    with h5py.File(tmp_path / "patches/a.h5") as file:
        assert len(file["predictions/model"]) == len(file["coords"]) > 0
        return dict(file.attrs)


def test_without_any_mpp_slides_are_tiled_by_the_level(save, predict, tmp_path):
    model = save(OF_LEVEL)
    assert load_classifier(model).takes.level == 1
    slide = make_slide(tmp_path / "a.tif", size=(512, 384), levels=(1, 2), **BARE).path
    assert predict(slide) == 0
    told = _attributes(tmp_path)
    assert told["target_level"] == told["level"] == 1


def test_with_an_mpp_slides_are_tiled_by_that(save, predict, tmp_path):
    save(OF_MPP)
    made = {"levels": (1, 4), "mpp": 0.25, "magnification": 40}
    assert predict(make_slide(tmp_path / "a.svs", size=(512, 384), **made).path) == 0
    told = _attributes(tmp_path)
    assert told["target_mpp"] == 0.5
    assert "target_level" not in told


def test_the_effective_mpp_of_a_level_is_held_against_the_models(save, predict, tmp_path, capsys):
    save(OF_MPP)
    made = {"levels": (1, 2), "mpp": 0.25, "magnification": 40}
    slide = make_slide(tmp_path / "a.svs", size=(512, 384), **made).path
    assert predict(slide, "tiler.level=0") == 3
    assert "has tiles of 0.25 µm per pixel" in capsys.readouterr().err
    tiled = microtome.run_slides(
        slide,
        tmp_path / "other",
        segmenter="none",
        encoder=[],
        tiler={"grid": {"level": 1, "size": 64}},
    )
    assert [each.state for each in tiled.statuses] == ["done"]
    model = tmp_path / "training/model/checkpoints/best.pt"
    words = [f"checkpoint={model}", "engine=inline", "heatmap.kind=none", "device=cpu"]
    assert main([str(slide), f"output={tmp_path / 'other'}", "task=predict", *words]) == 0


def test_another_level_is_refused_where_no_mpp_says_better(save, predict, tmp_path, capsys):
    save(OF_LEVEL)
    slide = make_slide(tmp_path / "a.tif", size=(512, 384), levels=(1, 2), **BARE).path
    assert predict(slide, "tiler.level=0") == 3
    assert "learned from tiles of level 1" in capsys.readouterr().err
