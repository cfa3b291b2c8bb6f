"""How far a run is: counted from receipts, shown on a terminal, and logged for programs."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from distributed import Client
from rich.console import Console

from svision_dask.commands import progress as module
from svision_dask.commands.events import EventLog, json_logged
from svision_dask.commands.progress import POINTS, SHOWN_WORKERS, Display, Pace, Reporter
from svision_dask.errors import RegionError
from svision_dask.geometry import Region, Regions
from svision_dask.running.ledger import Receipt
from svision_dask.running.progress import ClusterState, RunProgress, Tally, WorkerState, watched
from svision_dask.running.scheduling import run_regions
from tests.commands import run, textured, write_tiff

CUTS = [Regions(shape=(40,), unit=(10,)), Regions(shape=(20,), unit=(10,))]


def receipt(index: int, level: int = 0, **about: object) -> Receipt:
    values = {"start": (10 * index,), "low": 0, "high": 1, "voxels": 10, "crc32": 0, "read_bytes": 30, "seconds": 2.0}
    return Receipt(level=level, index=index, **{**values, **about})


@pytest.fixture
def seconds(monkeypatch) -> list[float]:
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_what_was_there_at_first_makes_nothing_look_quicker(seconds):
    pace = Pace()
    pace.note(900)
    assert pace.left(1000) is None
    seconds[0] += 20
    pace.note(910)
    assert pace.per_second == 0.5
    assert pace.left(1000) == 180
    pace.note(1000)
    assert pace.left(1000) is None


def test_a_pace_is_that_of_the_last_while_and_is_kept_in_little_memory(seconds):
    pace = Pace()
    for done in range(10_000):  # one a second at first, then ten
        seconds[0] += 1 if done < 5_000 else 0.1
        pace.note(done)
    assert pace.per_second == pytest.approx(10, rel=0.1)
    assert len(pace._points) == POINTS
    pace.note(1)  # the next field of a plate
    assert pace.per_second is None


def test_a_tally_keeps_runs_before_apart_and_counts_what_went_wrong():
    seen: list[RunProgress] = []
    tally = Tally(cuts=CUTS, axes="x", itemsize=2, on_progress=seen.append)
    tally.add(receipt(0, empty=True))
    tally.show(receipt(1, worker="tcp://a:1", retries=2))
    tally.show(receipt(2, worker="tcp://b:1", halvings=1, empty=True))
    tally.fail("region 3")
    last = seen[-1]
    assert (last.done, last.before, last.regions) == (3, 1, 4)
    assert (last.empty, last.retried, last.failed) == (1, 2, 1)
    assert (last.voxels, last.read_bytes, last.written_bytes) == (20, 60, 40)
    assert tally.counted == {"missing_chunks": 0, "empty_regions": 2, "smaller_tiles": 1}
    tally.show(receipt(0, level=1))
    assert (seen[-1].level, seen[-1].done, seen[-1].before, seen[-1].regions) == (1, 1, 0, 2)
    times = tally.times()
    assert times["worker_seconds"] == {"regions": 6.0, "pyramid": 2.0}
    assert times["regions_of_runs_before"] == 1
    assert {name: share.done for name, share in tally.shares.items()} == {"tcp://a:1": 1, "tcp://b:1": 1, "": 1}


STATE = RunProgress(
    level=0,
    levels=2,
    done=120,
    regions=1000,
    before=37,
    empty=4,
    retried=1,
    failed=0,
    voxels=3 * 10**9,
    read_bytes=2**30,
    written_bytes=6 * 2**30,
    seconds=300.0,
)


def drawn(display: Display) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(display.drawn())
    return console.file.getvalue()


def test_the_display_has_counts_bytes_rates_time_left_workers_and_the_dashboard(seconds):
    workers = [
        WorkerState(name=f"h{i}:1", regions=[i + 7] if i else [], memory_bytes=2**30, done=i, voxels_per_second=2e6)
        for i in range(100)
    ]
    display = Display()
    display.run(replace(STATE, done=100))
    seconds[0] += 40
    display.run(STATE)
    display.workers(ClusterState(workers=workers, dashboard="http://127.0.0.1:1/status"))
    text = drawn(display)
    assert "120/1000" in text
    assert "0:29:20 left" in text  # 880 regions, of which 20 took 40 seconds
    assert "10.0 M voxels/s, 1.0 GiB read, 6.0 GiB written, 4 empty, 1 retried, 37 regions by runs before" in text
    total, *rows = [line.split() for line in text.splitlines() if "GiB " in line and "read" not in line]
    assert total == ["100", "workers", "99", "at", "work", "100.0", "GiB", "4950", "done", "198.0", "M", "voxels/s"]
    assert rows[0] == ["h0:1", "waits", "1.0", "GiB", "0", "done", "2.0", "M", "voxels/s"]
    assert rows[1] == ["h1:1", "region", "8", "1.0", "GiB", "1", "done", "2.0", "M", "voxels/s"]
    assert len(rows) == SHOWN_WORKERS
    assert "and 92 more" in text
    assert "dashboard http://127.0.0.1:1/status" in text
    display.end()
    assert "120/1000" in drawn(display)
    assert "workers" not in drawn(display)


def test_a_log_line_has_the_same_figures_and_a_failure_one_at_once(capsys, seconds):
    reporter = Reporter()
    for state in (STATE, replace(STATE, done=121), replace(STATE, done=121, failed=1)):
        reporter.run(state)
    assert capsys.readouterr().err.splitlines() == [
        "write 120/1000, 10.0 M voxels/s, 1.0 GiB read, 6.0 GiB written, 4 empty, 1 retried",
        "write 121/1000, 10.0 M voxels/s, 1.0 GiB read, 6.0 GiB written, 4 empty, 1 retried, 1 failed",
    ]


def test_a_log_line_ends_with_what_there_is_to_say(capsys, seconds):
    reporter = Reporter()
    for done in (0, 1, 2):
        reporter("simulate", done, 2)
        seconds[0] += 30
    reporter("compare", 2, 2, "blocks")
    assert capsys.readouterr().err.splitlines() == [
        "simulate 0/2",
        "simulate 1/2, 30 s left",
        "simulate 2/2",
        "compare 2/2, blocks",
    ]


@dataclass(frozen=True)
class Waiting:
    """Goes on once a file is there."""

    go: Path

    def __call__(self, region: Region) -> Receipt:
        while not self.go.exists():
            time.sleep(0.01)
        return receipt(region.index)


def test_the_scheduler_says_which_region_each_worker_is_at(tmp_path, monkeypatch):
    monkeypatch.setattr("svision_dask.running.progress.WATCH_SECONDS", 0.05)
    seen: list[ClusterState] = []

    def look(state: ClusterState) -> None:
        seen.append(state)
        if state.at_work == 2 or len(seen) > 200:
            (tmp_path / "go").touch()

    tally = Tally(cuts=[Regions(shape=(40,), unit=(10,))], axes="x", itemsize=2)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with Client(**options) as client, watched(client, tally, look):
        run_regions(client, Waiting(tmp_path / "go"), tally.cuts[0], on_receipt=tally.show)
    (busy, *_) = [state for state in seen if state.at_work == 2]
    assert sorted(region for worker in busy.workers for region in worker.regions) == [0, 1, 2, 3]
    assert all(worker.memory_bytes > 0 for worker in busy.workers)
    assert busy.dashboard is None  # none was asked for
    assert sum(share.done for share in tally.shares.values()) == 4
    assert {name.partition("://")[2] for name in tally.shares} <= {worker.name for worker in busy.workers}


def test_a_log_for_programs_has_begin_progress_and_end_as_json(tmp_path):
    source = write_tiff(tmp_path / "plane.ome.tif", textured((40, 44)), "YX")
    log = tmp_path / "log.jsonl"
    arguments = ("train", source, "-o", tmp_path / "m.safetensors", "--steps", 3, "--json-log", log)
    assert run(*arguments).exit_code == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["begin", "progress", "progress", "end"]
    assert (events[0]["command"], events[0]["source"]) == ("train", str(source))
    last = events[2]
    assert (last["what"], last["done"], last["total"], last["stages"]) == ("train", 3, 3, 1)
    assert last["loss"] > 0
    assert isinstance(last["exam_db"], float)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert run(*arguments).exit_code == 1  # the model is there already; the log goes on
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()[4:]] == ["begin", "failed"]
    assert "never replaced" in json.loads(log.read_text().splitlines()[-1])["error"]


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path):
    source = write_tiff(tmp_path / "plane.ome.tif", textured((40, 44)), "YX")
    outcome = run("train", source, "-o", tmp_path / "m.safetensors", "--json-log", tmp_path / "none" / "log")
    assert outcome.exit_code == 1
    assert "--json-log" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["plane.ome.tif"]


def test_a_log_goes_on_after_a_torn_line_and_nothing_else_is_appended_to(tmp_path):
    source = write_tiff(tmp_path / "plane.ome.tif", textured((40, 44)), "YX")
    before, log = source.read_bytes(), tmp_path / "log"
    outcome = run("train", source, "-o", tmp_path / "m.safetensors", "--json-log", source)
    assert outcome.exit_code == 1
    assert "no log" in outcome.error
    assert source.read_bytes() == before
    log.write_text('{"event": "begin"}\n{"eve')
    run("train", tmp_path / "none.tif", "-o", tmp_path / "m.safetensors", "--json-log", log)
    first, _, *lines = log.read_text().splitlines()
    assert [json.loads(line)["event"] for line in (first, *lines)] == ["begin", "begin", "failed"]


def test_a_full_disk_that_ends_a_log_does_not_make_a_finished_command_fail(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    source, model = write_tiff(tmp_path / "plane.ome.tif", textured((40, 44)), "YX"), tmp_path / "m.safetensors"
    outcome = run("train", source, "-o", model, "--steps", 3, "--json-log", "/dev/full")
    assert outcome.exit_code == 0
    assert outcome.stderr.count("warning: --json-log") == 1
    assert "svision-dask: " not in outcome.stderr
    assert model.exists()


def test_a_log_has_no_nan_and_a_full_disk_ends_it_but_not_the_run(tmp_path, capsys):
    with (tmp_path / "log").open("w") as stream:
        EventLog(stream).write("progress", loss=float("nan"), of=[float("inf"), 1 / 3])
    assert json.loads((tmp_path / "log").read_text())["of"] == [None, 0.333333]
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    stream = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - closing it raises again
    log = EventLog(stream)
    for _ in range(3):
        log.write("progress")
    assert capsys.readouterr().err.count("warning: --json-log") == 1
    with pytest.raises(OSError, match="space"):
        stream.close()


def test_a_log_has_all_regions_that_failed(tmp_path):
    @click.command()
    @json_logged
    def enhance() -> None:
        raise RegionError("region 1: no. 1 more.", ["region 1: no", "region 2: no"])

    CliRunner().invoke(enhance, ["--json-log", str(tmp_path / "log")])
    _, ended = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert ended["event"] == "failed"
    assert ended["failures"] == ["region 1: no", "region 2: no"]
