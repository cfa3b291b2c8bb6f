"""``svision-dask view``: volumes in the browser, before and after."""

from __future__ import annotations

import threading
from typing import Any

import click

from svision_dask.commands.given import describing_given
from svision_dask.commands.options import describing, picking


@click.command()
@click.argument("before")
@click.argument("after", required=False)
@click.option("--trust", is_flag=True, help="Also show the trust maps of AFTER: spread and consistency.")
@picking
@describing
@click.option("--screenshot", metavar="PNG", help="Write a picture of the view, and stop.")
@click.option("--overwrite", is_flag=True, help="Replace the picture, if it is there.")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser of this machine.")
def view(before: str, after: str | None, screenshot: str | None, overwrite: bool, opened: bool, **given: Any) -> None:
    """Show BEFORE, and AFTER beside it, in the browser of this machine; AFTER may still be in the making.

    How an image is to be read (--level, --series, --axes, --spacing, --unit, --missing) is for BEFORE. Ctrl-C ends it.
    """
    from svision_dask.judging.viewing import browser_for
    from svision_dask.judging.viewing import view as serve

    if screenshot:
        browser_for(screenshot, overwrite=overwrite)
    asked = {name: given[name] for name in ("trust", "channel", "time")}
    with serve(before, after, **asked, **describing_given(given)) as shown:
        for text in shown.warnings:
            click.echo(f"warning: {text}", err=True)
        if screenshot:
            click.echo(str(shown.screenshot(screenshot, overwrite=overwrite)))
            return
        click.echo(shown.url)
        if opened:
            click.launch(shown.url)
        threading.Event().wait()
