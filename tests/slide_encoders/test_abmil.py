"""Attention-based pooling, against its formula written out in numpy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bag_checks import make_bag  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from microtome.__main__ import main  # noqa: E402
from microtome.commands import _cards  # noqa: E402
from microtome.errors import ConfigError, EncoderError  # noqa: E402
from microtome.plugin.options import configure  # noqa: E402
from microtome.plugin.weights.files import file_digest  # noqa: E402
from microtome.store.identity import describe  # noqa: E402


@pytest.fixture
def make(registry):
    spec = registry.find("slide_encoder", "abmil").spec
    return lambda **options: registry.create("slide_encoder", "abmil", configure(spec, **options))


def weights(dim=6, hidden=5, projected=0, seed=1):
    """Draw the layers of a network."""
    rng = np.random.default_rng(seed)
    shapes = {
        "attention_V": (hidden, projected or dim),
        "attention_U": (hidden, projected or dim),
        "attention_w": (1, hidden),
    }
    if projected:
        shapes["projection"] = (projected, dim)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.from_numpy(rng.standard_normal(shape)).float()
        state[f"{name}.bias"] = torch.from_numpy(rng.standard_normal(shape[0])).float()
    return state


def formula(state, tiles):
    """Give embedding and attention as the paper has them, in float64."""

    def linear(name, rows):
        weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
        return rows @ weight.T + bias

    rows = tiles.astype(np.float64)
    if "projection.weight" in state:
        rows = np.maximum(linear("projection", rows), 0)
    gate = 1 / (1 + np.exp(-linear("attention_U", rows)))
    scores = linear("attention_w", np.tanh(linear("attention_V", rows)) * gate)[:, 0]
    attention = np.exp(scores - scores.max())
    attention /= attention.sum()
    return attention @ rows, attention


@pytest.fixture
def saved(tmp_path):
    def save(state, name="abmil.safetensors"):
        path = tmp_path / name
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        return str(path)

    return save


@pytest.mark.parametrize("projected", [0, 3])
@pytest.mark.parametrize("name", ["abmil.safetensors", "abmil.pth"])
def test_it_is_the_formula(make, saved, projected, name):
    state = weights(projected=projected)
    encoder = make(weights=saved(state, name))
    encoder.load("cpu", "fp32")
    bag = make_bag(30, 6)
    out = encoder.encode(bag)
    embedding, attention = formula(state, bag.only)
    np.testing.assert_allclose(out.embedding, embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.attention, attention, rtol=1e-4, atol=1e-6)
    assert out.embedding.shape == (projected or 6,)
    assert out.embedding.dtype == out.attention.dtype == np.float32
    assert out.attention.sum() == pytest.approx(1, abs=1e-5)
    assert encoder.loaded_weights["sha256"] == encoder.weights()["weights"].removeprefix("sha256:")


def test_layers_at_the_head_of_sequences_and_a_classifier_are_understood(make, saved):
    state = weights()
    published = {
        name.replace("attention_V.", "attention_V.0.").replace("U.", "U.0."): tensor
        for name, tensor in state.items()
    }
    published["classifier.0.weight"] = torch.ones(1, 6)
    encoder = make(weights=saved(published))
    encoder.load("cpu", "fp32")
    bag = make_bag(8, 6)
    np.testing.assert_allclose(
        encoder.encode(bag).embedding, formula(state, bag.only)[0], rtol=1e-4, atol=1e-5
    )


def test_bfloat16_gives_about_the_same(make, saved):
    path = saved(weights())
    bag = make_bag(30, 6)
    full, half = make(weights=path), make(weights=path)
    full.load("cpu", "fp32")
    half.load("cpu", "bf16")
    found = half.encode(bag)
    np.testing.assert_allclose(found.embedding, full.encode(bag).embedding, atol=0.05)
    assert found.attention.sum() == pytest.approx(1, abs=1e-5)


def test_a_pickle_runs_no_code_without_leave(make, tmp_path):
    path = tmp_path / "trained.pt"
    torch.save({"state_dict": weights(), "args": Fraction(1, 2)}, path)
    with pytest.raises(EncoderError, match="a pickle can run any program"):
        make(weights=str(path)).load("cpu", "fp32")
    allowed = make(weights=str(path), allow_pickle=file_digest(path))
    allowed.load("cpu", "fp32")
    assert allowed.loaded_weights["pickle"] == "may have run code, by allow_pickle"
    with pytest.raises(ConfigError, match="allow_pickle=yes"):
        make(weights=str(path), allow_pickle="yes")


def test_without_weights_it_says_what_to_give(make):
    for act in (lambda e: e.weights(), lambda e: e.load("cpu", "fp32")):
        with pytest.raises(EncoderError, match=r"no published weights: .*weights=PATH"):
            act(make())


def test_another_networks_file_is_refused(make, saved):
    with pytest.raises(EncoderError, match=r"holds linear\.weight, where ABMIL has"):
        make(weights=saved({"linear.weight": torch.ones(2, 2)})).load("cpu", "fp32")
    lacking = weights()
    del lacking["attention_U.bias"]
    with pytest.raises(EncoderError, match=r"1 missing \(attention_U\.bias\)"):
        make(weights=saved(lacking)).load("cpu", "fp32")
    branches = weights() | {"attention_w.weight": torch.ones(2, 5)}
    with pytest.raises(EncoderError, match=r"attention_w\.weight is \(2, 5\)"):
        make(weights=saved(branches)).load("cpu", "fp32")


def test_features_of_another_width_are_refused(make, saved):
    encoder = make(weights=saved(weights()))
    encoder.load("cpu", "fp32")
    with pytest.raises(
        EncoderError, match=r"take features of 6 columns and these have 8.*encoder="
    ):
        encoder.encode(make_bag(3, 8))


def test_its_page_ends_with_a_command_that_works(registry):
    told = _cards.show(next(e for e in registry.entries("slide_encoder") if e.spec.name == "abmil"))
    assert told.split()[-2:] == ["slide_encoder=abmil", "slide_encoder.abmil.weights=PATH"]
    assert "weights=hub" not in told


def test_only_of_random_weights_the_width_of_attention_counts(make, saved, registry):
    spec = registry.find("slide_encoder", "abmil").spec
    assert "hidden" not in describe(spec, configure(spec, hidden=7))
    assert make(weights="random", hidden=7).weights() != make(weights="random").weights()
    path = saved(weights())
    assert make(weights=path, hidden=7).weights() == make(weights=path).weights()


def test_its_need_is_the_width_of_its_weights_and_the_encoder_that_they_were_trained_on(
    make, saved
):
    assert make(weights="random").needs == ()
    (need,) = make(weights="random", encoder="uni_v2").needs
    assert (need.key, need.dim, need.overlap) == ("uni_v2", None, True)
    (need,) = make(weights=saved(weights())).needs
    assert (need.encoder, need.dim, need.overlap) == ("", 6, True)
    (need,) = make(weights=saved(weights(projected=3)), encoder="uni_v2").needs
    assert (need.encoder, need.dim) == ("uni_v2", 6)
    with pytest.raises(EncoderError, match="no published weights"):
        _ = make().needs


def command(slide, out, path, *words):
    return main(
        [
            str(slide.path),
            f"output={out}",
            "engine=inline",
            "slide_encoder=abmil",
            f"slide_encoder.abmil.weights={path}",
            *words,
        ]
    )


@pytest.mark.parametrize("words", [(), ("slide_encoder.abmil.encoder=handcrafted",)])
def test_weights_of_another_width_are_refused_before_anything_is_computed(
    synthetic, tmp_path, saved, capsys, words
):
    assert command(synthetic, tmp_path / "out", saved(weights()), *words) == 2
    told = capsys.readouterr().err
    assert "6 columns" in told
    assert "handcrafted" in told
    assert not (tmp_path / "out" / "patches").exists()


def test_a_missing_file_of_weights_is_told_before_anything_is_computed(synthetic, tmp_path, capsys):
    words = [str(synthetic.path), f"output={tmp_path / 'out'}", "engine=inline"]
    assert main([*words, "slide_encoder=abmil"]) == 1
    assert "give a file of those that you trained, slide_encoder.abmil.weights=PATH" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out" / "patches").exists()


def test_of_several_feature_sets_it_takes_those_that_fit(synthetic, tmp_path, saved):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("torchvision")
    words = ("encoder=[handcrafted,resnet18]", "encoder.resnet18.weights=random")
    assert command(synthetic, tmp_path, saved(weights(dim=67)), *words) == 0
    with h5py.File(tmp_path / "patches" / "synthetic.h5") as file:
        assert sorted(file["features"]) == ["handcrafted", "resnet18"]
        assert list(file["slide_features"]) == ["abmil-handcrafted"]
        assert file["slide_features/abmil-handcrafted"].shape == (67,)


def test_random_weights_fit_any_width_and_come_from_the_seed(make):
    encoder = make(weights="random", seed=3, hidden=7)
    with pytest.raises(EncoderError, match=r"before load\(\)"):
        encoder.encode(make_bag(2, 6))
    encoder.load("cpu", "fp32")
    again, other = make(weights="random", seed=3, hidden=7), make(weights="random", seed=4)
    for each in (again, other):
        each.load("cpu", "fp32")
    for dim in (6, 11, 6):
        bag = make_bag(9, dim)
        embedding = encoder.encode(bag).embedding
        assert embedding.shape == (dim,)
        np.testing.assert_array_equal(embedding, again.encode(bag).embedding)
        assert not np.array_equal(embedding, other.encode(bag).embedding)
    assert encoder.weights() == {"weights": "random", "seed": "3", "hidden": "7"}
    assert encoder.loaded_weights == {"source": "random", "seed": "3"}


def test_a_slide_without_tiles_is_refused(make):
    encoder = make(weights="random")
    encoder.load("cpu", "fp32")
    with pytest.raises(EncoderError, match="no tiles"):
        encoder.encode(make_bag(0, 6))
