"""Where a training finds its tiles: samples, patch stores, stored features."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.__main__ import main
from microtome.errors import TaskError
from microtome.plugin.registry import get_registry
from microtome_training.names import TEST, TRAIN, VAL
from microtome_training.options.split import SplitOptions
from microtome_training.options.train import Source, TrainConfig
from microtome_training.patchsource import find_patches
from microtome_training.sampling.files import read_sample
from microtome_training.stores import read_tiles
from microtome_training.training.cohort import gather
from microtome_training.training.data import HeldSource, Keys, hold, read_ahead
from microtome_training.training.features import FeatureSource
from microtome_training.training.models import Standardise
from microtome_training.training.prepare import identify

RUN = ("engine=inline", "device=cpu", "threads=1", "encoder=[]", "tiler.size=128")
SPLIT = SplitOptions(val_size=0.25)
PATCHES = TrainConfig(split=SPLIT, source=Source.patches)


def label(cohort, output, *words):
    given = ("labels.classes.tumor=[Tumor]", "labels.exclude=[Exclusion]")
    assert main([str(cohort.manifest), f"output={output}", *RUN, *given, *words]) == 0


@pytest.fixture(scope="module")
def stored(labelled, cohort, tmp_path_factory):
    """Give an output with a store of all tiles' patches, and features. Not to be written to."""
    output = shutil.copytree(labelled, tmp_path_factory.mktemp("stored") / "out")
    label(cohort, output, "tiler.mpp=0.5", "writer=[hdf5,lmdb]", "encoder=handcrafted")
    return output


def draw(output, *words):
    assert main([f"output={output}", "task=sample", "seed=3", *words]) == 0


def keys(cohort, split):
    return cohort.tiles.take(cohort.rows(split)).keys()


def test_a_sample_thins_what_is_trained_on_and_nothing_else(output, make_job):
    draw(output, "name=few", "per_slide=2")
    config, job = TrainConfig(split=SPLIT), make_job(output)
    whole, part = gather(job, config), gather(job, replace(config, sample="few"))
    assert part.splits == whole.splits
    for split in (VAL, TEST):
        assert keys(part, split) == keys(whole, split) != []
    sampled = set(read_sample(job, "few").tiles(job).keys())
    assert keys(part, TRAIN) == [key for key in keys(whole, TRAIN) if key in sampled]
    assert 0 < len(part.rows(TRAIN)) < len(whole.rows(TRAIN))
    assert identify(part, config).digest != identify(whole, config).digest


def test_a_sample_without_a_class_to_train_on_is_refused(output, make_job, tmp_path):
    draw(output, "name=one", "per_class=1", "negatives_per_positive=null")
    job = make_job(output)
    part = read_sample(job, "one").tiles(job)
    where = part.slides[int(part.slide[part.label == 1][0])].slide_id
    names = [slide.slide_id for slide in read_tiles(job).slides]
    table = tmp_path / "split.csv"
    lines = [f"{name},{'val' if name == where else 'train'}" for name in names]
    table.write_text("\n".join(["slide_id,split", *lines]))
    config = TrainConfig(sample="one", split=SplitOptions(file=str(table), by="slide"))
    with pytest.raises(TaskError, match="Of the class tumor the sample one has no tile on"):
        gather(job, config)


def test_an_identity_knows_the_tiles_and_their_labels(labelled, make_job):
    config = TrainConfig(split=SPLIT)
    cohort = gather(make_job(labelled), config)
    known = identify(cohort, config).digest
    assert identify(gather(make_job(labelled), config), config).digest == known
    moved, relabelled = cohort.tiles.coords.copy(), cohort.tiles.label.copy()
    moved[0, 0] += 1
    relabelled[0] = 1 - relabelled[0]
    for changed in ({"coords": moved}, {"label": relabelled}):
        other = replace(cohort, tiles=replace(cohort.tiles, **changed))
        assert identify(other, config).digest != known


def test_the_only_patch_store_of_an_output_needs_no_name(stored, make_job):
    cohort = gather(make_job(stored), PATCHES)
    assert cohort.patches.folder == stored / "lmdb"
    assert cohort.notes == ()
    assert len(cohort.tiles) == len(gather(make_job(stored), replace(PATCHES, source="auto")).tiles)


