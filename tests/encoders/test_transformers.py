"""Rows of transformers: facts, architectures, and weights in the layouts that are published."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

from row_checks import (  # noqa: E402
    assert_near,
    batch,
    check_architecture,
    check_facts,
    check_parameters,
    checks,
    create,
    embed,
    parse_facts,
    shrunk,
)
from safetensors.torch import save, save_file  # noqa: E402
from transformers_layouts import dinov2, dinov3, linear, phikon, tensors, tower  # noqa: E402

from microtome.errors import EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.slide.batch import TileBatch  # noqa: E402
from microtome_encoders.options import HubConfig, Tokens, Variant  # noqa: E402
from microtome_encoders.patch import published  # noqa: E402
from microtome_encoders.patch.devices import seeded  # noqa: E402
from microtome_encoders.patch.gemma import GemmaEncoder  # noqa: E402
from microtome_encoders.patch.isight import ISightEncoder  # noqa: E402
from microtome_encoders.patch.transformers import TransformersEncoder  # noqa: E402

# dim, input | resize, how, crop, filter, colours | precision, tile@mpp | commercial, access, place
FACTS = """
dinov2_small         384 224 | 256 edge 224 bicubic imagenet | fp32 - | yes open facebook/dinov2-small
dinov2_base          768 224 | 256 edge 224 bicubic imagenet | fp32 224@0.5 | yes open facebook/dinov2-base
dinov2_large        1024 224 | 256 edge 224 bicubic imagenet | fp32 - | yes open facebook/dinov2-large
dinov2_giant        1536 224 | 256 edge 224 bicubic imagenet | fp32 - | yes open facebook/dinov2-giant
dinov3_vits16        384 224 | 224 exact - bilinear imagenet | fp32 - | ? gated facebook/dinov3-vits16-pretrain-lvd1689m
dinov3_vits16_plus   384 224 | 224 exact - bilinear imagenet | fp32 - | ? gated facebook/dinov3-vits16plus-pretrain-lvd1689m
dinov3_vitb16        768 224 | 224 exact - bilinear imagenet | fp32 - | ? gated facebook/dinov3-vitb16-pretrain-lvd1689m
dinov3_vitl16       1024 224 | 224 exact - bilinear imagenet | fp32 - | ? gated facebook/dinov3-vitl16-pretrain-lvd1689m
dinov3_vitl16_sat   1024 224 | 224 exact - bilinear sat493m | fp32 - | ? gated facebook/dinov3-vitl16-pretrain-sat493m
dinov3_vith16_plus  1280 224 | 224 exact - bilinear imagenet | fp32 - | ? gated facebook/dinov3-vith16plus-pretrain-lvd1689m
dinov3_vit7b16      4096 224 | 224 exact - bilinear imagenet | bf16 - | ? gated facebook/dinov3-vit7b16-pretrain-lvd1689m
dinov3_vit7b16_sat  4096 224 | 224 exact - bilinear sat493m | bf16 - | ? gated facebook/dinov3-vit7b16-pretrain-sat493m
phikon_v1            768 224 | 224 edge - bilinear imagenet | fp32 224@0.5 | no open owkin/phikon
phikon_v2           1024 224 | 224 edge 224 bilinear imagenet | fp32 224@0.5 | no open owkin/phikon-v2
midnight            3072 224 | 224 edge 224 bilinear half | fp16 224@0.5 | yes ? kaiko-ai/midnight
hibou_b              768 224 | 224 edge 224 bicubic hibou | fp16 224@0.5 | yes gated histai/hibou-b
hibou_l             1024 224 | 224 edge 224 bicubic hibou | fp16 224@0.5 | yes gated histai/hibou-L
plip                 512 224 | 224 edge 224 bicubic openai | fp32 - | no open vinid/plip
quilt_b_32           512 224 | 224 edge 224 bicubic openai | fp32 - | yes open wisdomik/QuiltNet-B-32
quilt_b_16           512 224 | 224 edge 224 bicubic openai | fp32 - | yes open wisdomik/QuiltNet-B-16
medsiglip           1152 448 | 448 exact - bilinear half | fp32 - | no gated google/medsiglip-448
gemma4_e4b           768 768 | 768 exact - bicubic none | bf16 224@0.5 | ? ? google/gemma-4-E4B
gemma4_26b          1152 768 | 768 exact - bicubic none | bf16 224@0.5 | ? ? google/gemma-4-26B-A4B
isight              1024 336 | 336 edge 336 bicubic openai | fp16 336@0.5 | ? ? nirschl-lab/iSight
"""  # noqa: E501 - a table
ROWS = parse_facts(FACTS)
GEMMAS = ("gemma4_e4b", "gemma4_26b")
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def spec(registry):
    return lambda name: registry.find("encoder", name).spec


@pytest.mark.parametrize("name", ROWS)
def test_the_card_says_the_facts(spec, name):
    check_facts(spec(name), ROWS[name])
    assert spec(name).card.revision is None
    assert not spec(name).remote_code


@checks("architecture")
@pytest.mark.parametrize("name", [name for name in ROWS if name not in GEMMAS])
def test_the_card_holds_for_the_architecture(registry, spec, name):
    encoder = create(spec(name), registry, weights="random")
    assert encoder.card == spec(name).card
    check_architecture(encoder, spec(name).card)


@checks("architecture")
@pytest.mark.parametrize("name", GEMMAS)
def test_the_card_holds_for_gemma(registry, spec, name):
    """Its pooler looks at values, which the meta device has none of: one layer is run instead."""
    card, recipe = spec(name).card, spec(name).fixed["recipe"]
    check_parameters(create(spec(name), registry, weights="random"), card)
    recipe = replace(recipe, arguments={**recipe.arguments, "num_hidden_layers": 1})
    encoder = GemmaEncoder(configure(spec(name), weights="random"), recipe=recipe)
    images = torch.rand(1, 3, card.input_size, card.input_size)
    with torch.inference_mode():
        assert encoder.forward(encoder.build().eval(), images).shape == (1, card.dim)


WIDE = {**SMALL, "intermediate_size": 64}
LAYOUTS = {
    "dinov2_small": (lambda: dinov2(1369, 14), SMALL, 32, 224),
    "dinov2_giant": (lambda: dinov2(1369, 14, gated=True), SMALL, 32, 224),
    "dinov3_vits16": (lambda: dinov3(), WIDE, 32, 224),
    "dinov3_vits16_plus": (lambda: dinov3(gated=True), WIDE, 32, 224),
    "dinov3_vit7b16": (lambda: dinov3(gated=True, biased=False), WIDE, 32, 224),
    "phikon_v1": (phikon, WIDE, 32, 224),
    "phikon_v2": (lambda: dinov2(196, 16), SMALL, 32, 224),
    "midnight": (lambda: dinov2(1369, 14, gated=True), SMALL, 64, 224),
    "hibou_b": (lambda: dinov2(256, 14, gated=True, registers=4), SMALL, 32, 224),
    "plip": (lambda: tower(patch=32, positions=50, clip=True), WIDE, 16, 224),
    "quilt_b_16": (lambda: tower(patch=16, positions=197, clip=True), WIDE, 16, 224),
    "medsiglip": (lambda: tower(patch=14, positions=1024, clip=False), WIDE, 32, 448),
}
SAME = {
    **dict.fromkeys(("dinov2_base", "dinov2_large"), "dinov2_small"),
    **dict.fromkeys(("dinov3_vitb16", "dinov3_vitl16", "dinov3_vitl16_sat"), "dinov3_vits16"),
    "dinov3_vith16_plus": "dinov3_vits16_plus",
    "dinov3_vit7b16_sat": "dinov3_vit7b16",
    "hibou_l": "hibou_b",
    "quilt_b_32": "plip",
}
"""Rows that are published in the layout of another."""
EVERY = {**LAYOUTS, **{name: LAYOUTS[other] for name, other in SAME.items()}}


def tiny(spec, name, **options):
    """Make a row's encoder of a tiny network."""
    _, smaller, dim, _ = EVERY[name]
    recipe = spec(name).fixed["recipe"]
    small = {**recipe.arguments, **smaller}
    if "projection_dim" in small:
        small["projection_dim"] = 16
    variants = {"cls": 32, "cls_mean": 64} if recipe.variants else {}
    recipe = shrunk(spec(name), dim, arguments=small, variants=variants)
    return TransformersEncoder(configure(spec(name), **options), recipe=recipe)


