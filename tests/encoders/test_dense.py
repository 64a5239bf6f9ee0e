"""Token grids and the class token's attention, held against what small models compute openly."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from row_checks import create  # noqa: E402

from microtome.errors import ConfigError, EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.plugin.specs import EncoderCard, Transform  # noqa: E402
from microtome.slide.batch import TileBatch  # noqa: E402
from microtome_encoders.options import HubConfig, Variant, VariantConfig  # noqa: E402
from microtome_encoders.patch.base import TorchEncoder  # noqa: E402
from microtome_encoders.patch.dense import Anatomy, Overhearing  # noqa: E402
from microtome_encoders.patch.timm import TimmEncoder  # noqa: E402
from microtome_encoders.recipe import Recipe  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32
RANDOM = {"weights": "random", "seed": 3}
VIT = {"img_size": SIDE, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
REGISTERS = {**VIT, "reg_tokens": 4, "init_values": 0.3, "qk_norm": True}
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": SIDE,
    "patch_size": 8,
}
EACH_LIBRARY = (
    *("uni_v1", "virchow_v2", "lunit_resnet50_bt", "ctranspath", "resnet50_trunc", "mettle"),
    *("keep", "conch_v1", "vit_b_16", "resnet18", "convnext_tiny", "handcrafted"),
)
NEEDS = {
    "transformers": (
        *("dinov2_small", "hibou_b", "plip", "medsiglip", "phikon_v1", "isight", "gemma4_e4b"),
        *("rudolfv2", "rudolfv2_b", "rudolfv2_s", "phaet", "mascaret"),
        *("genbio_pathfm", "conceptclip"),
    ),
    "open_clip": ("clip_vit_b_32", "clip_rn50", "biomedclip", "omiclip"),
}


def batch(side=SIDE, count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return TileBatch(pixels, np.zeros((count, 5), np.int32))


def card(dim, side=SIDE):
    return EncoderCard(dim=dim, input_size=side, transform=Transform(resize=side, crop=side))


def timm_maker(architecture, arguments, dim=48, **values):
    def make():
        recipe = Recipe(architecture=architecture, card=card(dim), arguments=arguments, **values)
        config = VariantConfig if values.get("variants") else HubConfig
        return TimmEncoder(config(**RANDOM), recipe=recipe)

    return make


def transformers_maker(architecture, dim=48, pooling="cls", **arguments):
    def make():
        from microtome_encoders.patch.transformers import TransformersEncoder

        recipe = Recipe(
            architecture=architecture,
            card=card(dim),
            arguments={**TINY, **arguments},
            pooling=pooling,
        )
        return TransformersEncoder(HubConfig(**RANDOM), recipe=recipe)

    return make


def open_clip_maker(**vision):
    def make():
        from microtome_encoders.patch.open_clip import OpenClipEncoder

        tower = {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, **vision}
        arguments = {"embed_dim": 32, "vision_cfg": tower}
        recipe = Recipe(architecture="tiny", card=card(32), arguments=arguments)
        return OpenClipEncoder(HubConfig(**RANDOM), recipe=recipe)

    return make


def torchvision_vit():
    from torchvision.models import VisionTransformer

    from microtome_encoders.patch.torchvision import TorchvisionEncoder

    class Tiny(TorchvisionEncoder):
        """torchvision's names are of large models alone."""

        card = card(48)

        def build(self):
            model = VisionTransformer(SIDE, 8, 2, 3, 48, 96)
            model.heads = torch.nn.Identity()
            return model

    recipe = Recipe(architecture="vit_b_16", card=card(48))
    return Tiny(HubConfig(**RANDOM), recipe=recipe)


def sharpen(model):
    """Make attention differ from token to token, which random weights hardly do."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("qkv.w", "q_proj.w", "query.w")):
                weight.mul_(40)
            if "in_proj_w" in name:  # torch begins with larger weights
                weight.mul_(2)


def load(make, *asked, precision="fp32"):
    encoder = make()
    encoder.ask(*asked)
    encoder.load("cpu", precision)
    sharpen(encoder._loaded())
    return encoder


def weights_of_timm(model, images):
    """Let the last block compute its softmax openly."""
    attention = model.blocks[-1].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda layer, args, output: seen.append(output))
    model(images)
    return seen[-1]


def weights_of_transformers(model, images):
    model.set_attn_implementation("eager")
    return model(pixel_values=images, output_attentions=True).attentions[-1]


def weights_of_torch(model, images):
    """Ask torch's own layer for its weights, which it gives on its slow path."""
    layer = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)][-1]
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    hook.remove()
    tokens = seen[-1]
    return layer(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)[1]


