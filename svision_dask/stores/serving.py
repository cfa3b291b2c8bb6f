"""Serve the files of images, here or at URLs, to a browser on this machine: read only, whole or in parts."""

from __future__ import annotations

import errno
import logging
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from svision_dask.errors import one_line
from svision_dask.stores.locations import Location, Remote

logger = logging.getLogger(__name__)

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
HOST = "127.0.0.1"


class ImageServer:
    """Serves images below an address that nobody can guess, until it is closed.

    Pages of another origin may read: the viewer is one. What is at URLs is fetched with the credentials of this
    process, which the browser does not get.
    """

    def __init__(self, images: Mapping[str, Location]) -> None:
        token = secrets.token_urlsafe(16)
        handler = type("Handler", (_Handler,), {"images": dict(images), "token": token, "told": set()})
        self._server = ThreadingHTTPServer((HOST, 0), handler)
        self._server.daemon_threads = True
        self._address = f"http://{HOST}:{self._server.server_port}/{token}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str) -> str:
        """Address of an image's folder."""
        return f"{self._address}/{name}/"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    images: Mapping[str, Location]
    token: str
    told: set[int | None]
    """Numbers of the errors that were told already."""
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Say how large a file is."""
        self._answer(with_content=False)

    def do_GET(self) -> None:
        """Send a file, or the part of it that is asked for."""
        self._answer(with_content=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stderr is for the command."""

    def _answer(self, *, with_content: bool) -> None:
        try:
            self._send(self._file(), with_content=with_content)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
        except OSError as error:  # what is not found is drawn as empty, which this may not be
            self._tell(error)
            self._head(HTTPStatus.BAD_GATEWAY, {"Content-Length": "0"})

    def _send(self, file: Location, *, with_content: bool) -> None:
        """Send a file, or the part of it that is asked for.

        Raises
        ------
        OSError
            If it is not there, or cannot be read; then nothing was sent.
        """
        size = _size(file)
        given = RANGE.fullmatch(self.headers.get("Range", ""))
        start, stop = _part(given, size) if given else (0, size)
        if start >= stop and given:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Length": "0"})
            return
        content = _read(file, start, stop) if with_content else b""
        headers = {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"}
        if given:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if given else HTTPStatus.OK, headers)
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser no longer wants it
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
        self.send_header("Cache-Control", "no-store")  # a run in progress writes on
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _tell(self, error: OSError) -> None:
        """Say what cannot be read: once for each kind of failure, because the browser asks for every chunk."""
        if error.errno not in self.told:
            self.told.add(error.errno)
            logger.warning("what is shown is not complete: %s", one_line(error))

    def _file(self) -> Location:
        """Find what is asked for.

        Raises
        ------
        FileNotFoundError
            If it is not inside one of the images.
        """
        _, token, name, *rest = [*unquote(urlsplit(self.path).path).split("/"), "", ""]
        parts = [part for part in rest if part]
        if not secrets.compare_digest(token.encode(), self.token.encode()) or name not in self.images or not parts:
            raise FileNotFoundError
        if any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
            raise FileNotFoundError
        file: Location = self.images[name]
        for part in parts:
            file = file / part
        if not _is_inside(file, self.images[name]):
            raise FileNotFoundError
        return file


def _is_inside(file: Location, image: Location) -> bool:
    """Whether a file is the image's own: links may lead anywhere."""
    if isinstance(file, Remote) or isinstance(image, Remote):
        return True
    try:
        return file.resolve().is_relative_to(image.resolve())
    except (OSError, RuntimeError):  # links that go round
        return False


def _size(file: Location) -> int:
    """Ask for the bytes of a file; where a server does not say, read it.

    Raises
    ------
    OSError
        If it is not there, or cannot be read.
    """
    if not isinstance(file, Remote):
        if file.is_dir():
            raise IsADirectoryError
        return file.stat().st_size
    size = file.size()
    return len(file.read_bytes()) if size is None else size


def _part(given: re.Match[str], size: int) -> tuple[int, int]:
    """Turn ``a-b``, ``a-`` or ``-n`` into start and stop."""
    first, last = given.groups()
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(size, int(last) + 1) if last else size


def _read(file: Path | Remote, start: int, stop: int) -> bytes:
    if isinstance(file, Remote):
        try:
            return file.read_part(start, stop)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return file.read_bytes()[start:stop]  # a server without parts of files, such as python -m http.server
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(stop - start)
