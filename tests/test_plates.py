from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr
from ome_zarr_models.exceptions import ValidationWarning

from svision_dask.errors import ImageError, OutputError
from svision_dask.judging.checking import check
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.enhancement import enhance
from svision_dask.running.ledger import claim
from svision_dask.running.plates import enhance_fields, fields_of
from svision_dask.wishes import Wishes
from tests.commands import run, textured
from tests.models import fast
from tests.test_selection import write_field, write_group

FIELDS = ("A/1/0", "A/1/1", "B/2/0")
PLATE = {
    "name": "screen",
    "field_count": 2,
    "acquisitions": [{"id": 1, "name": "first"}],
    "rows": [{"name": "A"}, {"name": "B"}],
    "columns": [{"name": "1"}, {"name": "2"}],
    "wells": [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}, {"path": "B/2", "rowIndex": 1, "columnIndex": 1}],
}


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


def voxels_of_field(number: int) -> np.ndarray:
    return textured((4, 20, 22 + 2 * (number == 2)), seed=number)  # the last field is larger


def write_layout(path: Path, version: str) -> Path:
    """A plate without its fields."""
    write_group(path, version, plate={**PLATE, **({"version": "0.4"} if version == "0.4" else {})})
    for well, images in (("A/1", ("0", "1")), ("B/2", ("0",))):
        write_group(path / well[0], version)
        listed = {"images": [{"path": name, "acquisition": 1} for name in images]}
        write_group(path / well, version, well={**listed, **({"version": "0.4"} if version == "0.4" else {})})
    return path


def write(path: Path, version: str) -> Path:
    write_layout(path, version)
    for number, field in enumerate(FIELDS):
        write_field(path / field, voxels_of_field(number), version)
    return path


def ome(path: Path) -> dict:
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    return attributes.get("ome", attributes)


def whole(path: Path) -> np.ndarray:
    volume = open_volume(path)
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.mark.parametrize(("version", "written"), [("0.4", "0.4"), ("0.5", "0.5"), ("0.4", "0.5")])
def test_every_field_is_enhanced_and_the_plate_is_one_again(client, tmp_path, version, written):
    source, output, model = write(tmp_path / "in.zarr", version), tmp_path / "out.zarr", fast((1, 2, 2))
    report = enhance_fields(
        source, str(output), model=model, client=client, wishes=Wishes(version=written, precision="float32")
    )
    assert report.made == FIELDS
    for field in FIELDS:
        alone = enhance(open_volume(source / field), model).voxels.compute(scheduler="synchronous")
        np.testing.assert_allclose(whole(output / field), alone, atol=1)  # tiles differ, and so does rounding
    plate = ome(output)["plate"]
    assert {key: value for key, value in plate.items() if key != "version"} == PLATE
    assert ome(output / "A" / "1")["well"]["images"][1] == {"path": "1", "acquisition": 1}
    assert [str(finding) for finding in check(output, data=True)] == []
    models = ome_zarr_models.v04 if written == "0.4" else ome_zarr_models.v05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidationWarning)  # of a version inside the plate, which 0.5 does not ask for
        models.HCS.from_zarr(zarr.open_group(output, mode="r"))
    assert fields_of(output).images == FIELDS
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_plate_that_was_stopped_goes_on_with_the_fields_that_are_missing(client, tmp_path):
    source, output, model = write(tmp_path / "in.zarr", "0.5"), tmp_path / "out.zarr", fast((1, 2, 2))

    def stop(number: int, count: int, field: str) -> None:
        assert count == 3
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance_fields(source, str(output), model=model, client=client, on_field=stop)
    assert fields_of(output) is None
    with pytest.raises(ImageError, match="unfinished output"):
        open_volume(output)
    with pytest.raises(OutputError, match="unfinished, and its model was"):
        enhance_fields(source, str(output), model=fast((1, 2, 2), back_projections=2), client=client)
    for other in ({"dtype": "float32"}, {"wishes": Wishes(version="0.4")}, {"wishes": Wishes(chunk={"z": 2})}):
        with pytest.raises(OutputError, match=r"unfinished, and its (dtype|version|chunk) was"):
            enhance_fields(source, str(output), model=model, client=client, **other)
    with claim(output), pytest.raises(OutputError, match="another run is making it"):
        enhance_fields(source, str(output), model=model, client=client, overwrite=True)
    report = enhance_fields(source, str(output), model=model, client=client)
    assert (report.finished, report.made) == (FIELDS[:1], FIELDS[1:])
    with pytest.raises(OutputError, match="exists, finished"):
        enhance_fields(source, str(output), model=model, client=client)
    assert enhance_fields(source, str(output), model=model, client=client, overwrite=True).made == FIELDS


