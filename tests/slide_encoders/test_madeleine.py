"""MADELEINE through its package, of which a stand-in with its published call is run here."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from package_standins import grid_bag, install, make, pickled, said  # noqa: E402
from torch import nn  # noqa: E402

from microtome.errors import EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.slide.madeleine import MadeleineSlideEncoder  # noqa: E402

CONFIG = {"MODALITIES": ["HE"], "n_heads": 4, "precision": "bfloat16"}


@pytest.fixture(scope="module")
def spec(registry):
    return registry.find("slide_encoder", "madeleine").spec


class Madeleine(nn.Module):
    """What the package's model does with its input, and a mean in the place of attention."""

    def __init__(self, asked=None):
        super().__init__()
        self.asked = {} if asked is None else asked
        self.projector = nn.Linear(512, 512)

    def encode_he(self, feats, device):
        self.asked.update(feats=said(feats), device=device, training=self.training)
        self.asked.update(autocast=torch.is_autocast_enabled("cpu"))
        return self.projector(feats.to(device)).mean(1)


@pytest.fixture
def asked(monkeypatch):
    asked = {}

    def create_model(model_cfg, device="cpu", checkpoint_path=None):
        asked.update(config=vars(model_cfg), on=device, checkpoint=checkpoint_path)
        return Madeleine(asked)

    install(monkeypatch, "madeleine.models.Model", create_model=create_model)
    return asked


def files(state):
    return {"model_config__json": json.dumps(CONFIG).encode(), "model__pt": pickled(state)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_the_package_is_asked(hub, spec, asked, precision):
    state = Madeleine().state_dict()
    hub.commit("MahmoodLab/madeleine", **files(state))
    encoder = make(spec, MadeleineSlideEncoder)
    encoder.load("cpu", precision)
    tiles = grid_bag(512)
    output = encoder.encode(tiles)
    assert asked == {
        "config": CONFIG,
        "on": "cpu",
        "checkpoint": None,
        "feats": ((1, 4, 512), torch.float32),
        "device": "cpu",
        "training": False,
        "autocast": precision == "bf16",
    }
    assert (output.embedding.shape, output.embedding.dtype) == ((512,), np.float32)
    wanted = tiles.only.mean(0) @ state["projector.weight"].T.numpy()
    wanted += state["projector.bias"].numpy()
    np.testing.assert_allclose(output.embedding, wanted, atol=1e-5 if precision == "fp32" else 0.05)


def test_a_file_of_data_parallel_training_is_loaded_strictly(hub, spec, asked):
    state = {f"module.{name}": tensor for name, tensor in Madeleine().state_dict().items()}
    hub.commit("MahmoodLab/madeleine", **files(state))
    encoder = make(spec, MadeleineSlideEncoder)
    encoder.load("cpu", "fp32")
    assert encoder._loaded().projector.bias.equal(state["module.projector.bias"])
    del state["module.projector.bias"]
    hub.commit("MahmoodLab/madeleine", **files(state))
    with pytest.raises(EncoderError, match="1 missing"):
        make(spec, MadeleineSlideEncoder).load("cpu", "fp32")


def test_its_configuration_is_part_of_what_it_is(hub, spec, asked):
    first = files(Madeleine().state_dict())
    hub.commit("MahmoodLab/madeleine", **first)
    said_first = make(spec, MadeleineSlideEncoder).weights()
    assert sorted(said_first) == ["config", "weights"]
    hub.commit("MahmoodLab/madeleine", model_config__json=b"{}")
    said_second = make(spec, MadeleineSlideEncoder).weights()
    assert said_second["weights"] == said_first["weights"]
    assert said_second["config"] != said_first["config"]


def test_a_file_by_its_path_has_its_configuration_beside_it(tmp_path, spec, asked):
    path = tmp_path / "model.pt"
    path.write_bytes(pickled(Madeleine().state_dict()))
    encoder = make(spec, MadeleineSlideEncoder, weights=str(path))
    with pytest.raises(EncoderError, match=r"no model_config.json beside .*model.pt"):
        encoder.load("cpu", "fp32")
    config = tmp_path / "model_config.json"
    config.write_text(json.dumps(CONFIG))
    encoder = make(spec, MadeleineSlideEncoder, weights=str(path))
    assert list(encoder.download()) == [config, path]
    encoder.load("cpu", "fp32")
    assert encoder.encode(grid_bag(512)).embedding.shape == (512,)


class Harmful:
    """A pickle that calls something."""

    def __reduce__(self):
        return os.getcwd, ()


def test_its_pickle_is_not_trusted(hub, spec, asked):
    hub.commit("MahmoodLab/madeleine", **files({"state_dict": Harmful()}))
    with pytest.raises(EncoderError, match="refused"):
        make(spec, MadeleineSlideEncoder).load("cpu", "fp32")


def test_without_the_package_the_command_is_told(registry, spec):
    with pytest.raises(MissingDependencyError, match="mahmoodlab/MADELEINE"):
        registry.create("slide_encoder", "madeleine", configure(spec))
