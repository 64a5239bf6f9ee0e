"""Good files of every format that can be made here, to be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.testing import make_plain_image, make_slide

SIZE = (768, 640)
"""(width, height) in pixels: small, for every variant is read several times."""

PLAIN = (".png", ".jpg", ".bmp", ".gif", ".webp")

_MADE: dict[str, dict[str, Any]] = {
    "aperio.svs": {},
    "generic.tiff": {"aperio": False},
    "strips.tif": {"aperio": False, "tile": None, "compression": "deflate", "levels": (1,)},
    "plain-strips.tif": {"aperio": False, "tile": None, "compression": "none", "levels": (1,)},
    "deflate.tif": {"aperio": False, "compression": "deflate"},
    "lzw-alpha.tif": {"aperio": False, "compression": "lzw", "alpha": True},
    "none.tif": {"aperio": False, "compression": "none"},
}

_REAL = (
    *("cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs", "camelyon_lymph_node_jpeg.dcm"),
    *("slaid_patch_rgba_levels_1_8_256.tif", "kidney_ihc_flat_no_mpp.tif"),
    *("fluorescence_dapi.ndpi", "plain_he.bmp", "plain_he.gif", "plain_he.webp"),
    "plain_he_rgba.png",
)


def make_sources(folder: Path, real: Path | None = None) -> list[Path]:
    """Make one file of each kind.

    Args:
        folder: Where to.
        real: A folder of small real slides, used as well.
    """
    sources = []
    for name, options in _MADE.items():
        sources.append(make_slide(folder / name, size=SIZE, **options).path)
    for suffix in PLAIN:
        sources.append(make_plain_image(folder / f"plain{suffix}").path)
    image = make_plain_image(folder / "source.png", size=SIZE).image
    sources += [
        _pyramid(folder / "bigtiff.tif", image, bigtiff=True, compression="jpeg"),
        _pyramid(folder / "bigendian.tif", image, byteorder=">", compression="deflate"),
        _pyramid(folder / "jpeg2000.tif", image, compression="jpeg2000"),
        _pyramid(folder / "webp.tif", image, compression="webp"),
        _pyramid(folder / "zstd.tif", image, compression="zstd"),
        _ome(folder / "subifds.ome.tif", image),
    ]
    return sources + [real / name for name in _REAL if real is not None]


def _pyramid(
    path: Path,
    image: NDArray[np.uint8],
    *,
    bigtiff: bool = False,
    byteorder: str = "<",
    **page: Any,
) -> Path:
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tiff:  # type: ignore[arg-type]
        for downsample in (1, 4):
            tiff.write(
                image[::downsample, ::downsample],
                photometric="rgb",
                tile=(256, 256),
                subfiletype=int(downsample > 1),
                metadata=None,
                **page,
            )
    return path


def _ome(path: Path, image: NDArray[np.uint8]) -> Path:
    import tifffile

    with tifffile.TiffWriter(path, ome=True) as tiff:
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(image, subifds=1, metadata={"axes": "YXS", **sizes}, **options)  # type: ignore[arg-type]
        tiff.write(image[::4, ::4], subfiletype=1, **options)  # type: ignore[arg-type]
    return path
