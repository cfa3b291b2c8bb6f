"""Kill workers and clients at random for as long as you like; every output must be the undisturbed one.

Run ``python benchmarks/soak/chaos.py --minutes 60``; it writes ``benchmarks/results/soak.json``. A volume is enhanced
by the command line again and again, while something is killed every few seconds: a worker, the command itself, or all
of it at once. Whenever the command has ended, the same command is run again, until it has finished; then the output is
verified, compared voxel for voxel, and removed.
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path

import numpy as np
import psutil
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))

from environment import environment
from memory import small_model
from rows import RESULTS

from svision_dask.simulation.simulate import Phantom

SHAPE = (64, 256, 256)
PAUSE = (0.5, 8.0)
"""Seconds between one kill and the next."""
OPTIONS = ("--tile", "32", "--chunks", "32", "--shards", "64", "--workers", "2")


def command(source: Path, output: Path, model: Path) -> list[str]:
    """Make the command line that is run again and again."""
    return [sys.executable, "-m", "svision_dask", "enhance", str(source), str(output), "-m", str(model), *OPTIONS]


def disturb(process: subprocess.Popen[bytes], rng: random.Random, seen: Counter[str]) -> None:
    """Kill something of a run every few seconds, until it has ended."""
    while process.poll() is None:
        time.sleep(rng.uniform(*PAUSE))
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            what = rng.choice(("worker", "worker", "client", "all"))
            children = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn" in str(p.cmdline())]
            if what == "worker" and children:
                rng.choice(children).kill()
            elif what == "client":
                process.kill()
            elif what == "all":
                os.killpg(process.pid, signal.SIGKILL)
            seen[f"{what} killed"] += 1
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what a killed client left behind


def one_output(folder: Path, run: list[str], rng: random.Random, seen: Counter[str]) -> None:
    """Run a command, disturbed, until its output is finished."""
    while True:
        with subprocess.Popen(
            run, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"), start_new_session=True
        ) as process:
            disturb(process, rng, seen)
        seen[f"ended with {process.returncode}"] += 1
        if process.returncode == 0:
            return
        assert process.returncode in (3, -signal.SIGKILL), (folder / "log").read_text()


def soak(minutes: float, seed: int) -> dict[str, int]:
    """Make outputs for so many minutes, and count what happened."""
    rng, seen, end = random.Random(seed), Counter[str](), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        coarse = Phantom(shape=tuple(2 * n for n in SHAPE), seed=0, photons=100)
        voxels = coarse.measured(tuple(slice(0, n) for n in SHAPE), 2)
        import tifffile

        tifffile.imwrite(folder / "a.ome.tif", voxels.astype("u2"), ome=True, metadata={"axes": "ZYX"})
        model = small_model((2, 2, 2), "zyx", "fast").save(folder / "model.safetensors")
        subprocess.run(command(folder / "a.ome.tif", folder / "wanted.zarr", model), check=True, capture_output=True)
        wanted = zarr.open_array(folder / "wanted.zarr" / "0", mode="r")[...]
        while time.monotonic() < end:
            one_output(folder, command(folder / "a.ome.tif", folder / "fine.zarr", model), rng, seen)
            verify = [sys.executable, "-m", "svision_dask", "verify", str(folder / "fine.zarr")]
            subprocess.run(verify, check=True, capture_output=True)
            found = zarr.open_array(folder / "fine.zarr" / "0", mode="r")[...]
            assert np.array_equal(found, wanted), "the output is not the undisturbed one"
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            assert not left, left
            seen["outputs equal to the undisturbed one"] += 1
            shutil.rmtree(folder / "fine.zarr")
            print(dict(seen), flush=True)
    return dict(seen)


def main() -> None:
    """Soak, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args()
    found = soak(given.minutes, given.seed)
    text = json.dumps({"environment": environment(), "minutes": given.minutes, "seen": found}, indent=1)
    given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
