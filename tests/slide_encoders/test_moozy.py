"""MOOZY of a slide through its package, of which a stand-in with its published call is run here."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moozy_standin import moozy  # noqa: E402
from package_standins import grid_bag, make, pickled  # noqa: E402

from microtome.errors import ConfigError, EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.bag_options import MoozyEmbedding  # noqa: E402
from microtome_encoders.slide.moozy import MoozySlideEncoder  # noqa: E402

__all__ = ["moozy"]


@pytest.fixture(scope="module")
def spec(registry):
    return registry.find("slide_encoder", "moozy").spec


def loaded(spec, path, precision="fp32", **options):
    encoder = make(spec, MoozySlideEncoder, weights=str(path), **options)
    encoder.load("cpu", precision)
    return encoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_the_package_is_asked(spec, moozy, precision):
    tiles = grid_bag(384, tile=448)
    output = loaded(spec, moozy.file, precision).encode(tiles)
    assert moozy.loaded == [(str(moozy.file), torch.device("cpu"))]
    (slide,) = moozy.slides
    places = slide.pop("places")
    assert slide == {
        "x": ((1, 4, 1, 384), torch.float32),
        "mask": None,
        "invalid_mask": None,
        "coords_xy": ((1, 4, 1, 2), torch.float32),
        "patch_sizes": [448.0],
        "training": False,
        "autocast": precision == "bf16",
    }
    assert places.tolist() == tiles.coords.tolist()
    assert not moozy.cases
    assert (output.embedding.shape, output.embedding.dtype) == ((768,), np.float32)


def test_as_a_patient_with_one_slide(spec, moozy):
    """What AtlasPatch calls MOOZY's embedding of a slide."""
    tiles = grid_bag(384)
    plain = loaded(spec, moozy.file).encode(tiles).embedding
    encoder = loaded(spec, moozy.file, variant=MoozyEmbedding.case)
    assert encoder.encode(tiles).embedding.tolist() == (2 * plain).tolist()
    assert moozy.cases == [((1, 768), torch.float32)]
    assert encoder.card.dim == 768


def test_a_large_slide_is_thinned_out_evenly(spec, moozy):
    tiles = grid_bag(384, [(column, 0) for column in range(10)])
    encoder = loaded(spec, moozy.file, max_tiles=4)
    encoder.encode(tiles)
    assert (moozy.slides[0]["places"][:, 0] // 512).tolist() == [0, 2, 5, 7]
    encoder.encode(grid_bag(384))
    assert len(moozy.slides[1]["places"]) == 4


def test_its_memory_is_what_its_package_allows_for(spec, moozy):
    """Its own limits of inference: 12,000 tiles in 16 GiB, 27,000 in 80 GiB."""
    encoder = make(spec, MoozySlideEncoder)
    for tiles, gib in ((12_000, 16), (19_000, 40), (27_000, 80)):
        assert encoder.memory(tiles, (400, 400)) / 2**30 == pytest.approx(gib, rel=0.03)
    capped = make(spec, MoozySlideEncoder, max_tiles=12_000)
    assert capped.memory(500_000, (900, 900)) == capped.memory(12_000, (1, 1))


def test_its_checkpoint_is_that_of_its_hub_entry(hub, spec, moozy):
    commit = hub.commit("AtlasAnalyticsLab/MOOZY", moozy__pt=moozy.file.read_bytes())
    encoder = make(spec, MoozySlideEncoder)
    encoder.load("cpu", "fp32")
    assert encoder.loaded_weights["commit"] == commit
    assert encoder.encode(grid_bag(384)).embedding.shape == (768,)


class Harmful:
    """A pickle that calls something."""

    def __reduce__(self):
        return os.getcwd, ()


class TestPickles:
    @pytest.fixture
    def file(self, moozy):
        state = torch.load(moozy.file)
        moozy.file.write_bytes(pickled({**state, "note": Harmful()}))
        return moozy.file

    def test_one_that_could_run_code_is_refused(self, spec, file):
        """The package itself would load it without a word."""
        with pytest.raises(EncoderError, match=r"refused.*allow_pickle=[0-9a-f]{64}"):
            loaded(spec, file)

    def test_the_one_that_is_allowed_is_loaded_and_that_is_recorded(self, spec, file):
        encoder = make(spec, MoozySlideEncoder, weights=str(file))
        digest = encoder.weights()["weights"].removeprefix("sha256:")
        encoder = loaded(spec, file, allow_pickle=digest)
        assert "may have run code" in encoder.loaded_weights["pickle"]


@pytest.mark.parametrize("content", [{}, {"teacher_slide_encoder": {}}])
def test_a_file_that_is_no_checkpoint_is_told(spec, moozy, content):
    moozy.file.write_bytes(pickled(content))
    with pytest.raises(EncoderError, match="no checkpoint of MOOZY"):
        loaded(spec, moozy.file)


def test_other_features_are_refused(spec, moozy):
    with pytest.raises(EncoderError, match=r"384.* features of lunit_vit_small_patch8_dino"):
        loaded(spec, moozy.file).encode(grid_bag(768))


def test_a_device_that_is_too_small_is_told_with_the_way_out(spec, moozy, monkeypatch):
    def no_memory(*_, **__):
        raise torch.cuda.OutOfMemoryError

    encoder = loaded(spec, moozy.file)
    monkeypatch.setattr(encoder._loaded().slide_encoder, "forward", no_memory)
    with pytest.raises(EncoderError, match=r"no memory for AtlasAnalyticsLab/MOOZY.*max_tiles"):
        encoder.encode(grid_bag(384))


def test_there_are_no_random_weights(spec):
    with pytest.raises(ConfigError, match="architecture is in its checkpoint"):
        make(spec, MoozySlideEncoder, weights="random")


def test_no_tile_at_all_is_no_way_to_thin_out(spec):
    with pytest.raises(ConfigError, match="max_tiles=0"):
        make(spec, MoozySlideEncoder, max_tiles=0)


def test_without_the_package_the_command_is_told(registry, spec):
    with pytest.raises(MissingDependencyError, match=r"pip install .* moozy"):
        registry.create("slide_encoder", "moozy", configure(spec))