VITS = {
    "timm": (timm_maker("vit_tiny_patch16_224", VIT), 1, weights_of_timm),
    "timm registers": (timm_maker("vit_tiny_patch16_224", REGISTERS), 5, weights_of_timm),
    "timm rotary": (
        timm_maker("eva02_tiny_patch14_224", {**VIT, "ref_feat_shape": (4, 4)}),
        1,
        weights_of_timm,
    ),
    "timm biased": (timm_maker("beit_base_patch16_224", VIT), 1, weights_of_timm),
    "transformers": (transformers_maker("ViTModel"), 1, weights_of_transformers),
    "transformers registers": (
        transformers_maker("Dinov2WithRegistersModel", num_register_tokens=4, pooling="pooler"),
        5,
        weights_of_transformers,
    ),
    "transformers rotary": (
        transformers_maker("DINOv3ViTModel", num_register_tokens=4, pooling="pooler"),
        5,
        weights_of_transformers,
    ),
    "transformers clip": (
        transformers_maker(
            "CLIPVisionModelWithProjection", dim=32, projection_dim=32, pooling="projected"
        ),
        1,
        weights_of_transformers,
    ),
    "open_clip": (open_clip_maker(head_width=16), 1, weights_of_torch),
    "torchvision": (torchvision_vit, 1, weights_of_torch),
}
MAPS = {
    "timm resnet": timm_maker("resnet18", {}, dim=512),
    "timm swin": timm_maker(
        "swin_tiny_patch4_window7_224",
        {"img_size": SIDE, "window_size": 4, "depths": (1, 1), "embed_dim": 24},
    ),
    "transformers siglip": transformers_maker("SiglipVisionModel", pooling="pooler"),
    "open_clip resnet": open_clip_maker(layers=[1, 1, 1, 1], width=16, head_width=16),
}


def needs(name):
    library = name.split()[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library}")


@pytest.mark.parametrize("name", VITS)
def test_a_vit_gives_its_patch_tokens_and_how_its_class_token_attends_to_them(name):
    needs(name)
    make, prefix, weights_of = VITS[name]
    tiles = batch()
    encoder = load(make, "tokens", "attention")
    output = encoder.encode(tiles)
    heads = output.attention.shape[1]
    width = 64 if name == "open_clip" else 48
    assert output.tokens.shape == (3, 4, 4, width)
    assert output.attention.shape == (3, heads, 4, 4)

    images = tiles.tensor(encoder.card.transform, "cpu", torch.float32)
    other = load(make)
    with torch.inference_mode():
        row = weights_of(other._loaded(), images)[:, :, 0].numpy()
    assert row.shape == (3, heads, prefix + 16)
    assert row.max() > 2 / row.shape[-1]
    assert np.allclose(output.attention.reshape(3, heads, 16), row[..., prefix:], atol=1e-6)
    left_out = row[..., :prefix].sum(-1)
    assert np.allclose(output.attention.sum((2, 3)) + left_out, 1, atol=1e-5)


@pytest.mark.parametrize("name", [*VITS, *MAPS])
def test_an_embedding_is_the_same_to_the_bit_whatever_else_is_asked_for(name):
    needs(name)
    make = MAPS.get(name) or VITS[name][0]
    side = 224 if name == "timm resnet" else SIDE
    plain = load(make).encode(batch(side))
    asked = load(make, *make().gives).encode(batch(side))
    assert plain.tokens is None
    assert plain.attention is None
    assert asked.tokens is not None
    assert np.array_equal(plain.embedding, asked.embedding)


@pytest.mark.parametrize("name", MAPS)
def test_a_model_without_class_token_gives_its_last_map_and_no_attention(name):
    needs(name)
    encoder = MAPS[name]()
    assert encoder.gives == ("tokens",)
    output = load(MAPS[name], "tokens").encode(batch())
    assert output.attention is None
    assert output.tokens.shape[:1] == (3,)
    assert output.tokens.shape[1] == output.tokens.shape[2]
    if name in ("timm resnet", "timm swin"):
        assert np.allclose(output.tokens.mean((1, 2)), output.embedding, atol=1e-5)


