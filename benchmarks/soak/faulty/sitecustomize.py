"""Imported by Python as it starts: files below ``SOAK_FOLDER`` are as slow and unreliable as those of some networks."""

import errno
import io
import os
import random
import time
from pathlib import Path

FOLDER, NOTES = os.environ["SOAK_FOLDER"], os.environ["SOAK_NOTES"]
STALE, SLOW, TORN = 0.01, 0.2, 0.2
"""Shares of opened files that are stale, and of renames that are slow, or not atomic."""
_open, _replace = io.open, os.replace


def _note(what: str) -> None:
    with _open(NOTES, "a", encoding="utf-8") as notes:
        notes.write(f"{what}\n")


def _is_there(path: object) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(FOLDER)


def _stale(path: object) -> None:
    if _is_there(path) and random.random() < STALE:
        _note("stale")
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(path))


def open_stale(file, *args, **kwargs):
    """Open a file, or fail."""
    _stale(file)
    return _open(file, *args, **kwargs)


def replace_badly(source, target, **options):
    """Rename a file: late, or as a copy that others can see half of, or not at all."""
    _stale(target)
    if _is_there(target) and Path(source).is_file():
        chance = random.random()
        if chance < TORN:
            _note("renamed in two halves")
            with _open(source, "rb") as file:
                content = file.read()
            with _open(target, "wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                time.sleep(0.2)
                file.write(content[len(content) // 2 :])
            Path(source).unlink()
            return
        if chance < TORN + SLOW:
            _note("renamed slowly")
            time.sleep(0.5)
    _replace(source, target, **options)


io.open, os.replace = open_stale, replace_badly
