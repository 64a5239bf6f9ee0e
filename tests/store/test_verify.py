"""Every way in which a stored file can be spoilt is told, and one that is not is clean."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from spoiling import ID, edit, flip, h5

from microtome.errors import InputError
from microtome.plugin import WriterSpec, hookimpl
from microtome.plugin.registry import get_registry
from microtome.store.verify import verify_output


def test_an_output_of_several_runs_is_clean(verify, out):
    found = verify()
    assert found.faults == []
    assert found.notes == []
    assert found.running == []
    assert found.slides == 4
    # Status, three writers and two overlays of each slide; status and file in the second tiling;
    # mask and regions; a record of each run.
    assert found.files == 2 * (1 + 3 + 2) + 2 * 2 + 2 * 2 + 3


def test_it_tells_how_far_it_is(verify):
    told = []
    verify(tell=lambda done, slides: told.append((done, slides)))
    assert told == [(n, 4) for n in range(5)]


def test_a_folder_that_is_no_output(tmp_path):
    with pytest.raises(InputError, match="not an output of microtome"):
        verify_output(tmp_path, get_registry())


# Bits that flip, files cut short.


@pytest.mark.parametrize("tiling", ["", "low/10x"])
@pytest.mark.parametrize("name", ["features/mean", "coords", "columns/tissue_fraction"])
def test_a_flipped_bit_in_hdf5(out, only, name, tiling):
    path = h5(out, tiling)
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    flip(path, chunk.byte_offset + chunk.size // 2)
    told = only()
    assert told.startswith(f"{path.relative_to(out)}: {name} cannot be read, it is damaged: ")
    assert "run the same command again" in told


@pytest.mark.parametrize("name", ["features/seeded", "coords", "columns/has_background"])
def test_a_flipped_bit_in_zarr(out, only, name):
    flip(next(f for f in (out / f"patches/{ID}.zarr" / name / "c").rglob("*") if f.is_file()))
    told = only()
    assert f"patches/{ID}.zarr: {name} cannot be read, it is damaged: " in told
    assert "checksum" in told


def test_a_lost_file_of_zarr(out, only):
    """Which Zarr itself reads as zeros."""
    folder = out / f"patches/{ID}.zarr"
    next(f for f in (folder / "features/mean/c").rglob("*") if f.is_file()).unlink()
    assert not zarr.open_group(folder, mode="r")["features/mean"][:].any()
    assert "features/mean cannot be read, it is damaged: its file c/0/0 is missing" in only()


def test_a_flipped_bit_in_a_tile_image(out, only):
    image = sorted((out / f"images/{ID}").glob("*.png"))[3]
    flip(image)
    told = only()
    assert told.startswith(f"images/{ID}: {image.name}: it is damaged")
    assert only_quick_is_clean(out)


def only_quick_is_clean(out: Path) -> bool:
    return not verify_output(out, get_registry(), deep=False).faults


@pytest.mark.parametrize("pattern", ["tissue/case 1/*.png", f"visualization/{ID}_mask.png"])
def test_a_flipped_bit_in_a_mask_or_an_overlay(out, verify, pattern):
    (path,) = out.glob(pattern)
    flip(path)
    (fault,) = verify().faults
    assert fault.path == path.relative_to(out).as_posix()
    assert "its content and its checksums differ. Delete it" in fault.message


def test_a_cut_off_hdf5(out, only):
    os.truncate(h5(out), h5(out).stat().st_size // 2)
    assert "is not a slide that microtome's hdf5 writer stored, or is damaged" in only()


@pytest.mark.parametrize(
    "pattern",
    [
        f"patches/{ID}.zarr/features/mean/c/0/0",
        f"patches/{ID}.zarr/zarr.json",
        f"patches/{ID}.zarr/features/mean/zarr.json",
        f"images/{ID}/.microtome.json",
        f"images/{ID}/*_x0_y*.png",
        "tissue/case 1/*.png",
        "tissue/case 1/*.geojson",
        f"visualization/{ID}.png",
        f"status/{ID}.json",
    ],
)
def test_a_file_cut_short_is_one_fault_that_names_it(out, verify, pattern):
    path = sorted(out.glob(pattern))[0]
    os.truncate(path, path.stat().st_size // 2)
    (fault,) = verify().faults
    assert path.relative_to(out).as_posix().startswith(fault.path)


# Content that does not fit.


@pytest.mark.parametrize("writer", ["hdf5", "zarr"])
def test_a_value_that_is_not_finite(out, only, writer):
    if writer == "hdf5":
        with h5py.File(h5(out), "r+") as file:
            file["features/mean"][3, 1] = np.nan
    else:
        zarr.open_group(out / f"patches/{ID}.zarr", mode="r+")["features/mean"][3, 1] = np.inf
    assert only_quick_is_clean(out)
    assert "features/mean: it holds values that are not finite, the first in row 3. " in only()


def test_features_of_another_length(out, only):
    with h5py.File(h5(out), "r+") as file:
        old = file["features/mean"]
        values, attributes = old[:-1], dict(old.attrs)
        del file["features/mean"]
        file["features"].create_dataset("mean", data=values, fletcher32=True).attrs.update(
            attributes
        )
        rows = len(file["coords"])
    assert f"features/mean: it has {rows - 1} rows for {rows} tiles. Delete it" in only(deep=False)


def test_a_feature_set_that_is_gone(out, only):
    shutil.rmtree(out / f"patches/{ID}.zarr/features/seeded")
    told = only()
    assert "features/seeded is missing, its slide's record names it. Run the same" in told


@pytest.mark.parametrize(
    ("node", "name", "value", "told"),
    [
        ("/", "patch_size", 64, "its attributes or columns are not"),
        ("/", "wsi_path", "b.svs", "its attributes or columns are not"),
        ("features/mean", "encoder", "uni", "features/mean: its attributes or columns are not"),
        ("features/mean", "card", "{}", "features/mean: its attributes or columns are not"),
    ],
)
def test_an_altered_attribute(out, only, node, name, value, told):
    with h5py.File(h5(out), "r+") as file:
        assert name in file[node].attrs
        file[node].attrs[name] = value
    assert told in only(deep=False)


def reseal(attributes) -> None:
    """Take the hash over the attributes away, as in files of earlier versions."""
    del attributes["attributes_sha256"]


def test_an_altered_identity_without_the_hash_over_attributes(out, verify):
    with h5py.File(h5(out), "r+") as file:
        reseal(file.attrs)
        file.attrs["identity"] = "0" * 64
    told = " ".join(fault.message for fault in verify().faults)
    assert "its identity is not the hash of its identity_fields" in told
    assert "its identity is 000000000000…, its slide's record says " in told
    assert "features/mean: it was made for other coordinates" in told


def test_altered_identity_fields_in_zarr(out, only):
    def change(meta):
        reseal(meta["attributes"])
        fields = meta["attributes"]["identity_fields"]
        meta["attributes"]["identity_fields"] = fields.replace('"size": 128', '"size": 256')

    edit(out / f"patches/{ID}.zarr/zarr.json", change)
    assert "its identity is not the hash of its identity_fields" in only()


def test_a_number_of_tiles_that_is_wrong(out, verify):
    with h5py.File(h5(out), "r+") as file:
        reseal(file.attrs)
        file.attrs["num_patches"] = 3
    (fault,) = verify().faults
    assert "its attribute num_patches is 3, coords has " in fault.message


def test_attributes_that_say_nothing(out, only):
    with h5py.File(h5(out), "r+") as file:
        reseal(file.attrs)
        del file.attrs["identity_fields"]
    assert "do not say what made it" in only()


def test_tiles_that_are_there_twice(out, only):
    with h5py.File(h5(out), "r+") as file:
        file["coords"][1] = file["coords"][0]
    assert "tiles are there twice" in only()


def test_a_record_that_counts_otherwise(out, verify):
    edit(out / f"low/10x/status/{ID}.json", lambda status: status.update(tiles=999))
    (fault,) = verify().faults
    assert fault.tiling == "low/10x"
    assert "rows, its slide's record says 999 tiles. Run the same command again." in fault.message


def test_a_tile_image_that_is_gone_and_one_too_many(out, verify):
    images = sorted((out / f"images/{ID}").glob("*.png"))
    images[0].rename(images[0].with_name("naïve.svs_x7_y9.png"))
    messages = [fault.message for fault in verify(deep=False).faults]
    assert len(messages) == 2
    assert f"1 of {len(images)} tiles lack an image, the first at (" in messages[0]
    assert "1 images belong to no tile, the first at (7, 9)" in messages[1]


def test_a_folder_without_its_images(out, only):
    for image in (out / f"images/{ID}").glob("*.png"):
        image.unlink()
    assert "tiles lack an image" in only()


def test_a_mask_of_another_name(out, verify):
    (mine,) = out.glob("tissue/case 1/*.png")
    (other,) = out.glob("tissue/b.svs.*.png")
    shutil.copy(other, mine)
    (fault,) = verify().faults
    assert "not the one of its name" in fault.message


def test_regions_that_are_none(out, verify):
    (path,) = out.glob("tissue/case 1/*.geojson")
    edit(path, lambda data: data["features"][0]["geometry"]["coordinates"][0].pop())
    (fault,) = verify().faults
    assert "a ring that is not closed" in fault.message


def test_an_overlay_of_another_tiling(out, only):
    edit_status = out / f"status/{ID}.json"
    shown = out / f"visualization/{ID}.png"
    edit(edit_status, lambda s: s["outputs"].update({"grid overlay": f"visualization/{ID}.png"}))
    shutil.copy(out / "visualization/b.svs.png", shown)
    assert "it shows other tissue and coords than its slide's record says" in only()


# Files of others.


def test_files_of_earlier_versions_verify_and_are_told(out, verify):
    path = h5(out)
    with h5py.File(path) as old, h5py.File(path.with_name("old"), "w") as new:
        for name in ("coords", "columns", "features"):
            node = old[name]
            if isinstance(node, h5py.Dataset):
                new.create_dataset(name, data=node[:])
            else:
                for key, dataset in node.items():
                    copied = new.create_dataset(f"{name}/{key}", data=dataset[:])
                    copied.attrs.update(dataset.attrs)
        new.attrs.update(old.attrs)
    path.with_name("old").replace(path)
    found = verify()
    assert found.faults == []
    (note,) = found.notes
    assert note.startswith("1 outputs carry no checksum")


class Brittle:
    """Reads nothing, in its own way."""

    def __init__(self, config):
        pass

    def open_stored(self, path):
        raise ZeroDivisionError("cannot")


class Strangers:
    @staticmethod
    @hookimpl
    def microtome_writers():
        common = {"consumes": "features", "layout": "file", "summary": "s"}
        yield WriterSpec(name="brittle", target=f"{__name__}:Brittle", suffix=".brt", **common)
        yield WriterSpec(
            name="far", target="no:where", suffix=".far", requires=("no_such_module",),
            install="pip install far-away", **common,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "told"),
    [
        (".brt", "it cannot be read: The writer 'brittle' of strangers cannot be used to read it"),
        (".far", "cannot be checked: The writer 'far' needs no_such_module"),
    ],
)
def test_what_a_stranger_s_writer_cannot_read(out, fresh_registry, suffix, told, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    fresh_registry.add(Strangers, "strangers", "strangers")
    path = out / f"patches/b.svs{suffix}"
    path.write_text("?")
    (fault,) = verify_output(out, fresh_registry).faults
    assert fault.path == f"patches/b.svs{suffix}"
    assert told in fault.message


def test_links_that_lead_in_circles_and_tilings_elsewhere(out, tmp_path, verify):
    shutil.move(out / "low", tmp_path / "low")
    (out / "low").symlink_to(tmp_path / "low")
    (out / "again").symlink_to(out)
    found = verify()
    assert found.faults == []
    assert found.slides == 4
