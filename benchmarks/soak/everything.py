"""All at once: a slow network that loses packets, killed workers and commands, and a disk that is full at first.

Run ``python benchmarks/soak/everything.py --minutes 60`` as root, on Linux; it writes its part of
``benchmarks/results/soak.json``. Every output must be the undisturbed one. A command that found the disk full is run
again with twice the room; the hosts are those of ``network.py``, and their workers are killed as ``chaos.py`` does.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import psutil
import soaking
from network import DELAY, LOSS
from wire import slow_network

from tests.hosts import IMPORTED, crew, disk

FIRST_KIB = 1024
"""Of the disk; an output takes about four times as much."""


def make(soak: soaking.Soak) -> None:
    """Make one output."""
    number, size = soak.seen[soaking.EQUAL], FIRST_KIB
    (folder := soak.folder / f"crew{number}").mkdir()
    with (
        disk(small := soak.folder / f"disk{number}", f"{size}k") as change,
        slow_network(DELAY, LOSS, seed=number) as frames,
        crew(folder, **IMPORTED) as (where, on),
    ):
        output = small / "fine.zarr"

        def start() -> subprocess.Popen[str]:
            nonlocal size
            if soak.log.exists() and "No space left" in soak.log.read_text(errors="replace"):
                soak.seen["disks found full"] += 1
                size *= 2
                change(f"size={size}k")
            return on(*soak.arguments(output, "--scheduler-file", where), stderr=soak.log.open("wb"))

        soak.until_finished(start, lambda process: kill(process, soak))
        soak.check(output)
    soak.log.unlink()
    soak.seen.update(frames)


def kill(process: subprocess.Popen[Any], soak: soaking.Soak) -> None:
    """Kill a worker, which its nanny replaces, or the command, now and then."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(soak.rng.uniform(0.2, 1.5) * soak.seconds)
            return
        if soak.rng.random() < 0.2:
            process.kill()
            soak.seen["client killed"] += 1
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in str(p.cmdline())]
            if found:
                soak.rng.choice(found).kill()
                soak.seen["worker killed"] += 1


if __name__ == "__main__":
    soaking.run("everything", make, __doc__)
