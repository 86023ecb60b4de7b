"""Debian's chromium as a reader of pages: keys, screens, what the console says and what a page asks the network for.

It is driven by the DevTools protocol over two pipes, which no library has to be installed for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
SECONDS = 60.0
KEYS = {"Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35, " ": 32,
        "Enter": 13}  # fmt: skip
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255);
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (c) => c.map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const ground = (one) => {
    const layers = [];
    for (; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), rgba("Canvas").slice(0, 3));
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, one = node.parentElement, style = getComputedStyle(one);
    if (!node.textContent.trim() || !one.checkVisibility({visibilityProperty: true})) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(one.tagName)) continue;
    const below = ground(one), inside = one.closest("svg text");
    const ink = over(rgba(inside ? getComputedStyle(inside).fill : style.color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), node.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()
"""


class Page:
    """One tab. `problems` are what the console or the page's own security policy complained of, `requests` the
    addresses that it asked for besides the file itself."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        return self.browser.send(method, self.session, self.heard, **params)

    def heard(self, event: dict[str, Any]) -> None:
        method, params = event["method"], event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> Page:
        """Load a file in a window of some width."""
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.dark(dark)
        self.loaded, self.requests = False, []
        self.send("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while not self.loaded:
            assert time.monotonic() < end, "the page does not load"
            self.send("Runtime.evaluate", expression="1")
        self.requests = [url for url in self.requests if url != path.resolve().as_uri() and not url.startswith("data:")]
        return self

    def dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a script in the page, or of its promise."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def key(self, name: str, shift: bool = False) -> None:
        """Press a key."""
        about = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name], "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def tab_stops(self, most: int = 300) -> list[str]:
        """What the Tab key reaches, in order, as `tag.class` or the accessible name."""
        stops: list[str] = []
        for _ in range(most):
            self.key("Tab")
            stop = self.run("(e => e === document.body ? '' : `${e.tagName}.${e.className} ${e.ariaLabel ?? ''}`)"
                            "(document.activeElement)")  # fmt: skip
            if not stop:
                break
            stops.append(str(stop))
        return stops

    @property
    def contrasts(self) -> list[tuple[float, str]]:
        """(contrast, text) of every text that is seen, the least first."""
        return [(ratio, text) for ratio, text in self.run(CONTRAST)]


class Browser:
    """A chromium with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or ""
        theirs, mine = os.pipe()
        back, ours = os.pipe()
        # The protocol is spoken on descriptors 3 and 4, which a shell puts into place.
        words = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", program, *FLAGS]
        self._process = subprocess.Popen(
            [*words, f"--user-data-dir={folder}", "about:blank"], pass_fds=(theirs, ours),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
        self._out, self._in, self._left = mine, back, b""
        self._numbers = itertools.count(1)
        for one in (theirs, ours):
            os.close(one)

    def send(self, method: str, session: str = "", heard: Any = None, **params: Any) -> Any:
        """The answer to a command; `heard` is told of the events that come meanwhile."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            for event in self._events(end):
                if event.get("id") == number:
                    assert "error" not in event, (method, event["error"])
                    return event["result"]
                if heard and "method" in event and event.get("sessionId") == session:
                    heard(event)

    def _events(self, end: float) -> Iterator[dict[str, Any]]:
        while b"\0" not in self._left:
            assert time.monotonic() < end, "chromium is silent"
            assert select.select([self._in], [], [], SECONDS)[0], "chromium is silent"
            part = os.read(self._in, 1 << 16)
            assert part, "chromium has ended"
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        yield json.loads(text)

    def page(self) -> Page:
        """A new tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        self._process.wait(SECONDS)
        for one in (self._out, self._in):
            os.close(one)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A running browser; skips the test where there is none."""
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
