"""LazySlide: tissue, tiles, features, and the store it keeps them in.

Own options: ``workers`` of the data loader (default 0).
"""

from __future__ import annotations

import time
from pathlib import Path

import lazyslide
from networks import BATCH, MPP, TILE, answer, asked, near_free, preprocessing
from wsidata import open_wsi


def main() -> None:
    """Do what is asked."""
    options = asked()
    store = Path(options["output"]) / "slide.zarr"
    slide = open_wsi(options["slide"], store=str(store))
    lazyslide.pp.find_tissues(slide)
    lazyslide.pp.tile_tissues(slide, TILE, mpp=MPP)
    seconds = None
    if options["features"]:
        began = time.perf_counter()
        lazyslide.tl.feature_extraction(
            slide,
            model=near_free(),
            model_name="near_free",
            transform=preprocessing(),
            device="cpu",
            amp=False,
            batch_size=BATCH,
            num_workers=options.get("workers", 0),
            pbar=False,
        )
        seconds = time.perf_counter() - began
    slide.write(overwrite=True)
    answer(len(slide.shapes["tiles"]), seconds)


if __name__ == "__main__":
    main()
