"""CHIEF through the code of its repository, in whose place is a folder with the same calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from package_standins import grid_bag, make, pickled  # noqa: E402

from microtome.commands import _cards  # noqa: E402
from microtome.config.options import is_path_key  # noqa: E402
from microtome.errors import EncoderError, MissingDependencyError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome_encoders.slide.chief import ChiefSlideEncoder  # noqa: E402

MODEL = """
import torch
from torch import nn

from utils.utils import initialize_weights


class CHIEF(nn.Module):
    asked = {}

    def __init__(self, gate=True, size_arg="large", dropout=True, n_classes=2, **kwargs):
        super().__init__()
        self.asked.update(gate=gate, size_arg=size_arg, dropout=dropout, n_classes=n_classes)
        self.attention_net = nn.Linear({"small": 768}[size_arg], 1)
        initialize_weights(self)
        self.register_buffer("organ_embedding", torch.randn(19, 768))
        self.organ_embedding.data = torch.load(r"./model_weight/Text_emdding.pth").float()

    def forward(self, h, x_anatomic):
        self.asked.update(h=(tuple(h.shape), h.dtype), site=x_anatomic.tolist())
        raw = self.attention_net(h).T
        return {"attention_raw": raw, "WSI_feature": torch.softmax(raw, 1) @ h[:, :WIDTH]}
"""
HELPERS = """
from torch import nn


def initialize_weights(module):
    nn.init.constant_(module.attention_net.weight, 0.01)
