"""Requests to object stores and web servers: in bounded time, again where it helps, errors without secrets."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from svision_dask.errors import ImageError, UsageError

EXTRAS = {"s3": "s3", "gs": "gs", "https": "https", "http": "https"}
"""Schemes that are read, and which of our extras installs what that takes."""
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""How long a server may say nothing at all."""
REQUEST_SECONDS = 900.0
"""How long a request may take, however slowly bytes come."""
PAUSES = (0.2, 1.0)
"""Seconds before another try at a request that was turned away; after a silence, there is no other."""
METADATA_BYTES = 2**26
"""Of one file; the largest that is known has some hundred thousand fields of a plate."""
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

CREDENTIALS = "Credentials come from the environment or the configuration files of each process."
_ANONYMOUS = " For a public bucket, set FSSPEC_S3_ANON=true."

Result = TypeVar("Result")


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

    return await _unless_absent(call, path)


async def read_metadata(fs: Any, path: str) -> bytes | None:
    """Read a file that is small if it is what it should be, and no more of it than that. None as in `read_range`.

    Raises
    ------
    ImageError
        If it is larger.
    """
    content = await _unless_absent(lambda: _first_bytes(fs, path, METADATA_BYTES + 1), path)
    if content is not None and len(content) > METADATA_BYTES:
        raise ImageError(f"{path}: more than {METADATA_BYTES} bytes of metadata. Give another image.")
    return content


async def _first_bytes(fs: Any, path: str, count: int) -> bytes:
    if "http" not in fs.protocol:
        part: bytes = await fs._cat_file(path, start=0, end=count)
        return part
    parts: list[bytes] = []  # a web server may have no parts of files
    session = await fs.set_session()
    async with session.get(fs.encode_url(path), **fs.kwargs) as answer:
        fs._raise_not_found_for_status(answer, path)
        while count and (piece := await answer.content.read(count)):
            parts.append(piece)
            count -= len(piece)
    return b"".join(parts)


async def _unless_absent(call: Callable[[], Awaitable[bytes]], path: str) -> bytes | None:
    try:
        return await attempt(call, path) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ERANGE:
            return None
        raise


def _plain(error: Exception, url: str) -> OSError:
    """Put an error of fsspec, aiohttp, botocore or gcsfs as one of Python's own, without what it carries."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _status(cause) != 404:
        known = _status(cause) or isinstance(cause, TimeoutError) or _kinds(cause) & BROKEN
        error = cause if known else error  # fsspec says of any web server that does not tell a size: not there
    status, kinds = _status(error), _kinds(error)
    said = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, "not there", url)
    if isinstance(error, PermissionError) or status in (401, 403) or "NoCredentialsError" in kinds:
        return PermissionError(
            errno.EACCES, f"{url}: access is refused. {CREDENTIALS}{_ANONYMOUS if url.startswith('s3') else ''}"
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


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


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
