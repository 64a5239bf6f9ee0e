"""Rows of open_clip: facts, architectures, QuickGELU, and published weights."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from open_clip.transformer import QuickGELU  # noqa: E402
from row_checks import (  # noqa: E402
    assert_near,
    batch,
    check_architecture,
    check_facts,
    checks,
    create,
    embed,
    parse_facts,
    shrunk,
)
from safetensors.torch import save, save_file  # noqa: E402

from microtome.errors import EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.catalogue.open_clip import TEXT  # noqa: E402
from microtome_encoders.options import HubConfig  # noqa: E402
from microtome_encoders.patch.open_clip import OpenClipEncoder  # noqa: E402
from microtome_encoders.patch.published import tower_of  # noqa: E402

# dim, input | resize, how, crop, filter, colours | precision, tile@mpp | commercial, access, place
FACTS = """
clip_rn50           1024 224 | 224 edge 224 bicubic openai | fp32 - | ? open timm/resnet50_clip.openai
clip_rn101           512 224 | 224 edge 224 bicubic openai | fp32 - | ? open timm/resnet101_clip.openai
clip_rn50x4          640 288 | 288 edge 288 bicubic openai | fp32 - | ? open timm/resnet50x4_clip.openai
clip_rn50x16         768 384 | 384 edge 384 bicubic openai | fp32 - | ? open timm/resnet50x16_clip.openai
clip_rn50x64        1024 448 | 448 edge 448 bicubic openai | fp32 - | ? open timm/resnet50x64_clip.openai
clip_vit_b_32        512 224 | 224 edge 224 bicubic openai | fp32 - | ? open timm/vit_base_patch32_clip_224.openai
clip_vit_b_16        512 224 | 224 edge 224 bicubic openai | fp32 - | ? open timm/vit_base_patch16_clip_224.openai
clip_vit_l_14        768 224 | 224 edge 224 bicubic openai | fp32 - | ? open timm/vit_large_patch14_clip_224.openai
clip_vit_l_14_336    768 336 | 336 edge 336 bicubic openai | fp32 - | ? open timm/vit_large_patch14_clip_336.openai
quilt_b_16_pmb       512 224 | 224 edge 224 bicubic openai | fp32 - | yes open wisdomik/QuiltNet-B-16-PMB
biomedclip           512 224 | 224 edge 224 bicubic openai | fp32 - | yes open microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
omiclip              768 224 | 224 edge 224 bicubic openai | fp32 - | yes gated WangGuangyuLab/Loki
"""  # noqa: E501 - a table
ROWS = parse_facts(FACTS)
OPENAI = [name for name in ROWS if name.startswith("clip_")]
VITS = [name for name in OPENAI if "vit" in name]
TINY = {"image_size": 224, "layers": 1, "width": 64, "patch_size": 32}
TINY_RESNET = {"layers": [1, 1, 1, 1], "width": 4, "patch_size": None}
TEXT_TOWER = {"context_length": 7, "vocab_size": 9, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def spec(registry):
    return lambda name: registry.find("encoder", name).spec


@pytest.mark.parametrize("name", ROWS)
def test_the_card_says_the_facts(spec, name):
    check_facts(spec(name), ROWS[name])


@checks("architecture")
@pytest.mark.parametrize("name", ROWS)
def test_the_card_holds_for_the_architecture(registry, spec, name):
    encoder = create(spec(name), registry, weights="random")
    assert encoder.card == spec(name).card
    check_architecture(encoder, spec(name).card)


@pytest.mark.parametrize("name", OPENAI)
def test_openais_facts_are_open_clips_own(spec, name):
    card, recipe = spec(name).card, spec(name).fixed["recipe"]
    architecture = recipe.architecture.removesuffix("-quickgelu")
    published = open_clip.pretrained.get_pretrained_cfg(architecture, "openai")
    assert published["hf_hub"] == f"{card.hub_id}/"
    assert card.transform.interpolation == published["interpolation"]
    assert published["resize_mode"] == "shortest"
    assert (card.transform.mean, card.transform.std) == (published["mean"], published["std"])
    config = open_clip.get_model_config(architecture)
    assert card.dim == config["embed_dim"]
    assert card.input_size == config["vision_cfg"]["image_size"]


def layers_of(model, kind):
    return [layer for layer in model.modules() if type(layer) is kind]


class TestQuickGelu:
    @pytest.mark.parametrize("name", VITS)
    def test_openais_vits_have_it(self, registry, spec, name):
        with torch.device("meta"):
            model = create(spec(name), registry, weights="random").build()
        assert len(layers_of(model, QuickGELU)) == len(model.transformer.resblocks)
        assert not layers_of(model, torch.nn.GELU)

    @pytest.mark.parametrize("name", ["omiclip", "biomedclip", "quilt_b_16_pmb"])
    def test_others_were_trained_without(self, registry, spec, name):
        with torch.device("meta"):
            model = create(spec(name), registry, weights="random").build()
        assert layers_of(model, torch.nn.GELU)
        assert not layers_of(model, QuickGELU)

    def test_the_plain_architecture_gives_other_features(self, spec, tmp_path):
        state = whole(quick=True)
        save_file(state, tmp_path / "clip.safetensors")
        weights = str(tmp_path / "clip.safetensors")
        quick, plain = (
            embed(tiny(spec, quick=quick, weights=weights), batch()) for quick in (True, False)
        )
        assert np.abs(quick - plain).max() > 1e-3
        with torch.inference_mode():
            model = open_clip.CLIP(16, TINY, TEXT_TOWER, quick_gelu=True).eval()
            model.load_state_dict(state)
            images = batch().tensor(spec("clip_vit_b_32").card.transform, "cpu", torch.float32)
            np.testing.assert_allclose(quick, model.encode_image(images).numpy(), atol=1e-5)


def whole(vision=TINY, *, quick=True):
    """Give all tensors of a tiny CLIP, text tower included, in the published layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.CLIP(16, vision, TEXT_TOWER, quick_gelu=quick)
        return {name: value.contiguous() for name, value in model.state_dict().items()}


