"""Rows with a short module of their own, and rows whose code lies in their hub entry."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

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
from torch import nn  # noqa: E402

from microtome.errors import ConfigError, EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.options import Scales  # noqa: E402
from microtome_encoders.patch.conch import ConchEncoder  # noqa: E402
from microtome_encoders.patch.devices import seeded  # noqa: E402
from microtome_encoders.patch.keep import KeepEncoder  # noqa: E402
from microtome_encoders.patch.musk import MuskEncoder  # noqa: E402
from microtome_encoders.patch.ticon import TILES, TiconEncoder  # noqa: E402

# dim, input | resize, how, crop, filter, colours | precision, tile@mpp | commercial, access, place
FACTS = """
conch_v1         512 448 | 448 edge 448 bicubic openai | fp32 512@0.5 | no gated MahmoodLab/conch
conch_madeleine  512 224 | 224 edge 224 bicubic openai | fp32 - | no gated MahmoodLab/conch
conch_v15        768 448 | 448 edge 448 bilinear imagenet | fp16 512@0.5 | no gated MahmoodLab/TITAN
keep             768 224 | 224 edge 224 bicubic imagenet | fp16 256@0.5 | yes open Astaxanthin/KEEP
musk            1024 384 | 384 edge 384 bicubic half | fp16 384@0.5 | no gated xiangjx/musk
ticon           1536 224 | 224 edge - bilinear h_optimus | fp32 - | no gated varunb/TICON
rudolfv2        3072 224 | 224 edge 224 bicubic rudolfv2 | fp32 224@0.5 | no gated Aignostics/RudolfV-2
rudolfv2_b      1536 224 | 224 edge 224 bicubic rudolfv2 | fp32 224@0.5 | no gated Aignostics/RudolfV-2-B
rudolfv2_s       768 224 | 224 edge 224 bicubic rudolfv2 | fp32 224@0.5 | no gated Aignostics/RudolfV-2-S
phaet           1024 224 | 224 edge 224 bilinear imagenet | fp32 224@0.5 | no gated wearewaiv/phaet
mascaret        1536 224 | 224 edge 224 bilinear half | fp32 224@0.5 | no gated wearewaiv/mascaret
genbio_pathfm   4608 224 | 224 exact - bicubic genbio | fp32 224@0.5 | no open genbio-ai/genbio-pathfm
conceptclip     1152 384 | 384 exact - bicubic half | fp32 - | yes gated JerrryNie/ConceptCLIP
"""  # noqa: E501 - a table
ROWS = parse_facts(FACTS)
PINNED = {
    "conch_v15": "dac6773d9961cfc75503440676ff157a2c6e8d2e",
    "rudolfv2": "482d9519c6a10fc22fbe5bcd6a87d5daf056643c",
    "rudolfv2_b": "b2cb55c8fff8aaaf9cc16fda6d09bfb21dfc6db8",
    "rudolfv2_s": "76abacd512a98c72a6db6192af9fc98313c3bd78",
    "phaet": "e0ce6e0ee248470bd8604823e412ca64048a2495",
    "mascaret": "e95e7ea15e039e78d74def101415e19d9a67ba80",
}
REMOTE = [name for name in ROWS if name in PINNED or name in ("genbio_pathfm", "conceptclip")]
REMOTE.remove("conch_v15")
BUILT = [name for name in ROWS if name not in {*REMOTE, "musk"}]
"""The rows whose architecture is here."""


@pytest.fixture(scope="module")
def spec(registry):
    return lambda name: registry.find("encoder", name).spec


@pytest.mark.parametrize("name", ROWS)
def test_the_card_says_the_facts(spec, name):
    check_facts(spec(name), ROWS[name])
    assert spec(name).card.revision == PINNED.get(name)
    assert spec(name).remote_code == (name in REMOTE)
    if name in (*REMOTE, "musk"):
        assert "own tests run a stand-in" in spec(name).caution


@checks("architecture")
@pytest.mark.parametrize("name", BUILT)
def test_the_card_holds_for_the_architecture(registry, spec, name):
    encoder = create(spec(name), registry, weights="random")
    assert encoder.card == spec(name).card
    check_architecture(encoder, spec(name).card)


def pickled(state):
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}


def cubic(place):
    """Sample 0, 1, … 13 between its points: cubic convolution with torch's a of -0.75."""
    whole = math.floor(place)
    sampled = 0.0
    for point in range(whole - 1, whole + 3):
        x = abs(place - point)
        weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
        sampled += weight * min(max(point, 0), 13)
    return sampled


