from __future__ import annotations

from types import SimpleNamespace

import pytest

from microtome.errors import ConfigError
from microtome.plugin.registry import get_registry
from microtome.store.layout import OutputLayout, refuse_taken

SPEC = SimpleNamespace(folder="patches", suffix=".h5")


@pytest.mark.parametrize("name", ["P-1", "a/b", "naïve 切片 (1)", "P.1", ".hidden", "P-1.h5"])
@pytest.mark.parametrize("tiling", ["", "20x_256px_0px"])
def test_a_patient_lies_under_the_tiling_by_its_id(tmp_path, name, tiling):
    layout = OutputLayout(tmp_path, tiling)
    path = layout.patient(SPEC, name)
    assert path == tmp_path / tiling / "patient_embeddings" / f"{name}.h5"
    assert path.is_relative_to(layout.patients_folder)
    assert path != layout.slide(SPEC, name)


@pytest.mark.parametrize("name", ["", "/etc", "../P", "a/../../b", "a//b", ".", "a\0b"])
def test_a_patient_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="patient_id="):
        OutputLayout(tmp_path).patient(SPEC, name)


TAKEN = ["patches", "Tissue", "runs", "status", "visualization", "patient_embeddings", ".claims"]
TAKEN += ["lmdb", "images", "samples", "training", "predictions", "fine/patches"]


@pytest.mark.parametrize("name", TAKEN)
def test_a_tiling_is_not_named_like_a_folder_of_something_else(name):
    with pytest.raises(ConfigError, match=r"names a tiling, and .* Name it otherwise; taken are"):
        refuse_taken(name, get_registry())


@pytest.mark.parametrize("name", ["", ".", "balanced", "20x_256px_0px", "fine/coarse"])
def test_any_other_name_names_a_tiling(name):
    refuse_taken(name, get_registry())
