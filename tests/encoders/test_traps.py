"""The traps that other tools fell into, a test each; their numbers are those of the design notes.

What they have in common: features come out, of the right size, and they are other features.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")

from published_layouts import early_swin, shrink  # noqa: E402

from microtome.errors import EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.plugin.specs import Transform  # noqa: E402
from microtome.run.planning.encoders import make_encoder  # noqa: E402
from microtome.run.settings import EncoderChoice  # noqa: E402
from microtome.slide.batch import TileBatch  # noqa: E402
from microtome_encoders.options import Statistics, Variant  # noqa: E402
from microtome_encoders.patch.timm import TimmEncoder  # noqa: E402


@pytest.fixture(scope="module")
def tiles():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    return TileBatch(pixels, np.zeros((2, 5), np.int32))


def create(registry, name, **options):
    spec = registry.find("encoder", name).spec
    return registry.create("encoder", name, configure(spec, **options))


def tiny(registry, name, changes=None, **options):
    """Make a row's encoder of a narrower and shallower network."""
    spec = registry.find("encoder", name).spec
    recipe = replace(shrink(spec.fixed["recipe"]), **changes or {})
    return TimmEncoder(configure(spec, **options), recipe=recipe)


def card(registry, name):
    return registry.find("encoder", name).spec.card


def identity(registry, name, **options):
    """Give the fields that decide whether features are current, as a run asks for them."""
    spec = registry.find("encoder", name).spec
    options = configure(spec, weights="random", **options)
    return make_encoder(EncoderChoice(plugin=name, config=options), registry).fields


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


# 1 and 8 are at the end, with what concerns rows of transformers and open_clip.


class TestTrap2ConvNextWithoutLayerNorm:
    @pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
    def test_only_the_classes_are_removed(self, registry, size):
        encoder = create(registry, f"convnext_{size}", weights="random")
        with torch.device("meta"):
            model = encoder.build()
        assert [type(layer).__name__ for layer in model.classifier[:2]] == [
            "LayerNorm2d",
            "Flatten",
        ]
        assert encoder.removed_layers(model) == ("classifier.2",)

    def test_features_are_normalised(self, registry, tiles):
        encoder = create(registry, "convnext_tiny", weights="random")
        encoder.load("cpu", "fp32")
        embedding = encoder.encode(TileBatch(tiles.pixels[:1], tiles.coords[:1])).embedding
        np.testing.assert_allclose(embedding.mean(1), 0, atol=1e-4)
        np.testing.assert_allclose(embedding.std(1), 1, atol=1e-2)


class TestTrap3SameNameOtherFeatures:
    def test_resnet50(self, registry):
        assert (card(registry, "resnet50").dim, card(registry, "resnet50_trunc").dim) == (
            2048,
            1024,
        )
        assert registry.find("encoder", "resnet50_trunc").spec.names["trident"] == "resnet50"
        assert "resnet50_trunc" in registry.find("encoder", "resnet50").spec.caution

    @pytest.mark.parametrize(
        ("name", "default", "token"),
        [("virchow_v1", 2560, 1280), ("virchow_v2", 2560, 1280), ("h0_mini", 1536, 768)],
    )
    def test_class_token_alone(self, registry, name, default, token):
        assert card(registry, name).dim == default
        assert create(registry, name, variant=Variant.cls).card.dim == token
        assert "variant=cls" in registry.find("encoder", name).spec.caution
        assert identity(registry, name) != identity(registry, name, variant=Variant.cls)

    def test_ctranspath(self, registry):
        chief, original = (
            registry.find("encoder", name).spec for name in ("chief_ctranspath", "ctranspath")
        )
        assert chief.names["trident"] == original.names["stamp"] == "ctranspath"
        published = [spec.fixed["recipe"].sha256 for spec in (chief, original)]
        assert published[0] != published[1]
        assert "CHIEF" in original.caution
        assert "TRIDENT" in chief.caution

    def test_one_ctranspaths_file_in_place_of_the_others_is_noted(self, registry, tmp_path):
        path = tmp_path / "ctranspath.pth"
        path.write_bytes(saved({"model": early_swin()}))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wrong = tiny(registry, "ctranspath", weights=str(path))
        wrong.load("cpu", "fp32")
        assert "not its published file" in wrong.notes[0]
        right = tiny(registry, "ctranspath", {"sha256": digest}, weights=str(path))
        right.load("cpu", "fp32")
        assert right.notes == []


