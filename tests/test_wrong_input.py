"""Every wrong input ends in one clear line and the right exit code, and leaves nothing behind that looks finished."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from svision_dask.errors import PlanError
from svision_dask.omezarr.read import is_omezarr
from svision_dask.opening.formats import open_volume
from svision_dask.running.pipeline import plan_volume
from svision_dask.wishes import Machine
from tests.commands import PROGRAM, Outcome, run, textured, tree, write_tiff
from tests.models import fast, tiny

pytestmark = pytest.mark.faults

ADVICE = re.compile(r"\b(Use|Give|give|Choose|Leave|leave|Make|Name|Train|Fill|See|Remove|Convert|convert)\b")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Inputs of every kind; the tests run beside them."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiff(folder / "good.ome.tif", textured((12, 24, 26)))
    write_tiff(folder / "plane.ome.tif", textured((24, 26)), "YX")
    write_tiff(folder / "other.ome.tif", textured((12, 24, 28)))
    write_tiff(folder / "two.ome.tif", textured((2, 12, 24, 26)), "CZYX")
    write_tiff(folder / "unknown.tif", textured((12, 24, 26)), None)
    write_tiff(folder / "zero.ome.tif", np.zeros((12, 24, 26), np.uint16))
    write_tiff(folder / "constant.ome.tif", np.full((12, 24, 26), 7, np.uint16))
    broken = textured((12, 24, 26), "float32")
    broken[5, 6, 7] = np.nan
    write_tiff(folder / "nan.ome.tif", broken)
    (folder / "text.tif").write_text("not an image")
    (folder / "empty.tif").touch()
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").write_bytes(b"\xff\xd8\xff")
    fast((2, 2, 2)).save(folder / "good.safetensors")
    tiny((2, 2, 2), channels=2).save(folder / "two.safetensors")
    content = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-1])
    (folder / "text.safetensors").write_text("not a model")
    return folder


@pytest.fixture
def here(inputs, monkeypatch) -> Path:
    monkeypatch.chdir(inputs)
    return inputs


def refused(folder: Path, *arguments: object) -> Outcome:
    """Run a command that must fail without changing anything in ``folder``."""
    before = tree(folder)
    outcome = run(*arguments)
    assert outcome.exit_code != 0
    assert outcome.stdout == ""
    assert ADVICE.search(outcome.error), f"no advice in: {outcome.error}"
    assert tree(folder) == before
    return outcome


NO_IMAGES = {
    "missing.tif": "missing.tif does not exist",
    "text.tif": "text.tif is neither OME-Zarr nor TIFF",
    "empty.tif": "empty.tif is neither OME-Zarr nor TIFF",
    "empty": "empty is a folder without zarr metadata",
    "photos": "photos is a folder without zarr metadata",
    "unknown.tif": "the file does not say what each axis is",
}


@pytest.mark.parametrize("source", NO_IMAGES)
@pytest.mark.parametrize(
    "command",
    [("info",), ("plan",), ("train", "-o", "new.safetensors"), ("enhance", "new.zarr"), ("convert", "new.zarr")],
)
def test_what_is_no_image_fails_in_every_command(here, command, source):
    name, *rest = command
    arguments = (name, *rest, source) if name == "train" else (name, source, *rest)
    outcome = refused(here, *arguments)
    assert outcome.exit_code == 1
    assert NO_IMAGES[source] in outcome.error
    assert source in outcome.error


FACTORS = {
    "0": "factor z=0: allowed are 1, 2 and 4",
    "3": "factor z=3: allowed are 1, 2 and 4",
    "3.5": "factor z=3.5: allowed are 1, 2 and 4",
    "-1": "factor z=-1: allowed are 1, 2 and 4",
    "1": "factor 1: 1 on every axis leaves nothing to do",
    "nan": "--factor 'nan': not a number",
    "two": "--factor 'two': not a number",
    "": "--factor '': not a number",
    "2,2": "factor (2, 2): give one number, or 3 in the order z,y,x",
    "q=2": "factor: no axis q; the volume's spatial axes are z,y,x",
    "z=2,z=2": "--factor z=2,z=2: give each axis once",
}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("command", [("plan",), ("enhance", "new.zarr"), ("train", "-o", "new.safetensors")])
def test_a_factor_that_is_not_allowed_is_a_usage_error(here, command, factor):
    outcome = refused(here, command[0], "good.ome.tif", *command[1:], f"--factor={factor}")
    assert outcome.exit_code == 2
    assert FACTORS[factor] in outcome.error


USAGE = [
    (("--tile", "0"), "--tile z=0: allowed are whole voxels from 1"),
    (("--tile", "q=5"), "--tile q=5: allowed are whole voxels from 1 on the axes z,y,x"),
    (("--chunks", "1.5"), "--chunks z=1.5: allowed are whole voxels"),
    (("--shards", "big"), "--shards 'big': not a number"),
    (("--workers", "0"), "'--workers': 0 is not in the range x>=1"),
    (("--steps", "0"), "'--steps': 0 is not in the range x>=1"),
    (("--seed", "-1"), "'--seed': -1 is not in the range"),
    (("--memory", "lots"), "--memory lots: not a size"),
    (("--halo", "2"), "--halo 2: allowed is a share of the range between 0 and 1"),
    (("--preset", "worst"), "'--preset': 'worst' is not one of 'fast', 'best', 'paper'"),
    (("--dtype", "int8"), "'--dtype': 'int8' is not one of 'same', 'float32'"),
    (("--ome-zarr-version", "0.6"), "'0.6' is not one of '0.4', '0.5'"),
    (("--spacing", "thin"), "--spacing 'thin': not a number"),
    (("--level", "1"), "good.ome.tif is a TIFF, of which only level 0 is read: leave out --level"),
    (("-m", "good.safetensors", "--factor", "4"), "--factor: settled by the model good.safetensors"),
    (("-m", "good.safetensors", "--seed", "1", "--steps", "5"), "--seed, --steps: settled by the model"),
    (("--nonsense",), "No such option"),
]


@pytest.mark.parametrize(("options", "message"), USAGE)
@pytest.mark.parametrize("command", [("plan", "good.ome.tif"), ("enhance", "good.ome.tif", "new.zarr")])
def test_an_option_that_is_not_allowed_is_a_usage_error(here, command, options, message):
    outcome = refused(here, *command, *options)
    assert outcome.exit_code == 2
    assert message in outcome.error


SAMPLES = {
    "z=9:5": "sample z=9:5: axis z has 12 voxels",
    "z=5:13": "sample z=5:13: axis z has 12 voxels",
    "q=0:5": "no axis q",
    "z=5": "--sample '5': give start:stop",
    "0:5,0:5": "--sample 0:5,0:5: give start:stop for each of z,y,x",
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_that_is_not_inside_the_volume_is_a_usage_error(here, sample):
    outcome = refused(here, "train", "good.ome.tif", "-o", "new.safetensors", "--sample", sample)
    assert outcome.exit_code == 2
    assert SAMPLES[sample] in outcome.error


PLANS = [
    (("--tile", "z=2,y=2,x=2"), "axis z: a tile of 2 voxels is shorter than its halo of 3"),
    (("--chunks", "8", "--shards", "20"), "shards of 20 voxels and chunks of 8"),
    (("--chunks", "8", "--shards", "12", "--factor", "2"), "a shard must be a multiple of the chunk"),
]


@pytest.mark.parametrize(("options", "message"), PLANS)
@pytest.mark.parametrize("command", [("plan", "good.ome.tif"), ("enhance", "good.ome.tif", "new.zarr")])
def test_what_cannot_be_cut_that_way_fails_before_anything_is_trained(here, command, options, message):
    outcome = refused(here, *command, *options)
    assert outcome.exit_code == 1
    assert message in outcome.error
    assert "train" not in outcome.stderr


@pytest.mark.parametrize("command", [("plan", "good.ome.tif"), ("enhance", "good.ome.tif", "new.zarr")])
def test_too_little_memory_is_refused_with_both_numbers(here, command):
    outcome = refused(here, *command, "--memory", "1MiB")
    assert outcome.exit_code == 1
    needed, allowed = (int(n) for n in re.findall(r"(\d+) MiB", outcome.error))
    assert needed > allowed == 1
    assert refused(here, *command, "--memory", f"{needed - 1}MiB").exit_code == 1
    assert run("plan", "good.ome.tif", "--memory", f"{2 * needed}MiB").exit_code == 0


def test_too_little_disk_is_refused_with_both_numbers(here):
    volume = open_volume("good.ome.tif")
    machine = Machine(cores=1, memory_bytes=2**33, disk_free_bytes=1000)
    with pytest.raises(PlanError, match=r"the output has .* before compression; the disk has .* free\. Choose another"):
        plan_volume(volume, fast((2, 2, 2)).architecture, machine=machine)


@pytest.mark.parametrize("name", ["zero", "constant", "nan"])
@pytest.mark.parametrize("command", [("train", "-o", "new.safetensors"), ("enhance", "new.zarr")])
def test_there_must_be_something_to_learn_from(here, command, name):
    outcome = refused(here, command[0], f"{name}.ome.tif", *command[1:], "--steps", 3)
    assert outcome.exit_code == 1
    wanted = {
        "zero": "every voxel is 0, so there is nothing to learn",
        "constant": "every voxel is 7, so there is nothing to learn",
        "nan": "1 of 7488 voxels are NaN or infinite",
    }
    assert wanted[name] in outcome.error
    assert "--sample" in outcome.error
    assert "z=0:12,y=0:24,x=0:26" in outcome.error


MODELS = [
    ("good.ome.tif", "missing.safetensors", "missing.safetensors: no such model file"),
    ("good.ome.tif", "cut.safetensors", "cut.safetensors: not a model of svision-dask, or damaged"),
    ("good.ome.tif", "text.safetensors", "text.safetensors: not a model of svision-dask, or damaged"),
    ("good.ome.tif", "good.ome.tif", "good.ome.tif: not a model of svision-dask, or damaged"),
    ("good.ome.tif", "empty", "empty: no such model file"),
    ("plane.ome.tif", "good.safetensors", "model is for axes zyx; the volume plane has yx"),
    ("good.ome.tif", "two.safetensors", "trained on 2 channels; the volume has 1"),
]


@pytest.mark.parametrize(("source", "model", "message"), MODELS)
@pytest.mark.parametrize("command", [("plan",), ("enhance", "new.zarr")])
def test_a_model_that_does_not_fit_fails_before_any_work(here, command, source, model, message):
    outcome = refused(here, command[0], source, *command[1:], "-m", model)
    assert outcome.exit_code == 1
    assert message in outcome.error


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """What can be in the way of an output."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_tiff(Path("data/input.ome.tif"), textured((12, 24, 26)))
    Path("link.ome.tif").symlink_to("data/input.ome.tif")
    Path("file").write_text("years of work")
    Path("folder").mkdir()
    Path("folder/thesis.txt").write_text("years of work")
    return tmp_path


