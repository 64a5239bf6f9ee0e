"""Contracts fail for plugins that break them: each fault below, by the test that is for it."""

from __future__ import annotations

import pytest
from faulty_plugins import run_contracts

FAULTY = '''
from dataclasses import dataclass

import h5py
import numpy as np

from microtome.errors import SlideOpenError
from microtome.plugin import (
    EncoderCard, EncoderSpec, InspectorSpec, NoConfig, ReaderSpec, SegmenterSpec, TilerSpec,
    hookimpl, option
)
from microtome.plugin.protocols import EncoderOutput
from microtome.slide import GridConfig
from microtome.slide.tiling import GridTiler
from microtome.slide.types import Level, SlideInfo, TileGrid, TissueMask
from PIL import Image


class Encoder:
    card = EncoderCard(dim=3)
    calls = 0

    def __init__(self, config):
        pass

    def load(self, device, precision):
        pass

    def means(self, batch):
        return batch.pixels.mean(axis=(1, 2)).astype(np.float32)

    def encode(self, batch):
        return EncoderOutput(self.means(batch))


class Wide(Encoder):
    card = EncoderCard(dim=4)


class Constant(Encoder):
    def encode(self, batch):
        return EncoderOutput(np.ones((len(batch), 3), np.float32))


class Batchy(Encoder):
    """Normalises over the batch, as a model left in training mode does."""

    def encode(self, batch):
        means = self.means(batch)
        return EncoderOutput(means - means.mean(axis=0))


class Fickle(Encoder):
    def encode(self, batch):
        self.calls += 1
        return EncoderOutput(self.means(batch) + self.calls)


class Scribbler(Encoder):
    def encode(self, batch):
        output = super().encode(batch)
        batch.pixels[:, 0, 0] += 1
        return output


class Random(Encoder):
    def load(self, device, precision):
        self.shift = np.random.rand(3)

    def encode(self, batch):
        return EncoderOutput((self.means(batch) + self.shift).astype(np.float32))


class Boastful(Encoder):
    gives = ("tokens",)

    def ask(self, *names):
        self.asked = True

    def encode(self, batch):
        return EncoderOutput(self.means(batch), tokens=self.means(batch)[:, None])


class Reader:
    def __init__(self, path, config):
        try:
            self.pixels = np.asarray(Image.open(path).convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise SlideOpenError(str(error)) from error
        self.path, self.config = path, config
        height, width = self.pixels.shape[:2]
        self.info = SlideInfo(
            path=path, reader=self.name, levels=(Level(width=width, height=height, downsample=1.0),)
        )

    def read_tiles(self, level, boxes, out, rows):
        for (x, y, w, h), row in zip(boxes, rows):
            out[row] = self.pixels[y : y + h, x : x + w]

    def close(self):
        self.pixels = None

    def __reduce__(self):
        return type(self), (self.path, self.config)


class Shifted(Reader):
    name = "shifted"

    def read_tiles(self, level, boxes, out, rows):
        super().read_tiles(level, np.maximum(boxes - [1, 0, 0, 0], 0), out, rows)


class Greedy(Reader):
    name = "greedy"

    def read_tiles(self, level, boxes, out, rows):
        out[:] = 0
        super().read_tiles(level, boxes, out, rows)


class Open(Reader):
    name = "open"

    def close(self):
        pass


class Segmenter:
    def __init__(self, config):
        pass

    def segment(self, views):
        return [
            TissueMask(array=view.image.min(axis=2) < 215, downsample=(1.0, 1.0)) for view in views
        ]


@dataclass
class Unlimited:
    mean_above: float | None = option(0.9, help="Part of the identity, which it must not be.")


class Inspector:
    def __init__(self, config):
        pass

    def inspect(self, tiles, mpp):
        return {"mean": tiles.mean(axis=(1, 2, 3))}


class Relative(Inspector):
    def inspect(self, tiles, mpp):
        mean = super().inspect(tiles, mpp)["mean"]
        return {"mean": mean - mean.mean()}


class Dark(Inspector):
    def inspect(self, tiles, mpp):
        return {"mean": 1 / tiles.mean(axis=(1, 2, 3)) if tiles.any() else np.ones(1)}


class Painter(Inspector):
    def inspect(self, tiles, mpp):
        found = super().inspect(tiles, mpp)
        tiles[:, 0] = 0
        return found


class Unsorted(GridTiler):
    def plan(self, info, mask):
        grid = super().plan(info, mask)
        return TileGrid(coords=grid.coords[::-1], geometry=grid.geometry, columns=grid.columns)


class Overhanging(GridTiler):
    def plan(self, info, mask):
        grid = super().plan(info, mask)
        grid.coords[-1:, 1] = info.height - 1
        return grid


@hookimpl
def microtome_encoders():
    for one in (Encoder, Wide, Constant, Batchy, Fickle, Scribbler, Random, Boastful):
        name = one.__name__.lower()
        given = {"card": one.card, "gives": getattr(one, "gives", ())}
        yield EncoderSpec(name=name, target=f"faulty:{one.__name__}", summary="x", **given)


@hookimpl
def microtome_readers():
    for one in (Shifted, Greedy, Open):
        yield ReaderSpec(
            name=one.name, target=f"faulty:{one.__name__}", summary="x", extensions=(".png",)
        )


@hookimpl
def microtome_segmenters():
    yield SegmenterSpec(name="scaleless", target="faulty:Segmenter", summary="x")


@hookimpl
def microtome_inspectors():
    for one in (Inspector, Relative, Dark, Painter):
        yield InspectorSpec(
            name=one.__name__.lower(),
            target=f"faulty:{one.__name__}",
            summary="x",
            columns={"mean": "Mean."},
            config=Unlimited if one is Inspector else NoConfig,
        )


@hookimpl
def microtome_tilers():
    for one in (Unsorted, Overhanging):
        name = one.__name__.lower()
        yield TilerSpec(
            name=name, target=f"faulty:{one.__name__}", summary="x", config=GridConfig
        )
'''

