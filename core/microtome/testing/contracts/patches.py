"""What a writer of patch stores promises."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from microtome.errors import StoreError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import WriterSpec
from microtome.store.attributes import plain_attributes, read_images_record, write_folder_record
from microtome.store.classes import publish_images
from microtome.store.patches import LABELLED, labelled_tiles, tile_key
from microtome.testing.contracts.base import PluginContract

SLIDE_ID, SIZE, ROWS = "block/naïve 切片.1", 32, 7
CLASSES = ["normal", "tumor", "necrosis"]
ATTRIBUTES = {"slide_id": SLIDE_ID, "patch_size": SIZE, "mpp": 0.25, "classes": CLASSES}


class PatchWriterContract(PluginContract):
    """Subclass it for a writer that ``consumes="labelled pixels"``."""

    kind: ClassVar[str] = "writer"

    @pytest.fixture
    def writer(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The writer."""
        return registry.create("writer", entry.spec.name, config)

    @pytest.fixture
    def spec(self, entry: Registered) -> WriterSpec:
        """Its spec."""
        assert isinstance(entry.spec, WriterSpec)
        return entry.spec

    @pytest.fixture
    def final(self, spec: WriterSpec, tmp_path: Path) -> Path:
        """The final name of a slide."""
        return tmp_path / spec.folder / f"{SLIDE_ID}{spec.suffix}"

    def test_its_spec_says_how_it_is_published(self, spec: WriterSpec) -> None:
        """The store goes by it."""
        assert spec.consumes == LABELLED
        assert spec.layout in ("file", "directory", "classes")
        assert spec.suffix == "" or spec.suffix.startswith(".")
        assert spec.layout != "classes" or (spec.suffix and "/" in spec.folder)

    @pytest.mark.parametrize("rows", [0, 1, ROWS])
    def test_tiles_come_back(self, writer: Any, spec: WriterSpec, final: Path, rows: int) -> None:
        """By key, in the order of their coordinates, in whatever order and threads they came."""
        tiles = _tiles(rows)
        _store(writer, spec, final, tiles)
        with writer.open_patches(final) as patches:
            assert len(patches) == rows
            assert patches.slide_id == SLIDE_ID
            places = tiles["coords"][:, :2].tolist()
            assert list(patches.keys) == [tile_key(SLIDE_ID, x, y) for x, y in places]
            assert patches.coords.dtype == np.int32
            assert np.array_equal(patches.coords, tiles["coords"])
            assert patches.labels.dtype == np.int16
            assert np.array_equal(patches.labels, tiles["labels"])
            assert patches.classes == tuple(CLASSES)
            assert patches.attributes["mpp"] == ATTRIBUTES["mpp"]
            pixels = patches.read(slice(None))
            assert pixels.dtype == np.uint8
            assert pixels.shape == (rows, SIZE, SIZE, 3)
            assert rows == 0 or _far(pixels, tiles["pixels"]) < 4  # JPEG is allowed

    def test_tiles_are_read_in_any_order_and_process(
        self, writer: Any, spec: WriterSpec, final: Path
    ) -> None:
        """Some of them, twice if asked for, after closing, and once pickled."""
        tiles = _tiles(ROWS)
        _store(writer, spec, final, tiles)
        patches = writer.open_patches(final)
        rows = np.array([5, 0, 5, -1])
        wanted = patches.read(rows)
        assert _far(wanted, tiles["pixels"][rows]) < 4
        assert np.array_equal(patches.read([5, 0, 5, 6]), wanted)
        assert patches.read([]).shape == (0, SIZE, SIZE, 3)
        patches.close()
        assert np.array_equal(patches.read(rows), wanted)
        again = pickle.loads(pickle.dumps(patches))
        assert list(again.keys) == list(patches.keys)
        with again, writer.open_patches(final) as beside:
            assert np.array_equal(again.read(rows), wanted)
            assert np.array_equal(beside.read(rows), wanted)
        with pytest.raises(IndexError):
            patches.read([ROWS])
        patches.close()

    @pytest.mark.parametrize("rows", [0, ROWS])
    def test_its_record_comes_back_and_nothing_is_wrong(
        self, writer: Any, spec: WriterSpec, final: Path, rows: int
    ) -> None:
        """As a store gives attributes back; nothing private stays."""
        recorded = _store(writer, spec, final, _tiles(rows))
        record = dict(read_images_record(final, spec, writer))
        for told in (recorded, record):  # no matter whether as a list or as text
            for name in ("coords", "labels", "unlabelled", "classes"):
                told[name] = json.loads(told[name]) if isinstance(told[name], str) else told[name]
        assert record == recorded
        assert list(writer.damage(final, deep=True)) == []
        assert [path for path in final.parent.rglob(".*") if path.suffix == ".tmp"] == []

    def test_a_slide_gives_way_to_what_it_is_now(
        self, writer: Any, spec: WriterSpec, final: Path
    ) -> None:
        """Fewer tiles, other labels: nothing stays of what it was."""
        _store(writer, spec, final, _tiles(ROWS))
        tiles = {name: values[::3] for name, values in _tiles(ROWS).items()}
        tiles["labels"] = np.zeros_like(tiles["labels"])
        _store(writer, spec, final, tiles)
        assert list(writer.damage(final, deep=True)) == []
        with writer.open_patches(final) as patches:
            assert np.array_equal(patches.coords, tiles["coords"])
            assert not patches.labels.any()
            assert _far(patches.read(slice(None)), tiles["pixels"]) < 4

    @pytest.mark.parametrize("data", [None, b"", b"nothing that holds tiles"])
    def test_what_holds_no_tiles_is_an_error_that_says_so(
        self, writer: Any, final: Path, data: bytes | None
    ) -> None:
        """A missing, an empty and a garbage file."""
        final.parent.mkdir(parents=True)
        if data is not None:
            final.write_bytes(data)
        with pytest.raises(StoreError):
            writer.open_patches(final)


