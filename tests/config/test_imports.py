"""What a whole run imports: nothing that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from microtome.testing import make_slide

UNUSED = {
    "torch", "torchvision", "timm", "cucim", "zarr", "tifffile", "imagecodecs", "pyvips", "scipy",
    "threadpoolctl", "microtome_writers.zarr",
}  # fmt: skip


@pytest.mark.parametrize("task", ["tissue", "coords"])
@pytest.mark.parametrize("segmenter", ["classic", "otsu"])
def test_tissue_and_coordinates_import_no_model_and_no_codec(task, segmenter, tmp_path):
    make_slide(tmp_path / "a.svs", size=(1024, 768), tissue=0.5, pen=False)
    line = ["a.svs", "output=out", f"task={task}", f"segmenter={segmenter}", "reader=openslide"]
    script = textwrap.dedent(f"""
        import json, sys
        from microtome.__main__ import main
        code = main({line!r})
        print(json.dumps([code, sorted(sys.modules)]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert (tmp_path / "out/patches/a.h5").exists() == (task == "coords")
    assert "cv2" in modules
    assert UNUSED.isdisjoint(modules)
    assert ("h5py" in modules) == (task == "coords")
