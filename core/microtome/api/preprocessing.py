"""How slides are tiled, in the words of slide2vec's users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.api.fields import (
    at_least,
    check,
    coerced,
    hint,
    mapped,
    named_fields,
    refuse_twice,
    refused,
)
from microtome.errors import ConfigError

_METHODS = {"hsv": "threshold"}
"""Segmenters that go by another name here: a fixed range of HSV is a fixed threshold."""

_SIMPLE = ("threshold", "otsu", "entropy")
"""Segmenters that close their masks by a number of pixels."""

_NO_PIXEL_IS_BLACK, _NO_PIXEL_IS_WHITE = 0, 256
"""Limits of the content filter that no 8-bit value reaches."""


@named_fields
@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How tissue is found; what is None is our segmenter's default."""

    method: str | None = mapped(
        None,
        "segmenter",
        says="A segmenter: `otsu`, `threshold`, `sam2`, `grandqc`, …; `hsv` is `threshold`.",
    )
    downsample: int | None = hint(
        None,
        says="Each segmenter looks at the µm/px that it was made for, whatever the pyramid.",
    )
    sthresh: int | None = mapped(
        None, "segmenter.saturation", says="Saturation that is tissue, for `threshold`."
    )
    close: int | None = mapped(
        None, "segmenter.close", says="Radius of the closing, for `threshold` and `otsu`."
    )
    sam2_checkpoint_path: str | Path | None = mapped(  # noqa: RUF009 - it makes a field
        None, "segmenter.weights", says="Weights of `sam2`; `atlaspatch` for its fine-tune."
    )
    sam2_device: str | None = mapped(None, "segmenter.device", says="Device of `sam2`.")
    options: Mapping[str, Any] = mapped(
        dict, "segmenter", says="Further options of the segmenter, by our names."
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("sthresh", "close"):
            at_least(self, name, 0)
        refuse_twice(self, "segmenter", self.options, "options")
        only = {
            "sthresh": ("threshold",),
            "close": _SIMPLE,
            "sam2_checkpoint_path": ("sam2",),
            "sam2_device": ("sam2",),
        }
        for name, methods in only.items():
            if getattr(self, name) is not None and self.segmenter not in methods:
                raise ConfigError(
                    f"SegmentationConfig.{name} is for method={' or '.join(methods)}, not for "
                    f"{self.segmenter or 'our default'}: name the method, or leave it out."
                )

    @property
    def segmenter(self) -> str | None:
        """The segmenter's name; None for the default."""
        return None if self.method is None else _METHODS.get(self.method, self.method)

    def run_options(self) -> dict[str, Any]:
        """Give the options of a run."""
        options = dict(self.options)
        for name, key in (
            ("sthresh", "saturation"),
            ("close", "close"),
            ("sam2_checkpoint_path", "weights"),
            ("sam2_device", "device"),
        ):
            if (value := getattr(self, name)) is not None:
                options[key] = str(value) if isinstance(value, Path) else value
        if self.segmenter is None and not options:
            return {}
        return {"segmenter": {self.segmenter or "classic": options}}


@named_fields
@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which pieces of tissue, and which tiles, are left out; none by default."""

    ref_tile_size: int | None = mapped(
        None,
        "tissue",
        says="Side in pixels of the tile that `a_t` and `a_h` count in; that of the tiles if None.",
    )
    a_t: float | None = mapped(
        None, "tissue.min_region_um2", says="Pieces of tissue smaller than so many tiles go."
    )
    a_h: float | None = mapped(
        None, "tissue.min_hole_um2", says="Holes smaller than so many tiles are filled."
    )
    filter_white: bool = mapped(
        False, "filter.enabled", says="Whether mostly white tiles go, by our content filter."
    )
    filter_black: bool = mapped(False, "filter.enabled", says="Whether mostly black tiles go.")
    white_threshold: int | None = mapped(
        None, "filter.white_value_from", says="Value (0..255) from which a grey pixel is white."
    )
    black_threshold: int | None = mapped(
        None, "filter.black_gray_below", says="Grey value (0..255) below which a pixel is black."
    )
    fraction_threshold: float | None = mapped(
        None,
        "filter.white_drop_from",
        "filter.black_drop_from",
        says="Share of such pixels from which a tile goes.",
    )
    filter_grayspace: bool = refused(
        False, instead="`filter_white` leaves out what is bright and has no colour."
    )
    filter_blur: bool = mapped(
        False,
        "inspector",
        "quality.drop",
        says="Whether tiles go that our inspector `blur` finds a reason against.",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("ref_tile_size", "a_t", "a_h"):
            at_least(self, name, 0)
        for name in ("white_threshold", "black_threshold"):
            at_least(self, name, 0, 255)
        at_least(self, "fraction_threshold", 0, 1)
        for name, switches in (
            ("white_threshold", ("filter_white",)),
            ("black_threshold", ("filter_black",)),
            ("fraction_threshold", ("filter_white", "filter_black")),
        ):
            if getattr(self, name) is not None and not any(getattr(self, s) for s in switches):
                raise ConfigError(
                    f"FilterConfig.{name} filters nothing without {' or '.join(switches)}=True."
                )

    def run_options(self, size: int, mpp: float) -> dict[str, Any]:
        """Give the options of a run.

        Args:
            size: Side of the tiles in pixels.
            mpp: Their µm per pixel.
        """
        area = ((self.ref_tile_size or size) * mpp) ** 2
        tissue = {
            key: count * area
            for key, count in (("min_region_um2", self.a_t), ("min_hole_um2", self.a_h))
            if count is not None
        }
        found: dict[str, Any] = {"tissue": tissue} if tissue else {}
        if self.filter_white or self.filter_black:
            found["filter"] = {"enabled": True, **self._content()}
        if self.filter_blur:
            found |= {"inspector": ["blur"], "quality": {"drop": True}}
        return found

    def _content(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if not self.filter_white:
            options["white_value_from"] = _NO_PIXEL_IS_WHITE
        elif self.white_threshold is not None:
            options["white_value_from"] = self.white_threshold
        if not self.filter_black:
            options["black_gray_below"] = _NO_PIXEL_IS_BLACK
        elif self.black_threshold is not None:
            options["black_gray_below"] = self.black_threshold
        if self.fraction_threshold is not None:
            options |= dict.fromkeys(
                ("white_drop_from", "black_drop_from"), self.fraction_threshold
            )
        return options


@named_fields
@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Which pictures are drawn; they need an ``output_dir``."""

    save_mask_preview: bool = mapped(
        False, "visualize", says="Draw the tissue mask: the overlay `mask`."
    )
    save_tiling_preview: bool = mapped(
        False, "visualize", says="Draw the tiles: the overlay `grid`."
    )
    downsample: int | None = hint(
        None, says="Overlays have 1024 px on the longer side, whatever the slide."
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The overlays that are drawn."""
        wanted = {"mask": self.save_mask_preview, "grid": self.save_tiling_preview}
        return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


@named_fields
@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """How slides are opened, tiled and filtered; what is None is our default, or the model's card.

    Every field and what it sets of a run is listed on the page on Python parity.

    Raises:
        ConfigError: A ``ValueError``: if a field has a value that it cannot have, or one without
            counterpart; says what does it instead.
    """

    backend: str = mapped(
        "auto", "reader", says="A reader: `auto`, `cucim`, `openslide`, `vips`, `tiff`, …"
    )
    requested_spacing_um: float | None = mapped(
        None, "tiler.mpp", says="µm per pixel of the tiles; the model's card says if None."
    )
    requested_tile_size_px: int | None = mapped(
        None, "tiler.size", says="Side of a tile in pixels; the model's card says if None."
    )
    tolerance: float | None = mapped(
        None,
        "tiler.max_upsample",
        says="How much coarser than asked for the level that is read may be, as a share; pixels "
        "are then resampled to exactly the spacing asked for.",
    )
    overlap: float = mapped(0.0, "tiler.step", says="Overlap of tiles as a share of their side.")
    tissue_threshold: float | None = mapped(
        None, "tiler.min_tissue", says="Least share of a tile that is tissue."
    )
    segmentation: SegmentationConfig = mapped(  # noqa: RUF009 - it makes a field
        SegmentationConfig, "segmenter", says="How tissue is found."
    )
    filtering: FilterConfig = mapped(  # noqa: RUF009 - it makes a field
        FilterConfig, "tissue", "filter", says="Which tissue and tiles are left out."
    )
    preview: PreviewConfig = mapped(PreviewConfig, "visualize", says="Which pictures are drawn.")  # noqa: RUF009 - it makes a field
    masks: Mapping[str, Any] | None = refused(
        None,
        instead="give each slide a `mask_path` of the class that you want, with "
        "`segmentation={'method': 'file', 'options': {'values': [2]}}` for its values.",
    )
    requested_region_size_px: int | None = mapped(
        None, "tiler.region_size", says="Side of a region in pixels: a whole number of tiles."
    )
    region_tile_multiple: int | None = mapped(
        None, "tiler.region_tiles", says="Tiles along the side of a region, 2 or more."
    )
    read_coordinates_from: str | Path | None = mapped(  # noqa: RUF009 - it makes a field
        None,
        "tiler.stored.folder",
        says="A folder of coordinates, ours or those of hs2p, TRIDENT or CLAM, instead of tiling.",
    )
    read_tiles_from: str | Path | None = mapped(  # noqa: RUF009 - it makes a field
        None,
        "slides",
        "tiler",
        "segmenter",
        says="A folder of tile archives, `<sample_id>.tar`, which are read instead of the slides: "
        "`tiler=archive`, `segmenter=none`.",
    )
    save_tiles: bool = mapped(False, "writer.tar", says="Keep the tiles as archives.")
    on_the_fly: bool = mapped(
        True,
        "writer.tar",
        says="False keeps the tiles as archives, too; pixels are read once all the same.",
    )
    use_supertiles: bool = hint(
        True, says="Readers decode each block of a slide once, whatever tiles it is under."
    )
    gpu_decode: bool = refused(
        False, instead="slides are decoded on the CPU, by `backend='cucim'` for one."
    )
    adaptive_batching: bool = mapped(
        False, "encoder.batch_size", says="True gives as many tiles as a GPU has memory for."
    )
    resume: bool = mapped(
        False,
        "force",
        says="True takes what is finished and the same, and refuses what differs; False computes "
        "anew, and replaces what the output holds of these slides and this tiling.",
    )
    tiler: Mapping[str, Any] = mapped(dict, "tiler", says="Further options of the grid.")

    def __post_init__(self) -> None:
        for name, owner in (
            ("segmentation", SegmentationConfig),
            ("filtering", FilterConfig),
            ("preview", PreviewConfig),
        ):
            object.__setattr__(self, name, coerced(owner, getattr(self, name)))
        check(self)
        for name, least in (
            ("requested_tile_size_px", 1),
            ("requested_region_size_px", 1),
            ("region_tile_multiple", 2),
            ("tolerance", 0),
            ("overlap", 0),
        ):
            at_least(self, name, least)
        at_least(self, "tissue_threshold", 0, 1)
        refuse_twice(self, "tiler", self.tiler, "tiler")
        if self.requested_spacing_um is not None and not self.requested_spacing_um > 0:
            raise ConfigError(
                f"PreprocessingConfig.requested_spacing_um={self.requested_spacing_um!r} must be "
                "above 0."
            )
        if self.overlap >= 1:
            raise ConfigError(f"PreprocessingConfig.overlap={self.overlap:g} must be below 1.")
        if self.read_coordinates_from is not None and self.read_tiles_from is not None:
            raise ConfigError(
                "read_coordinates_from and read_tiles_from are two sources of tiles: give one."
            )

    @property
    def is_hierarchical(self) -> bool:
        """Whether tiles come in whole regions."""
        return self.region_tile_multiple is not None or self.requested_region_size_px is not None

    @property
    def sections(self) -> tuple[Any, ...]:
        """This and the settings in it, each with fields of its own."""
        return self, self.segmentation, self.filtering, self.preview
