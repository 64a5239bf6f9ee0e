"""A headless Chromium, spoken to through its DevTools pipe: no driver, no port, no download."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 30.0
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--hide-scrollbars", "--disable-background-networking", "--remote-debugging-pipe"),
)


def find_chromium() -> str | None:
    """Find a browser: ``MICROTOME_CHROMIUM``, or one on the path."""
    given = os.environ.get("MICROTOME_CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of a browser.

    Attributes:
        problems: What its console and log complained of, and requests that failed.
        requests: Every URL that it asked for.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer, self._number, self._session = b"", 0, ""
        self._loaded = False
        self.problems: list[str] = []
        self.requests: list[str] = []

    def begin(self) -> None:
        """Open an empty page."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def show(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file, in a window of some width and colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._loaded = False
        self.ask("Page.navigate", url=path.absolute().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._hear(deadline)

    def evaluate(self, script: str) -> Any:
        """Give what a script in the page comes to."""
        told = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["text"])
        return told["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Keep a picture of the whole page as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        told = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for what it gives."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            heard = self._hear(deadline)
            if heard.get("id") == self._number:
                if "error" in heard:
                    raise RuntimeError(f"{method}: {heard['error']['message']}")
                return dict(heard["result"])

    def _hear(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._reading], [], [], left)[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE:.0f} s")
            heard = os.read(self._reading, 1 << 20)
            if not heard:
                raise EOFError("the browser ended")
            self._buffer += heard
        one, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:100])
        elif event == "Network.loadingFailed":
            self.problems.append(f"loading failed: {params['errorText']}")
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.problems.append(params["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"):
            self.problems.append(str(params["args"]))


@contextmanager
def open_tab(chromium: str, profile: Path) -> Iterator[Tab]:
    """Start a browser with a profile of its own, and end it with all its processes."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Out of the way of 3 and 4, which the browser reads from and writes to.
    child = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (theirs_in, theirs_out)]
    quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    actions = [(os.POSIX_SPAWN_DUP2, child[0], 3), (os.POSIX_SPAWN_DUP2, child[1], 4), quiet]
    words = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    pid = os.posix_spawn(chromium, words, os.environ, file_actions=actions, setpgroup=0)
    for each in (theirs_in, theirs_out, *child):
        os.close(each)
    try:
        tab = Tab(ours_in, ours_out)
        tab.begin()
        yield tab
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours_in)
        os.close(ours_out)
