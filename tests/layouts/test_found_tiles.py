"""tiler=stored on other tools' files, read where they lie."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import h5py
import numpy as np
import openslide
import pytest
import tifffile
from layouts.stores import LAYOUTS, content
from PIL import Image

from microtome.__main__ import main
from microtome.testing import make_slide

RUN = ["engine=inline", "segmenter=none", "tiler=stored"]
POINTS = np.array([[1024, 0], [0, 0], [0, 1024]])
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 1024,
    "level0_magnification": 40,
    "target_magnification": 10,
    "overlap": 0,
    "name": "a",
    "savetodir": "/data/job",
    "level0_width": 2048,
    "level0_height": 1536,
}


def run(slide, out, folder, *words):
    return main([str(slide), f"output={out}", *RUN, f"tiler.folder={folder}", *words])


def write_coords(path, attributes=(), of_file=(), points=POINTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = points
        file["coords"].attrs.update(attributes)
        file.attrs.update(of_file)
    return path


@pytest.fixture(scope="session")
def pyramid(tmp_path_factory):
    """A slide at 40x with levels of 1, 4 and 16."""
    return make_slide(tmp_path_factory.mktemp("pyramid") / "a.svs", levels=(1, 4, 16)).path


@pytest.fixture
def trident(tmp_path):
    write_coords(tmp_path / "job/10x_256px_0px_overlap/patches/a_patches.h5", TRIDENT)
    return tmp_path / "job"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_exported_is_known_again(layout, exported, output, tmp_path):
    slide = output.parent / "slides/a.svs"
    folder = exported(layout, "--features=handcrafted")
    assert run(slide, tmp_path / "new", folder) == 0
    new, old = content(tmp_path / "new"), content(output)
    assert np.array_equal(new["coords"], old["coords"])
    assert np.array_equal(new["features"]["handcrafted"], old["features"]["handcrafted"])
    for name in ("patch_size", "step", "level", "target_magnification", "effective_mpp"):
        assert np.array_equal(new["attributes"][name], old["attributes"][name]), name
    assert new["attributes"]["edge"] == "pad"


@pytest.fixture(scope="module")
def of_hs2p(tmp_path_factory):
    """A slide as hs2p's own coordinates are of: of one level and 0.252 µm, each square a colour."""
    path = tmp_path_factory.mktemp("hs2p") / "test-wsi.tif"
    down, across = -(-12800 // 512), -(-13824 // 512)
    rng = np.random.default_rng(0)
    squares = (
        np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (512, 512, 3))
        for _ in range(down * across)
    )
    tifffile.imwrite(
        path,
        squares,
        shape=(12800, 13824, 3),
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="zlib",
        resolution=(1e4 / 0.252, 1e4 / 0.252),
        resolutionunit="CENTIMETER",
    )
    return path


def test_hs2ps_own_459_coordinates(shared_data, of_hs2p, tmp_path):
    """Where they lie and as large as they say; those that reach beyond the slide are filled up."""
    folder = shared_data / "peers/hs2p"
    assert run(of_hs2p, tmp_path / "out", folder, "writer=[hdf5,tar]") == 0
    found = content(tmp_path / "out", "test-wsi")
    with np.load(folder / "test-wsi.coordinates.npz") as theirs:
        order = np.lexsort((theirs["x"], theirs["y"]))
        points = np.stack([theirs["x"], theirs["y"]], axis=1)[order]
        shares = theirs["tissue_fractions"][order]
    assert len(points) == 459
    assert np.array_equal(found["coords"][:, :2], points)
    assert np.array_equal(found["columns"]["tissue_fraction"], shares)
    assert {tuple(row) for row in found["coords"][:, 2:].tolist()} == {(444, 444, 0)}
    attributes = found["attributes"]
    names = ("patch_size", "patch_size_level0", "step_level0_exact", "target_mpp", "resample")
    assert [np.array(attributes[n]).tolist() for n in names] == [
        224,
        444,
        [444, 444],
        0.5,
        "pil-bilinear",
    ]
    assert attributes["effective_mpp"] == pytest.approx([0.252 * 444 / 224] * 2, rel=1e-4)
    beyond = (points + 444 > (13824, 12800)).any(axis=1)
    assert beyond.any()
    assert np.array_equal(found["columns"]["has_background"], beyond)
    assert found["features"]["handcrafted"].shape[0] == 459

    with tarfile.open(tmp_path / "out/tiles/test-wsi.tar") as tar:
        tiles = {m.name: tar.extractfile(m).read() for m in tar.getmembers()[1:]}
    assert len(tiles) == 459
    with openslide.OpenSlide(of_hs2p) as slide:
        for x, y in [*points[:3], *points[beyond][:3]]:
            region = slide.read_region((int(x), int(y)), 0, (444, 444))
            white = Image.new("RGB", region.size, "white")
            white.paste(region, mask=region.getchannel("A"))
            tile = Image.open(io.BytesIO(tiles[f"test-wsi_{x}_{y}.png"]))
            assert np.array_equal(tile, white.resize((224, 224), Image.Resampling.BILINEAR))


