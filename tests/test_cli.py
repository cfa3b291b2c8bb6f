from __future__ import annotations

import inspect
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from svision_dask.backend import Backend, best_precision
from svision_dask.commands.cli import main
from svision_dask.commands.given import LEARNING
from svision_dask.network.model import load_model
from svision_dask.omezarr.read import describe_omezarr
from svision_dask.opening.formats import open_volume
from svision_dask.running.arguments import parse_tolerance
from svision_dask.training import train as training
from svision_dask.volume import mirror_pad
from tests.commands import PROGRAM, Outcome, environment, finish, run, start, textured, tree, write_tiff
from tests.models import tiny

HEAVY = {"dask", "distributed", "matplotlib", "numpy", "ome_zarr", "scipy", "skimage", "tifffile", "torch", "zarr"}
SHORT = (2, 20, 37)
"""Voxels of a volume whose z axis is shorter than the halo."""
CUT = ("--factor", "z=1,y=2,x=2", "--chunks", "z=2,y=8,x=16", "--shards", "z=2,y=16,x=32", "--tile", "z=2,y=8,x=8")
LEARN = ("--steps", 3, "--seed", 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def short(folder) -> Path:
    return write_tiff(folder / "short.ome.tif", textured(SHORT))


@pytest.fixture(scope="module")
def in_one_go(folder, short) -> Outcome:
    """A real run in a process of its own, which trains and enhances."""
    (folder / "fine").mkdir()
    given = (short, folder / "fine" / "fine.ome.zarr", *CUT, *LEARN, "--workers", 1)
    return finish(start("enhance", *given, env=environment(folder / "scratch")))


@pytest.fixture(scope="module")
def fine(folder, in_one_go) -> Path:
    assert in_one_go.exit_code == 0, in_one_go.stderr
    return folder / "fine" / "fine.ome.zarr"


def voxels(path: Path, level: int = 0) -> np.ndarray:
    return np.asarray(open_volume(path, level=level).voxels.compute(scheduler="synchronous"))


def test_help_imports_nothing_heavy():
    code = f"""
import contextlib, io, sys
from svision_dask.commands.cli import main
for arguments in ([], *([name] for name in main.commands)):
    with contextlib.redirect_stdout(io.StringIO()) as help, contextlib.redirect_stderr(io.StringIO()) as errors:
        assert not main([*arguments, "--help"], standalone_mode=False)
    assert "Usage" in help.getvalue()
    assert errors.getvalue() == ""
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert loaded.stdout == "[]\n"


def test_where_positions_were_skipped_the_first_voxel_stays_where_it_is(tmp_path):
    path = write_tiff(tmp_path / "a.ome.tif", textured((6, 32, 32)))
    for kind, origin in (("point", (0.0, 0.0, 0.0)), ("box", (-0.5, -0.125, -0.125))):
        done = run("enhance", path, tmp_path / f"{kind}.zarr", "--degrade", kind, *LEARN, "--workers", 1)
        assert done.exit_code == 0, done.stderr
        first = describe_omezarr(tmp_path / f"{kind}.zarr").levels[0].grid
        assert first.origin == origin
        assert first.shape == (12, 64, 64)
        assert first.spacing == (1.0, 0.25, 0.25)


def test_axial_makes_planes_between_planes_and_leaves_y_and_x_as_they_are(tmp_path):
    path = write_tiff(tmp_path / "a.ome.tif", textured((6, 32, 32)))
    done = run("enhance", path, tmp_path / "a.zarr", "--axial", *LEARN, "--workers", 1)
    assert done.exit_code == 0, done.stderr
    assert describe_omezarr(tmp_path / "a.zarr").levels[0].grid.shape == (12, 32, 32)
    assert "axial refines z and nothing else" in run("plan", path, "--axial", "--factor", "1,2,2").error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--degrade", "psf"), "degradation psf: which one? Give --psf its width"),
        (("--psf", "-1"), "psf z=-1: a width must be above 0"),
        (("--psf", "1,2"), "give one number, or 3 in the order z,y,x"),
        (("--psf", "wide"), "--psf 'wide': not a number"),
        (("--psf", "none.tif"), "neither a width nor a file"),
    ],
)
def test_a_psf_that_is_none_is_refused_before_anything_is_made(tmp_path, short, given, message):
    for command in (("enhance", short, tmp_path / "out.zarr"), ("train", short, "-o", tmp_path / "m.safetensors")):
        done = run(*command, *given)
        assert done.exit_code == 2
        assert message in done.error
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("program", [("-m", "svision_dask"), ("-m", "dask", "svision")])
def test_the_commands_are_there_as_a_module_and_within_dask(program):
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=True, timeout=300)
    for command in main.commands:
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


IMPORTED = """
import os, signal, sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                import colorsys  # bytecode, at which the signal is heard
            except BaseException:
                os.abort()  # as torch does, whose C++ imports, too
sys.meta_path.insert(0, Interrupted())
"""


@pytest.mark.parametrize("module", ["click", "svision_dask.geometry", "numpy", "torch.nn", "distributed", "ome_zarr"])
def test_ctrl_c_while_something_is_imported_is_one_line(module, folder, short, tmp_path):
    (site := tmp_path / "site").mkdir()
    (site / "sitecustomize.py").write_text(IMPORTED)
    paths = os.pathsep.join([str(site), *sys.path])  # before a sitecustomize that this machine may have
    env = {**environment(tmp_path / "scratch"), "PYTHONPATH": paths, "INTERRUPTED_AT": module}
    model = tiny((1, 2, 2)).save(tmp_path / "tiny.safetensors")
    ended = finish(start("enhance", short, tmp_path / "fine.zarr", "-m", model, "--workers", 1, env=env))
    begun = tmp_path / "fine.zarr" / "zarr.json"
    if module == "ome_zarr" and begun.exists() and "multiscales" in begun.read_text():
        # The last import; by the time that the signal was heard, everything was done, or even said.
        assert ended.exit_code in (0, 130), ended.stderr
        return
    assert ended.exit_code == 130, ended.stderr
    assert ended.error.startswith("svision-dask: interrupted")
    assert ended.stdout == ""
    assert not begun.exists() or "multiscales" not in begun.read_text()
    assert [path for path in (tmp_path / "scratch").iterdir() if path.name.startswith("svision-dask")] == []


def test_defaults_are_those_of_the_functions():
    defaults = {option.name: option.default for option in main.commands["train"].params}
    functions = inspect.signature(training.train).parameters
    assert parse_tolerance(defaults["halo"], option="--halo") == functions["tolerance"].default
    for name in ("preset", "seed"):
        assert defaults[name] == functions[name].default
    assert int(defaults["factor"]) == functions["factor"].default


def test_the_options_that_a_model_settles_are_those_of_training():
    own = {"source", "output", "level", "series", "channel", "time", "axes", "spacing", "unit", "missing", "json_log"}
    assert set(LEARNING) == {option.name for option in main.commands["train"].params} - own


def test_a_finished_run_exits_with_0_and_prints_the_output_alone_on_stdout(in_one_go, fine):
    assert in_one_go.exit_code == 0
    assert in_one_go.stdout == f"{fine}\n"


def test_a_log_shows_the_plan_and_lines_of_progress(in_one_go, fine):
    lines = in_one_go.stderr.splitlines()
    assert [line for line in lines if line.startswith("output ")]
    assert any(re.fullmatch(r"train 3/3, loss [0-9.]+, exam [+-][0-9.]+ dB over cubic", line) for line in lines)
    assert any(re.match(r"write 9/9, ", line) for line in lines)  # 40 × 74 voxels in shards of 16 × 32
    assert "\r" not in in_one_go.stderr
    assert "\x1b" not in in_one_go.stderr


def test_a_run_leaves_the_output_and_its_model_and_nothing_else(folder, in_one_go, fine):
    (model,) = (path for path in fine.parent.iterdir() if path != fine)
    assert re.fullmatch(r"fine-[0-9a-f]{8}\.safetensors", model.name)
    assert load_model(model).digest.startswith(model.stem.removeprefix("fine-"))
    assert str(model) in in_one_go.stderr
    assert [path for path in (folder / "scratch").iterdir() if path.name.startswith("svision-dask")] == []


def test_a_plan_as_json_agrees_with_what_is_then_made(folder, short, fine):
    before = tree(folder)
    outcome = run("plan", short, folder / "other.zarr", *CUT, *LEARN, "--workers", 1, "--json")
    assert tree(folder) == before
    plan = json.loads(outcome.stdout)
    assert outcome.stderr == ""
    made = describe_omezarr(fine)
    finest = made.levels[0]
    assert plan["output_shape"] == list(finest.grid.shape) == [2, 40, 74]
    assert plan["output_spacing"] == list(finest.grid.spacing) == [2.0, 0.25, 0.25]
    assert plan["output_origin"] == list(finest.grid.origin)
    assert plan["units"] == list(finest.grid.units)
    assert plan["chunk"] == dict(zip("zyx", finest.chunks, strict=True))
    assert plan["shard"] == dict(zip("zyx", finest.shards or (), strict=True))
    assert (plan["dtype"], plan["version"]) == (finest.dtype, made.version)
    recorded = dict(made.provenance["plan"])
    for changing in ("disk_free_bytes", "memory_bytes"):
        del recorded[changing], plan[changing]
    assert plan == recorded


def test_a_dry_run_prints_the_plan_on_stdout_and_makes_nothing(folder, short, fine):
    before = tree(folder)
    outcome = run("enhance", short, folder / "other" / "fine.zarr", *CUT, "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "z,y,x = 2×40×74" in outcome.stdout
    assert tree(folder) == before


@pytest.fixture(scope="module")
def model(folder, short) -> Path:
    # In a process of its own, as the other run: what else a process has loaded can change the last bit of a sum.
    given = (short, "-o", folder / "model.safetensors", *CUT[:2], *LEARN)
    outcome = finish(start("train", *given, env=environment(folder / "scratch")))
    assert (outcome.exit_code, outcome.stdout) == (0, f"{folder / 'model.safetensors'}\n")
    return folder / "model.safetensors"


def test_training_first_gives_the_same_as_all_in_one_go(folder, short, fine, model):
    again = folder / "again.zarr"
    assert run("enhance", short, again, "-m", model, *CUT[2:], "--workers", 1).exit_code == 0
    assert describe_omezarr(again).provenance["model"] == describe_omezarr(fine).provenance["model"]
    for level in range(len(describe_omezarr(fine).levels)):
        np.testing.assert_array_equal(voxels(again, level), voxels(fine, level))


def test_an_axis_shorter_than_the_halo_is_enhanced_as_without_tiles(short, fine, model):
    trained = load_model(model)
    assert trained.halo[0] > SHORT[0]
    coarse = voxels(short)
    wanted = trained.refine(mirror_pad(coarse, trained.halo), backend=Backend(precision=best_precision("cpu")))
    assert voxels(fine).dtype == np.uint16
    # Forward passes of another size round otherwise: half a grey value for the cast, and a little.
    np.testing.assert_allclose(voxels(fine).astype(float), wanted, atol=0.5 + 1e-2, rtol=0)


def test_info_describes_a_tiff_and_an_omezarr(short, fine):
    tiff, image = (json.loads(run("info", path, "--json").stdout) for path in (short, fine))
    assert (tiff["axes"], tiff["shape"], tiff["dtype"]) == ("zyx", list(SHORT), "uint16")
    assert (tiff["spacing"], tiff["units"]) == ([2.0, 0.5, 0.5], ["micrometer"] * 3)
    assert (image["shape"], image["spacing"]) == ([2, 40, 74], [2.0, 0.25, 0.25])
    assert image["version"] == "0.5"
    assert [level["path"] for level in image["levels"]] == [str(i) for i in range(len(image["levels"]))]
    assert "z,y,x = 2×40×74, uint16" in run("info", fine).stdout


def test_two_tiffs_become_the_channels_of_one_image_which_replaces_an_older_one(tmp_path):
    channels = [textured((2, 10, 12), seed=seed) for seed in (1, 2)]
    names = [write_tiff(tmp_path / f"{name}.ome.tif", c) for name, c in zip(("red", "green"), channels, strict=True)]
    output = tmp_path / "both.ome.zarr"
    zarr.create_group(output, zarr_format=3, attributes={"svision_dask": {"state": "incomplete"}})
    refused = run("convert", *names, output)
    assert refused.exit_code == 1
    assert "both.ome.zarr exists: an unfinished output" in refused.error
    outcome = run("convert", *names, output, "--overwrite")
    assert (outcome.exit_code, outcome.stdout) == (0, f"{output}\n")
    image = open_volume(output)
    assert (image.grid.axes, image.grid.spacing) == ("czyx", (1.0, 2.0, 0.5, 0.5))
    np.testing.assert_array_equal(voxels(output), np.stack(channels))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.ome.zarr", "green.ome.tif", "red.ome.tif"]


def test_a_terminal_shows_a_bar(tmp_path):
    source = write_tiff(tmp_path / "plane.ome.tif", textured((40, 44)), "YX")
    ours, theirs = pty.openpty()
    arguments = ("train", source, "-o", tmp_path / "model.safetensors", "--steps", 5)
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**environment(tmp_path / "scratch"), "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    os.close(ours)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stdout == f"{tmp_path / 'model.safetensors'}\n"
    text = shown.decode()
    assert "━" in text
    assert "5/5" in text


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux: the other side was closed
        return b""


@pytest.fixture(scope="module")
def long_run(folder) -> tuple[object, ...]:
    """Arguments of a run of 128 regions: there is time to stop it."""
    source = write_tiff(folder / "long.ome.tif", textured((16, 64, 64)))
    model = tiny((2, 2, 2)).save(folder / "tiny.safetensors")
    return ("-m", model, "--chunks", 16, "--shards", 16, "--workers", 1, source)


def workers_start(process: subprocess.Popen[str], output: Path) -> bool:
    return len(psutil.Process(process.pid).children()) > 1  # the first is multiprocessing's resource tracker


def voxels_are_written(process: subprocess.Popen[str], output: Path) -> bool:
    return any(path.is_file() for path in (output / "0" / "c").rglob("*"))


@pytest.mark.parametrize(
    ("number", "code", "word", "moment"),
    [
        (signal.SIGINT, 130, "interrupted", voxels_are_written),
        (signal.SIGTERM, 143, "terminated", voxels_are_written),
        (signal.SIGTERM, 143, "terminated", workers_start),
    ],
)
def test_a_signal_to_all_processes_ends_a_run_within_ten_seconds(number, code, word, moment, long_run, tmp_path):
    output = tmp_path / "fine.zarr"
    started = time.monotonic()
    process = start("enhance", *long_run, output, env=environment(tmp_path / "scratch"))
    while not moment(process, output):
        assert process.poll() is None, finish(process).stderr
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does it, and a batch system
    signalled = time.monotonic()
    outcome = finish(process)
    # What takes longer to start than that is on a busy machine, and may take as long to end.
    assert time.monotonic() - signalled < max(10, signalled - started)
    assert outcome.exit_code == code
    assert outcome.error == f"svision-dask: {word}; the same command goes on with what is unfinished."
    assert outcome.stdout == ""
    assert "an unfinished output" in run("info", output).error
    assert "multiscales" not in (output / "zarr.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fine.zarr.svision", "fine.zarr", "scratch"]
    assert [path for path in (tmp_path / "scratch").iterdir() if path.name.startswith("svision-dask")] == []
    if (number, moment) != (signal.SIGTERM, voxels_are_written):
        return  # going on takes a while, and is the same for all
    receipts = tmp_path / ".fine.zarr.svision" / "receipts.jsonl"
    done = len(receipts.read_text().splitlines()) if receipts.exists() else 0
    again = run("enhance", *long_run, output)
    assert again.exit_code == 0, again.stderr
    assert f"write {done + 1}/" in again.stderr  # the first line of progress
    assert run("verify", output).exit_code == 0
