"""Where images are: folders, as paths, and object stores and web servers, as URLs.

Credentials are never part of a location: each process finds its own, in its environment or its configuration files.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from svision_dask.errors import ImageError, UsageError, one_line
from svision_dask.stores.transfer import (
    CREDENTIALS,
    EXTRAS,
    METADATA_BYTES,
    attempt,
    file_system,
    read_metadata,
    read_range,
)

WRITABLE = ("s3", "gs")
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
        """Read all of it, which is metadata.

        Raises
        ------
        ImageError
            If it is larger than metadata are.
        """
        from fsspec.asyn import sync

        fs, path = file_system(self.url, asynchronous=False)
        content: bytes | None = sync(fs.loop, read_metadata, fs, path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "not there, or empty", self.url)
        return content

    def read_part(self, start: int, stop: int) -> bytes:
        """Read some of it."""
        content: bytes | None = self._run(lambda fs, path: read_range(fs, path, start, stop))
        return content or b""

    def size(self) -> int | None:
        """Ask for its bytes; None where the server does not say.

        Raises
        ------
        OSError
            If it is not there, or cannot be asked for.
        """
        facts: dict[str, Any] = self._run(lambda fs, path: fs._info(path))
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
            lambda fs, path: asyncio.gather(*(read_range(fs, f"{path}/{name}", 0, 1) for name in wanted))
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


class Zipped(Remote):
    """A place in a zip file, for reading only; its URL is the path of the file, and the path in it."""

    @property
    def scheme(self) -> str:
        """``"zip"``."""
        return "zip"

    @property
    def file(self) -> Path:
        """The zip file."""
        return next(each for each in (Path(self.url), *Path(self.url).parents) if each.is_file())

    @property
    def inner(self) -> str:
        """Path in the zip file."""
        inner = Path(self.url).relative_to(self.file).as_posix()
        return "" if inner == "." else inner

    def __truediv__(self, name: str) -> Zipped:
        return Zipped(f"{self.url}/{name}")

    def read_bytes(self) -> bytes:
        """Read all of it, which is metadata: zarr reads chunks itself.

        Raises
        ------
        ImageError
            If it is larger than metadata are, or damaged.
        """
        with _telling(self.file), zipfile.ZipFile(self.file) as held:
            entry = held.NameToInfo.get(self.inner)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, "not in the zip file", str(self))
            if entry.file_size > METADATA_BYTES:  # a few bytes of a zip file can be any number of them
                raise ImageError(
                    f"{self}: {entry.file_size} bytes of metadata; allowed are {METADATA_BYTES}. Repack it."
                )
            return held.read(entry)

    def exists(self) -> bool:
        """Say yes: a zip file is never made."""
        return True

    def absent(self, names: Iterable[str]) -> list[str]:
        """List which of ``names`` are not here, or empty."""
        sizes = _sizes(str(self.file), self.file.stat().st_mtime_ns)
        start = f"{self.inner}/" if self.inner else ""
        return [name for name in names if not sizes.get(start + name)]

    def stamp(self) -> str:
        """Give what changes with the content."""
        return str(self.file.stat().st_mtime_ns)


@contextmanager
def _telling(file: str | Path) -> Iterator[None]:
    """Say in one line what is wrong with a zip file: damaged, encrypted, or compressed as nobody here can read."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
        raise ImageError(f"{file} cannot be read as zip file: {one_line(error)}. Check it, or unpack it.") from error


@lru_cache(maxsize=8)
def _sizes(file: str, _changed: int) -> dict[str, int]:
    with _telling(file), zipfile.ZipFile(file) as held:
        return {info.filename: info.file_size for info in held.infolist()}


def _zipped(path: Path) -> Zipped | None:
    """Find the image in a zip file: at its top, or in the one folder at its top; None for any other file."""
    file = next((p for p in (path, *path.parents) if p.suffix.lower() in (".zip", ".ozx") and p.is_file()), None)
    if file is None or not zipfile.is_zipfile(file):
        return None
    names = _sizes(str(file.absolute()), file.stat().st_mtime_ns)
    tops, place = {name.partition("/")[0] for name in names}, Zipped(str(path.absolute()))
    inside = file != path or len(tops) != 1 or tops & {"zarr.json", ".zgroup", ".zattrs"}
    return place if inside else place / tops.pop()


Location = Path | Remote


def located(place: str | Path | Remote) -> Location:
    """Say what a user means: a path, or a URL.

    Raises
    ------
    UsageError
        If it is a URL that is not for images, or one with credentials, which are not repeated.
    """
    if isinstance(place, Remote) or "://" not in str(place):
        return place if isinstance(place, Remote) else _zipped(Path(place)) or Path(place)
    scheme, _, rest = str(place).partition("://")
    if scheme.lower() not in EXTRAS:
        raise UsageError(f"a URL that begins with {scheme[:20]}://: allowed are {', '.join(EXTRAS)}, and plain paths.")
    host, path = rest.partition("/")[::2]
    if "@" in host or not _has_plain_host(rest):
        raise UsageError(f"a {scheme}:// URL with a user name, password or key in it: give it without. {CREDENTIALS}")
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
        If it is at one, or in a zip file.
    """
    found = located(place)
    if isinstance(found, Remote):
        where = "in a zip file" if isinstance(found, Zipped) else "at a URL"
        raise UsageError(f"{place}: {what} cannot be {where}. Give a path of this machine.")
    return found


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
