"""GrandQC with random weights in the published layout. The real weights are unrun."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from pictures import view_of

from microtome.__main__ import main
from microtome.errors import ConfigError, InspectorError, SegmenterError
from microtome.plugin.options import configure
from microtome.plugin.registry import get_registry
from microtome.testing import make_slide

CLASSES = ("never", "normal", "fold", "dark", "pen", "edge", "blur", "background")


def make(kind, **options):
    spec = get_registry().find(kind, "grandqc").spec
    return get_registry().create(kind, "grandqc", configure(spec, device="cpu", **options))


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip("segmentation_models_pytorch")


@pytest.fixture(scope="module")
def tissue_file(smp, tmp_path_factory):
    """Save a model that finds tissue everywhere as the publisher does: a plain dictionary."""
    model = make("segmenter", weights="random").build()
    with torch.no_grad():
        model.segmentation_head[0].weight.zero_()
        model.segmentation_head[0].bias.copy_(torch.tensor([1.0, 0.0]))
    path = tmp_path_factory.mktemp("weights") / "Tissue_Detection_MPP10.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def artefact_file(smp, tmp_path_factory):
    """Save a model that finds pen everywhere."""
    model = make("inspector", weights="random")._make()
    with torch.no_grad():
        model.segmentation_head[0].weight.zero_()
        model.segmentation_head[0].bias.copy_(torch.eye(8)[CLASSES.index("pen")])
    path = tmp_path_factory.mktemp("weights") / "GrandQC_MPP1_state_dict.pth"
    torch.save(model.state_dict(), path)
    return path


def test_published_names_load_strictly(tissue_file, tmp_path):
    segmenter = make("segmenter", weights=str(tissue_file))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    (mask,) = segmenter.segment([view_of(image)])
    assert mask.array.shape == (90, 120)
    assert mask.array.all()
    state = torch.load(tissue_file, weights_only=True)
    assert {"encoder.conv_stem.weight", "decoder.blocks.x_0_0.conv1.0.weight"} <= state.keys()
    state["more"] = state.pop("segmentation_head.0.bias")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        SegmenterError, match=r"1 missing \(segmentation_head\.0\.bias\); 1 unknown"
    ):
        make("segmenter", weights=str(tmp_path / "other.pth")).segment([view_of(image)])


def test_a_whole_pickled_model_is_refused_unrun(smp, tmp_path):
    """As on Zenodo: code would have to be run to read it."""
    torch.save(torch.nn.Conv2d(3, 2, 1), tmp_path / "GrandQC_MPP2.pth")
    inspector = make("inspector", model="mpp2", weights=str(tmp_path / "GrandQC_MPP2.pth"))
    with pytest.raises(SegmenterError, match="besides a plain dictionary of tensors"):
        inspector.inspect(np.zeros((1, 64, 64, 3), np.uint8), 1.0)


def test_class_0_is_tissue_and_pictures_are_compressed(smp):
    segmenter = make("segmenter", weights="random")
    assert segmenter.tissue == 0
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    prepared = segmenter.prepare(noise)
    assert prepared.shape == noise.shape
    assert not np.array_equal(prepared, noise)


def test_shares_are_of_the_classes(artefact_file):
    inspector = make("inspector", weights=str(artefact_file))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    found = {name: values.tolist() for name, values in inspector.inspect(tiles, 0.5).items()}
    assert found.pop("pen") == [1, 1, 1]
    assert set(map(tuple, found.values())) == {(0, 0, 0)}


def test_where_memory_is_short_fewer_tiles_are_taken(artefact_file, monkeypatch):
    tiles = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    inspector = make("inspector", weights=str(artefact_file))
    shares = inspector._shares
    taken = []

    def short(some, scale):
        taken.append(len(some))
        if len(some) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return shares(some, scale)

    monkeypatch.setattr(inspector, "_shares", short)
    assert inspector.inspect(tiles, 0.5)["pen"].tolist() == [1] * 5
    assert taken == [5, 2, 2, 1]
    assert "inspector.grandqc.batch_size" in inspector.notes[0]


def test_the_artefact_model_is_the_published_one(smp):
    """6.25 million parameters: a plain U-Net, which the tissue model is not."""
    with torch.device("meta"):
        artefacts = make("inspector", weights="random")._make()
        tissue = make("segmenter", weights="random").build()
    assert sum(p.numel() for p in artefacts.parameters()) == 6_252_484
    assert sum(p.numel() for p in tissue.parameters()) == 6_569_726


def test_what_it_cannot_know_is_told(smp):
    with pytest.raises(InspectorError, match="µm per pixel is not known"):
        make("inspector", weights="random").inspect(np.zeros((1, 64, 64, 3), np.uint8), None)
    with pytest.raises(ConfigError, match=r"inspector\.grandqc\.weights=FILE"):
        make("inspector", model="mpp2")
    with pytest.raises(ConfigError, match=r"inspector\.grandqc\.device=tpu is none of"):
        get_registry().create(
            "inspector",
            "grandqc",
            configure(get_registry().find("inspector", "grandqc").spec, device="tpu"),
        )


def test_a_run_with_both(tissue_file, artefact_file, tmp_path, monkeypatch, capsys):
    """Through the command line; other weights are another mask, and other scores are refused."""
    monkeypatch.chdir(tmp_path)
    make_slide(tmp_path / "one.svs", size=(512, 384), tissue=0.8, pen=False)
    line = ["one.svs", "output=out", "engine=inline", "tiler.size=128", "tiler.magnification=20"]
    line += ["segmenter=grandqc", "segmenter.device=cpu", "tiler.min_tissue=0", "task=coords"]
    line += ["inspector=grandqc", "inspector.grandqc.device=cpu"]
    known = [f"segmenter.weights={tissue_file}", f"inspector.grandqc.weights={artefact_file}"]
    assert main([*line, *known]) == 0
    (record,) = (tmp_path / "out/status").iterdir()
    status = json.loads(record.read_text())
    with h5py.File("out/patches/one.h5") as store:
        assert (store["columns/grandqc_pen"][:] == 1).all()
        assert status["reasons"] == {"grandqc_pen_above": len(store["coords"])}
        told = json.loads(store.attrs["quality"])["grandqc"]["identity_fields"]["inspector"]
    assert told["weights"]["weights"].startswith("sha256:")
    assert main([*line, known[0], "inspector.grandqc.weights=random"]) == 3
    assert "inspector.weights.weights was sha256:" in capsys.readouterr().err