def test_tiles_without_a_level_are_read_from_the_right_one(trident, pyramid, tmp_path):
    assert run(pyramid, tmp_path / "out", trident, "task=coords") == 0
    found = content(tmp_path / "out")
    assert found["coords"].tolist() == [
        [x, y, 256, 256, 1] for x, y in ((0, 0), (1024, 0), (0, 1024))
    ]
    assert found["attributes"]["effective_mpp"] == [1.0, 1.0]
    assert found["attributes"]["target_magnification"] == 10


def test_tiles_between_pixels_of_a_level_are_read_from_a_finer_one(trident, pyramid, tmp_path):
    path = next(trident.rglob("*_patches.h5"))
    write_coords(path, TRIDENT, points=POINTS + 2)
    assert run(pyramid, tmp_path / "out", trident, "task=coords") == 0
    assert content(tmp_path / "out")["coords"][0].tolist() == [2, 2, 1024, 1024, 0]


def test_clam_says_the_level_and_is_asked_for_its_step(pyramid, tmp_path, capsys):
    clam = {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}
    folder = tmp_path / "clam"
    write_coords(folder / "patches/a.h5", clam, points=POINTS // 2)
    (folder / "h5_files").mkdir()  # whose encoder nobody need name: no feature is read
    assert run(pyramid, tmp_path / "out", folder, "task=coords") == 3
    assert "its tiles overlap" in capsys.readouterr().err
    assert run(pyramid, tmp_path / "out", folder, "task=coords", "tiler.step_size=128") == 0
    found = content(tmp_path / "out")
    assert found["coords"][:, 2:].tolist() == [[256, 256, 1]] * 3
    assert (found["attributes"]["patch_size_level0"], found["attributes"]["overlap"]) == (1024, 128)


def test_one_slide_of_many_and_one_that_is_not_there(trident, pyramid, tmp_path, capsys):
    patches = next(trident.rglob("*_patches.h5")).parent
    write_coords(patches / "b_patches.h5", TRIDENT)
    (tmp_path / "slides").mkdir()
    for name in ("a", "c"):
        (tmp_path / f"slides/{name}.svs").symlink_to(pyramid)
    assert run(tmp_path / "slides", tmp_path / "out", trident, "task=coords") == 3
    told = capsys.readouterr().err
    assert f"holds no tiles of c: there is no {patches / 'c_patches.h5'}." in told
    assert [path.name for path in (tmp_path / "out/patches").iterdir()] == ["a.h5"]


def test_it_is_reused_until_the_coordinates_are_others(pyramid, tmp_path, capsys):
    of_file = {n: v for n, v in TRIDENT.items() if n not in ("name", "savetodir")}
    rows = np.concatenate([POINTS, np.tile([256, 256, 1], (3, 1))], axis=1).astype(np.int32)
    path = write_coords(tmp_path / "ap/patches/a.h5", of_file=of_file, points=rows)
    words = (pyramid, tmp_path / "out", tmp_path / "ap", "task=coords")
    assert run(*words) == 0
    with h5py.File(path, "r+") as file:
        file["features/uni_v2"] = np.ones((3, 4), np.float32)
    capsys.readouterr()
    assert run(*words) == 0
    assert "1 reused" in capsys.readouterr().out
    write_coords(path, of_file=of_file, points=rows[:2])
    assert run(*words) == 3
    assert "tiles.coords changed" in capsys.readouterr().err


def test_tiles_that_reach_beyond_the_slide_or_lie_outside(trident, pyramid, tmp_path, capsys):
    path = next(trident.rglob("*_patches.h5"))
    write_coords(path, TRIDENT, points=POINTS + np.array([512, 256]))
    assert run(pyramid, tmp_path / "out", trident) == 0
    # of 2048 × 1536: two overhang to one side each, or both
    assert content(tmp_path / "out")["columns"]["has_background"].tolist() == [False, True, True]
    write_coords(path, TRIDENT, points=POINTS - 512)
    assert run(pyramid, tmp_path / "before", trident) == 0
    found = content(tmp_path / "before")
    assert found["coords"][:, :2].tolist() == [[-512, -512], [512, -512], [-512, 512]]
    assert found["columns"]["has_background"].all()
    write_coords(path, TRIDENT, points=POINTS * 9)
    assert run(pyramid, tmp_path / "far", trident) == 3
    assert "lies outside of the slide of 2048 × 1536 px" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dimensions": [100, 100]}, "is of a slide of 100 × 100 px"),
        ({"base_spacing_um": 0.5}, "is of a slide of 0.5 µm per pixel"),
    ],
)
def test_another_slides_coordinates_are_refused(exported, output, tmp_path, capsys, change, told):
    slide, folder = output.parent / "slides/a.svs", exported("slide2vec", "--features=none")
    sidecar = folder / "tiles/a.coordinates.meta.json"
    meta = json.loads(sidecar.read_text())
    meta["slide"] |= change
    sidecar.write_text(json.dumps(meta))
    arrays = folder / "tiles/a.coordinates.npz"
    with np.load(arrays) as held:  # without the note, which says it right
        np.savez(arrays, **{n: held[n] for n in held.files if n != "microtome"})
    assert run(slide, tmp_path / "new", folder) == 3
    assert told in capsys.readouterr().err
    if "base_spacing_um" in change:
        assert run(slide, tmp_path / "said", folder, "mpp=0.5") == 0


