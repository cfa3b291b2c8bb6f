"""Look for files that are neither opened nor refused in one line, for as long as you like.

Run ``python benchmarks/soak/fuzz.py --minutes 60``: it feeds bytes to the properties of ``tests/test_fuzz.py``, each
for an equal share of the time in a process of its own, and ends with 1 if one of them fails. Where atheris is installed
(``pip install atheris``; Linux, CPython 3.11 and later), it makes these bytes from those that led to lines of
svision-dask and tifffile where none had been before; elsewhere they are random. ``--only NAME`` is for one property.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

MOST_BYTES = 4096
"""What one example is made of."""
GUIDED = importlib.util.find_spec("atheris") is not None


def properties() -> dict[str, Callable[[bytes], object]]:
    """Collect what turns bytes into an example, and tries it."""
    from tests import test_fuzz

    found = {name: getattr(test, "hypothesis", None) for name, test in vars(test_fuzz).items()}
    return {name: handle.fuzz_one_input for name, handle in found.items() if handle is not None}


def feed_random(name: str, seconds: float) -> None:
    """Feed random bytes to a property."""
    use, until, count = properties()[name], time.monotonic() + seconds, 0
    while time.monotonic() < until:
        use(random.randbytes(random.randrange(MOST_BYTES)))
        count += 1
    print(f"{name}: {count} examples")


def feed_guided(name: str, seconds: float) -> None:
    """Have atheris feed a property; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["svision_dask", "tifffile"]):
        use = properties()[name]
    sizes = [f"-max_len={MOST_BYTES}", "-len_control=0", "-rss_limit_mb=4096"]  # short ones make no example
    limits = [f"-max_total_time={int(seconds)}", "-timeout=60", f"-artifact_prefix={tempfile.gettempdir()}/"]
    atheris.Setup([sys.argv[0], *sizes, *limits], use)
    atheris.Fuzz()


def main() -> int:
    """Feed one property, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--only")
    given = parser.parse_args()
    if given.only:
        logging.disable()  # tifffile has something to say about nearly every example
        (feed_guided if GUIDED else feed_random)(given.only, 60 * given.minutes)
        return 0
    names = list(properties())
    share = ["--minutes", str(given.minutes / len(names))]
    ended = [subprocess.run([sys.executable, __file__, "--only", name, *share], check=False) for name in names]
    failed = [name for name, process in zip(names, ended, strict=True) if process.returncode]
    print(f"failed: {', '.join(failed)}" if failed else f"{len(names)} properties hold")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
