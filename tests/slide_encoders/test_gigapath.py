"""GigaPath through its package, of which a stand-in with its published call is run here."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from package_standins import grid_bag, install, make, pickled, said  # noqa: E402
from torch import nn  # noqa: E402

from microtome.errors import EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.bag_options import GigapathEmbedding  # noqa: E402
from microtome_encoders.slide import gigapath  # noqa: E402
from microtome_encoders.slide.gigapath import GigapathSlideEncoder, grid_of  # noqa: E402

ROWS = {"gigapath": (1536, 768), "gigapath_flash": (384, 384)}


@pytest.fixture
def spec(registry):
    return lambda name: registry.find("slide_encoder", name).spec


class LongNet(nn.Module):
    """What the package's model does with its input and gives, of twelve layers that add 1 each."""

    def __init__(self, asked, in_chans, dim, global_pool):
        super().__init__()
        self.asked, self.global_pool = asked, global_pool
        self.proj = nn.Linear(in_chans, dim)

    def forward(self, x, coords, all_layer_embed=False):
        self.asked.update(x=said(x), coords=said(coords), places=coords[0].tolist())
        self.asked.update(training=self.training, autocast=torch.is_autocast_enabled("cpu"))
        embedded = self.proj(x)
        pooled = embedded.mean(1) if self.global_pool else embedded[:, 0]
        states = [pooled.float() + layer for layer in range(13)]
        return states if all_layer_embed else states[-1:]


@pytest.fixture
def asked(monkeypatch):
    asked = {}

    def create_model(pretrained, model_arch, in_chans, local_dir="~", **kwargs):
        print("Global Pooling:", kwargs)
        asked.update(pretrained=pretrained, arch=model_arch, in_chans=in_chans, **kwargs)
        return LongNet(asked, in_chans, int(model_arch.removesuffix("d")[-3:]), **kwargs)

    install(monkeypatch, "gigapath.slide_encoder", create_model=create_model)
    monkeypatch.setattr(gigapath, "DEVICES", ("cpu",))
    return asked


@pytest.mark.parametrize("name", ROWS)
def test_what_the_package_is_asked(spec, asked, capsys, name):
    columns, dim = ROWS[name]
    encoder = make(spec(name), GigapathSlideEncoder, weights="random")
    encoder.load("cpu", "bf16")
    tiles = grid_bag(columns)
    output = encoder.encode(tiles)
    assert asked == {
        "pretrained": "",
        "arch": f"gigapath_slide_enc12l{dim}d",
        "in_chans": columns,
        "global_pool": True,
        "x": ((1, 4, columns), torch.float32),
        "coords": ((1, 4, 2), torch.int64),
        "places": [[768, 512], [1024, 512], [768, 768], [1792, 2304]],
        "training": False,
        "autocast": True,
    }
    assert (output.embedding.shape, output.embedding.dtype) == ((dim,), np.float32)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("tile", [256, 512, 1013])
def test_a_place_is_a_column_and_row_whatever_a_tile_measures(spec, asked, tile):
    """STAMP 159: coordinates of another unit fall on one place, and nobody is told."""
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random")
    encoder.load("cpu", "bf16")
    encoder.encode(grid_bag(1536, tile=tile))
    assert asked["places"] == [[768, 512], [1024, 512], [768, 768], [1792, 2304]]


@pytest.mark.parametrize(
    ("variant", "layer"), [(GigapathEmbedding.mean, 11), (GigapathEmbedding.cls, 12)]
)
def test_which_layer_is_taken_of_which_tokens(spec, asked, variant, layer):
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random", variant=variant)
    encoder.load("cpu", "bf16")
    model = encoder._loaded()
    nn.init.zeros_(model.proj.weight)
    nn.init.zeros_(model.proj.bias)
    assert set(encoder.encode(grid_bag(1536)).embedding.tolist()) == {layer}
    assert asked["global_pool"] is (variant is GigapathEmbedding.mean)
    assert encoder.card.pooling.startswith("mean of" if layer == 11 else "class token")


