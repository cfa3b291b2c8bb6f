"""``svision-dask export``: a model as other programs take it."""

from __future__ import annotations

from typing import Any

import click

FORMATS = ("onnx", "pt2", "bioimageio")


@click.command()
@click.argument("model")
@click.argument("output", metavar="OUT")
@click.option("--format", type=click.Choice(FORMATS), help="By default, what .onnx, .pt2 or .zip stands for.")
@click.option("--channel", type=int, help="Of a model of several: whose intensity constants, from 0.")
@click.option("--licence", "--license", default="", metavar="SPDX", help="Of the model, such as CC-BY-4.0.")
@click.option("--author", "authors", multiple=True, metavar="NAME", help="For BioImage.IO; may be repeated.")
@click.option("--sample", metavar="INPUT", help="Image for BioImage.IO's test tensors; by default, a simulated one.")
def export(model: str, output: str, **given: Any) -> None:
    """Write MODEL as OUT: ONNX (.onnx), torch.export (.pt2) or a BioImage.IO package (.zip)."""
    from svision_dask.interchange.export import export_model

    click.echo(str(export_model(model, output, **given)))
