"""What a reader promises."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from microtome.errors import SlideError, SlideOpenError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import ReaderSpec
from microtome.testing.contracts.base import PluginContract
from microtome.testing.synthetic import make_plain_image, make_slide

SIDE = 64
UNTOUCHED = 77
"""What a buffer holds where no tile was read into."""


@dataclass(frozen=True)
class Sample:
    """A slide that the reader can open.

    Attributes:
        path: The file.
        pixels: (h, w, 3 or 4) uint8 of level 0, or None where nobody knows.
    """

    path: Path
    pixels: NDArray[np.uint8] | None = None


class ReaderContract(PluginContract):
    """Subclass it for a reader, and override `make_sample` if its format is one's own.

    Attributes:
        tolerance: Grey levels by which level 0 may differ from the sample's known pixels.
        truncates: Whether the sample cut in half is tried too: off for a format without data
            that could be missing.
    """

    kind: ClassVar[str] = "reader"
    tolerance: ClassVar[int] = 0
    truncates: ClassVar[bool] = True

    def make_sample(self, folder: Path, spec: ReaderSpec) -> Sample:
        """Write a slide, larger than 300 by 300 pixels, into an empty folder."""
        if ".svs" in spec.extensions:
            slide = make_slide(folder / "sample.svs", size=(700, 500), compression="lzw")
        elif ".tif" in spec.extensions:
            slide = make_slide(
                folder / "sample.tif", size=(700, 500), compression="lzw", aperio=False
            )
        else:
            slide = make_plain_image(folder / f"sample{spec.extensions[0]}")
        return Sample(slide.path, slide.image)

    @pytest.fixture
    def sample(self, entry: Registered, tmp_path_factory: pytest.TempPathFactory) -> Sample:
        """A slide that the reader can open."""
        spec = entry.spec
        assert isinstance(spec, ReaderSpec)
        return self.keep(
            "sample", lambda: self.make_sample(tmp_path_factory.mktemp("sample"), spec)
        )

    @pytest.fixture
    def target(self, registry: Registry, entry: Registered) -> Any:
        """The reader's class or factory."""
        return registry.load("reader", entry.spec.name)

    @pytest.fixture
    def reader(self, target: Any, config: Any, sample: Sample) -> Iterator[Any]:
        """The open sample."""
        reader = target(sample.path, config)
        yield reader
        reader.close()

    def test_its_extensions_are_suffixes(self, entry: Registered) -> None:
        """Files are matched by them in lower case."""
        assert isinstance(entry.spec, ReaderSpec)
        assert entry.spec.extensions
        for suffix in entry.spec.extensions:
            assert suffix.startswith(".")
            assert suffix == suffix.lower()

    def test_its_info_makes_sense(self, reader: Any, sample: Sample) -> None:
        """Levels go from fine to coarse and agree with their downsamples."""
        info = reader.info
        assert info.path == sample.path
        assert info.reader == self.plugin
        assert info.channels in (3, 4)
        assert info.levels[0].downsample == 1.0
        for level in info.levels:
            assert level.width > 0
            assert level.height > 0
            # Sizes are rounded, and a downsample may be the mean of both axes.
            assert abs(info.width / level.downsample - level.width) <= 2
            assert abs(info.height / level.downsample - level.height) <= 2
        downsamples = [level.downsample for level in info.levels]
        assert downsamples == sorted(set(downsamples))
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in info.properties.items())

    def test_level_0_has_the_pixels_of_the_file(self, reader: Any, sample: Sample) -> None:
        """Compared where the sample's pixels are known."""
        if sample.pixels is None:
            pytest.skip("the sample's pixels are not known")
        whole = _whole(reader, 0)
        assert whole.shape[:2] == sample.pixels.shape[:2]
        difference = whole[..., :3].astype(int) - sample.pixels[..., :3]
        assert np.abs(difference).max() <= self.tolerance

    def test_it_fills_the_rows_it_is_told_and_no_other(self, reader: Any) -> None:
        """Buffers are shared with other tiles."""
        boxes = _boxes(reader, 0, 3)
        out = _buffer(reader, 6)
        reader.read_tiles(0, boxes, out, np.array([4, 0, 2]))
        assert (out[[1, 3, 5]] == UNTOUCHED).all()
        for row, box in zip((4, 0, 2), boxes, strict=True):
            assert np.array_equal(out[row], _read(reader, 0, box[None])[0])

    def test_no_box_is_nothing_to_do(self, reader: Any) -> None:
        """An empty batch is no error."""
        out = _buffer(reader, 1)
        reader.read_tiles(0, np.empty((0, 4), np.int64), out, np.empty(0, np.int64))
        assert (out == UNTOUCHED).all()

    def test_a_tile_is_a_part_of_its_level(self, reader: Any) -> None:
        """Anywhere on any level, corners included, to the pixel."""
        for index, level in enumerate(reader.info.levels):
            whole = _whole(reader, index)
            boxes = _boxes(reader, index, 12)
            for box, tile in zip(boxes, _read(reader, index, boxes), strict=True):
                x, y = np.rint(box[:2] / level.downsample).astype(int)
                assert np.array_equal(tile, whole[y : y + box[3], x : x + box[2]])

    def test_several_threads_may_read_at_once(self, reader: Any) -> None:
        """One reader serves all threads of a slide."""
        boxes = _boxes(reader, 0, 32)
        alone = _read(reader, 0, boxes)
        with ThreadPoolExecutor(8) as threads:
            tiles = list(threads.map(lambda box: _read(reader, 0, box[None])[0], boxes))
        assert np.array_equal(np.stack(tiles), alone)

    def test_it_can_be_pickled(self, reader: Any) -> None:
        """By its path: a worker opens the file again."""
        copy = pickle.loads(pickle.dumps(reader))
        try:
            assert copy.info.levels == reader.info.levels
            boxes = _boxes(reader, 0, 4)
            assert np.array_equal(_read(copy, 0, boxes), _read(reader, 0, boxes))
        finally:
            copy.close()

    def test_a_closed_reader_reads_nothing(self, target: Any, config: Any, sample: Sample) -> None:
        """Closing twice is no error, reading afterwards is one."""
        reader = target(sample.path, config)
        boxes = _boxes(reader, 0, 1)
        buffer = _buffer(reader, 1)
        reader.close()
        reader.close()
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the reader's choice
            reader.read_tiles(0, boxes, buffer, np.array([0]))

    @pytest.mark.parametrize("data", [None, b"", b"nothing that is a slide" * 99])
    def test_what_it_cannot_open_is_an_error_that_says_so(
        self, target: Any, config: Any, sample: Sample, tmp_path: Path, data: bytes | None
    ) -> None:
        """A missing, an empty and a garbage file."""
        path = tmp_path / f"bad{sample.path.suffix}"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SlideOpenError):
            target(path, config)

    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_what_is_missing_is_never_made_up(
        self, target: Any, config: Any, sample: Sample, tmp_path: Path, share: float
    ) -> None:
        """A file that was cut off raises, unless what is read of it is what was there."""
        if not self.truncates:
            pytest.skip("truncates is off")
        data = sample.path.read_bytes()
        path = tmp_path / f"cut{sample.path.suffix}"
        path.write_bytes(data[: int(len(data) * share)])
        whole = target(sample.path, config)
        try:
            expected = _whole(whole, 0)
        finally:
            whole.close()
        try:
            cut = target(path, config)
        except SlideError:
            return
        try:
            pixels = _whole(cut, 0)
        except SlideError:
            return
        finally:
            cut.close()
        assert np.array_equal(pixels, expected)


