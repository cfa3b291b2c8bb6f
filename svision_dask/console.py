"""What the terminal shows: progress, tables, one-line errors. On a terminal with rich, in a log as a line now and then."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from svision_dask.errors import SvisionError

if TYPE_CHECKING:
    from svision_dask.omezarr import ImageInfo
    from svision_dask.plan import Plan
    from svision_dask.volume import Volume

LOG_EVERY_SECONDS = 10
SHOW_TRACEBACK = 2
"""How many -v it takes."""


class Terminated(BaseException):
    """SIGTERM arrived: a cluster's scheduler wants the machine back."""


class Commands(click.Group):
    """A group of commands whose errors are one line, and whose exit codes are those of the documentation."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; 1 failed, 2 usage, 3 partial, 130 and 143 interrupted."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except (SvisionError, OSError, MemoryError) as error:
            if ctx.params.get("verbose", 0) >= SHOW_TRACEBACK:
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            click.echo(f"svision-dask: {message}", err=True)
            raise click.exceptions.Exit(getattr(error, "exit_code", 1)) from error
        except KeyboardInterrupt:
            click.echo("svision-dask: interrupted; nothing was published.", err=True)
            raise click.exceptions.Exit(128 + signal.SIGINT) from None
        except Terminated:
            click.echo("svision-dask: terminated; nothing was published.", err=True)
            raise click.exceptions.Exit(128 + signal.SIGTERM) from None


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the host program decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


Update = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a remark."""


@contextmanager
def progress() -> Iterator[Update]:
    """Show progress on stderr; data alone goes to stdout."""
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int, remark: str) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what, total=total, remark="")
            display.update(tasks[what], completed=done, total=total, remark=remark)

        yield update


def _log_lines() -> Update:
    started: dict[str, float] = {}
    last = [0.0]

    def update(what: str, done: int, total: int, remark: str) -> None:
        now = time.monotonic()
        begun = started.setdefault(what, now)
        if now - last[0] < LOG_EVERY_SECONDS and done < total:
            return
        last[0] = now
        left = (now - begun) / done * (total - done) if done else 0.0
        click.echo(f"{what} {done}/{total}, {left:.0f} s left, {remark}", err=True)

    return update


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan in words."""
    axes = ",".join(plan.coarse.axes)
    spacing = ", ".join(
        f"{axis} {s:g}{f' {unit}' if unit else ''}"
        for axis, s, unit in zip(plan.fine.axes, plan.fine.spacing, plan.fine.units, strict=True)
        if axis not in "tc"
    )
    yield f"input    {axes} = {_times(plan.coarse.shape)}"
    yield f"output   {axes} = {_times(plan.fine.shape)}, {plan.dtype}, OME-Zarr {plan.version}, spacing {spacing}"
    stored = f"chunks {_times(plan.chunk)}" + (f" in shards {_times(plan.shard)}" if plan.shard else "")
    yield f"stored   {stored}, at most {size(plan.write_bytes)} before the pyramid" + (
        f", {size(plan.disk_free_bytes)} free" if plan.disk_free_bytes is not None else ""
    )
    yield f"work     {len(plan.regions)} regions of {_times(plan.region)}, {size(plan.read_bytes)} to read"
    yield (
        f"tiles    {_times(plan.tile)} coarse voxels with a halo of {_times(plan.halo)}: what the operators reach; "
        f"{100 * (plan.redundancy - 1):.0f} % computed twice"
    )
    yield (
        f"workers  {plan.workers} with {plan.threads} threads each, {size(plan.worker_bytes)} of "
        f"{size(plan.memory_bytes)} memory each"
    )


def volume_facts(volume: Volume) -> dict[str, Any]:
    """A volume as plain values."""
    grid = volume.grid
    return {
        "name": volume.name,
        "axes": grid.axes,
        "shape": list(grid.shape),
        "dtype": volume.dtype.name,
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "units": list(grid.units),
        "channels": list(volume.channels),
    }


def image_facts(info: ImageInfo) -> list[dict[str, Any]]:
    """All levels of an OME-Zarr as plain values."""
    return [
        {
            "path": level.path,
            "shape": list(level.grid.shape),
            "dtype": str(level.dtype),
            "spacing": list(level.grid.spacing),
            "origin": list(level.grid.origin),
            "chunks": list(level.chunks),
            "shards": list(level.shards) if level.shards else None,
            "compressors": list(level.compressors),
        }
        for level in info.levels
    ]


def _times(numbers: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in numbers)
