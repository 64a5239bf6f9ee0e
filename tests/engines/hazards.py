"""Plugins that do to their process what native libraries do, for workers to be lost by.

What each does is told by files beside the slide, so that it may be different at the second try.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from microtome.plugin import EncoderCard, EncoderSpec, ReaderSpec, hookimpl
from microtome.plugin.protocols import EncoderOutput
from microtome_readers import OpenSlideConfig
from microtome_readers.openslide_reader import OpenSlideReader


def count(path):
    """Count calls over all processes."""
    with path.open("a") as file:
        file.write("x")
        file.flush()
    return path.stat().st_size


class Hazardous(OpenSlideReader):
    """Reads as OpenSlide does, but for slides whose names tell otherwise."""

    def __init__(self, path, config):
        super().__init__(path, OpenSlideConfig())
        self.path = Path(path)

    @staticmethod
    def vouch(path):
        """Be asked first."""
        return "anything goes"

    def read_tiles(self, level, boxes, out, rows):
        """Do what the slide's name says, then read."""
        what = self.path.stem
        if "segfault" in what:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "told" in what and count(self.path.with_suffix(".tries")) == 1:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(600)
        elif "once" in what and count(self.path.with_suffix(".tries")) == 1:
            os.kill(os.getpid(), signal.SIGABRT)
        if "hang" in what:
            # Holding the interpreter's lock, as native code does.
            ctypes.PyDLL(None).sleep(600)
        super().read_tiles(level, boxes, out, rows)


class Hungry:
    """Takes memory until somebody stops it, as long as a file is there; else counts tiles."""

    card = EncoderCard(dim=1)

    def __init__(self, config):
        self.eaten = []

    def load(self, device, precision):
        """Load nothing."""

    def encode(self, batch):
        """Give the size of the batch, or eat."""
        while Path(os.environ["HAZARD_HUNGRY"]).exists():
            self.eaten.append(np.ones(16 << 20, np.uint8))
            time.sleep(0.01)
        return EncoderOutput(np.full((len(batch), 1), len(batch), np.float32))


@hookimpl
def microtome_readers():
    """Register the readers."""
    yield ReaderSpec(
        name="hazardous",
        target="hazards:Hazardous",
        summary="Dies",
        extensions=(".svs",),
        priority=999,
        vouches=True,
    )


@hookimpl
def microtome_encoders():
    """Register the encoder."""
    yield EncoderSpec(name="hungry", target="hazards:Hungry", summary="Eats", card=Hungry.card)
