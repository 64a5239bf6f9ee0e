"""Rows whose code lies in their hub entry: it runs at a pinned commit, and nowhere else."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from row_checks import batch, checks, embed, make_registry, shrunk  # noqa: E402
from safetensors.torch import save, save_file  # noqa: E402
from torch import nn  # noqa: E402

from microtome.errors import EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.options import Variant  # noqa: E402
from microtome_encoders.patch.devices import seeded  # noqa: E402
from microtome_encoders.patch.remote import RemoteEncoder  # noqa: E402

PHAET = "e0ce6e0ee248470bd8604823e412ca64048a2495"


@pytest.fixture(scope="module")
def spec():
    registry = make_registry()
    return lambda name: registry.find("encoder", name).spec


CONFIGURATION = b"""
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny_remote"

    def __init__(self, width=8, num_register_tokens=2, **kwargs):
        self.width, self.num_register_tokens = width, num_register_tokens
        super().__init__(**kwargs)
"""
MODELING = b"""
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_tiny import TinyConfig
from .layers_tiny import scale

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Linear(3, config.width)
        self.post_init()

    def _init_weights(self, module):
        pass

    def encode_image(self, images):
        return self.embed(images.mean((2, 3))), "tokens"

    def forward(self, pixel_values):
        tokens = scale(self.embed(pixel_values.flatten(2).transpose(1, 2)[:, :9]))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])
"""
ALONE = (
    b"BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])",
    b"tokens[:, 0]",
)
LAYERS = b"""
def scale(tokens):
    return 2 * tokens
