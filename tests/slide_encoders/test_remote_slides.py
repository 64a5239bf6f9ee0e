"""Published models of slides: the calls that their publishers' code gets, and what becomes of it.

The code itself cannot be had here. Stand-ins with its signatures run through the library's own
machinery, from a stand-in hub.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import slide_models  # noqa: E402
from bag_checks import OFFSET, SIDE, make_bag  # noqa: E402
from row_checks import shrunk  # noqa: E402
from safetensors.torch import save, save_file  # noqa: E402

from microtome.errors import EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.run.slides import bagging  # noqa: E402
from microtome_encoders.bag_options import Prism2Embedding  # noqa: E402
from microtome_encoders.slide.care import CareEncoder  # noqa: E402
from microtome_encoders.slide.feather import FeatherEncoder  # noqa: E402
from microtome_encoders.slide.prism import PrismEncoder  # noqa: E402
from microtome_encoders.slide.prism2 import Prism2Encoder, causal_mask, offer_mask  # noqa: E402
from microtome_encoders.slide.titan import TitanEncoder  # noqa: E402

DIM, WIDTH, TILES = 6, 4, 9
ENCODERS = {
    "titan": TitanEncoder,
    "prism": PrismEncoder,
    "prism2": Prism2Encoder,
    "feather": FeatherEncoder,
    "feather_uni_v2": FeatherEncoder,
    "care": CareEncoder,
}
CODE = {
    "titan": slide_models.TITAN,
    "prism": slide_models.PRISM,
    "prism2": slide_models.PRISM2,
    "feather": slide_models.FEATHER,
    "feather_uni_v2": slide_models.FEATHER,
    "care": slide_models.CARE,
}
LAYERS = {
    "titan": {"proj": (WIDTH, DIM)},
    "prism": {"layers.0": (WIDTH, DIM)},
    "prism2": {
        "image_resampler": (WIDTH, DIM),
        "img_projection": (WIDTH + 1, WIDTH),
        "text_decoder": (WIDTH + 1, WIDTH + 1),
    },
    "feather": {"model.patch_embed": (WIDTH, DIM), "model.global_attn": (1, WIDTH)},
    "feather_uni_v2": {"model.patch_embed": (WIDTH, DIM), "model.global_attn": (1, WIDTH)},
    "care": {"proj": (WIDTH, DIM)},
}
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
).encode()

DATA = {
    "config.json": json.dumps({"model_type": "phi3", "hidden_size": 64}).encode(),
    "vocab.json": b'{"<|endoftext|>": 0}',
    "merges.txt": b"#version: 0.2\n",
}


@pytest.fixture(autouse=True)
def _modules(monkeypatch, tmp_path):
    """Keep what the library copies out of the user's cache, and the code to the test."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def state_of(name):
    """Draw the weights of a stand-in."""
    rng = np.random.default_rng(5)
    state = {}
    for layer, shape in LAYERS[name].items():
        state[f"{layer}.weight"] = torch.from_numpy(rng.standard_normal(shape)).float()
        state[f"{layer}.bias"] = torch.from_numpy(rng.standard_normal(shape[0])).float()
    return state


