"""Kill workers and clients at random for as long as you like; every output must be the undisturbed one.

Run ``python benchmarks/soak/chaos.py --minutes 60``; it writes its part of ``benchmarks/results/soak.json``. A volume
is enhanced by the command line again and again, while something is killed every now and then: a worker, the command
itself, or all of it at once. Every other output is made by workers that end by themselves, as dask's ``KillWorker`` has
it: they exit, close, or fault. Whenever the command has ended, the same command is run again, until it has finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import soaking

MODES = cycle(("segfault", "", "sys.exit", "", "graceful", ""))
PRELOAD = "DASK_DISTRIBUTED__WORKER__PRELOAD"


def make(soak: soaking.Soak) -> None:
    """Make one output."""
    mode, output = next(MODES), soak.folder / "made" / "fine.zarr"
    dying = {PRELOAD: json.dumps([str(Path(__file__).with_name("dying.py"))]), "SOAK_MODE": mode}
    env = {**os.environ, **(dying if mode else {}), "SOAK_SECONDS": str(soak.seconds / 2)}
    command = [sys.executable, *soak.arguments(output, "--workers", 2)]

    def start() -> subprocess.Popen[Any]:
        errors = soak.log.open("wb")
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, env=env)

    def disturb(process: subprocess.Popen[Any]) -> None:
        if mode:
            process.wait()
        else:
            kill(process, soak)

    soak.until_finished(start, disturb)
    soak.seen[f"outputs while workers {mode or 'and clients were killed'}"] += 1
    soak.check(output)


def kill(process: subprocess.Popen[Any], soak: soaking.Soak) -> None:
    """Kill something of a run several times in the seconds that it takes, until it has ended."""
    while process.poll() is None:
        time.sleep(soak.rng.uniform(0.1, 1.5) * soak.seconds)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            what = soak.rng.choice(("worker", "worker", "client", "all"))
            children = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn" in str(p.cmdline())]
            if what == "worker" and children:
                soak.rng.choice(children).kill()
            elif what == "client":
                process.kill()
            elif what == "all":
                os.killpg(process.pid, signal.SIGKILL)
            soak.seen[f"{what} killed"] += 1
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what a killed client left behind


if __name__ == "__main__":
    soaking.run("chaos", make, __doc__)
