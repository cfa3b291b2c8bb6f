"""``svision-dask``, and ``python -m svision_dask``."""

import os
import signal

from svision_dask.commands.signals import leave


def main() -> None:
    """Run the command line; what it imports first takes a while, and Ctrl-C is one line then, too."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup stays nohup
        signal.signal(signal.SIGINT, leave)
    # Before torch starts OpenMP, whose threads spin while they wait for each other: where anything else uses the cores,
    # they spin for a core that the other needs, and training takes four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from svision_dask.commands.cli import main as run

    run(prog_name="svision-dask")


if __name__ == "__main__":
    main()
