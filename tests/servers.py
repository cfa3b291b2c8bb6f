"""Servers of files, on 127.0.0.1, that fail as they are told: of a folder, or in front of another server."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

STATUSES = {"403": 403, "404": 404, "429": 429, "500": 500, "503": 503}


class Faults:
    """What goes wrong: for requests whose path contains ``part``, so many times."""

    def __init__(self) -> None:
        self.without_parts = False
        """Whether only whole files are to be had."""
        self.requests: list[str] = []
        """Method and path of each."""
        self.clear()

    def clear(self) -> None:
        """Work, from now on."""
        self.kind, self.part, self.left = "", "", 0
        self.requests.clear()

    def give(self, kind: str, part: str, times: int = 10**9) -> None:
        """Fail with ``kind``: a status, "hang", "short" or "reset"."""
        self.clear()
        self.kind, self.part, self.left = kind, part, times

    def next(self, method: str, path: str) -> str:
        """Say how to fail at this request, if at all."""
        self.requests.append(f"{method} {path}")
        if not self.left or self.part not in path:
            return ""
        self.left -= 1
        return self.kind


class Handler(RequestHandler):
    """Fails, or answers what ``answer`` gives."""

    def initialize(self, faults: Faults, answer: Callable) -> None:
        self.faults, self.answer = faults, answer

    async def _any(self) -> None:
        fault = self.faults.next(self.request.method, self.request.path)
        if fault == "hang":
            await asyncio.sleep(60)
            return
        if fault in STATUSES:
            self.set_status(STATUSES[fault])
            self.finish()
            return
        if fault == "reset":
            self.request.connection.stream.close()
            return
        if self.faults.without_parts:
            self.request.headers.pop("Range", None)
        status, headers, body = await self.answer(self.request)
        if fault == "short":
            head = f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            stream = self.detach()
            await stream.write(head + body[: len(body) // 2])
            stream.close()
            return
        self.set_status(status)
        self.clear_header("Content-Type")
        for name, value in headers.items():
            self.add_header(name, value)
        self.finish(body if body and self.request.method != "HEAD" else None)

    get = head = put = post = delete = _any

    def compute_etag(self) -> None:
        return None

    def log_exception(self, *args: object) -> None:
        """Say nothing: clients that give up are part of the tests."""


def _of_folder(folder: Path) -> Callable:
    async def answer(request) -> tuple[int, dict, bytes]:
        file = folder / unquote(request.path).lstrip("/")
        if not file.is_file():
            return 404, {}, b""
        content, headers = file.read_bytes(), {"ETag": f'"{file.stat().st_mtime_ns}"'}
        asked = request.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            return 200, {**headers, "Content-Length": str(len(content))}, content
        first, last = asked.split("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = int(last) + 1 if first and last else len(content)
        return (206, headers, content[start:stop]) if content[start:stop] else (416, headers, b"")

    return answer


def _of_server(url: str) -> Callable:
    async def answer(request) -> tuple[int, dict, bytes]:
        got = await AsyncHTTPClient().fetch(
            HTTPRequest(
                url + request.uri,
                method=request.method,
                # For a POST that does not say, tornado would say it is a form.
                headers={"Content-Type": "application/octet-stream", **request.headers},
                body=request.body if request.method in ("PUT", "POST") else None,
                decompress_response=False,
            ),
            raise_error=False,
        )
        own = ["Transfer-Encoding", "Connection", "Date", "Server"]
        own += ["Content-Length"] if request.method != "HEAD" else []
        kept = {name: value for name, value in got.headers.get_all() if name not in own}
        return got.code, kept, got.body

    return answer


@contextmanager
def _serving(answer: Callable) -> Iterator[tuple[str, Faults]]:
    faults, started, at = Faults(), threading.Event(), []

    async def serve() -> None:
        sockets = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(Application([(".*", Handler, {"faults": faults, "answer": answer})]))
        server.add_sockets(sockets)
        stop = asyncio.Event()
        at.extend([sockets[0].getsockname()[1], asyncio.get_running_loop(), stop])
        started.set()
        await stop.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{at[0]}", faults
    finally:
        at[1].call_soon_threadsafe(at[2].set)
        thread.join(10)


def serve_folder(folder: Path):
    """Serve files over HTTP, with parts of them, and without listings."""
    return _serving(_of_folder(folder))


def serve_before(url: str):
    """Pass on to the server at ``url`` what does not fail."""
    return _serving(_of_server(url))


@contextmanager
def serve_s3() -> Iterator[str | None]:
    """Start moto's S3 server, which lives in an environment of its own; None where there is none."""
    program = os.environ.get("SVISION_MOTO") or shutil.which("moto_server")
    if not program:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "moto_server ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
