"""Write finished slides as another tool's files.

Files that are there and made of the same are kept. Ends with 3 if a slide cannot be exported.
"""

from __future__ import annotations

from pathlib import Path

from microtome.commands._arguments import VerbParser
from microtome.commands._transfer import add_arguments, choose, chosen_features, tell
from microtome.errors import ConfigError
from microtome.plugin.registry import get_registry
from microtome.run.exchange.exporting import export_output, find_tiling


def main(argv: list[str]) -> int:
    """Export an output, a line for each slide; 3 if one failed."""
    registry = get_registry()
    parser = VerbParser("microtome export", description=__doc__)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="what output=… named")
    parser.add_argument(
        "--to",
        required=True,
        nargs=2,
        metavar=("LAYOUT", "DIR"),
        help=f"one of {', '.join(registry.names('layout'))}, and where to",
    )
    add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    name, folder = args.to
    chosen = choose(registry, name, args.option)
    outcomes = export_output(
        find_tiling(args.output, registry, args.tiling),
        chosen,
        _target(folder),
        registry=registry,
        features=chosen_features(args.features),
        force=args.force,
    )
    return tell(outcomes)


def _target(text: str) -> Path:
    folder = Path(text)
    if not text:
        raise ConfigError("export: the folder behind --to is empty text.")
    if (folder / "status").is_dir() and (folder / "patches").is_dir():
        raise ConfigError(f"export: {folder} is an output of runs; name a folder of its own.")
    return folder
