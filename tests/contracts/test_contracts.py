"""Every plugin that is installed, through the contract of its kind.

A class for each name is made below. What a plugin needs to be tested by (random weights, a mask
beside the slide) is said here, and nowhere else what is skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import annotation_files
import numpy as np
import pytest
import tile_tables
from PIL import Image

from microtome.errors import GeometryError
from microtome.plugin import ReaderSpec
from microtome.plugin.options import configure
from microtome.plugin.registry import Registered, get_registry
from microtome.run.slides.attributes import tile_attributes
from microtome.slide.opening import open_slide
from microtome.slide.tiling import GridTiler
from microtome.slide.types import SlideInfo, SlideRef, TissueMask
from microtome.store.exchange import TiledSlide
from microtome.store.identity import make_identity
from microtome.testing import (
    AnnotationContract,
    EncoderContract,
    EngineContract,
    InspectorContract,
    LayoutContract,
    PatchWriterContract,
    PatientEncoderContract,
    ReaderContract,
    SegmenterContract,
    SlideEncoderContract,
    TaskContract,
    TilerContract,
    TileWriterContract,
    WriterContract,
    make_info,
    make_mask,
)
from microtome.testing.contracts import PluginContract
from microtome.testing.contracts.base import HEAVY
from microtome.testing.contracts.reader import Sample
from microtome.testing.synthetic import SyntheticSlide, make_slide
from microtome_training.sampling.files import write_sample

LARGEST = 15_000_000
"""Parameters up to which a model is run here; of larger ones the card alone is tested."""

ENCODER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "timm": {"model": "resnet10t", "weights": "random"},
    "torchvision": {"model": "squeezenet1_1", "weights": "random"},
}


class CucimContract(ReaderContract):
    def make_sample(self, folder: Path, spec: ReaderSpec) -> Sample:
        """It is trusted with JPEG only, whose pixels are not those that were painted."""
        return Sample(make_slide(folder / "sample.svs", size=(1000, 700)).path)


class FileSegmenterContract(SegmenterContract):
    least_iou = 0.9

    def make_ref(self, slide: SyntheticSlide) -> SlideRef:
        path = slide.path.with_suffix(".mask.png")
        Image.fromarray(slide.tissue.astype(np.uint8) * 255).save(path)
        return SlideRef(path=slide.path, slide_id=slide.path.stem, mask_path=path)

    test_glass_is_not_tissue = None


class IndexPickleContract(LayoutContract):
    """It holds labelled tiles on the pixels of a halved level, all slides in one file."""

    holds_features = False

    def make_slide(self, **shape: Any) -> TiledSlide:
        slide = super().make_slide(**shape)
        labels = (np.arange(len(slide.coords)) % 2).astype(np.int16)
        classes = {"classes": ["normal", "tumor"]}
        return replace(slide, columns={"label": labels}, attributes=classes)

    # Refused, and a damaged file is no slide's alone: tests/layouts/test_index_pickle.py.
    test_its_geometry_comes_back = None
    test_a_damaged_file_fails_its_slide_alone = None


class QupathContract(LayoutContract):
    """It draws tiles, and what is drawn in QuPath is read as annotations."""

    holds_features = False
    is_imported = False


class SlurmContract(EngineContract):
    """submitit's local executor stands in for SLURM. Each job imports everything anew."""

    options: ClassVar[Mapping[str, Any]] = {"cluster": "local"}
    pytestmark: ClassVar[Any] = pytest.mark.slow


class RayContract(EngineContract):
    """Each run starts a cluster of its own."""

    pytestmark: ClassVar[Any] = pytest.mark.slow


class StoredTilerContract(TilerContract):
    """It is given the grid's tiles of the same slide; tissue says nothing more."""

    @pytest.fixture
    def config(self, entry: Registered, info: SlideInfo, mask: TissueMask, tmp_path: Path) -> Any:
        grid = GridTiler().plan(info, mask)
        identity = make_identity("coords", {"of": "a test"})
        ref = SlideRef(path=info.path, slide_id=info.path.stem)
        attributes = tile_attributes(ref, info, grid.geometry, identity=identity, tiles=len(grid))
        writer = get_registry().create("writer", "hdf5")
        writer.create(tmp_path / f"{ref.slide_id}.h5", grid.coords, grid.columns, attributes)
        return configure(entry.spec, folder=str(tmp_path))

    test_no_tissue_gives_no_tile = None

    def test_a_tiny_slide_gives_few_tiles_or_a_reason(self, tiler: Any) -> None:
        """Another slide than that of the tiles is refused."""
        info = make_info(size=(40, 30), levels=(1,))
        with pytest.raises(GeometryError, match=r"the downsamples 1|is of a slide of"):
            tiler.plan(info, make_mask(info, downsample=2))