CONTRACTS = """
import faulty
from microtome.testing import (
    EncoderContract, InspectorContract, ReaderContract, SegmenterContract, TilerContract
)

KINDS = {
    EncoderContract: [
        *("encoder", "wide", "constant", "batchy", "fickle", "scribbler", "random", "boastful")
    ],
    ReaderContract: ["shifted", "greedy", "open"],
    InspectorContract: ["inspector", "relative", "dark", "painter"],
    SegmenterContract: ["scaleless"],
    TilerContract: ["unsorted", "overhanging"],
}
for _base, _names in KINDS.items():
    for _name in _names:
        _body = {"plugin": _name, "package": faulty}
        if _name != "encoder":  # a process each
            _body["test_listing_it_imports_nothing_heavy"] = None
        globals()["Test" + _name] = type("Test" + _name, (_base,), _body)
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> set[tuple[str, str]]:
    return run_contracts(tmp_path_factory.mktemp("faulty"), FAULTY, CONTRACTS)


@pytest.mark.parametrize(
    ("plugin", "test"),
    [
        ("encoder", "test_listing_it_imports_nothing_heavy"),
        ("wide", "test_its_embedding_is_what_the_card_says"),
        ("constant", "test_different_tiles_have_different_embeddings"),
        ("batchy", "test_a_row_does_not_depend_on_its_batch"),
        ("fickle", "test_it_gives_the_same_again"),
        ("scribbler", "test_tiles_are_left_as_they_are"),
        ("random", "test_a_fresh_one_gives_the_same"),
        ("boastful", "test_it_gives_on_request_what_its_spec_says"),
        ("random", "test_it_leaves_the_global_random_state_alone"),
        ("shifted", "test_a_tile_is_a_part_of_its_level"),
        ("greedy", "test_it_fills_the_rows_it_is_told_and_no_other"),
        ("greedy", "test_no_box_is_nothing_to_do"),
        ("open", "test_a_closed_reader_reads_nothing"),
        ("inspector", "test_its_limits_change_no_score"),
        ("relative", "test_a_tile_does_not_depend_on_its_company"),
        ("dark", "test_it_gives_its_columns"),
        ("painter", "test_tiles_are_left_as_they_are"),
        ("scaleless", "test_each_view_gets_a_mask_of_its_slide"),
        ("unsorted", "test_rows_are_sorted_and_unique"),
        ("overhanging", "test_tiles_are_inside_the_slide"),
    ],
)
def test_a_fault_is_caught(failed, plugin, test):
    assert (f"Test{plugin}", test) in failed


def test_what_is_right_passes(failed):
    faults = {row[1] for row in failed if row[0] == "Testencoder"}
    assert faults == {"test_listing_it_imports_nothing_heavy"}
