"""Versions of OME-Zarr before 0.4 and after 0.5, and layouts of zarr that other programs choose."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from svision_dask.errors import ImageError
from svision_dask.judging.checking import check
from svision_dask.opening.formats import open_volume
from tests.commands import run

VOXELS = np.arange(2 * 3 * 4 * 5 * 6, dtype="u2").reshape(2, 3, 4, 5, 6)


def write_old(path: Path, version: str, voxels: np.ndarray, axes: list[str] | None) -> Path:
    datasets = [{"path": "0"}, {"path": "1"}]
    entry = {"version": version, "name": "old", "datasets": datasets, **({"axes": axes} if axes else {})}
    group = zarr.create_group(path, zarr_format=2, attributes={"multiscales": [entry]})
    group.create_array("0", data=voxels)
    group.create_array("1", data=voxels[..., ::2, ::2])
    return path


def whole(volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_before_0_3_images_have_all_five_axes(tmp_path, version):
    volume = open_volume(write_old(tmp_path / "old.zarr", version, VOXELS, None))
    assert (volume.grid.axes, volume.grid.spacing, volume.grid.units) == ("tczyx", (1.0,) * 5, (None,) * 5)
    assert f"format   OME-Zarr {version}\n" in run("info", tmp_path / "old.zarr").stdout
    np.testing.assert_array_equal(whole(volume), VOXELS)
    with pytest.raises(ImageError, match="an array of shape"):
        open_volume(write_old(tmp_path / "flat.zarr", version, VOXELS[0], None))


def test_in_0_3_axes_are_names(tmp_path):
    volume = open_volume(write_old(tmp_path / "old.zarr", "0.3", VOXELS[0], ["c", "z", "y", "x"]))
    assert volume.grid.axes == "czyx"
    np.testing.assert_array_equal(whole(volume), VOXELS[0])


def test_coarser_levels_that_do_not_say_where_they_are_are_not_read(tmp_path):
    path = write_old(tmp_path / "old.zarr", "0.3", VOXELS[0], ["c", "z", "y", "x"])
    with pytest.raises(ImageError, match="has no level 1: it has 1"):
        open_volume(path, level=1)


@pytest.mark.parametrize("axes", [["q", "z", "y", "x"], ["x", "y", "z", "c"], [{"name": "y"}, {"name": "x"}], "czyx"])
def test_other_axes_of_0_3_are_refused(tmp_path, axes):
    with pytest.raises(ImageError):
        open_volume(write_old(tmp_path / "old.zarr", "0.3", VOXELS[0], axes))


def test_transformations_of_0_6_are_refused_and_never_flattened(tmp_path):
    systems = [{"name": "world", "axes": [{"name": a, "type": "space"} for a in "yx"]}]
    turned = {"type": "affine", "affine": [[0, 1, 0], [1, 0, 0]], "input": "0", "output": "world"}
    entry: dict[str, Any] = {"coordinateSystems": systems, "datasets": [{"path": "0"}]}
    entry["datasets"][0]["coordinateTransformations"] = [turned]
    for version in ("0.6", "0.6.dev3", "0.6rc0"):
        path = tmp_path / f"{version}.zarr"
        attributes = {"ome": {"version": version, "multiscales": [entry]}}
        zarr.create_group(path, zarr_format=3, attributes=attributes).create_array("0", data=VOXELS[0, 0, 0])
        with pytest.raises(ImageError, match=rf"OME-Zarr '{version}' in zarr v3; allowed are"):
            open_volume(path)


def attributes_of_main(data_dir: Path) -> list[dict[str, Any]]:
    """All attributes in the tests and examples of the specification's main branch; some examples are no JSON."""
    found = []
    for file in sorted((data_dir / "conformance" / "ngff_spec_main").rglob("*.json")):
        with contextlib.suppress(json.JSONDecodeError):
            content = json.loads(file.read_text())
            tests = content.get("tests", [{"data": content}])
            found += [test["data"].get("attributes", test["data"]) for test in tests if isinstance(test["data"], dict)]
    return found


def test_the_version_in_the_making_is_refused_whatever_it_says(data_dir, tmp_path):
    suite = attributes_of_main(data_dir)
    assert len(suite) > 250
    for number, attributes in enumerate(suite):
        path = tmp_path / str(number)
        zarr.create_group(path, zarr_format=3, attributes=attributes)
        with pytest.raises(ImageError) as caught:
            open_volume(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert "there is no zarr" not in message  # metadata are to blame, not arrays that are not there
        assert [finding.severity for finding in check(path)] == ["error"]


def test_a_transformation_that_is_no_scale_is_refused_in_0_5(tmp_path):
    transformations = [{"type": "rotation", "rotation": [0, 1, 1, 0]}]
    entry = {
        "axes": [{"name": a, "type": "space"} for a in "yx"],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("0", data=VOXELS[0, 0, 0], dimension_names=["y", "x"])
    group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    with pytest.raises(ImageError, match=r"not valid OME-Zarr 0\.5"):
        open_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("chunks", [(2, 3), (64, 64), (5, 6)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_flat_and_nested_keys_and_chunks_larger_than_the_array_are_read(tmp_path, separator, chunks, order):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    encoding = {"name": "v2", "separator": separator}
    voxels = VOXELS[0, 0, 0].astype(">u2")
    array = group.create_array(
        "007", shape=voxels.shape, dtype=">u2", chunks=chunks, chunk_key_encoding=encoding, order=order
    )
    array[...] = voxels
    scale = {"type": "scale", "scale": [2, 3]}
    entry = {
        "version": "0.4",
        "axes": [{"name": "Y"}, {"name": "X"}],
        "datasets": [{"path": "007", "coordinateTransformations": [scale]}],
    }
    group.attrs["multiscales"] = [entry]
    assert json.loads((tmp_path / "a.zarr" / "007" / ".zarray").read_text())["dimension_separator"] == separator
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.grid.axes, volume.dtype, volume.grid.spacing) == ("yx", np.dtype("u2"), (2, 3))
    np.testing.assert_array_equal(whole(volume), VOXELS[0, 0, 0])
