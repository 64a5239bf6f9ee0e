"""MOOZY of a patient through its package, of which a stand-in is run here."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moozy_standin import moozy  # noqa: E402
from package_standins import grid_bag, make  # noqa: E402
from row_checks import make_registry  # noqa: E402

from microtome.__main__ import main  # noqa: E402
from microtome.errors import EncoderError  # noqa: E402
from microtome.slide.bags import PatientBag  # noqa: E402
from microtome.testing import make_slide  # noqa: E402
from microtome_encoders.patient.moozy import MoozyPatientEncoder  # noqa: E402
from microtome_encoders.slide.moozy import MoozySlideEncoder  # noqa: E402

__all__ = ["moozy"]


@pytest.fixture(scope="module")
def registry():
    return make_registry()


@pytest.fixture(scope="module")
def spec(registry):
    return registry.find("patient_encoder", "moozy").spec


def loaded(spec, path, target=MoozyPatientEncoder, **options):
    encoder = make(spec, target, weights=str(path), **options)
    encoder.load("cpu", "fp32")
    return encoder


def patient(*slides):
    ids = tuple(slide.slide_id for slide in slides)
    return PatientBag(patient_id="P-1", slide_ids=ids, slides=slides)


def test_slides_go_in_one_by_one_and_together(spec, registry, moozy):
    """Of 40x and 20x scans: each with its own tile's side at level 0."""
    first = grid_bag(384, tile=448, slide_id="a")
    second = grid_bag(384, [(0, 0), (1, 0)], tile=224, slide_id="b")
    encoder = loaded(spec, moozy.file)
    embedding = encoder.encode(patient(first, second))
    assert [slide["patch_sizes"] for slide in moozy.slides] == [[448.0], [224.0]]
    assert [slide["x"][0] for slide in moozy.slides] == [(1, 4, 1, 384), (1, 2, 1, 384)]
    assert moozy.cases == [((2, 768), torch.float32)]
    assert (embedding.shape, embedding.dtype) == ((768,), np.float32)
    one = loaded(registry.find("slide_encoder", "moozy").spec, moozy.file, MoozySlideEncoder)
    slides = [one.encode(slide).embedding for slide in (first, second)]
    np.testing.assert_allclose(embedding, 2 * (slides[0] + slides[1]), rtol=1e-5, atol=1e-6)


def test_a_slide_without_tiles_is_left_out(spec, moozy):
    loaded(spec, moozy.file).encode(patient(grid_bag(384, []), grid_bag(384)))
    assert moozy.cases == [((1, 768), torch.float32)]


def test_a_patient_without_tiles_is_refused(spec, moozy):
    with pytest.raises(EncoderError, match="No slide of the patient P-1 has a tile"):
        loaded(spec, moozy.file).encode(patient(grid_bag(384, [])))


def test_large_slides_are_thinned_out(spec, moozy):
    tiles = grid_bag(384, [(column, 0) for column in range(10)])
    loaded(spec, moozy.file, max_tiles=5).encode(patient(tiles, tiles))
    assert [len(slide["places"]) for slide in moozy.slides] == [5, 5]


def test_it_takes_the_tiles_that_the_slide_encoder_takes(spec, registry):
    (need,) = spec.needs
    assert registry.find("slide_encoder", "moozy").spec.needs == (need,)
    assert (need.encoder, need.patch_size, need.magnification) == (
        "lunit_vit_small_patch8_dino",
        224,
        20.0,
    )
    assert need.key == "lunit_vit_small_patch8_dino"
    assert (spec.takes, spec.card.dim) == ("tiles", 768)


def test_its_memory_is_that_of_its_largest_slide(spec, registry):
    """Attention is quadratic in the tiles of a slide, not of the patient: 300 GB for 50,000."""
    encoder = make(spec, MoozyPatientEncoder)
    one = make(registry.find("slide_encoder", "moozy").spec, MoozySlideEncoder)
    slides = [(12_000, (200, 100)), (50_000, (300, 400)), (50_000, (9, 9))]
    assert encoder.memory(slides) == one.memory(50_000, (300, 400)) == pytest.approx(3e11, rel=0.01)
    thinned = make(spec, MoozyPatientEncoder, max_tiles=12_000)
    assert thinned.memory(slides) == thinned.memory(slides[:1])


@pytest.mark.slow
def test_a_run_solves_what_it_needs(tmp_path, moozy):
    """Of slides at 40x: 224 px at 20x are 448 level-0 pixels, side by side."""
    h5py = pytest.importorskip("h5py")
    for name in ("a", "b"):
        make_slide(tmp_path / f"{name}.svs", size=(960, 960))
    rows = (f"P-1,{tmp_path / name}.svs" for name in ("a", "b"))
    (tmp_path / "slides.csv").write_text("\n".join(["patient_id,slide_path", *rows]))
    words = [str(tmp_path / "slides.csv"), f"output={tmp_path / 'out'}", "engine=inline"]
    words += ["slide_encoder=moozy", "patient_encoder=moozy"]
    words += ["encoder=lunit_vit_small_patch8_dino"]
    words += ["encoder.lunit_vit_small_patch8_dino.weights=random"]
    words += [f"slide_encoder.moozy.weights={moozy.file}"]
    words += [f"patient_encoder.moozy.weights={moozy.file}"]
    assert main(words) == 0
    assert {tuple(slide["patch_sizes"]) for slide in moozy.slides} == {(448.0,)}
    assert all((slide["places"] % 448 == 0).all() for slide in moozy.slides)
    with h5py.File(tmp_path / "out/patches/a.h5") as file:
        assert file["slide_features/moozy"].shape == (768,)
    with h5py.File(tmp_path / "out/patient_embeddings/P-1.h5") as file:
        embedding = file["patient_features/moozy"][:]
    slides = [h5py.File(tmp_path / f"out/patches/{n}.h5")["slide_features/moozy"][:] for n in "ab"]
    np.testing.assert_allclose(embedding, 2 * (slides[0] + slides[1]), rtol=1e-5, atol=1e-6)
