"""Run the command line, in this process or in one of its own, and small images to run it on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from click.testing import CliRunner

from svision_dask.commands.cli import main

PROGRAM = (sys.executable, "-m", "svision_dask")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that says why it ended, after whatever progress it reported."""
        last = self.stderr.splitlines()[-1]
        assert last.startswith("svision-dask: "), self.stderr
        assert self.stderr.count("svision-dask: ") == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        return last


def run(*arguments: object) -> Outcome:
    """Run in this process, which is quicker; its workers are processes of their own all the same."""
    runner = CliRunner(catch_exceptions=False)
    result = runner.invoke(main, [str(a) for a in arguments], prog_name="svision-dask")
    return Outcome(result.exit_code, result.stdout, result.stderr)


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start in a process group of its own, with signals and streams as a terminal would give them."""
    return subprocess.Popen(
        [*PROGRAM, *(str(a) for a in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores Ctrl-C
        **options,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a process, on a busy machine too."""
    stdout, stderr = process.communicate(timeout=300)
    return Outcome(process.returncode, stdout, stderr)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder below ``folder``; equal if nothing was made, changed or removed."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def textured(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Voxels with something to learn from: waves, and noise."""
    rng = np.random.default_rng(seed)
    waves = sum(np.sin(index / (3 + axis)) for axis, index in enumerate(np.indices(shape)))
    return (500 + 100 * waves + 20 * rng.standard_normal(shape)).astype(dtype)


def write_tiff(path: Path, voxels: np.ndarray, axes: str | None = "ZYX") -> Path:
    """Write an OME-TIFF of 2 × 0.5 × 0.5 µm voxels, or a plain TIFF that names no axes."""
    if axes is None:
        tifffile.imwrite(path, voxels)
    else:
        spacing = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} | ({"PhysicalSizeZ": 2.0} if "Z" in axes else {})
        tifffile.imwrite(path, voxels, ome=True, metadata={"axes": axes, **spacing})
    return path


def environment(scratch: Path) -> dict[str, str]:
    """Where temporary files go to ``scratch``, so that those left behind are seen."""
    scratch.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), "OMP_WAIT_POLICY": "passive"}
