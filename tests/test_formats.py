from __future__ import annotations

import pickle
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import Grid
from svision_dask.opening.formats import open_volume, stack_channels
from svision_dask.tiff.read import open_tiff
from svision_dask.volume import Volume


def write_stack(path, voxels, *, axes="ZYX", spacing=2.0, resolution=4, unit="um"):
    metadata = {"axes": axes, "spacing": spacing, "unit": unit}
    tifffile.imwrite(path, voxels, imagej=True, resolution=(resolution, resolution), metadata=metadata)
    return path


def random_voxels(shape, seed=0, dtype=np.uint16):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


@pytest.fixture
def tiff(tmp_path):
    return write_stack(tmp_path / "stack.tif", random_voxels((3, 5, 7)))


@pytest.fixture
def omezarr(tmp_path):
    """A minimal OME-Zarr 0.5 image, written as the specification says."""
    group = zarr.create_group(tmp_path / "image.ome.zarr", zarr_format=3)
    group.create_array("0", data=random_voxels((3, 5, 7)), chunks=(3, 5, 7), dimension_names=["z", "y", "x"])
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5, 0.25]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "image", "axes": axes, "datasets": datasets}]}
    return tmp_path / "image.ome.zarr"


def box_of_all(volume):
    return tuple(slice(0, n) for n in volume.grid.shape)


# ---- the dispatcher


def test_a_tiff_is_opened_by_its_content_whatever_its_name(tiff):
    renamed = tiff.rename(tiff.with_name("stack.dat"))
    volume = open_volume(renamed, spacing={"z": 3})
    assert (volume.grid.axes, volume.grid.spacing) == ("zyx", (3.0, 0.25, 0.25))
    np.testing.assert_array_equal(volume.voxels.compute(), random_voxels((3, 5, 7)))


def test_an_omezarr_folder_is_opened(omezarr):
    volume = open_volume(omezarr)
    assert (volume.grid.axes, volume.grid.spacing) == ("zyx", (2.0, 0.5, 0.25))
    np.testing.assert_array_equal(volume.read(box_of_all(volume)), random_voxels((3, 5, 7)))


@pytest.mark.parametrize("option", [{"axes": "zyx"}, {"spacing": 1}, {"unit": "um"}])
def test_an_omezarr_says_itself_what_a_tiff_may_leave_out(omezarr, option):
    with pytest.raises(UsageError, match=rf"says this itself: leave out --{next(iter(option))}\.$"):
        open_volume(omezarr, **option)


def test_an_omezarr_has_no_series(omezarr):
    with pytest.raises(UsageError, match="leave out --series"):
        open_volume(omezarr, series=1)


def test_a_tiff_has_one_level(tiff):
    with pytest.raises(UsageError, match="leave out --level"):
        open_volume(tiff, level=1)


