from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import zarr

from svision_dask.errors import OutputError, UsageError
from svision_dask.geometry import Grid
from svision_dask.omezarr.write import create_store, publish
from svision_dask.running.output import check_new_file, check_output, remove_existing
from tests.commands import tree

pytestmark = pytest.mark.faults

GRID = Grid(axes="yx", shape=(5, 7), spacing=(1.0, 1.0), origin=(0.0, 0.0), units=(None, None))


def make_image(path: Path, *, finished: bool = True) -> Path:
    create_store(path, [GRID], dtype="uint8", chunks=(5, 7), attributes={"package": "svision-dask"})
    if finished:
        publish(path, [GRID], name="image", attributes={"package": "svision-dask"})
    return path


def make_foreign_image(path: Path) -> Path:
    """What another program wrote: the multiscales metadata, and nothing of ours."""
    make_image(path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    del group.attrs["svision_dask"]
    return path


def make_plate(path: Path) -> Path:
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "plate": {"columns": [], "rows": [], "wells": []}}
    return path


def make_array(path: Path) -> Path:
    zarr.create_array(path, shape=(3,), dtype="uint8")
    return path


def make_folder(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    return path


def make_file(path: Path) -> Path:
    path.write_text("years of work")
    return path


def make_link_to_image(path: Path) -> Path:
    path.symlink_to(make_image(path.with_name("elsewhere.zarr")))
    return path


def make_dangling_link(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere"))
    return path


NEVER_REPLACED = [
    make_plate,
    make_array,
    make_folder,
    make_file,
    make_link_to_image,
    make_dangling_link,
]


def test_a_new_name_is_allowed_also_in_folders_that_do_not_exist(tmp_path):
    before = tree(tmp_path)
    check_output(tmp_path / "new.zarr", overwrite=False)
    check_output(tmp_path / "a" / "b" / "new.zarr", tmp_path / "input.tif", overwrite=False)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_allowed(tmp_path):
    check_output(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_image, "a finished output of svision-dask"),
        (
            lambda path: make_image(path, finished=False),
            "an unfinished output of svision-dask, and what was done of it is not known",
        ),
        (make_foreign_image, "an OME-Zarr that svision-dask did not make"),
    ],
)
def test_an_image_is_replaced_only_when_asked(make, what, tmp_path):
    path = make(tmp_path / "image.zarr")
    with pytest.raises(OutputError, match=f"image.zarr exists: {what}. Use --overwrite"):
        check_output(path, overwrite=False)
    check_output(path, overwrite=True)


@pytest.mark.parametrize("make", NEVER_REPLACED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_one_image_is_never_replaced(make, overwrite, tmp_path):
    path = make(tmp_path / "there.zarr")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"there\.zarr exists and is not one OME-Zarr image; it is never replaced"):
        check_output(path, overwrite=overwrite)
    assert tree(tmp_path) == before


def same_name(image: Path) -> Path:
    return image


def relative_name(image: Path) -> Path:
    return Path(os.path.relpath(image))


def roundabout_name(image: Path) -> Path:
    return image / ".." / image.name


def link_to_it(image: Path) -> Path:
    link = image.with_name("link.zarr")
    link.symlink_to(image)
    return link


def name_through_a_linked_folder(image: Path) -> Path:
    link = image.parent.parent / "link"
    link.symlink_to(image.parent)
    return link / image.name


NAMES = [same_name, relative_name, roundabout_name, link_to_it, name_through_a_linked_folder]


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return make_image(folder / "input.zarr")


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_never_the_input_whatever_its_name(name, source):
    other = name(source)
    for output, given in ((other, source), (source, other)):
        with pytest.raises(OutputError, match="the output is the input"):
            check_output(output, given, overwrite=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_never_inside_the_input(name, source):
    with pytest.raises(OutputError, match="the output lies inside the input"):
        check_output(name(source) / "deeper" / "fine.zarr", source, overwrite=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_never_contains_the_input(name, source):
    with pytest.raises(OutputError, match="the output contains the input"):
        check_output(source.parent, name(source) / "labels", overwrite=True)


def test_an_output_beside_the_input_is_allowed_also_if_one_name_begins_like_the_other(source):
    check_output(source.with_name("input.zarr.fine"), source, overwrite=False)
    check_output(source.with_name("input"), source, overwrite=False)


@pytest.mark.parametrize("parts", [("file", "fine.zarr"), ("file", "deeper", "fine.zarr")])
def test_a_file_cannot_be_a_folder(parts, tmp_path):
    make_file(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file is not a folder\. Choose another place"):
        check_output(tmp_path.joinpath(*parts), overwrite=True)


@pytest.fixture
def unwritable(tmp_path):
    folder = tmp_path / "unwritable"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("parts", [("fine.zarr",), ("deeper", "fine.zarr")])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(parts, unwritable):
    with pytest.raises(OutputError, match=r"unwritable is not writable\. Choose another place"):
        check_output(unwritable.joinpath(*parts), overwrite=False)
    with pytest.raises(OutputError, match="not writable"):
        check_new_file(unwritable / "model.safetensors")


def test_a_new_file_replaces_nothing_and_needs_its_folder(tmp_path):
    check_new_file(tmp_path / "model.safetensors")
    for make in (make_file, make_folder, make_dangling_link):
        with pytest.raises(OutputError, match="exists; a model file is never replaced"):
            check_new_file(make(tmp_path / make.__name__))
    with pytest.raises(OutputError, match=r"there is no folder .*missing\. Make it"):
        check_new_file(tmp_path / "missing" / "model.safetensors")


def test_a_zip_file_that_is_there_is_not_replaced_and_nothing_is_put_into_it(tmp_path):
    package = tmp_path / "model.zip"
    with zipfile.ZipFile(package, "w") as held:
        held.writestr("rdf.yaml", "type: model")
    with pytest.raises(OutputError, match=r"model\.zip exists; a model file is never replaced"):
        check_new_file(package)
    with pytest.raises(UsageError, match="a new file cannot be in a zip file"):
        check_new_file(package / "model.safetensors")


def test_what_is_removed_is_gone_and_nothing_else(tmp_path):
    image, other = make_image(tmp_path / "image.zarr"), make_file(tmp_path / "other")
    remove_existing(image)
    remove_existing(image)
    assert [*tmp_path.iterdir()] == [other]


def test_an_image_that_is_half_deleted_is_not_under_its_name_any_more(tmp_path, monkeypatch):
    image = make_image(tmp_path / "image.zarr")

    def fail(path):
        raise OSError(f"power cut at {path}")

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(OSError, match="power cut"):
        remove_existing(image)
    assert not image.exists()