class SampledTilerContract(TilerContract):
    """It is given a sample of the grid's tiles of the same slide; tissue says nothing more."""

    @pytest.fixture
    def config(self, entry: Registered, info: SlideInfo, mask: TissueMask, tmp_path: Path) -> Any:
        grid = GridTiler().plan(info, mask)
        tiles = tile_tables.on_grid(grid, info).take(np.arange(0, len(grid), 3))
        write_sample(tmp_path / "s.parquet", tiles, make_identity("sample", {"of": "a test"}))
        return configure(entry.spec, sample_file=str(tmp_path / "s.parquet"))

    test_no_tissue_gives_no_tile = None

    def test_a_tiny_slide_gives_few_tiles_or_a_reason(self, tiler: Any) -> None:
        """Another slide than that of the tiles is refused."""
        info = replace(make_info(size=(40, 30), levels=(1.5,)), path=Path("sample.svs"))
        with pytest.raises(GeometryError, match=r"has the downsamples 1\.5"):
            tiler.plan(info, make_mask(info, downsample=2))


def write_archive(path: Path, slide: SyntheticSlide, side: int, size: int) -> Path:
    """Archive all of a slide in tiles, as they lie at level 0 or at a fraction of that."""
    width, height = slide.recipe.size
    places = [[x, y] for y in range(0, height, side) for x in range(0, width, side)]
    info = make_info(size=slide.recipe.size, levels=(1,))
    geometry = replace(
        GridTiler().plan(info, make_mask(info, downsample=8)).geometry,
        **{"size": size, "step": size, "read_size": (side, side), "pitch": (side, side)},
        size_level0=(float(side), float(side)),
        pitch_level0=(float(side), float(side)),
    )
    identity = make_identity("coords", {"of": "a test"})
    ref = SlideRef(path=info.path, slide_id="sample")
    coords = np.array([[x, y, side, side, 0] for x, y in places], np.int32)
    pixels = [slide.image[y : y + side, x : x + side, :3][:: side // size] for x, y in places]
    sink = get_registry().create("writer", "tar").open(path, "sample", {})
    sink.write(coords, np.stack(pixels)[:, :, :: side // size])
    told = tile_attributes(ref, info, geometry, identity=identity, tiles=len(coords))
    sink.record({**told, "coords": coords.tolist()})
    sink.close()
    return path


class ArchiveContract(ReaderContract):
    def make_sample(self, folder: Path, spec: ReaderSpec) -> Sample:
        """All of a slide, in tiles as they lie at level 0."""
        slide = make_slide(folder / "sample.svs", size=(700, 500), compression="lzw")
        return Sample(write_archive(folder / "sample.tar", slide, 50, 50), slide.image)


class ArchiveTilerContract(TilerContract):
    """It is given archives; tissue says nothing more."""

    @pytest.fixture(params=[128, 64], ids=["as at level 0", "half of it"])
    def info(self, request: pytest.FixtureRequest, tmp_path: Path) -> SlideInfo:
        slide = make_slide(tmp_path / "s.svs", size=(1024, 768), compression="lzw")
        path = write_archive(tmp_path / "s.tar", slide, 128, request.param)
        with open_slide(SlideRef(path=path, slide_id="s")) as opened:
            return opened.info

    test_no_tissue_gives_no_tile = None

    def test_a_tiny_slide_gives_few_tiles_or_a_reason(self, tiler: Any) -> None:
        """What is no archive is refused."""
        info = make_info(size=(40, 30), levels=(1,))
        with pytest.raises(GeometryError, match="is no tile archive"):
            tiler.plan(info, make_mask(info, downsample=2))


class NoSegmenterContract(SegmenterContract):
    least_iou = None


class Sam2Contract(NoSegmenterContract):
    """The whole network; a small one is in tests/segmenters/test_sam2.py."""

    pytestmark: ClassVar[Any] = pytest.mark.slow


class TiledSegmenterContract(NoSegmenterContract):
    """The whole network on a few tiles; small ones are in tests/segmenters/test_tiled.py."""

    pytestmark: ClassVar[Any] = pytest.mark.slow

    @pytest.fixture
    def slide(self, tmp_path: Path) -> SyntheticSlide:
        return make_slide(tmp_path / "s.svs", size=(500, 300), mpp=8.0, magnification=1.25)


class LargeInspectorContract(InspectorContract):
    """A whole network; tests/segmenters/test_grandqc.py runs it once."""

    pytestmark: ClassVar[Any] = pytest.mark.slow


class TissueContract(SegmenterContract):
    least_iou = 0.8


class LargeEncoderContract(EncoderContract):
    """A model that would take minutes on two cores: nothing that loads it."""


for _test in vars(EncoderContract):
    if _test.startswith("test_") and _test not in (
        "test_its_card_is_complete_before_loading",
        "test_its_weights_have_a_name",
    ):
        setattr(LargeEncoderContract, _test, None)


class PublishedSlideContract(SlideEncoderContract):
    """A model whose weights or code are not to be had here: nothing that loads it."""


class PublishedPatientContract(PatientEncoderContract):
    """Likewise."""


for _published in (PublishedSlideContract, PublishedPatientContract):
    for _name in [name for name in dir(_published) if name.startswith("test_")]:
        if "encoder" in signature(getattr(_published, _name)).parameters:
            setattr(_published, _name, None)


PUBLISHED: Mapping[str, type[PluginContract]] = {
    "slide_encoder": PublishedSlideContract,
    "patient_encoder": PublishedPatientContract,
}
GENERAL: Mapping[str, type[PluginContract]] = {
    "reader": ReaderContract,
    "segmenter": TissueContract,
    "tiler": TilerContract,
    "inspector": InspectorContract,
    "encoder": EncoderContract,
    "slide_encoder": SlideEncoderContract,
    "patient_encoder": PatientEncoderContract,
    "writer": WriterContract,
    "engine": EngineContract,
    "layout": LayoutContract,
    "task": TaskContract,
    "annotation": AnnotationContract,
}
SPECIAL: Mapping[tuple[str, str], type[PluginContract]] = {
    ("reader", "cucim"): CucimContract,
    ("tiler", "stored"): StoredTilerContract,
    ("tiler", "sampled"): SampledTilerContract,
    ("segmenter", "file"): FileSegmenterContract,
    ("segmenter", "none"): NoSegmenterContract,
    ("segmenter", "sam2"): Sam2Contract,
    ("segmenter", "grandqc"): TiledSegmenterContract,
    ("segmenter", "hest"): TiledSegmenterContract,
    ("inspector", "grandqc"): LargeInspectorContract,
    ("writer", "png"): TileWriterContract,
    ("writer", "tar"): TileWriterContract,
    ("writer", "imagefolder"): PatchWriterContract,
    ("writer", "lmdb"): PatchWriterContract,
    ("writer", "patches"): PatchWriterContract,
    ("writer", "webdataset"): PatchWriterContract,
    ("reader", "archive"): ArchiveContract,
    ("tiler", "archive"): ArchiveTilerContract,
    ("engine", "slurm"): SlurmContract,
    ("engine", "ray"): RayContract,
    ("layout", "index_pickle"): IndexPickleContract,
    ("layout", "qupath"): QupathContract,
    **{("annotation", name): made for name, made in annotation_files.FORMATS.items()},
}


def contract(kind: str, name: str) -> type[PluginContract]:
    spec = get_registry().find(kind, name).spec
    base = SPECIAL.get((kind, name), GENERAL[kind])
    # Asked of whole rooms below: each time costs a process.
    body: dict[str, Any] = {"plugin": name, "test_listing_it_imports_nothing_heavy": None}
    if kind == "encoder" and "weights" in spec.config.__dataclass_fields__:
        body["options"] = {"weights": "random", **ENCODER_OPTIONS.get(name, {})}
        if spec.card and (spec.card.params or LARGEST + 1) > LARGEST:
            base = LargeEncoderContract
    if kind in PUBLISHED and "weights" in spec.config.__dataclass_fields__:
        body["options"] = {"weights": "random"}
        # Without a card what it is given decides, and random weights are quickly made.
        base = base if getattr(spec, "card", None) is None else PUBLISHED[kind]
    if kind in ("segmenter", "inspector") and "weights" in spec.config.__dataclass_fields__:
        body["options"] = {"weights": "random"}
    return type(f"Test{kind.title()}_{name}", (base,), body)


for _kind in GENERAL:
    for _name in get_registry().names(_kind):
        _made = contract(_kind, _name)
        globals()[_made.__name__] = _made


def test_listing_our_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys; from microtome.plugin.registry import get_registry; get_registry();"
        f"print(*set(sys.modules) & set({HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_none_of_our_plugins_is_broken() -> None:
    assert get_registry().broken == []
