"""Where images are: folders, as paths, and object stores and web servers, as URLs.

Credentials are never part of a location: each process finds its own, in its environment or its configuration files.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from svision_dask.errors import UsageError

WRITABLE = ("s3", "gs")
EXTRAS = {"s3": "s3", "gs": "gs", "https": "https", "http": "https"}
"""Schemes that are read, and which of our extras installs what that takes."""
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""How long a server may say nothing at all."""
REQUEST_SECONDS = 900.0
"""How long a request may take, however slowly bytes come."""
PAUSES = (0.2, 1.0)
"""Seconds before another try at a request that was turned away; after a silence, there is no other."""
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Answers of servers that will have another one later."""
BROKEN = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
} | {"ResponseParserError"}
"""Errors of aiohttp and botocore, which need not be installed, for connections that broke or were not made."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Remote:
    """A place in an object store or on a web server, with those methods of ``Path`` that are used; it is only a URL.

    Nothing is asked of a listing, which web servers do not have, but in `exists` and `remove_all`.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        # A name comes from metadata, where "%2e%2e" or "?" must mean nothing.
        return Remote(f"{self.url}/{quote(name) if self.scheme in ('http', 'https') else name}")

    @property
    def scheme(self) -> str:
        """Such as ``"s3"``."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """What it is in."""
        return Remote(self.url.rpartition("/")[0])

    def absolute(self) -> Remote:
        """As it is: a URL never depends on the working folder."""
        return self

    def is_dir(self) -> bool:
        """Never: there are no folders, only names that begin alike."""
        return False

    def is_file(self) -> bool:
        """Whether something is there that can be read.

        Who may not list a bucket is told "forbidden" of whatever is not in it, so this cannot be told apart.
        """
        try:
            return bool(self.read_bytes())
        except (FileNotFoundError, PermissionError):
            return False

    def read_bytes(self) -> bytes:
        """Read all of it."""
        content: bytes = self._run(lambda fs, path: fs._cat_file(path))
        return content

    def read_part(self, start: int, stop: int) -> bytes:
        """Read some of it."""
        content: bytes | None = self._run(lambda fs, path: read_range(fs, path, start, stop))
        return content or b""

    def size(self) -> int | None:
        """Ask for its bytes; None where it is not there, or the server does not say."""
        try:
            facts: dict[str, Any] = self._run(lambda fs, path: fs._info(path))
        except FileNotFoundError:
            return None
        return facts.get("size") if facts.get("type", "file") == "file" else None

    def write_bytes(self, content: bytes) -> None:
        """Write, or replace as a whole."""
        self._run(lambda fs, path: fs._pipe_file(path, content))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete it; object stores do not say whether it was there."""
        try:
            self._run(lambda fs, path: fs._rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def exists(self) -> bool:
        """Whether there is anything of this name, or below it."""
        try:
            return bool(self._run(lambda fs, path: fs._ls(path, detail=False)))
        except FileNotFoundError:
            return False

    def remove_all(self, *, last: Sequence[str]) -> None:
        """Delete everything below, the names in ``last`` when all else is gone."""
        found: list[str] = self._run(lambda fs, path: fs._find(path))
        root = self.url.partition("://")[2]
        below = [key for key in found if key.startswith(f"{root}/")]
        final = [f"{root}/{name}" for name in last if f"{root}/{name}" in below]
        for keys in ([key for key in below if key not in final], final):
            if keys:
                self._remove(keys)

    def _remove(self, keys: Sequence[str]) -> None:
        self._run(lambda fs, path: fs._rm(keys))

    def absent(self, names: Iterable[str]) -> list[str]:
        """List which of ``names`` are not here, or empty: of each, the first byte is asked for."""
        wanted = list(names)
        parts: list[Any] = self._run(
            lambda fs, path: asyncio.gather(*(_first_byte(fs, f"{path}/{name}") for name in wanted))
        )
        return [name for name, part in zip(wanted, parts, strict=True) if not part]

    def stamp(self) -> str:
        """Ask for what changes with the content, such as a checksum; nothing where the server does not say."""
        facts: dict[str, Any] = self._run(lambda fs, path: fs._info(path))
        return " ".join(f"{facts[key]}" for key in ("ETag", "etag", "LastModified", "updated") if facts.get(key))

    def _run(self, call: Callable[[Any, str], Awaitable[Any]]) -> Any:
        from fsspec.asyn import sync

        fs, path = file_system(self.url, asynchronous=False)
        return sync(fs.loop, attempt, lambda: call(fs, path), self.url)


Location = Path | Remote


def located(place: str | Path | Remote) -> Location:
    """Say what a user means: a path, or a URL.

    Raises
    ------
    UsageError
        If it is a URL that is not for images, or one with credentials, which are not repeated.
    """
    if isinstance(place, Remote) or "://" not in str(place):
        return place if isinstance(place, Remote) else Path(place)
    scheme, _, rest = str(place).partition("://")
    if scheme.lower() not in EXTRAS:
        raise UsageError(f"a URL that begins with {scheme[:20]}://: allowed are {', '.join(EXTRAS)}, and plain paths.")
    host, path = rest.partition("/")[::2]
    if "@" in host or not _has_plain_host(rest):
        raise UsageError(f"a {scheme}:// URL with a user name, password or key in it: give it without. {_CREDENTIALS}")
    if set("?#*[]\\") & set(path):
        raise UsageError(f"{scheme}://{host}/…: a URL with one of ? # * [ ] \\ is no plain name. Give it without.")
    parts = [part for part in path.split("/") if part]
    if not host or not parts or {".", ".."} & set(parts):
        raise UsageError(f"{place}: allowed is {scheme}://host-or-bucket/path/of/the/image.zarr. Give such a URL.")
    return Remote("/".join([f"{scheme.lower()}://{host}", *parts]))


def local_path(place: str | Path, what: str) -> Path:
    """Say where a file is that cannot be at a URL.

    Raises
    ------
    UsageError
        If it is at one.
    """
    found = located(place)
    if isinstance(found, Remote):
        raise UsageError(f"{place}: {what} cannot be at a URL. Give a path of this machine.")
    return found


_CREDENTIALS = "Credentials come from the environment or the configuration files of each process."
_ANONYMOUS = " For a public bucket, set FSSPEC_S3_ANON=true."


def _has_plain_host(rest: str) -> bool:
    """Whether nothing but a port follows a colon: a password with a slash in it would end the host early."""
    try:
        return urlsplit(f"//{rest}").port is not None or ":" not in rest.partition("/")[0]
    except ValueError:
        return False


def state_folder(remote: Remote) -> Path:
    """Where this user, on this machine, keeps what belongs beside a remote output: its ledger, and its model.

    What was begun on one machine can only be gone on with there, or where the same home is.
    """
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "svision-dask" / hashlib.sha256(remote.url.encode()).hexdigest()


def file_system(url: str, *, asynchronous: bool) -> tuple[Any, str]:
    """Open the file system of a URL with this process's credentials; also give the path on it.

    Raises
    ------
    UsageError
        If what that takes is not installed.
    """
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        fs, path = url_to_fs(url, asynchronous=asynchronous, **_options(scheme))
    except ImportError as error:
        extra = EXTRAS[scheme]
        raise UsageError(f"{url}: {scheme}:// needs more packages. Install svision-dask[{extra}].") from error
    fs.retries = 1  # s3fs would repeat what `attempt` repeats
    return fs, path


def _options(scheme: str) -> dict[str, Any]:
    """Bound the time that requests take; what the user has configured comes first."""
    from fsspec.config import conf

    options: dict[str, Any]
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS}
        # Read in one request each: several at once need another one for the size, and take short answers for whole.
        options = {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
    elif scheme == "gs":
        options = {"requests_timeout": SILENCE_SECONDS}
    else:
        from aiohttp import ClientTimeout

        bounds = ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        return {"client_kwargs": {"timeout": bounds, **conf.get(scheme, {}).get("client_kwargs", {})}}
    options["use_listings_cache"] = False
    given = conf.get(scheme, {})
    return {
        name: {**value, **given.get(name, {})} if isinstance(value, dict) else given.get(name, value)
        for name, value in options.items()
    }


async def attempt(call: Callable[[], Awaitable[Result]], url: str) -> Result:
    """Make a request, again if it is turned away for now; its errors are Python's own, and one line each.

    Raises
    ------
    OSError
        ``FileNotFoundError`` if there is nothing, ``PermissionError`` if it is forbidden; ``EAGAIN`` and ``ETIMEDOUT``
        pass; ``ERANGE`` if it has no such bytes.
    """
    for pause in (*PAUSES, None):
        try:
            return await call()
        except Exception as error:
            failure = _plain(error, url)
        if pause is None or failure.errno != errno.EAGAIN:
            break
        await asyncio.sleep(pause)
    raise failure  # here, where the original is gone: it may hold headers of the request, and so secrets


async def read_range(fs: Any, path: str, start: int | None = None, end: int | None = None) -> bytes | None:
    """Read a file, or a part of it: the last bytes, if ``start`` is negative. None if it is not there, or empty."""

    async def call() -> bytes:
        content: bytes = await fs._cat_file(path, start=start, end=end)
        wanted = None if start is None else end - start if end is not None else -start if start < 0 else None
        if wanted is not None and len(content) > wanted:
            raise OSError(errno.ENOTSUP, "the server has no parts of files, which shards need. Copy the image")
        if end is not None and wanted is not None and len(content) < wanted:
            raise ConnectionResetError(errno.ECONNRESET, "the answer is too short")
        return content

    try:
        return await attempt(call, path) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ERANGE:
            return None
        raise


async def _first_byte(fs: Any, path: str) -> bytes | None:
    return await read_range(fs, path, 0, 1)


def _plain(error: Exception, url: str) -> OSError:
    """Put an error of fsspec, aiohttp, botocore or gcsfs as one of Python's own, without what it carries."""
    status, kinds = _status(error), {kind.__name__ for kind in type(error).__mro__}
    said = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, "not there", url)
    if isinstance(error, PermissionError) or status in (401, 403) or "NoCredentialsError" in kinds:
        return PermissionError(
            errno.EACCES, f"{url}: access is refused. {_CREDENTIALS}{_ANONYMOUS if url.startswith('s3') else ''}"
        )
    if status == 416:
        return OSError(errno.ERANGE, f"{url}: it has no such bytes")
    if status in BUSY:
        return OSError(errno.EAGAIN, f"{url}: the server answers {status}")
    if isinstance(error, TimeoutError) or any("Timeout" in kind for kind in kinds):
        return OSError(errno.ETIMEDOUT, f"{url}: the server does not answer in time")
    if kinds & BROKEN:
        return OSError(errno.EAGAIN, f"{url}: the connection broke: {type(error).__name__}: {_without_urls(said)}")
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
    return OSError(number, f"{url}: {type(error).__name__}: {_without_urls(said)}")


def _without_urls(text: str) -> str:
    """Leave out where a server may have sent us on to, which can be signed."""
    return re.sub(r"[a-z]+://\S+", "…", text)


def _status(error: Exception) -> int | None:
    """Status of the HTTP answer behind an error."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if isinstance(status, int | str) and str(status).isdigit() else None