class TestConch:
    def make(self, spec, name, **options):
        recipe = spec(name).fixed["recipe"]
        recipe = shrunk(spec(name), 16, arguments={**recipe.arguments, **SMALL})
        return ConchEncoder(configure(spec(name), **options), recipe=recipe)

    def published(self, spec, name, side):
        """Give a whole model's tensors, its positions for images of another side."""
        encoder = self.make(spec, name, weights="random")
        card = replace(encoder.recipe.card, input_size=side)
        encoder.recipe = replace(encoder.recipe, card=card)
        with seeded(2):
            return {n: t.clone() for n, t in encoder.build().state_dict().items()}

    def whole(self, tower):
        others = (
            *("text.cls_emb", "text_decoder.x", "logit_scale", "visual.proj_contrast"),
            *("visual.attn_pool_caption.query", "visual.ln_caption.weight"),
        )
        state = {f"visual.{name}": value for name, value in tower.items()}
        return state | {name: torch.zeros(1) for name in others}

    @checks("layout")
    @pytest.mark.parametrize("name", ["conch_v1", "conch_madeleine"])
    def test_one_file_serves_both_sizes(self, hub, spec, name):
        tower = self.published(spec, name, 448)
        assert tower["trunk.pos_embed"].shape[1] == 785
        hub.commit("MahmoodLab/conch", pytorch_model__bin=pickled(self.whole(tower)))
        side = spec(name).card.input_size
        assert embed(self.make(spec, name), batch(side)).shape == (2, 16)

    def test_positions_are_conchs_own_at_its_own_size(self, spec):
        tower = self.published(spec, "conch_v1", 448)
        adapted = self.make(spec, "conch_v1").adapt(self.whole(tower))
        assert set(adapted) == set(tower)
        assert torch.equal(adapted["trunk.pos_embed"], tower["trunk.pos_embed"])

    @checks("layout", "conch_v15")
    def test_conch_15_at_its_hub_entry(self, hub, spec):
        tower = self.published(spec, "conch_v15", 224)
        assert tower["trunk.pos_embed"].shape[1] == 197
        assert tower["attn_pool_contrast.to_kv.weight"].shape == (32, 32)
        hub.commit("MahmoodLab/TITAN", **{"conch_v1_5_pytorch_model__bin": pickled(tower)})
        assert embed(self.make(spec, "conch_v15"), batch(448)).shape == (2, 16)

    def test_conch_15s_positions_are_resampled_at_a_slightly_larger_scale(self, spec):
        """28.1 / 14, not 2: sampled where its own code samples, without antialiasing."""
        encoder = self.make(spec, "conch_v15")
        ramp = torch.arange(14.0).repeat_interleave(14)  # grows from row to row
        positions = torch.cat([torch.full((1, 1, 1), 99.0), ramp.view(1, -1, 1)], dim=1)
        resampled = encoder.adapt({"trunk.pos_embed": positions})["trunk.pos_embed"]
        assert resampled.shape == (1, 785, 1)
        assert resampled[0, 0, 0] == 99
        rows = resampled[0, 1:, 0].view(28, 28)
        torch.testing.assert_close(rows, rows[:, :1].expand(-1, 28), atol=1e-4, rtol=0)
        for row in range(28):
            assert rows[row, 0] == pytest.approx(cubic((row + 0.5) * 14 / 28.1 - 0.5), abs=1e-4)
        assert abs(rows[13, 0] - cubic(13.5 / 2 - 0.5)) > 0.02

    @pytest.mark.parametrize("name", ["conch_v1", "conch_v15"])
    def test_mixed_precision(self, spec, name):
        full = embed(self.make(spec, name, weights="random"), batch(448))
        mixed = self.make(spec, name, weights="random")
        mixed.load("cpu", "bf16")
        assert_near(full, mixed.encode(batch(448)).embedding)

    def test_pools_attend_as_torch_does(self):
        """Both heads are attention with eight heads; only their projections differ."""
        from microtome_encoders.patch.conch import AttentionPool, ProjectedPool

        with seeded(0):
            ours, tokens = ProjectedPool(16, 32), torch.randn(2, 5, 32)
            theirs = AttentionPool(16, 32)
        key, value = ours.to_kv.weight.chunk(2)
        theirs.load_state_dict(
            {
                "query": ours.query,
                "attn.q_proj_weight": ours.to_q.weight,
                "attn.k_proj_weight": key,
                "attn.v_proj_weight": value,
                "attn.in_proj_bias": torch.zeros(48),
                "attn.out_proj.weight": ours.to_out.weight,
                "attn.out_proj.bias": torch.zeros(16),
                **{f"ln_q.{n}": t for n, t in ours.ln_q.state_dict().items()},
                **{f"ln_k.{n}": t for n, t in ours.ln_k.state_dict().items()},
            }
        )
        torch.testing.assert_close(ours(tokens), theirs(tokens))
        assert ours(tokens).shape == (2, 1, 16)

    @pytest.mark.parametrize("name", ["conch_v1", "conch_v15"])
    def test_a_wrong_tensor_is_refused(self, spec, tmp_path, name):
        tower = self.published(spec, name, 448)
        state = self.whole(tower) if name == "conch_v1" else tower
        state["trunk.extra" if name == "conch_v15" else "visual.trunk.extra"] = torch.zeros(1)
        path = tmp_path / "x.bin"
        path.write_bytes(pickled(state))
        with pytest.raises(EncoderError, match=r"1 unknown \(trunk.extra\)"):
            self.make(spec, name, weights=str(path)).load("cpu", "fp32")


