"""Which regions of an output are done: receipts beside it while it is made, so that a stopped run can go on.

A hidden folder next to the output holds the lock, the record of what is being made, and one line per region. A line is
written after its region was read back, so that what is lost in a crash is at most the receipts of regions that are
written, and made once more.

That of an output at a URL is in a folder of the user instead (`locations.state_folder`): only who sees that folder can
go on, and the lock keeps out other runs of this machine only. Tasks of a run elsewhere notice, before they write, that
the store is not theirs any more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from svision_dask.errors import OutputError
from svision_dask.geometry import Region, Regions, Shape
from svision_dask.running.patience import patiently
from svision_dask.stores.locations import Location, Remote, located, state_folder

Record = Mapping[str, Any]
"""What is being made, as JSON values: whatever would change a voxel of the output is in it."""

RECORD = "record.json"
UNDONE = -1
DRAFTS = (".creating", ".removing")
"""Ends of the names of folders that a killed run leaves next to its output."""
PARTIAL = "*.partial"
"""Files that a killed writer leaves where it would have put a shard."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is left of a region once it is written and read back: a few numbers."""

    level: int
    index: int
    start: Shape
    low: float
    high: float
    """Of the finite voxels."""
    voxels: int
    crc32: int
    """Of the voxels that were read back, in C order and the machine's byte order."""
    missing: int = 0
    """Chunks of the input that were not there and counted as empty."""
    empty: bool = False
    """Whether the region and its halo hold a single value, so that there was nothing to enhance."""
    halvings: int = 0
    """How often its tiles were halved because memory ran out: it agrees with its neighbours to rounding only."""
    retries: int = 0
    """How often it was begun again: after errors that pass, or because a worker died."""
    seconds: float = 0.0
    """That a worker was at it."""
    read_bytes: int = 0
    """Of the voxels that it was made from, before compression; without reading back what was written."""
    worker: str = ""
    """Address of who made it; not kept in the ledger."""
    coarser: Receipt | None = None
    """Of the region of the next level that was made along with it."""
    maps: tuple[Receipt, ...] = ()
    """Of the same place in images that are made along with this one; each has a ledger of its own."""


class Ledger:
    """The receipts of an output that is being made; of each region only the checksum stays in memory."""

    def __init__(self, folder: Path) -> None:
        self._record, self._lines = folder / RECORD, folder / "receipts.jsonl"
        self.checksums: list[npt.NDArray[np.int64]] = []
        """CRC-32 per level and region; ``UNDONE`` for those that are not done."""
        self.run = ""
        """Whose store it is: tasks of a run that is over must not write into the next one's."""

    def begin(self, record: Record, regions: Sequence[int]) -> None:
        """Forget all receipts: something else is being made, of so many regions per level."""
        self._lines.unlink(missing_ok=True)
        draft = self._record.with_suffix(".draft")
        self.run = uuid.uuid4().hex
        draft.write_text(json.dumps({"run": self.run, "record": record}), encoding="utf-8")
        draft.replace(self._record)
        self.checksums = [np.full(count, UNDONE) for count in regions]

    def resume(self, regions: Sequence[int]) -> Iterator[Receipt]:
        """Read the receipts of the runs before; what a crash tore off the last line is cut off the file.

        A line that is no receipt of one of these regions counts for nothing: its region is made once more. Of a region
        that was made again there are several lines; the last has the checksum.
        """
        self.checksums = [np.full(count, UNDONE) for count in regions]
        self.run = json.loads(self._record.read_text(encoding="utf-8"))["run"]
        if not self._lines.exists():
            return
        whole = 0
        with self._lines.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                receipt = _receipt(line, regions)
                if receipt is not None:
                    known = self.checksums[receipt.level][receipt.index]
                    self.checksums[receipt.level][receipt.index] = receipt.crc32
                    if known == UNDONE:
                        yield receipt
        os.truncate(self._lines, whole)

    def forget(self, receipt: Receipt) -> None:
        """Take a region for not done."""
        self.checksums[receipt.level][receipt.index] = UNDONE

    def add(self, receipt: Receipt) -> None:
        """Note that a region is done."""
        patiently(partial(self._append, json.dumps(_kept(receipt)) + "\n"))
        self.checksums[receipt.level][receipt.index] = receipt.crc32

    def _append(self, line: str) -> None:
        with self._lines.open("a", encoding="utf-8") as lines:
            lines.write(line)

    def left(self, level: int, regions: Regions) -> Iterator[Region]:
        """Make those regions of a level that are not done, one by one."""
        return (regions.at(int(index)) for index in np.flatnonzero(self.checksums[level] == UNDONE))


