"""What a writer promises: a store of coordinates and features, or tile images."""

from __future__ import annotations

import json
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
    """Features, or an array, as a run hands them to a store: in pieces, never whole."""

    def __init__(self, matrix: NDArray[Any], most: int = 16) -> None:
        self.shape: tuple[int, ...] = matrix.shape
        self.dtype = matrix.dtype
        self._matrix = matrix
        self._most = most

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Give fewer rows at once than asked for, as a source may."""
        step = min(rows, self._most)
        for start in range(0, len(self._matrix), step):
            yield self._matrix[start : start + step]


ARRAYS: dict[str, NDArray[Any]] = {
    "slide_features/naïve-2": np.linspace(-1, 1, DIM, dtype=np.float32),
    "slide_latents/a": np.linspace(-1, 1, 3 * DIM, dtype=np.float64).reshape(3, DIM),
    "region_features/a": np.linspace(-1, 1, 24 * DIM, dtype=np.float32).reshape(6, 4, DIM),
    "tokens/a": np.linspace(-1, 1, ROWS * 6 * DIM).reshape(ROWS, 2, 3, DIM).astype(np.float16),
    "regions/index": np.arange(24, dtype=np.int32).reshape(6, 4),
    "regions/coords": np.empty((0, 5), np.int32),
}
"""One to four axes, floating point of every kind and whole numbers, and one without a row."""


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

    def test_arrays_come_back(self, writer: Any, stored: Path) -> None:
        """Bit for bit, in their type, whole or in part, with their attributes, beside features."""
        _need_arrays(writer)
        for key, array in ARRAYS.items():
            writer.add_array(stored, key, MatrixSource(array), {**ATTRIBUTES, "key": key})
        with writer.open_stored(stored) as slide:
            assert list(slide.feature_names()) == []
            assert sorted(slide.array_names()) == sorted(ARRAYS)
            assert list(slide.array_names("regions")) == ["regions/coords", "regions/index"]
            assert list(slide.array_names("none")) == []
            for key, array in ARRAYS.items():
                assert tuple(slide.array_shape(key)) == array.shape
                whole = slide.array(key)
                assert whole.dtype == array.dtype
                assert np.array_equal(whole, array)
                assert np.array_equal(slide.array(key, slice(1, 3)), array[1:3])
                assert slide.array_attributes(key)["key"] == key
                assert slide.array_attributes(key)["slide"] == ATTRIBUTES["slide"]

    def test_an_array_and_a_feature_set_of_one_name_are_two(
        self, writer: Any, stored: Path, features: NDArray[np.float32]
    ) -> None:
        """Features stay as they are when an array is added, and the other way round."""
        _need_arrays(writer)
        writer.add_features(stored, "a", MatrixSource(features), {"encoder": "a"})
        writer.add_array(stored, "slide_features/a", MatrixSource(features[0]), {"encoder": "b"})
        writer.add_features(stored, "b", MatrixSource(2 * features), {})
        with writer.open_stored(stored) as slide:
            assert sorted(slide.feature_names()) == ["a", "b"]
            assert np.array_equal(slide.features("a"), features)
            assert slide.feature_attributes("a")["encoder"] == "a"
            assert np.array_equal(slide.array("slide_features/a"), features[0])
            assert slide.array_attributes("slide_features/a")["encoder"] == "b"

    @pytest.mark.parametrize("group", ["coords", "columns", "features", "passports"])
    def test_a_group_of_its_own_is_refused(self, writer: Any, stored: Path, group: str) -> None:
        """An array there would be taken for something else."""
        _need_arrays(writer)
        with pytest.raises(StoreError, match=group):
            writer.add_array(stored, f"{group}/a", MatrixSource(np.ones((ROWS, DIM))), {})
        with writer.open_stored(stored) as slide:
            assert list(slide.feature_names()) == []
            assert sorted(slide.columns) == ["tissue_fraction"]

    def test_an_array_in_a_folder_is_whole_by_itself(
        self, writer: Any, entry: Registered, stored: Path, coords: NDArray[np.int32]
    ) -> None:
        """The store builds it elsewhere and renames it in: the first of a group with the group."""
        assert isinstance(entry.spec, WriterSpec)
        if entry.spec.layout == "file":
            pytest.skip("the store copies and replaces a file")
        _need_arrays(writer)
        other = stored.with_name(".other.tmp")
        writer.create(other, coords, {}, {})
        for key, moved in (("tokens/a", "tokens"), ("tokens/b", "tokens/b")):
            writer.add_array(other, key, MatrixSource(ARRAYS["tokens/a"]), {"key": key})
            (other / moved).rename(stored / moved)
        with writer.open_stored(stored) as slide:
            assert sorted(slide.array_names()) == ["tokens/a", "tokens/b"]
            assert np.array_equal(slide.array("tokens/b"), ARRAYS["tokens/a"])
            assert slide.array_attributes("tokens/b")["key"] == "tokens/b"

    @pytest.mark.parametrize("data", [None, b"", b"nothing that is a slide"])
    def test_what_is_no_slide_is_an_error_that_says_so(
        self, writer: Any, path: Path, data: bytes | None
    ) -> None:
        """A missing, an empty and a garbage file."""
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(StoreError):
            writer.open_stored(path)


def _need_arrays(writer: Any) -> None:
    """Skip a writer that keeps no arrays, which none needs to."""
    if not hasattr(writer, "add_array"):
        pytest.skip("it keeps no arrays beside features")


class TileWriterContract(_AnyWriterContract):
    """Subclass it for a writer that ``consumes="pixels"``."""

    consumes: ClassVar[str] = "pixels"

    @pytest.mark.parametrize("rows", [0, 1, 7])
    def test_tiles_are_on_disk_after_closing(
        self, writer: Any, entry: Registered, path: Path, rows: int
    ) -> None:
        """In the folder or file it is told, and nowhere else; a slide without tiles has one too.

        The store adds the slide's attributes to a folder; a file keeps them itself. Tiles come from
        another thread, or from several at once where the spec says so.
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
        in_file = entry.spec.layout == "file"
        if in_file:
            sink.record({**ATTRIBUTES, "coords": coords.tolist()})
        sink.close()
        assert list(path.parent.iterdir()) == [path]
        assert path.is_file() == in_file
        files = [path] if in_file else [file for file in path.rglob("*") if file.is_file()]
        assert [file for file in files if file.stat().st_size] or not rows
        if in_file:
            record = dict(writer.read_record(path))
            assert json.loads(record.pop("coords")) == coords.tolist()
            assert record == ATTRIBUTES
            assert list(writer.damage(path, deep=True)) == []

    @pytest.mark.parametrize("data", [None, b"", b"nothing that holds tiles"])
    def test_what_holds_no_tiles_is_an_error_that_says_so(
        self, writer: Any, entry: Registered, path: Path, data: bytes | None
    ) -> None:
        """A missing, an empty and a garbage file, where it writes files."""
        assert isinstance(entry.spec, WriterSpec)
        if entry.spec.layout == "directory":
            pytest.skip("the store reads a folder's record itself")
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(StoreError):
            writer.read_record(path)
