"""How far a command is: one display on a terminal, a line now and then in a log, and events for ``--json-log``."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from svision_dask.commands.console import size_words
from svision_dask.commands.events import log_event

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from svision_dask.running.progress import ClusterState, RunProgress, WorkerState
    from svision_dask.training.train import Progress as Trained

LOG_EVERY_SECONDS = 10
REFRESHES = 4
"""Of the display, per second, at most."""
POINTS = 120
"""That a pace is taken from."""
POINT_SECONDS = 1.0
"""Between two of them, at least: together, the last two minutes or more."""
SHOWN_WORKERS = 8
"""Of a cluster, in the display; of the others the sum is there."""


class Pace:
    """How fast something goes, over the last while; what was there at first does not count."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=POINTS)
        self._last = (0.0, 0)

    def note(self, done: int) -> None:
        """Take into account how much is done by now."""
        now = time.monotonic()
        if self._points and done < self._last[1]:  # the next of its kind has begun
            self._points.clear()
        if not self._points or now - self._points[-1][0] >= POINT_SECONDS:
            self._points.append((now, done))
        self._last = (now, done)

    @property
    def per_second(self) -> float | None:
        """None as long as there is nothing to go by."""
        if not self._points:
            return None
        seconds, done = (b - a for a, b in zip(self._points[0], self._last, strict=True))
        return done / seconds if done > 0 and seconds > 0 else None

    def left(self, total: int) -> float | None:
        """Seconds that the rest will take; None where that is not known, or nothing is left."""
        rate = self.per_second
        return (total - self._last[1]) / rate if rate and self._last[1] < total else None


class Reporter:
    """Takes reports, and says them in a log: of each kind the first, the last, and one every so often."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}
        self._written = Pace()
        self._cluster: ClusterState | None = None
        self._said: dict[str, float] = {}
        self._failed = 0

    def __call__(self, what: str, done: int, total: int, remark: str = "") -> None:
        """Report on anything: what is being done, how much of it is done, how much there is, and a remark."""
        self._report(what, done, total, remark, {"remark": remark} if remark else {})

    def training(self, state: Trained) -> None:
        """Report on a step of training."""
        what = "train" if state.stages == 1 else f"train stage {state.stage + 1} of {state.stages}"
        exam = "" if state.gain is None else f", exam {state.gain:+.2f} dB over cubic"
        figures = {"stage": state.stage + 1, "stages": state.stages, "loss": state.loss, "exam_db": state.gain}
        self._report(what, state.step, state.steps, f"loss {state.loss:.4f}{exam}", figures)

    def run(self, state: RunProgress) -> None:
        """Report on a region."""
        self._written.note(state.voxels)
        rate = self._written.per_second or state.voxels / max(state.seconds, 1e-3)
        counts = {"empty": state.empty, "retried": state.retried, "failed": state.failed}
        figures = {
            "before": state.before,
            **counts,
            "voxels": state.voxels,
            "voxels_per_second": rate,
            "read_bytes": state.read_bytes,
            "written_bytes": state.written_bytes,
        }
        if self._cluster is not None:
            cluster = self._cluster
            figures |= {"workers": len(cluster.workers), "at_work": cluster.at_work}
            figures["workers_memory_bytes"] = cluster.memory_bytes
        if state.failed > self._failed:  # worth a line of its own
            self._failed = state.failed
            self._said.clear()
        remark = ", ".join(
            [
                f"{rate / 1e6:.1f} M voxels/s, {size_words(state.read_bytes)} read",
                f"{size_words(state.written_bytes)} written",
                *(f"{count} {name}" for name, count in counts.items() if count),
            ]
        )
        what = "write" if state.level == 0 else f"level {state.level}"
        self._report(what, state.done, state.regions, remark, figures)

    def workers(self, state: ClusterState) -> None:
        """Take note of what the workers do; called from another thread, so that it says nothing by itself."""
        self._cluster = state

    def _report(self, what: str, done: int, total: int, remark: str, figures: dict[str, Any]) -> None:
        pace = self._paces.setdefault(what, Pace())
        pace.note(done)
        left = pace.left(total)
        self._show(what, done, total, left, remark)
        now = time.monotonic()
        if now - self._said.get(what, -math.inf) < LOG_EVERY_SECONDS and done < total:
            return
        self._said[what] = now
        self._say(what, done, total, left, remark)
        log_event("progress", what=what, done=done, total=total, seconds_left=left, **figures)

    def _show(self, what: str, done: int, total: int, left: float | None, remark: str) -> None:
        """Show every report, where that costs nothing."""

    def _say(self, what: str, done: int, total: int, left: float | None, remark: str) -> None:
        """Say a report now and then."""
        remaining = "" if left is None else f"{left:.0f} s left"
        click.echo(", ".join(filter(None, (f"{what} {done}/{total}", remaining, remark))), err=True)


class Display(Reporter):
    """Shows the latest of all reports; drawn a few times a second by a thread of rich's, however many there are."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        super().__init__()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[remark]}", markup=False),
        )
        self._tasks: dict[str, Any] = {}
        self._figures = ""

    def run(self, state: RunProgress) -> None:
        """Report on a region; its figures have a line of their own."""
        super().run(state)
        if state.before:
            self._figures += f", {state.before} regions by runs before"

    def drawn(self) -> RenderableType:
        """Draw the latest state."""
        from rich.console import Group
        from rich.text import Text

        figures, cluster = self._figures, self._cluster  # as they are now: this is another thread
        lines: list[RenderableType] = [self._bars.get_renderable()]
        if figures:
            lines.append(Text(figures))
        if cluster is not None and cluster.workers:
            lines.append(_workers_table(cluster))
        if cluster is not None and cluster.dashboard:
            lines.append(Text(f"dashboard {cluster.dashboard}"))
        return Group(*lines)

    def end(self) -> None:
        """Leave what was reached on the screen, without workers that are gone."""
        self._cluster = None

    def _show(self, what: str, done: int, total: int, left: float | None, remark: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, remark="", left="")
        running = what.startswith(("write", "level"))
        self._figures = remark if running else ""
        remaining = "" if left is None else f"{timedelta(seconds=round(left))} left"
        shown = "" if running else remark
        self._bars.update(self._tasks[what], completed=done, total=total, left=remaining, remark=shown)

    def _say(self, what: str, done: int, total: int, left: float | None, remark: str) -> None:
        """Say nothing: it is on the screen."""