def test_a_folder_that_holds_several_kinds_is_asked_about(
    exported, output, pyramid, tmp_path, capsys
):
    folder = exported("slide2vec", "--features=none")
    write_coords(folder / "patches/a_patches.h5", TRIDENT)
    slide = output.parent / "slides/a.svs"
    assert run(slide, tmp_path / "new", folder) == 2
    assert "several kinds: say tiler.layout=slide2vec or tiler.layout=trident" in (
        capsys.readouterr().err
    )
    assert run(slide, tmp_path / "new", folder, "tiler.layout=slide2vec", "task=coords") == 0
    assert np.array_equal(content(tmp_path / "new")["coords"], content(output)["coords"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "holds neither finished slides nor another tool's files"),
        (["tiler.layout=tridant"], "There is no tiler.layout named 'tridant'. Did you mean"),
        (["tiler.layout=trident", "tiler.step_size=8"], "is for CLAM's files; trident says"),
    ],
)
def test_what_is_said_of_it_wrongly(pyramid, tmp_path, capsys, words, told):
    (tmp_path / "nothing").mkdir()
    assert run(pyramid, tmp_path / "new", tmp_path / "nothing", *words) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_damaged_fails_its_slide_alone(trident, pyramid, tmp_path, capsys):
    patches = next(trident.rglob("*_patches.h5")).parent
    (patches / "0_patches.h5").write_bytes(b"cut short")
    (tmp_path / "slides").mkdir()
    for name in ("a", "0"):
        shutil.copy(pyramid, tmp_path / f"slides/{name}.svs")
    assert run(tmp_path / "slides", tmp_path / "out", trident, "task=coords") == 3
    assert "0_patches.h5 cannot be read as HDF5" in capsys.readouterr().err
    assert (tmp_path / "out/patches/a.h5").exists()
