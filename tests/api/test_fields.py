"""Every field that users know sets what the table says it sets."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import Enum
from pathlib import Path

import pytest

from microtome import (
    ExecutionOptions,
    FilterConfig,
    Model,
    PreprocessingConfig,
    PreviewConfig,
    SegmentationConfig,
)
from microtome.api import choices
from microtome.api.fields import describe, notes
from microtome.api.jobs import Job
from microtome.api.samples import Sample
from microtome.errors import ConfigError
from microtome.run.settings import RunConfig

SECTIONS = {
    SegmentationConfig: "segmentation",
    FilterConfig: "filtering",
    PreviewConfig: "preview",
    PreprocessingConfig: "",
    ExecutionOptions: "",
}
HERE = str(Path(__file__).parent)

SAMPLES = {
    ("SegmentationConfig", "method"): ("hsv", {"segmenter": "threshold"}),
    ("SegmentationConfig", "sthresh"): (9, {"segmenter.saturation": 9}),
    ("SegmentationConfig", "close"): (5, {"segmenter.close": 5}),
    ("SegmentationConfig", "sam2_checkpoint_path"): (
        Path("/models/sam.pt"),
        {"segmenter.weights": "/models/sam.pt"},
    ),
    ("SegmentationConfig", "sam2_device"): ("cuda:1", {"segmenter.device": "cuda:1"}),
    ("SegmentationConfig", "options"): ({"sensitivity": 2.0}, {"segmenter.sensitivity": 2.0}),
    # 4 tiles of 200 px at 0.5 µm/px, and as many of 128 px as they are at 20x.
    ("FilterConfig", "ref_tile_size"): (200, {"tissue.min_region_um2": 4 * 100.0**2}),
    ("FilterConfig", "a_t"): (4, {"tissue.min_region_um2": 4 * 64.0**2}),
    ("FilterConfig", "a_h"): (2, {"tissue.min_hole_um2": 2 * 64.0**2}),
    ("FilterConfig", "filter_white"): (
        True,
        {"filter.enabled": True, "filter.black_gray_below": 0, "filter.white_value_from": 200},
    ),
    ("FilterConfig", "filter_black"): (
        True,
        {"filter.enabled": True, "filter.white_value_from": 256, "filter.black_gray_below": 50},
    ),
    ("FilterConfig", "white_threshold"): (220, {"filter.white_value_from": 220}),
    ("FilterConfig", "black_threshold"): (25, {"filter.black_gray_below": 25}),
    ("FilterConfig", "fraction_threshold"): (
        0.9,
        {"filter.white_drop_from": 0.9, "filter.black_drop_from": 0.9},
    ),
    ("FilterConfig", "filter_blur"): (True, {"inspector": "blur", "quality.drop": True}),
    ("PreviewConfig", "save_mask_preview"): (True, {"visualize": ("mask",)}),
    ("PreviewConfig", "save_tiling_preview"): (True, {"visualize": ("grid",)}),
    ("PreprocessingConfig", "backend"): ("openslide", {"reader": "openslide"}),
    ("PreprocessingConfig", "requested_spacing_um"): (0.5, {"tiler.mpp": 0.5}),
    ("PreprocessingConfig", "requested_tile_size_px"): (128, {"tiler.size": 128}),
    ("PreprocessingConfig", "tolerance"): (0.07, {"tiler.max_upsample": 1.07}),
    ("PreprocessingConfig", "overlap"): (0.25, {"tiler.step": 96}),
    ("PreprocessingConfig", "tissue_threshold"): (0.1, {"tiler.min_tissue": 0.1}),
    ("PreprocessingConfig", "segmentation"): ({"method": "otsu"}, {"segmenter": "otsu"}),
    ("PreprocessingConfig", "filtering"): (
        {"a_t": 1, "filter_white": True},
        {"tissue.min_region_um2": 64.0**2, "filter.enabled": True},
    ),
    ("PreprocessingConfig", "preview"): (
        {"save_mask_preview": True, "save_tiling_preview": True},
        {"visualize": ("mask", "grid")},
    ),
    ("PreprocessingConfig", "requested_region_size_px"): (
        256,
        {"tiler.region_size": 256, "tiler.region_tiles": 2},
    ),
    ("PreprocessingConfig", "region_tile_multiple"): (6, {"tiler.region_tiles": 6}),
    ("PreprocessingConfig", "read_coordinates_from"): (
        HERE,
        {"tiler": "stored", "tiler.stored.folder": HERE},
    ),
    ("PreprocessingConfig", "read_tiles_from"): (
        HERE,
        {"tiler": "archive", "segmenter": "none", "slides": f"{HERE}/s.tar"},
    ),
    ("PreprocessingConfig", "save_tiles"): (True, {"writer.tar": True}),
    ("PreprocessingConfig", "on_the_fly"): (False, {"writer.tar": True}),
    ("PreprocessingConfig", "adaptive_batching"): (True, {"encoder.batch_size": None}),
    ("PreprocessingConfig", "resume"): (True, {"force": False}),
    ("PreprocessingConfig", "tiler"): ({"edge": "pad"}, {"tiler": "grid", "tiler.edge": "pad"}),
    ("ExecutionOptions", "output_dir"): ("/models/out", {"output": Path("/models/out")}),
    ("ExecutionOptions", "output_format"): ("zarr", {"writer": "zarr"}),
    ("ExecutionOptions", "batch_size"): (7, {"encoder.batch_size": 7}),
    ("ExecutionOptions", "precision"): ("fp32", {"precision": "fp32"}),
    ("ExecutionOptions", "output_dtype"): ("fp16", {"feature_dtype": "float16"}),
    ("ExecutionOptions", "num_workers"): (3, {"reader_threads": 3}),
    ("ExecutionOptions", "num_preprocessing_workers"): (2, {"threads": 2}),
    ("ExecutionOptions", "save_latents"): (True, {"latents": True}),
    ("ExecutionOptions", "run"): ({"profile": True}, {"profile": True}),
}
"""A value of each field, and the keys of a run that it sets."""

BESIDE = {
    "sthresh": {"method": "threshold"},
    "close": {"method": "otsu"},
    "sam2_checkpoint_path": {"method": "sam2"},
    "sam2_device": {"method": "sam2"},
    "ref_tile_size": {"a_t": 4},
    "white_threshold": {"filter_white": True},
    "black_threshold": {"filter_black": True},
    "fraction_threshold": {"filter_white": True},
}
"""What else a field needs to mean anything."""

ELSEWHERE = {
    # Devices are told by `test_several_gpus_…`, files by the tests of pipelines.
    *(("ExecutionOptions", name) for name in ("num_gpus", "save_tile_embeddings")),
    ("ExecutionOptions", "save_slide_embeddings"),
}


KEPT = ("tile_embeddings", "slide_embeddings", "latents")


def fields_of(*, refused=False):
    return [each for owner in SECTIONS for each in describe(owner) if each.refused == refused]


def compose(tmp_path, preprocessing=None, execution=None):
    """Give the run that settings compose, without doing it."""
    job = Job(
        model=Model.from_preset("handcrafted"),
        samples=(Sample(sample_id="s", image_path=tmp_path / "s.svs"),),
        preprocessing=preprocessing or PreprocessingConfig(),
        execution=execution or ExecutionOptions(),
        output=(execution and execution.folder) or tmp_path,
    )
    if str(job.output).startswith("/models"):
        return replace(compose(tmp_path), output=job.output)
    config, _ = job.config(job.samples, masked=False)
    return config


def value(config: RunConfig, key):
    """Look a key of a command line up in a run."""
    head, _, rest = key.partition(".")
    if key == "slides":
        row = Path(config.slides[0]).read_text().splitlines()[1]
        return row.partition(",")[0]
    if head in ("writer", "inspector"):
        names = [choice.plugin for choice in getattr(config, f"{head}s")]
        return rest in names if rest else names[0]
    if head == "encoder":
        return getattr(config.encoders[0], rest)
    if head in ("tiler", "segmenter", "reader", "engine"):
        choice = getattr(config, head)
        found = getattr(choice.config, rest.rpartition(".")[2]) if rest else choice.plugin
        return found.value if isinstance(found, Enum) else found
    section = getattr(config, head)
    return getattr(section, rest) if rest else section


def test_every_field_is_tested():
    known = {(each.owner, each.name) for each in fields_of() if each.onto}
    assert known == {*SAMPLES} | ELSEWHERE


@pytest.mark.parametrize("where", SAMPLES, ids=".".join)
def test_a_field_sets_what_the_table_says(where, tmp_path):
    owner_name, name = where
    given, expected = SAMPLES[where]
    owner = next(each for each in SECTIONS if each.__name__ == owner_name)
    part = owner(**{name: given, **BESIDE.get(name, {})})
    section = SECTIONS[owner]
    own = {"requested_tile_size_px": 128}
    if owner is ExecutionOptions:
        config = compose(tmp_path, execution=part)
    elif section:
        config = compose(tmp_path, PreprocessingConfig(**{section: part}, **own))
    else:
        config = compose(tmp_path, replace(part, **own))
    for key, wanted in expected.items():
        found = value(config, key)
        assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key
    row = next(each for each in describe(owner) if each.name == name)
    for key in row.onto:
        head = key.partition(".")[0]
        assert head == "run" or any(each.partition(".")[0] == head for each in expected), key


def test_defaults_set_nothing_but_what_is_ours(tmp_path):
    config = compose(tmp_path)
    plain = RunConfig(slides=("a",), output=tmp_path)
    changed = {
        each.name
        for each in fields(RunConfig)
        if getattr(config, each.name) != getattr(plain, each.name)
    }
    # The choices themselves are made, at their defaults.
    assert changed == {
        *("slides", "run_dir", "tiling", "tiler", "encoders", "writers", "force", "resolved")
    }
    grid = config.tiler.config
    assert grid == type(grid)()
    assert config.tiling == "auto"


def test_the_defaults_are_those_that_users_know():
    settings = PreprocessingConfig()
    assert settings.backend == "auto"
    assert settings.requested_spacing_um is settings.requested_tile_size_px is None
    assert settings.on_the_fly is settings.use_supertiles is True
    assert settings.read_coordinates_from is settings.read_tiles_from is None
    assert settings.region_tile_multiple is settings.requested_region_size_px is None
    assert settings.resume is False
    options = ExecutionOptions()
    assert options.batch_size == 32
    assert options.num_gpus is options.precision is options.output_dir is None
    assert options.num_workers is options.num_preprocessing_workers is None
    assert options.prefetch_factor == 4
    assert options.persistent_workers is True
    assert not any(getattr(options, f"save_{what}") for what in KEPT)


def test_what_the_examples_of_others_say_is_understood(tmp_path):
    settings = PreprocessingConfig(
        segmentation={"downsample": 64},
        filtering={"ref_tile_size": 224},
        preview={"save_mask_preview": False, "save_tiling_preview": False, "downsample": 32},
    )
    config = compose(tmp_path, settings)
    told = " ".join(config.derived)
    assert "SegmentationConfig.downsample=64 changes nothing: Each segmenter" in told
    assert "PreviewConfig.downsample=32 changes nothing" in told
    plain = compose(tmp_path)
    assert replace(config, derived=(), run_dir=None, slides=(), resolved={}) == replace(
        plain, run_dir=None, slides=(), resolved={}
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (PreprocessingConfig(use_supertiles=False), "PreprocessingConfig.use_supertiles=False"),
        (ExecutionOptions(prefetch_factor=8), "ExecutionOptions.prefetch_factor=8"),
        (ExecutionOptions(persistent_workers=False), "ExecutionOptions.persistent_workers=False"),
    ],
)
def test_a_hint_is_told_to_change_nothing(settings, told):
    assert [note.partition(" changes nothing: ")[0] for note in notes(settings)] == [told]


@pytest.mark.parametrize("row", fields_of(refused=True), ids=lambda row: row.name)
def test_what_has_no_counterpart_is_refused_with_the_way_out(row):
    owner = next(each for each in SECTIONS if each.__name__ == row.owner)
    with pytest.raises(ConfigError, match=f"{row.name}=.* has no counterpart: ") as caught:
        owner(**{row.name: {"pixel_mapping": {}} if row.default == "None" else True})
    assert row.says in str(caught.value)


@pytest.mark.parametrize("backend", ["asap", "nonsense"])
def test_an_unknown_backend_names_the_others(tmp_path, backend):
    with pytest.raises(ValueError, match="no reader of that name") as caught:
        compose(tmp_path, PreprocessingConfig(backend=backend))
    for name in ("auto", "cucim", "openslide", "vips"):
        assert name in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "cucim", "openslide", "vips"])
def test_a_backend_is_a_reader(tmp_path, backend):
    assert compose(tmp_path, PreprocessingConfig(backend=backend)).reader.plugin == backend


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ExecutionOptions(output_format="csv"), "output_format='csv' is not one of hdf5"),
        (lambda: ExecutionOptions(precision="fp64"), "precision='fp64' is not one of"),
        (lambda: ExecutionOptions(output_dtype="bf16"), "output_dtype='bf16' is not one of"),
        (lambda: ExecutionOptions(num_gpus=0), "num_gpus=0 must be a number of 1 or more"),
        (lambda: ExecutionOptions(batch_size=0), "batch_size=0 must be"),
        (lambda: ExecutionOptions(num_workers=-1), "num_workers=-1 must be"),
        (lambda: PreprocessingConfig(requested_spacing_um=0), "must be above 0"),
        (lambda: PreprocessingConfig(overlap=1.0), "overlap=1 must be below 1"),
        (lambda: PreprocessingConfig(segmentation={"mode": 1}), "SegmentationConfig named 'mode'"),
        (lambda: PreprocessingConfig(filtering=3), "3 is no FilterConfig"),
        (lambda: SegmentationConfig(sthresh=8), "sthresh is for method=threshold, not for our"),
        (lambda: SegmentationConfig(method="otsu", sam2_device="cpu"), "is for method=sam2"),
        (
            lambda: PreprocessingConfig(read_coordinates_from="a", read_tiles_from="b"),
            "two sources",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are four GPUs."""
    monkeypatch.setattr(choices, "count_gpus", lambda: 4)


