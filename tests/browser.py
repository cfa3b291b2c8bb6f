"""A real browser without a window, driven through its DevTools protocol; tests skip where there is none."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0")
SECONDS = 60


def find_browser() -> str:
    """Its program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


class Tab:
    """One page, and what it reported."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection, self.number = connection, 0
        self.requests: list[str] = []
        self.problems: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and collect what else is said until the answer."""
        self.number += 1
        await self.connection.write_message(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self.connection.read_message(), SECONDS))
            self._note(message)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(message["params"]))
        if message.get("method") == "Log.entryAdded":
            self.problems.append(message["params"]["entry"]["text"])

    async def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        answer = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def open(self, url: str) -> None:
        """Load a page to its end."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        while await self.value("document.readyState") != "complete" or await self.value("location.href") != url:
            await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        """Press and let go a key."""
        codes = {"Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}
        for kind in ("rawKeyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    async def theme(self, name: str) -> None:
        """Prefer ``light`` or ``dark``."""
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def screenshot(self) -> bytes:
        """The visible part, as PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])


def browse(folder: Path, visit: Callable[[Tab], Awaitable[None]]) -> None:
    """Start a browser with its files in ``folder``, visit, and end it."""
    program, port = find_browser(), folder / "DevToolsActivePort"
    process = subprocess.Popen(
        [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        limit = time.monotonic() + SECONDS
        while not (port.is_file() and port.read_text()) and time.monotonic() < limit:
            assert process.poll() is None, f"{program} ended with {process.returncode}"
            time.sleep(0.1)
        asyncio.run(_visit(int(port.read_text().splitlines()[0]), visit))
    finally:
        process.kill()
        process.wait()


async def _visit(port: int, visit: Callable[[Tab], Awaitable[None]]) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=SECONDS) as answer:
        pages = [target for target in json.load(answer) if target["type"] == "page"]
    connection = await websocket_connect(pages[0]["webSocketDebuggerUrl"], max_message_size=2**28)
    try:
        await visit(Tab(connection))
    finally:
        connection.close()
