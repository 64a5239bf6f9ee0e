"""What a layout of another tool promises: what it writes it finds and reads again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest

from microtome.errors import LayoutError, MicrotomeError
from microtome.plugin.registry import Registered, Registry
from microtome.plugin.specs import LayoutSpec
from microtome.run.slides.attributes import tile_attributes
from microtome.slide import GridConfig
from microtome.slide.tiling import GridTiler
from microtome.slide.types import SlideRef
from microtome.store.exchange import GEOMETRY, FoundSlide, SlideFacts, TiledSlide, write_note
from microtome.store.features import ArraySource
from microtome.store.identity import make_identity
from microtome.store.publish import FeatureSet
from microtome.testing.contracts.base import PluginContract
from microtome.testing.samples import make_info, make_mask

T = TypeVar("T")
SLIDE, ENCODER, DIM = "naïve 切片", "acme", 7


def make_tiled_slide(
    *,
    tiles: int | None = None,
    features: bool = True,
    options: GridConfig | None = None,
    levels: tuple[float, ...] = (1, 4, 16),
) -> TiledSlide:
    """Make a slide as an export hands it to a layout.

    Args:
        tiles: How many; as many as there are if None.
        features: Whether it has any.
        options: Of the grid; 256 px at 20x if None.
        levels: Downsamples of the slide's levels.
    """
    info = replace(make_info(levels=levels), path=Path(f"{SLIDE}.svs"))
    grid = GridTiler(options).plan(info, make_mask(info))
    coords = grid.coords[:tiles]
    identity = make_identity("coords", {"sample": tiles})
    attributes = tile_attributes(
        SlideRef(path=info.path, slide_id=SLIDE),
        info,
        grid.geometry,
        identity=identity,
        tiles=len(coords),
    )
    matrix = np.random.default_rng(0).standard_normal((len(coords), DIM)).astype(np.float32)
    made = FeatureSet(ArraySource(matrix), {"encoder": ENCODER, "dim": DIM, "precision": "fp32"})
    return TiledSlide(
        slide_id=SLIDE,
        source=str(info.path),
        info=info,
        geometry=grid.geometry,
        coords=coords,
        columns={name: column[:tiles] for name, column in grid.columns.items()},
        features={ENCODER: made} if features else {},
        note=write_note(attributes, GEOMETRY),
        identity=identity.digest,
    )


class LayoutContract(PluginContract):
    """Subclass it for a layout.

    Attributes:
        holds_features: Whether its files hold features, and not coordinates alone.
        is_imported: Whether its files can be imported. If not, `find` says what is done instead.
    """

    kind: ClassVar[str] = "layout"
    holds_features: ClassVar[bool] = True
    is_imported: ClassVar[bool] = True

    def make_slide(self, **shape: Any) -> TiledSlide:
        """Make a slide that the layout can hold, of the shape that `make_tiled_slide` is told."""
        return make_tiled_slide(**shape)

    @pytest.fixture
    def layout(self, registry: Registry, entry: Registered, config: Any) -> Any:
        """The layout."""
        return registry.create("layout", entry.spec.name, config)

    def test_its_spec_names_the_tool(self, entry: Registered) -> None:
        """Messages and documentation do."""
        assert isinstance(entry.spec, LayoutSpec)
        assert entry.spec.tool.strip()

    def test_its_files_lie_inside(self, layout: Any) -> None:
        """Each has a name of its own below the folder, and says whose features it holds."""
        files = list(layout.files(self.make_slide()))
        paths = [PurePosixPath(file.path) for file in files]
        assert files
        assert len(set(paths)) == len(paths)
        assert not any(path.is_absolute() or ".." in path.parts for path in paths)
        assert all({*file.features} <= {ENCODER} for file in files)
        assert all(file.layout in ("file", "directory") for file in files)
        assert self.holds_features == any(file.features for file in files)

    def test_a_file_is_written_where_it_is_told(self, layout: Any, tmp_path: Path) -> None:
        """At a private path of another suffix, and nowhere else."""
        for number, file in enumerate(layout.files(self.make_slide())):
            folder = tmp_path / str(number)
            folder.mkdir()
            file.write(folder / ".private.tmp")
            assert list(folder.iterdir()) == [folder / ".private.tmp"]
            assert (folder / ".private.tmp").is_dir() == (file.layout == "directory")

    @pytest.mark.parametrize("tiles", [None, 1])
    def test_a_slide_comes_back(self, layout: Any, tmp_path: Path, tiles: int | None) -> None:
        """Coordinates and geometry exactly, features as exactly as their type allows."""
        slide = self.make_slide(tiles=tiles)
        self._comes_back(layout, slide, tmp_path)

    @pytest.mark.parametrize(
        ("options", "levels"),
        [
            (GridConfig(size=224, step=100, magnification=10), (1, 4, 16)),
            (GridConfig(size=224, mpp=2.2), (1, 2.0005, 7.998)),
            (GridConfig(size=256, mpp=0.53), (1,)),
            (GridConfig(size=224, level=2), (1, 2, 4.0017)),
        ],
        ids=["level 1, overlap", "level 2, fractional", "level 0, resampled", "level 2 by level"],
    )
    def test_its_geometry_comes_back(
        self, layout: Any, tmp_path: Path, options: GridConfig, levels: tuple[float, ...]
    ) -> None:
        """Whatever level is read, and whatever the tiles' size there."""
        slide = self.make_slide(tiles=9, options=options, levels=levels)
        assert slide.geometry.level == len(levels) - 1 - (levels == (1, 4, 16))
        self._comes_back(layout, slide, tmp_path)

    @pytest.mark.parametrize("shape", [(0, True), (5, False), (0, False)])
    def test_a_slide_without_tiles_or_features_comes_back_or_is_refused(
        self, layout: Any, tmp_path: Path, shape: tuple[int, bool]
    ) -> None:
        """No tile is (0, D), never (0,); what a layout cannot hold it says before writing."""
        tiles, features = shape
        slide = self.make_slide(tiles=tiles, features=features)
        files, refusal = _or_refusal(lambda: list(layout.files(slide)))
        if files is None:
            assert SLIDE in refusal
        else:
            self._comes_back(layout, slide, tmp_path)

    def test_a_folder_without_slides(self, layout: Any, tmp_path: Path) -> None:
        """Holds none, or the layout says what it looks for."""
        found, refusal = _or_refusal(lambda: layout.find(tmp_path))
        assert not found
        assert found is not None or str(tmp_path) in refusal

    def test_a_damaged_file_fails_its_slide_alone(self, layout: Any, tmp_path: Path) -> None:
        """It is found, or left out; what is found is refused in a sentence."""
        for file in layout.files(self.make_slide()):
            path = tmp_path / file.path
            path.mkdir(parents=True) if file.layout == "directory" else None
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path / "zarr.json" if file.layout == "directory" else path
            target.write_bytes(b"nothing that any tool wrote")
        if not self.is_imported:
            self._refuses(layout, tmp_path)
            return
        for found in layout.find(tmp_path).values():
            assert isinstance(found, FoundSlide)
            with pytest.raises(MicrotomeError):
                layout.read(found, SlideFacts())

    def _comes_back(self, layout: Any, slide: TiledSlide, folder: Path) -> None:
        if self.is_imported:
            _same(slide, _there_and_back(layout, slide, folder), self.holds_features)
        else:
            self._refuses(layout, folder)

    def _refuses(self, layout: Any, folder: Path) -> None:
        with pytest.raises(LayoutError, match="not imported"):
            layout.find(folder)


