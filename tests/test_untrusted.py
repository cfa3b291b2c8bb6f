"""Files that somebody made to do harm: refused in one line, before memory is taken for what they declare."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from fsspec.asyn import sync
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svision_dask.errors import ImageError, SvisionError
from svision_dask.judging.checking import check
from svision_dask.omezarr.extras import carried_attributes, read_shown
from svision_dask.omezarr.metadata import folder_inside
from svision_dask.opening.formats import open_volume
from svision_dask.stores import transfer
from tests.servers import serve_folder
from tests.test_labels import ORIGIN, SPACING, label_voxels, multiscale, write_image
from tests.test_omezarr import JSON, places
from tests.test_selection import write_plate

pytestmark = pytest.mark.faults
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured in /proc")


def declared(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], **more: Any) -> Path:
    """An image of which nothing but metadata is there."""
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("0", shape=shape, chunks=chunks, dtype="u1", dimension_names=["z", "y", "x"], **more)
    entry = multiscale("zyx", [1.0] * 3, [0.0] * 3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    return path


MEASURED = """
import sys
from pathlib import Path
from click.testing import CliRunner
from svision_dask.commands.cli import main
outcome = CliRunner(catch_exceptions=False).invoke(main, sys.argv[1:])
print(outcome.exit_code, outcome.output.replace(chr(10), " "))
"""
PEAK = """
from pathlib import Path
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""
"""Not the peak that getrusage gives: that counts what the process was before it became Python, a copy of this one."""


def peak(*arguments: object) -> tuple[int, int, str]:
    """Exit code, peak resident bytes and output of a command in a process of its own."""
    said, size = in_another(MEASURED, *map(str, arguments))
    code, _, rest = said.partition(" ")
    return int(code), size, rest


def in_another(code: str, *arguments: str) -> tuple[str, int]:
    """What a process of its own prints, and its peak resident bytes."""
    call = [sys.executable, "-c", code + PEAK, *arguments]
    *said, size = subprocess.run(call, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
    return "".join(said), int(size)


@pytest.fixture(scope="module")
def bare() -> int:
    """What the libraries take that any command of this kind needs."""
    return in_another("import svision_dask.opening.formats, svision_dask.omezarr.read, svision_dask.omezarr.labels")[1]


@linux
def test_describing_a_sparse_image_of_500_million_voxels_takes_less_than_250_megabytes(data_dir):
    code, size, said = peak("info", data_dir / "conformance" / "fiji_pyramid_v04.zarr")
    assert code == 0, said
    assert size < 250e6


@linux
def test_planning_takes_less_than_250_megabytes_beside_torch(data_dir):
    path = data_dir / "conformance" / "fiji_pyramid_v04.zarr"
    code, size, said = peak("plan", path, "--memory", "2GB", "--workers", 1)
    assert code == 0, said
    assert size - in_another("import torch")[1] < 250e6


@linux
def test_a_hundred_million_declared_chunks_take_no_memory_or_are_refused(tmp_path, bare):
    many = declared(tmp_path / "many.zarr", (464, 464, 464), (1, 1, 1))
    code, size, said = peak("info", many)
    assert code == 0, said
    assert size - bare < 100e6
    line = declared(tmp_path / "line.zarr", (10**8, 1, 1), (1, 1, 1))
    code, size, said = peak("info", line)
    assert code == 1
    assert "100000000 chunks along an axis; allowed are 1000000" in said
    assert size - bare < 100e6


@pytest.mark.parametrize("place", ["zarr.json", "0/zarr.json"])
def test_metadata_too_large_to_be_any_are_not_read(tmp_path, place):
    path = declared(tmp_path / "a.zarr", (4, 4, 4), (4, 4, 4))
    with (path / place).open("r+b") as file:
        file.truncate(2**36)  # takes no space on the disk
    with pytest.raises(ImageError, match="68719476736 bytes of metadata"):
        open_volume(path)


@pytest.mark.parametrize("place", ["zarr.json", "0/zarr.json"])
@pytest.mark.parametrize("without_parts", [False, True])
def test_metadata_at_a_url_that_are_too_large_to_be_any_are_not_read(tmp_path, place, without_parts, monkeypatch):
    monkeypatch.setattr(transfer, "METADATA_BYTES", 5000)
    path = declared(tmp_path / "a.zarr", (4, 4, 4), (4, 4, 4))
    zarr.open_group(path)["0"][...] = 7
    with serve_folder(tmp_path) as (url, faults):
        faults.without_parts = without_parts
        assert (open_volume(f"{url}/a.zarr").read((slice(0, 4),) * 3) == 7).all()
        with (path / place).open("r+b") as file:
            file.truncate(2**25)
        fs, _ = transfer.file_system(url, asynchronous=False)
        assert len(sync(fs.loop, transfer._first_bytes, fs, f"{url}/a.zarr/{place}", 5001)) == 5001
        with pytest.raises(ImageError, match=rf"{place}: more than 5000 bytes of metadata"):
            open_volume(f"{url}/a.zarr")


def test_metadata_nested_too_deep_are_refused_in_one_line(tmp_path):
    path = declared(tmp_path / "a.zarr", (4, 4, 4), (4, 4, 4))
    (path / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(ImageError) as caught:
        open_volume(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["0/", "a//b", "//", ""])
def test_a_path_with_an_empty_part_is_refused(tmp_path, path):
    with pytest.raises(ImageError, match="must lead down"):
        folder_inside(tmp_path, path, "here")


def test_numbers_texts_and_trees_that_nothing_can_hold_are_left_out(tmp_path):
    assert read_shown({"channels": [{"window": {"min": 0, "max": 9, "start": 0, "end": 10**400}}]})[0].window is None
    tree: Any = []
    for _ in range(100_000):
        tree = [tree]
    assert carried_attributes({"tree": tree, "text": "\ud800", "\ud800": 1, "kept": 1}) == {"kept": 1}


@pytest.mark.parametrize(("start", "change"), [(b"PK\1\2", 10), (b"PK\1\2", 8), (b"PK\1\2", 0)])
def test_a_zip_that_cannot_be_unpacked_is_refused_in_one_line(tmp_path, start, change):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as held:
        held.writestr("zarr.json", "{}")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.find(start) + change] ^= 99  # method of compression, or the flag of encryption, or no entry
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ImageError, match="cannot be read as zip file"):
        open_volume(tmp_path / "a.zip")


