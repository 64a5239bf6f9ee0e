"""What a writer promises: a store of coordinates and features, or tile images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import WriterSpec
from microtome.testing.contracts.base import PluginContract

ROWS, DIM = 37, 5
ATTRIBUTES = {"slide": "naïve 切片.svs", "patch_size": 256, "mpp": 0.25, "resampled": True}


class MatrixSource:
    """A matrix of features as a run hands it to a store: in pieces, never whole."""

    def __init__(self, matrix: NDArray[Any], most: int = 16) -> None:
        self.shape: tuple[int, int] = matrix.shape
        self.dtype = matrix.dtype
        self._matrix = matrix
        self._most = most

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Give fewer rows at once than asked for, as a source may."""
        step = min(rows, self._most)
        for start in range(0, len(self._matrix), step):
            yield self._matrix[start : start + step]


class _AnyWriterContract(PluginContract):
    kind: ClassVar[str] = "writer"
    consumes: ClassVar[str]

    @pytest.fixture
    def writer(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The writer."""
        return registry.create("writer", entry.spec.name, config)

    @pytest.fixture
    def path(self, entry: Registered, tmp_path: Path) -> Path:
        """A private path as the store gives it: the final suffix is not at its end."""
        assert isinstance(entry.spec, WriterSpec)
        return tmp_path / f".slide{entry.spec.suffix}.host-1-abc.tmp"

    def test_its_spec_says_how_it_is_published(self, entry: Registered) -> None:
        """The store goes by it."""
        spec = entry.spec
        assert isinstance(spec, WriterSpec)
        assert spec.consumes == self.consumes
        assert spec.layout in ("file", "directory")
        assert spec.suffix == "" or spec.suffix.startswith(".")
        assert spec.folder


class WriterContract(_AnyWriterContract):
    """Subclass it for a writer that ``consumes="features"``."""

    consumes: ClassVar[str] = "features"

    @pytest.fixture
    def coords(self) -> NDArray[np.int32]:
        """(n, 5)."""
        coords = np.zeros((ROWS, 5), np.int32)
        coords[:, 0] = np.arange(ROWS) * 512
        coords[:, 2:] = 512, 512, 1
        return coords

    @pytest.fixture
    def features(self) -> NDArray[np.float32]:
        """(n, dim)."""
        return np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)

    @pytest.fixture
    def stored(self, writer: Any, path: Path, coords: NDArray[np.int32]) -> Path:
        """A slide without features."""
        fraction = np.linspace(0, 1, ROWS, dtype=np.float32)
        writer.create(path, coords, {"tissue_fraction": fraction}, ATTRIBUTES)
        return path

    def test_it_writes_where_it_is_told_and_nowhere_else(
        self, stored: Path, entry: Registered
    ) -> None:
        """Whatever it writes is at the path, a file or a folder as the spec says."""
        assert isinstance(entry.spec, WriterSpec)
        assert stored.is_dir() == (entry.spec.layout == "directory")
        assert list(stored.parent.iterdir()) == [stored]

    def test_a_slide_comes_back(self, writer: Any, stored: Path, coords: NDArray[np.int32]) -> None:
        """Coordinates, columns and attributes, values and types."""
        with writer.open_stored(stored) as slide:
            assert slide.coords.dtype == np.int32
            assert np.array_equal(slide.coords, coords)
            fraction = slide.columns["tissue_fraction"]
            assert fraction.dtype == np.float32
            assert np.array_equal(fraction, np.linspace(0, 1, ROWS, dtype=np.float32))
            assert list(slide.feature_names()) == []
            for name, value in ATTRIBUTES.items():
                assert slide.attributes[name] == value

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_features_come_back(
        self, writer: Any, stored: Path, features: NDArray[np.float32], dtype: Any
    ) -> None:
        """Bit for bit, in their type, whole or in part, with their attributes."""
        matrix = features.astype(dtype)
        writer.add_features(stored, "naïve-2", MatrixSource(matrix), ATTRIBUTES)
        with writer.open_stored(stored) as slide:
            assert list(slide.feature_names()) == ["naïve-2"]
            assert tuple(slide.feature_shape("naïve-2")) == (ROWS, DIM)
            whole = slide.features("naïve-2")
            assert whole.dtype == dtype
            assert np.array_equal(whole, matrix)
            assert np.array_equal(slide.features("naïve-2", slice(5, 9)), matrix[5:9])
            assert slide.feature_attributes("naïve-2")["slide"] == ATTRIBUTES["slide"]

    def test_a_second_encoder_leaves_the_first_alone(
        self, writer: Any, stored: Path, features: NDArray[np.float32], coords: NDArray[np.int32]
    ) -> None:
        """Another feature set of another width, added after reopening."""
        wide = np.hstack([features, features])
        writer.add_features(stored, "a", MatrixSource(features), {"encoder": "a"})
        writer.add_features(stored, "b", MatrixSource(wide), {"encoder": "b"})
        with writer.open_stored(stored) as slide:
            assert sorted(slide.feature_names()) == ["a", "b"]
            assert np.array_equal(slide.features("a"), features)
            assert np.array_equal(slide.features("b"), wide)
            assert slide.feature_attributes("a")["encoder"] == "a"
            assert np.array_equal(slide.coords, coords)

    def test_an_empty_slide_is_a_slide(self, writer: Any, path: Path) -> None:
        """Zero rows, features of the right width."""
        empty = {"tissue_fraction": np.empty(0, np.float32)}
        writer.create(path, np.empty((0, 5), np.int32), empty, ATTRIBUTES)
        writer.add_features(path, "a", MatrixSource(np.empty((0, DIM), np.float32)), {})
        with writer.open_stored(path) as slide:
            assert slide.coords.shape == (0, 5)
            assert tuple(slide.feature_shape("a")) == (0, DIM)
            assert slide.features("a").shape == (0, DIM)

    def test_a_feature_set_in_a_folder_is_whole_by_itself(
        self,
        writer: Any,
        entry: Registered,
        stored: Path,
        coords: NDArray[np.int32],
        features: NDArray[np.float32],
    ) -> None:
        """The store builds it elsewhere and renames ``features/<name>`` in."""
        assert isinstance(entry.spec, WriterSpec)
        if entry.spec.layout == "file":
            pytest.skip("the store copies and replaces a file")
        writer.add_features(stored, "a", MatrixSource(features), {})
        other = stored.with_name(".other.tmp")
        writer.create(other, coords, {}, {})
        writer.add_features(other, "b", MatrixSource(2 * features), {"encoder": "b"})
        (other / "features" / "b").rename(stored / "features" / "b")
        with writer.open_stored(stored) as slide:
            assert sorted(slide.feature_names()) == ["a", "b"]
            assert np.array_equal(slide.features("b"), 2 * features)
            assert slide.feature_attributes("b")["encoder"] == "b"

    @pytest.mark.parametrize("data", [None, b"", b"nothing that is a slide"])
    def test_what_is_no_slide_is_an_error_that_says_so(
        self, writer: Any, path: Path, data: bytes | None
    ) -> None:
        """A missing, an empty and a garbage file."""
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(StoreError):
            writer.open_stored(path)


class TileWriterContract(_AnyWriterContract):
    """Subclass it for a writer that ``consumes="pixels"``."""

    consumes: ClassVar[str] = "pixels"

    def test_a_slide_is_a_folder(self, entry: Registered) -> None:
        """The store adds the slide's attributes to it."""
        assert isinstance(entry.spec, WriterSpec)
        assert entry.spec.layout == "directory"

    @pytest.mark.parametrize("rows", [0, 1, 7])
    def test_tiles_are_on_disk_after_closing(
        self, writer: Any, entry: Registered, path: Path, rows: int
    ) -> None:
        """In the folder it is told, and nowhere else; a slide without tiles has one too.

        Tiles come from another thread, or from several at once where the spec says so.
        """
        pixels = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), np.uint8)
        coords = np.zeros((rows, 5), np.int32)
        coords[:, 0], coords[:, 2:4] = np.arange(rows) * 32, 32
        sink = writer.open(path, "naïve 切片", ATTRIBUTES)
        assert isinstance(entry.spec, WriterSpec)
        threads = 3 if entry.spec.concurrent else 1
        with ThreadPoolExecutor(threads) as pool:
            starts = range(0, rows, 2)
            list(pool.map(lambda at: sink.write(coords[at : at + 2], pixels[at : at + 2]), starts))
        sink.close()
        assert list(path.parent.iterdir()) == [path]
        assert path.is_dir()
        files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
        assert files or not rows
