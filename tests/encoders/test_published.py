"""Tiny checkpoints in the layouts that models are published in, loaded as a run loads them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from published_layouts import DEPTH, dinov2, early_swin, shrink, with_lora  # noqa: E402
from row_checks import checks  # noqa: E402

from microtome.errors import EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.slide.batch import TileBatch  # noqa: E402
from microtome_encoders.catalogue import checkpoints, families  # noqa: E402
from microtome_encoders.catalogue import timm as of_timm  # noqa: E402
from microtome_encoders.patch.layouts import LAYOUTS  # noqa: E402
from microtome_encoders.patch.mettle import MettleEncoder  # noqa: E402
from microtome_encoders.patch.timm import TimmEncoder  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

BUILT = [spec.name for file in (of_timm, families, checkpoints) for spec in file.rows()]
"""The rows that timm builds."""


@pytest.fixture(scope="module")
def tiles():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    return TileBatch(pixels, np.zeros((2, 5), np.int32))


def spec_of(registry, name):
    return registry.find("encoder", name).spec


def tiny(registry, name, **options):
    """Make a row's encoder of a narrower and shallower network; a recipe's fields are changed."""
    spec = spec_of(registry, name)
    changes = {key: options.pop(key) for key in ("files", "sha256", "card") if key in options}
    recipe = replace(shrink(spec.fixed["recipe"]), **changes)
    loader = MettleEncoder if name == "mettle" else TimmEncoder
    return loader(configure(spec, **options), recipe=recipe)


def published(registry, name):
    """Give a tiny state in the layout that a row's weights are published in."""
    if name in ("openmidnight", "dino_bloom", "crown"):
        return {
            "openmidnight": lambda: dinov2(patch=14, registers=4, gated=True, hidden=128),
            "dino_bloom": lambda: {
                "teacher": {
                    **{f"backbone.{key}": value for key, value in dinov2(patch=14).items()},
                    "dino_head.mlp.0.weight": torch.ones(3, 3),
                    "ibot_head.last_layer.weight_g": torch.ones(3, 1),
                }
            },
            "crown": lambda: dinov2(patch=16, gated=True, chunks=1, hidden=128),
        }[name]()
    if name.endswith("ctranspath"):
        return {"model": early_swin()}
    encoder = tiny(registry, name, weights="random")
    encoder.load("cpu", "fp32")
    state = encoder._model.state_dict()
    if name == "crisp":
        return with_lora(state)
    if name == "resnet50_trunc":  # the hub's file is of the whole network
        full = timm.create_model("resnet50", layers=(1, 1, 1, 1), channels=(8, 16, 32, 64))
        return {**full.state_dict(), **state}
    return state


def as_bytes(state, *, safe=False):
    if safe:
        from safetensors.torch import save

        return save({key: value.contiguous() for key, value in state.items()})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def inner(state):
    """Give the tensors of a published state, for a test to change."""
    for key in ("teacher", "model"):
        if key in state:
            return state[key]
    return state


@pytest.fixture(scope="module")
def states(registry):
    """Give published states, each made once."""
    made = {}

    def give(name):
        if name not in made:
            made[name] = published(registry, name)
        return made[name]

    return give


def refusal(encoder):
    with pytest.raises(EncoderError) as info:
        encoder.load("cpu", "fp32")
    assert "\n" not in str(info.value)
    return str(info.value)


