from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from svision_dask.errors import ImageError, OutputError
from svision_dask.opening.formats import open_volume
from svision_dask.running.output import check_output
from tests.commands import run
from tests.test_labels import ORIGIN, SHAPE, SPACING, label_voxels, multiscale, textured, write_image
from tests.test_selection import write_plate


def packed(folder: Path, target: Path, *, top: str = "", without: str = "nothing") -> Path:
    with zipfile.ZipFile(target, "w") as held:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name != without:
                held.write(file, f"{top}{name}")
    return target


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.fixture
def image(tmp_path) -> Path:
    return write_image(tmp_path / "cells.zarr", cells=(label_voxels(), multiscale("zyx", SPACING[1:], ORIGIN[1:])))


@pytest.mark.parametrize(("name", "top"), [("a.zip", ""), ("a.ozx", ""), ("a.ZIP", "cells.zarr/")])
def test_a_zipped_image_reads_as_the_folder_does(image, tmp_path, name, top):
    volume = open_volume(packed(image, tmp_path / name, top=top))
    folder = open_volume(image)
    assert (volume.grid, volume.channels, volume.shown) == (folder.grid, folder.channels, folder.shown)
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(volume))), textured(SHAPE))
    np.testing.assert_array_equal(whole(volume.labels[0].volume), label_voxels())
    assert len(pickle.dumps(volume.source)) < 3000


def test_a_chunk_that_is_not_in_the_zip_is_an_error_or_counted(image, tmp_path):
    path = packed(image, tmp_path / "a.zip", without="0/c/0/1/0/0")
    box = (slice(1, 2), slice(8, 9), slice(0, 8), slice(0, 8))
    with pytest.raises(ImageError, match=r"chunk c/0/1/0/0 is missing"):
        open_volume(path).read(box)
    volume = open_volume(path, missing="empty")
    assert not volume.read(box).any()
    assert volume.absent(box) == 1


def test_fields_in_a_zip_are_chosen(tmp_path):
    path = packed(write_plate(tmp_path / "plate.zarr"), tmp_path / "plate.zip", top="plate.zarr/")
    assert whole(open_volume(str(path / "plate.zarr" / "A" / "1" / "1")))[0, 0] == 1
    assert whole(open_volume(path, series="B/2/0"))[0, 0] == 10


def test_the_identity_is_another_when_the_file_is(image, tmp_path):
    before = open_volume(packed(image, tmp_path / "a.zip")).identity
    assert open_volume(tmp_path / "a.zip").identity == before
    (tmp_path / "a.zip").touch()
    assert open_volume(tmp_path / "a.zip").identity != before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"text"])
def test_what_is_no_zip_of_an_image_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_volume(tmp_path / "a.zip")
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as held:
        held.writestr("notes.txt", "text")
    with pytest.raises(ImageError, match="is not a zarr group"):
        open_volume(tmp_path / "b.zip")


def test_a_zip_is_never_written(image, tmp_path):
    path = packed(image, tmp_path / "a.zip")
    with pytest.raises(OutputError):
        check_output(path, image, overwrite=True)
    assert run("info", path).exit_code == 0
