"""Try every hostile file and print how each ended."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bench.hostile.absurd import absurd
from bench.hostile.claims import claims
from bench.hostile.fuzz import damage
from bench.hostile.sample import Sample
from bench.hostile.sources import make_sources
from bench.hostile.supervise import FAULTS, LIMIT_MB, LIMIT_S, Examiner, Outcome
from bench.pixels import installed
from bench.results import ROOT

_REAL = ROOT.parent / "shared" / "data"
GOOD = "good"
_COMPARED = (".svs", ".tif", ".tiff")


@dataclass(frozen=True)
class Trial:
    """A file, what it was read with, and how that ended."""

    sample: Sample
    reader: str
    outcome: Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Try them all.

    Returns:
        1 if any ended as none should, else 0.
    """
    asked = _parser().parse_args(arguments)
    readers = asked.readers or ["auto", *installed(), "pillow"]
    trials = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as made:
        folder = asked.keep or Path(made)
        for trial in try_all(_samples(folder, asked), readers, throw_away=asked.keep is None):
            trials.append(trial)
            if trial.outcome.is_fault or (asked.noise and trial.outcome.noise):
                print(_line(trial), *trial.outcome.noise[:3], sep="\n    ", flush=True)
    print(table(trials))
    return int(any(trial.outcome.is_fault for trial in trials))


def try_all(
    samples: Iterable[Sample], readers: Sequence[str], *, throw_away: bool = False
) -> Iterator[Trial]:
    """Try each file with each reader, and compare two of them.

    Args:
        samples: The files.
        readers: Their names, and ``auto``.
        throw_away: Whether a file is deleted once it was tried, unless it is a good one.
    """
    with Examiner() as examiner:
        for sample in samples:
            given = {"path": str(sample.path), "mpp": sample.mpp}
            ended = {}
            for reader in readers:
                outcome = examiner.ask(reader=reader, **given)
                ended[reader] = outcome.ended
                yield Trial(sample, reader, outcome)
            comparable = sample.path.name.endswith(_COMPARED)
            if comparable and ended.get("openslide") == ended.get("tiff") == "read":
                yield Trial(sample, "tiff as openslide", examiner.ask(**given))
            if throw_away and sample.group != GOOD:
                sample.path.unlink()


def table(trials: Sequence[Trial]) -> str:
    """Count how files ended, by what was done to them and by reader."""
    rows = defaultdict(list)
    for trial in trials:
        for key in (trial.sample.group, f"reader={trial.reader}"):
            rows[key].append(trial.outcome)
    columns = ("read", "equal", "refused", *FAULTS)
    head = f"{'':32}{'tried':>7}" + "".join(f"{name:>9}" for name in columns)
    lines = [head + f"{'max MB':>9}{'max s':>7}{'noise':>7}"]
    for key, outcomes in sorted(rows.items()):
        count = Counter(outcome.ended for outcome in outcomes)
        cells = "".join(f"{count[name] or '':>9}" for name in columns)
        peak = max(outcome.peak_mb for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        noisy = sum(bool(outcome.noise) for outcome in outcomes)
        lines.append(
            f"{key:32}{len(outcomes):>7}{cells}{peak:>9.0f}{slowest:>7.1f}{noisy or '':>7}"
        )
    files = len({trial.sample.path for trial in trials})
    faults = sum(trial.outcome.is_fault for trial in trials)
    lines.append(
        f"{files} files, {len(trials)} trials, {faults} faults; "
        f"limits {LIMIT_S:g} s and {LIMIT_MB:g} MB above the start."
    )
    return "\n".join(lines)


def _line(trial: Trial) -> str:
    outcome = trial.outcome
    return (
        f"{outcome.ended:9}{trial.sample.path.name} reader={trial.reader} "
        f"{outcome.seconds:.1f} s {outcome.peak_mb:.0f} MB: {outcome.sentence[:300]}"
    )


def _samples(folder: Path, asked: argparse.Namespace) -> Iterator[Sample]:
    wanted = asked.only or ["broken", "fuzz", "claims", "absurd"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good").mkdir(exist_ok=True)
    real = _REAL / "slides" if _REAL.is_dir() else None
    sources = make_sources(folder / "good", real)
    parts: dict[str, Iterable[Sample]] = {
        "good": (Sample(group=GOOD, path=path, mpp=0.5) for path in sources),
        "broken": _broken(folder),
        "fuzz": damage(sources, folder, variants=asked.variants, seed=asked.seed),
        "claims": claims(folder),
        "absurd": absurd(folder),
    }
    return chain.from_iterable(parts[name] for name in wanted)


def _broken(folder: Path) -> Iterator[Sample]:
    for path in sorted((_REAL / "broken").glob("*")):
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        yield Sample(group="broken files of others", path=copy, mpp=0.5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    add = parser.add_argument
    add("--variants", type=int, default=300, help="damaged files (%(default)s)")
    add("--seed", type=int, default=0, help="of the damage (%(default)s)")
    add("--readers", type=lambda words: words.split(","), help="some only, and auto")
    add("--only", type=lambda words: words.split(","), help="of good, broken, fuzz, claims, absurd")
    add("--noise", action="store_true", help="show what libraries write to standard error")
    add("--keep", type=Path, metavar="FOLDER", help="keep the files there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
