"""Make a synthetic slide and run the whole job on it, offline.

The slide is an Aperio SVS of H&E tissue with a pen mark, whose truth is known; what the run
leaves behind is read back and held against it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from microtome.commands._arguments import VerbParser
from microtome.errors import StoreError
from microtome.plugin.registry import Registry, get_registry
from microtome.store.layout import OutputLayout
from microtome.store.masks import load_mask
from microtome.testing import SyntheticSlide, make_slide, sample_mask

if TYPE_CHECKING:
    from microtome.plugin.specs import WriterSpec

ENCODER = "handcrafted"
WRITER = "hdf5"
SIZE = (4096, 3072)


def main(argv: list[str]) -> int:
    """Run the demo.

    Returns:
        The run's exit code.
    """
    parser = VerbParser("microtome demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("microtome-demo"), metavar="FOLDER")
    folder: Path = parser.parse_args(argv).output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slide = make_slide(folder / "demo.svs", size=SIZE, mpp=0.5, magnification=20)
    except OSError as error:
        raise StoreError(f"{folder}: the slide cannot be written: {error.strerror}.") from error
    _say(f"Made {slide.path}: {SIZE[0]} x {SIZE[1]} px at {slide.mpp} µm/px, 20x, Aperio JPEG.")
    words = _command(slide.path, folder)
    _say(f"Running: microtome {shlex.join(words)}")
    code = _run(words)
    if code == 0:
        _summarise(slide, OutputLayout(folder), get_registry())
    return code


def _command(slide: Path, output: Path) -> list[str]:
    return [
        str(slide),
        f"output={output}",
        f"encoder={ENCODER}",
        f"writer={WRITER}",
        "tiler.size=256",
        "tiler.magnification=20",
        "visualize=all",
    ]


def _run(words: list[str]) -> int:
    # Not at the top: the command itself imports its verbs.
    from microtome.__main__ import main as microtome

    return microtome(words)


def _summarise(slide: SyntheticSlide, layout: OutputLayout, registry: Registry) -> None:
    """Read back what was written, and say where it is."""
    slide_id = slide.path.stem
    spec = cast("WriterSpec", registry.find("writer", WRITER).spec)
    path = layout.slide(spec, slide_id)
    with registry.create("writer", WRITER).open_stored(path) as stored:
        shape, features = stored.coords.shape, stored.features(ENCODER)
    if len(features) != shape[0] or not np.isfinite(features).all():
        raise StoreError(f"{path}: what was read back is not what was written.")
    _say("", "Read back:")
    _say(f"  {path}")
    _say(f"    coords                {shape[0]} tiles, int32 {shape}: x, y, read_w, read_h, level")
    _say(f"    features/{ENCODER}  {features.dtype} {features.shape}, all finite")
    for mask in sorted(layout.tissue_folder.glob(f"{slide_id}.*.png")):
        _say(f"  {mask}", f"    tissue mask           {_agreement(slide, mask)}")
    for overlay in sorted(layout.visualization_folder.glob(f"{slide_id}*.png")):
        _say(f"  {overlay}")


def _agreement(slide: SyntheticSlide, path: Path) -> str:
    """Hold a mask against the truth that the slide was painted by."""
    found = sample_mask(load_mask(path).mask, slide.tissue.shape)
    union = np.count_nonzero(found | slide.tissue)
    iou = np.count_nonzero(found & slide.tissue) / union if union else 1.0
    pen = float(found[slide.pen].mean())
    return f"IoU {iou:.2f} with the truth, {pen:.0%} of the pen mark called tissue"


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