class Entry:
    """A stand-in entry on the stand-in hub, and its encoder."""

    def __init__(self, hub, registry, name):
        self.spec = registry.find("slide_encoder", name).spec
        self.hub, self.name, self.state = hub, name, state_of(name)
        self.companions = self.publish_companions()
        self.commit = self.publish()

    def publish_companions(self):
        found = []
        for each in self.spec.fixed["recipe"].companions:
            if each.commit:
                files = {name.replace(".", "__"): DATA.get(name, b"{}") for name in each.files}
                each = replace(each, commit=self.hub.commit(each.hub_id, **files))
            found.append(each)
        return tuple(found)

    def publish(self):
        more = {"tokenizer__json": TOKENIZER} if self.name == "titan" else {}
        state = self.state
        if self.name == "prism2":
            parts = {f"model-0000{i}-of-00002": [] for i in (1, 2)}
            for key in state:
                parts[f"model-0000{1 if 'image' in key else 2}-of-00002"].append(key)
            where = {key: f"{part}.safetensors" for part, keys in parts.items() for key in keys}
            index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
            more["model__safetensors__index__json"] = index.encode()
            for part, keys in parts.items():
                tensors = {key: state[key] for key in keys}
                more[f"{part}__safetensors"] = save(tensors, metadata={"format": "pt"})
            state = {}
        entry = self.spec.card.hub_id
        return slide_models.publish(self.hub, entry, CODE[self.name], state, **more)

    def make(self, **options):
        spec = self.spec
        latents = {"latents": (3, WIDTH)} if spec.card.latents else {}
        recipe = shrunk(
            spec,
            WIDTH,
            card=latents,
            need=replace(spec.fixed["recipe"].need, dim=DIM),
            companions=self.companions,
            variants={"base": WIDTH, "diagnostic": WIDTH + 1} if self.name == "prism2" else {},
            needs="",
        )
        options = {"revision": self.commit, **options}
        return ENCODERS[self.name](configure(spec, **options), recipe=recipe)

    def encode(self, bag=None, precision="fp32", **options):
        encoder = self.make(**options)
        encoder.load("cpu", precision)
        output = encoder.encode(bag or make_bag(TILES, DIM))
        (call,) = encoder._model.calls
        return encoder, output, call


@pytest.fixture
def entry(hub, registry):
    return lambda name: Entry(hub, registry, name)


def linear(state, layer, rows):
    return rows @ state[f"{layer}.weight"].numpy().T + state[f"{layer}.bias"].numpy()


def assert_features(call, bag):
    """Hold the features that a model got against those of the bag: (1, n, dim), float32."""
    assert call["features"].dtype == torch.float32
    np.testing.assert_array_equal(call["features"].numpy(), bag.only[None].astype(np.float32))


