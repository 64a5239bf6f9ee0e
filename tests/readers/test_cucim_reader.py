"""cuCIM: what it is not given, what it is tried with first, and its pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from readers import tiffs

from microtome.errors import SlideOpenError, SlideReadError
from microtome.testing import make_slide
from microtome_readers import CucimConfig, TiffConfig, cucim_check
from microtome_readers.cucim_check import check_file
from microtome_readers.cucim_reader import CucimReader
from microtome_readers.tiff.reader import TiffReader

RGB = tiffs.colours(300, 400)

needs_cucim = pytest.mark.skipif(find_spec("cucim") is None, reason="cucim is not installed")


@pytest.fixture
def jpeg(tmp_path):
    options = {"compression": "jpeg", "tile": (64, 64)}
    return tiffs.write(tmp_path / "a.tif", RGB, **options)


@pytest.fixture
def untried(monkeypatch):
    """Let the check pass without its child process."""
    monkeypatch.setattr(cucim_check, "_probe", lambda *_: "")


def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand in for the child process."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(cucim_check.sys, "executable", str(python))


@pytest.mark.usefixtures("untried")
def test_a_plain_jpeg_pyramid_is_accepted(jpeg):
    assert len(check_file(jpeg, 60).pages) == 1


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rowsperstrip": 16, "compression": "jpeg"}, "not tiled"),
        ({"tile": (64, 64), "compression": "zlib"}, "ADOBE_DEFLATE"),
        ({"tile": (64, 64), "compression": "lzw"}, "LZW"),
        ({"tile": (64, 64)}, "NONE"),
    ],
)
def test_other_layouts_are_refused(tmp_path, options, reason):
    path = tiffs.write(tmp_path / "a.tif", RGB, **options)
    with pytest.raises(SlideOpenError, match=f"cuCIM is not trusted with it.*{reason}"):
        check_file(path, 60)


@pytest.mark.usefixtures("untried")
def test_grey_is_refused(tmp_path):
    options = {"photometric": "minisblack", "compression": "jpeg"}
    path = tiffs.write(tmp_path / "a.tif", RGB[..., 0], tile=(64, 64), **options)
    with pytest.raises(SlideOpenError, match="1 samples of 8 bits"):
        check_file(path, 60)


@pytest.mark.usefixtures("untried")
def test_alpha_is_refused(tmp_path):
    options = {"compression": 34712, "extrasamples": ["unassalpha"]}
    path = tiffs.write(tmp_path / "a.tif", tiffs.colours(channels=4), tile=(64, 64), **options)
    tiffs.set_tag(path, "Compression", 33005)
    with pytest.raises(SlideOpenError, match="4 samples of 8 bits"):
        check_file(path, 60)


@pytest.mark.usefixtures("untried")
def test_a_tile_that_is_left_out_is_refused(jpeg):
    with tifffile.TiffFile(jpeg) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    tiffs.set_tag(jpeg, "TileByteCounts", [*counts[:-1], 0])
    with pytest.raises(SlideOpenError, match="tiles are left out"):
        check_file(jpeg, 60)


@pytest.mark.usefixtures("untried")
def test_a_cut_file_is_refused(jpeg):
    jpeg.write_bytes(jpeg.read_bytes()[:-500])
    with pytest.raises(SlideOpenError, match="truncated"):
        check_file(jpeg, 60)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", r"killed a child process \(signal 11\)"),
        ("sleep 30", "took more than 0.3 seconds"),
        ("echo level 0 gives garbage; exit 1", "level 0 gives garbage"),
        ("exit 1", "silently"),
    ],
)
def test_what_happens_to_the_child_is_the_reason(jpeg, tmp_path, monkeypatch, script, reason):
    child(tmp_path, monkeypatch, script)
    with pytest.raises(SlideOpenError, match=reason):
        check_file(jpeg, 0.3)


def test_a_file_is_tried_once(jpeg, tmp_path, monkeypatch):
    child(tmp_path, monkeypatch, f"echo tried >> {tmp_path}/log")
    for _ in range(3):
        check_file(jpeg, 60)
    assert (tmp_path / "log").read_text() == "tried\n"
    os.utime(jpeg, ns=(1, 1))
    check_file(jpeg, 60)
    assert (tmp_path / "log").read_text() == "tried\n" * 2


@needs_cucim
@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_reading_after_torch_does_not_hang_and_leaves_no_log(tmp_path):
    """In a process of its own, with the setting that cures it unset."""
    slide = make_slide(tmp_path / "a.svs", size=(700, 500))
    script = (
        "import sys, torch, numpy as np\n"
        "from pathlib import Path\n"
        "from microtome_readers import CucimConfig\n"
        "from microtome_readers.cucim_reader import CucimReader\n"
        "reader = CucimReader(Path(sys.argv[1]), CucimConfig())\n"
        "out = np.zeros((1, 64, 64, 3), np.uint8)\n"
        "reader.read_tiles(0, np.array([[9, 9, 64, 64]]), out, np.array([0]))\n"
        "print(out.any())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUFILE_ENV_PATH_JSON"}
    command = [sys.executable, "-c", script, str(slide.path)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, timeout=110, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "True", done.stderr
    assert "cuFile" not in done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svs"]


@needs_cucim
def test_pixels_and_metadata_are_those_of_the_file(tmp_path):
    # A second level whose downsample is not whole: 1001 / 250 and 703 / 176.
    slide = make_slide(tmp_path / "a.svs", size=(1001, 703), mpp=0.25, magnification=40)
    cucim = CucimReader(slide.path, CucimConfig())
    tiff = TiffReader(slide.path, TiffConfig())
    assert cucim.info.levels == tiff.info.levels
    assert cucim.info.levels[1].downsample % 1
    assert cucim.info.properties == tiff.info.properties
    assert cucim.info.properties["aperio.MPP"] == "0.25"
    for level, x, y in (
        (0, 0, 0),
        (0, 745, 447),
        (0, 333, 101),
        (1, 0, 0),
        (1, 402, 3),
        (1, 7, 301),
    ):
        side = 256 if level == 0 else 90
        ours, theirs = (tiffs.read(r, x, y, side, side, level) for r in (cucim, tiff))
        assert np.array_equal(ours, theirs)
    cucim.close()


@needs_cucim
@pytest.mark.parametrize("shift", [0, 37])
def test_boxes_read_at_once_are_those_read_alone(tmp_path, shift):
    """Those that share native tiles are cut out of one large read, on every level."""
    slide = make_slide(tmp_path / "a.svs", size=(1501, 1203), tile=240)
    cucim, tiff = CucimReader(slide.path, CucimConfig()), TiffReader(slide.path, TiffConfig())
    for index, level in enumerate(cucim.info.levels):
        side = 240 if index == 0 else 60
        columns, rows = (level.width - shift) // side, (level.height - shift) // side
        boxes = np.full((columns * rows, 4), side)
        at = np.stack(np.meshgrid(range(columns), range(rows)), -1).reshape(-1, 2)
        boxes[:, :2] = np.rint((at * side + shift) * level.downsample)
        order = np.random.default_rng(1).permutation(len(boxes))
        out = np.zeros((len(boxes), side, side, 3), np.uint8)
        cucim.read_tiles(index, boxes, out, order)
        for box, row in zip(boxes.tolist(), order.tolist(), strict=True):
            assert np.array_equal(out[row], tiffs.read(tiff, *box, index))
    cucim.close()


@needs_cucim
def test_a_damaged_tile_is_told_where_it_is_and_no_sooner(tmp_path):
    slide = make_slide(tmp_path / "a.svs", size=(1000, 700), tile=128)
    tiffs.damage_segment(slide.path, 3, b"\x11\x11", len(tiffs.segment(slide.path, 3)) - 2)
    cucim = CucimReader(slide.path, CucimConfig())
    assert tiffs.read(cucim, 128, 0, 256, 128).any()
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"a\.svs: tile 3 of level 0 .*truncated"):
            tiffs.read(cucim, 300, 0, 128, 128)
    cucim.close()
