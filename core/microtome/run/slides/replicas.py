"""One encoder on several devices, each of which takes whole batches from a thread of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from microtome.plugin.protocols import Encoder

_T = TypeVar("_T")

_EACH = 2
"""Batches that a device has at a time: one that it computes, and the next."""


@dataclass(frozen=True, eq=False)
class Replica:
    """An encoder once more.

    Attributes:
        encoder: The object, with weights of its own.
        device: Resolved.
    """

    encoder: Encoder
    device: str


class Lanes:
    """Threads that take batches in turn, one for each device; none for less than two devices.

    What is given to one lane is done in that order, one after the other. Closing waits for what
    has begun and drops the rest.

    Args:
        devices: Of the lanes.
        threads: Of torch in each lane, on a CPU.
    """

    def __init__(self, devices: Sequence[str], threads: int) -> None:
        self._lanes = [
            ThreadPoolExecutor(
                1, f"microtome-device-{number}", initializer=_settle, initargs=(device, threads)
            )
            for number, device in enumerate(devices if len(devices) > 1 else ())
        ]
        self._given = 0

    @property
    def in_flight(self) -> int:
        """How many batches may be worked on while the next one is given."""
        return _EACH * max(1, len(self._lanes)) - 1

    def submit(self, work: Callable[[int], _T]) -> Future[_T]:
        """Let the next lane do something.

        Args:
            work: Told the lane's number.
        """
        lane = self._given % len(self._lanes)
        self._given += 1
        return self._lanes[lane].submit(work, lane)

    def __enter__(self) -> Self:
        """Open them."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them all: first each is told, then they are waited for."""
        for wait in (False, True):
            for lane in self._lanes:
                lane.shutdown(wait=wait, cancel_futures=True)


def _settle(device: str, threads: int) -> None:
    """Make a thread ready for a device.

    torch has a number of threads, and a device that its kernels are for, in every thread.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_num_threads(threads)
    place = torch.device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
