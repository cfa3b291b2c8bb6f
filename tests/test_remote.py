"""Images in object stores and on web servers, and what they do when those fail."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from svision_dask import locations, regions
from svision_dask.cluster import local_client
from svision_dask.errors import ImageError, OutputError, UsageError
from svision_dask.formats import open_volume
from svision_dask.geometry import Regions
from svision_dask.ledger import Receipt
from svision_dask.locations import Remote, located
from svision_dask.pipeline import copy_to_zarr
from svision_dask.plan import Wishes
from svision_dask.regions import CopyTask
from tests.commands import PROGRAM, Outcome, run, textured, write_tiff
from tests.models import tiny
from tests.servers import serve_before, serve_folder, serve_s3

CANARY = "kanarienvogel-7231"
SHAPE = (24, 40, 40)
CHUNKED = Wishes(chunk={"z": 8, "y": 20, "x": 20}, version="0.4")
SHARDED = Wishes(chunk={"z": 8, "y": 20, "x": 20}, shard={"z": 24, "y": 20, "x": 20})


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


def copied(volume, at: Path) -> Receipt | str:
    """What comes of one region, with all the tries that a worker would make, or why it failed."""
    from svision_dask.omezarr_write import create_store

    create_store(at, [volume.grid], dtype=volume.dtype, chunks=volume.grid.shape, attributes={})
    task = CopyTask(volume=volume, output=str(at))
    return regions._run_one(task, Regions(shape=volume.grid.shape, unit=volume.grid.shape).at(0))


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory, client) -> Path:
    """One volume as chunks in OME-Zarr 0.4, and as shards in 0.5."""
    folder = tmp_path_factory.mktemp("images")
    volume = open_volume(write_tiff(folder / "cells.ome.tif", textured(SHAPE)))
    for name, wishes in (("chunks", CHUNKED), ("shards", SHARDED)):
        copy_to_zarr(volume, folder / f"{name}.ome.zarr", wishes=wishes, client=client)
    return folder


@pytest.fixture(scope="module")
def web(folder):
    with serve_folder(folder) as (url, faults):
        yield url, faults


@pytest.fixture
def http(web, monkeypatch):
    """A server that works, and short pauses."""
    monkeypatch.setattr(regions, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(locations, "PAUSES", (0.01, 0.01))
    web[1].clear()
    yield web
    web[1].clear()


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "text",
    [f"https://user:{CANARY}@host/x.zarr", f"s3://key:{CANARY}@bucket/x", f"https://user:{CANARY}/y@host/x.zarr"]
    + [f"https://host/x.zarr?token={CANARY}", f"ftp://user:{CANARY}@host/x", f"memory::https://u:{CANARY}@h/x"],
)
def test_a_url_that_may_hold_a_secret_is_refused_without_repeating_it(text) -> None:
    with pytest.raises(UsageError) as caught:
        open_volume(text)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_is_one_whatever_its_slashes_and_the_case_of_its_scheme() -> None:
    assert str(located("S3://bucket//a/b.zarr/")) == "s3://bucket/a/b.zarr"
    assert located("s3://bucket/a").parent / "c" == located("s3://bucket/c")
    assert str(located("https://h:80/a") / "%2e%2e") == "https://h:80/a/%252e%252e"
    assert located("a/b.zarr") == Path("a/b.zarr")


@pytest.mark.parametrize("text", ["s3://bucket", "s3:///x", "https://h/../x", "https://h/a*b"])
def test_a_url_that_is_no_place_of_an_image_is_refused(text) -> None:
    with pytest.raises(UsageError):
        located(text)


# ---------------------------------------------------------------- reading from a web server


@pytest.mark.parametrize("name", ["chunks", "shards"])
def test_an_image_on_a_web_server_reads_as_the_folder_does(http, folder, name) -> None:
    url = f"{http[0]}/{name}.ome.zarr"
    remote, local = open_volume(url), open_volume(folder / f"{name}.ome.zarr")
    assert remote.grid == local.grid
    assert remote.name == local.name
    assert remote.paths == (url,)
    np.testing.assert_array_equal(whole(remote), whole(local))
    box = (slice(3, 9), slice(5, 30), slice(19, 21))
    np.testing.assert_array_equal(remote.read(box), local.read(box))


def test_a_chunk_takes_one_request(http) -> None:
    url, faults = http
    volume = open_volume(f"{url}/chunks.ome.zarr")
    faults.clear()
    whole(volume)
    assert len(faults.requests) == 3 * 2 * 2
    assert all(request.startswith("GET ") for request in faults.requests)


@pytest.mark.parametrize("name", ["chunks", "shards"])
@pytest.mark.parametrize("part", [False, True])
def test_a_chunk_that_is_not_there_is_an_error_or_counted(http, name, part) -> None:
    url, faults = http
    key = {"chunks": "0/0/1/1", "shards": "0/c/0/1/1"}[name]
    box = (slice(0, 4), slice(21, 30), slice(21, 30)) if part else tuple(slice(0, n) for n in SHAPE)
    faults.give("404", key)
    with pytest.raises(ImageError, match=f"chunk {key[2:]} is missing.*--missing empty"):
        open_volume(f"{url}/{name}.ome.zarr").read(box)
    volume = open_volume(f"{url}/{name}.ome.zarr", missing="empty")
    assert not volume.read(box)[0, -1, -1]
    assert volume.absent(box) == 1


def test_what_is_not_an_image_is_told_in_one_line(http, folder) -> None:
    url, faults = http
    for text in (f"{url}/nothing.zarr", f"{url}/cells.ome.tif", f"{url}/chunks.ome.zarr/0"):
        with pytest.raises(ImageError) as caught:
            open_volume(text)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
    faults.give("403", "shards.ome.zarr")
    with pytest.raises(ImageError, match=r"access is refused"):
        open_volume(f"{url}/shards.ome.zarr")


def test_the_identity_is_another_when_the_image_is(http, folder) -> None:
    url = f"{http[0]}/shards.ome.zarr"
    before = open_volume(url).identity
    assert open_volume(url).identity == before
    os.utime(folder / "shards.ome.zarr" / "zarr.json")
    assert open_volume(url).identity != before


# ---------------------------------------------------------------- servers that fail


@pytest.mark.parametrize("fault", ["503", "500", "429", "short", "reset"])
@pytest.mark.parametrize("name", ["chunks", "shards"])
def test_what_passes_is_tried_again(http, folder, tmp_path, fault, name) -> None:
    url, faults = http
    volume = open_volume(f"{url}/{name}.ome.zarr")
    faults.give(fault, "/0/", 5)
    receipt = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(receipt, Receipt), receipt
    assert receipt.crc32 == regions.checksum(whole(open_volume(folder / f"{name}.ome.zarr")))


@pytest.mark.parametrize("fault", ["503", "short", "reset"])
def test_what_does_not_pass_is_given_up(http, tmp_path, fault) -> None:
    url, faults = http
    volume = open_volume(f"{url}/chunks.ome.zarr")
    faults.give(fault, "/0/1/0/1")
    said = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(said, str)
    assert "0/1/0/1" in said
    assert "\n" not in said
    # aiohttp itself asks once more where a connection that it kept is closed.
    assert sum("/0/1/0/1" in request for request in faults.requests) <= 4 * 3 * (2 if fault == "reset" else 1)


def test_what_is_forbidden_is_not_tried_again(http, tmp_path) -> None:
    url, faults = http
    volume = open_volume(f"{url}/chunks.ome.zarr")
    faults.give("403", "/0/1/0/1")
    said = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(said, str)
    assert "access is refused" in said
    assert sum("/0/1/0/1" in request for request in faults.requests) == 1


def test_a_server_that_hangs_is_given_up_in_time(http, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locations, "SILENCE_SECONDS", 0.4)
    url, faults = http
    volume = open_volume(f"{url}/chunks.ome.zarr")
    faults.give("hang", "/0/1/0/1")
    started = time.monotonic()
    said = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(said, str)
    assert "does not answer in time" in said
    assert time.monotonic() - started < 4 * 0.4 + 4


def test_a_server_without_parts_of_files_is_told_apart_from_damage(http, folder) -> None:
    with serve_folder(folder) as (url, faults):
        faults.without_parts = True
        volume = open_volume(f"{url}/shards.ome.zarr")
        with pytest.raises(OSError, match="no parts of files"):
            volume.read((slice(0, 1), slice(0, 1), slice(0, 1)))