def read_record(output: str | Location) -> Record | None:
    """Read what an unfinished output was to become; None where there is none."""
    try:
        kept = json.loads((_folder(output) / RECORD).read_text(encoding="utf-8"))
        record = kept["record"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if isinstance(record, dict) and isinstance(kept.get("run"), str) else None


@contextmanager
def claim(output: str | Location, *, keep: bool = False) -> Iterator[Ledger]:
    """Lock an output, sweep what killed runs left next to it, and forget the ledger if it ends well.

    Parameters
    ----------
    output
        Where it is made.
    keep
        Whether to keep the ledger even so.

    Raises
    ------
    OutputError
        If another run has it.
    """
    folder = _folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{output}: another run is making it. Wait for it, or choose another name.") from error
    try:
        sweep(output)
        yield Ledger(folder)
        if not keep:
            (folder / RECORD).unlink(missing_ok=True)
    finally:
        if not (folder / RECORD).exists():  # nothing to go on with
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(folder.parent, output)
        lock.release()


def _remove_empty(folder: Path, output: str | Location) -> None:
    """Leave nothing of an output at a URL but its model, if there is one."""
    if isinstance(located(output), Remote):
        with suppress(OSError):
            folder.rmdir()


def sweep(output: str | Location) -> None:
    """Remove what killed runs left: folders half made or half deleted, and shards half written."""
    target = located(output).absolute()
    if isinstance(target, Remote):
        return  # what is written there appears as a whole
    for end in DRAFTS:
        for folder in target.parent.glob(f".{escape(target.name)}.*{end}"):
            if re.fullmatch(r"[0-9a-f]{32}", folder.name[len(target.name) + 2 : -len(end)]):
                shutil.rmtree(folder, ignore_errors=True)
    for file in target.rglob(PARTIAL) if read_record(output) else ():
        file.unlink(missing_ok=True)


def first_difference(ours: Record, theirs: Record) -> str | None:
    """Say in what two records differ; None where they are the same."""
    for key in (*ours, *theirs):
        if ours.get(key) != theirs.get(key):
            return f"{key} was {json.dumps(theirs.get(key))} and is {json.dumps(ours.get(key))}"
    return None


def _folder(output: str | Location) -> Path:
    target = located(output).absolute()
    if isinstance(target, Remote):
        return state_folder(target) / "ledger"
    return target.with_name(f".{target.name}.svision")


def _kept(receipt: Receipt) -> dict[str, Any]:
    """Leave out of a receipt what says nothing, or nothing to a later run."""
    usual = {field.name: field.default for field in fields(Receipt)}
    values = {name: getattr(receipt, name) for name in usual if name not in ("worker", "coarser", "maps")}
    return {key: value for key, value in values.items() if value != usual[key]}


def _receipt(line: bytes, regions: Sequence[int]) -> Receipt | None:
    try:
        values = json.loads(line)
        receipt = Receipt(**{**values, "start": tuple(values["start"]), "maps": (), "coarser": None})
        known = 0 <= receipt.level < len(regions) and 0 <= receipt.index < regions[receipt.level]
        return receipt if known and 0 <= receipt.crc32 < 2**32 else None
    except (ValueError, TypeError, KeyError):
        return None
