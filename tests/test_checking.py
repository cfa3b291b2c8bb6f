from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from svision_dask.errors import ImageError
from svision_dask.judging.checking import check
from svision_dask.omezarr.conformance import has_schemas, kinds_of, metadata_problems
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.pipeline import copy_to_zarr
from svision_dask.wishes import Wishes
from tests.commands import run
from tests.test_labels import ORIGIN, SPACING, label_voxels, multiscale, write_image
from tests.test_selection import write_plate

VERSIONS = ["0.4", "0.5"]
STRICT = "only what SHOULD be there is missing"
REASONS = {
    "valid/mismatch_axes_units.json": "three axes and a scale of two, which a schema cannot see",
    "plate/minimal_no_acquisitions": "the well A/1 is in row 1 and column A",
    "plate/minimal_acquisitions": "the well A/1 is in row 1 and column A",
    "plate/non_alphanumeric_row": "the well A/A1 is in row A1 and column A",
    "plate/strict_no_acquisitions": "the well A/1 is in row 1 and column A",
    "plate/strict_acquisitions": "the well A/1 is in row 1 and column A",
    "image-label/no_version": STRICT,
    "image-label/no_colors": STRICT,
    "plate/missing_version": STRICT,
    "plate/missing_name": STRICT,
    "plate/missing_acquisition_name": STRICT,
    "plate/missing_acquisition_maximumfieldcount": STRICT,
}
"""Official cases that are judged otherwise than they say, and why."""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_official_attributes_are_judged_as_they_say_or_for_a_listed_reason(data_dir, version):
    judged = 0
    for suite in sorted((data_dir / "conformance" / f"ngff_spec_{version}" / "tests").glob("*_suite.json")):
        for test in json.loads(suite.read_text())["tests"]:
            attributes, judged = test["data"], judged + 1
            problems = list(metadata_problems(version, attributes))
            accepted = bool(kinds_of(version, attributes)) and not problems
            if accepted != test["valid"]:
                assert test["formerly"] in REASONS, (suite.name, test["formerly"], problems)
                assert suite.name.startswith("strict") or REASONS[test["formerly"]] != STRICT
    assert judged > 75


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.fixture(scope="module", params=VERSIONS)
def ours(request, client, tmp_path_factory) -> Path:
    """An output of ours with channels, labels and three levels."""
    folder = tmp_path_factory.mktemp("ours")
    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    volume = open_volume(write_image(folder / "in.zarr", cells=(label_voxels(), entry)))
    wishes = Wishes(version=request.param, chunk={"z": 4, "y": 8, "x": 8}, pyramid="match")
    levels = tuple((1.0, 2.0, 0.5 * 2**n, 0.5 * 2**n) for n in range(3))
    from dataclasses import replace

    copy_to_zarr(replace(volume, levels=levels), folder / "out.zarr", client=client, wishes=wishes)
    return folder / "out.zarr"


@pytest.fixture
def copied(ours, tmp_path) -> Path:
    return Path(shutil.copytree(ours, tmp_path / "copy.zarr"))


def findings(path: Path, *, data: bool = False, severity: str | None = None) -> list[str]:
    return [str(f) for f in check(path, data=data) if severity in (None, f.severity)]


