"""What a new user of the Python face meets: refusals in a sentence, before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import microtome
from microtome import (
    ExecutionOptions,
    FilterConfig,
    Model,
    Pipeline,
    PreprocessingConfig,
    SegmentationConfig,
    SilentReporter,
    TileDataset,
)
from microtome.api.words import in_python
from microtome.errors import (
    ConfigError,
    EncoderError,
    IdentityError,
    InputError,
    MicrotomeError,
    StoreError,
    UnknownPluginError,
)
from microtome.testing import make_slide

FAST = {"segmentation": {"method": "otsu"}}


@pytest.fixture
def tiles(plugins):
    """Give a tile model that costs nothing."""
    return Model.from_preset("mean", level="tile")


@pytest.fixture
def kept(tiles, cohort, tmp_path):
    """Embed two slides into ``tmp_path/out``."""
    execution = ExecutionOptions(output_dir=tmp_path / "out", output_format="npz")
    return Pipeline(tiles, FAST, execution=execution).run([cohort / "a.svs", cohort / "b.svs"])


def test_files_of_something_else_are_refused_before_anything_is_computed(
    kept, tiles, cohort, tmp_path
):
    before = sorted((tmp_path / "out").glob("*/patches/*"))
    settings = PreprocessingConfig(**FAST, resume=True, requested_tile_size_px=64)
    execution = {"output_dir": tmp_path / "out", "output_format": "npz"}
    with pytest.raises(IdentityError, match=r"a\.npz was made of something else"):
        Pipeline(tiles, settings, execution=execution).run([cohort / "a.svs", cohort / "b.svs"])
    assert sorted((tmp_path / "out").glob("*/patches/*")) == before


def test_the_output_of_a_pipeline_is_a_dataset(kept, tiles, cohort, tmp_path):
    out = tmp_path / "out"
    dataset = TileDataset(out)
    assert dataset.slide_ids == ("a", "b")
    execution = ExecutionOptions(output_dir=out)
    other = PreprocessingConfig(**FAST, requested_tile_size_px=64)
    Pipeline(tiles, other, execution=execution).run([cohort / "a.svs"])
    with pytest.raises(InputError, match=r"finished slides of 2 tilings, .*: give the folder of"):
        TileDataset(out)
    with pytest.raises(InputError, match="There is no folder"):
        TileDataset(tmp_path / "nope")
    with pytest.raises(StoreError, match="There is no file"):
        TileDataset(tmp_path / "nope.h5")
    store = microtome.open_result(next(out.glob("*/patches/a.h5")))
    with store, pytest.raises(ConfigError, match=r"'nope' of a, which has .*tissue_fraction"):
        TileDataset(next(out.glob("*/patches/a.h5")), keep=lambda c: c["nope"] > 1)


class Faulty(SilentReporter):
    """Raises in one of its methods."""

    def __init__(self, where):
        self.where, self.calls = where, 0

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "where"):
            self.calls += 1
            raise ValueError("my own fault")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("where", ["start", "note", "stage", "advance", "finished"])
def test_a_reporter_that_raises_is_dropped(tiles, cohort, where, capsys):
    reporter = Faulty(where)
    with microtome.activate_progress_reporter(reporter):
        embedded = tiles.embed_slide(cohort / "a.svs", preprocessing=FAST)
    assert len(embedded.tile_embeddings)
    assert reporter.calls == 1
    told = capsys.readouterr().err
    assert told.count("the reporter Faulty was dropped: ValueError: my own fault") == 1
    # The default goes on from there.
    assert "[1/1" in told


def test_a_reporter_of_ones_own_is_a_reporter(tiles, cohort):
    heard = []

    class Mine(microtome.SilentReporter):
        def finished(self, status):
            heard.append(status.slide_id)

    reporter: microtome.Reporter = Mine()
    with microtome.activate_progress_reporter(reporter):
        tiles.embed_slide(cohort / "a.svs", preprocessing=FAST)
    assert heard == ["a"]


def test_a_map_of_patients_names_slides_that_are_given(plugins, cohort):
    model = Model.from_preset("of_nominal")
    slides = [{"image_path": cohort / "a.svs", "sample_id": "slide_g"}]
    with pytest.raises(ConfigError, match=r"'slide_gg'. Did you mean 'slide_g'\? Given are"):
        model.embed_patients(slides, patient_id_map={"slide_gg": "Q"}, preprocessing=FAST)


def test_a_pooling_reads_the_encoder_that_it_was_made_for(kept, plugins):
    store = (
        kept.tile_artifacts[0].path.parent.parent
        / json.loads(kept.tile_artifacts[0].metadata_path.read_text())["store"]
    )
    pooling = Model.from_preset("mean", level="slide", encoder="handcrafted")
    with pytest.raises(EncoderError, match="read features of handcrafted, and a has those of mean"):
        pooling.aggregate_tiles([store])
    own = Model.from_preset("mean", level="slide", encoder="mean")
    (pooled,) = own.aggregate_tiles(store)
    np.testing.assert_allclose(pooled.load(), kept.tile_artifacts[0].load().mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PreprocessingConfig(requested_spacing_um="0.5"), "must be a number or None"),
        (lambda: PreprocessingConfig(overlap=None), "overlap=None must be a number"),
        (lambda: PreprocessingConfig(tissue_threshold="x"), "tissue_threshold='x' must be a num"),
        (lambda: PreprocessingConfig(tissue_threshold=float("nan")), "tissue_threshold=nan must"),
        (lambda: PreprocessingConfig(tissue_threshold=2), "must be a number from 0 to 1"),
        (lambda: PreprocessingConfig(requested_tile_size_px=128.0), "px=128.0 must be a whole"),
        (lambda: PreprocessingConfig(region_tile_multiple=2.5), "=2.5 must be a whole number"),
        (lambda: PreprocessingConfig(resume=1), "resume=1 must be True or False"),
        (lambda: PreprocessingConfig(tiler=3), "tiler=3 must be a mapping"),
        (lambda: PreprocessingConfig(tile_size=3), "no field of PreprocessingConfig named 'tile_"),
        (lambda: ExecutionOptions(output_directory="a"), "Did you mean 'output_dir'"),
        (lambda: ExecutionOptions(batch_size=1.5), "batch_size=1.5 must be a whole number or None"),
        (lambda: ExecutionOptions(batch_size=True), "batch_size=True must be"),
        (lambda: ExecutionOptions(output_dir=3), "output_dir=3 must be text or a path or None"),
        (lambda: FilterConfig(white_threshold=220), "filters nothing without filter_white=True"),
        (lambda: FilterConfig(fraction_threshold=0.5), "without filter_white or filter_black=True"),
        (
            lambda: PreprocessingConfig(tiler={"size": 64}, requested_tile_size_px=128),
            r"tiler=\{'size': 64\} and requested_tile_size_px=128 set the same option",
        ),
        (
            lambda: SegmentationConfig(method="otsu", close=3, options={"close": 4}),
            "set the same option",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_when_it_is_given(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_numbers_of_numpy_are_numbers():
    settings = PreprocessingConfig(
        requested_tile_size_px=np.int64(128), requested_spacing_um=np.float32(0.5)
    )
    assert type(settings.requested_tile_size_px) is int
    assert type(settings.requested_spacing_um) is float


def test_settings_are_ours_or_a_mapping_of_them(tiles, cohort):
    slide = tiles.embed_slide(cohort / "a.svs", preprocessing=FAST, execution={"batch_size": 8})
    assert len(slide.tile_embeddings)
    with pytest.raises(ConfigError, match="field of ExecutionOptions named 'batch'"):
        tiles.embed_slide(cohort / "a.svs", execution={"batch": 8})
    with pytest.raises(ConfigError, match="3 is no PreprocessingConfig"):
        tiles.embed_slide(cohort / "a.svs", preprocessing=3)


@pytest.mark.parametrize(
    "options",
    [
        {"preprocessing": {"save_tiles": True}},
        {"preprocessing": {"on_the_fly": False}},
        {"preprocessing": {"preview": {"save_mask_preview": True}}},
        {"execution": {"output_format": "zarr"}},
        {"execution": {"output_format": "npz"}},
    ],
)
def test_files_need_a_folder(tiles, cohort, options):
    with pytest.raises(ConfigError, match="output_dir"):
        tiles.embed_slide(cohort / "a.svs", **options)


def test_names_of_models(plugins):
    assert Model.from_preset("MahmoodLab/UNI2-h").name == "uni_v2"
    assert Model.from_preset("MahmoodLab/TITAN", level="slide").name == "titan"
    with pytest.raises(ConfigError, match=r"several models: .*titan \(the hub\)"):
        Model.from_preset("MahmoodLab/TITAN")
    for name in (None, 3, ""):
        with pytest.raises(ConfigError, match="is no name of a model"):
            Model.from_preset(name)
    with pytest.raises(UnknownPluginError, match=r"Near it are 'resnet18'.*list_models") as told:
        Model.from_preset("resnet-81")
    assert len(str(told.value)) < 300


def test_an_embedded_slide_is_written_in_a_line(tiles, cohort):
    embedded = tiles.embed_slide(cohort / "a.svs", preprocessing=FAST)
    count = len(embedded.x)
    assert f"tile_embeddings=<{count}×3 float32>" in repr(embedded)
    assert len(repr(embedded)) < 400
    assert "torch.float32" in repr(embedded.as_tensors())


def test_a_manifest_is_no_slide(tiles, tmp_path):
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("sample_id,image_path\n")
    pipeline = Pipeline(tiles, execution={"output_dir": tmp_path / "out"})
    for go in (pipeline.run, tiles.embed_slide, tiles.embed_slides):
        with pytest.raises(ConfigError, match=r"cohort\.csv is no slide.*manifest_path="):
            go(str(manifest))


def test_what_is_not_there_is_said_plainly(tmp_path, plugins):
    pooling = Model.from_preset("mean", level="slide", encoder="mean")
    for name in ("nope.npz", "nope.h5"):
        for given in (str(tmp_path / name), [tmp_path / name]):
            with pytest.raises(StoreError, match=rf"^There is no file .*{name}\.$"):
                pooling.aggregate_tiles(given)
    with pytest.raises(StoreError, match="There is no file"):
        microtome.open_result(tmp_path / "nope.h5")
    with pytest.raises(StoreError, match="There is no file"):
        microtome.to_anndata(tmp_path / "nope.h5")


def test_paths_stay_right_in_another_folder(tiles, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execution = ExecutionOptions(output_dir="here", output_format="npz")
    (embedded,) = tiles.embed_slides([cohort / "a.svs"], preprocessing=FAST, execution=execution)
    result = Pipeline(tiles, FAST, execution=execution).run([cohort / "a.svs"])
    (artifact,) = result.tile_artifacts
    paths = [embedded.path, embedded.mask_path, artifact.path, artifact.metadata_path]
    assert all(path.is_absolute() for path in (*paths, result.process_list_path))
    assert artifact.metadata["requested_spacing_um"] is None
    assert artifact.metadata["mask_path"].startswith("/")


def test_an_implausible_spacing_is_told_as_such(tiles, cohort):
    slide = {"image_path": cohort / "a.svs", "spacing_at_level_0": 1e9}
    with pytest.raises(MicrotomeError, match=r"outside the plausible 0\.1 to 10"):
        tiles.embed_slide(slide, preprocessing=FAST)


def test_a_synthetic_slide_makes_its_folder(tmp_path):
    path = make_slide(tmp_path / "new" / "a.svs", size=(256, 256)).path
    assert path.exists()


def test_errors_name_fields_of_python(tiles, cohort, tmp_path, capsys):
    path = make_slide(tmp_path / "plain.svs", size=(512, 512), record_mpp=False, magnification=None)
    slides = [path.path, {"image_path": cohort / "nope.svs", "sample_id": "nope"}]
    with (
        microtome.activate_progress_reporter(None),
        pytest.warns(RuntimeWarning, match="2 could not be embedded"),
    ):
        result = Pipeline(tiles, FAST, execution={"output_dir": tmp_path / "out"}).run(slides)
    assert "In Python, mpp and mpp_csv: a slide's spacing_at_level_0." in result.failed["plain"]
    told = capsys.readouterr().err
    assert "a slide's spacing_at_level_0" in told
    assert "nope" in told
    assert "slides.csv" not in told + str(result.failed)
    tiles_of = PreprocessingConfig(region_tile_multiple=2, tiler={"step": 64})
    with pytest.raises(ConfigError, match=r"tiler\.size: PreprocessingConfig\.requested_tile_size"):
        tiles.embed_slide(cohort / "a.svs", preprocessing=tiles_of)
    assert in_python("Use force=true.") == (
        "Use force=true. In Python, force: PreprocessingConfig(resume=False)."
    )
    assert (
        in_python("PreprocessingConfig.tiler=3 is wrong") == "PreprocessingConfig.tiler=3 is wrong"
    )
