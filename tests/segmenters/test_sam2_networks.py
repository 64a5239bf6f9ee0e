"""SAM 2.1's networks: how they are made, whose weights they have, how they compute."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sam2")

import small_sam2
import torch
from pictures import scene, view_of
from run_checks import run_tissue
from safetensors.torch import save_file

from microtome.errors import SegmenterError
from microtome.store.masks import load_mask
from microtome_segmenters import sam2_model, weights
from microtome_segmenters.networks import Resident
from microtome_segmenters.options import Fit, NetworkConfig, Precision, Sam2Config, Sam2Model
from microtome_segmenters.sam2 import Sam2Segmenter

PARAMETERS = {
    "tiny": 38_962_498,
    "small": 46_060_354,
    "base_plus": 80_850_178,
    "large": 224_446_642,
}


STOCK = """
import sys
import numpy as np, torch, small_sam2, sam2
from sam2.build_sam import build_sam2
from microtome_segmenters.sam2 import _make_predictor
from microtome_segmenters.sam2_model import build_model

small_sam2.install()
noise = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)

def segment(model):
    with torch.inference_mode():
        predictor = _make_predictor(model.eval(), 0.5)
        predictor.set_image_batch(list(noise))
        boxes = [np.array([0, 0, 1024, 1024], np.float32)]
        return np.stack(predictor.predict_batch(box_batch=boxes, multimask_output=False)[0])