@checks("layout")
@pytest.mark.parametrize("name", EVERY)
def test_published_weights_are_loaded_from_the_hub(hub, spec, name):
    make, _, dim, side = EVERY[name]
    hub.commit(spec(name).card.hub_id, model__safetensors=save(make()))
    encoder = tiny(spec, name)
    features = embed(encoder, batch(side))
    assert features.shape == (2, dim)
    assert not np.array_equal(features, embed(tiny(spec, name, weights="random"), batch(side)))
    assert encoder.loaded_weights["file"] == "model.safetensors"


@pytest.mark.parametrize("name", LAYOUTS)
def test_mixed_precision(spec, name):
    tiles = batch(LAYOUTS[name][3])
    full = embed(tiny(spec, name, weights="random"), tiles)
    mixed = tiny(spec, name, weights="random")
    mixed.load("cpu", "bf16")
    assert_near(full, mixed.encode(tiles).embedding)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("way", ["lacks", "adds", "other shape"])
def test_weights_that_do_not_fit_are_refused(spec, tmp_path, name, way):
    state = LAYOUTS[name][0]()
    victim = next(
        key for key in state if key.endswith(("fc1.weight", "query.weight", "q_proj.weight"))
    )
    if way == "lacks":
        del state[victim]
    elif way == "adds":
        state["encoder.extra.weight"] = torch.zeros(2)
    else:
        state[victim] = torch.zeros(3, 5)
    save_file(state, tmp_path / "file.safetensors")
    encoder = tiny(spec, name, weights=str(tmp_path / "file.safetensors"))
    with pytest.raises(EncoderError, match="do not fit") as info:
        encoder.load("cpu", "fp32")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quilt_b_16", {"vision_config": {"hidden_act": "gelu"}}),
        ("phikon_v1", {"layer_norm_eps": 1e-6}),
        ("midnight", {"num_attention_heads": 3}),
    ],
)
def test_a_configuration_that_no_tensor_shows_is_compared(hub, spec, name, said):
    make, *_ = LAYOUTS[name]
    files = {"model__safetensors": save(make())}
    hub.commit(spec(name).card.hub_id, **files, config__json=json.dumps(said).encode())
    ((key, value),) = said.get("vision_config", said).items()
    with pytest.raises(EncoderError, match=f"says {key}={value} of its model"):
        tiny(spec, name).weights()


