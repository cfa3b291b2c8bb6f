"""Zarr stores at URLs: they pickle to the URL, without credentials, and tell when a chunk is missing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, StorePath, ZipStore

from svision_dask.stores.locations import Location, Remote, Zipped
from svision_dask.stores.transfer import attempt, file_system, read_metadata, read_range

METADATA_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


class MissingChunkError(Exception):
    """A chunk, or shard, is not in a store that should be complete."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class RemoteStore(FsspecStore):
    """A store at a URL.

    Parameters
    ----------
    url
        Of the group or array.
    read_only
        Whether nothing may be written.
    complete
        Whether a chunk that is not there is an error: zarr takes it for empty, and asking first is a request more.
    """

    def __init__(self, url: str, read_only: bool = False, complete: bool = False) -> None:
        fs, path = file_system(url, asynchronous=True)
        super().__init__(fs, read_only=read_only, path=path)
        self.url, self.complete = url, complete

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled file system holds its credentials.
        return RemoteStore, (self.url, self.read_only, self.complete)

    def __repr__(self) -> str:
        return f"<RemoteStore({self.url})>"

    __str__ = __repr__

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        """Open the same place again."""
        return RemoteStore(self.url, read_only, self.complete)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a key, or some bytes of it; None if it is not there.

        Raises
        ------
        MissingChunkError
            If it is a chunk, and all of them should be there.
        ImageError
            If it is not a chunk, and larger than metadata are.
        OSError
            As ``transfer.attempt``.
        """
        path, is_chunk = self._path_of(key), key.rpartition("/")[2] not in METADATA_FILES
        read = read_range(self.fs, path, *_limits(byte_range)) if is_chunk else read_metadata(self.fs, path)
        content = await read
        if content is None and self.complete and is_chunk:
            raise MissingChunkError(key)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Write a key as a whole."""
        self._check_writable()
        assert byte_range is None, byte_range
        path, content = self._path_of(key), value.to_bytes()
        await attempt(lambda: self.fs._pipe_file(path, content), path)

    async def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        self._check_writable()
        path = self._path_of(key)
        with suppress(FileNotFoundError):
            await attempt(lambda: self.fs._rm_file(path), path)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all keys below ``prefix``."""
        await attempt(lambda: FsspecStore.delete_dir(self, prefix), self._path_of(prefix))

    async def exists(self, key: str) -> bool:
        """Whether a key is there, and not empty."""
        return await read_range(self.fs, self._path_of(key), 0, 1) is not None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several keys, one by one."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def _path_of(self, key: str) -> str:
        return f"{self.path}/{key}" if key else self.path


def _limits(byte_range: ByteRequest | None) -> tuple[int | None, int | None]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    return (-byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None), None


def store_at(location: Location, *, complete: bool = False) -> Path | RemoteStore | StorePath:
    """Give zarr what it opens a location by."""
    if isinstance(location, Zipped):
        return StorePath(sync(ZipStore.open(location.file, mode="r")), location.inner)
    return RemoteStore(location.url, complete=complete) if isinstance(location, Remote) else location.absolute()


def folder_of(array: zarr.Array[Any]) -> Location:
    """Say where the chunks of an array are."""
    store, path = array.store_path.store, array.path
    if isinstance(store, ZipStore):
        return Zipped(str(store.path)) / path if path else Zipped(str(store.path))
    if isinstance(store, RemoteStore):
        return Remote(store.url) / path if path else Remote(store.url)
    return Path(store.root, path)  # type: ignore[attr-defined]