class TestCalls:
    """Arguments, dtypes, shapes and units, as the reference's section 3 has them."""

    def test_titan_gets_level_0_coordinates_and_the_tiles_side_there(self, entry):
        bag = make_bag(TILES, DIM)
        _, output, call = entry("titan").encode(bag)
        assert_features(call, bag)
        assert call["coords"].dtype == torch.int64
        np.testing.assert_array_equal(call["coords"].numpy(), bag.coords[None])
        assert call["coords"][0, 0].tolist() == list(OFFSET)
        assert call["size"] == SIDE
        assert isinstance(call["size"], np.int64)
        assert output.latents is None
        assert output.attention is None
        assert output.embedding.shape == (WIDTH,)

    def test_titan_embeds_the_grid_that_the_tiles_make(self, entry):
        at = entry("titan")
        bag = make_bag(TILES, DIM)
        _, output, _ = at.encode(bag)
        places = (bag.coords - OFFSET) // SIDE
        expected = linear(at.state, "proj", bag.only.sum(0)) + places.sum()
        np.testing.assert_allclose(output.embedding, expected, rtol=1e-5, atol=1e-4)

    def test_prism_gets_features_alone_and_gives_latents(self, entry):
        at = entry("prism")
        bag = make_bag(TILES, DIM)
        _, output, call = at.encode(bag)
        assert_features(call, bag)
        assert call["mask"] is None
        assert output.latents.shape == (3, WIDTH)
        expected = linear(at.state, "layers.0", bag.only[:3])
        np.testing.assert_allclose(output.latents, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(output.embedding, expected.mean(0), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("variant", Prism2Embedding)
    def test_prism2_gets_features_and_that_none_is_padding(self, entry, variant):
        at = entry("prism2")
        bag = make_bag(TILES, DIM)
        encoder, output, call = at.encode(bag, variant=variant)
        assert_features(call, bag)
        assert call["mask"].dtype == torch.int32
        assert call["mask"].tolist() == [[1] * TILES]
        expected = linear(at.state, "image_resampler", bag.only).mean(0)
        if variant is Prism2Embedding.diagnostic:
            read = linear(at.state, "img_projection", expected)
            expected = linear(at.state, "text_decoder", read)
        else:
            assert encoder._model.text_decoder is None
            assert encoder._model.img_projection is None
        assert output.embedding.shape == (encoder.card.dim,)
        np.testing.assert_allclose(output.embedding, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["feather", "feather_uni_v2"])
    def test_feather_gets_features_alone_and_gives_attention(self, entry, name):
        at = entry(name)
        bag = make_bag(TILES, DIM)
        encoder, output, call = at.encode(bag)
        assert_features(call, bag)
        assert call["mask"] is None
        rows = linear(at.state, "model.patch_embed", bag.only)
        scores = np.exp(linear(at.state, "model.global_attn", rows)[:, 0])
        np.testing.assert_allclose(output.attention, scores / scores.sum(), rtol=1e-4)
        np.testing.assert_allclose(output.embedding, output.attention @ rows, rtol=1e-4, atol=1e-5)
        assert encoder._model.model.classifier is None

    def test_care_gets_places_in_the_grid_and_how_many_there_are(self, entry):
        bag = make_bag(TILES, DIM)
        _, output, call = entry("care").encode(bag)
        assert_features(call, bag)
        assert call["count"].dtype == call["coords"].dtype == torch.int64
        assert call["count"].tolist() == [TILES]
        np.testing.assert_array_equal(call["coords"].numpy(), (bag.coords // SIDE)[None])
        assert call["coords"][0, :, 0].max() < 10
        assert output.embedding.shape == (WIDTH,)

    @pytest.mark.parametrize("name", sorted(ENCODERS))
    def test_half_precision_is_autocast_over_float32_features_and_weights(self, entry, name):
        at = entry(name)
        bag = make_bag(TILES, DIM, dtype=np.float16)
        _, full, call = at.encode(bag)
        assert not call["autocast"]
        encoder, half, call = at.encode(bag, precision="bf16")
        assert call["autocast"]
        assert_features(call, bag)
        assert {p.dtype for p in encoder._model.parameters()} == {torch.float32}
        assert half.embedding.dtype == np.float32
        np.testing.assert_allclose(half.embedding, full.embedding, rtol=0.03, atol=0.1)

    def test_prism2s_language_model_is_brought_to_the_precision(self, entry):
        encoder, _, _ = entry("prism2").encode(precision="bf16", variant=Prism2Embedding.diagnostic)
        assert {p.dtype for p in encoder._model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", sorted(ENCODERS))
class TestEveryModel:
    """Weights, code and refusals."""

    def test_a_file_of_the_users_gives_what_the_hub_gives(self, entry, name, tmp_path):
        at = entry(name)
        _, of_hub, _ = at.encode()
        save_file(at.state, tmp_path / "own.safetensors")
        encoder, of_file, _ = at.encode(weights=str(tmp_path / "own.safetensors"))
        np.testing.assert_array_equal(of_file.embedding, of_hub.embedding)
        assert encoder.loaded_weights["code"] == at.commit
        assert encoder.weights()["code"] == at.commit

    def test_all_that_is_downloaded_is_all_that_is_needed(self, entry, name, monkeypatch):
        at = entry(name)
        files = {path.name for path in at.make().download(lambda *_: None)}
        assert {"config.json", "configuration_tiny.py", "modeling_tiny.py"} < files
        assert {file for each in at.companions for file in each.files} < files
        assert any(file.endswith(".safetensors") for file in files)
        asked = len(at.hub.asked)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        at.encode()
        assert len(at.hub.asked) == asked

    def test_other_entries_are_read_at_pinned_commits_only(self, entry, name):
        at = entry(name)
        for each in at.companions:
            if each.commit:
                at.hub.commit(each.hub_id, **{n.replace(".", "__"): b"?" for n in each.files})
        at.encode()
        commits = {at.commit, *(each.commit for each in at.companions)}
        resolved = [a.partition("/resolve/")[2].split("/")[0] for a in at.hub.asked]
        assert {revision for revision in resolved if revision} <= commits

    def test_random_weights_come_from_the_seed_and_fetch_no_weights(self, entry, name):
        at = entry(name)
        one, again, other = (at.encode(weights="random", seed=seed)[1] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.embedding, again.embedding)
        assert not np.array_equal(one.embedding, other.embedding)
        assert not [request for request in at.hub.asked if "safetensors" in request]

    def test_weights_that_lack_something_are_refused(self, entry, name, tmp_path):
        at = entry(name)
        del at.state[sorted(at.state)[0]]
        save_file(at.state, tmp_path / "own.safetensors")
        with pytest.raises(EncoderError, match=r"\d missing"):
            at.make(weights=str(tmp_path / "own.safetensors")).load("cpu", "fp32")

    def test_the_installed_transformers_must_serve(self, registry, name):
        import transformers

        if transformers.__version__.startswith("4."):
            pytest.skip("it does serve")
        spec = registry.find("slide_encoder", name).spec
        with pytest.raises(
            MissingDependencyError, match=r"pip install 'microtome\[transformers4\]'"
        ):
            ENCODERS[name](configure(spec), **spec.fixed)


class TestRefusals:
    """What goes wrong with any of them."""

    def test_features_of_another_width_are_refused(self, entry):
        encoder = entry("titan").make(weights="random")
        encoder.load("cpu", "fp32")
        for bag in (make_bag(TILES, DIM + 1), make_bag(0, DIM)):
            with pytest.raises(EncoderError, match=rf"takes \(tiles, {DIM}\) features of"):
                encoder.encode(bag)

    def test_code_that_fails_on_a_slide_says_whose_it_is(self, entry, monkeypatch):
        encoder = entry("titan").make(weights="random")
        encoder.load("cpu", "fp32")
        monkeypatch.setattr(encoder, "call", lambda *_: {}["attn"])
        with pytest.raises(EncoderError, match=r"code of .* fails on the 9 tiles of S-1: 'attn'"):
            encoder.encode(make_bag(TILES, DIM))

    def test_an_output_of_another_shape_is_refused(self, entry):
        encoder = entry("titan").make(weights="random")
        encoder.load("cpu", "fp32")
        encoder.__dict__["card"] = replace(encoder.card, dim=WIDTH + 2)
        with pytest.raises(EncoderError, match=rf"gave .*{WIDTH}\), where \({WIDTH + 2},\) is"):
            encoder.encode(make_bag(TILES, DIM))

    def test_where_memory_is_short_it_says_so(self, entry, monkeypatch):
        encoder = entry("titan").make(weights="random")
        encoder.load("cpu", "fp32")

        def short(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(encoder, "call", short)
        with pytest.raises(EncoderError, match=r"cpu has no memory for .* on all tiles of S-1"):
            encoder.encode(make_bag(TILES, DIM))


def test_prism2s_identity_is_that_of_all_parts(entry):
    at = entry("prism2")
    first = at.make()
    assert first.weights() == at.make().weights()
    at.state["text_decoder.bias"] += 1
    at.commit = at.publish()
    other = at.make()
    assert other.weights()["weights"] != first.weights()["weights"]
    other.load("cpu", "fp32")
    assert f"sha256:{other.loaded_weights['sha256']}" == other.weights()["weights"]


def test_a_damaged_part_is_refused(entry, tmp_path):
    at = entry("prism2")
    at.make().download(lambda *_: None)
    (part,) = tmp_path.glob("hub-cache/models--*/snapshots/*/model-00002-of-00002.safetensors")
    part.resolve().write_bytes(b"garbage")
    with pytest.raises(EncoderError, match=r"model-00002-of-00002\.safetensors is damaged"):
        at.make().load("cpu", "fp32")


class TestMask:
    """What a language model's tokens look at, as Phi-3 had it."""

    least = torch.finfo(torch.float32).min

    def mask(self, attention_mask=None, *, tokens=4, start=0, window=None):
        class Config:
            sliding_window = window

        return causal_mask(
            attention_mask,
            sequence_length=tokens - start,
            target_length=tokens,
            dtype=torch.float32,
            device=torch.device("cpu"),
            cache_position=torch.arange(start, tokens),
            batch_size=2,
            config=Config(),
            past_key_values=None,
        )

    def test_nobody_looks_ahead(self):
        mask = self.mask()
        assert mask.shape == (2, 1, 4, 4)
        expected = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), self.least)
        assert torch.equal(mask[1, 0], expected)

    def test_nobody_looks_at_padding(self):
        mask = self.mask(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
        assert (mask[0, 0, :, 0] == self.least).all()
        assert mask[1, 0, :, 0].eq(0).all()

    def test_a_window_limits_how_far_back(self):
        mask = self.mask(window=2)
        assert mask[0, 0, 3].tolist() == [self.least, self.least, 0, 0]

    def test_later_tokens_know_their_place(self):
        assert self.mask(start=2)[0, 0].tolist() == [[0, 0, 0, self.least], [0, 0, 0, 0]]

    def test_a_finished_mask_is_given_back(self):
        finished = torch.zeros(1, 1, 2, 2)
        assert self.mask(finished) is finished

    def test_it_is_offered_where_the_library_has_none(self, monkeypatch):
        from transformers.models.phi3.modeling_phi3 import Phi3Model

        name = "_prepare_4d_causal_attention_mask_with_cache_position"
        monkeypatch.setattr(Phi3Model, name, None, raising=False)
        monkeypatch.delattr(Phi3Model, name)
        offer_mask()
        assert getattr(Phi3Model, name) is causal_mask


def test_titans_memory_grows_with_the_square_of_the_tiles(entry):
    encoder = entry("titan").make()
    few, many = (encoder.memory(tiles, (100, 100)) for tiles in (5_000, 50_000))
    assert 90 < many / few < 110
    assert 95e9 < encoder.memory(25_000, (300, 200)) < 105e9
    assert encoder.memory(1, (1000, 1000)) > encoder.memory(1, (10, 10)) + 10_000_000
    # The bias alone, in float32 for twelve heads, is less.
    assert encoder.memory(10_000, (100, 100)) > 4 * 12 * 10_001**2


def test_titan_is_refused_where_main_memory_is_short_though_the_gpu_has_it(entry, monkeypatch):
    """Its bias of distances is made there: about 100 GB for 25,000 tiles."""
    encoder = entry("titan").make()
    assert 95e9 < encoder.host_memory(25_000, (300, 200)) < 105e9
    choice = SimpleNamespace(name="titan", kind="slide_encoder")
    planned = SimpleNamespace(
        name="titan",
        kind=choice.kind,
        made=SimpleNamespace(choice=choice),
        model=encoder,
        device="cuda",
    )
    free = {"cpu": 64e9, "cuda": 141e9}
    monkeypatch.setattr(bagging, "free_memory", free.get)
    bagging.refuse_large(planned, 5_000, (100, 80), row_bytes=3072, cap=None)
    with pytest.raises(EncoderError, match=r"59\.\d GiB are free on cpu"):
        bagging.refuse_large(planned, 25_000, (300, 200), row_bytes=3072, cap=None)
    free["cpu"] = 200e9
    bagging.refuse_large(planned, 25_000, (300, 200), row_bytes=3072, cap=None)


def test_prisms_memory_is_linear(entry):
    encoder = entry("prism").make()
    assert encoder.memory(20_000, (1, 1)) == 2 * encoder.memory(10_000, (500, 9))
    assert encoder.memory(1, (1, 1)) > 4 * 2 * 512 * 8