def tiny(spec, name="clip_vit_b_32", vision=TINY, *, quick=True, **options):
    """Make a row's encoder of a tiny tower."""
    config = {"embed_dim": 16, "vision_cfg": vision, "quick_gelu": quick}
    recipe = shrunk(spec(name), 16, arguments=config)
    return OpenClipEncoder(configure(spec(name), **options), recipe=recipe)


@pytest.mark.parametrize("quick", [True, False])
def test_mixed_precision(spec, quick):
    full = embed(tiny(spec, quick=quick, weights="random"), batch())
    mixed = tiny(spec, quick=quick, weights="random")
    mixed.load("cpu", "bf16")
    assert_near(full, mixed.encode(batch()).embedding)


class TestWeights:
    @checks("layout")
    @pytest.mark.parametrize("name", OPENAI)
    def test_of_each_of_openais(self, hub, spec, name):
        """Whole CLIPs in open_clip's layout, as large as the images of the row and as patched."""
        recipe = spec(name).fixed["recipe"]
        vision = open_clip.get_model_config(recipe.architecture)["vision_cfg"]
        kind = {} if name in VITS else TINY_RESNET
        kept = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
        config = {**TINY, **kept, **kind}
        state = whole(config, quick=name in VITS)
        hub.commit(spec(name).card.hub_id, open_clip_model__safetensors=save(state))
        side = spec(name).card.input_size
        features = embed(tiny(spec, name, config, quick=name in VITS), batch(side))
        assert features.shape == (2, 16)
        random = tiny(spec, name, config, quick=name in VITS, weights="random")
        assert not np.allclose(features, embed(random, batch(side)))

    @pytest.mark.parametrize(
        "name", ["open_clip_model__safetensors", "open_clip_pytorch_model__bin"]
    )
    def test_of_the_hub(self, hub, spec, name):
        state, content = whole(), io.BytesIO()
        torch.save(state, content)
        hub.commit(
            spec("clip_vit_b_32").card.hub_id,
            **{name: save(state) if name.endswith("safetensors") else content.getvalue()},
        )
        encoder = tiny(spec)
        assert embed(encoder, batch()).shape == (2, 16)
        assert encoder.loaded_weights["file"] == name.replace("__", ".")

    def test_a_tower_without_its_text_is_taken_too(self, spec, tmp_path):
        state = whole()
        alone = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
        features = []
        for number, tensors in enumerate((state, alone)):
            path = tmp_path / f"{number}.safetensors"
            save_file(tensors, path)
            features.append(embed(tiny(spec, weights=str(path)), batch()))
        np.testing.assert_array_equal(*features)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("visual.conv1.weight", "1 missing"),
            ("visual.extra", "1 unknown"),
            ("another.weight", "outside visual.: another.weight"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, spec, tmp_path, name, told):
        state = whole()
        if name in state:
            del state[name]
        else:
            state[name] = torch.zeros(1)
        save_file(state, tmp_path / "x.safetensors")
        encoder = tiny(spec, weights=str(tmp_path / "x.safetensors"))
        with pytest.raises(EncoderError, match=told):
            encoder.load("cpu", "fp32")

    def test_text_is_named_not_guessed(self):
        """A tensor of neither tower is not dropped."""
        state = {"visual.a": 1, "positional_embedding": 2, "transformer.b": 3, "other": 4}
        kept = tower_of(state, "visual.", TEXT)
        assert kept == {"a": 1, "outside visual.: other": 4}


