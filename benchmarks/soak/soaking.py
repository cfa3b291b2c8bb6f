"""What all soaks share: one small volume is enhanced again and again, disturbed, and must come out as undisturbed."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from environment import environment
from memory import small_model
from rows import RESULTS

from svision_dask.simulation.simulate import Phantom

SHAPE = (32, 128, 128)
OPTIONS = ("--tile", "16", "--chunks", "16", "--shards", "32")
EQUAL = "outputs equal to the undisturbed one"


@dataclass(frozen=True, kw_only=True)
class Soak:
    """One soak at work."""

    folder: Path
    rng: random.Random
    seen: Counter[str]
    """What happened, and how often."""
    seconds: float
    """That the command takes undisturbed: faults come several times in these, however busy the machine is."""

    def arguments(self, output: Path, *options: object) -> list[str]:
        """Make the arguments of ``python`` that enhance the volume into ``output``."""
        given = ("enhance", self.folder / "a.ome.tif", output, "-m", self.folder / "model.safetensors", *OPTIONS)
        return ["-m", "svision_dask", *map(str, (*given, *options))]

    def until_finished(self, start: Callable[[], subprocess.Popen[Any]], disturb: Callable[..., None]) -> None:
        """Start a command, disturbed, and again, until it has finished its output."""
        ended = None
        while ended != 0:
            with start() as process:
                disturb(process)
            ended = process.returncode
            self.seen[f"ended with {ended}"] += 1
            log = self.log.read_text(errors="replace")
            assert "Traceback" not in log, log
            passing = ended == 1 and os.strerror(errno.ESTALE) in log  # files of the command itself, for long
            assert ended in (0, 3, -signal.SIGKILL) or passing, log

    @property
    def log(self) -> Path:
        """Where a command's standard error goes."""
        return self.folder / "log"

    def check(self, output: Path) -> None:
        """Verify an output, compare it voxel for voxel, and remove it."""
        verify = [sys.executable, "-m", "svision_dask", "verify", str(output)]
        subprocess.run(verify, check=True, capture_output=True)
        wanted, found = (voxels(place) for place in (self.folder / "wanted.zarr", output))
        assert np.array_equal(found, wanted), "the output is not the undisturbed one"
        left = [path.name for path in output.parent.iterdir() if path.name.startswith(".")]
        assert not left, left
        self.seen[EQUAL] += 1
        shutil.rmtree(output)


def voxels(output: Path) -> np.ndarray[Any, Any]:
    """Read level 0."""
    return np.asarray(zarr.open_array(output / "0", mode="r")[...])


def run(name: str, make: Callable[[Soak], None], about: Iterable[str], **facts: object) -> None:
    """Make outputs by ``make`` for as long as the command line says, and write this soak's part of the file."""
    parser = argparse.ArgumentParser(description=" ".join(about).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = _begun(Path(folder), random.Random(given.seed))
        began = time.monotonic()
        try:
            while time.monotonic() < began + 60 * given.minutes:
                make(soak)
                print(dict(soak.seen), flush=True)
        except pytest.skip.Exception as reason:
            sys.exit(f"{name}: {reason}")
        minutes = round((time.monotonic() - began) / 60, 1)
        write(given.output, name, {"minutes": minutes, "undisturbed_seconds": soak.seconds, **facts, "seen": soak.seen})


def _begun(folder: Path, rng: random.Random) -> Soak:
    """Make a volume and a model, and enhance it undisturbed."""
    import tifffile

    coarse = Phantom(shape=tuple(2 * n for n in SHAPE), seed=0, photons=100)
    measured = coarse.measured(tuple(slice(0, n) for n in SHAPE), 2)
    tifffile.imwrite(folder / "a.ome.tif", measured.astype("u2"), ome=True, metadata={"axes": "ZYX"})
    small_model((2, 2, 2), "zyx", "fast").save(folder / "model.safetensors")
    soak, began = Soak(folder=folder, rng=rng, seen=Counter(), seconds=0), time.monotonic()
    command = [sys.executable, *soak.arguments(folder / "wanted.zarr", "--workers", 2)]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "made").mkdir()
    return Soak(folder=folder, rng=rng, seen=Counter(), seconds=round(time.monotonic() - began, 1))


def write(path: Path, name: str, part: Mapping[str, object]) -> None:
    """Put what one soak found beside what the others did."""
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts[name] = {"environment": environment(), **part}
    path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