class TestKeep:
    def make(self, spec, **options):
        arguments = {**spec("keep").fixed["recipe"].arguments, **SMALL}
        recipe = shrunk(spec("keep"), 16, arguments=arguments)
        return KeepEncoder(configure(spec("keep"), **options), recipe=recipe)

    def state(self, spec):
        tower = self.make(spec, weights="random").build().state_dict()
        renamed = {n.replace(".gamma", ".weight"): t for n, t in tower.items()}
        assert "visual.blocks.0.ls1.weight" in renamed
        return renamed | {"text.embeddings.x": torch.zeros(1), "logit_scale": torch.zeros(())}

    @checks("layout", "keep")
    def test_its_names_for_layer_scale_are_timms(self, hub, spec):
        hub.commit("Astaxanthin/KEEP", model__safetensors=save(self.state(spec)))
        features = embed(self.make(spec), batch())
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)

    def test_a_wrong_tensor_is_refused(self, spec, tmp_path):
        save_file(self.state(spec) | {"visual.x": torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(EncoderError, match="1 unknown"):
            self.make(spec, weights=str(tmp_path / "x.safetensors")).load("cpu", "fp32")


class TestMusk:
    """Its package is no part of the tests: a stand-in is asked in its place."""

    @pytest.fixture
    def asked(self, monkeypatch):
        asked = {}

        class Stand(nn.Module):
            def __init__(self):
                super().__init__()
                self.beit3 = nn.Linear(2, 2)

            def forward(self, image=None, text_description=None, **options):
                asked.update(options, shape=tuple(image.shape), text=text_description)
                wide = 2048 if options["ms_aug"] else 1024
                return image.mean((1, 2, 3))[:, None].expand(-1, wide), None

        package, modeling = ModuleType("musk"), ModuleType("musk.modeling")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "musk", package)
        monkeypatch.setitem(sys.modules, "musk.modeling", modeling)
        monkeypatch.setattr(timm, "create_model", lambda name: asked.update(name=name) or Stand())
        return asked

    def make(self, spec, **options):
        return MuskEncoder(configure(spec("musk"), **options), recipe=spec("musk").fixed["recipe"])

    @pytest.mark.parametrize(("variant", "dim"), [(Scales.cls, 1024), (Scales.ms_aug, 2048)])
    def test_what_it_is_asked(self, spec, asked, variant, dim):
        encoder = self.make(spec, weights="random", variant=variant)
        assert encoder.card.dim == dim
        assert embed(encoder, batch(384)).shape == (2, dim)
        assert asked == {
            "name": "musk_large_patch16_384",
            "shape": (2, 3, 384, 384),
            "text": None,
            "with_head": False,
            "out_norm": False,
            "ms_aug": variant is Scales.ms_aug,
        }

    @checks("stand-in", "musk")
    def test_its_file_is_loaded_strictly(self, hub, spec, asked):
        state = {"beit3.weight": torch.ones(2, 2), "beit3.bias": torch.ones(2)}
        hub.commit("xiangjx/musk", model__safetensors=save(state))
        embed(self.make(spec), batch(384))
        hub.commit("xiangjx/musk", model__safetensors=save({"beit3.weight": torch.ones(2, 2)}))
        with pytest.raises(EncoderError, match="1 missing"):
            self.make(spec).load("cpu", "fp32")

    def test_without_the_package_the_command_is_told(self, registry, spec):
        with pytest.raises(MissingDependencyError, match="lilab-stanford/MUSK"):
            create(spec("musk"), registry)


class TestTicon:
    def make(self, spec, **options):
        arguments = {"img_size": 224, "init_values": 1e-5, "embed_dim": 48, "depth": 1}
        arguments |= {"num_heads": 2, "dynamic_img_size": False}
        recipe = shrunk(spec("ticon"), 48, arguments=arguments)
        return TiconEncoder(configure(spec("ticon"), **options), recipe=recipe)

    @pytest.fixture
    def files(self, hub, spec):
        tiles, context = self.make(spec, weights="random").build().children()
        state = {f"backbone.{n}": t for n, t in context.state_dict().items()}
        for part in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
            for block in range(6):
                state[f"backbone.encoder.blocks.{block}.residual1.fn.{part}"] = torch.zeros(1)
        state["backbone.input_proj_dict.input_proj_uni2h.fc1.weight"] = torch.zeros(1)
        state["backbone.decoder_dict.decoder_0.norm.weight"] = torch.zeros(1)
        hub.commit("varunb/TICON", **{"backbone/checkpoint__pth": pickled(state)})
        hub.commit("bioptimus/H-optimus-1", model__safetensors=save(dict(tiles.state_dict())))
        return tiles.eval(), context

    @checks("layout", "ticon")
    def test_of_two_hub_entries(self, spec, files):
        tiles, context = files
        encoder = self.make(spec)
        assert set(encoder.weights()) == {"weights", "tiles"}
        features = embed(encoder, batch())
        images = batch().tensor(encoder.card.transform, "cpu", torch.float32)
        with torch.inference_mode():
            expected = context(tiles(images)).numpy()
        np.testing.assert_allclose(features, expected, atol=1e-5)
        assert encoder.loaded_weights["source"] == "varunb/TICON"
        assert encoder.loaded_weights["tiles"].startswith("bioptimus/H-optimus-1 ")

    def test_both_files_are_downloaded(self, spec, files):
        named = [path.name for path in self.make(spec).download(lambda *_: None)]
        assert named == ["checkpoint.pth", "model.safetensors"]
        assert self.make(spec, weights="random").download() == ()

    def test_a_gate_before_the_tiles_is_told_with_the_option_that_helps(self, hub, spec, files):
        hub.gated.add("bioptimus/H-optimus-1")
        with pytest.raises(EncoderError, match=r"bioptimus/H-optimus-1 is gated") as info:
            self.make(spec).weights()
        assert "encoder.NAME.tile_weights=PATH" in str(info.value)
        assert "encoder.NAME.weights=" not in str(info.value)

    def test_a_file_of_the_tiles_opens_the_gate(self, hub, spec, files, tmp_path):
        tiles, _ = files
        hub.gated.add("bioptimus/H-optimus-1")
        path = tmp_path / "tiles.safetensors"
        save_file(dict(tiles.state_dict()), path)
        assert embed(self.make(spec, tile_weights=str(path)), batch()).shape == (2, 48)

    def test_a_path_that_names_no_file_is_told_as_that_of_the_tiles(self, spec, files):
        with pytest.raises(EncoderError, match=r"^tile_weights=none\.pth names no file") as info:
            self.make(spec, tile_weights="none.pth").weights()
        assert "encoder.NAME.tile_weights=hub or the path" in str(info.value)

    def test_random_tiles_under_trained_weights_are_refused(self, spec):
        with pytest.raises(ConfigError, match="tile_weights=random"):
            self.make(spec, tile_weights="random")
        self.make(spec, tile_weights="random", weights="random")

    def test_the_card_says_whose_gate_and_licence_there_are(self, spec):
        card = spec("ticon").card
        assert (card.gated, card.gate, card.commercial) == (True, "bioptimus/H-optimus-1", False)
        assert card.gate == TILES

    def test_damaged_tiles_are_told_as_that(self, spec, files, tmp_path):
        self.make(spec).weights()
        (tiles,) = tmp_path.glob("hub-cache/models--bioptimus*/snapshots/*/*")
        content = bytearray(tiles.read_bytes())
        content[-1] ^= 1
        tiles.resolve().write_bytes(content)
        with pytest.raises(EncoderError, match="is damaged") as info:
            self.make(spec).load("cpu", "fp32")
        assert "tile_weights=PATH" in str(info.value)

    def test_other_tile_weights_are_another_identity(self, hub, spec, files):
        before = self.make(spec).weights()
        tiles, _ = self.make(spec, weights="random", seed=9).build().children()
        hub.commit("bioptimus/H-optimus-1", model__safetensors=save(dict(tiles.state_dict())))
        assert self.make(spec).weights() != before

    def test_attention_over_one_tile_is_its_value(self):
        """What is left out of the published model makes no difference to a single tile."""
        from microtome_encoders.patch.ticon import Value

        with seeded(0):
            ours, tokens = Value(16), torch.randn(3, 16)
            query, key = nn.Linear(16, 16), nn.Linear(16, 16)
        heads = [
            layer(tokens).view(3, 1, 4, 4).transpose(1, 2) for layer in (query, key, ours.v_proj)
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1)
        torch.testing.assert_close(ours(tokens), ours.proj(attended))