class TestOtherTowers:
    @checks("layout")
    @pytest.mark.parametrize("name", ["biomedclip", "quilt_b_16_pmb"])
    def test_biomedclips_layout(self, spec, hub, name):
        """A ViT of timm, its class token and a projection without bias."""
        config = {
            "embed_dim": 16,
            "vision_cfg": {
                **spec(name).fixed["recipe"].arguments["vision_cfg"],
                "timm_model_name": "test_vit",
                "image_size": 160,
            },
        }
        transform = replace(spec(name).card.transform, resize=160, crop=160)
        recipe = shrunk(spec(name), 16, arguments=config, card={"transform": transform})
        first = OpenClipEncoder(HubConfig(weights="random"), recipe=recipe)
        state = {f"visual.{n}": t.contiguous() for n, t in first.build().state_dict().items()}
        assert "visual.head.proj.bias" not in state
        state |= {"text.transformer.x": torch.zeros(1), "logit_scale": torch.zeros(())}
        hub.commit(recipe.card.hub_id, open_clip_model__safetensors=save(state))
        encoder = OpenClipEncoder(HubConfig(), recipe=recipe)
        assert embed(encoder, batch(160)).shape == (2, 16)

    @checks("layout", "omiclip")
    def test_omiclips_embeddings_have_length_1(self, spec, hub):
        """As CoCa's encode_image gives them, which is what other tools call."""
        config = {"embed_dim": 16, "vision_cfg": {**TINY, **COCA}}
        recipe = shrunk(spec("omiclip"), 16, arguments=config)
        model = OpenClipEncoder(HubConfig(weights="random"), recipe=recipe).build()
        state = {f"visual.{name}": value for name, value in model.state_dict().items()}
        content = io.BytesIO()
        torch.save(
            {"epoch": 1, "state_dict": {f"module.{n}": t for n, t in state.items()}}, content
        )
        hub.commit("WangGuangyuLab/Loki", checkpoint__pt=content.getvalue())
        features = embed(OpenClipEncoder(HubConfig(), recipe=recipe), batch())
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


COCA = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}


def test_an_open_clip_without_the_architecture_says_so(spec):
    recipe = replace(spec("clip_rn50").fixed["recipe"], architecture="ViT-X-quickgelu")
    encoder = OpenClipEncoder(HubConfig(weights="random"), recipe=recipe)
    with pytest.raises(EncoderError, match="no architecture ViT-X-quickgelu"):
        encoder.build()