class TestPublishedLayouts:
    @checks("layout")
    @pytest.mark.parametrize("name", sorted(set(BUILT) - {"dino_bloom", "ctranspath"}))
    def test_loads_from_its_hub_entry(self, registry, hub, states, tiles, tmp_path, name):
        recipe = spec_of(registry, name).fixed["recipe"]
        file = recipe.files[0] if recipe.files else "model.safetensors"
        content = as_bytes(states(name), safe=file.endswith("safetensors"))
        commit = hub.commit(recipe.card.hub_id, **{file.replace(".", "__"): content})
        card = replace(shrink(recipe).card, revision=None)  # this hub has no such commit
        encoder = tiny(registry, name, sha256="", card=card)
        encoder.load("cpu", "fp32")
        embedding = encoder.encode(tiles).embedding
        assert embedding.shape == (2, encoder.card.dim)
        assert np.isfinite(embedding).all()
        assert np.ptp(embedding) > 0
        assert encoder.loaded_weights["commit"] == commit
        path = tmp_path / f"copy.{file.rpartition('.')[2]}"
        path.write_bytes(content)
        again = tiny(registry, name, sha256="", weights=str(path))
        again.load("cpu", "fp32")
        np.testing.assert_array_equal(again.encode(tiles).embedding, embedding)

    @pytest.mark.parametrize("name", BUILT)
    def test_a_missing_and_a_renamed_tensor_are_refused(self, registry, states, tmp_path, name):
        state = states(name)
        tensors = inner(state)
        last = ("1.weight", "norm.weight")
        (key, *_) = (k for k in reversed(tensors) if k.endswith(last) and "layer4" not in k)
        value = tensors.pop(key)
        path = tmp_path / "broken.pth"
        try:
            torch.save(state, path)
            assert "1 missing" in refusal(tiny(registry, name, weights=str(path)))
            tensors[f"renamed.{key}"] = value
            torch.save(state, path)
            text = refusal(tiny(registry, name, weights=str(path)))
            assert "1 missing" in text
            assert "1 unknown (" in text
        finally:
            tensors.pop(f"renamed.{key}", None)
            tensors[key] = value

    @pytest.mark.parametrize("name", BUILT)
    def test_a_file_that_it_saves_itself_is_taken_too(self, registry, tiles, tmp_path, name):
        first = tiny(registry, name, weights="random")
        first.load("cpu", "fp32")
        path = tmp_path / "own.pth"
        torch.save(first._model.state_dict(), path)
        again = tiny(registry, name, weights=str(path))
        again.load("cpu", "fp32")
        np.testing.assert_array_equal(again.encode(tiles).embedding, first.encode(tiles).embedding)


class TestOtherPlaces:
    @checks("layout", "dino_bloom")
    def test_a_file_by_its_address(self, registry, hub, states, tiles, monkeypatch):
        content = as_bytes(states("dino_bloom"))
        hub.plain["/DinoBloom-S.pth"] = content
        encoder = tiny(registry, "dino_bloom", sha256=hashlib.sha256(content).hexdigest())
        recipe = replace(encoder.recipe, url=f"{hub.url}/DinoBloom-S.pth")
        encoder = TimmEncoder(encoder.config, recipe=recipe)
        encoder.load("cpu", "fp32")
        assert encoder.encode(tiles).embedding.shape == (2, encoder.card.dim)
        other = TimmEncoder(encoder.config, recipe=replace(recipe, sha256="0" * 64))
        text = refusal(other)
        assert "DinoBloom-S.pth" in text
        assert "should be 00000000" in text

    def test_a_published_file_that_differs_is_refused(self, registry, hub, states):
        recipe = spec_of(registry, "chief_ctranspath").fixed["recipe"]
        key = recipe.files[0].replace(".", "__")
        hub.commit(recipe.card.hub_id, **{key: as_bytes(states("chief_ctranspath"))})
        assert f"should be {recipe.sha256[:8]}" in refusal(tiny(registry, "chief_ctranspath"))

    def test_what_only_a_person_can_download(self, registry):
        with pytest.raises(EncoderError, match=r"ctranspath\.pth on Google Drive") as info:
            TimmEncoder(
                configure(spec_of(registry, "ctranspath")),
                recipe=spec_of(registry, "ctranspath").fixed["recipe"],
            ).weights()
        assert "weights=PATH" in str(info.value)

    @checks("layout", "ctranspath")
    def test_a_file_that_is_not_the_published_one_is_noted(self, registry, states, tmp_path):
        path = tmp_path / "ctranspath.pth"
        torch.save(states("ctranspath"), path)
        encoder = tiny(registry, "ctranspath", weights=str(path))
        encoder.load("cpu", "fp32")
        assert encoder.notes == [
            f"The weights in {path} fit swin_tiny_patch4_window7_224, but are not its published "
            f"file (SHA-256 7c998680…)."
        ]


