"""Embed slides: tissue, tiles and patch features that slide encoders need, then one vector each.

`microtome encode-slides slides/ output=out slide_encoder=[titan,prism]` derives tilings and patch
encoders from what the slide encoders need, says so, and runs. It is the run without the verb, which
is printed; every KEY=VALUE of a run may follow. latents=true keeps latents, too; a slide that is
too large for the memory is refused with the numbers (bag_memory_gb).
"""

from __future__ import annotations

from microtome.commands._runs import run_with


def main(argv: list[str]) -> int:
    """Translate, print and run.

    Returns:
        The run's exit code.
    """
    return run_with("encode-slides", "slide_encoder", __doc__, argv)