@contextmanager
def progress() -> Iterator[Reporter]:
    """Show progress on stderr; data alone goes to stdout."""
    if not sys.stderr.isatty():
        yield Reporter()
        return
    from rich.console import Console
    from rich.live import Live

    display = Display()
    console = Console(stderr=True)
    with Live(get_renderable=display.drawn, console=console, refresh_per_second=REFRESHES, redirect_stdout=False):
        try:
            yield display
        finally:
            display.end()  # the last drawing follows


def _workers_table(cluster: ClusterState) -> Table:
    """List the first workers, and the sum of all."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    rates = [worker.voxels_per_second for worker in cluster.workers if worker.regions]
    together = sum(rate for rate in rates if rate)
    done = sum(worker.done for worker in cluster.workers)
    table.add_row(
        f"{len(cluster.workers)} workers",
        f"{cluster.at_work} at work",
        size_words(cluster.memory_bytes),
        f"{done} done",
        _rate_words(together or None),
    )
    for worker in cluster.workers[:SHOWN_WORKERS]:
        table.add_row(f"  {worker.name}", *_worker_cells(worker))
    if len(cluster.workers) > SHOWN_WORKERS:
        table.add_row(f"  and {len(cluster.workers) - SHOWN_WORKERS} more")
    return table


def _worker_cells(worker: WorkerState) -> Iterator[str]:
    yield f"region {worker.regions[0]}" if worker.regions else "waits"
    yield size_words(worker.memory_bytes)
    yield f"{worker.done} done"
    yield _rate_words(worker.voxels_per_second)


def _rate_words(voxels_per_second: float | None) -> str:
    return "" if voxels_per_second is None else f"{voxels_per_second / 1e6:.1f} M voxels/s"
