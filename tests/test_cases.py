"""Every file that was collected reads as it was recorded independently, or is refused as recorded; one test each."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svision_dask.errors import ImageError
from svision_dask.geometry import SPATIAL
from svision_dask.opening.formats import open_volume

DATA = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
UNNAMED = "QI"
"""Letters that tifffile gives to axes of which the file does not say what they are."""
MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, None: float("nan")}
INVENTED_Z = ("xyz_nuclear_envelope_drosophila.tif", "xyz_8bit__mitotic_plate_badZcalibrated.tif")
"""Their z spacing is known to be wrong, so none is recorded; the file states one, and that is what is read."""


def recorded(name: str) -> list[dict[str, Any]]:
    file = DATA / name
    return json.loads(file.read_text()) if file.is_file() else []


def case_levels() -> list[Any]:
    found = [(case, level) for case in recorded("cases.json") for level in case.get("reference", [])]
    return [pytest.param(c, r, id=f"{c['name']}-{r['group']}-{r['path']}") for c, r in found] or [
        pytest.param(None, None, marks=pytest.mark.skip(f"no collected files at {DATA}; set SVISION_DATA"))
    ]


def volumes() -> list[Any]:
    return [pytest.param(v, id=v["file"]) for v in recorded("volumes.json")] or [
        pytest.param(None, marks=pytest.mark.skip(f"no collected files at {DATA}; set SVISION_DATA"))
    ]


@pytest.mark.parametrize(("case", "reference"), case_levels())
def test_a_level_of_a_collected_omezarr_reads_as_recorded(case, reference):
    series = None if reference["group"] == "." else reference["group"]
    volume = open_volume(DATA / case["path"], level=reference["level"], series=series)
    grid = volume.grid
    transforms = {t["type"]: tuple(t[t["type"]]) for t in reference["transforms"]}
    assert (grid.axes, grid.units) == (
        "".join(a["name"] for a in reference["axes"]),
        tuple(a.get("unit") for a in reference["axes"]),
    )
    assert (grid.shape, volume.dtype.name) == (tuple(reference["shape"]), reference["dtype"])
    assert (grid.spacing, grid.origin) == (transforms["scale"], transforms.get("translation", (0.0,) * len(grid.axes)))
    if "sha256_c_order_le" in reference:
        voxels = volume.read(tuple(slice(0, n) for n in grid.shape))
        little = np.ascontiguousarray(voxels.astype(voxels.dtype.newbyteorder("<"), copy=False))
        assert hashlib.sha256(little.tobytes()).hexdigest() == reference["sha256_c_order_le"]
        assert (voxels.min(), voxels.max()) == (reference["min"], reference["max"])
        assert voxels.mean(dtype=np.float64) == pytest.approx(reference["mean"], rel=1e-9)


@pytest.mark.parametrize("record", volumes())
def test_a_collected_tiff_reads_as_recorded_or_asks_for_its_axes(record):
    path, said = DATA / record["file"], record["axes"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    unnamed = set(said) & set(UNNAMED)
    if unnamed:
        with pytest.raises(ImageError, match="the file does not say what each axis is"):
            open_volume(path)
    volume = open_volume(path, axes="zyx" if unnamed else None)
    axes = "zyx" if unnamed else said.lower()
    shape = dict(zip(axes, record["shape"], strict=True))
    assert dict(zip(volume.grid.axes, volume.grid.shape, strict=True)) == shape
    assert volume.dtype.name == record["dtype"]
    voxels = volume.read(tuple(slice(0, n) for n in volume.grid.shape))
    assert (voxels.min(), voxels.max()) == (record["min"], record["max"])
    assert np.percentile(voxels, 50) == pytest.approx(record["p50"], abs=1e-2)
    if not unnamed and record["voxel_um_zyx"] is not None:
        expected = dict(zip(SPATIAL, record["voxel_um_zyx"], strict=True))
        for axis, spacing, unit in zip(volume.grid.axes, volume.grid.spacing, volume.grid.units, strict=True):
            if axis in SPATIAL and expected[axis] is not None:
                assert spacing * MICROMETRES[unit] == pytest.approx(expected[axis], rel=2e-3)
            elif axis in SPATIAL:
                assert path.name in INVENTED_Z
