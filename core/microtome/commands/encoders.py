"""List the encoders, show one's card and how to get access, or fetch weights for later.

`microtome encoders` lists all, or those that a word and the options choose; `microtome encoders
show NAME` tells everything of one; `microtome encoders fetch NAME,NAME --to DIR` downloads what
they need, for machines without a network. `--level slide` and `--level patient` are for the
encoders of slides and of patients. A list and a card are made from what plugins say of themselves:
no encoder is loaded and no network is used.
"""

from __future__ import annotations

import argparse
import json
import sys

from microtome.commands._arguments import VerbParser
from microtome.commands._cards import listing, show, to_record
from microtome.commands._fetching import fetch, offline_ready
from microtome.commands._names import LEVELS, domain_of, matches, resolve, spec_of
from microtome.errors import ConfigError
from microtome.plugin.aliases import listed
from microtome.plugin.registry import Registered, Registry, get_registry
from microtome.run.planning.outputs import DENSE


def main(argv: list[str]) -> int:
    """Answer the verb.

    Returns:
        0; 1 if any encoder could not be fetched.
    """
    action = {"show": _show, "fetch": _fetch}.get(argv[0] if argv else "")
    return action(argv[1:]) if action else _list(argv)


def _list(argv: list[str]) -> int:
    parser = VerbParser(
        "microtome encoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="in names here or elsewhere, summaries"
    )
    _add_level(parser, "tile")
    parser.add_argument("--commercial", action="store_true", help="of free commercial use")
    parser.add_argument("--open", action="store_true", help="known to have no gate")
    parser.add_argument("--dim", type=int, metavar="N", help="with so many columns")
    parser.add_argument("--domain", metavar="DOMAIN", help="learned from: pathology, natural, …")
    parser.add_argument("--gives", choices=DENSE, help="that on request, beside the embedding")
    parser.add_argument(
        "--offline-ready", action="store_true", help="whose packages and weights are here"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv[1:] if argv[:1] == ["list"] else argv)
    registry = get_registry()
    entries = registry.entries(LEVELS[args.level])
    chosen = [entry for entry in entries if _chosen(entry, args, registry)]
    if args.offline_ready:
        chosen = [entry for entry in chosen if offline_ready(entry, registry)]
    if args.word and not any(matches(spec_of(entry), args.word) for entry in entries):
        resolve(args.word, registry, args.level)  # which says what is near
    if args.json:
        _write_json([to_record(entry) for entry in chosen])
    else:
        sys.stdout.write(listing(chosen))
    return 0


def _chosen(entry: Registered, args: argparse.Namespace, registry: Registry) -> bool:
    spec = spec_of(entry)
    others = registry.entries(LEVELS[args.level])
    domains = sorted({domain_of(spec_of(other)) for other in others} - {""})
    if args.domain is not None and args.domain not in domains:
        known = f"{listed(domains)} are" if domains else "this level has none"
        raise ConfigError(f"No encoder is of the domain {args.domain!r}: {known}.")
    card = spec.card
    return (
        matches(spec, args.word)
        and (not args.commercial or bool(card and card.commercial))
        and (not args.open or bool(card and card.gated is False))
        and (args.dim is None or bool(card and card.dim == args.dim))
        and (args.domain is None or domain_of(spec) == args.domain)
        and (args.gives is None or args.gives in getattr(spec, "gives", ()))
    )


def _show(argv: list[str]) -> int:
    parser = VerbParser("microtome encoders show", description="Tell everything of an encoder.")
    parser.add_argument("name", metavar="NAME", help="here, or at another tool")
    _add_level(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    registry = get_registry()
    entry, notes = resolve(args.name, registry, args.level)
    if args.json:
        _write_json(to_record(entry))
    else:
        sys.stdout.write("".join(f"{note}\n\n" for note in notes) + show(entry))
    return 0


def _fetch(argv: list[str]) -> int:
    parser = VerbParser(
        "microtome encoders fetch",
        description="Download what encoders need. What is printed is to be run where there is no "
        "network; what is done and what fails is told on stderr.",
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="NAME, NAME@COMMIT, or several with commas"
    )
    _add_level(parser)
    parser.add_argument("--to", metavar="DIR", help="a folder; your own caches if not given")
    args = parser.parse_args(argv)
    names = [name for word in args.names for name in word.split(",") if name]
    return fetch(names, args.to, get_registry(), args.level)


def _add_level(parser: VerbParser, default: str = "") -> None:
    about = "tiles', slides' or patients' encoders"
    parser.add_argument("--level", choices=LEVELS, default=default, help=about)


def _write_json(record: object) -> None:
    sys.stdout.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