OUTPUTS = {
    "data/input.ome.tif": "the output is the input",
    "./data/../data/input.ome.tif": "the output is the input",
    "link.ome.tif": "the output is the input",
    "data": "the output contains the input",
    "file": "file exists and is not one OME-Zarr image; it is never replaced",
    "folder": "folder exists and is not one OME-Zarr image; it is never replaced",
    "file/fine.zarr": "file is not a folder",
    "file/deeper/fine.zarr": "file is not a folder",
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("command", ["enhance", "convert"])
def test_an_output_that_cannot_be_there_fails_before_any_work(places, command, overwrite, output):
    outcome = refused(places, command, "data/input.ome.tif", output, *overwrite)
    assert outcome.exit_code == 1
    assert OUTPUTS[output] in outcome.error


@pytest.mark.parametrize("output", ["folder", "file"])
def test_a_model_file_is_never_replaced(places, output):
    outcome = refused(places, "train", "data/input.ome.tif", "-o", output)
    assert outcome.exit_code == 1
    assert f"{output} exists; a model file is never replaced" in outcome.error


def test_a_model_needs_its_folder(places):
    outcome = refused(places, "train", "data/input.ome.tif", "-o", "missing/model.safetensors")
    assert "there is no folder" in outcome.error


def test_channels_of_different_shapes_are_not_put_together(here):
    outcome = refused(here, "convert", "good.ome.tif", "other.ome.tif", "new.zarr")
    assert outcome.exit_code == 1
    assert "other has shape (12, 24, 28), good has (12, 24, 26)" in outcome.error


@pytest.mark.parametrize(("argument", "code"), [("missing.tif", 1), ("--nonsense", 2)])
def test_a_process_ends_with_the_exit_code_and_one_line(tmp_path, argument, code):
    command = [*PROGRAM, "info", argument]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert Outcome(code, "", done.stderr).error


def test_what_is_found_only_in_a_region_ends_with_1_and_publishes_nothing(tmp_path):
    broken = textured((12, 24, 64), "float32")
    broken[11, 23, 63] = np.nan
    source = write_tiff(tmp_path / "far.ome.tif", broken)
    output, model = tmp_path / "fine.zarr", tiny((2, 2, 2)).save(tmp_path / "model.safetensors")
    cut = ("--chunks", "8", "--shards", "z=24,y=48,x=32", "--workers", 1)
    outcome = run("enhance", source, output, "-m", model, *cut)
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert re.search(r"region 3 at \(0, 0, 96\).* NaN or infinite", outcome.error)  # the last of four
    assert ADVICE.search(outcome.error)
    assert is_omezarr(output)
    assert "an unfinished output of svision-dask" in run("info", output).error
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".fine.zarr.svision", "far.ome.tif", "fine.zarr", "model.safetensors"]
    again = run("enhance", source, output, "-m", model)  # goes on with the region that it lacks
    assert (again.exit_code, again.error) == (1, outcome.error)