def test_the_rows_own_configuration_is_accepted(hub, spec):
    make, *_ = LAYOUTS["quilt_b_16"]
    said = {"vision_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "dropout": 0.5}}
    files = {"model__safetensors": save(make()), "config__json": json.dumps(said).encode()}
    hub.commit(spec("quilt_b_16").card.hub_id, **files)
    encoder = tiny(spec, "quilt_b_16")
    assert encoder.weights()
    assert encoder.notes == []


def test_an_entry_without_a_configuration_is_told(hub, spec):
    make, *_ = LAYOUTS["phikon_v2"]
    hub.commit(spec("phikon_v2").card.hub_id, model__safetensors=save(make()))
    encoder = tiny(spec, "phikon_v2")
    encoder.load("cpu", "fp32")
    assert ["could not be looked at" in note for note in encoder.notes] == [True]


def test_a_files_weights_are_the_hubs(hub, spec, tmp_path):
    state = LAYOUTS["midnight"][0]()
    hub.commit(spec("midnight").card.hub_id, model__safetensors=save(state))
    save_file(state, tmp_path / "file.safetensors")
    of_file = tiny(spec, "midnight", weights=str(tmp_path / "file.safetensors"))
    assert of_file.weights() == tiny(spec, "midnight").weights()
    of_hub = embed(tiny(spec, "midnight"), batch())
    np.testing.assert_array_equal(embed(of_file, batch()), of_hub)


def test_the_librarys_present_layout_is_taken_too(spec, tmp_path):
    first = tiny(spec, "phikon_v1", weights="random", seed=3)
    with seeded(3):
        save_file(first.build().state_dict(), tmp_path / "own.safetensors")
    again = tiny(spec, "phikon_v1", weights=str(tmp_path / "own.safetensors"))
    np.testing.assert_array_equal(embed(again, batch()), embed(first, batch()))


def test_what_is_loaded_computes_what_timm_computes(spec, tmp_path):
    """Hibou is DINOv2 with registers: timm's own, with the tensors brought there by hand."""
    state = LAYOUTS["hibou_b"][0]()
    save_file(state, tmp_path / "file.safetensors")
    ours = embed(tiny(spec, "hibou_b", weights=str(tmp_path / "file.safetensors")), batch())
    theirs = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        num_classes=0,
        img_size=224,
        embed_dim=32,
        depth=1,
        num_heads=2,
        init_values=1.0,
        mlp_layer=timm.layers.SwiGLUPacked,
        act_layer=torch.nn.SiLU,
        mlp_ratio=2 * 88 / 32,
    ).eval()
    layer, positions = "encoder.layer.0.", state["embeddings.position_embeddings"]
    parts = [f"{layer}attention.attention.{part}" for part in ("query", "key", "value")]
    renamed = {
        "cls_token": state["embeddings.cls_token"] + positions[:, :1],
        "reg_token": state["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
        "blocks.0.ls1.gamma": state[f"{layer}layer_scale1.lambda1"],
        "blocks.0.ls2.gamma": state[f"{layer}layer_scale2.lambda1"],
    }
    for kind in ("weight", "bias"):
        qkv = torch.cat([state[f"{part}.{kind}"] for part in parts])
        renamed[f"blocks.0.attn.qkv.{kind}"] = qkv
        for theirs_name, name in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("blocks.0.attn.proj", f"{layer}attention.output.dense"),
            ("blocks.0.norm1", f"{layer}norm1"),
            ("blocks.0.norm2", f"{layer}norm2"),
            ("blocks.0.mlp.fc1", f"{layer}mlp.weights_in"),
            ("blocks.0.mlp.fc2", f"{layer}mlp.weights_out"),
            ("norm", "layernorm"),
        ):
            renamed[f"{theirs_name}.{kind}"] = state[f"{name}.{kind}"]
    theirs.load_state_dict(renamed)
    images = batch().tensor(spec("hibou_b").card.transform, "cpu", torch.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(ours, theirs(images).numpy(), atol=2e-5)


class TestPooling:
    def output(self, tokens=9):
        hidden = torch.arange(2 * tokens * 3, dtype=torch.float32).view(2, tokens, 3)
        return SimpleNamespace(last_hidden_state=hidden)

    @pytest.mark.parametrize(("registers", "first"), [(0, 1), (4, 5)])
    def test_registers_are_left_out_of_the_mean(self, spec, registers, first):
        encoder = tiny(spec, "midnight", weights="random")
        output = self.output()
        model = SimpleNamespace(config=SimpleNamespace(num_register_tokens=registers))

        class Stand(torch.nn.Module):
            config = model.config

            def forward(self, pixel_values):
                return output

        joined = encoder.forward(Stand(), torch.zeros(2, 3, 4, 4))
        assert torch.equal(joined[:, :3], output.last_hidden_state[:, 0])
        assert torch.equal(joined[:, 3:], output.last_hidden_state[:, first:].mean(1))

    def test_midnights_variants(self, registry, spec):
        both = create(spec("midnight"), registry, weights="random")
        cls = create(spec("midnight"), registry, weights="random", variant=Variant.cls)
        assert (both.card.dim, cls.card.dim) == (3072, 1536)
        assert both.card.pooling != cls.card.pooling == "class token"
        small, large = (tiny(spec, "midnight", weights="random", variant=v) for v in Variant)
        np.testing.assert_array_equal(embed(small, batch()), embed(large, batch())[:, :32])


class TestISight:
    def make(self, spec, **options):
        recipe = shrunk(
            spec("isight"),
            32,
            arguments={**spec("isight").fixed["recipe"].arguments, **WIDE, "projection_dim": 16},
            variants={"cls": 32, "token_mean": 32},
        )
        return ISightEncoder(configure(spec("isight"), **options), recipe=recipe)

    @pytest.fixture
    def checkpoint(self):
        clip = tower(patch=14, positions=577, clip=True)
        state = {f"patch_encoder.{name}": value for name, value in clip.items()}
        state |= tensors(linear("visual_token_projection", 32, 32), linear("attention_a.0", 8, 32))
        content = io.BytesIO()
        torch.save({"epoch": 3, "model_state_dict": state, "test_loss": 0.1}, content)
        return content.getvalue()

    @checks("layout", "isight")
    def test_its_training_checkpoint(self, hub, spec, checkpoint):
        name = "checkpoints/iSight_model_checkpoint__pth"
        hub.commit("nirschl-lab/iSight", **{name: checkpoint})
        mean = embed(self.make(spec), batch(336))
        first = embed(self.make(spec, variant=Tokens.cls), batch(336))
        assert mean.shape == first.shape == (2, 32)
        assert not np.allclose(mean, first)

    def test_it_never_uses_the_untrained_norm(self, spec, tmp_path, checkpoint):
        """Its tokens are taken before CLIP's last norm and projection."""
        plain, changed = tmp_path / "plain.pth", tmp_path / "changed.pth"
        plain.write_bytes(checkpoint)
        state = torch.load(plain)
        for name in state["model_state_dict"]:
            if "post_layernorm" in name or "visual_projection" in name:
                state["model_state_dict"][name] += 1
        torch.save(state, changed)
        one, other = (embed(self.make(spec, weights=str(p)), batch(336)) for p in (plain, changed))
        np.testing.assert_array_equal(one, other)


class TestGemma:
    def make(self, spec, name="gemma4_26b", **options):
        arguments = {
            **spec(name).fixed["recipe"].arguments,
            **WIDE,
            "num_key_value_heads": 2,
            "head_dim": 16,
        }
        recipe = shrunk(spec(name), 32, arguments=arguments)
        return GemmaEncoder(configure(spec(name), **options), recipe=recipe)

    def state(self, spec, name="gemma4_26b"):
        model = self.make(spec, name, weights="random").build().state_dict()
        generator = torch.Generator().manual_seed(1)
        numbers = {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in model.items()}
        limits = {n: t for n, t in model.items() if n.endswith(("_min", "_max"))}
        return {f"model.vision_tower.{n}": t for n, t in {**numbers, **limits}.items()}

    @checks("layout")
    @pytest.mark.parametrize("name", GEMMAS)
    def test_only_the_towers_tensors_are_read(self, spec, tmp_path, name):
        state = self.state(spec, name) | {"model.language_model.x": torch.zeros(5)}
        save_file(state, tmp_path / "file.safetensors")
        encoder = self.make(spec, name, weights=str(tmp_path / "file.safetensors"))
        assert embed(encoder, batch()).shape == (2, 32)

    def test_its_tokens_are_the_soft_ones_row_by_row(self, spec):
        encoder, plain = (self.make(spec, weights="random") for _ in range(2))
        encoder.ask(*encoder.gives)
        encoder.load("cpu", "fp32")
        pixels = np.zeros((2, 224, 224, 3), np.uint8)
        pixels[1, 14:28, 42:56] = 255  # of 16 by 16 cells, the second row and the fourth column
        tiles = TileBatch(pixels, np.zeros((2, 5), np.int32))
        found = encoder.encode(tiles)
        assert found.tokens.shape == (2, 16, 16, 32)
        np.testing.assert_allclose(found.tokens.mean((1, 2)), found.embedding, atol=1e-4)
        np.testing.assert_array_equal(found.embedding, embed(plain, tiles))
        moved = np.abs(found.tokens[1] - found.tokens[0]).sum(-1)
        assert np.unravel_index(moved.argmax(), moved.shape) == (1, 3)

    def test_mixed_precision(self, spec):
        full = embed(self.make(spec, "gemma4_e4b", weights="random"), batch())
        mixed = self.make(spec, "gemma4_e4b", weights="random")
        mixed.load("cpu", "bf16")
        assert_near(full, mixed.encode(batch()).embedding)

    def test_the_index_says_where_it_is(self, hub, spec):
        files = {"model.vision_tower.a": "part-2.safetensors", "lm.b": "part-1.safetensors"}
        hub.commit(
            "google/gemma-4-26B-A4B",
            model__safetensors__index__json=json.dumps({"weight_map": files}).encode(),
            **{"part-2__safetensors": save(self.state(spec))},
        )
        encoder = self.make(spec)
        assert embed(encoder, batch()).shape == (2, 32)
        assert encoder.loaded_weights["file"] == "part-2.safetensors"

    def test_a_tower_in_two_files_is_refused(self, hub, spec):
        files = {"model.vision_tower.a": "1.safetensors", "model.vision_tower.b": "2.safetensors"}
        index = json.dumps({"weight_map": files}).encode()
        hub.commit("google/gemma-4-26B-A4B", model__safetensors__index__json=index)
        with pytest.raises(EncoderError, match="2 files"):
            self.make(spec).weights()

    def test_patches_and_positions_are_the_librarys(self, spec):
        """What its own image processor gives of a square tile."""
        pytest.importorskip("torchvision")
        from transformers import Gemma4ImageProcessor

        asked = {}

        class Stand(torch.nn.Module):
            def forward(self, pixel_values, pixel_position_ids):
                asked.update(patches=pixel_values, positions=pixel_position_ids)
                return SimpleNamespace(last_hidden_state=torch.zeros(2 * 256, 32))

        tiles = batch(256)
        encoder = self.make(spec, weights="random")
        images = tiles.tensor(encoder.card.transform, "cpu", torch.float32)
        encoder.forward(Stand(), images)
        pictures = [torch.from_numpy(tile).permute(2, 0, 1) for tile in tiles.pixels]
        theirs = Gemma4ImageProcessor()(images=pictures, return_tensors="pt")
        assert asked["patches"].shape == (2, 2304, 768)
        torch.testing.assert_close(
            asked["patches"], theirs["pixel_values"][:, :2304], atol=2.5 / 255, rtol=0
        )
        assert torch.equal(asked["positions"], theirs["image_position_ids"][:, :2304])


class TestVersions:
    @pytest.mark.parametrize(
        ("installed", "needs", "extra"),
        [
            ("4.50.0", "transformers>=4.57", "microtome[transformers]"),
            ("4.57.1", "transformers>=5", "microtome[transformers]"),
            ("5.1.0", "transformers>=4.57,<5", "microtome[transformers4]"),
        ],
    )
    def test_another_version_is_one_sentence_that_names_the_extra(
        self, monkeypatch, installed, needs, extra
    ):
        monkeypatch.setattr(published, "version", lambda name: installed)
        with pytest.raises(MissingDependencyError, match=re.escape(installed)) as info:
            published.check_version(needs, "a model")
        assert extra in str(info.value)
        assert needs in str(info.value)
        assert "\n" not in str(info.value)

    def test_a_row_looks_before_anything_is_loaded(self, monkeypatch, spec):
        monkeypatch.setattr(published, "version", lambda name: "4.40.0")
        recipe = spec("gemma4_e4b").fixed["recipe"]
        with pytest.raises(MissingDependencyError, match=r"google/gemma-4-E4B needs"):
            GemmaEncoder(HubConfig(), recipe=recipe)

    @pytest.mark.parametrize("installed", ["4.57.6", "5.0.0", "5.23.0", "5.24.0.dev0"])
    def test_what_serves_is_let_be(self, monkeypatch, installed):
        monkeypatch.setattr(published, "version", lambda name: installed)
        published.check_version("transformers>=4.57", "a model")