def test_a_missing_path_a_bare_folder_and_another_file_name_what_can_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    for name in ("absent", "notes.txt", "."):
        with pytest.raises(ImageError, match=r"OME-Zarr folder .* a TIFF file") as caught:
            open_volume(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- channels


@pytest.fixture
def channels(tmp_path):
    """Three volumes of equal grids: the names, the voxels and the files."""
    voxels = [random_voxels((3, 5, 7), seed) for seed in range(3)]
    paths = [write_stack(tmp_path / f"{name}.tif", v) for name, v in zip(("red", "green", "blue"), voxels, strict=True)]
    return np.stack(voxels), [open_tiff(path) for path in paths]


def test_stacked_volumes_become_named_channels_before_space(channels):
    expected, volumes = channels
    volume = stack_channels(volumes)
    assert volume.grid == Grid(
        axes="czyx",
        shape=(3, 3, 5, 7),
        spacing=(1.0, 2.0, 0.25, 0.25),
        origin=(0.0,) * 4,
        units=(None, "micrometer", "micrometer", "micrometer"),
    )
    assert volume.channels == ("red", "green", "blue")
    assert volume.voxels.chunksize[0] == 1
    np.testing.assert_array_equal(volume.voxels.compute(), expected)


def test_a_stacked_source_reads_as_numpy_does(channels):
    expected, volumes = channels
    source = pickle.loads(pickle.dumps(stack_channels(volumes).source))
    assert (source.shape, source.dtype) == (expected.shape, expected.dtype)
    for index in [np.s_[:], np.s_[1], np.s_[0:2, 1:3, 2:5, 3:4], np.s_[-1, 2, ::2], np.s_[::-2, 0], np.s_[1:1]]:
        np.testing.assert_array_equal(source[index], expected[index])


def test_a_box_of_one_channel_reads_that_file_only(channels, tmp_path):
    expected, volumes = channels
    volume = stack_channels(volumes)
    (tmp_path / "blue.tif").unlink()
    np.testing.assert_array_equal(volume.read((slice(0, 2), *[slice(0, n) for n in (3, 5, 7)])), expected[:2])
    with pytest.raises(ImageError, match=r"blue\.tif"):
        volume.read((slice(2, 3), *[slice(0, n) for n in (3, 5, 7)]))


def test_the_channel_axis_comes_after_time(tmp_path):
    voxels = [random_voxels((2, 3, 5, 7), seed) for seed in range(2)]
    volumes = [open_tiff(write_stack(tmp_path / f"{number}.tif", v, axes="TZYX")) for number, v in enumerate(voxels)]
    volume = stack_channels(volumes)
    assert volume.grid.axes == "tczyx"
    np.testing.assert_array_equal(volume.read(box_of_all(volume)), np.stack(voxels, axis=1))
    np.testing.assert_array_equal(volume.source[1, :, 2], np.stack(voxels, axis=1)[1, :, 2])


def test_computed_volumes_are_stacked_without_a_source():
    grid = Grid(axes="yx", shape=(2, 3), spacing=(1.0, 1.0), origin=(0.0, 0.0), units=(None, None))
    arrays = [np.full((2, 3), value) for value in (5, 7)]
    volume = stack_channels([Volume(voxels=da.from_array(a), grid=grid, name=str(a[0, 0])) for a in arrays])
    assert (volume.source, volume.channels) == (None, ("5", "7"))
    np.testing.assert_array_equal(volume.read(box_of_all(volume)), np.stack(arrays))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxels": random_voxels((3, 5, 8))}, r"other has shape \(3, 5, 8\), stack has \(3, 5, 7\)"),
        ({"axes": "TYX"}, "other has axes tyx, stack has zyx"),
        ({"voxels": random_voxels((3, 5, 7), dtype=np.uint8)}, "other has voxel type uint8, stack has uint16"),
        ({"spacing": 2.001}, r"other has spacing \(2.001, 0.25, 0.25\), stack has \(2.0, 0.25, 0.25\)"),
        ({"unit": "nm"}, "other has units .*nanometer.*, stack has .*micrometer"),
    ],
)
def test_unequal_volumes_are_refused_with_both_names_and_values(tmp_path, tiff, change, message):
    options = {"voxels": random_voxels((3, 5, 7))} | change
    other = write_stack(tmp_path / "other.tif", options.pop("voxels"), **options)
    with pytest.raises(ImageError, match=message):
        stack_channels([open_tiff(tiff), open_tiff(other)])


def test_unequal_origins_are_refused(tiff):
    volume = open_tiff(tiff)
    moved = replace(volume, name="moved", grid=replace(volume.grid, origin=(0.0, 0.0, 0.1)))
    with pytest.raises(ImageError, match=r"moved has origin \(0.0, 0.0, 0.1\), stack has"):
        stack_channels([volume, moved])


def test_a_rounded_resolution_is_no_difference(tmp_path, tiff):
    other = open_tiff(write_stack(tmp_path / "other.tif", random_voxels((3, 5, 7)), spacing=2.0000001))
    assert stack_channels([open_tiff(tiff), other]).grid.spacing == (1.0, 2.0, 0.25, 0.25)


def test_a_volume_with_channels_is_refused(tmp_path, tiff):
    double = open_tiff(write_stack(tmp_path / "double.tif", random_voxels((3, 2, 5, 7)), axes="ZCYX"))
    with pytest.raises(ImageError, match="double has channels already"):
        stack_channels([open_tiff(tiff), double])


def test_nothing_to_stack_is_a_usage_error():
    with pytest.raises(UsageError, match="give at least one"):
        stack_channels([])


def test_real_channels_of_one_brain_go_together(data_dir):
    folder = data_dir / "brain_cells_cellfinder"
    paths = [folder / "crop_ch0_signal.ome.tif", folder / "crop_ch1_background.ome.tif"]
    volume = stack_channels([open_volume(path) for path in paths])
    assert (volume.grid.shape, volume.grid.spacing) == ((2, 30, 400, 500), (1.0, 5.0, 2.0, 2.0))
    box = (slice(0, 2), slice(7, 9), slice(100, 140), slice(3, 5))
    expected = np.stack([tifffile.imread(path)[box[1:]] for path in paths])
    np.testing.assert_array_equal(volume.read(box), expected)
    assert len(pickle.dumps(volume.source)) < 2000
