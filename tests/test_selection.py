from __future__ import annotations

import json
import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import Grid
from svision_dask.opening.formats import open_volume
from svision_dask.opening.selection import select
from svision_dask.volume import Volume
from tests.commands import run, textured, write_tiff

VOXELS = np.arange(3 * 4 * 2 * 5 * 7, dtype="u2").reshape(3, 4, 2, 5, 7)
NAMES = ("DAPI", "GFP", "a, b", "GFP")


class Stored:
    """A source in memory that counts what is read of it."""

    def __init__(self, voxels):
        self.voxels, self.read, self.shape, self.dtype = voxels, 0, voxels.shape, voxels.dtype

    def __getitem__(self, box):
        part = self.voxels[box]
        self.read += part.size
        return part

    def absent(self, box):
        return [f"t{box[0].start}", f"c{box[1].start}"]


def volume_of(source) -> Volume:
    grid = Grid(
        axes="tczyx",
        shape=VOXELS.shape,
        spacing=(1.5, 1, 2, 0.5, 0.5),
        origin=(10.0, 0, 1, 2, 3),
        units=("second", None, *["micrometer"] * 3),
    )
    return Volume.from_source(source, grid, chunks=(1, 1, 2, 5, 7), channels=NAMES, name="cells", identity="cells")


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.mark.parametrize(
    ("channel", "numbers"),
    [("DAPI", [0]), (3, [3]), ("a, b", [2]), ("2,0", [2, 0]), (["DAPI", 1], [0, 1]), ("0, 1, 2, 3", [0, 1, 2, 3])],
)
def test_channels_are_chosen_by_number_or_name_in_the_order_given(channel, numbers):
    chosen = select(volume_of(Stored(VOXELS)), channel=channel)
    np.testing.assert_array_equal(whole(chosen), VOXELS[:, numbers])
    np.testing.assert_array_equal(chosen.voxels.compute(scheduler="synchronous"), VOXELS[:, numbers])
    assert chosen.channels == tuple(NAMES[n] for n in numbers)
    assert chosen.grid.axes == "tczyx"
    assert chosen.grid.spacing == volume_of(Stored(VOXELS)).grid.spacing


@pytest.mark.parametrize(
    ("time", "points", "first", "step"),
    [
        (2, [2], 13.0, 1.5),
        ("1", [1], 11.5, 1.5),
        ("1:", [1, 2], 11.5, 1.5),
        ("::2", [0, 2], 10.0, 3.0),
        (slice(0, 2), [0, 1], 10.0, 1.5),
    ],
)
def test_times_are_chosen_and_stay_when_they_were(time, points, first, step):
    chosen = select(volume_of(Stored(VOXELS)), time=time)
    np.testing.assert_array_equal(whole(chosen), VOXELS[points])
    assert (chosen.grid.origin[0], chosen.grid.spacing[0]) == (first, step)
    assert chosen.grid.origin[1:] == (0, 1, 2, 3)


def test_nothing_is_read_of_what_was_not_chosen():
    source = Stored(VOXELS)
    chosen = select(volume_of(source), channel="1,3", time="0:2")
    assert source.read == 0
    box = (slice(0, 1), slice(0, 2), slice(0, 1), slice(1, 3), slice(2, 5))
    np.testing.assert_array_equal(chosen.read(box), VOXELS[:1, 1::2, :1, 1:3, 2:5])
    assert source.read == 2 * 1 * 2 * 3
    assert chosen.absent(box) == 3  # of t0 with c1, and t0 with c3


def test_a_choice_travels_to_another_process_and_is_another_input():
    volume = volume_of(VOXELS)
    chosen = select(volume, channel=1, time=0)
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(chosen))), VOXELS[:1, 1:2])
    assert chosen.identity != volume.identity
    assert select(volume, channel="0,1,2,3", time=":").identity == volume.identity