def test_its_file_is_loaded_strictly(hub, spec, asked):
    """The package prints what is missing, and goes on with random numbers."""
    state = LongNet({}, 1536, 768, True).state_dict()
    commit = hub.commit("prov-gigapath/prov-gigapath", slide_encoder__pth=pickled({"model": state}))
    encoder = make(spec("gigapath"), GigapathSlideEncoder)
    encoder.load("cpu", "bf16")
    assert encoder._loaded().proj.weight.equal(state["proj.weight"])
    assert encoder.loaded_weights["commit"] == commit
    assert encoder.weights()["weights"].startswith("sha256:")
    del state["proj.bias"]
    hub.commit("prov-gigapath/prov-gigapath", slide_encoder__pth=pickled({"model": state}))
    with pytest.raises(EncoderError, match="1 missing"):
        make(spec("gigapath"), GigapathSlideEncoder).load("cpu", "bf16")


def test_a_file_by_its_path_asks_no_hub(tmp_path, spec, asked):
    state = LongNet({}, 384, 384, True).state_dict()
    path = tmp_path / "slide_encoder.pth"
    path.write_bytes(pickled({"model": state}))
    encoder = make(spec("gigapath_flash"), GigapathSlideEncoder, weights=str(path))
    encoder.load("cpu", "bf16")
    assert encoder._loaded().proj.weight.equal(state["proj.weight"])
    assert list(encoder.download()) == [path]


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("cuda", "fp32")])
def test_where_its_attention_cannot_be_computed_is_said_before_loading(spec, device, precision):
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random")
    with pytest.raises(EncoderError, match="flash_attn, which needs an NVIDIA GPU and fp16"):
        encoder.load(device, precision)


def test_more_columns_than_the_model_knows_are_refused(spec):
    """Column 1000 of one row would be taken for column 0 of the next."""
    assert grid_of(grid_bag(1, [(999, 999)])).tolist() == [[999, 999]]
    for cells in ([(1000, 0)], [(0, 1000)], [(-1, 0)]):
        with pytest.raises(EncoderError, match="GigaPath knows 1000 columns and rows"):
            grid_of(grid_bag(1, cells))


def test_overlapping_tiles_are_refused():
    with pytest.raises(EncoderError, match="two in one place"):
        grid_of(grid_bag(1, [(0, 0), (0, 0)]))


@pytest.mark.parametrize(("dim", "cells"), [(1024, [(0, 0)]), (1536, [])])
def test_other_features_are_refused(spec, asked, dim, cells):
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random")
    encoder.load("cpu", "bf16")
    with pytest.raises(EncoderError, match=r"\(tiles, 1536\) features of prov_gigapath"):
        encoder.encode(grid_bag(dim, cells))


def test_its_memory_grows_with_the_tiles(spec):
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random")
    one, many = (encoder.memory(tiles, (400, 400)) for tiles in (1000, 100_000))
    assert many == pytest.approx(100 * one, rel=0.01)
    assert 4e9 < many < 16e9


def test_without_the_package_the_command_is_told(registry, spec):
    with pytest.raises(MissingDependencyError, match="prov-gigapath/prov-gigapath"):
        registry.create("slide_encoder", "gigapath", configure(spec("gigapath")))


@pytest.mark.parametrize(
    ("direct", "told"),
    [
        (None, "gigapath 0.1.0"),
        ('{"url": "file:///src"}', "gigapath 0.1.0"),
        ('{"vcs_info": {"vcs": "git", "commit_id": "9d42a60b"}}', "gigapath 0.1.0 at 9d42a60b"),
    ],
)
def test_which_code_runs_it_is_said(spec, asked, tmp_path, monkeypatch, direct, told):
    encoder = make(spec("gigapath"), GigapathSlideEncoder, weights="random")
    assert "code" not in encoder.weights()  # no distribution of that name is here
    info = tmp_path / "gigapath-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gigapath\nVersion: 0.1.0\n")
    if direct:
        (info / "direct_url.json").write_text(direct)
    monkeypatch.syspath_prepend(tmp_path)
    assert encoder.weights()["code"] == told
    encoder.load("cpu", "bf16")
    assert encoder.loaded_weights["code"] == told


def test_what_is_installed_from_a_repository_is_pinned_to_a_commit(registry):
    addresses = [
        word
        for entry in registry.entries("slide_encoder")
        for word in entry.spec.install.split()
        if word.startswith("git+")
    ]
    assert len(addresses) == 3
    assert all(re.fullmatch(r".+@[0-9a-f]{40}", address) for address in addresses)
    assert "moozy==" in registry.find("slide_encoder", "moozy").spec.install
