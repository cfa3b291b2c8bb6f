from __future__ import annotations

import errno
import json
import multiprocessing
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from svision_dask.errors import OutputError
from svision_dask.geometry import Regions
from svision_dask.running import patience
from svision_dask.running.ledger import UNDONE, Receipt, claim, first_difference, read_record

pytestmark = pytest.mark.faults

RECORD = {"input": "a", "tile": {"z": 4}}
COUNTS = (6, 2)
HEX = "0123456789abcdef" * 2


def receipt(index: int, level: int = 0) -> Receipt:
    return Receipt(level=level, index=index, start=(0, 5), low=-1.5, high=2.0, voxels=10, crc32=2**32 - 1 - index)


def interrupted(output: Path, *receipts: Receipt) -> None:
    """Leave a ledger with some receipts."""
    with suppress(KeyboardInterrupt), claim(output) as ledger:
        ledger.begin(RECORD, COUNTS)
        for each in receipts:
            ledger.add(each)
        raise KeyboardInterrupt


def lines(output: Path) -> Path:
    return output.with_name(f".{output.name}.svision") / "receipts.jsonl"


def test_receipts_outlive_an_interruption_and_only_the_rest_is_left(tmp_path):
    output = tmp_path / "fine.zarr"
    made = [receipt(3), receipt(0), receipt(1, level=1)]
    interrupted(output, *made)
    assert read_record(output) == RECORD
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == made
        regions = Regions(shape=(6, 10), unit=(1, 10))
        assert [region.index for region in ledger.left(0, regions)] == [1, 2, 4, 5]
        assert [region.index for region in ledger.left(1, Regions(shape=(2,), unit=(1,)))] == [0]
        np.testing.assert_array_equal(ledger.checksums[1], [UNDONE, 2**32 - 2])
    assert list(tmp_path.iterdir()) == []  # what is finished needs no ledger


def test_a_receipt_waits_for_a_folder_that_is_stale_for_a_while(tmp_path, monkeypatch):
    output, tries = tmp_path / "fine.zarr", []

    class Stale(type(tmp_path)):
        def open(self, mode="r", *args, **kwargs):
            tries.append(mode)
            if len(tries) < 3:
                raise OSError(errno.ESTALE, "Stale file handle", str(self))
            return super().open(mode, *args, **kwargs)

    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01))
    with suppress(KeyboardInterrupt), claim(output) as ledger:
        ledger.begin(RECORD, COUNTS)
        monkeypatch.setattr(ledger, "_lines", Stale(ledger._lines))
        ledger.add(receipt(3))
        raise KeyboardInterrupt
    assert tries == ["a", "a", "a"]
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == [receipt(3)]


@pytest.mark.parametrize("torn", [b'{"level": 0, "ind', b"{", b"\x00\x00\x00"])
def test_a_line_that_a_crash_tore_off_is_cut_off_and_the_next_begins_anew(torn, tmp_path):
    output = tmp_path / "fine.zarr"
    interrupted(output, receipt(0))
    with lines(output).open("ab") as file:
        file.write(torn)
    with suppress(KeyboardInterrupt), claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == [receipt(0)]
        ledger.add(receipt(1))
        raise KeyboardInterrupt
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == [receipt(0), receipt(1)]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"[]",
        b'{"level": 0}',
        json.dumps(asdict(receipt(1, level=7))).encode(),
        json.dumps({**asdict(receipt(1)), "index": -1}).encode(),
        json.dumps({**asdict(receipt(1)), "crc32": -1}).encode(),
    ],
)
def test_a_damaged_line_counts_for_nothing_and_those_after_it_count(line, tmp_path):
    output = tmp_path / "fine.zarr"
    interrupted(output)
    lines(output).write_bytes(line + b"\n" + json.dumps(asdict(receipt(2))).encode() + b"\n")
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == [receipt(2)]
        assert (ledger.checksums[0] == UNDONE).sum() == 5


def test_of_a_region_that_was_made_again_the_last_checksum_counts_and_the_region_once(tmp_path):
    output, again = tmp_path / "fine.zarr", replace(receipt(0), crc32=7)
    interrupted(output, receipt(0), receipt(1), again)
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == [receipt(0), receipt(1)]
        assert ledger.checksums[0][:2].tolist() == [7, receipt(1).crc32]


def test_beginning_anew_forgets_what_was_done(tmp_path):
    output = tmp_path / "fine.zarr"
    interrupted(output, receipt(0))
    interrupted(output)
    with claim(output) as ledger:
        assert list(ledger.resume(COUNTS)) == []


def hold(output: Path, held, released) -> None:
    with claim(output):
        held.set()
        released.wait(60)


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    output = tmp_path / "fine.zarr"
    spawned = multiprocessing.get_context("spawn")
    held, released = spawned.Event(), spawned.Event()
    process = spawned.Process(target=hold, args=(output, held, released))
    process.start()
    assert held.wait(60)
    with pytest.raises(OutputError, match="another run is making it"), claim(output):
        pass
    process.kill()
    process.join(60)
    with claim(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path):
    output = tmp_path / "fine[1].zarr"
    interrupted(output)
    kept = [
        output / "0" / "c" / "shard",
        tmp_path / f".fine[1].zarr.fine.{HEX}.creating" / "a",
        tmp_path / "fine[1].zarr.creating",
    ]
    swept = [
        output / "0" / "c" / "shard.abc.partial",
        tmp_path / f".fine[1].zarr.{HEX}.creating" / "zarr.json",
        tmp_path / f".fine[1].zarr.{HEX}.removing" / "0" / "zarr.json",
    ]
    for file in (*kept, *swept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    with claim(output):
        pass
    assert [file for file in kept if not file.exists()] == []
    assert [file for file in swept if file.exists()] == []


def test_the_first_difference_is_named_with_both_values():
    assert first_difference(RECORD, dict(RECORD)) is None
    assert first_difference(RECORD, {**RECORD, "tile": {"z": 8}}) == 'tile was {"z": 8} and is {"z": 4}'
    assert first_difference({}, {"new": 1}) == "new was 1 and is null"