def _tiles(rows: int) -> dict[str, NDArray[Any]]:
    """Smooth tiles, as tissue is, which JPEG keeps nearly as they are."""
    coords = np.zeros((rows, 5), np.int32)
    coords[:, 1], coords[:, 0] = np.divmod(np.arange(rows), 3)
    coords[:, :2] *= 2 * SIZE
    coords[:, 2:4] = SIZE
    low = np.random.default_rng(0).integers(0, 256, (rows, 1, 1, 3))
    ramp = np.linspace(0.5, 1, SIZE)[:, None, None]
    labels = (np.arange(rows) % 2 * 2).astype(np.int16)  # the second class has no tile
    return {
        "coords": coords,
        "labels": labels,
        "pixels": np.broadcast_to(low * ramp, (rows, SIZE, SIZE, 3)).astype(np.uint8),
    }


def _store(
    writer: Any, spec: WriterSpec, final: Path, tiles: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Store tiles as a run does, and give what was recorded."""
    coords, labels, pixels = tiles["coords"], tiles["labels"], tiles["pixels"]
    left = np.array([[9 * SIZE, 9 * SIZE, SIZE, SIZE, 0]], np.int32)
    told = labelled_tiles(np.concatenate([coords, left]), np.append(labels, np.int16(-1)))
    record: dict[str, Any] = plain_attributes({**ATTRIBUTES, **told})
    with publish_images(final, spec, SLIDE_ID) as path:
        sink = writer.open(path, SLIDE_ID, ATTRIBUTES)
        with ThreadPoolExecutor(3 if spec.concurrent else 1) as pool:
            parts = [np.arange(len(coords))[at::3][::-1] for at in range(3)]
            list(pool.map(lambda at: sink.write(coords[at], pixels[at], labels[at]), parts))
        if spec.layout == "file":
            sink.record({**ATTRIBUTES, **told})
        sink.close()
        if spec.layout != "file":
            write_folder_record(path, {**ATTRIBUTES, **told})
    return record


def _far(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    return float(np.abs(some.astype(float) - others).mean())