def test_several_patch_stores_are_named(stored, cohort, make_job, tmp_path):
    output = shutil.copytree(stored, tmp_path / "out")
    label(cohort, output, "tiler.mpp=0.5", "writer=patches")
    told = rf"choose one .*{output}/lmdb \(lmdb\), {output}/labelled \(patches\)"
    for config in (PATCHES, replace(PATCHES, patches_folder=str(output))):
        with pytest.raises(TaskError, match=told):
            gather(make_job(output), config)


def test_other_files_of_an_output_are_no_patches(labelled, make_job):
    # Its status and records are JSON as the records of folders of images are.
    for folder in (labelled, labelled / "status"):
        with pytest.raises(TaskError, match="holds no patch store"):
            gather(make_job(labelled), replace(PATCHES, patches_folder=str(folder)))


def test_patches_of_another_resolution_are_refused(output, cohort, make_job):
    label(cohort, output, "tiler.mpp=1.0", "tiler.name=coarse", "writer=lmdb")
    config = replace(PATCHES, patches_folder=str(output / "coarse"))
    with pytest.raises(
        TaskError, match=r"have 0\.5 µm per pixel in the output, and 1 in the patch"
    ):
        gather(make_job(output), config)


def found_in(stored, make_job, change):
    tiles = read_tiles(make_job(stored))
    tiles = tiles.take(tiles.label >= 0)
    return tiles, find_patches(change(tiles), [stored], get_registry())


@pytest.mark.parametrize("column", [2, 4])
def test_patches_that_were_read_otherwise_are_refused(stored, make_job, column):
    def change(tiles):
        coords = tiles.coords.copy()
        coords[:, column] += 1
        return replace(tiles, coords=coords)

    with pytest.raises(TaskError, match=r"is read from .* in the output, and from 128 × 128 px"):
        found_in(stored, make_job, change)


def test_patches_of_another_label_are_refused(stored, make_job):
    with pytest.raises(TaskError, match="is labelled tumor in the output and normal in the patch"):
        found_in(stored, make_job, lambda tiles: replace(tiles, label=np.ones_like(tiles.label)))


def test_a_patch_is_shown_as_it_is_stored(stored, make_job):
    tiles, found = found_in(stored, make_job, lambda tiles: tiles)
    row = len(tiles) - 1
    slide = tiles.slides[tiles.slide[row]].slide_id
    store = found.stores[found.slide[row]]
    expected = store.read([found.place[row]])[0]
    assert np.array_equal(found.picture(slide, tiles.coords[row]), expected)
    with pytest.raises(TaskError, match="has no such tile of"):
        found.picture(slide, tiles.coords[row] + 1)
    with pytest.raises(TaskError, match="has no such tile of nobody"):
        found.picture("nobody", tiles.coords[row])


def test_a_tile_in_two_patch_stores_is_refused(stored, make_job, tmp_path):
    folder = shutil.copytree(stored / "lmdb", tmp_path / "lmdb")
    one = sorted(folder.glob("*.lmdb"))[0]
    (folder / "more").mkdir()
    shutil.copy(one, folder / "more" / one.name)
    tiles = read_tiles(make_job(stored))
    with pytest.raises(TaskError, match=r"is in two patch stores, .* and nobody can tell"):
        find_patches(tiles, [folder], get_registry())


def test_a_store_that_lacks_a_slide_is_refused_and_tiles_that_it_lacks_are_told(
    stored, make_job, tmp_path, cohort
):
    output = shutil.copytree(stored, tmp_path / "out")
    shutil.rmtree(output / "lmdb")
    draw(output, "per_slide=2")
    sampled = ("tiler=sampled", f"tiler.sample_file={output}/samples/sample.parquet")
    words = (*sampled, "tiler.name=balanced", "writer=lmdb", "encoder=[]")
    assert main([str(cohort.manifest), f"output={output}", *RUN[:3], *words]) == 0
    job = make_job(output)
    config = replace(PATCHES, patches_folder=str(output / "balanced" / "lmdb"))
    part = gather(job, config)
    whole = gather(job, replace(config, source=Source.auto, patches_folder=None))
    (note,) = part.notes
    assert f"lmdb has {len(part.tiles)} of {len(whole.tiles)} labelled tiles" in note
    assert part.splits == whole.splits
    assert part.patches.has.all()
    assert len(part.patches.slide) == len(part.tiles)
    path = next((output / "balanced" / "lmdb").glob(f"{part.tiles.slides[0].slide_id}*"))
    path.unlink()
    with pytest.raises(TaskError, match=f"has no tile of {part.tiles.slides[0].slide_id}"):
        gather(job, config)


