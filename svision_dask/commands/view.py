"""``svision-dask view``: volumes in the browser, before and after."""

from __future__ import annotations

import threading

import click


@click.command()
@click.argument("before")
@click.argument("after", required=False)
@click.option("--trust", is_flag=True, help="Also show the trust maps of AFTER: spread and consistency.")
@click.option("--screenshot", metavar="PNG", help="Write a picture of the view, and stop.")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser of this machine.")
def view(before: str, after: str | None, trust: bool, screenshot: str | None, opened: bool) -> None:
    """Show BEFORE, and AFTER beside it, in the browser of this machine; AFTER may still be in the making.

    Ctrl-C ends it.
    """
    from svision_dask.judging.viewing import view as serve

    with serve(before, after, trust=trust) as shown:
        if screenshot:
            click.echo(str(shown.screenshot(screenshot)))
            return
        click.echo(shown.url)
        if opened:
            click.launch(shown.url)
        threading.Event().wait()
