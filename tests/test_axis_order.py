"""Images whose axes are stored in another order than time, channel, z, y, x: valid OME-Zarr, and the same volumes."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from svision_dask.errors import ImageError
from svision_dask.judging.checking import check
from svision_dask.omezarr.read import describe_omezarr
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes
from tests.commands import run, textured
from tests.models import tiny
from tests.servers import serve_folder

SIZES = {"t": 2, "c": 2, "z": 6, "y": 10, "x": 15}
CHUNKS = {"t": 1, "c": 1, "z": 2, "y": 5, "x": 4}
SHARDS = {"t": 1, "c": 2, "z": 6, "y": 10, "x": 8}
SPACING = {"t": 30.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}
ORIGIN = {"t": 5.0, "c": 0.0, "z": 7.0, "y": -3.0, "x": 1.25}
UNITS = {"t": "second", "z": "micrometer", "y": "nanometer", "x": "millimeter"}
TYPES = {"t": "time", "c": "channel"}
ORDERS = [
    "".join((*before, *space))
    for before in ("", "t", "c", "tc")
    for spatial in ("yx", "zyx")
    for space in permutations(spatial)
]
"""All that the specification allows: "ordered by "type" where the "time" axis must come first", then channel, space."""


def usual(order: str) -> str:
    return "".join(axis for axis in SIZES if axis in order)


def voxels_in(order: str) -> np.ndarray:
    """One and the same voxels, in any order of their axes."""
    axes = usual(order)
    return textured(tuple(SIZES[a] for a in axes)).transpose([axes.index(a) for a in order])


def store(path: Path, order: str, version: str = "0.5", **more: Any) -> Path:
    """Two levels, the second half as fine along y and x, with all that is said of an axis in the stored order."""
    voxels, transformations = voxels_in(order), []
    for coarser in ({}, {"y": 2, "x": 2}):
        steps = {a: SPACING[a] * coarser.get(a, 1) for a in order}
        shift = {a: ORIGIN[a] + (steps[a] - SPACING[a]) / 2 for a in order}
        transformations.append(
            [
                {"type": "scale", "scale": [steps[a] for a in order]},
                {"type": "translation", "translation": [shift[a] for a in order]},
            ]
        )
    axes = [{"name": a, "type": TYPES.get(a, "space"), **({"unit": UNITS[a]} if a in UNITS else {})} for a in order]
    datasets = [{"path": str(n), "coordinateTransformations": each} for n, each in enumerate(transformations)]
    entry = {"axes": axes, "datasets": datasets, "name": "cells"}
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [entry], **more}
    else:
        group.attrs.update({"multiscales": [{"version": "0.4", **entry}], **more})
    form: dict[str, Any] = {"chunks": tuple(CHUNKS[a] for a in order)}
    if version == "0.5":
        form |= {"dimension_names": list(order), "shards": tuple(SHARDS[a] for a in order)}
    steps = tuple(slice(None, None, 2 if a in "yx" else 1) for a in order)
    group.create_array("0", data=voxels, **form)
    group.create_array("1", data=voxels[steps], **form)
    return path


def whole(volume: Volume) -> np.ndarray:
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_that_the_specification_allows_is_the_same_volume(tmp_path, order, version):
    path, axes = store(tmp_path / "a.zarr", order, version), usual(order)
    stored = zarr.open_array(path / "0", mode="r")
    volume, grid = open_volume(path), open_volume(path).grid
    assert grid.axes == axes
    assert grid.shape == tuple(SIZES[a] for a in axes)
    assert grid.spacing == tuple(SPACING[a] for a in axes)
    assert grid.origin == tuple(ORIGIN[a] for a in axes)
    assert grid.units == tuple(UNITS.get(a) for a in axes)
    expected = np.asarray(stored[...]).transpose([order.index(a) for a in axes])
    np.testing.assert_array_equal(whole(volume), expected)
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), expected)
    box = tuple(slice(1, SIZES[a] - 1) if a in "zyx" else slice(1, 2) for a in axes)
    np.testing.assert_array_equal(volume.read(box), expected[box])
    np.testing.assert_array_equal(volume.voxels[..., 3, ::-2].compute(scheduler="synchronous"), expected[..., 3, ::-2])
    found = describe_omezarr(path).levels[0]
    assert found.chunks == tuple(CHUNKS[a] for a in axes)
    assert found.shards == (tuple(SHARDS[a] for a in axes) if version == "0.5" else None)
    assert volume.voxels.chunksize == (found.shards or found.chunks)


def test_coarser_levels_are_transposed_and_placed_as_well(tmp_path):
    volume = open_volume(store(tmp_path / "a.zarr", "xzy"), level=1)
    assert (volume.grid.spacing, volume.grid.origin) == ((2.0, 1.0, 0.5), (7.0, -2.75, 1.375))
    assert open_volume(tmp_path / "a.zarr").levels == ((2.0, 0.5, 0.25), (2.0, 1.0, 0.5))
    np.testing.assert_array_equal(whole(volume), voxels_in("zyx")[:, ::2, ::2])


def test_transformations_of_the_whole_pyramid_are_in_the_stored_order_too(tmp_path):
    group = zarr.open_group(store(tmp_path / "a.zarr", "xyz"))
    ome = group.attrs.asdict()["ome"]
    outer = [{"type": "scale", "scale": [2, 3, 4]}, {"type": "translation", "translation": [100, 10, 1]}]
    ome["multiscales"][0]["coordinateTransformations"] = outer
    group.attrs["ome"] = ome
    grid = open_volume(tmp_path / "a.zarr").grid
    assert grid.spacing == (2.0 * 4, 0.5 * 3, 0.25 * 2)
    assert grid.origin == (7 * 4 + 1, -3 * 3 + 10, 1.25 * 2 + 100)


def test_a_landmark_is_at_the_same_place_of_the_world_whatever_the_order(client, tmp_path):
    places = {}
    for order in ("zyx", "xyz", "yzx"):
        path, at = store(tmp_path / f"{order}.zarr", order), {"z": 4, "y": 7, "x": 2}
        zarr.open_array(path / "0", mode="r+")[tuple(at[a] for a in order)] = 60000
        copy_to_zarr(open_volume(path), tmp_path / f"{order}-out.zarr", client=client)
        for volume in (open_volume(path), open_volume(tmp_path / f"{order}-out.zarr")):
            voxels = whole(volume)
            index = np.unravel_index(int(voxels.argmax()), voxels.shape)
            places[order, volume.name, volume.paths] = volume.grid.world([float(i) for i in index])
    assert set(places.values()) == {(15.0, 0.5, 1.75)}
    assert len(places) == 6


def test_channels_keep_their_names_colours_and_windows(tmp_path):
    window = {"min": 0, "max": 9, "start": 1, "end": 8}
    shown = [{"label": name, "color": f"{n}{n}" * 3, "window": window} for n, name in enumerate(("one", "two"))]
    volume = open_volume(store(tmp_path / "a.zarr", "czxy", omero={"channels": shown}), channel="two")
    assert (volume.grid.axes, volume.channels, volume.shown[0].colour) == ("czyx", ("two",), "111111")
    np.testing.assert_array_equal(whole(volume), voxels_in("czyx")[1:])


@pytest.mark.parametrize("of_labels", ["zyx", "yxz", "xzy"])
def test_labels_have_an_order_of_their_own(client, tmp_path, of_labels):
    path = store(tmp_path / "a.zarr", "cxyz")
    store(path / "labels" / "cells", of_labels, **{"image-label": {}})
    zarr.open_group(path / "labels").attrs["ome"] = {"version": "0.5", "labels": ["cells"]}
    assert [label.name for label in open_volume(path).labels] == ["cells"]
    copy_to_zarr(open_volume(path), tmp_path / "out.zarr", client=client)
    made = open_volume(tmp_path / "out.zarr" / "labels" / "cells")
    assert (made.grid.axes, made.grid.spacing) == ("zyx", (2.0, 0.5, 0.25))
    np.testing.assert_array_equal(whole(made), voxels_in("zyx"))


@pytest.mark.parametrize(("order", "version"), [("cxyz", "0.5"), ("cyxz", "0.4")])
def test_what_is_made_of_an_image_does_not_depend_on_its_order(client, tmp_path, order, version):
    model, made = tiny((1, 2, 2), channels=2), []
    for each in ("czyx", order):
        path, output = store(tmp_path / f"{each}.zarr", each, version), tmp_path / f"{each}-fine.zarr"
        wishes = Wishes(chunk={"z": 3, "y": 8, "x": 8}, tile={"z": 6, "y": 4, "x": 4}, pyramid="match")
        report = enhance_to_zarr(open_volume(path), output, model=model, wishes=wishes, client=client)
        assert report.output == str(output)
        assert describe_omezarr(output).axes == "czyx"
        made.append([open_volume(output, level=n) for n in range(len(describe_omezarr(output).levels))])
    assert len(made[0]) == len(made[1]) == 2
    for usual_one, other in zip(*made, strict=True):
        assert usual_one.grid == other.grid
        np.testing.assert_array_equal(whole(other), whole(usual_one))


@pytest.mark.parametrize(("version", "key"), [("0.4", "0.0.1.0"), ("0.5", "c/0/1/0/0")])
def test_a_missing_chunk_is_missed_by_whom_it_belongs_to(tmp_path, version, key):
    path = store(tmp_path / "a.zarr", "cxyz", version)
    unit = CHUNKS if version == "0.4" else SHARDS
    axis = "y" if version == "0.4" else "x"
    (path / "0" / key).unlink()
    start, n = unit[axis], SIZES[axis]
    box = tuple(slice(start, n) if a == axis else slice(0, 1) for a in "czyx")
    with pytest.raises(ImageError, match=f"chunk {key} is missing"):
        open_volume(path).read(box)
    before = tuple(slice(0, start) if a == axis else slice(0, SIZES[a]) for a in "czyx")
    np.testing.assert_array_equal(open_volume(path).read(before), voxels_in("czyx")[before])
    volume = open_volume(path, missing="empty")
    assert (volume.absent(box), volume.absent(before)) == (1, 0)
    assert not volume.read(box)[..., : unit["z"], : unit["y"], : unit["x"]].any()


def test_info_says_how_it_is_stored_and_check_warns_only(tmp_path):
    path = store(tmp_path / "a.zarr", "txyz")
    told = run("info", path).stdout
    assert "t,z,y,x = 2×6×10×15" in told
    assert "OME-Zarr 0.5, stored in the order t,x,y,z" in told
    assert '"stored_axes": "txyz"' in run("info", path, "--json").stdout
    assert [(f.severity, "stored in the order t,x,y,z" in f.problem) for f in check(path, data=True)] == [
        ("warning", True)
    ]
    assert "stored" not in run("info", store(tmp_path / "b.zarr", "tzyx")).stdout


def test_at_a_url_too(tmp_path):
    path = store(tmp_path / "a.zarr", "cyxz")
    (path / "0" / "c" / "0" / "0" / "1" / "0").unlink()
    with serve_folder(tmp_path) as (url, _):
        volume = open_volume(f"{url}/a.zarr")
        np.testing.assert_array_equal(
            volume.read((slice(0, 2), slice(0, 6), slice(0, 10), slice(0, 8))),
            whole(open_volume(store(tmp_path / "b.zarr", "czyx")))[..., :8],
        )
        with pytest.raises(ImageError, match="chunk c/0/0/1/0 is missing"):
            volume.read((slice(0, 1), slice(0, 1), slice(0, 1), slice(8, 9)))


@pytest.mark.parametrize("order", ["zyxc", "ctzyx", "zcyx", "ztyx", "yxt"])
def test_orders_that_the_specification_forbids_are_refused(tmp_path, order):
    with pytest.raises(ImageError, match=r"not valid OME-Zarr 0\.5"):
        open_volume(store(tmp_path / "a.zarr", order))


@pytest.mark.parametrize("order", ["zx", "zy", "czx", "yz"])
def test_without_y_and_x_there_is_no_plane(tmp_path, order):
    with pytest.raises(ImageError, match="allowed is a subset of t,c,z,y,x with y and x") as caught:
        open_volume(store(tmp_path / "a.zarr", order))
    assert "\n" not in str(caught.value)