def test_the_mean_of_the_tokens_is_the_mean_in_an_embedding_of_class_and_mean():
    variants = {"cls": 48, "cls_mean": 96}
    arguments = {**REGISTERS, "global_pool": ""}
    make = timm_maker("vit_tiny_patch16_224", arguments, dim=96, variants=variants)
    encoder = make()
    assert encoder.config.variant is Variant.cls_mean
    output = load(make, "tokens").encode(batch())
    assert np.allclose(output.tokens.mean((1, 2)), output.embedding[:, 48:], atol=1e-6)


def test_tokens_lie_row_by_row_from_the_top_left():
    encoder = load(VITS["timm"][0], "tokens")
    black = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    black[1, 8:16, 24:32] = 255
    tokens = encoder.encode(TileBatch(black, np.zeros((2, 5), np.int32))).tokens
    moved = np.abs(tokens[1] - tokens[0]).sum(-1)
    assert np.unravel_index(moved.argmax(), moved.shape) == (1, 3)


def intermediates_of_timm(model, images):
    options = {"norm": True, "intermediates_only": True}
    return model.forward_intermediates(images, indices=1, **options)[0].permute(0, 2, 3, 1)


def intermediates_of_open_clip(model, images):
    options = {"normalize_intermediates": True, "intermediates_only": True}
    found = model.forward_intermediates(images, indices=1, **options)
    return found["image_intermediates"][0].permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["timm registers", "timm rotary", "open_clip"])
def test_tokens_are_what_the_library_gives_of_its_last_block(name):
    needs(name)
    make = VITS[name][0]
    tiles = batch()
    tokens = load(make, "tokens").encode(tiles).tokens
    intermediates = intermediates_of_open_clip if name == "open_clip" else intermediates_of_timm
    with torch.inference_mode():
        images = tiles.tensor(make().card.transform, "cpu", torch.float32)
        theirs = intermediates(load(make)._loaded(), images)
    assert np.allclose(tokens, theirs.numpy(), atol=1e-5)


def test_half_precision_moves_attention_little():
    make = VITS["timm registers"][0]
    exact = load(make, "attention").encode(batch())
    half = load(make, "attention", precision="bf16").encode(batch())
    assert half.attention.dtype == np.float32
    assert np.abs(half.attention - exact.attention).max() < 0.02
    assert (half.attention.sum((2, 3)) < 1).all()


def test_what_nobody_asked_for_is_not_given():
    encoder = load(VITS["timm"][0], "attention")
    output = encoder.encode(batch())
    assert output.tokens is None
    assert output.attention.shape == (3, 3, 4, 4)


def test_a_batch_that_memory_holds_only_in_parts_is_whole_again():
    whole = load(VITS["timm"][0], "tokens", "attention")
    parts = load(VITS["timm"][0], "tokens", "attention")
    parts._most = 2
    ours, theirs = parts.encode(batch(count=5)), whole.encode(batch(count=5))
    for name in ("embedding", "tokens", "attention"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)


def test_a_compiled_model_is_not_asked():
    recipe = Recipe(architecture="vit_tiny_patch16_224", card=card(48), arguments=VIT)
    encoder = TimmEncoder(HubConfig(**RANDOM, compile=True), recipe=recipe)
    with pytest.raises(ConfigError, match="compile=false"):
        encoder.ask("tokens")


def test_a_model_that_does_not_show_what_it_was_asked_for_is_an_error():
    encoder = load(MAPS["timm resnet"], "attention")
    with pytest.raises(EncoderError, match="showed no attention of its tiles; it can show tokens"):
        encoder.encode(batch())


@pytest.mark.parametrize("name", ["cait_xxs24_224", "vit_base_patch16_siglip_224"])
def test_a_class_token_that_does_not_attend_to_patches_in_the_last_block_is_none(name, registry):
    """CaiT's joins after the blocks; SigLIP has none."""
    encoder = registry.create(
        "encoder", "timm", configure(registry.find("encoder", "timm").spec, model=name)
    )
    assert "attention" not in encoder.gives


def declared(registry, names):
    for name in names:
        spec = registry.find("encoder", name).spec
        encoder = create(spec, registry)
        if isinstance(encoder, TorchEncoder):
            yield name, encoder.gives, spec.gives
        else:
            assert spec.gives == ()


