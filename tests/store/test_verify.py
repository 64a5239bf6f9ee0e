"""Every way in which an output can be spoilt is told, and one that is not is clean."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import standins
import zarr

import microtome
from microtome.errors import InputError
from microtome.plugin import WriterSpec, hookimpl
from microtome.plugin.registry import get_registry
from microtome.run.progress import SilentReporter
from microtome.store.atomic import private_path
from microtome.store.claims import Claims
from microtome.store.layout import OutputLayout
from microtome.store.verify import verify_output
from microtome.testing import make_slide

ID = "case 1/naïve.svs"
TILER = {"size": 128, "magnification": 20}
OPTIONS = {
    "recursive": True,
    "slide_id": "relpath",
    "segmenter": "none",
    "tiler": {"grid": TILER},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Make an output with everything in it: two slides, two tilings, a later encoder."""
    folder = tmp_path_factory.mktemp("verify")
    for seed, name in enumerate([ID, "b.svs"]):
        path = folder / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_slide(path, size=(768, 768), tissue=0.7, pen=False, seed=seed)
    get_registry.cache_clear()
    get_registry().add(standins.Plugins, "standins", "microtome-standins")

    def run(**options) -> None:
        result = microtome.run_slides(
            folder / "slides",
            folder / "out",
            reporter=SilentReporter(),
            **OPTIONS | options,
        )
        assert result.counts == {"done": 2}

    run(encoder="mean", writer=["hdf5", "zarr", "png"], visualize=["grid", "mask"])
    run(encoder=["mean", "seeded"], writer=["hdf5", "zarr"])
    run(encoder="mean", tiling="low/10x", tiler={"grid": TILER | {"magnification": 10}})
    get_registry.cache_clear()
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    """Give a copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "out", symlinks=True))


@pytest.fixture
def verify(out):
    def run(**options):
        return verify_output(out, get_registry(), **options)

    return run


@pytest.fixture
def only(verify, out):
    """Give the one fault that there is, its message without the output's place."""

    def run(kind: str = "output", slide_id: str = ID, **options) -> str:
        found = verify(**options)
        assert len(found.faults) == 1, [fault.message for fault in found.faults]
        (fault,) = found.faults
        assert fault.kind == kind
        assert fault.slide_id == slide_id
        assert fault.message.endswith(".")
        assert str(out / fault.path) in fault.message
        return fault.message.replace(f"{out}/", "")

    return run


def h5(out: Path, tiling: str = "") -> Path:
    return out / tiling / f"patches/{ID}.h5"


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


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


# What is missing.


@pytest.mark.parametrize(
    "pattern",
    [
        f"patches/{ID}.h5",
        f"patches/{ID}.zarr",
        f"low/10x/patches/{ID}.h5",
        f"visualization/{ID}_mask.png",
    ],
)
def test_an_output_that_its_record_names(out, only, pattern):
    (path,) = out.glob(pattern)
    listed = "visualization" not in pattern
    edit(
        out / f"status/{ID}.json",
        lambda s: s["outputs"].update({"mask overlay": f"visualization/{ID}_mask.png"}),
    )
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = only("missing")
    assert "it is missing, its slide's record says that it is there. Run the same" in told
    assert listed or "visualization" in told


@pytest.mark.parametrize("suffix", [".png", ".geojson"])
def test_tissue_that_is_gone_is_told_of_each_tiling(out, verify, suffix):
    (path,) = out.glob(f"tissue/case 1/*{suffix}")
    path.unlink()
    faults = verify().faults
    assert [(f.kind, f.slide_id, f.tiling) for f in faults] == [
        ("missing", ID, ""),
        ("missing", ID, "low/10x"),
    ]


def test_half_of_a_tissue_that_no_record_names(out, verify):
    (path,) = out.glob("tissue/b.svs.*.geojson")
    shutil.copy(path, path.with_name("b.svs.0123456789ab.geojson"))
    (fault,) = verify().faults
    assert fault.path == "tissue/b.svs.0123456789ab.png"
    assert fault.kind == "missing"