"""


@pytest.fixture(scope="module")
def spec(registry):
    return registry.find("slide_encoder", "chief").spec


@pytest.fixture
def repository(tmp_path):
    """Give a folder with the code and the weights; no text embeddings."""
    return write(tmp_path / "CHIEF")


def write(folder, width=768, **more):
    for place, text in (
        ("models/CHIEF.py", MODEL.replace("WIDTH", str(width))),
        ("utils/utils.py", HELPERS),
    ):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_text(text)
    state = {
        "attention_net.weight": torch.full((1, 768), 0.5),
        "attention_net.bias": torch.zeros(1),
        "organ_embedding": torch.ones(19, 768),
        **more,
    }
    (folder / "model_weight").mkdir()
    (folder / "model_weight" / "CHIEF_pretraining.pth").write_bytes(pickled(state))
    return folder


def test_what_its_code_is_asked_and_gives(spec, repository):
    encoder = make(spec, ChiefSlideEncoder, code_folder=str(repository))
    encoder.load("cpu", "fp32")
    tiles = grid_bag(768)
    output = encoder.encode(tiles)
    assert encoder._loaded().asked == {
        "gate": True,
        "size_arg": "small",
        "dropout": True,
        "n_classes": 2,
        "h": ((4, 768), torch.float32),
        "site": [0],
    }
    assert not encoder._loaded().training
    scores = 0.5 * tiles.only.astype(np.float64).sum(1)
    attention = np.exp(scores - scores.max())
    attention /= attention.sum()
    assert (output.attention.shape, output.attention.dtype) == ((4,), np.float32)
    np.testing.assert_allclose(output.attention, attention, rtol=1e-4)
    assert (output.embedding.shape, output.embedding.dtype) == ((768,), np.float32)
    np.testing.assert_allclose(output.embedding, attention @ tiles.only, rtol=1e-3, atol=1e-5)


def test_no_file_is_looked_for_in_the_current_folder(spec, repository, monkeypatch, tmp_path):
    """Its code reads ./model_weight/Text_emdding.pth, a pickle, whatever that is."""
    (tmp_path / "model_weight").mkdir()
    (tmp_path / "model_weight" / "Text_emdding.pth").write_bytes(b"no pickle")
    monkeypatch.chdir(tmp_path)
    encoder = make(spec, ChiefSlideEncoder, code_folder=str(repository))
    encoder.load("cpu", "fp32")
    assert encoder._loaded().organ_embedding.equal(torch.ones(19, 768))
    assert Path.cwd().samefile(tmp_path)


def test_modules_of_the_same_names_are_left_alone(spec, repository, monkeypatch):
    mine = {name: ModuleType(name) for name in ("models", "utils", "utils.other")}
    for name, module in mine.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = list(sys.path)
    make(spec, ChiefSlideEncoder, code_folder=str(repository)).load("cpu", "fp32")
    found = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("models", "utils")}
    assert found == mine
    assert sys.path == before


def test_two_checkouts_are_two_models(spec, tmp_path):
    first, second = (write(tmp_path / name) for name in ("a", "b"))
    (second / "utils" / "utils.py").write_text(HELPERS.replace("0.01", "0.02"))
    loaded = []
    for folder in (first, second):
        encoder = make(spec, ChiefSlideEncoder, code_folder=str(folder), weights="random")
        encoder.load("cpu", "fp32")
        loaded.append(encoder._loaded().attention_net.weight[0, 0].item())
    assert loaded == pytest.approx([0.01, 0.02])


def test_which_weights_and_which_code_is_said(spec, repository, tmp_path):
    said = make(spec, ChiefSlideEncoder, code_folder=str(repository)).weights()
    assert sorted(said) == ["code", "weights"]
    other = write(tmp_path / "other", width=512)
    assert make(spec, ChiefSlideEncoder, code_folder=str(other)).weights() == {
        **said,
        "code": make(spec, ChiefSlideEncoder, code_folder=str(other)).weights()["code"],
    }
    assert make(spec, ChiefSlideEncoder, code_folder=str(other)).weights() != said


def test_what_its_code_imports_is_part_of_the_code_that_is_said(spec, tmp_path):
    said = []
    for name in ("a", "b", "c"):
        folder = write(tmp_path / name)
        if name == "c":
            (folder / "utils" / "utils.py").write_text(HELPERS.replace("0.01", "0.02"))
        said.append(make(spec, ChiefSlideEncoder, code_folder=str(folder)).weights()["code"])
    assert said[0] == said[1] != said[2]


def test_a_missing_package_is_told_with_the_folder_that_must_be_given(spec):
    assert spec.install.endswith("slide_encoder.chief.code_folder=CHIEF")


def test_its_page_ends_with_a_command_that_names_the_folder(registry):
    told = _cards.show(next(e for e in registry.entries("slide_encoder") if e.spec.name == "chief"))
    assert told.split()[-1] == "slide_encoder.chief.code_folder=FOLDER"


def test_a_file_without_the_text_embeddings_fits_too(spec, tmp_path):
    folder = write(tmp_path / "CHIEF")
    state = {"attention_net.weight": torch.ones(1, 768), "attention_net.bias": torch.zeros(1)}
    path = tmp_path / "chief.pth"
    path.write_bytes(pickled(state))
    encoder = make(spec, ChiefSlideEncoder, code_folder=str(folder), weights=str(path))
    encoder.load("cpu", "fp32")
    assert encoder._loaded().attention_net.weight.equal(torch.ones(1, 768))


def test_a_file_of_another_model_is_refused(spec, tmp_path):
    folder = write(tmp_path / "CHIEF", extra=torch.ones(1))
    with pytest.raises(EncoderError, match="1 unknown"):
        make(spec, ChiefSlideEncoder, code_folder=str(folder)).load("cpu", "fp32")


def test_an_older_checkout_is_told_by_its_width(spec, tmp_path):
    """It gave the 512 columns inside the attention instead."""
    folder = write(tmp_path / "CHIEF", width=512)
    encoder = make(spec, ChiefSlideEncoder, code_folder=str(folder))
    encoder.load("cpu", "fp32")
    with pytest.raises(EncoderError, match=r"gave \(1, 512\).*another version"):
        encoder.encode(grid_bag(768))


def test_code_that_does_not_run_is_told(spec, repository):
    (repository / "utils" / "utils.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(EncoderError, match=r"does not build CHIEF.*not_installed_anywhere"):
        make(spec, ChiefSlideEncoder, code_folder=str(repository)).load("cpu", "fp32")


@pytest.mark.parametrize("code", ["", "nowhere"])
def test_without_the_repository_it_says_where_it_is(spec, code):
    encoder = make(spec, ChiefSlideEncoder, code_folder=code)
    with pytest.raises(EncoderError, match=r"clone hms-dbmi/CHIEF.*code_folder=FOLDER"):
        encoder.weights()


def test_without_the_weights_it_says_where_they_go(spec, repository):
    (repository / "model_weight" / "CHIEF_pretraining.pth").unlink()
    with pytest.raises(EncoderError, match=r"no .*CHIEF_pretraining.pth: the README"):
        make(spec, ChiefSlideEncoder, code_folder=str(repository)).weights()


def test_its_folder_may_have_any_name():
    assert is_path_key("slide_encoder.chief.code_folder")


class Harmful:
    """A pickle that calls something."""

    def __reduce__(self):
        return os.getcwd, ()


def test_its_pickle_is_not_trusted(spec, repository):
    file = repository / "model_weight" / "CHIEF_pretraining.pth"
    file.write_bytes(pickled({"state_dict": Harmful()}))
    with pytest.raises(EncoderError, match="refused"):
        make(spec, ChiefSlideEncoder, code_folder=str(repository)).load("cpu", "fp32")


def test_its_memory_grows_with_the_tiles(spec):
    encoder = make(spec, ChiefSlideEncoder)
    assert encoder.memory(100_000, (400, 400)) == 100 * encoder.memory(1000, (40, 40))


def test_without_its_libraries_the_command_is_told(registry, spec):
    pytest.importorskip("yaml")
    if "addict" not in sys.modules:
        with pytest.raises(MissingDependencyError, match="addict"):
            registry.create("slide_encoder", "chief", configure(spec))
