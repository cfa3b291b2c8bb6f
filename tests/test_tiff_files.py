from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from svision_dask.errors import ImageError, UsageError
from svision_dask.opening.formats import open_volume
from tests.commands import run

PLANES = np.arange(12 * 5 * 7, dtype="u2").reshape(12, 5, 7)


def write_planes(folder: Path, name: str = "plane_{}.tif", first: int = 1, **options: object) -> Path:
    """Write numbers without leading zeros, so that 10 comes before 2 in the order of letters."""
    folder.mkdir(exist_ok=True)
    for number, plane in enumerate(PLANES):
        tifffile.imwrite(folder / name.format(first + number), plane, **options)
    return folder


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.mark.parametrize("given", ["", "*.tif", "plane_*.tif", "plane_?*.tif"])
def test_planes_are_stacked_in_natural_order(tmp_path, given):
    volume = open_volume(write_planes(tmp_path / "planes") / given, spacing={"z": 2, "y": 0.5, "x": 0.5}, unit="um")
    assert (volume.grid.axes, volume.grid.shape) == ("zyx", PLANES.shape)
    assert (volume.grid.spacing, volume.grid.units) == ((2, 0.5, 0.5), ("micrometer",) * 3)
    np.testing.assert_array_equal(whole(volume), PLANES)
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), PLANES)
    box = (slice(8, 11), slice(2, 4), slice(1, 6))
    np.testing.assert_array_equal(volume.read(box), PLANES[box])


def test_what_the_planes_say_of_y_and_x_is_used(tmp_path):
    folder = write_planes(tmp_path / "planes", imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    volume = open_volume(folder, spacing={"z": 3})
    assert (volume.grid.spacing, volume.grid.units) == ((3, 0.5, 0.25), ("micrometer",) * 3)


def test_only_the_files_of_a_box_are_read_and_the_source_is_small(tmp_path):
    volume = open_volume(write_planes(tmp_path / "planes"))
    source = pickle.loads(pickle.dumps(volume.source))
    assert len(pickle.dumps(volume.source)) < 2000
    for number in (1, 2, 5):
        (tmp_path / "planes" / f"plane_{number}.tif").write_bytes(b"II*\0 damaged")
    np.testing.assert_array_equal(source[5:12], PLANES[5:])
    with pytest.raises(ImageError, match=r"plane_5\.tif"):
        source[4]


def test_a_folder_of_volumes_needs_the_name_of_what_counts_them(tmp_path):
    (tmp_path / "times").mkdir()
    for number in range(3):
        tifffile.imwrite(tmp_path / "times" / f"t{number:03}.tif", PLANES + number, metadata={"axes": "ZYX"}, ome=True)
    with pytest.raises(ImageError, match="Name what counts the files, such as --axes tzyx"):
        open_volume(tmp_path / "times")
    volume = open_volume(tmp_path / "times", axes="tzyx")
    assert (volume.grid.axes, volume.grid.shape) == ("tzyx", (3, *PLANES.shape))
    np.testing.assert_array_equal(whole(volume), np.stack([PLANES + n for n in range(3)]))


def test_channels_of_volumes_come_before_z_wherever_they_are_counted(tmp_path):
    (tmp_path / "c").mkdir()
    for number in range(2):
        tifffile.imwrite(tmp_path / "c" / f"c{number}.tif", np.stack([PLANES, PLANES + number]))
    volume = open_volume(tmp_path / "c", axes="ctzyx")
    assert volume.grid.axes == "tczyx"
    np.testing.assert_array_equal(whole(volume)[:, 1], np.stack([PLANES, PLANES + 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "plane_4.tif").unlink(), r"no file between plane_3\.tif and plane_5\.tif"),
        (lambda f: (f / "plane_3.tif").rename(f / "other_3.tif"), "names differ in more than a number"),
        (lambda f: (f / "plane_1.tif").write_text("text"), r"plane_1\.tif is no TIFF"),
    ],
)
def test_planes_that_would_stand_in_wrong_places_are_refused(tmp_path, damage, message):
    folder = write_planes(tmp_path / "planes")
    damage(folder)
    with pytest.raises(ImageError, match=message) as caught:
        open_volume(folder)
    assert "\n" not in str(caught.value)


def test_two_numbers_that_change_are_not_guessed(tmp_path):
    write_planes(tmp_path / "planes", "z{}_c1.tif")
    write_planes(tmp_path / "planes", "z{}_c2.tif")
    with pytest.raises(ImageError, match="2 numbers change from name to name"):
        open_volume(tmp_path / "planes")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "planes" / "*_c2.tif")), PLANES)


def test_a_file_that_is_unlike_the_first_or_new_is_found_when_it_is_read(tmp_path):
    folder = write_planes(tmp_path / "planes")
    volume = open_volume(folder)
    tifffile.imwrite(folder / "plane_7.tif", PLANES[0, :4])
    with pytest.raises(ImageError, match=r"plane_7\.tif has changed"):
        whole(volume)
    other = open_volume(write_planes(tmp_path / "others"))
    tifffile.imwrite(tmp_path / "others" / "plane_13.tif", PLANES[0])
    with pytest.raises(ImageError, match="files have come or gone"):
        whole(other)


def test_another_input_has_another_identity(tmp_path):
    folder = write_planes(tmp_path / "planes")
    before = open_volume(folder).identity
    assert open_volume(folder).identity == before
    tifffile.imwrite(folder / "plane_7.tif", PLANES[0])
    assert open_volume(folder).identity != before


def test_nothing_of_that_name_and_options_of_other_formats_are_refused(tmp_path):
    folder = write_planes(tmp_path / "planes")
    with pytest.raises(ImageError, match="no file has such a name"):
        open_volume(folder / "x*.tif")
    with pytest.raises(UsageError, match="leave out --level"):
        open_volume(folder, level=1)
    with pytest.raises(UsageError, match="which each file has"):
        open_volume(folder, axes="xyx")


def test_planes_are_converted_and_never_taken_for_channels(tmp_path):
    folder = write_planes(tmp_path / "planes", first=98)
    outcome = run("convert", folder, tmp_path / "out.zarr", "--spacing", "z=2,y=0.5,x=0.5", "--unit", "um")
    assert outcome.exit_code == 0, outcome.stderr
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "out.zarr")), PLANES)
    assert "not known" not in outcome.stderr
    unplaced = run("convert", folder, tmp_path / "unplaced.zarr", "--spacing", "y=0.5,x=0.5")
    assert "warning: spacing of z is not known; 1 is taken" in unplaced.stderr
    expanded = run("convert", *sorted(folder.iterdir()), tmp_path / "other.zarr")
    assert expanded.exit_code == 2
    assert "12 planes as channels of one image: give their folder" in expanded.error