def test_a_spec_says_what_its_model_gives(registry):
    found = [n for library, names in NEEDS.items() if importlib.util.find_spec(library)
             for n in names]  # fmt: skip
    for name, gives, said in declared(registry, (*EACH_LIBRARY, *found)):
        assert gives == said, name


HIDDEN = torch.arange(5) == 3
MASKS = {
    "none": None,
    "bool": ~HIDDEN,
    "float": torch.linspace(-2, 2, 25).reshape(1, 1, 5, 5),
    "float16": torch.zeros(2, 1, 5, 5, dtype=torch.float16).masked_fill(HIDDEN, -9),
}


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [False, True])
def test_attention_is_what_torchs_fused_attention_weighs_by(scale, mask, shared):
    """Whatever a block gives it: values that are the columns of 1 show the weights."""
    draw = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 5, 8, generator=draw)
    key = torch.randn(2, 2 if shared else 4, 5, 8, generator=draw)
    value = torch.eye(5).expand(*key.shape[:2], 5, 5)
    wanted = None if MASKS[mask] is None else MASKS[mask].expand(2, 1, 5, 5)
    options = {"scale": scale, "enable_gqa": shared}
    if wanted is not None:
        options["attn_mask"] = wanted if wanted.dtype == torch.bool else wanted.float()

    class Block(torch.nn.Module):
        def forward(self, tokens):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    block = Block()
    tokens = torch.zeros(2, 5, 3)
    model = torch.nn.Module()
    model.forward = lambda: (block(tokens), tokens)[1]
    heard = Overhearing(Anatomy(owner=model, prefix=1, block=block), ("attention",))
    model.forward()
    weights = Block()(tokens)[:, :, 0]
    assert weights.std() > 0.05
    found = heard.take()["attention"].reshape(2, 4, 4)
    assert torch.allclose(found, weights[..., 1:], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["Timm", "Transformers", "OpenClip", "Torchvision", ""])
def test_every_spec_says_what_its_model_gives(registry, loader):
    loaders = ("Timm", "Transformers", "OpenClip", "Torchvision")
    names = []
    for entry in registry.entries("encoder"):
        found = next(
            (each for each in loaders if entry.spec.target.endswith(f":{each}Encoder")), ""
        )
        if entry.spec.card is not None and not entry.missing and found == loader:
            names.append(entry.spec.name)
    assert names
    for name, gives, said in declared(registry, names):
        assert gives == said, name


def test_a_command_stores_them_whole(synthetic, tmp_path):
    h5py = pytest.importorskip("h5py")
    from microtome.__main__ import main

    name = "lunit_vit_small_patch16_dino"
    asked = (f"encoder.{name}.{each}" for each in ("weights=random", "tokens=true"))
    words = [str(synthetic.path), f"output={tmp_path}", "engine=inline", f"encoder={name}"]
    words += [*asked, f"encoder.{name}.attention=true", "dense_dtype=float32", "torch_threads=1"]
    assert main(words) == 0
    with h5py.File(tmp_path / "patches" / "synthetic.h5") as file:
        count = len(file["coords"])
        tokens, attention = file[f"tokens/{name}"], file[f"attention/{name}"]
        assert tokens.shape == (count, 14, 14, 384)
        assert attention.shape == (count, 6, 14, 14)
        assert tokens.dtype == attention.dtype == np.float32
        # Of 248 px the central 224 are its input: 12 px lie outside on each side.
        offset = 12 * int(file.attrs["patch_size"]) / 248
        assert np.allclose(tokens.attrs["token_offset"], [offset, offset])
    assert main(["verify", str(tmp_path)]) == 0
    assert main(words) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["timm registers", "transformers rotary", "open_clip"])
def test_a_gpu_gives_the_same_tokens_and_attention(name):
    needs(name)
    make = VITS[name][0]
    there, plain = make(), make()
    there.ask("tokens", "attention")
    for encoder in (there, plain):
        encoder.load("cuda", "fp32")
        sharpen(encoder._loaded())
    found, here = there.encode(batch()), load(make, "tokens", "attention").encode(batch())
    assert np.array_equal(found.embedding, plain.encode(batch()).embedding)
    assert np.allclose(found.tokens, here.tokens, atol=1e-3)
    assert np.allclose(found.attention, here.attention, atol=1e-3)