def test_a_finished_field_whose_input_was_changed_since_is_not_gone_on_from(client, tmp_path):
    source, output, model = write(tmp_path / "in.zarr", "0.5") / "A" / "1", tmp_path / "out.zarr", fast((1, 2, 2))

    def stop(number: int, count: int, field: str) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance_fields(source, str(output), model=model, client=client, on_field=stop)
    shutil.rmtree(source / "0")
    write_field(source / "0", voxels_of_field(7), "0.5")
    with pytest.raises(OutputError, match="its input was changed since"):
        enhance_fields(source, str(output), model=model, client=client)


def test_a_damaged_field_is_found_and_made_anew(client, tmp_path):
    source, output, model = write(tmp_path / "in.zarr", "0.5"), tmp_path / "out.zarr", fast((1, 2, 2))
    enhance_fields(source, str(output), model=model, client=client)
    assert run("verify", output).stdout.endswith("regions, all as they were written\n")
    good = whole(output / FIELDS[1])
    chunk = next(file for file in sorted((output / FIELDS[1] / "0" / "c").rglob("*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    outcome = run("verify", output, "--reopen")
    assert outcome.exit_code == 1
    assert f"{output / FIELDS[1]}: level 0" in outcome.stdout
    report = enhance_fields(source, str(output), model=model, client=client)
    assert report.made == FIELDS[1:2]
    np.testing.assert_array_equal(whole(output / FIELDS[1]), good)
    assert run("verify", output).exit_code == 0


def test_what_is_in_the_way_is_never_replaced(client, tmp_path):
    source, model = write(tmp_path / "in.zarr", "0.5"), fast((1, 2, 2))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for output in (tmp_path / "photos", source, source / "out.zarr"):
        for overwrite in (False, True):
            with pytest.raises(OutputError):
                enhance_fields(source, str(output), model=model, client=client, overwrite=overwrite)
    assert (tmp_path / "photos" / "cat.jpg").exists()
    assert fields_of(source).images == FIELDS


@pytest.mark.parametrize(("well", "output"), [("", ""), ("A/1", ""), ("", "A/out.zarr")])
def test_an_input_that_is_an_output_itself_is_never_replaced_by_its_own(tmp_path, well, output):
    source, begun = write(tmp_path / "in.zarr", "0.5"), {"fields_of": "in", "model": "0" * 64}
    zarr.create_group(tmp_path / "in.zarr" / "A" / "out.zarr", attributes={"svision_dask": begun})
    zarr.open_group(source).attrs["svision_dask"] = {**begun, "state": "complete"}
    with pytest.raises(OutputError, match=r"the output (is|contains|lies inside) the input"):
        enhance_fields(source / well, str(source / output), model=fast((1, 2, 2)), overwrite=True)
    assert fields_of(source).images == FIELDS


def test_a_field_of_another_type_is_not_clipped_to_that_of_the_first(client, tmp_path):
    source = write(tmp_path / "in.zarr", "0.5")
    shutil.rmtree(source / FIELDS[1])
    write_field(source / FIELDS[1], np.full((4, 20, 22), 70000.0, "f4"), "0.5")
    report = enhance_fields(source / "A" / "1", str(tmp_path / "out.zarr"), model=fast((1, 2, 2)), client=client)
    assert [open_volume(tmp_path / "out.zarr" / field).dtype for field in report.made] == ["u2", "f4"]
    assert whole(tmp_path / "out.zarr" / "1").max() > 65535


def test_an_image_is_no_plate(client, tmp_path):
    source = write(tmp_path / "in.zarr", "0.5")
    with pytest.raises(ImageError, match="is no plate and no well"):
        enhance_fields(source / "A" / "1" / "0", str(tmp_path / "out.zarr"), model=fast((1, 2, 2)), client=client)


@pytest.mark.parametrize("damage", ["absent", "damaged", "empty"])
def test_a_field_that_cannot_be_read_is_told_before_any_is_made(client, tmp_path, damage):
    source, output = write(tmp_path / "in.zarr", "0.5"), tmp_path / "out.zarr"
    last = source / FIELDS[-1]
    if damage == "absent":
        shutil.rmtree(last)
    elif damage == "damaged":
        (last / "zarr.json").write_text("{")
    else:
        shutil.rmtree(last / "0")
    with pytest.raises(ImageError, match=str(last)):
        enhance_fields(source, str(output), model=fast((1, 2, 2)), client=client)
    learn = ("--steps", 3, "--factor", "z=1,y=2,x=2", "--workers", 1)
    outcome = run("enhance", source, output, *learn)
    assert (outcome.exit_code, str(last) in outcome.error) == (1, True)
    assert "self-check" not in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


def test_the_first_field_is_planned_and_trained_on_for_all(tmp_path):
    source, model = write(tmp_path / "in.zarr", "0.5"), tmp_path / "model.safetensors"
    learn = ("--factor", "z=1,y=2,x=2", "--preset", "fast")
    here = ("--workers", 1, "--memory", "2GB")
    planned = run("plan", source, tmp_path / "out.zarr", *learn, *here)
    dry = run("enhance", source, tmp_path / "out.zarr", *learn, *here, "--dry-run")
    assert (planned.exit_code, planned.stdout) == (0, dry.stdout)
    assert f"field    {source / FIELDS[0]}, which stands for all" in planned.stderr
    trained = run("train", source, "-o", model, *learn, "--steps", 3)
    assert trained.exit_code == 0, trained.stderr
    assert f"field    {source / FIELDS[0]}, which stands for all" in trained.stderr
    again = run("train", source, "-o", tmp_path / "same.safetensors", *learn, "--steps", 3, "--series", FIELDS[0])
    assert (again.exit_code, (tmp_path / "same.safetensors").read_bytes()) == (0, model.read_bytes())
    assert run("plan", source, *learn, "--series", FIELDS[2], "--json").stderr == ""


def test_the_command_line_trains_once_for_all_fields_of_a_well(tmp_path):
    source = write(tmp_path / "in.zarr", "0.4") / "A" / "1"
    learn = ("--steps", 3, "--factor", "z=1,y=2,x=2", "--workers", 1, "--json-log", tmp_path / "log.jsonl")
    dry = run("enhance", source, tmp_path / "out.zarr", *learn, "--dry-run")
    assert (dry.exit_code, "spacing" in dry.stdout) == (0, True)
    assert not (tmp_path / "out.zarr").exists()
    outcome = run("enhance", source, tmp_path / "out.zarr", *learn)
    assert outcome.exit_code == 0, outcome.stderr
    assert "fields   2 made, 0 were there" in outcome.stderr
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    said = [(e["what"], e["done"]) for e in events if e["event"] == "progress" and e["what"] in ("fields", "write")]
    assert said == [("fields", 0), ("write", 1), ("write", 1)]  # a region each
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert whole(tmp_path / "out.zarr" / "1").shape == (4, 40, 44)
    kept = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())["attributes"]["svision_dask"]
    assert kept["state"] == "complete"
    again = run("enhance", source, tmp_path / "out.zarr", *learn)
    assert again.exit_code == 1
    assert "exists, finished" in again.error
