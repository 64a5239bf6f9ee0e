"""Manifests through a model: what is kept, where, in which order, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
import torch

import microtome
from microtome import ExecutionOptions, Model, Pipeline, PreprocessingConfig
from microtome.errors import EmbeddingError, IdentityError, InputError, LayoutError, StoreError

FAST = PreprocessingConfig(segmentation={"method": "otsu"}, resume=True)


@pytest.fixture
def tiles(plugins):
    """Give a tile model that costs nothing."""
    return Model.from_preset("mean", level="tile")


@pytest.fixture
def manifest(cohort, tmp_path):
    """Write a manifest of two patients, one slide of which is broken."""
    path = tmp_path / "slides.csv"
    rows = ["sample_id,image_path,spacing_at_level_0,patient_id"]
    for name, patient in (("b", "Y"), ("a", "X"), ("e", "X"), ("c", "Y")):
        rows.append(f"S{name},{cohort / name}.svs,{0.5 if name == 'a' else ''},{patient}")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def go(tmp_path):
    """Run a model over slides into ``tmp_path/out``."""

    def run(model, *arguments, settings=FAST, on_error="skip", tiling_only=False, **options):
        execution = ExecutionOptions(output_dir=tmp_path / "out", **options)
        kwargs = {"manifest_path": arguments[0]} if len(arguments) == 1 else {}
        slides = None if kwargs else list(arguments)
        pipeline = Pipeline(model, settings, execution=execution)
        return pipeline.run(slides, on_error=on_error, tiling_only=tiling_only, **kwargs)

    return run


def rows(result):
    with result.process_list_path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["hdf5", "zarr", "npz", "pt"])
def test_a_manifest_is_kept_in_its_order(go, tiles, manifest, kind):
    with pytest.warns(RuntimeWarning, match="1 could not be embedded. Se: failed at open"):
        result = go(tiles, manifest, output_format=kind)
    assert [each.sample_id for each in result.tile_artifacts] == ["Sb", "Sa", "Sc"]
    assert not result.hierarchical_artifacts + result.slide_artifacts + result.patient_artifacts
    assert list(result.failed) == ["Se"]
    for artifact in result.tile_artifacts:
        found = artifact.load()
        assert artifact.format == kind
        assert found.shape == (artifact.num_tiles, artifact.feature_dim) == artifact.shape
        assert found.dtype == np.float32
        assert artifact.metadata
    table = rows(result)
    assert [row["sample_id"] for row in table] == ["Sb", "Sa", "Se", "Sc"]
    assert [row["feature_status"] for row in table] == ["success", "success", "error", "success"]
    assert table[1]["spacing_at_level_0"] == "0.5"
    assert table[2]["error"].startswith("failed at open")
    assert table[3]["feature_path"] == str(result.tile_artifacts[2].path)
    # At 0.5 µm/px instead of 0.25 the slide has twice the tiles along each side.
    assert result.tile_artifacts[1].num_tiles > 2 * result.tile_artifacts[0].num_tiles


def test_all_formats_hold_the_same(go, tiles, cohort, tmp_path):
    settings = FAST
    kept = {}
    for kind in ("hdf5", "npz", "pt"):
        result = go(
            tiles, cohort / "a.svs", cohort / "b.svs", settings=settings, output_format=kind
        )
        kept[kind] = result.tile_artifacts[0]
    np.testing.assert_array_equal(kept["npz"].load(), kept["hdf5"].load())
    np.testing.assert_array_equal(kept["pt"].load(), kept["hdf5"].load())
    # As anybody reads them who has no microtome.
    folder = tmp_path / "out" / "tile_embeddings"
    tensor = torch.load(folder / "a.pt", weights_only=True)
    np.testing.assert_array_equal(tensor.numpy(), kept["hdf5"].load())
    with np.load(folder / "a.npz") as arrays, microtome.open_result(kept["hdf5"].path) as stored:
        np.testing.assert_array_equal(arrays["features"], tensor.numpy())
        np.testing.assert_array_equal(arrays["x"], stored.coords[:, 0])
        np.testing.assert_array_equal(arrays["y"], stored.coords[:, 1])


def test_a_sidecar_says_what_a_file_is(go, tiles, cohort):
    result = go(tiles, cohort / "a.svs", cohort / "b.svs", output_format="npz")
    artifact = result.tile_artifacts[0]
    known = json.loads(artifact.metadata_path.read_text("utf-8"))
    assert known["artifact_type"] == "tile_embeddings"
    assert known["sample_id"] == "a"
    assert known["encoder_name"] == "mean"
    assert known["encoder_level"] == "tile"
    assert known["num_tiles"] == artifact.num_tiles
    assert known["tile_size_lv0"] == 512
    assert known["requested_tile_size_px"] == 256
    assert known["image_path"] == str(cohort / "a.svs")
    with microtome.open_result(artifact.path.parents[1] / known["store"]) as stored:
        assert known["compatibility"]["identity"] == stored.feature_attributes("mean")["identity"]


def test_files_are_whole_once_their_sidecar_is_there(go, tiles, cohort, monkeypatch):
    from microtome.api import keeping

    def die(path, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            go(tiles, cohort / "a.svs", cohort / "b.svs", output_format="npz")
    result = go(tiles, cohort / "a.svs", cohort / "b.svs", output_format="npz")
    assert all(each.metadata_path.exists() for each in result.tile_artifacts)


def test_files_of_something_else_are_refused(go, tiles, cohort, plugins):
    slides = cohort / "a.svs", cohort / "b.svs"
    first = go(tiles, *slides, output_format="npz").tile_artifacts[0]
    before = first.path.stat().st_mtime_ns
    assert go(tiles, *slides, output_format="npz").tile_artifacts == [
        first,
        go(tiles, *slides, output_format="npz").tile_artifacts[1],
    ]
    assert first.path.stat().st_mtime_ns == before
    other = Model.from_preset("seeded")
    with pytest.raises(IdentityError, match=r"a\.npz was made of something else"):
        go(other, *slides, output_format="npz")
    anew = PreprocessingConfig(segmentation={"method": "otsu"})
    assert go(other, *slides, settings=anew, output_format="npz").tile_artifacts
    assert first.path.stat().st_mtime_ns != before


def test_resume_is_a_choice(go, tiles, cohort):
    slides = cohort / "a.svs", cohort / "b.svs"
    path = go(tiles, *slides).tile_artifacts[0].path
    before = path.stat().st_mtime_ns
    go(tiles, *slides)
    assert path.stat().st_mtime_ns == before
    go(tiles, *slides, settings=PreprocessingConfig(segmentation={"method": "otsu"}))
    assert path.stat().st_mtime_ns != before


def test_regions_are_kept_by_region(go, tiles, cohort):
    settings = PreprocessingConfig(
        segmentation={"method": "otsu"}, requested_tile_size_px=128, region_tile_multiple=2
    )
    slides = cohort / "a.svs", cohort / "b.svs"
    result = go(tiles, *slides, settings=settings, output_format="npz")
    (artifact, _), kept = result.hierarchical_artifacts, go(tiles, *slides, settings=settings)
    assert not result.tile_artifacts
    assert artifact.path.parent.name == "hierarchical_embeddings"
    assert artifact.tiles_per_region == 4
    assert artifact.load().shape == (artifact.num_regions, 4, 3)
    np.testing.assert_array_equal(kept.hierarchical_artifacts[0].load(), artifact.load())


def test_a_slide_model_keeps_what_is_asked_for(go, plugins, cohort):
    model = Model.from_preset("nominal")
    slides = cohort / "a.svs", cohort / "b.svs"
    result = go(model, *slides, output_format="npz")
    assert not result.tile_artifacts
    assert [each.sample_id for each in result.slide_artifacts] == ["a", "b"]
    assert result.slide_artifacts[0].load().shape == (3,)
    assert result.slide_artifacts[0].latent_path is None
    more = go(model, *slides, output_format="npz", save_tile_embeddings=True, save_latents=True)
    assert len(more.tile_artifacts) == 2
    with np.load(more.slide_artifacts[0].latent_path) as arrays:
        assert arrays["features"].shape == (2, 4)


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_patients_are_kept_in_the_order_of_first_appearance(go, plugins, manifest, kind):
    model = Model.from_preset("of_nominal")
    with pytest.warns(RuntimeWarning, match="Se: failed at open"):
        result = go(model, manifest, output_format=kind, save_slide_embeddings=True)
    assert [each.patient_id for each in result.patient_artifacts] == ["Y", "X"]
    assert [each.num_slides for each in result.patient_artifacts] == [2, 1]
    assert [each.sample_id for each in result.slide_artifacts] == ["Sb", "Sa", "Sc"]
    for artifact in result.patient_artifacts:
        assert artifact.path.parent.name == "patient_embeddings"
        assert artifact.load().shape == (3,)
    assert rows(result)[2]["patient_id"] == "X"


def test_a_patient_model_needs_patients(go, plugins, cohort, tmp_path):
    model = Model.from_preset("of_nominal")
    path = tmp_path / "m.csv"
    path.write_text(f"sample_id,image_path\na,{cohort / 'a.svs'}\n")
    with pytest.raises(InputError, match=r"m\.csv: 1 slides have no patient_id"):
        go(model, path)


def test_what_failed_raises_by_choice(go, tiles, manifest):
    with pytest.raises(EmbeddingError, match="Se: failed at open") as caught:
        go(tiles, manifest, on_error="raise")
    (result,) = caught.value.embedded
    assert len(result.tile_artifacts) == 3


def test_the_result_goes_by_the_name_that_users_know():
    assert microtome.RunResult is microtome.PipelineResult
    known = ("tile", "hierarchical", "slide", "patient")
    result = microtome.RunResult()
    assert [getattr(result, f"{kind}_artifacts") for kind in known] == [[]] * 4
    assert result.process_list_path is None


def test_tiling_may_be_all(go, tiles, cohort):
    result = go(tiles, cohort / "a.svs", cohort / "b.svs", tiling_only=True)
    assert not result.tile_artifacts
    assert [row["tiling_status"] for row in rows(result)] == ["success", "success"]
    assert int(rows(result)[0]["num_tiles"]) > 0


def test_a_pipeline_needs_a_folder_and_slides(tiles, manifest, tmp_path):
    with pytest.raises(ValueError, match=r"give ExecutionOptions\(output_dir=…\)"):
        Pipeline(tiles)
    pipeline = Pipeline(tiles, execution=ExecutionOptions(output_dir=tmp_path))
    for arguments in ({}, {"slides": ["a.svs"], "manifest_path": manifest}):
        with pytest.raises(ValueError, match="one of the two"):
            pipeline.run(**arguments)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sample_id\na", "no column 'slide'"),
        ("sample_id,image_path\na,x.svs\na,y.svs", "2 slides have the sample_id 'a'"),
        ("image_path,spacing_at_level_0\nx.svs,wide", "line 2: spacing_at_level_0='wide'"),
    ],
)
def test_a_faulty_manifest_is_refused(go, tiles, tmp_path, text, told):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        go(tiles, path)


# Coordinates and archives that there are


def test_coordinates_of_ours_are_taken(go, tiles, plugins, cohort, tmp_path):
    first = go(tiles, cohort / "a.svs", cohort / "b.svs")
    folder = first.tile_artifacts[0].path.parent
    execution = ExecutionOptions(output_dir=tmp_path / "again")
    pipeline = Pipeline(Model.from_preset("seeded"), execution=execution)
    every = pipeline.run_with_coordinates(folder)
    assert [each.sample_id for each in every.tile_artifacts] == ["a", "b"]
    some = pipeline.run_with_coordinates(folder, slides=[cohort / "b.svs"])
    assert [each.sample_id for each in some.tile_artifacts] == ["b"]
    np.testing.assert_array_equal(some.tile_artifacts[0].load(), first.tile_artifacts[1].load())
    with pytest.warns(RuntimeWarning, match="c: failed at coords"):
        lost = pipeline.run_with_coordinates(folder, slides=[cohort / "c.svs"])
    assert list(lost.failed) == ["c"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds neither finished slides nor"):
        pipeline.run_with_coordinates(empty)


def test_hs2ps_own_459_coordinates(plugins, shared_data, tmp_path):
    """Fed through the pipeline, on a slide of the extent that their sidecar names."""
    slide = tmp_path / "test-wsi.tif"
    square = np.full((512, 512, 3), 200, np.uint8)
    tifffile.imwrite(
        slide,
        (square for _ in range(25 * 27)),
        shape=(12800, 13824, 3),
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="zlib",
        resolution=(1e4 / 0.252, 1e4 / 0.252),
        resolutionunit="CENTIMETER",
    )
    folder = shared_data / "peers/hs2p"
    pipeline = Pipeline(
        Model.from_preset("mean", level="tile"),
        PreprocessingConfig(segmentation={"method": "none"}),
        execution=ExecutionOptions(output_dir=tmp_path / "out", output_format="npz"),
    )
    result = pipeline.run_with_coordinates(coordinates_dir=folder, slides=[slide])
    (artifact,) = result.tile_artifacts
    assert artifact.shape == (459, 3)
    assert artifact.metadata["tile_size_lv0"] == 444
    assert artifact.metadata["requested_tile_size_px"] == 224
    assert artifact.metadata["requested_spacing_um"] == 0.5
    with np.load(artifact.path) as ours, np.load(folder / "test-wsi.coordinates.npz") as theirs:
        order = np.lexsort((theirs["x"], theirs["y"]))
        np.testing.assert_array_equal(ours["x"], theirs["x"][order])
        np.testing.assert_array_equal(ours["y"], theirs["y"][order])


def test_archives_stand_for_slides(go, tiles, cohort, tmp_path):
    settings = PreprocessingConfig(segmentation={"method": "otsu"}, save_tiles=True)
    first = go(tiles, cohort / "a.svs", cohort / "b.svs", settings=settings)
    (archives,) = (tmp_path / "out").glob("*/tiles")
    again = tiles.embed_slides(
        [tmp_path / "elsewhere" / "b.svs", {"image_path": "s3://far/a.svs", "sample_id": "a"}],
        preprocessing=PreprocessingConfig(read_tiles_from=archives),
    )
    assert [each.sample_id for each in again] == ["b", "a"]
    for embedded, kept in zip(again, reversed(first.tile_artifacts), strict=True):
        np.testing.assert_array_equal(embedded.tile_embeddings, kept.load())
    assert again[1].image_path == "s3://far/a.svs"


# Models on what is kept


@pytest.mark.parametrize("kind", ["hdf5", "zarr", "npz", "pt"])
def test_tiles_are_aggregated_as_a_run_does_it(plugins, cohort, tmp_path, kind):
    model = Model.from_preset("scaled")
    execution = ExecutionOptions(output_dir=tmp_path / kind, output_format=kind, save_latents=True)
    settings = PreprocessingConfig(segmentation={"method": "none"}, requested_tile_size_px=128)
    made = Pipeline(
        Model.from_preset("mean", level="tile"),
        settings,
        execution=ExecutionOptions(output_dir=tmp_path / "coords"),
    ).run([cohort / "a.svs", cohort / "b.svs"], tiling_only=True)
    assert made.process_list_path.exists()
    (folder,) = (tmp_path / "coords").glob("*/patches")
    tiles = model.embed_tiles([cohort / "b.svs", cohort / "a.svs"], folder, execution=execution)
    assert [each.sample_id for each in tiles] == ["b", "a"]
    slides = model.aggregate_tiles(tiles, execution=execution)
    assert [each.sample_id for each in slides] == ["b", "a"]
    for slide, of in zip(slides, tiles, strict=True):
        np.testing.assert_allclose(slide.load(), of.load().sum(0, dtype=np.float64), rtol=1e-6)
        assert slide.latent_path is not None
    # What is there already is what a run would make: nothing is encoded twice.
    again = model.aggregate_tiles([each.path for each in tiles], execution=execution)
    assert [each.path for each in again] == [each.path for each in slides]
    pipeline = Pipeline(model, PreprocessingConfig(resume=True), execution=execution)
    run = pipeline.run_with_coordinates(folder, slides=[cohort / "b.svs"])
    np.testing.assert_array_equal(run.slide_artifacts[0].load(), slides[0].load())


def test_tiles_of_another_model_are_not_aggregated(go, tiles, plugins, cohort):
    made = go(tiles, cohort / "a.svs", cohort / "b.svs")
    with pytest.raises(ValueError, match="needs the features"):
        Model.from_preset("scaled").aggregate_tiles(made.tile_artifacts)


def test_files_need_their_store_and_their_sidecar(go, tiles, plugins, cohort, tmp_path):
    made = go(tiles, cohort / "a.svs", cohort / "b.svs", output_format="npz").tile_artifacts[0]
    pool = Model.from_preset("pool", encoder="mean")
    lost = tmp_path / "lost" / "tile_embeddings"
    lost.mkdir(parents=True)
    (lost / "a.npz").write_bytes(made.path.read_bytes())
    with pytest.raises(LayoutError, match=r"There is no sidecar .*a\.meta\.json"):
        pool.aggregate_tiles([lost / "a.npz"])
    (lost / "a.meta.json").write_bytes(made.metadata_path.read_bytes())
    with pytest.raises(StoreError, match="is without the store"):
        pool.aggregate_tiles([lost / "a.npz"])


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_damaged_files_are_told(go, tiles, cohort, kind):
    made = go(tiles, cohort / "a.svs", cohort / "b.svs", output_format=kind).tile_artifacts[0]
    made.path.write_bytes(made.path.read_bytes()[:100])
    with pytest.raises(LayoutError, match=f"a.{kind} holds no"):
        made.load()
    made.metadata_path.write_text("[]")
    with pytest.raises(LayoutError, match="holds no fields"):
        _ = made.metadata


def test_a_tile_model_has_nothing_to_aggregate_without_tiles(go, plugins, cohort):
    model = Model.from_preset("handcrafted")
    execution = {"run": {"segmenter": "nothing"}}
    made = go(model, cohort / "a.svs", cohort / "b.svs", **execution)
    pool = Model.from_preset("pool", encoder="handcrafted")
    assert pool.aggregate_tiles(made.tile_artifacts) == []