class TestLayouts:
    """That tensors not only fit, but mean the same."""

    def converted(self):
        """Give DINOv2's own tensors, and timm's model that took them over."""
        state = dinov2(patch=14, registers=4, gated=True, hidden=128)
        model = timm.create_model(
            "vit_giant_patch14_reg4_dinov2", img_size=224, num_classes=0, embed_dim=48, depth=2,
            num_heads=4, mlp_ratio=256 / 48,
        )  # fmt: skip
        model.load_state_dict(LAYOUTS["dinov2"](dict(state)))
        return state, model

    def test_registers_enter_as_in_dinov2(self):
        state, model = self.converted()
        patches = torch.randn(1, 256, 48, generator=torch.Generator().manual_seed(1))
        cls = state["cls_token"] + state["pos_embed"][:, :1]
        placed = patches + state["pos_embed"][:, 1:]
        wanted = torch.cat([cls, state["register_tokens"], placed], dim=1)
        torch.testing.assert_close(model._pos_embed(patches), wanted)

    def test_a_gated_mlp_gates_by_its_first_half(self):
        state, model = self.converted()
        tokens = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
        both = tokens @ state["blocks.1.mlp.w12.weight"].T + state["blocks.1.mlp.w12.bias"]
        hidden = torch.nn.functional.silu(both[:, :128]) * both[:, 128:]
        wanted = hidden @ state["blocks.1.mlp.w3.weight"].T + state["blocks.1.mlp.w3.bias"]
        torch.testing.assert_close(model.blocks[1].mlp(tokens), wanted, rtol=1e-4, atol=1e-3)

    def test_chunks_are_flattened_in_order(self):
        state = dinov2(patch=16, chunks=1)
        assert f"blocks.{DEPTH - 1}.{DEPTH - 1}.norm1.weight" in state
        flat = LAYOUTS["dinov2"](dict(state))
        for block in range(DEPTH):
            wanted = state[f"blocks.{block}.{block}.norm1.weight"]
            assert torch.equal(flat[f"blocks.{block}.norm1.weight"], wanted)

    def test_lora_is_added_by_twice_its_product(self):
        plain = {"blocks.0.attn.qkv.weight": torch.zeros(6, 2), "norm.bias": torch.ones(2)}
        state = with_lora(plain)
        prefix = "base_model.model.blocks.0.attn.qkv.lora_"
        product = state[f"{prefix}B.default.weight"] @ state[f"{prefix}A.default.weight"]
        merged = LAYOUTS["lora"](dict(state))
        torch.testing.assert_close(merged["blocks.0.attn.qkv.weight"], 2 * product)
        assert merged.keys() == plain.keys()

    def test_lora_of_another_rank_is_refused(self):
        state = with_lora({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)}, rank=4)
        with pytest.raises(EncoderError, match="of rank 4, where CRISP's is 8"):
            LAYOUTS["lora"](state)

    def test_half_an_update_is_not_dropped(self):
        state = with_lora({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)})
        del state["base_model.model.blocks.0.attn.qkv.lora_B.default.weight"]
        assert "blocks.0.attn.qkv.lora_A.default.weight" in LAYOUTS["lora"](state)

    def test_reductions_move_to_the_next_stage(self):
        state = early_swin()
        moved = LAYOUTS["early_swin"](dict(state))
        for stage in range(3):
            old = state[f"layers.{stage}.downsample.reduction.weight"]
            assert moved[f"layers.{stage + 1}.downsample.reduction.weight"] is old
        assert not any("attn_mask" in key or "position_index" in key for key in moved)

    def test_mettles_head_is_the_published_sum(self, registry, tiles):
        encoder = tiny(registry, "mettle", weights="random")
        encoder.load("cpu", "fp32")
        head = encoder._model.head
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 7)
        vector = torch.randn(48)
        wanted = vector + head.shift(vector)
        for weight, inward, outward in zip(head.mix(vector), head.P, head.Q, strict=True):
            wanted = wanted + weight * (outward @ (inward.T @ vector))
        torch.testing.assert_close(head(vector[None])[0], wanted, rtol=1e-4, atol=1e-4)
        encoder.load("cpu", "bf16")
        assert {p.dtype for p in encoder._model.head.parameters()} == {torch.float32}
        assert encoder.encode(tiles).embedding.shape == (2, 96)

    def test_the_truncated_resnet_ends_after_its_third_layer(self, registry, tiles):
        encoder = tiny(registry, "resnet50_trunc", weights="random")
        encoder.load("cpu", "fp32")
        parts, model = [], encoder._model
        model.layer3.register_forward_hook(lambda *given: parts.append(given[2]))
        embedding = encoder.encode(tiles).embedding
        np.testing.assert_allclose(embedding, parts[0].mean((2, 3)), atol=1e-5)