def test_files_without_a_record(out, verify):
    for tiling in ("", "low/10x"):
        (out / tiling / f"status/{ID}.json").unlink()
    faults = verify().faults
    assert [(fault.kind, fault.tiling) for fault in faults] == [
        ("record", ""),
        ("record", "low/10x"),
    ]
    assert "ended before it was written. Run the same command again." in faults[0].message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(slide_id="other"), "is the record of 'other'"),
        (lambda s: s.update(seconds=3), "is damaged"),
        (lambda s: s.update(outputs={"hdf5": 3}), "is damaged"),
        (lambda s: s.update(tiles="many"), "is damaged"),
        (lambda s: s.pop("path"), "is not a status record"),
        (lambda s: s.update(state="perfect"), "is not a status record"),
    ],
)
def test_a_record_that_is_none(out, verify, change, told):
    edit(out / f"status/{ID}.json", change)
    (fault,) = verify(deep=False).faults
    assert fault.kind == "record"
    assert told in fault.message
    assert f"status/{ID}.json" in fault.message


def test_a_record_that_names_other_tissue(out, verify):
    edit(out / f"status/{ID}.json", lambda s: s["identities"].update(tissue="f" * 64))
    assert any("and has the identity of" in fault.message for fault in verify().faults)


def test_a_record_of_a_run_that_is_damaged(out, only):
    path = sorted(out.glob("runs/*/run.json"))[0]
    path.write_text("{")
    assert "it is no record of a run, or is damaged. Delete it." in only("record", "")


def test_a_failed_slide_is_no_fault(out, verify):
    def fail(status):
        status["state"] = "failed"
        status["outputs"]["png"] = "images/never-written"
        status["identities"]["coords"] = "0" * 64

    edit(out / f"status/{ID}.json", fail)
    assert verify().faults == []


# What dead workers leave, and what living ones do.


def in_a_child(code: str, *words: str) -> None:
    """Run code in a process that then kills itself."""
    script = f"import os, signal, sys\nfrom pathlib import Path\n{code}\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert done.returncode == -signal.SIGKILL


def test_leftovers_of_the_dead(out, verify):
    in_a_child(
        "from microtome.store.atomic import private_path\n"
        "private_path(Path(sys.argv[1])).write_text('half')\n"
        "(private_path(Path(sys.argv[2])) / 'features').mkdir(parents=True)\n",
        str(h5(out, "low/10x")),
        str(out / f"images/{ID}"),
    )
    private_path(h5(out)).write_text("mine")
    h5(out).with_name(".x.h5.0badcafe-1-00000000.tmp").write_text("another machine's")
    found = verify()
    assert [fault.kind for fault in found.faults] == ["leftover"] * 2
    assert all("Run the same command again" in fault.message for fault in found.faults)
    assert {fault.path.rpartition("/")[0] for fault in found.faults} == {
        "low/10x/patches/case 1",
        "images/case 1",
    }
    (note,) = found.notes
    assert note.startswith("1 private files (.tmp) belong to processes of other machines")


def test_a_claim_of_the_dead(out, only):
    in_a_child(
        "from microtome.store.claims import Claims\n"
        "from microtome.store.layout import OutputLayout\n"
        "claim = Claims(OutputLayout(Path(sys.argv[1])), 60).take(sys.argv[2])\n"
        "claim.begin()\n",
        str(out),
        ID,
    )
    told = only("claim")
    assert "is gone. Run the same command again" in told
    assert "the worker, process " in told


def test_a_claim_that_nobody_renews(out, verify):
    claim = Claims(OutputLayout(out), 60).take("b.svs")
    lease = out / ".claims/b.svs.lease"
    assert verify().running == ["b.svs"]
    old = time.time() - 61
    os.utime(lease, (old, old))
    (fault,) = verify().faults
    assert (fault.kind, fault.slide_id) == ("claim", "b.svs")
    claim.drop()
    assert verify().faults == []


def test_a_slide_in_work_is_left_out(out, verify):
    claim = Claims(OutputLayout(out), 60).take(ID)
    os.truncate(h5(out), 100)
    found = verify()
    assert found.faults == []
    assert found.running == [ID]
    assert found.notes == ["1 slides are being worked on and were left out."]
    claim.drop()
    assert verify().faults


def test_a_slide_that_is_finished_meanwhile_is_looked_at_again(out, monkeypatch):
    """As the file is new and its record old, once."""
    from microtome.store import verify as module

    looks = []
    record = out / f"status/{ID}.json"

    def check(self, view, paths):
        if view.slide_id != ID or view.tiling:
            return iter([])
        looks.append(view)
        if len(looks) > 1:
            return iter([(record, [])])
        os.utime(record, ns=(0, record.stat().st_mtime_ns + 10**9))
        return iter([(record, [self._fault("output", view, record, module.Wrong("half"))])])

    monkeypatch.setattr(module._Verifier, "_check", check)
    assert verify_output(out, get_registry()).faults == []
    assert len(looks) == 2


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