def test_a_training_on_patches_shows_them_on_its_page(stored, make_job, tmp_path, monkeypatch):
    from microtome_training.training import ending

    output, shown = shutil.copytree(stored, tmp_path / "out"), []

    class Pictures(ending.SlidePictures):
        def tile(self, slide_id, place):
            shown.append((slide_id, place.tolist()))
            return super().tile(slide_id, place)

        def _open(self, slide_id):
            raise AssertionError("a slide was opened for a tile of a patch store")

        def thumbnail(self, slide_id):
            return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(ending, "SlidePictures", Pictures)
    words = ("source=patches", "model=small_cnn", "input_size=32", "max_epochs=1", "aug_factor=1")
    words += ("split.val_size=0.25", "num_workers=0", "heatmaps=false", "evaluate.bootstrap=0")
    assert main([f"output={output}", *RUN[:3], "task=train", *words]) == 0
    assert shown
    result = json.loads((output / "training" / "small_cnn" / "result.json").read_text())
    assert result["source"] == "patches"


@pytest.fixture
def features(stored, make_job):
    tiles = read_tiles(make_job(stored))
    order = np.random.default_rng(0).permutation(len(tiles))
    tiles = tiles.take(order)
    parts = {}
    for number, slide in enumerate(tiles.slides):
        with slide.open(get_registry()) as opened:
            parts[number] = np.asarray(opened.features("handcrafted"), np.float32)
    held = np.stack([parts[s][r] for s, r in zip(tiles.slide.tolist(), tiles.row, strict=True)])
    return FeatureSource(tiles, "handcrafted", get_registry()), held


def test_features_are_those_of_the_tiles_in_any_order(features):
    source, held = features
    rows = np.array([5, 0, len(held) - 1, 5])
    assert np.array_equal(source.read(rows), held[rows])
    assert source.read(rows).dtype == np.float32
    assert np.array_equal(source.read(rows[:0]), held[:0])
    assert (source.dim, source.row_bytes) == (held.shape[1], 4 * held.shape[1])
    for threads in (1, 3):
        assert np.array_equal(hold(source, len(held), threads, lambda _: None).held, held)
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(rows), held[rows])


def test_features_are_read_a_block_at_a_time(features, monkeypatch):
    source, held = features
    monkeypatch.setattr("microtome_training.training.features._BLOCK", 4)
    monkeypatch.setattr("microtome_training.training.features._OPEN", 1)
    asked, opening = [], source._open

    def opened(number):
        store = opening(number)

        class Watched:
            def features(self, name, rows):
                asked.append(rows.stop - rows.start)
                return store.features(name, rows)

        return Watched()

    monkeypatch.setattr(source, "_open", opened)
    assert np.array_equal(source.read(np.arange(len(held))), held)
    assert max(asked) <= 4
    assert len(source._held) == 1


def test_features_that_are_not_finite_are_refused(features, monkeypatch):
    source, held = features
    bad = np.full_like(held, np.nan)
    store = type("Store", (), {"features": lambda self, name, rows: bad[rows]})()
    monkeypatch.setattr(source, "_open", lambda number: store)
    with pytest.raises(TaskError, match="'handcrafted' hold values that are not finite"):
        source.read(np.arange(2))


def test_features_are_measured_in_one_pass_over_parts():
    values = np.random.default_rng(0).normal(1e3, 2, (1000, 3)).astype(np.float32)
    values[:, 2] = 7
    source, standardise = HeldSource(values), Standardise(3)
    rows = np.arange(900)
    parts = [given for _, given in read_ahead(source, rows[:7], 1)]
    parts += [values[7:500], values[500:500], values[500:900]]
    standardise.measure(map(torch.from_numpy, parts))
    wanted = values[:900].astype(np.float64)
    np.testing.assert_allclose(standardise.mean, wanted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standardise.scale[:2], 1 / wanted.std(0)[:2], rtol=1e-5)
    assert standardise.scale[2] == 1


def test_keys_are_made_when_they_are_asked_for(labelled, make_job):
    tiles = read_tiles(make_job(labelled))
    found, wanted = Keys(tiles), tiles.keys()
    assert len(found) == len(wanted)
    assert [found[row] for row in range(len(tiles))] == list(found) == wanted
    assert found[2:5] == wanted[2:5]
