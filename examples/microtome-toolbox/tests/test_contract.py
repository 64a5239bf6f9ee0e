"""Everything that the four plugins promise, tested by microtome's own kit."""

from pathlib import Path
from typing import ClassVar

import microtome_toolbox

from microtome.plugin import ReaderSpec
from microtome.testing import (
    ReaderContract,
    SegmenterContract,
    TilerContract,
    WriterContract,
    make_plain_image,
)
from microtome.testing.contracts.reader import Sample


class TestPpm(ReaderContract):
    plugin = "ppm"
    package = microtome_toolbox

    def make_sample(self, folder: Path, spec: ReaderSpec) -> Sample:
        slide = make_plain_image(folder / "sample.ppm")
        return Sample(slide.path, slide.image)

    def test_a_comment_gives_the_mpp(self, target, config, tmp_path):
        path = tmp_path / "a.ppm"
        path.write_bytes(b"P6\n# mpp = 0.5\n1 1\n255\n" + b"\0" * 3)
        assert target(path, config).info.mpp == (0.5, 0.5)


class TestDarker(SegmenterContract):
    plugin = "darker"
    package = microtome_toolbox

    def test_paper_is_not_tissue(self, segmenter, views):
        assert not segmenter.segment(views)[0].array[0, 0]


class TestSample(TilerContract):
    plugin = "sample"
    package = microtome_toolbox
    options: ClassVar = {"count": 50, "size": 256, "magnification": 20.0}

    def test_it_keeps_as_many_as_it_is_told(self, grid):
        assert len(grid) == 50


class TestNpz(WriterContract):
    plugin = "npz"
    package = microtome_toolbox


class TestNpzCompressed(WriterContract):
    plugin = "npz"
    package = microtome_toolbox
    options: ClassVar = {"compress": True}
