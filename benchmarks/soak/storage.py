"""Enhance into a folder that behaves as a bad network file system does; every output must be the undisturbed one.

Run ``python benchmarks/soak/storage.py --minutes 60``; it writes its part of ``benchmarks/results/soak.json``. In all
processes of the command, ``faulty/sitecustomize.py`` makes a rename take a while, or happen in two halves, as copies
do, and opening or renaming a file fail with ESTALE now and then. A command that gave up is run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import soaking

FAULTY = Path(__file__).with_name("faulty")


def make(soak: soaking.Soak) -> None:
    """Make one output."""
    made, notes = soak.folder / "made", soak.folder / "notes"
    paths = os.pathsep.join([str(FAULTY), *sys.path])
    env = {**os.environ, "PYTHONPATH": paths, "SOAK_FOLDER": str(made), "SOAK_NOTES": str(notes)}
    command = [sys.executable, *soak.arguments(made / "fine.zarr", "--workers", 2)]
    notes.write_text("")

    def start() -> subprocess.Popen[Any]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=soak.log.open("wb"), env=env)

    soak.until_finished(start, lambda process: process.wait())
    soak.seen.update(Counter(notes.read_text().splitlines()))
    soak.check(made / "fine.zarr")


if __name__ == "__main__":
    soaking.run("storage", make, __doc__)