class TestTrap4ThreeTransformsForOneModel:
    @pytest.mark.parametrize("name", ["h_optimus_0", "gpfm", "mstar"])
    def test_the_transform_is_part_of_the_identity(self, registry, name, monkeypatch):
        ours = identity(registry, name)
        bicubic = replace(card(registry, name).transform, interpolation="lanczos")
        changed = replace(card(registry, name), transform=bicubic)
        monkeypatch.setattr(TimmEncoder, "card", property(lambda self: changed))
        assert identity(registry, name) != ours


LUNITS = [
    *(f"lunit_resnet50_{way}" for way in ("bt", "swav", "mocov2")),
    *(f"lunit_vit_small_patch{side}_dino" for side in (8, 16)),
]


class TestTrap5LunitsColours:
    @pytest.mark.parametrize("name", LUNITS)
    def test_imagenets_by_default(self, registry, name):
        assert card(registry, name).transform.mean == Transform().mean
        assert create(registry, name).card == card(registry, name)

    @pytest.mark.parametrize("name", LUNITS)
    def test_lunits_by_choice(self, registry, name):
        chosen = create(registry, name, variant=Statistics.norm_lunit).card
        assert chosen.transform.mean == (0.70322989, 0.53606487, 0.66096631)
        assert chosen.transform.std == (0.21716536, 0.26081574, 0.20723464)
        default = card(registry, name)
        colours = {"mean": default.transform.mean, "std": default.transform.std}
        assert replace(chosen.transform, **colours) == default.transform
        assert chosen.dim == default.dim
        assert identity(registry, name) != identity(registry, name, variant=Statistics.norm_lunit)

    def test_features_differ(self, registry, tiles):
        both = []
        for variant in Statistics:
            encoder = tiny(
                registry, "lunit_vit_small_patch16_dino", weights="random", variant=variant
            )
            encoder.load("cpu", "fp32")
            both.append(encoder.encode(tiles).embedding)
        assert both[0].shape == both[1].shape
        assert not np.allclose(both[0], both[1], atol=1e-3)


STOCK = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}


class TestTrap6TimmsConfigurationCannotBeTrusted:
    @pytest.mark.parametrize("name", ["mstar", "prov_gigapath"])
    def test_the_entrys_transform_is_not_read(self, registry, hub, name):
        recipe = shrink(registry.find("encoder", name).spec.fixed["recipe"])
        random = tiny(registry, name, weights="random")
        random.load("cpu", "fp32")
        stock = {"architecture": recipe.architecture, "pretrained_cfg": STOCK}
        hub.commit(
            recipe.card.hub_id,
            config__json=json.dumps(stock).encode(),
            pytorch_model__bin=saved(random._model.state_dict()),
        )
        encoder = tiny(registry, name)
        encoder.load("cpu", "fp32")
        assert encoder.card.transform == card(registry, name).transform
        assert encoder.card.transform.mean == Transform().mean
        assert not [asked for asked in hub.asked if "config.json" in asked]

    def test_gigapaths_crop(self, registry):
        transform = card(registry, "prov_gigapath").transform
        assert (transform.resize, transform.crop) == (256, 224)

    def test_gigapath_flash_gets_its_weights(self, registry, hub, tiles):
        other = tiny(registry, "gigapath_flash", weights="random", seed=7)
        other.load("cpu", "fp32")
        wanted = other.encode(tiles).embedding
        hub.commit(
            "prov-gigapath/prov-gigapath-flash",
            pytorch_model__bin=saved(other._model.state_dict()),
        )
        encoder = tiny(registry, "gigapath_flash")
        encoder.load("cpu", "fp32")
        np.testing.assert_array_equal(encoder.encode(tiles).embedding, wanted)


