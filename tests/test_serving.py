"""Serving images: whole files and parts of them, nothing else, to nobody who does not know the address."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from svision_dask.stores import transfer
from svision_dask.stores.locations import located
from svision_dask.stores.serving import HOST, ImageServer
from tests.servers import serve_folder

CONTENT = bytes(range(200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(folder):
    image = folder / "a.zarr"
    (image / "0" / "c").mkdir(parents=True)
    (image / "0" / "c" / "1").write_bytes(CONTENT)
    (folder / "secret").write_bytes(b"secret")
    server = ImageServer({"after": image})
    yield server
    server.close()


def ask(url, method="GET", **headers):
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, answer.read(), dict(answer.headers)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-9", CONTENT[:10]),
        ("bytes=190-400", CONTENT[190:]),
        ("bytes=150-", CONTENT[150:]),
        ("bytes=-7", CONTENT[-7:]),
        ("bytes=-999", CONTENT),
    ],
)
def test_a_part_of_a_file_is_sent_with_where_it_is(served, asked, expected):
    status, content, headers = ask(served.url("after") + "0/c/1", Range=asked)
    assert (status, content) == (206, expected)
    start = CONTENT.index(expected)
    assert headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/200"


def test_a_whole_file_is_sent_and_its_size_alone_where_that_is_asked_for(served):
    url = served.url("after") + "0/c/1"
    assert ask(url)[:2] == (200, CONTENT)
    status, content, headers = ask(url, "HEAD")
    assert (status, content, headers["Content-Length"]) == (200, b"", "200")
    assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    "path", ["0/c/2", "0/c", "", "../secret", "0/../../secret", "%2e%2e/secret", "..%2fsecret", "0/c/1%00"]
)
def test_what_is_no_file_inside_the_image_is_not_there(served, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(served.url("after") + path)
    assert error.value.code == 404
    error.value.close()


def test_links_out_of_the_image_are_not_there(served, folder):
    (folder / "a.zarr" / "out").symlink_to(folder / "secret")
    (folder / "a.zarr" / "in").symlink_to(folder / "a.zarr" / "0")
    assert ask(served.url("after") + "in/c/1")[1] == CONTENT
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        ask(served.url("after") + "out")
    error.value.close()


def test_who_does_not_know_the_address_gets_nothing_and_parts_beyond_the_end_are_refused(served):
    url = served.url("after") + "0/c/1"
    token = url.split("/")[3]
    for wrong, code in ((url.replace(token, "x" * len(token)), 404), (url.replace("/after/", "/before/"), 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(wrong)
        assert error.value.code == code
        error.value.close()
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(url, Range="bytes=200-")
    assert error.value.code == 416
    error.value.close()
    assert url.startswith(f"http://{HOST}:")


def test_an_image_at_a_url_is_passed_on_with_its_parts(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "a.zarr" / "c").mkdir(parents=True)
    (tmp_path / "a.zarr" / "c" / "1").write_bytes(CONTENT)
    with serve_folder(tmp_path) as (url, _):
        server = ImageServer({"after": located(f"{url}/a.zarr")})
        address = server.url("after")
        assert ask(address + "c/1")[1] == CONTENT
        assert ask(address + "c/1", Range="bytes=-7")[1] == CONTENT[-7:]
        assert ask(address + "c/1", "HEAD")[2]["Content-Length"] == "200"
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(address + "c/2")
        assert error.value.code == 404
        error.value.close()
        server.close()


@pytest.mark.parametrize(
    ("method", "fault"), [(m, f) for m in ("GET", "HEAD") for f in ("503", "403", "reset")] + [("GET", "short")]
)
def test_what_cannot_be_read_is_not_taken_for_empty_and_told_once(tmp_path, caplog, monkeypatch, method, fault):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(transfer, "PAUSES", (0.01,))
    (tmp_path / "a.zarr").mkdir()
    for name in "01":
        (tmp_path / "a.zarr" / name).write_bytes(CONTENT)
    with serve_folder(tmp_path) as (url, faults):
        server = ImageServer({"after": located(f"{url}/a.zarr")})
        faults.give(fault, "a.zarr")
        for name in "01":
            with pytest.raises(urllib.error.HTTPError) as error:
                ask(server.url("after") + name, method)
            assert error.value.code == 502
            error.value.close()
        server.close()
    assert len(caplog.messages) == 1
    assert f"what is shown is not complete: {'[Errno' if fault != '403' else ''}" in caplog.messages[0]
    assert "a.zarr/0" in caplog.messages[0]


def test_of_a_server_without_parts_of_files_the_part_is_cut_out(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "0").write_bytes(CONTENT)
    with serve_folder(tmp_path) as (url, faults):
        faults.without_parts = True
        server = ImageServer({"after": located(f"{url}/a.zarr")})
        for asked, expected in (("bytes=3-9", CONTENT[3:10]), ("bytes=-7", CONTENT[-7:])):
            assert ask(server.url("after") + "0", Range=asked)[:2] == (206, expected)
        server.close()
