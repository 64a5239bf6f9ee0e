"""List the plugins: available, what to install, broken."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

from microtome.commands._arguments import VerbParser
from microtome.commands._lines import columns
from microtome.errors import ConfigError
from microtome.plugin.files import add_files, find_files
from microtome.plugin.registry import Registered, Registry, get_registry
from microtome.plugin.specs import SPECS


def main(argv: list[str]) -> int:
    """Print every plugin with its distribution and whether it can be used."""
    parser = VerbParser("microtome plugins", description=__doc__)
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(SPECS)}")
    parser.add_argument(
        "--encoder-plugin", action="append", default=[], metavar="FILE", help="with its plugins"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    if args.kind is not None and args.kind not in SPECS:
        near = difflib.get_close_matches(args.kind, SPECS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"There is no kind of plugin named {args.kind!r}.{hint} Available: {', '.join(SPECS)}."
        )
    registry = add_files(get_registry(), find_files(args.encoder_plugin))
    kinds = [args.kind] if args.kind else list(SPECS)
    if args.json:
        sys.stdout.write(json.dumps(_record(registry, kinds), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_listing(registry, kinds))
    return 0


def _record(registry: Registry, kinds: list[str]) -> dict[str, Any]:
    return {
        **{kind: [_describe(entry) for entry in registry.entries(kind)] for kind in kinds},
        "broken": [vars(broken) for broken in registry.broken],
    }


def _describe(entry: Registered) -> dict[str, Any]:
    missing = entry.missing
    return {
        "name": entry.spec.name,
        "distribution": entry.distribution,
        "summary": entry.spec.summary,
        "available": not missing,
        "missing": list(missing),
        "install": _install(entry, missing) if missing else None,
    }


def _install(entry: Registered, missing: tuple[str, ...]) -> str:
    return entry.spec.install or f"pip install {' '.join(missing)}"


def _listing(registry: Registry, kinds: list[str]) -> str:
    sections = []
    for kind in kinds:
        entries = registry.entries(kind)
        # What installs it is last, for it may be long.
        rows = [(e.spec.name, e.distribution, *_state(e)) for e in entries]
        sections.append(columns(f"{kind} ({len(rows)})", rows))
    if registry.broken:
        broken = [(b.name, b.distribution, "broken", b.reason) for b in registry.broken]
        sections.append(columns(f"broken ({len(broken)})", broken))
    return "\n\n".join(sections) + "\n"


def _state(entry: Registered) -> tuple[str, str, str]:
    missing = entry.missing
    if not missing:
        return "available", entry.spec.summary, ""
    return f"needs {', '.join(missing)}", entry.spec.summary, _install(entry, missing)