@pytest.mark.parametrize("place", ["zarr.json", "0/zarr.json"])
def test_an_entry_of_a_zip_that_is_too_large_for_metadata_is_not_unpacked(tmp_path, place):
    path = declared(tmp_path / "a.zarr", (4, 4, 4), (4, 4, 4))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as held:
        for name in {"zarr.json", "0/zarr.json"} - {place}:
            held.write(path / name, name)
        held.writestr(place, bytes(2**26 + 1))
    with pytest.raises(ImageError, match="67108865 bytes of metadata"):
        open_volume(tmp_path / "a.zip")


def write_ome(path: Path, planes: int, second: str) -> Path:
    """An OME-TIFF whose second plane is in another file."""
    named = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate((path.name, second))
    )
    sizes = f'SizeX="8" SizeY="8" SizeZ="{planes}" SizeC="1" SizeT="1"'
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes}>{named}</Pixels>'
    root = 'OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"'
    xml = f'<?xml version="1.0" encoding="UTF-8"?><{root}><Image ID="Image:0">{pixels}</Image></OME>'
    tifffile.imwrite(path, np.zeros((8, 8), "u2"), description=xml, metadata=None)
    return path


def test_an_ome_tiff_does_not_open_files_outside_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for other in (tmp_path / "secret.tif", tmp_path / "in" / "beside.tif"):
        tifffile.imwrite(other, np.full((8, 8), 4242, "u2"), metadata=None)
    for name in ("../secret.tif", str(tmp_path / "secret.tif")):
        # Newer versions of tifffile refuse the name themselves, and leave the plane out.
        with pytest.raises(ImageError, match=r"outside its folder|2 planes are described and 1 are there"):
            open_volume(write_ome(tmp_path / "in" / "a.ome.tif", 2, name))
    assert open_volume(write_ome(tmp_path / "in" / "b.ome.tif", 2, "beside.tif")).grid.shape == (2, 8, 8)


def test_an_ome_tiff_that_declares_any_number_of_planes_is_refused_before_they_are_listed(tmp_path):
    with pytest.raises(ImageError, match="400000000 planes are declared"):
        open_volume(write_ome(tmp_path / "a.ome.tif", 4 * 10**8, "b.tif"))


def tagged(path: Path, tags: dict[int, int], more: bytes = b"") -> Path:
    """A compressed TIFF of 32 × 32 voxels with other numbers in its tags, and ``more`` at its end."""
    tifffile.imwrite(path, np.zeros((32, 32), "u2"), compression="zlib", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag, value in tags.items():
            struct.pack_into("<HHII", content, file.pages[0].tags[tag].offset, tag, 4, 1, value or len(content))
    path.write_bytes(content + more)
    return path


def test_a_tiff_of_one_strip_that_no_machine_can_hold_is_refused_when_it_is_opened(tmp_path):
    path = tagged(tmp_path / "a.tif", dict.fromkeys((256, 257, 278), 200_000))
    with pytest.raises(ImageError, match="strips or tiles of 200000×200000 voxels take 2 GiB or more"):
        open_volume(path, axes="yx", spacing=1)


@linux
def test_a_strip_that_holds_more_than_its_voxels_is_refused(tmp_path):
    maker = zlib.compressobj(1)
    bomb = b"".join(maker.compress(bytes(10**7)) for _ in range(30)) + maker.flush()
    path = tagged(tmp_path / "a.tif", {273: 0, 279: len(bomb)}, bomb)
    code = f"""
from svision_dask.opening.formats import open_volume
try:
    open_volume({str(path)!r}, axes="yx", spacing=1).read((slice(0, 32), slice(0, 32)))
except ValueError as error:
    print(type(error).__name__, error)
"""
    said, size = in_another(code)
    assert said.startswith("ImageError")
    assert "plane 0 cannot be decoded" in said
    assert size < 250e6


def test_entities_that_name_each_other_are_not_put_together(tmp_path):
    names = [f"b{n}" for n in range(12)]
    entities = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip(["a", *names], names, strict=False))
    xml = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "{"a" * 50}">{entities}]><OME Creator="&{names[-1]};"></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((8, 8), "u2"), description=xml, metadata=None)
    with pytest.raises(ImageError) as caught:
        open_volume(tmp_path / "a.ome.tif")
    assert "\n" not in str(caught.value)