def test_trap_7_gigapaths_patches_are_of_16_px(registry):
    encoder = create(registry, "prov_gigapath", weights="random")
    with torch.device("meta"):
        model = encoder.build()
    assert model.patch_embed.patch_size == (16, 16)
    assert model.pos_embed.shape == (1, 1 + 14 * 14, 1536)


PRECISIONS = {
    "fp32": "gpfm mstar prost40m chief_ctranspath ctranspath resnet50_trunc resnet50 "
    "lunit_resnet50_bt lunit_vit_small_patch8_dino kaiko_vitl14",
    "fp16": "uni_v1 virchow_v1 virchow_v2 h_optimus_0 h_optimus_1 h0_mini prov_gigapath "
    "openmidnight mettle",
    "bf16": "uni_v2",
}


class TestTrap9Precision:
    @pytest.mark.parametrize(
        ("name", "precision"),
        [(name, precision) for precision, names in PRECISIONS.items() for name in names.split()],
    )
    def test_is_the_cards(self, registry, name, precision):
        assert card(registry, name).precision == precision

    def test_fp16_is_refused_on_a_cpu(self, registry):
        encoder = tiny(registry, "uni_v1", weights="random")
        with pytest.raises(EncoderError, match="fp16 is for GPUs"):
            encoder.load("cpu", "fp16")


class _Program:
    def __reduce__(self):
        return (print, ("a program ran",))


class TestTrap10Pickles:
    @pytest.mark.parametrize("name", ["openmidnight", "gpfm", "chief_ctranspath", "dino_bloom"])
    def test_a_program_in_a_checkpoint_is_refused(self, registry, tmp_path, capsys, name):
        path = tmp_path / "checkpoint.pth"
        path.write_bytes(saved({"model": early_swin(), "program": _Program()}))
        with pytest.raises(EncoderError, match="allow_pickle=") as info:
            tiny(registry, name, weights=str(path)).load("cpu", "fp32")
        assert hashlib.sha256(path.read_bytes()).hexdigest() in str(info.value)
        assert "a program ran" not in capsys.readouterr().out

    def test_converted_it_is_loaded_and_its_hash_is_on_record(self, registry, tmp_path):
        from safetensors.torch import save_file

        state, path = early_swin(), tmp_path / "converted.safetensors"
        save_file(state, path)
        encoder = tiny(registry, "chief_ctranspath", weights=str(path))
        encoder.load("cpu", "fp32")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert encoder.loaded_weights["sha256"] == digest
        assert "pickle" not in encoder.loaded_weights


class TestTrap11Hosting:
    def test_every_row_takes_a_file(self, registry):
        for entry in registry.entries("encoder"):
            if "recipe" in entry.spec.fixed:
                assert "weights" in entry.spec.config.__dataclass_fields__

    def test_chief_comes_from_the_hub(self, registry):
        recipe = registry.find("encoder", "chief_ctranspath").spec.fixed["recipe"]
        assert recipe.card.hub_id == "datasets/MahmoodLab/hest-bench"
        assert len(recipe.sha256) == 64

    @pytest.mark.parametrize("name", ["openmidnight", "dino_bloom"])
    def test_dinov2s_architecture_is_timms_not_torch_hubs(self, registry, name, monkeypatch):
        def load(*_, **__):
            raise AssertionError("asked torch.hub, and so the network, for code")

        monkeypatch.setattr("torch.hub.load", load)
        encoder = tiny(registry, name, weights="random")
        encoder.load("cpu", "fp32")
        assert type(encoder._model).__module__ == "timm.models.vision_transformer"


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("uni_v2", (256, 0.5)),
        ("virchow_v2", (224, 0.5)),
        ("prov_gigapath", (256, 0.5)),
        ("kaiko_vitl14", (256, 0.5)),
        ("chief_ctranspath", (256, 1.0)),
        ("ctranspath", (256, 1.0)),
    ],
)
def test_trap_12_cards_carry_their_tiles(registry, name, tile):
    assert (card(registry, name).patch_size, card(registry, name).mpp) == tile


