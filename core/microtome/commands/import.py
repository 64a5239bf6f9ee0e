"""Read another tool's files into finished slides.

What is there of the same files is kept. Ends with 3 if a slide cannot be imported.
"""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from pathlib import Path

from microtome.commands._arguments import VerbParser
from microtome.commands._transfer import add_arguments, choose, chosen_features, tell
from microtome.plugin.registry import get_registry
from microtome.run.exchange.importing import ImportOptions, import_folder
from microtome.store.layout import OutputLayout


def main(argv: list[str]) -> int:
    """Import a folder, a line for each slide; 3 if one failed."""
    registry = get_registry()
    parser = VerbParser("microtome import", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="what the other tool wrote into")
    parser.add_argument(
        "--from",
        dest="layout",
        required=True,
        metavar="LAYOUT",
        help=f"one of {', '.join(registry.names('layout'))}",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="where to")
    parser.add_argument("--writer", default="hdf5", metavar="NAME", help="hdf5 or zarr")
    parser.add_argument(
        "--slides", metavar="PATH", help="the slides: a folder, a file, or a manifest of them"
    )
    parser.add_argument(
        "--mpp", type=_mpp, metavar="MPP", help="µm per level-0 pixel, where nothing else says it"
    )
    add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    options = ImportOptions(
        writer=args.writer,
        slides=args.slides,
        mpp=args.mpp,
        features=chosen_features(args.features),
        force=args.force,
    )
    outcomes = import_folder(
        args.folder,
        choose(registry, args.layout, args.option),
        OutputLayout(args.output, "" if args.tiling in (None, ".") else args.tiling),
        registry=registry,
        options=options,
    )
    return tell(outcomes)


def _mpp(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of µm above 0")