def test_computed_volumes_can_be_chosen_from():
    volume = volume_of(VOXELS)
    computed = Volume(voxels=da.from_array(VOXELS), grid=volume.grid)
    np.testing.assert_array_equal(whole(select(computed, channel="3,1")), VOXELS[:, [3, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "GFP"}, "--channel GFP: allowed are 0 to 3, or by name: DAPI, GFP"),
        ({"channel": 4}, "--channel 4: allowed are 0 to 3"),
        ({"channel": -1}, "--channel -1: allowed are 0 to 3"),
        ({"channel": "0,0"}, "give each channel once"),
        ({"channel": []}, "at least one"),
        ({"time": 3}, "--time 3: allowed are 0 to 2"),
        ({"time": "0:4"}, "--time 0:4: allowed are 0 to 2"),
        ({"time": "2:1"}, "--time 2:1: allowed are 0 to 2, or start:stop in order"),
        ({"time": "now"}, "--time now: give a number from 0, or start:stop"),
        ({"time": "::0"}, "--time ::0: give a number"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as caught:
        select(volume_of(VOXELS), **options)
    assert "\n" not in str(caught.value)


def test_an_axis_that_is_not_there_cannot_be_chosen_from(tmp_path):
    path = write_tiff(tmp_path / "stack.ome.tif", textured((3, 5, 7)))
    for option in ("channel", "time"):
        with pytest.raises(UsageError, match=rf"stack has axes zyx, without {option[0]}: leave out --{option}"):
            open_volume(path, **{option: 0})


# ---- several images in one place


def write_field(path: Path, voxels: np.ndarray, version: str = "0.5") -> None:
    axes = "zyx"[-voxels.ndim :]
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    group.create_array("0", data=voxels, **({"dimension_names": list(axes)} if version == "0.5" else {}))
    scale = {"type": "scale", "scale": [1.0] * voxels.ndim}
    entry = {
        "axes": [{"name": a, "type": "space"} for a in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **entry}]


def write_group(path: Path, version: str, **attributes: object) -> Path:
    nested = {"ome": {"version": version, **attributes}} if version == "0.5" else attributes
    zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, attributes=nested)
    return path


def write_plate(path: Path, version: str = "0.5") -> Path:
    """Wells A/1 with fields 0 and 1, B/2 with field 0; each field is full of its number."""
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}, {"path": "B/2", "rowIndex": 1, "columnIndex": 1}]
    plate = {
        "rows": [{"name": "A"}, {"name": "B"}],
        "columns": [{"name": "1"}, {"name": "2"}],
        "wells": wells,
        "version": version,
    }
    write_group(path, version, plate=plate)
    for number, (well, fields) in enumerate([("A/1", 2), ("B/2", 1)]):
        write_group(path / well[0], version)
        write_group(path / well, version, well={"images": [{"path": str(n)} for n in range(fields)]})
        for field in range(fields):
            write_field(path / well / str(field), np.full((3, 4), 10 * number + field, "u1"), version)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_field_of_a_plate_or_well_is_chosen_by_number_or_path(tmp_path, version):
    plate = write_plate(tmp_path / "plate.zarr", version)
    assert whole(open_volume(plate, series="B/2/0"))[0, 0] == 10
    assert whole(open_volume(plate, series=1))[0, 0] == 1
    assert whole(open_volume(plate / "A" / "1", series="1"))[0, 0] == 1
    assert whole(open_volume(plate / "B" / "2"))[0, 0] == 10  # the only one
    with pytest.raises(ImageError, match=r"3 images \(plate\): A/1/0, A/1/1, B/2/0. Give one of them by --series"):
        open_volume(plate)
    with pytest.raises(UsageError, match="there is no C/3/0"):
        open_volume(plate, series="C/3/0")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_series_of_bioformats2raw_are_those_it_lists_or_consecutive_numbers(tmp_path, version):
    path = write_group(tmp_path / "raw.zarr", version, **{"bioformats2raw.layout": 3})
    for number, name in enumerate(("0", "1", "3")):
        write_field(path / name, np.full((3, 4), number, "u1"), version)
    with pytest.raises(ImageError, match=r"holds 2 images \(series\): 0, 1\."):
        open_volume(path)
    assert whole(open_volume(path, series=1))[0, 0] == 1
    write_group(path / "OME", version, series=["3", "0"])
    assert whole(open_volume(path, series=0))[0, 0] == 2  # number 0 of the list
    assert whole(open_volume(path, series="3"))[0, 0] == 2


@pytest.mark.parametrize(
    ("wells", "message"),
    [
        ([{"path": "../other"}], "must lead down from the image"),
        ([{"path": "/etc"}], "must lead down from the image"),
        ([{"path": 3}], "wells must be a list of objects with a path"),
        ("A/1", "wells must be a list of objects with a path"),
        (True, "wells must be a list of objects with a path"),
        ([], "names no images"),
    ],
)
def test_damaged_plates_are_refused_in_one_line(tmp_path, wells, message):
    path = write_plate(tmp_path / "plate.zarr")
    file = json.loads((path / "zarr.json").read_text())
    file["attributes"]["ome"]["plate"]["wells"] = wells
    (path / "zarr.json").write_text(json.dumps(file))
    with pytest.raises(ImageError, match=message) as caught:
        open_volume(path, series=0)
    assert "\n" not in str(caught.value)


def test_a_series_of_a_tiff_is_chosen_by_its_name(tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(np.zeros((3, 5, 7), "u2"), metadata={"axes": "ZYX", "Name": "overview"})
        file.write(np.ones((3, 9, 7), "u2"), metadata={"axes": "ZYX", "Name": "detail"})
    assert open_volume(path, series="detail").grid.shape == (3, 9, 7)
    assert open_volume(path, series="1").grid.shape == (3, 9, 7)
    with pytest.raises(ImageError, match=r"no one series is called 'else'; names are \['overview', 'detail'\]"):
        open_volume(path, series="else")


def test_the_command_line_chooses_series_channels_and_times(tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(textured((2, 5, 7)), metadata={"axes": "ZYX"})
        names = {"Channel": {"Name": ["red", "green"]}}
        file.write(textured((4, 2, 3, 9, 7)), metadata={"axes": "TCZYX", **names})
    outcome = run("info", path, "--series", "1", "--channel", "green", "--time", "1:3", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    facts = json.loads(outcome.stdout)
    assert (facts["shape"], facts["channels"]) == ([2, 1, 3, 9, 7], ["green"])
    copied = run("convert", path, tmp_path / "out.zarr", "--series", "1", "--channel", "1", "--time", "3")
    assert copied.exit_code == 0, copied.stderr
    volume = open_volume(tmp_path / "out.zarr")
    assert volume.channels == ("green",)
    np.testing.assert_array_equal(whole(volume), textured((4, 2, 3, 9, 7))[3:, 1:])