ours, plain = (build_model("tiny", seed=1, multimask=on) for on in (True, False))
config = "configs/sam2.1/sam2.1_hiera_t.yaml"
stock = build_sam2(config, device="cpu", hydra_overrides_extra=sys.argv[1:])
stock.load_state_dict(ours.state_dict())
print((segment(ours) != segment(stock)).mean(), (segment(plain) != segment(stock)).mean())
"""


def overrides(shrunk, plain, name="model"):
    """Say as Hydra does what is different in a recipe."""
    for key, value in shrunk.items():
        if isinstance(value, dict):
            yield from overrides(value, plain[key], f"{name}.{key}")
        elif value != plain.get(key):
            yield f"++{name}.{key}={value}".replace(" ", "")


def test_published_weights_run_as_their_publisher_builds_them():
    """By the package's own builder, which takes Hydra's state: in a process of its own."""
    read = sam2_model.read_recipe
    changes = overrides(small_sam2.shrink(read("tiny"))["model"], read("tiny")["model"])
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *changes],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, plain = map(float, done.stdout.split())
    assert ours == 0
    assert plain > 0.05


@pytest.mark.parametrize(
    ("options", "multimask"),
    [
        ({}, True),
        ({"weights": "atlaspatch"}, False),
        ({"fit": Fit.squash}, False),
        ({"multimask": False}, False),
        ({"weights": "atlaspatch", "multimask": True}, True),
    ],
    ids=str,
)
def test_whose_decoder_it_is_belongs_to_the_identity(small, asked, options, multimask):
    weights = Sam2Segmenter(Sam2Config(**options)).weights()
    assert weights.get("multimask") == ("where unstable" if multimask else None)
    model = Sam2Segmenter(Sam2Config(**options | {"weights": "random", "multimask": multimask}))
    assert model._make().sam_mask_decoder.dynamic_multimask_via_stability is multimask


def test_every_recipe_of_the_package_is_there_and_small_ones_are_made(small):
    for size in PARAMETERS:
        model = sam2_model.build_model(size, seed=0)
        assert type(model).__name__ == "SAM2Base"
        assert model.image_size == 1024
    assert type(model.memory_encoder.fuser.layers[0].gamma).__name__ == "Parameter"
    torch.testing.assert_close(
        model.memory_encoder.fuser.layers[0].gamma.detach(), torch.full((256,), 1e-6)
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_a_network_has_the_published_size(size):
    model = sam2_model.build_model(size, seed=0)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[size]


def test_a_recipe_can_name_nothing_but_sam2():
    for target in ("os.system", "sam2x.a", "torch.nn.Linear"):
        with pytest.raises(ValueError, match="which is not sam2's"):
            sam2_model.instantiate({"_target_": target})


def test_seeds_decide_random_weights_and_leave_torchs_state_alone(small):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, other = (sam2_model.build_model("tiny", seed=s).state_dict() for s in (0, 0, 1))
    torch.testing.assert_close(torch.rand(2), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def segment_with(path, **options):
    segmenter = Sam2Segmenter(Sam2Config(weights=str(path), **options))
    return segmenter.segment([view_of(scene(200, 150)[0])])[0].array


def test_weights_from_a_file_are_those_in_the_file(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["model"]
    bare, safe = tmp_path / "bare.pth", tmp_path / "safe.safetensors"
    torch.save(state, bare)
    save_file({name: value.contiguous() for name, value in state.items()}, safe)
    mask = segment_with(checkpoint)
    np.testing.assert_array_equal(mask, segment_with("random", seed=5))
    np.testing.assert_array_equal(mask, segment_with(bare))
    np.testing.assert_array_equal(mask, segment_with(safe))


def test_weights_must_fit_exactly(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["model"]
    del state["no_mem_embed"]
    state["head.bias"] = torch.zeros(1)
    state["maskmem_tpos_enc"] = torch.zeros(2, 2)
    path = tmp_path / "other.pt"
    torch.save({"model": state}, path)
    with pytest.raises(SegmenterError) as caught:
        segment_with(path)
    told = str(caught.value)
    assert "1 missing (no_mem_embed)" in told
    assert "1 unknown (head.bias)" in told
    assert "1 of another shape (maskmem_tpos_enc is (2, 2) and should be" in told


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("made-by-a-pickle",))


def test_no_pickle_runs_code(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(SegmenterError, match="plain dictionary of tensors"):
            segment_with(tmp_path / name)
    assert not Path("made-by-a-pickle").exists()


def test_what_is_no_file_of_weights_is_refused(small, tmp_path):
    broken, text = tmp_path / "broken.safetensors", tmp_path / "weights.txt"
    for path in (broken, text):
        path.write_bytes(b"no weights")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pt")
    for path, told in {
        tmp_path / "gone.pt": "names no file",
        broken: "plain dictionary",
        text: "Weights are read from",
        tmp_path / "numbers.pt": "holds no dictionary of tensors",
    }.items():
        with pytest.raises(SegmenterError, match=told):
            segment_with(path)


def test_weights_are_named_by_their_content(checkpoint, tmp_path):
    def name(path, **options):
        return Sam2Segmenter(Sam2Config(weights=str(path), **options)).weights()

    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(checkpoint.read_bytes())
    assert name(checkpoint) == name(copy)
    assert name(checkpoint)["weights"].startswith("sha256:")
    copy.write_bytes(checkpoint.read_bytes() + b" ")
    assert name(checkpoint) != name(copy)
    assert name("random", seed=1, multimask=False) == {"weights": "random", "seed": "1"}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Stand in for the hub: what is asked of it."""
    asked = []

    def fetch(*words):
        asked.append(words)
        path = tmp_path / "blob"
        path.write_bytes(b"weights")
        return weights.WeightsFile(path)

    monkeypatch.setattr(weights, "fetch_hub", fetch)
    return asked


def test_published_weights_are_asked_for_by_size(asked):
    for size in Sam2Model:
        Sam2Segmenter(Sam2Config(model=size)).weights()
    Sam2Segmenter(Sam2Config(weights="atlaspatch")).weights()
    Sam2Segmenter(Sam2Config(repo="me/mine", file="m.pt", revision="v1")).weights()
    assert asked == [
        ("facebook/sam2.1-hiera-tiny", None, ["sam2.1_hiera_tiny.pt"]),
        ("facebook/sam2.1-hiera-small", None, ["sam2.1_hiera_small.pt"]),
        ("facebook/sam2.1-hiera-base-plus", None, ["sam2.1_hiera_base_plus.pt"]),
        ("facebook/sam2.1-hiera-large", None, ["sam2.1_hiera_large.pt"]),
        ("AtlasAnalyticsLab/AtlasPatch", None, ["model.pth"]),
        ("me/mine", "v1", ["m.pt"]),
    ]