"""
CLASSES = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}


class TestRemoteCode:
    """Code of a stand-in entry runs through the library's own machinery."""

    @pytest.fixture(autouse=True)
    def _modules(self, monkeypatch, tmp_path):
        """Keep what the library copies there out of the user's cache."""
        from transformers import dynamic_module_utils

        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        yield
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]

    @pytest.fixture
    def state(self):
        with seeded(4):
            layer = nn.Linear(3, 8)
        return {"embed.weight": layer.weight.detach(), "embed.bias": layer.bias.detach()}

    @pytest.fixture
    def commit(self, hub, state):
        return self.publish(hub, "Aignostics/RudolfV-2-S", state)

    def publish(self, hub, entry, state, *, classes=CLASSES, **said):
        config = {"model_type": "tiny_remote", "width": 8, "auto_map": classes, **said}
        return hub.commit(
            entry,
            config__json=json.dumps(config).encode(),
            configuration_tiny__py=CONFIGURATION,
            modeling_tiny__py=MODELING,
            layers_tiny__py=LAYERS,
            README__md=b"",
            model__safetensors=save(state, metadata={"format": "pt"}),
        )

    def make(self, spec, name="rudolfv2_s", dim=16, **options):
        variants = {"cls": 8, "cls_mean": 16} if spec(name).fixed["recipe"].variants else {}
        recipe = shrunk(spec(name), dim, variants=variants)
        return RemoteEncoder(configure(spec(name), **options), recipe=recipe)

    def tokens(self, encoder, state, tiles):
        images = tiles.tensor(encoder.card.transform, "cpu", torch.float32)
        pixels = images.flatten(2).transpose(1, 2)[:, :9]
        return 2 * nn.functional.linear(pixels, state["embed.weight"], state["embed.bias"])

    def test_it_runs_at_the_commit_that_is_given(self, spec, commit, state):
        encoder = self.make(spec, revision=commit)
        features = embed(encoder, batch())
        tokens = self.tokens(encoder, state, batch())
        np.testing.assert_allclose(features[:, :8], tokens[:, 0], atol=1e-5)
        np.testing.assert_allclose(features[:, 8:], tokens[:, 3:].mean(1), atol=1e-5)
        assert encoder.loaded_weights["commit"] == commit

    @checks("stand-in")
    @pytest.mark.parametrize("name", ["rudolfv2", "rudolfv2_b", "rudolfv2_s"])
    def test_the_variants_of_rudolfv2(self, hub, spec, state, name):
        commit = self.publish(hub, spec(name).card.hub_id, state)
        cls = self.make(spec, name, revision=commit, variant=Variant.cls)
        assert cls.card.dim == 8
        both = embed(self.make(spec, name, revision=commit), batch())
        np.testing.assert_array_equal(embed(cls, batch()), both[:, :8])

    @pytest.mark.parametrize("name", ["rudolfv2_s", "phaet", "mascaret"])
    def test_tokens_are_the_hidden_state_without_class_and_registers(self, hub, spec, state, name):
        commit = self.publish(hub, spec(name).card.hub_id, state, num_register_tokens=4)
        dim = 16 if name == "rudolfv2_s" else 8
        encoder, plain = (self.make(spec, name, dim=dim, revision=commit) for _ in range(2))
        assert encoder.gives == spec(name).gives == ("tokens",)
        encoder.ask("tokens")
        encoder.load("cpu", "fp32")
        found = encoder.encode(batch())
        tokens = self.tokens(encoder, state, batch())[:, 5:]
        np.testing.assert_allclose(found.tokens, tokens.reshape(2, 2, 2, 8), atol=1e-5)
        np.testing.assert_array_equal(found.embedding, embed(plain, batch()))

    def test_a_sequence_that_is_no_grid_is_told(self, spec, commit):
        """Two registers leave six of its nine tokens: a commit with others than it says."""
        encoder = self.make(spec, revision=commit)
        encoder.ask("tokens")
        encoder.load("cpu", "fp32")
        with pytest.raises(EncoderError, match="showed no tokens"):
            encoder.encode(batch())

    @pytest.mark.parametrize("name", ["genbio_pathfm", "conceptclip"])
    def test_a_model_that_gives_its_embedding_alone_has_no_tokens(self, spec, name):
        encoder = RemoteEncoder(configure(spec(name)), recipe=spec(name).fixed["recipe"])
        assert encoder.gives == spec(name).gives == ()

    @pytest.mark.parametrize("revision", ["", "main", "v1.0", "482d951"])
    def test_without_a_commit_it_is_refused_before_anything_is_fetched(
        self, hub, spec, commit, revision
    ):
        encoder = self.make(spec, revision=revision)
        for act in (encoder.weights, lambda: encoder.load("cpu", "fp32")):
            with pytest.raises(EncoderError, match="pinned") as info:
                act()
            assert "encoder.NAME.revision=COMMIT" in str(info.value)
            assert "\n" not in str(info.value)
        assert not hub.asked

    def test_random_weights_need_the_code_too(self, spec, commit):
        with pytest.raises(EncoderError, match="pinned"):
            self.make(spec, weights="random").load("cpu", "fp32")
        encoder = self.make(spec, weights="random", revision=commit)
        assert embed(encoder, batch()).shape == (2, 16)

    def test_a_pinned_row_asks_for_its_own_commit(self, hub, spec):
        encoder = RemoteEncoder(configure(spec("phaet")), recipe=spec("phaet").fixed["recipe"])
        with pytest.raises(EncoderError):
            encoder.weights()
        assert hub.asked
        assert all(PHAET in request for request in hub.asked)

    def test_what_comes_later_to_the_entry_does_not_run(self, hub, spec, commit, state):
        before = embed(self.make(spec, revision=commit), batch())
        hub.commit("Aignostics/RudolfV-2-S", layers_tiny__py=b"raise SystemExit('ran')")
        np.testing.assert_array_equal(embed(self.make(spec, revision=commit), batch()), before)

    @pytest.mark.parametrize("way", ["hub", "file", "random"])
    def test_other_code_for_the_same_weights_is_another_identity(
        self, hub, spec, commit, state, tmp_path, way
    ):
        later = hub.commit("Aignostics/RudolfV-2-S", layers_tiny__py=LAYERS.replace(b"2", b"3"))
        save_file(state, tmp_path / "x.safetensors")
        weights = {"file": str(tmp_path / "x.safetensors")}.get(way, way)
        one, other = (self.make(spec, revision=r, weights=weights) for r in (commit, later))
        assert one.weights() != other.weights()
        assert not np.allclose(embed(one, batch()), embed(other, batch()))
        again = self.make(spec, revision=commit, weights=weights)
        assert again.weights() == one.weights()
        assert [e.loaded_weights["code"] for e in (one, other)] == [commit, later]

    def test_code_that_was_changed_in_the_cache_is_refused(self, spec, commit, tmp_path):
        self.make(spec, revision=commit).weights()
        (layers,) = tmp_path.glob("hub-cache/models--*/snapshots/*/layers_tiny.py")
        layers.resolve().write_bytes(LAYERS.replace(b"2", b"3"))
        with pytest.raises(EncoderError, match=r"layers_tiny\.py is damaged"):
            self.make(spec, revision=commit).load("cpu", "fp32")

    def test_all_that_is_needed_is_downloaded(self, spec, commit):
        files = {"config.json", "configuration_tiny.py", "modeling_tiny.py", "layers_tiny.py"}
        whole = self.make(spec, revision=commit).download(lambda *_: None)
        assert {path.name for path in whole} == {*files, "model.safetensors"}
        code = self.make(spec, revision=commit, weights="random").download()
        assert {path.name for path in code} == files

    @pytest.mark.parametrize("classes", [None, {"AutoConfig": CLASSES["AutoConfig"]}])
    def test_an_entry_without_code_is_refused(self, hub, spec, state, classes):
        commit = self.publish(hub, "Aignostics/RudolfV-2-S", state, classes=classes)
        encoder = self.make(spec, revision=commit)
        for act in (encoder.weights, lambda: encoder.load("cpu", "fp32")):
            with pytest.raises(EncoderError, match=r"names no code for .*AutoModel") as info:
                act()
            assert "\n" not in str(info.value)

    @pytest.mark.parametrize("weights", ["hub", "random"])
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("phaet", {"pixel_mean": [0.5, 0.5, 0.5]}),
            ("phaet", {"pixel_std": [0.5, 0.5, 0.5]}),
            ("mascaret", {"pixel_mean": [0.485, 0.456, 0.406]}),
        ],
    )
    def test_other_colours_than_the_cards_are_refused(self, hub, spec, state, name, said, weights):
        commit = self.publish(hub, spec(name).card.hub_id, state, **said)
        encoder = self.make(spec, name, dim=8, revision=commit, weights=weights)
        with pytest.raises(EncoderError, match=f"says {next(iter(said))}=") as info:
            encoder.load("cpu", "fp32")
        assert "does not run" not in str(info.value)

    def test_the_cards_own_colours_are_accepted(self, hub, spec, state):
        own = {"pixel_mean": [0.485, 0.456, 0.406], "pixel_std": [0.229, 0.224, 0.225]}
        commit = self.publish(hub, spec("phaet").card.hub_id, state, **own)
        assert embed(self.make(spec, "phaet", dim=8, revision=commit), batch()).shape == (2, 8)

    def test_code_of_another_entry_is_refused(self, hub, spec, state):
        classes = {**CLASSES, "AutoModel": "else/where--modeling_tiny.TinyModel"}
        commit = self.publish(hub, "Aignostics/RudolfV-2-S", state, classes=classes)
        with pytest.raises(EncoderError, match="else/where"):
            self.make(spec, revision=commit).load("cpu", "fp32")

    def test_offline_it_is_all_in_the_cache(self, hub, spec, commit, monkeypatch):
        first = self.make(spec, revision=commit)
        first.weights()
        asked = len(hub.asked)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert embed(self.make(spec, revision=commit), batch()).shape == (2, 16)
        assert len(hub.asked) == asked

    def test_a_file_of_the_users_goes_with_the_pinned_code(self, spec, commit, state, tmp_path):
        save_file(state, tmp_path / "x.safetensors")
        of_file = self.make(spec, revision=commit, weights=str(tmp_path / "x.safetensors"))
        of_hub = self.make(spec, revision=commit)
        np.testing.assert_array_equal(embed(of_file, batch()), embed(of_hub, batch()))

    def test_weights_that_lack_something_are_refused(self, hub, spec, state):
        del state["embed.bias"]
        commit = self.publish(hub, "Aignostics/RudolfV-2-S", state)
        with pytest.raises(EncoderError, match=r"1 missing \(embed.bias\)"):
            self.make(spec, revision=commit).load("cpu", "fp32")

    def test_code_that_does_not_run_here_says_whose_it_is(self, hub, spec, commit):
        later = hub.commit("Aignostics/RudolfV-2-S", layers_tiny__py=b"import no_such_package")
        with pytest.raises(EncoderError, match="no_such_package") as info:
            self.make(spec, revision=later).load("cpu", "fp32")
        assert "does not run with transformers" in str(info.value)

    def test_code_that_cannot_be_had_is_no_question_of_versions(self, spec, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(EncoderError, match="HF_HUB_OFFLINE") as info:
            self.make(spec, revision="0" * 40, weights="random").load("cpu", "fp32")
        assert "does not run" not in str(info.value)

    @checks("stand-in")
    @pytest.mark.parametrize("name", ["phaet", "mascaret", "conceptclip", "genbio_pathfm"])
    def test_what_other_rows_ask_of_theirs(self, hub, spec, state, name):
        entry, call = spec(name).card.hub_id, spec(name).fixed["recipe"].pooling
        commit = self.publish(hub, entry, state)
        if call == "output":  # the model gives the embedding itself
            commit = hub.commit(entry, modeling_tiny__py=MODELING.replace(*ALONE))
        encoder = self.make(spec, name, dim=8, revision=commit)
        side = spec(name).card.input_size
        features = embed(encoder, batch(side))
        if call in ("pooler", "output"):
            expected = self.tokens(encoder, state, batch(side))[:, 0]
        else:
            images = batch(side).tensor(encoder.card.transform, "cpu", torch.float32)
            means = images.mean((2, 3))
            expected = nn.functional.linear(means, state["embed.weight"], state["embed.bias"])
        np.testing.assert_allclose(features, expected, atol=1e-5)