def _buffer(reader: Any, rows: int, width: int = SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    return np.full((rows, height, width, reader.info.channels), UNTOUCHED, np.uint8)


def _read(reader: Any, level: int, boxes: NDArray[np.int64]) -> NDArray[np.uint8]:
    width, height = boxes[0, 2:]
    out = _buffer(reader, len(boxes), int(width), int(height))
    reader.read_tiles(level, boxes, out, np.arange(len(boxes)))
    return out


def _whole(reader: Any, level: int) -> NDArray[np.uint8]:
    size = reader.info.levels[level]
    whole: NDArray[np.uint8] = _read(reader, level, np.array([[0, 0, size.width, size.height]]))[0]
    return whole


def _boxes(reader: Any, level: int, count: int) -> NDArray[np.int64]:
    """Place boxes at the corners of a level and anywhere inside it."""
    size = reader.info.levels[level]
    side = min(SIDE, size.width, size.height)
    rng = np.random.default_rng(count)
    last = np.array([size.width - side, size.height - side])
    corners = last * [[0, 0], [1, 1], [1, 0], [0, 1]]
    places = np.vstack([corners, rng.integers(0, last + 1, (count, 2))])[:count]
    boxes = np.full((count, 4), side, np.int64)
    boxes[:, :2] = np.rint(places * size.downsample)
    return boxes
