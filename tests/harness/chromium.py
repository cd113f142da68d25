"""Debian's Chromium, headless, driven through its DevTools protocol over a websocket: what the browser tests
need of it."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websockets.sync.client

BINARY = shutil.which("chromium")
PATIENCE_S = 60  # a loaded machine
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}


class Tab:
    """One page. `problems` collects what its console complains of: exceptions, and what the content policy
    blocks; `requests` the URLs that it asked for."""

    def __init__(self, socket: websockets.sync.client.ClientConnection) -> None:
        self._socket, self._ids, self.problems = socket, itertools.count(1), []
        self.requests: list[str] = []
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; events that come in between are looked at for problems."""
        number = next(self._ids)
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(message["params"]["exceptionDetails"])
            if (
                message.get("method") == "Log.entryAdded"
                and message["params"]["entry"]["source"] != "network"
            ):
                self.problems.append(message["params"]["entry"])

    def open(self, url: str) -> None:
        found = self.send("Page.navigate", url=url)
        assert "errorText" not in found, f"{url}: {found['errorText']}"
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of an element as it is shown."""
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, (
                f"not so within {seconds} s: {expression}\n{self.js('document.body.innerText')}"
            )
            time.sleep(0.05)

    def fill(self, selector: str, text: str) -> None:
        """Focus a field and type, instead of what it holds."""
        self.js(
            f"(field => {{ field.focus(); field.select(); }})(document.querySelector({json.dumps(selector)}))"
        )
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key of the keyboard; modifiers: 2 Control, 8 Shift."""
        code, text = KEYS[key]
        details = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **details)
        self.send("Input.dispatchKeyEvent", type="keyUp", **details)

    def click(self, selector: str) -> None:
        """The left mouse button in the middle of an element."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.js(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        point = {
            "x": box["x"] + box["width"] / 2,
            "y": box["y"] + box["height"] / 2,
            "button": "left",
            "clickCount": 1,
        }
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **point)

    def screen(
        self, width: int = 1100, height: int = 900, *, dark: bool = False, phone: bool = False
    ) -> None:
        """The size of the window, and what the system prefers."""
        scale = 2 if phone else 1
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """The whole page, not only what fits the window."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        file.write_bytes(base64.b64decode(picture["data"]))


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
    """A tab of a fresh browser, which ends with the block."""
    assert BINARY, "callers skip where there is no chromium"
    profile = Path(tempfile.mkdtemp(prefix="stasc-chromium-"))
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    command = [
        BINARY,
        *options,
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
    ]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with websockets.sync.client.connect(_address(profile, browser), max_size=None) as socket:
            yield Tab(socket)
    finally:
        browser.terminate()
        browser.wait(timeout=PATIENCE_S)
        shutil.rmtree(profile, ignore_errors=True)


def _address(profile: Path, browser: subprocess.Popen[bytes]) -> str:
    """Where the browser listens; it writes that into its profile."""
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError, ValueError):
            port, path = (profile / "DevToolsActivePort").read_text(encoding="utf-8").split()
            return f"ws://127.0.0.1:{port}{path}"
        assert browser.poll() is None, f"{BINARY} ended with status {browser.returncode}"
        assert time.monotonic() < end, f"{BINARY} did not start within {PATIENCE_S} s"
        time.sleep(0.05)