def spread(slides, num_gpus=None, **model):
    execution = ExecutionOptions(num_gpus=num_gpus)
    return choices.spread(Model.from_preset("resnet18", **model), execution, slides)


def test_several_gpus_share_slides_or_the_tiles_of_one(gpus):
    assert spread(9) == {"engine": {"local": {"devices": [0, 1, 2, 3]}}}
    assert spread(9, 2) == {"engine": {"local": {"devices": [0, 1]}}}
    assert spread(3) == {"engine": {"local": {"devices": [0, 1, 2]}}}
    assert spread(1) == {"tile_devices": [f"cuda:{index}" for index in range(4)]}
    assert spread(1, 1) == spread(9, 1) == {}


def test_gpus_that_are_not_there_are_refused(gpus, monkeypatch):
    with pytest.raises(ValueError, match="num_gpus=5 was asked for, and torch sees 4"):
        spread(9, 5)
    with pytest.raises(ValueError, match="num_gpus=2 and device='cpu' contradict"):
        spread(9, 2, device="cpu")
    assert spread(9, device="cpu") == spread(9, 1, device="cuda:1") == {}
    monkeypatch.setattr(choices, "count_gpus", lambda: 0)
    assert spread(9) == spread(9, 1) == {}
    # What does not run with torch has no use for them.
    execution = ExecutionOptions(num_gpus=1)
    assert choices.spread(Model.from_preset("handcrafted"), execution, 2) == {}
