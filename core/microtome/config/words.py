"""What a composed run was asked for by its user's own words, and what is default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.config.options import SEVERAL

if TYPE_CHECKING:
    from hydra.conf import HydraConf


def unasked_kinds(job: HydraConf | Any) -> frozenset[str]:
    """Give the kinds of several plugins of which no word of the command line speaks.

    Args:
        job: The ``hydra`` node of a composed configuration.
    """
    words = (str(word).lstrip("+~") for word in job.overrides.task)
    heads = {word.partition("=")[0].partition("@")[0].partition(".")[0] for word in words}
    return frozenset(set(SEVERAL) - heads)