def test_weights_that_cannot_be_had_are_told_before_any_slide(
    hub, slide, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    assert run_tissue(slide, f"output={out}", "segmenter=sam2") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "facebook/sam2.1-hiera-tiny are not in the cache" in told
    assert "HF_HUB_OFFLINE is set: run 'hf download" in told
    assert told.endswith("segmenter.weights=PATH.")
    assert not (out / "status").exists()


def test_half_precision_is_autocast(small):
    image = scene(200, 150)[0]
    full = segment_with("random")
    half = segment_with("random", device="cpu", precision=Precision.bf16)
    assert half.shape == full.shape == image.shape[:2]
    seen = []
    network = Resident(
        lambda: torch.nn.Linear(4, 4), NetworkConfig(device="cpu", precision=Precision.bf16)
    )
    with network.at_work() as linear:
        seen.append(linear(torch.zeros(1, 4)).dtype)
        assert linear.weight.dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_tf32_is_off_while_a_network_computes(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network = Resident(lambda: torch.nn.Linear(4, 4), NetworkConfig(device="cpu"))
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = {}

    def first() -> None:
        with network.at_work():
            first_in.set()
            assert second_in.wait(30)
        seen["one left"] = torch.backends.cudnn.allow_tf32
        first_out.set()

    def second() -> None:
        assert first_in.wait(30)
        with network.at_work():
            seen["both"] = torch.backends.cudnn.allow_tf32
            second_in.set()
            assert first_out.wait(30)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result()
    assert seen == {"both": False, "one left": False}
    assert torch.backends.cudnn.allow_tf32


class Moving(torch.nn.Module):
    """Notes where it is sent."""

    def __init__(self):
        super().__init__()
        self.places = []

    def to(self, device):
        self.places.append(str(device))
        return self


def test_a_released_network_leaves_the_gpu_and_comes_back(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    moving = Moving()
    network = Resident(lambda: moving, NetworkConfig())
    network.release()
    assert emptied == []
    for _ in range(2):
        with network.at_work():
            assert moving.places[-1] == "cuda"
        network.release()
        assert moving.places[-1] == "cpu"
    assert len(emptied) == 2


def test_other_weights_make_another_mask(small, slide, tmp_path):
    out = tmp_path / "out"
    for seed in (0, 1, 1):
        chosen = ("segmenter=sam2", "segmenter.weights=random", f"segmenter.seed={seed}")
        assert run_tissue(slide, f"output={out}", *chosen) == 0
    assert len(list((out / "tissue").glob("*.png"))) == 2


@pytest.mark.slow
def test_a_random_checkpoint_in_the_published_layout_segments_a_real_slide(
    shared_data, tmp_path, capsys
):
    path = tmp_path / "model.pth"
    torch.save({"model": sam2_model.build_model("tiny", seed=0).state_dict()}, path)
    slide = shared_data / "slides/cmu-1-small-region.svs"
    out = tmp_path / "out"
    began = time.monotonic()
    chosen = ("segmenter=sam2", f"segmenter.weights={path}", "segmenter.device=cpu")
    assert run_tissue(slide, f"output={out}", *chosen) == 0
    with capsys.disabled():
        print(f"\nSAM 2.1 hiera-tiny, one slide on the CPU: {time.monotonic() - began:.1f} s")
    (mask,) = (out / "tissue").glob("*.png")
    assert load_mask(mask).mask.array.shape == (185, 138)
