from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from svision_dask.commands import progress as shown
from svision_dask.commands.console import image_facts, image_lines, plan_lines
from svision_dask.commands.progress import progress
from svision_dask.geometry import Grid
from svision_dask.omezarr.read import describe_omezarr
from svision_dask.omezarr.write import create_store, publish
from svision_dask.opening.formats import open_volume
from svision_dask.plan import plan_enhancement
from svision_dask.volume import Shown
from svision_dask.wishes import Machine
from tests.commands import run, textured, write_tiff

GRID = Grid(
    axes="czyx",
    shape=(2, 30, 40, 50),
    spacing=(1.0, 2.0, 0.5, 0.25),
    origin=(0.0, 3.0, 5.0, 7.0),
    units=(None, "micrometer", "micrometer", "micrometer"),
)

STOPPED_WHILE_CLOSING = """
import os, signal
import click
from svision_dask.commands.console import Commands

@click.group(cls=Commands)
def main(): ...

@main.command()
@click.argument("number", type=int)
def work(number):
    try:
        os.kill(os.getpid(), number)
    finally:
        os.kill(os.getpid(), signal.SIGINT)  # impatience
        os.kill(os.getpid(), signal.SIGTERM)
        print("closed")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
main()
"""


@pytest.fixture
def seconds(monkeypatch) -> list[float]:
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_the_first_line_the_last_and_one_every_ten_seconds(capsys, seconds):
    with progress() as update:
        for done in range(1, 101):
            update("write", done, 100, "fast")
            seconds[0] += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = [int(re.match(r"write (\d+)/100", line)[1]) for line in captured.err.splitlines()]
    assert shown == [*range(1, 100, 10), 100]


def test_a_log_line_says_what_how_much_how_long_still_and_the_remark(capsys, seconds):
    with progress() as update:
        update("write", 1, 100, "slow")
        seconds[0] += 30
        update("write", 11, 100, "slow")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "write 1/100, slow"  # nothing to go by yet
    assert second == "write 11/100, 267 s left, slow"  # ten took 30 seconds, 89 are left


def test_each_kind_of_work_ends_with_a_line_however_short_it_was(capsys, seconds):
    with progress() as update:
        for what in ("train", "write", "level 1"):
            for done in (1, 2, 3):
                update(what, done, 3, "")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "3/3" in line] == ["train 3/3", "write 3/3", "level 1 3/3"]


def test_short_work_does_not_silence_the_long_work_that_it_is_part_of(capsys, seconds):
    with progress() as update:
        for field in range(3):
            update("fields", field, 9, "")
            seconds[0] += 11
            update("write", 1, 1, "")
    assert [line for line in capsys.readouterr().err.splitlines() if "fields" in line][1:] == [
        "fields 1/9, 88 s left",
        "fields 2/9, 77 s left",
    ]


def test_a_plan_in_words_has_what_decides_whether_to_start():
    plan = plan_enhancement(
        GRID,
        factor=(1, 1, 2, 4),
        halo=(3, 5, 7),
        itemsize=2,
        dtype="uint16",
        dtype_itemsize=2,
        tile_bytes=lambda tile: 10**6,
        machine=Machine(cores=3, memory_bytes=8 * 2**30, disk_free_bytes=5 * 2**30),
    )
    text = "\n".join(plan_lines(plan))
    assert "c,z,y,x = 2×30×40×50" in text
    assert "c,z,y,x = 2×30×80×200, uint16, OME-Zarr 0.5" in text
    assert "z 2 micrometer, y 0.25 micrometer, x 0.0625 micrometer" in text
    assert f"{len(plan.regions)} regions of {'×'.join(map(str, plan.region))}" in text
    assert "halo of 0×3×5×7" in text
    assert "1.8 MiB before the pyramid, 5.0 GiB free" in text  # 2·30·80·200 voxels of two bytes
    assert f"{plan.workers} with {plan.threads} threads each" in text


def test_a_tiff_in_words_has_shape_type_and_spacing(tmp_path):
    path = write_tiff(tmp_path / "stack.ome.tif", textured((3, 7, 11)))
    volume = open_volume(path)
    assert list(image_lines(volume, None)) == [
        f"name     {volume.name}",
        "shape    z,y,x = 3×7×11, uint16",
        "spacing  z 2 micrometer, y 0.5 micrometer, x 0.5 micrometer",
    ]


def test_a_spacing_without_a_unit_says_so(tmp_path):
    volume = open_volume(write_tiff(tmp_path / "plain.tif", textured((7, 11)), None), axes="yx")
    assert "spacing  y 1, x 1 without a unit" in image_lines(volume, None)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """An OME-Zarr of two levels and two channels."""
    path = tmp_path_factory.mktemp("image") / "two.ome.zarr"
    levels = [GRID, GRID.coarser((1, 1, 2, 2))]
    chunks, shards = (1, 8, 16, 16), (1, 16, 32, 32)
    create_store(path, levels, dtype="uint8", chunks=chunks, shards=shards, attributes={})
    shown = [Shown(window=(0.0, 255.0, 1.0, 2.0))] * 2
    publish(path, levels, name="two", channels=("DAPI", "GFP"), attributes={}, shown=shown)
    return path


def test_an_omezarr_in_words_has_every_level_and_how_it_is_stored(image):
    text = "\n".join(image_lines(open_volume(image), describe_omezarr(image)))
    assert "channels DAPI, GFP" in text
    assert "format   OME-Zarr 0.5" in text
    assert "level 0  2×30×40×50" in text
    assert "level 1  2×30×20×25" in text
    assert "chunks 1×8×16×16 in shards 1×16×32×32, blosc" in text


def test_the_facts_of_an_omezarr_are_the_same_as_plain_values(image):
    facts = image_facts(open_volume(image, level=1), describe_omezarr(image))
    assert (facts["axes"], facts["shape"], facts["dtype"]) == ("czyx", [2, 30, 20, 25], "uint8")
    assert facts["units"] == [None, "micrometer", "micrometer", "micrometer"]
    assert facts["channels"] == ["DAPI", "GFP"]
    finest, coarser = facts["levels"]
    assert (finest["spacing"], finest["origin"]) == ([1.0, 2.0, 0.5, 0.25], [0.0, 3.0, 5.0, 7.0])
    assert (coarser["spacing"], coarser["origin"]) == ([1.0, 2.0, 1.0, 0.5], [0.0, 3.0, 5.25, 7.125])
    assert (finest["chunks"], finest["shards"]) == ([1, 8, 16, 16], [1, 16, 32, 32])


def test_an_error_is_one_line_and_its_traceback_comes_with_vv(tmp_path):
    missing = tmp_path / "missing.tif"
    short, long = run("info", missing), run("-vv", "info", missing)
    assert (short.exit_code, long.exit_code) == (1, 1)
    assert len(short.stderr.splitlines()) == 1
    assert "Traceback (most recent call last)" in long.stderr
    assert long.stderr.splitlines()[-1] == short.error


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_after_the_first_signal_the_end_takes_its_course_whatever_follows(number, code, word):
    command = [sys.executable, "-c", STOPPED_WHILE_CLOSING, "work", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (code, "closed\n")
    assert done.stderr == f"svision-dask: {word}; the same command goes on with what is unfinished.\n"
