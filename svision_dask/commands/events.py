"""What a command does as a log for programs: a JSON object per line, appended to the file of ``--json-log``."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import click

from svision_dask.errors import OutputError, RegionError, one_line

KEY = "svision_dask.events"
"""Where click keeps the log of the command that runs."""


class EventLog:
    """Writes events to a file, as they happen; one that can be written no longer does not end the run."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    def write(self, event: str, **figures: Any) -> None:
        """Append a line: the time (UTC), the event, and its figures, as JSON values."""
        if self._stream is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **_plain(figures)}, allow_nan=False, default=str)
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._stream = None
            click.echo(f"warning: --json-log: {one_line(error)}; it ends here, the run goes on", err=True)


def json_logged(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option ``--json-log``; the option is the last that help lists."""

    @click.option("--json-log", metavar="FILE", help="Append progress to FILE, a JSON object per line.")
    @wraps(command)
    def run(*arguments: Any, json_log: str | None, **given: Any) -> Any:
        with _logging(json_log, command.__name__, given):
            return command(*arguments, **given)

    return run


def log_event(event: str, **figures: Any) -> None:
    """Append a line to the log of the command that runs, if it has one."""
    context = click.get_current_context(silent=True)
    log = context.meta.get(KEY) if context else None
    if log is not None:
        log.write(event, **figures)


@contextmanager
def _logging(path: str | None, name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Log to ``path`` what happens inside, its begin, and how it ended."""
    if path is None:
        yield
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(_appended(Path(path)))
        except OutputError:
            raise
        except OSError as error:
            why = error.strerror
            raise OutputError(f"--json-log {path}: cannot be written ({why}). Choose another file.") from error
        log, began = EventLog(stream), time.monotonic()
        click.get_current_context().meta[KEY] = log
        paths = {key: given[key] for key in ("source", "output", "folder") if given.get(key) is not None}
        log.write("begin", command=name, version=version("svision-dask"), **paths)
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            reason: dict[str, Any] = {} if stopped else {"error": one_line(error)}
            if isinstance(error, RegionError):
                reason["failures"] = error.failures
            log.write("interrupted" if stopped else "failed", seconds=time.monotonic() - began, **reason)
            raise
        log.write("end", seconds=time.monotonic() - began)


@contextmanager
def _appended(path: Path) -> Iterator[IO[str]]:
    """Open a log to append to; nothing is appended to what is no log, such as an input named by mistake."""
    torn = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(1) != b"{":
                raise OutputError(f"--json-log {path}: the file is there, and no log. Choose another file.")
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
    stream = path.open("a", encoding="utf-8")
    try:
        if torn:  # a killed run's last line; the next one is a line of its own
            stream.write("\n")
        yield stream
    finally:
        with suppress(OSError):  # a full disk, which was said; what is left cannot be written now either
            stream.close()


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no more digits than anyone reads."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