def test_links_that_lead_out_of_the_image_are_not_followed(tmp_path):
    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    secret = write_image(tmp_path / "secret.zarr", cells=(label_voxels(), entry))
    image = write_image(tmp_path / "image.zarr")
    for file in (image / "labels").iterdir():
        file.unlink()
    (image / "labels").rmdir()
    (image / "labels").symlink_to(secret / "labels")
    assert open_volume(image).labels == ()
    plate = write_plate(tmp_path / "plate.zarr")
    (plate / "B" / "2").rename(tmp_path / "elsewhere")
    (plate / "B" / "2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="behind a symbolic link"):
        open_volume(plate, series=0)


@pytest.fixture
def linked(tmp_path) -> Path:
    """An image whose voxels may be linked to; they are of the type and size that theirs are."""
    for name in ("image", "secret"):
        path = declared(tmp_path / f"{name}.zarr", (4, 4, 4), (2, 4, 4))
        zarr.open_group(path)["0"][...] = 42 if name == "secret" else 7
    return tmp_path / "image.zarr"


@pytest.mark.parametrize("place", ["0/c", "0/c/1/0", "0/c/0/0/0", "0/zarr.json", "zarr.json", "0"])
@pytest.mark.parametrize("missing", ["error", "empty"])
def test_links_inside_an_array_that_lead_out_of_the_image_are_refused(linked, place, missing):
    target = linked.with_name("secret.zarr") / place
    (linked / place).rename(linked.with_name("own"))
    (linked / place).symlink_to(target)
    with pytest.raises(ImageError, match=r"image\.zarr.* behind a symbolic link\. Copy") as caught:
        open_volume(linked, missing=missing).read((slice(0, 4),) * 3)
    assert "\n" not in str(caught.value)


def test_links_that_stay_in_the_image_and_a_link_to_the_image_are_followed(linked):
    for place in ("0/c/1", "0/zarr.json"):
        inside = linked / "kept" / place
        inside.parent.mkdir(parents=True, exist_ok=True)
        (linked / place).rename(inside)
        (linked / place).symlink_to(inside)
    linked.with_name("link.zarr").symlink_to(linked)
    assert (open_volume(linked.with_name("link.zarr")).read((slice(0, 4),) * 3) == 7).all()


@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2", "vlen-utf8"])
@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_codecs_that_build_objects_are_refused(tmp_path, codec, place):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=np.arange(16, dtype="u1").reshape(4, 4))
    entry = {"version": "0.4", **multiscale("yx", [1.0, 1.0], [0.0, 0.0])}
    group.attrs["multiscales"] = [entry]
    file = tmp_path / "a.zarr" / "0" / ".zarray"
    said = {"id": codec}
    file.write_text(json.dumps({**json.loads(file.read_text()), place: [said] if place == "filters" else said}))
    with pytest.raises(ImageError) as caught:
        open_volume(tmp_path / "a.zarr")
    assert "\n" not in str(caught.value)


# ---- whatever the attributes say


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Files of attributes of an image, its labels, a plate and a well."""
    folder = tmp_path_factory.mktemp("fuzzed")
    image = write_image(folder / "image.zarr", cells=(label_voxels(), multiscale("zyx", SPACING[1:], ORIGIN[1:])))
    plate = write_plate(folder / "plate.zarr")
    parts = (image, image / "labels", image / "labels" / "cells", plate, plate / "A" / "1")
    return [part / "zarr.json" for part in parts]


@given(data=st.data(), junk=JSON)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_attributes_is_harmless_or_told_in_one_line(images, data, junk):
    file = data.draw(st.sampled_from(images))
    good = file.read_text()
    inner = damaged = copy.deepcopy(json.loads(good))
    place = data.draw(st.sampled_from([p for p in places(damaged) if p]))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    file.write_text(json.dumps(damaged))
    root = next(folder for folder in file.parents if folder.parent == images[0].parents[1])
    try:
        said = told(root)
    finally:
        file.write_text(good)
    assert not any("\n" in line for line in said)


def told(root: Path) -> list[str]:
    """What opening and checking say, where they do not say yes."""
    said = []
    for look in (lambda: open_volume(root, series=None if root.name == "image.zarr" else 0), lambda: [*check(root)]):
        try:
            found = look()
        except SvisionError as error:
            said.append(str(error))
        else:
            said += [str(finding) for finding in found] if isinstance(found, list) else []
    return said
