"""Rows of a benchmark, kept in a JSON file, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from environment import environment

Row = dict[str, Any]
Rows = Mapping[str, Row]

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
NETWORKS = {"cubic": 1, "cubic + BP": 1, "paper": 2, "fast": 3, "axial": 3, "best": 2, "best axial": 2, "oracle": 2}
"""Which network a method has, kept in each row; to be raised where it changes. Rows without are of the first."""
FORMER = "†"
"""Marks what was measured with networks that have changed since."""


def is_former(row: Row) -> bool:
    """Whether a row was measured with a network that has changed since."""
    return bool(row.get("network", 1) < NETWORKS[row["method"]])


def collect(
    path: Path,
    wanted: Iterable[tuple[str, Callable[[], Row]]],
    publish: Callable[[Rows, Path], None],
    *,
    again: bool = False,
) -> None:
    """Measure the rows that ``path`` lacks, or all, and write everything after each row.

    Parameters
    ----------
    path
        The JSON file.
    wanted
        The key of each row, and how to measure it.
    publish
        Called with all rows and ``path``, to make a table or a plot of them beside it.
    again
        Whether to measure rows that there are.
    """
    for key, measure in wanted:
        if key in _read(path) and not again:
            continue
        row = measure()
        print(f"{key}: {row['psnr']:.2f} dB" if row.get("psnr") else key, flush=True)
        rows = {**_read(path), key: row}  # another process may have added to it
        path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
        publish(rows, path)


def _read(path: Path) -> dict[str, Row]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else {}


def spread(values: Iterable[float]) -> str:
    """Write mean ± half the range."""
    known = list(values)
    half = (max(known) - min(known)) / 2
    return f"{statistics.fmean(known):.2f} ± {half:.2f}" if len(known) > 1 else f"{known[0]:.2f}"
