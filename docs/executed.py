"""Run the code blocks of the pages, and put what they print beneath them.

Blocks of ``sh`` and ``python`` are run, page after page in one folder, as a reader would who follows the tutorials in
their order; those of one page in Python share their names. A block after ``<!-- not run: REASON -->`` is not, and the
page says why. A block that fails, or that is neither, fails the build. After ``<!-- output: none -->`` a block is run,
and what it prints is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
RUN = (
    "tutorials/first-volume",
    "tutorials/slice-2d",
    "tutorials/report",
    "tutorials/choosing",
    "tutorials/remote",
    "how-to",
    "how-it-works",
)
"""The pages that are run, in this order; on all others every block says why it is not."""
CODE = ("sh", "bash", "shell", "console", "python", "pycon")
RUNNABLE = ("sh", "python")
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "COLUMNS": "100"}
"""Threads that spin for a core which another process has make training several times as slow."""

_RUN_BY_CI = re.findall(r'readme_command "([a-z]+ command)"', (DOCS.parent / ".ci" / "run").read_text(encoding="utf-8"))
_BLOCK = re.compile(
    r"^(?:<!-- (?P<word>not run|output|[a-z ]+ command)(?:: (?P<value>.+?))? -->\n)?"
    r"```(?P<language>[a-z]+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    printed = io.StringIO()
    failed = False
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "<block>", "exec"), names)
        except BaseException:
            failed = True
            traceback.print_exc(file=printed)
    print(json.dumps([failed, printed.getvalue()]), flush=True)
"""


class BlockError(Exception):
    """A block failed, or does not say whether it is run."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    """Why it is not run, where it says so."""
    shown: bool
    """Whether the page shows what it prints."""
    end: int
    """Where it ends in the text of the page."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page}, line {self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    """All blocks of code on a page."""
    for found in _BLOCK.finditer(text):
        if found["language"] not in CODE:
            continue
        word, value = found["word"] or "", found["value"]
        if word.endswith(" command"):
            if page != "README.md" or word not in _RUN_BY_CI:
                raise BlockError(f"{page}: .ci/run runs no '{word}' of it; README.md has {', '.join(_RUN_BY_CI)}")
            word, value = "not run", "CI runs it"
        if word == "not run" and not value:
            raise BlockError(f"{page}: 'not run' without a reason")
        yield Block(
            page=page,
            line=text.count("\n", 0, found.start("code")),
            language=found["language"],
            code=found["code"],
            reason=value if word == "not run" else None,
            shown=word != "output",
            end=found.end(),
        )


def outputs(folder: Path) -> dict[str, dict[int, str]]:
    """Run all pages in ``folder``; what each block printed, by page and the block's end."""
    printed: dict[str, dict[int, str]] = {}
    environment = {**os.environ, **ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for page in RUN:
        started = time.monotonic()
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        printed[page] = dict(_run_page(page, text, folder, environment))
        print(f"ran {page} in {time.monotonic() - started:.0f} s", flush=True)
    return printed


def _run_page(page: str, text: str, folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _PYTHON],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    ) as python:
        assert python.stdin
        for block in blocks(page, text):
            if block.reason:
                continue
            if block.language not in RUNNABLE:
                raise BlockError(f"{block.place}: a block of {block.language} is never run; say why not")
            run = _shell(block, folder, environment) if block.language == "sh" else _in_python(block, python)
            yield block.end, run
        python.stdin.close()


def _shell(block: Block, folder: Path, environment: Mapping[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BlockError(f"{block.place} failed:\n{block.code}\n{done.stdout}{done.stderr}")
    return done.stdout


def _in_python(block: Block, python: subprocess.Popen[str]) -> str:
    assert python.stdin
    assert python.stdout
    python.stdin.write(json.dumps(block.code) + "\n")
    python.stdin.flush()
    failed, printed = json.loads(python.stdout.readline())
    if failed:
        raise BlockError(f"{block.place} failed:\n{block.code}\n{printed}")
    return str(printed)


def with_outputs(page: str, text: str, printed: Mapping[int, str]) -> str:
    """Put below each block what it printed, or why it is not run."""
    for block in reversed(list(blocks(page, text))):
        if block.reason:
            note = f"\n\n*Not run when this page is built: {block.reason}.*\n"
        elif block.shown and printed.get(block.end):
            note = f"\n\n```text\n{printed[block.end].rstrip()}\n```\n"
        else:
            note = ""
        text = text[: block.end] + note + text[block.end :]
    return text
