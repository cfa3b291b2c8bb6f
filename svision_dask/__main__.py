"""``python -m svision_dask``."""

from svision_dask.commands.cli import main

main(prog_name="svision-dask")
