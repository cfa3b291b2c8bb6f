"""Every collected TIFF through convert, enhance and check; a landmark stays where it is in the world.

That whole files are read as recorded is for `test_cases`; here it is the middle of each, which takes a second.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from svision_dask.codec import parse_codec
from svision_dask.geometry import SPATIAL
from svision_dask.judging.checking import check
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes
from tests.models import fast
from tests.test_cases import DATA, UNNAMED, recorded
from tests.test_labels import ORIGIN, SPACING, multiscale, write, write_image

MIDDLE = {"z": 9, "y": 70, "x": 81}
"""Voxels, at most."""
EXACT = 1e-9


def tiffs() -> list[Any]:
    return [pytest.param(record, id=record["file"]) for record in recorded("volumes.json")] or [
        pytest.param(None, marks=pytest.mark.skip(f"no collected files at {DATA}; set SVISION_DATA"))
    ]


@pytest.fixture(scope="module")
def client():
    with local_client(workers=2, memory_bytes=3 * 2**30) as started:
        yield started


def placed(path: Path) -> list[tuple[dict[str, int], dict[str, float], dict[str, float]]]:
    """Shape, scale and translation of each level, by axis, as the JSON of the file says."""
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    entry = attributes.get("ome", attributes)["multiscales"][0]
    axes = [axis["name"] for axis in entry["axes"]]
    found = []
    for dataset in entry["datasets"]:
        given = {t["type"]: t[t["type"]] for t in dataset["coordinateTransformations"]}
        shape = zarr.open_array(path / dataset["path"], mode="r").shape
        found.append(tuple(dict(zip(axes, v, strict=True)) for v in (shape, given["scale"], given["translation"])))
    return found


def world_of(landmark: dict[str, float], level: Any, finest: Any) -> dict[str, float]:
    """Where a position, counted in voxels of ``finest``, is in the world, when it is looked up in another level."""
    _, scale, translation = level
    step = {axis: round(scale[axis] / finest[1][axis]) for axis in scale}
    index = {axis: (landmark[axis] + 0.5) / step[axis] - 0.5 for axis in scale}
    return {axis: translation[axis] + scale[axis] * index[axis] for axis in scale}


def middle(volume: Volume) -> tuple[Volume, tuple[slice, ...]]:
    """Cut out the middle, which begins elsewhere in the world, and say where that was."""
    grid = volume.grid
    sizes = [min(n, MIDDLE.get(axis, n)) for axis, n in zip(grid.axes, grid.shape, strict=True)]
    starts = [(n - size) // 2 for n, size in zip(grid.shape, sizes, strict=True)]
    box = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    cut = replace(grid, shape=tuple(sizes), origin=grid.world(starts))
    return Volume(voxels=volume.voxels[box], grid=cut, channels=volume.channels, name=volume.name), box


def assert_stays(volume, converted: Path, enhanced: Path) -> None:
    """The centre of one voxel of ``volume`` is at one place in both files, at all levels."""
    grid = volume.grid
    coarse = {axis: float(n // 3) for axis, n in zip(grid.axes, grid.shape, strict=True)}
    wanted = dict(zip(grid.axes, grid.world([coarse[axis] for axis in grid.axes]), strict=True))
    fine = {axis: 2 * i + 0.5 if axis in "yx" else i for axis, i in coarse.items()}
    sizes = zip(grid.axes, grid.origin, grid.spacing, grid.shape, strict=True)
    extent = {axis: abs(o) + s * n for axis, o, s, n in sizes}
    for path, landmark in ((converted, coarse), (enhanced, fine)):
        levels = placed(path)
        for level in levels:
            found = world_of(landmark, level, levels[0])
            for axis in grid.axes:
                assert abs(found[axis] - wanted[axis]) <= EXACT * extent[axis], (path, axis)


@pytest.mark.parametrize("record", tiffs())
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_tiff_is_converted_enhanced_and_valid_and_its_landmarks_stay(client, tmp_path, record, version):
    source = DATA / record["file"]
    volume, box = middle(open_volume(source, axes="zyx" if set(record["axes"]) & set(UNNAMED) else None))
    converted, enhanced = tmp_path / "converted.zarr", tmp_path / "enhanced.zarr"
    wishes = Wishes(version=version)
    copy_to_zarr(volume, converted, client=client, wishes=wishes)
    again = open_volume(converted)
    assert again.grid == volume.grid
    stored = tifffile.imread(source)
    order = [record["axes"].lower().find(a) for a in volume.grid.axes]
    expected = stored if min(order) < 0 else stored.transpose(order)
    np.testing.assert_array_equal(again.read(tuple(slice(0, n) for n in again.grid.shape)), expected[box])
    axes = "".join(axis for axis in volume.grid.axes if axis in SPATIAL)
    channels = volume.grid.shape[volume.grid.axes.index("c")] if "c" in volume.grid.axes else 1
    enhance_to_zarr(converted, enhanced, model=fast((1, 2, 2), axes, channels), client=client, wishes=wishes)
    for path in (converted, enhanced):
        assert [str(finding) for finding in check(path, data=True)] == []
    assert_stays(volume, converted, enhanced)


@pytest.mark.parametrize("kind", ["isotropic", "xy", "none"])
def test_a_landmark_stays_with_an_origin_and_odd_sizes(client, tmp_path, kind):
    voxels = np.random.default_rng(5).integers(0, 999, (7, 301, 283)).astype("u2")
    entry = multiscale("zyx", [1 / 3, 0.1, 0.1], [-271.828, 1e4 / 7, 3.1e-3])
    write(tmp_path / "in.zarr", "0.5", voxels, entry)
    volume = open_volume(tmp_path / "in.zarr")
    converted, enhanced, wishes = tmp_path / "c.zarr", tmp_path / "e.zarr", Wishes(pyramid=kind)
    copy_to_zarr(volume, converted, client=client, wishes=wishes)
    enhance_to_zarr(converted, enhanced, model=fast((1, 2, 2)), client=client, wishes=wishes)
    assert len(placed(enhanced)) == (1 if kind == "none" else 3)
    for path in (converted, enhanced):
        assert [str(finding) for finding in check(path)] == []
    assert_stays(volume, converted, enhanced)


# ---- readers that share no code with us


def outputs(client, folder: Path) -> list[tuple[Path, np.ndarray]]:
    """One of every kind of output: both versions, all codecs, with labels."""
    found = []
    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    labels = np.random.default_rng(3).integers(0, 9, (9, 21, 30)).astype("u2")
    volume = open_volume(write_image(folder / "in.zarr", cells=(labels, entry)))
    expected = volume.read(tuple(slice(0, n) for n in volume.grid.shape))
    for version in ("0.4", "0.5"):
        for codec in ("zstd", "blosc", "gzip", "none"):
            path = folder / f"{version}-{codec}.zarr"
            wishes = Wishes(version=version, codec=parse_codec(codec), chunk={"z": 4, "y": 8, "x": 8})
            copy_to_zarr(volume, path, client=client, wishes=wishes)
            found += [(path / "0", expected), (path / "labels" / "cells" / "0", labels)]
    return found


def test_tensorstore_reads_every_kind_of_output(client, tmp_path):
    tensorstore = pytest.importorskip("tensorstore", reason="the reader tensorstore is not installed")
    for path, expected in outputs(client, tmp_path):
        driver = "zarr3" if "0.5-" in str(path) else "zarr"
        store = tensorstore.open({"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}).result()
        np.testing.assert_array_equal(store.read().result(), expected)


ZARRITA = """
import * as zarr from "zarrita";
import { FileSystemStore } from "@zarrita/storage";
const files = new FileSystemStore(process.argv[2]);
const open = process.argv[3] === "0.4" ? zarr.open.v2 : zarr.open.v3;
const group = await open(zarr.root(files), { kind: "group" });
const ome = group.attrs.ome ?? group.attrs;
const array = await open(group.resolve(ome.multiscales[0].datasets[0].path), { kind: "array" });
const { data, shape } = await zarr.get(array);
let total = 0;
for (const value of data) total += Number(value);
console.log(JSON.stringify({ shape, total, axes: ome.multiscales[0].axes.map((axis) => axis.name).join("") }));
"""


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_zarrita_reads_an_output_in_node(client, tmp_path, version):
    modules = Path(os.environ.get("SVISION_NODE", "absent"), "node_modules", "zarrita")
    if not modules.is_dir() or shutil.which("node") is None:
        pytest.skip("set SVISION_NODE to a folder in which npm has installed zarrita")
    volume = open_volume(write_image(tmp_path / "in.zarr"))
    copy_to_zarr(volume, tmp_path / "out.zarr", client=client, wishes=Wishes(version=version))
    (tmp_path / "node_modules").symlink_to(modules.parent)
    script = tmp_path / "read.mjs"
    script.write_text(ZARRITA)
    ran = subprocess.run(
        ["node", script, tmp_path / "out.zarr", version], capture_output=True, text=True, timeout=120, check=True
    )
    voxels = volume.read(tuple(slice(0, n) for n in volume.grid.shape))
    assert json.loads(ran.stdout) == {"shape": list(voxels.shape), "total": int(voxels.sum()), "axes": "czyx"}
