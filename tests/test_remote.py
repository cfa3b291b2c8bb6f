"""Images in object stores and on web servers, and what they do when those fail."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from cloudpickle import dumps
from fsspec.config import conf

from svision_dask.errors import ImageError, OutputError, RegionError, UsageError
from svision_dask.geometry import Regions
from svision_dask.omezarr.read import read_provenance
from svision_dask.omezarr.write import open_level
from svision_dask.opening.formats import open_volume
from svision_dask.running import patience, regions, scheduling
from svision_dask.running.cluster import local_client
from svision_dask.running.ledger import Receipt
from svision_dask.running.output import check_output
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
from svision_dask.running.regions import CopyTask, VerifyTask
from svision_dask.running.verification import reopen, verify
from svision_dask.stores import transfer
from svision_dask.stores.locations import located, state_folder
from svision_dask.stores.transfer import file_system
from svision_dask.wishes import Wishes
from tests.commands import finish, run, start, textured, write_tiff
from tests.models import tiny
from tests.servers import serve_before, serve_folder, serve_s3

pytestmark = pytest.mark.faults

CANARY = "kanarienvogel-7231"
SHAPE = (24, 40, 40)
CHUNKED = Wishes(chunk={"z": 8, "y": 20, "x": 20}, version="0.4")
SHARDED = Wishes(chunk={"z": 8, "y": 20, "x": 20}, shard={"z": 24, "y": 20, "x": 20})


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


def copied(volume, at: Path) -> Receipt | str:
    """What comes of one region, with all the tries that a worker would make, or why it failed."""
    from svision_dask.omezarr.write import create_store

    create_store(at, [volume.grid], dtype=volume.dtype, chunks=volume.grid.shape, attributes={})
    task = CopyTask(volume=volume, output=str(at))
    return scheduling._run_one(task, Regions(shape=volume.grid.shape, unit=volume.grid.shape).at(0))


@pytest.fixture(scope="module")
def s3(tmp_path_factory, fresh_workers):
    """moto behind a server that fails as it is told; every process finds it, and its key, in the environment."""
    with serve_s3() as behind, serve_before(behind or "") as (url, faults), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("FSSPEC_S3_KEY", CANARY)  # that of the configuration is in whatever pickles a file system
        patch.setenv("FSSPEC_S3_SECRET", CANARY)
        patch.setitem(conf, "s3", {"key": CANARY, "secret": CANARY})  # which this process has read already
        patch.setenv("AWS_ACCESS_KEY_ID", CANARY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        fs, _ = file_system("s3://bucket/x", asynchronous=False)
        assert CANARY in fs.to_json()
        if behind:
            fs.mkdir("bucket")
        yield fs if behind else None, faults


@pytest.fixture
def bucket(s3, monkeypatch):
    """An object store that works, and short pauses."""
    if s3[0] is None:
        pytest.skip("no moto_server; set SVISION_MOTO")
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(transfer, "PAUSES", (0.01, 0.01))
    s3[1].clear()
    yield s3
    s3[1].clear()


@pytest.fixture(scope="module")
def client(s3):
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
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(transfer, "PAUSES", (0.01, 0.01))
    web[1].clear()
    yield web
    web[1].clear()


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{CANARY}@host/x.zarr",
        f"s3://key:{CANARY}@bucket/x",
        f"https://user:{CANARY}/y@host/x.zarr",
        f"https://host/x.zarr?token={CANARY}",
        f"ftp://user:{CANARY}@host/x",
        f"memory::https://u:{CANARY}@h/x",
    ],
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


def test_what_cannot_be_at_a_url_is_refused_without_a_secret(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ("train", "in.tif", "-o", f"s3://key:{CANARY}@bucket/model"),
        ("enhance", "in.tif", "out.zarr", "-m", f"https://me:{CANARY}@host/model"),
        ("enhance", "in.tif", f"s3://key:{CANARY}@bucket/out.zarr"),
        ("demo", "s3://bucket/demo"),
    ):
        write_tiff(tmp_path / "in.tif", textured((8, 16, 16)))
        refused = run(*command)
        assert refused.exit_code == 2
        assert CANARY not in refused.error
    assert [file.name for file in tmp_path.iterdir()] == ["in.tif"]


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
    monkeypatch.setattr(transfer, "SILENCE_SECONDS", 0.4)
    url, faults = http
    volume = open_volume(f"{url}/chunks.ome.zarr")
    faults.give("hang", "/0/1/0/1")
    started = time.monotonic()
    said = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(said, str)
    assert "does not answer in time" in said
    assert time.monotonic() - started < 30  # which is how long it waits for one answer


def test_a_server_without_parts_of_files_is_told_apart_from_damage(http, folder) -> None:
    with serve_folder(folder) as (url, faults):
        faults.without_parts = True
        volume = open_volume(f"{url}/shards.ome.zarr")
        with pytest.raises(OSError, match="no parts of files"):
            volume.read((slice(0, 1), slice(0, 1), slice(0, 1)))


def test_what_a_server_does_not_give_is_not_called_damaged(http, client) -> None:
    url, faults = http
    faults.give("403", "/0/c/0/1/0")
    with pytest.raises(RegionError, match=r"access is refused.*Whether it is damaged is not known"):
        verify(f"{url}/shards.ome.zarr", client=client)
    faults.give("404", "/0/c/0/1/0")
    assert verify(f"{url}/shards.ome.zarr", client=client).damaged == ("level 0, region at (0, 20, 0): cannot be read",)


def test_a_server_without_parts_of_files_does_not_damage_them(folder) -> None:
    with serve_folder(folder) as (url, faults):
        faults.without_parts = True
        task = VerifyTask(volume=open_volume(f"{url}/shards.ome.zarr"), level=0)
        with pytest.raises(OSError, match="no parts of files"):
            task(Regions(shape=SHAPE, unit=(8, 20, 20)).at(0))


# ---------------------------------------------------------------- output to an object store


@pytest.mark.parametrize("wishes", [CHUNKED, SHARDED], ids=["chunks", "shards"])
def test_what_is_written_to_an_object_store_is_what_is_written_to_a_folder(bucket, client, folder, wishes) -> None:
    fs, faults = bucket
    url = f"s3://bucket/{wishes.version}/copy.ome.zarr"
    volume = open_volume(folder / "shards.ome.zarr")
    copy_to_zarr(volume, url, wishes=wishes, client=client)
    np.testing.assert_array_equal(whole(open_volume(url)), whole(volume))
    puts = [request for request in faults.requests if request.startswith("PUT ") and "probe" not in request]
    voxels = [
        request
        for request in puts
        if "ome.zarr/0/" in request and not request.endswith((".json", ".zarray", ".zattrs"))
    ]
    assert len(voxels) == len(set(voxels)) == (4 if wishes is SHARDED else 12)
    # zarr writes the .zgroup that was there again, beside the attributes, in any order
    last = [request for request in puts if not request.endswith("/.zgroup")][-1]
    assert last.endswith("copy.ome.zarr/zarr.json" if wishes is SHARDED else "copy.ome.zarr/.zattrs")
    assert verify(url, client=client).damaged == ()
    assert not state_folder(located(url)).exists()
    assert not [key for key in fs.find("bucket") if "probe" in key]


def test_a_model_for_an_object_store_is_kept_in_the_folder_of_the_user(bucket, client, folder) -> None:
    url, local = "s3://bucket/fine.ome.zarr", folder / "fine.ome.zarr"
    volume, model = open_volume(folder / "shards.ome.zarr"), tiny((1, 2, 2))
    report = enhance_to_zarr(volume, url, model=model, client=client)
    assert Path(report.model_path).parent == state_folder(located(url))
    assert Path(report.model_path).is_file()
    enhance_to_zarr(volume, local, model=model, client=client)
    np.testing.assert_array_equal(whole(open_volume(url)), whole(open_volume(local)))


def test_an_output_that_is_there_is_treated_as_one_in_a_folder(bucket, client, folder) -> None:
    fs, _ = bucket
    url = "s3://bucket/there.ome.zarr"
    volume = open_volume(folder / "shards.ome.zarr")
    copy_to_zarr(volume, url, wishes=SHARDED, client=client)
    with pytest.raises(OutputError, match="exists: a finished output of svision-dask"):
        check_output(url, overwrite=False)
    copy_to_zarr(volume, url, wishes=CHUNKED, client=client, overwrite=True)
    np.testing.assert_array_equal(whole(open_volume(url)), whole(volume))
    assert not fs.exists(f"{url}/zarr.json")
    fs.pipe_file("bucket/thesis/chapter.txt", b"years of work")
    with pytest.raises(OutputError, match="never replaced"):
        check_output("s3://bucket/thesis", overwrite=True)
    with pytest.raises(OutputError, match="reading only"):
        check_output("https://host/x.ome.zarr", overwrite=False)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output("s3://nobodys/x.ome.zarr", overwrite=False)


@pytest.mark.parametrize(
    ("output", "source", "said"),
    [
        ("s3://bucket/a.zarr/", "s3://bucket/a.zarr", "is the input"),
        ("s3://bucket/a.zarr/b", "s3://bucket/a.zarr", "inside the input"),
        ("s3://bucket/a", "s3://bucket/a/b.zarr", "contains the input"),
        ("s3://bucket/a.zarr", "https://bucket.s3.host/a.zarr", "is the input"),
        ("s3://bucket/a.zarr", "https://host/bucket/a.zarr", "is the input"),
    ],
)
def test_an_output_apart_from_the_input_is_asked_for(output, source, said) -> None:
    with pytest.raises(OutputError, match=said):
        check_output(output, source, overwrite=True)


def test_a_run_that_stopped_goes_on_with_what_is_missing(bucket, client, folder) -> None:
    fs, faults = bucket
    url, volume = "s3://bucket/stopped.ome.zarr", open_volume(folder / "shards.ome.zarr")
    faults.give("403", "/0/c/0/1/1")
    with pytest.raises(RegionError, match="access is refused"):
        copy_to_zarr(volume, url, wishes=SHARDED, client=client)
    with pytest.raises(ImageError, match="unfinished"):
        open_volume(url)
    done = sorted(fs.find("bucket/stopped.ome.zarr/0/c"))
    assert done
    fs.rm_file(done[0])  # its receipt alone is worth nothing
    fs.rm_file("bucket/stopped.ome.zarr/1/zarr.json")  # as if it had stopped among the arrays
    faults.clear()
    copy_to_zarr(volume, url, wishes=SHARDED, client=client)
    written = {request for request in faults.requests if request.startswith("PUT ") and "/0/c/" in request}
    assert f"PUT /{done[0]}" in written
    assert not {f"PUT /{key}" for key in done[1:]} & written
    np.testing.assert_array_equal(whole(open_volume(url)), whole(volume))


def test_what_is_damaged_is_found_and_made_anew(bucket, client, folder) -> None:
    fs, faults = bucket
    url, volume = "s3://bucket/damaged.ome.zarr", open_volume(folder / "shards.ome.zarr")
    copy_to_zarr(volume, url, wishes=SHARDED, client=client)
    fs.rm_file("bucket/damaged.ome.zarr/0/c/0/0/1")
    content = bytearray(fs.cat_file("bucket/damaged.ome.zarr/0/c/0/1/0"))
    content[40] ^= 1
    fs.pipe_file("bucket/damaged.ome.zarr/0/c/0/1/0", bytes(content))
    found = verify(url, client=client)
    assert len(found.damaged) == 2
    reopen(url, found)
    faults.clear()
    copy_to_zarr(volume, url, wishes=SHARDED, client=client)
    assert sum(request.startswith("PUT ") and "ome.zarr/0/c/" in request for request in faults.requests) == 2
    assert verify(url, client=client).damaged == ()


@pytest.mark.parametrize("fault", ["503", "500", "429", "short", "reset"])
def test_an_object_store_that_fails_for_a_while_is_waited_for(bucket, client, folder, tmp_path, fault) -> None:
    _, faults = bucket
    url = "s3://bucket/patient.ome.zarr"
    local = open_volume(folder / "shards.ome.zarr")
    copy_to_zarr(local, url, wishes=SHARDED, client=client, overwrite=True)
    volume = open_volume(url)
    faults.give(fault, "/0/c/", 5)
    receipt = copied(volume, tmp_path / "copy.ome.zarr")
    assert isinstance(receipt, Receipt), receipt
    assert receipt.crc32 == regions.checksum(whole(local))


def test_an_object_store_that_hangs_or_forbids_is_given_up(bucket, client, folder, tmp_path, monkeypatch) -> None:
    _, faults = bucket
    url = "s3://bucket/given-up.ome.zarr"
    copy_to_zarr(open_volume(folder / "shards.ome.zarr"), url, wishes=SHARDED, client=client)
    monkeypatch.setattr(transfer, "SILENCE_SECONDS", 0.5)
    volume = open_volume(url)
    for fault, said in (("hang", "does not answer in time"), ("403", "access is refused")):
        faults.give(fault, "/0/c/0/0/0")
        started = time.monotonic()
        text = copied(volume, tmp_path / f"{fault}.ome.zarr")
        assert isinstance(text, str)
        assert said in text
        assert time.monotonic() - started < 30
    assert sum("/0/c/0/0/0" in request for request in faults.requests) == 1  # of those forbidden
    faults.give("404", "/0/c/0/0/0")
    with pytest.raises(ImageError, match="chunk c/0/0/0 is missing"):
        whole(volume)


def test_no_secret_is_in_a_task_a_plan_a_store_a_receipt_or_a_line(bucket, client, folder, tmp_path, capfd) -> None:
    fs, faults = bucket
    source, url = "s3://bucket/secret/input.ome.zarr", "s3://bucket/secret/output.ome.zarr"
    copy_to_zarr(open_volume(folder / "shards.ome.zarr"), source, wishes=SHARDED, client=client)
    volume, model = open_volume(source), tiny((1, 2, 2))
    whole(volume)  # with a connection that was used
    plan = plan_volume(volume, model.architecture, output=url)
    task = CopyTask(volume=volume, output=url)
    seen = [dumps(task), pickle.dumps(open_level(source, 0, "r+")), repr(task).encode(), json.dumps(plan.to_json())]
    faults.give("403", "output.ome.zarr/0/c/")
    with pytest.raises(RegionError) as caught:
        enhance_to_zarr(volume, url, model=model, plan=plan, client=client)
    kept = [file for file in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if file.is_file()]
    assert "record.json" in {file.name for file in kept}
    seen += [repr(caught.value), *(file.read_bytes() for file in kept)]
    faults.clear()
    enhance_to_zarr(volume, url, model=model, plan=plan, client=client)
    seen += [json.dumps(dict(read_provenance(url))), *fs.cat(fs.find("bucket/secret")).values()]
    seen += [json.dumps(client.get_worker_logs()), str(client.get_scheduler_logs()), *capfd.readouterr()]
    assert len(seen) > 20
    for text in seen:
        assert CANARY.encode() not in (text if isinstance(text, bytes) else text.encode())


def test_a_command_reads_trains_stops_and_goes_on_between_urls(bucket, http, client) -> None:
    _, faults = bucket
    source, output = f"{http[0]}/shards.ome.zarr", "s3://bucket/by-command.ome.zarr"
    at = ("--scheduler", client.scheduler.address)
    layout = ("--chunks", "24,40,40", "--shards", "24,40,40")
    command = ("enhance", source, output, "--factor", "1,2,2", "--steps", "5", "--halo", "0.01", *layout, *at)
    assert "24×40×40" in run("info", source).stdout
    faults.give("403", "by-command.ome.zarr/0/c/0/1/1")
    stopped = finish(start(*command))
    assert stopped.exit_code == 3
    assert "access is refused" in stopped.error
    faults.clear()
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    assert "resume   with" in done.stderr
    assert done.stdout.strip() == output
    made = {request for request in faults.requests if request.startswith("PUT ") and "command.ome.zarr/0/c/" in request}
    assert made == {"PUT /bucket/by-command.ome.zarr/0/c/0/1/1"}
    assert "all as they were written" in run("verify", output, *at).stdout
    assert "exists: a finished output" in run(*command).error
    assert CANARY not in "".join([stopped.stderr, stopped.stdout, done.stderr, done.stdout])


def test_a_model_in_an_object_store_is_used_as_one_here_is(bucket, client, folder, tmp_path) -> None:
    fs, faults = bucket
    here = tiny((1, 2, 2)).save(tmp_path / "tiny.safetensors")
    fs.put_file(str(here), "bucket/models/tiny.safetensors")
    digest = hashlib.sha256(here.read_bytes()).hexdigest()
    there = f"s3://bucket/models/tiny.safetensors#sha256={digest}"
    source, at = folder / "shards.ome.zarr", ("--scheduler", client.scheduler.address)
    (tmp_path / "there").mkdir()
    faults.give("503", "tiny.safetensors", 1)
    done = run("enhance", source, tmp_path / "there" / "fine.ome.zarr", "-m", there, *at)
    assert done.exit_code == 0, done.stderr
    (kept,) = (tmp_path / "there").glob("*.safetensors")
    assert kept.read_bytes() == here.read_bytes()
    assert run("enhance", source, tmp_path / "here.ome.zarr", "-m", here, *at).exit_code == 0
    made = [whole(open_volume(each)) for each in (tmp_path / "here.ome.zarr", tmp_path / "there" / "fine.ome.zarr")]
    assert np.array_equal(*made)
    other = run("enhance", source, tmp_path / "other.ome.zarr", "-m", there.replace(digest, "0" * 64), *at)
    assert "it is another file" in other.error
    faults.give("403", "tiny.safetensors")
    forbidden = run("enhance", source, tmp_path / "other.ome.zarr", "-m", there, *at)
    assert (other.exit_code, forbidden.exit_code) == (1, 1)
    assert "access is refused" in forbidden.error
    assert not (tmp_path / "other.ome.zarr").exists()
    assert CANARY not in "".join([done.stderr, other.stderr, forbidden.stderr])
