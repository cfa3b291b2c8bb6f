"""``svision-dask``, and ``python -m svision_dask``."""

import os
import signal

from svision_dask.commands.signals import leave


def main() -> None:
    """Run the command line; what it imports first takes a while, and Ctrl-C is one line then, too."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup stays nohup
        signal.signal(signal.SIGINT, leave)
    # Before torch starts OpenMP, whose threads spin for milliseconds while they wait for each other: where anything
    # else uses the cores, each spins for the core that the other needs, and training takes four times as long. Not to
    # spin at all takes a third longer where nothing else runs; this long, some per cent.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from svision_dask.commands.cli import main as run

    run(prog_name="svision-dask")


if __name__ == "__main__":
    main()
