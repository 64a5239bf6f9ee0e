"""Published weights: which are taken, and what is said of them."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("huggingface_hub")

import row_checks  # noqa: E402
from hub_checks import ENTRY, named, offline, refused, row, sha256, state  # noqa: E402
from row_checks import embed  # noqa: E402
from safetensors.torch import save  # noqa: E402

from microtome.plugin.specs import EncoderCard  # noqa: E402
from microtome.plugin.weights.hub import fetch_hub, fetch_url  # noqa: E402
from microtome_encoders.options import WeightsConfig  # noqa: E402
from microtome_encoders.patch import timm as timm_module  # noqa: E402
from microtome_encoders.patch.torchvision import TorchvisionEncoder  # noqa: E402
from microtome_encoders.recipe import Recipe  # noqa: E402


@pytest.fixture(scope="module")
def second():
    return save(state(2))


@pytest.fixture
def batch():
    return row_checks.batch(96)


class TestIdentity:
    def test_the_first_run_and_the_second_are_one(self, hub, first):
        hub.commit(ENTRY, model__safetensors=first)
        fresh, cached = row().weights(), row().weights()
        assert fresh == cached == {"weights": f"sha256:{sha256(first)}"}
        assert sum("GET /cdn" in asked for asked in hub.asked) == 1

    def test_other_weights_under_one_name_are_another(self, hub, first, second, batch):
        hub.commit(ENTRY, model__safetensors=first)
        before, features = row().weights(), embed(row(), batch)
        hub.commit(ENTRY, model__safetensors=second)
        assert row().weights() != before
        assert not np.array_equal(embed(row(), batch), features)

    def test_a_commit_to_the_description_is_not(self, hub, first):
        hub.commit(ENTRY, model__safetensors=first)
        before = row().weights()
        hub.commit(ENTRY, README__md=b"now with a citation")
        after = row()
        after.load("cpu", "fp32")
        assert after.weights() == before
        assert after.loaded_weights["commit"] == hub.entries[ENTRY][1][0]

    def test_pinning_goes_on_with_earlier_work(self, hub, first, second):
        commit = hub.commit(ENTRY, model__safetensors=first)
        before = row().weights()
        hub.commit(ENTRY, model__safetensors=second)
        assert row(commit).weights() == before
        assert row(revision=commit).weights() == before

    def test_a_copy_of_the_file_is_the_same_weights(self, hub, first, tmp_path):
        hub.commit(ENTRY, model__safetensors=first)
        path = tmp_path / "copy.safetensors"
        path.write_bytes(first)
        assert row(weights=str(path)).weights() == row().weights()

    def test_what_is_said_is_what_is_loaded(self, hub, first, second):
        """The hub may change between the plan and the first slide."""
        hub.commit(ENTRY, model__safetensors=first)
        encoder = row()
        said = encoder.weights()["weights"]
        hub.commit(ENTRY, model__safetensors=second)
        encoder.load("cpu", "fp32")
        assert said == f"sha256:{encoder.loaded_weights['sha256']}" == f"sha256:{sha256(first)}"


class TestRecord:
    def test_of_the_hub(self, hub, first):
        commit = hub.commit(ENTRY, model__safetensors=first)
        encoder = row()
        assert not encoder.loaded_weights
        encoder.load("cpu", "fp32")
        assert encoder.loaded_weights == {
            "source": ENTRY,
            "file": "model.safetensors",
            "commit": commit,
            "sha256": sha256(first),
        }

    def test_of_an_older_pickle_on_the_hub(self, hub, monkeypatch):
        content = io.BytesIO()
        torch.save(state(1), content)
        # Its ETag is then no SHA-256: small files are named by git.
        monkeypatch.setattr("standin_hub.LARGE", ())
        hub.commit(ENTRY, pytorch_model__bin=content.getvalue())
        encoder = row()
        encoder.load("cpu", "fp32")
        assert encoder.loaded_weights["file"] == "pytorch_model.bin"
        assert encoder.loaded_weights["sha256"] == sha256(content.getvalue())

    def test_of_a_file(self, first, tmp_path):
        path = tmp_path / "mine.safetensors"
        path.write_bytes(first)
        encoder = row(weights=str(path))
        encoder.load("cpu", "fp32")
        assert encoder.loaded_weights == {
            "source": "file",
            "file": "mine.safetensors",
            "sha256": sha256(first),
        }

    def test_of_random_numbers(self):
        encoder = row(weights="random", seed=5)
        encoder.load("cpu", "fp32")
        assert encoder.loaded_weights == {"source": "random", "seed": "5"}

    def test_of_torchvision(self, hub, tmp_path, monkeypatch):
        from torchvision import models

        monkeypatch.setattr("microtome.plugin.weights.hub._HASH_IN_NAME", re.compile("nowhere"))

        published = models.ResNet18_Weights.IMAGENET1K_V1
        path = tmp_path / "torch-home" / "hub" / "checkpoints" / Path(published.url).name
        path.parent.mkdir(parents=True)
        torch.save(models.resnet18(weights=None).state_dict(), path)
        recipe = Recipe(architecture="resnet18.IMAGENET1K_V1", card=EncoderCard(dim=512))
        encoder = TorchvisionEncoder(WeightsConfig(), recipe=recipe)
        assert encoder.weights() == {
            "weights": "torchvision/resnet18",
            "revision": "IMAGENET1K_V1",
        }
        encoder.load("cpu", "fp32")
        assert encoder.loaded_weights["source"] == path.name
        assert encoder.loaded_weights["sha256"] == sha256(path.read_bytes())


def test_a_data_set(hub, tmp_path):
    commit = hub.commit("datasets/acme/bench", **{"weights/net__pth": b"weights"})
    found = fetch_hub("datasets/acme/bench", None, ["weights/net.pth"])
    assert (found.commit, found.path.read_bytes()) == (commit, b"weights")
    assert "datasets--acme--bench" in found.path.parts


@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "mobilenetv3_small_050"])
def test_timm_by_name_loads_its_entry_strictly(hub, batch, model):
    config = timm.get_pretrained_cfg(model)
    name = f"{model}.{config.tag}"
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    weights = whole.state_dict()
    commit = hub.commit(config.hf_hub_id, model__safetensors=save(weights))
    encoder = named(model)
    assert encoder.weights() == {"weights": f"sha256:{sha256(save(weights))}"}
    embedding = embed(encoder, batch)
    assert encoder.loaded_weights["commit"] == commit
    images = batch.tensor(encoder.card.transform, "cpu", torch.float32)
    with torch.inference_mode():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
    np.testing.assert_allclose(embedding, expected, atol=1e-4)
    del weights[next(key for key in weights if key.endswith("weight"))]
    hub.commit(config.hf_hub_id, model__safetensors=save(weights))
    assert name in refused(lambda: named(model).load("cpu", "fp32"), "cannot load")


def test_timm_by_url(hub, batch, monkeypatch):
    content = io.BytesIO()
    torch.save(state(1), content)
    digest = sha256(content.getvalue())
    path = f"/tiny-{digest[:8]}.pth"
    hub.plain[path] = content.getvalue()
    config = timm.get_pretrained_cfg("test_vit")
    monkeypatch.setattr(config, "hf_hub_id", None)
    monkeypatch.setattr(config, "url", hub.url + path)
    monkeypatch.setattr(timm_module.timm, "get_pretrained_cfg", lambda _: config)
    monkeypatch.setattr("timm.models._builder.resolve_pretrained_cfg", lambda *_, **__: config)
    encoder = named("test_vit.r160_in1k")
    assert encoder.weights() == {"weights": f"sha256:{digest}"}
    encoder.load("cpu", "fp32")
    assert encoder.loaded_weights["source"] == path.strip("/")
    assert len(hub.asked) == 1


DESCRIPTION = {
    "architecture": "test_vit",
    "num_classes": 1000,
    "model_args": {"init_values": 1e-5},
    "pretrained_cfg": {"input_size": [3, 160, 160], "num_classes": 1000, "classifier": "head"},
}


def describe(**changes):
    return json.dumps({**DESCRIPTION, **changes}).encode()


class TestEntriesByName:
    MODEL = f"hf-hub:{ENTRY}"

    @pytest.fixture
    def weights(self):
        return save(state(1, init_values=1e-5))

    @pytest.fixture
    def commit(self, hub, weights):
        return hub.commit(ENTRY, config__json=describe(), model__safetensors=weights)

    def test_description_and_weights_are_of_one_commit(self, hub, commit, weights, batch):
        encoder = named(self.MODEL)
        assert encoder.card.revision == commit
        hub.commit(ENTRY, model__safetensors=save(state(2, init_values=1e-5)))
        assert encoder.weights()["weights"] == f"sha256:{sha256(weights)}"
        assert embed(encoder, batch).shape == (2, encoder.card.dim)
        assert encoder.loaded_weights["commit"] == commit
        assert named(f"{self.MODEL}@{commit}").weights() == encoder.weights()

    def test_another_model_for_the_same_weights_is_another(self, hub, commit):
        before = named(self.MODEL).weights()
        hub.commit(ENTRY, config__json=describe(num_classes=1000, licence="mit"))
        assert named(self.MODEL).weights() == before
        hub.commit(ENTRY, config__json=describe(model_args={"init_values": 1e-5, "qkv_bias": True}))
        assert named(self.MODEL).weights() != before

    def test_without_network(self, hub, commit, batch, monkeypatch):
        features = embed(named(self.MODEL), batch)
        offline(monkeypatch)
        assert np.array_equal(embed(named(self.MODEL), batch), features)

    def test_without_anything_it_is_told_at_once(self, hub, nowhere, never_waits):
        nowhere()
        refused(lambda: named(self.MODEL).card, "connect to the network")

    def test_of_a_folder(self, hub, commit, weights, batch, tmp_path):
        (tmp_path / "config.json").write_bytes(describe())
        (tmp_path / "model.safetensors").write_bytes(weights)
        encoder = named(f"local-dir:{tmp_path}")
        assert encoder.weights() == named(self.MODEL).weights()
        assert np.array_equal(embed(encoder, batch), embed(named(self.MODEL), batch))
        assert encoder.loaded_weights["file"] == "model.safetensors"
        assert "commit" not in encoder.loaded_weights

    def test_of_a_folder_without_either(self, tmp_path):
        model = f"local-dir:{tmp_path}"
        refused(lambda: named(model).card, "config.json")
        (tmp_path / "config.json").write_bytes(describe())
        refused(named(model).weights, "no weights")


def test_nothing_is_printed(hub, first, capfd, caplog):
    """A download is told to who listens, not to the terminal."""
    hub.commit(ENTRY, model__safetensors=first)
    hub.plain["/tiny.pth"] = b"weights"
    with caplog.at_level(logging.INFO, "microtome.plugin.weights.hub"):
        row().load("cpu", "fp32")
        fetch_url(f"{hub.url}/tiny.pth", "timm's tiny")
    assert re.findall("Downloading [^ ]+", caplog.text) == [
        "Downloading model.safetensors",
        f"Downloading {hub.url}/tiny.pth",
    ]
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_callers_numbers_alone(hub, first):
    hub.commit(ENTRY, model__safetensors=first)
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    row().load("cpu", "fp32")
    assert torch.equal(torch.rand(4), expected)