class TestTrap1QuickGelu:
    @pytest.mark.parametrize("size", ["b_32", "b_16", "l_14", "l_14_336"])
    def test_openais_vits_are_built_with_it(self, registry, size):
        transformer = pytest.importorskip("open_clip.transformer")
        with torch.device("meta"):
            model = create(registry, f"clip_vit_{size}", weights="random").build()
        kinds = [type(layer) for layer in model.modules()]
        assert kinds.count(transformer.QuickGELU) == len(model.transformer.resblocks)
        assert torch.nn.GELU not in kinds

    @pytest.mark.parametrize("name", ["plip", "quilt_b_32", "quilt_b_16"])
    def test_so_are_their_descendants(self, registry, name):
        pytest.importorskip("transformers")
        with torch.device("meta"):
            model = create(registry, name, weights="random").build()
        assert model.config.hidden_act == "quick_gelu"


class TestTrap3InVisionLanguage:
    @pytest.mark.parametrize(
        ("name", "variants", "other"),
        [
            ("midnight", {"cls": 1536, "cls_mean": 3072}, "variant=cls"),
            ("musk", {"cls": 1024, "ms_aug": 2048}, "variant=ms_aug"),
            ("rudolfv2", {"cls": 1536, "cls_mean": 3072}, "variant=cls"),
        ],
    )
    def test_what_other_tools_call_by_its_name_is_a_variant(self, registry, name, variants, other):
        spec = registry.find("encoder", name).spec
        assert dict(spec.fixed["recipe"].variants) == variants
        assert other in spec.caution
        assert spec.card.dim == variants[spec.config().variant.value]

    def test_keep_has_length_1(self, registry):
        spec = registry.find("encoder", "keep").spec
        assert "length 1" in spec.card.pooling
        assert "LazySlide" in spec.caution


class TestTrap8VersionsAndRemoteCode:
    def test_no_row_needs_a_library_that_another_excludes(self, registry):
        """CONCH 1.5 and Hibou, whose entries' own code does, are built without it."""
        recipes = [entry.spec.fixed.get("recipe") for entry in registry.entries("encoder")]
        needs = {recipe.needs for recipe in recipes if recipe and recipe.needs}
        assert needs == {"transformers>=4.57", "transformers>=5"}

    def test_a_row_that_runs_its_entrys_code_says_so(self, registry):
        remote = [e.spec.name for e in registry.entries("encoder") if e.spec.remote_code]
        assert sorted(remote) == [
            *("conceptclip", "genbio_pathfm", "mascaret", "phaet"),
            *("rudolfv2", "rudolfv2_b", "rudolfv2_s"),
        ]

    @pytest.mark.parametrize("name", ["conceptclip", "genbio_pathfm"])
    def test_code_that_nobody_pinned_is_not_run(self, registry, name):
        pytest.importorskip("transformers")
        with pytest.raises(EncoderError, match="revision=COMMIT"):
            create(registry, name).weights()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("conch_v1", "fp32"),
        ("phikon_v2", "fp32"),
        ("rudolfv2", "fp32"),
        ("phaet", "fp32"),
        ("genbio_pathfm", "fp32"),
        ("conch_v15", "fp16"),
        ("midnight", "fp16"),
        ("gemma4_26b", "bf16"),
        ("dinov3_vit7b16", "bf16"),
    ],
)
def test_trap_9_precisions_of_models_with_text(registry, name, precision):
    assert card(registry, name).precision == precision


def test_trap_10_omiclips_pickle(registry, tmp_path, capsys):
    pytest.importorskip("open_clip")
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(saved({"state_dict": {}, "program": _Program()}))
    with pytest.raises(EncoderError, match="allow_pickle="):
        create(registry, "omiclip", weights=str(path)).load("cpu", "fp32")
    assert "a program ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "tile", "input_size"),
    [("conch_v1", 512, 448), ("conch_v15", 512, 448), ("conch_madeleine", None, 224)],
)
def test_trap_12_conchs_tiles_are_not_its_input(registry, name, tile, input_size):
    assert (card(registry, name).patch_size, card(registry, name).input_size) == (tile, input_size)
    assert card(registry, name).transform.crop == input_size