def _or_refusal(make: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return make(), ""
    except LayoutError as error:
        return None, str(error)


def _there_and_back(layout: Any, slide: TiledSlide, folder: Path) -> TiledSlide:
    for file in layout.files(slide):
        final = folder / file.path
        final.parent.mkdir(parents=True, exist_ok=True)
        private = final.with_name(f".{final.name}.host-1-abc.tmp")
        file.write(private)
        private.rename(final)
    found = layout.find(folder)
    assert list(found) == [slide.slide_id]
    read: TiledSlide = layout.read(found[slide.slide_id], SlideFacts())
    return read


def _same(slide: TiledSlide, read: TiledSlide, features: bool) -> None:
    order = np.lexsort((read.coords[:, 0], read.coords[:, 1]))
    assert read.slide_id == slide.slide_id
    assert read.coords.dtype == np.int32
    assert np.array_equal(read.coords[order], slide.coords)
    assert read.geometry == slide.geometry
    assert read.info.resolution == slide.info.resolution
    assert (read.info.width, read.info.height) == (slide.info.width, slide.info.height)
    assert {*read.features} == ({*slide.features} if features else set())
    for name, made in read.features.items():
        expected = slide.features[name].source
        assert made.source.shape == expected.shape
        values = _values(made)[order]
        assert np.array_equal(values, _values(slide.features[name]).astype(values.dtype))


def _values(features: FeatureSet) -> Any:
    blocks = list(features.source.chunks(3))
    empty = np.empty(features.source.shape, features.source.dtype)
    return np.concatenate(blocks) if blocks else empty
