"""Takes one measurement in this process: ``python -m bench.steps NAME '{"option": …}'``.

What it found is written as JSON on a line that begins with ``RESULT``.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import MappingProxyType

from bench.process import MARK

STEPS = MappingProxyType(
    {
        "decode": "bench.floors",
        "openslide": "bench.floors",
        "read": "bench.passes",
        "run": "bench.passes",
        "resnet50": "bench.models",
        "baseline": "bench.models",
        "model_alone": "bench.heavy",
        "model_fed": "bench.heavy",
    }
)
"""The module of each step; in it, a function of its name."""


def main() -> None:
    """Take the measurement that the command line names."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    # Imported here: a step's memory and start must not hold what other steps need.
    step = getattr(importlib.import_module(STEPS[name]), name)
    print(MARK + json.dumps(step(**arguments)), flush=True)


if __name__ == "__main__":
    main()