def attributes_file(path: Path) -> Path:
    return path / "zarr.json" if (path / "zarr.json").exists() else path / ".zattrs"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the OME attributes of a group."""
    file = attributes_file(path)
    content = json.loads(file.read_text())
    change(content["attributes"]["ome"] if "attributes" in content else content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("data", [False, True])
def test_nothing_is_found_in_an_output_of_ours(ours, data):
    assert has_schemas()
    assert findings(ours, data=data) == []
    assert findings(ours / "labels" / "cells", data=data) == []


def drop_level(path: Path) -> None:
    shutil.rmtree(path / "2")


def constant_level(path: Path) -> None:
    zarr.open_array(path / "2", mode="r+")[...] = 7


def other_dtype(path: Path) -> None:
    shape = zarr.open_array(path / "2", mode="r").shape
    shutil.rmtree(path / "2")
    group = zarr.open_group(path, mode="r+")
    names = {"dimension_names": list("czyx")} if group.metadata.zarr_format == 3 else {}
    group.create_array("2", data=np.full(shape, 500, "f4"), chunks=(1, 4, 8, 8), **names)


def lose_chunk(path: Path) -> None:
    next(p for p in sorted((path / "1").rglob("*")) if p.is_file() and not p.name.startswith((".", "zarr"))).unlink()


def tear_last(path: Path) -> None:
    last = max((p for p in (path / "1").rglob("*") if p.is_file() and not p.name.startswith((".", "zarr"))), key=str)
    last.write_bytes(last.read_bytes()[:-9])


def multiscales(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(path, lambda ome: change(ome["multiscales"][0]))


DAMAGES: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "a level is gone": (drop_level, "there is no zarr", False),
    "a level of nothing": (constant_level, "all of its voxels are 7", True),
    "a level of another dtype": (other_dtype, "voxels are float32, those of the finest level uint16", False),
    "a lost chunk": (lose_chunk, "1 chunks are not there", False),
    "a torn chunk": (tear_last, "cannot be read", False),
    "no name of an axis": (lambda p: multiscales(p, lambda m: m["axes"][1].pop("name")), "name", False),
    "axes in another order": (lambda p: multiscales(p, lambda m: m["axes"].reverse()), "axes", False),
    "a level elsewhere": (
        lambda p: multiscales(
            p, lambda m: m["datasets"][1]["coordinateTransformations"][1].update(translation=[0.0, 7.0, 90.0, 1.5])
        ),
        "along y it covers another place",
        False,
    ),
    "a scale of zero": (
        lambda p: multiscales(p, lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[1, 0, 1, 1])),
        "scales = [1.0, 0.0, 1.0, 1.0]",
        False,
    ),
    "levels in another order": (lambda p: multiscales(p, lambda m: m["datasets"].reverse()), "multiscales", False),
    "one channel too few": (
        lambda p: edit(p, lambda o: o["omero"]["channels"].pop()),
        "settings for 1 channels",
        False,
    ),
    "a window without an end": (
        lambda p: edit(p, lambda o: o["omero"]["channels"][0]["window"].pop("end")),
        "window",
        False,
    ),
    "a window upside down": (
        lambda p: edit(p, lambda o: o["omero"]["channels"][0]["window"].update(start=901)),
        "must be numbers, in order",
        False,
    ),
    "labels of nobody": (lambda p: edit(p / "labels", lambda o: o["labels"].append("x")), "labels/x", False),
    "labels outside": (lambda p: edit(p / "labels", lambda o: o["labels"].append("../../x")), "must lead down", False),
    "labels that are damaged": (lambda p: attributes_file(p / "labels" / "cells").write_text("{"), "cells", False),
    "broken JSON": (lambda p: attributes_file(p / "labels").write_text("{"), "cannot be read", False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_found_in_one_line(copied, damage):
    make, message, data = DAMAGES[damage]
    make(copied)
    errors = findings(copied, data=data, severity="error")
    assert any(message in error for error in errors), errors
    assert not any("\n" in error for error in errors)


def test_what_only_should_be_otherwise_is_a_warning(copied):
    def change(entry: dict[str, Any]) -> None:
        entry["axes"][1]["unit"] = "micron"
        first, second = (dataset["coordinateTransformations"] for dataset in entry["datasets"][:2])
        second[1] = first[1]  # as if voxels were points

    multiscales(copied, change)
    assert findings(copied, severity="error") == []
    (unit, *places) = findings(copied, severity="warning")
    assert "axis z has the unit 'micron'" in unit
    assert [place.split(": ")[1][:7] for place in places] == ["along y", "along x"]


def two_multiscales(path: Path) -> None:
    edit(path, lambda ome: ome["multiscales"].append({**ome["multiscales"][0], "name": "other"}))


def rename_axes(path: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        for axis, name in zip(entry["axes"][-3:], ("depth", "height", "width"), strict=True):
            axis["name"] = name

    multiscales(path, change)


def complex_voxels(path: Path) -> None:
    shape = zarr.open_array(path / "0", mode="r").shape
    shutil.rmtree(path / "0")
    zarr.open_group(path, mode="r+").create_array("0", data=np.ones(shape, "c8"), chunks=(8,) * len(shape))


UNREAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "two multiscales": (two_multiscales, "holds 2"),
    "axes of other names": (rename_axes, "depth (space)"),
    "complex voxels": (complex_voxels, "voxels are complex64"),
}


@pytest.mark.parametrize("place", [".", "labels/cells"])
@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_valid_and_not_read_is_a_warning(copied, kind, place):
    make, message = UNREAD[kind]
    make(copied / place)
    (found,) = findings(copied)
    assert found.startswith(f"warning  {copied / place}: its metadata are valid, but not read by svision-dask: ")
    assert message in found
    assert run("check", copied).exit_code == 0
    edit(copied / place, lambda ome: ome["multiscales"][0].pop("datasets"))
    assert "valid, but" not in " ".join(findings(copied))
    assert run("check", copied).exit_code == 1


@pytest.mark.parametrize("stated", ["0.3", "0.6.dev1"])
def test_other_versions_are_not_judged_by_those_that_are_known(copied, stated):
    is_new = (copied / "zarr.json").exists()
    edit(copied, lambda ome: (ome if is_new else ome["multiscales"][0]).update(version=stated))
    assert findings(copied) == [f"error  {copied}: OME-Zarr {stated}; what can be judged is 0.4 and 0.5"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_of_a_plate_is_checked(tmp_path, version):
    plate = write_plate(tmp_path / "plate.zarr", version)
    assert findings(plate, data=True, severity="error") == []
    edit(plate / "B" / "2" / "0", lambda ome: ome["multiscales"][0]["axes"][0].pop("name"))
    edit(plate / "A" / "1", lambda ome: ome["well"]["images"].append({"path": "0"}))
    errors = " ".join(findings(plate, severity="error"))
    assert "B/2/0" in errors
    assert "A/1: well" in errors


def test_what_is_no_omezarr_is_an_error(tmp_path):
    zarr.create_group(tmp_path / "bare.zarr")
    assert "is no OME-Zarr" in findings(tmp_path / "bare.zarr")[0]
    with pytest.raises(ImageError, match="does not exist"):
        findings(tmp_path / "absent.zarr")


def test_the_command_line_exits_with_1_for_errors_and_0_for_warnings(copied):
    whole = run("check", copied, "--data")
    assert (whole.exit_code, whole.stdout) == (0, "")
    assert whole.stderr.endswith("valid, 0 warnings\n")
    assert "--data reads all and compares their means" in run("check", copied).stderr
    edit(copied, lambda ome: ome["omero"]["channels"].pop())
    outcome = run("check", copied)
    assert outcome.exit_code == 1
    assert "settings for 1 channels" in outcome.stdout
    assert "1 errors" in outcome.error
    assert json.loads(run("check", copied, "--json").stdout)[0]["severity"] == "error"


def test_the_collected_omezarrs_are_valid(data_dir):
    for case in json.loads((data_dir / "cases.json").read_text()):
        if case["expect"] == "read":
            assert findings(data_dir / case["path"], data=True, severity="error") == [], case["name"]
