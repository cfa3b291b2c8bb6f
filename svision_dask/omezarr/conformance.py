"""Whether the attributes of a zarr group are what the OME-Zarr specification asks for: published models and schemas."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ome_zarr_models.v04.bioformats2raw import BioFormats2RawAttrs as SeriesV04
from ome_zarr_models.v04.hcs import HCSAttrs as PlateV04
from ome_zarr_models.v04.image import ImageAttrs as ImageV04
from ome_zarr_models.v04.image_label_types import Label as LabelV04
from ome_zarr_models.v04.labels import LabelsAttrs as LabelsV04
from ome_zarr_models.v04.well import WellAttrs as WellV04
from ome_zarr_models.v05.bioformats2raw import BioFormats2RawAttrs as SeriesV05
from ome_zarr_models.v05.hcs import HCSAttrs as PlateV05
from ome_zarr_models.v05.image import ImageAttrs as ImageV05
from ome_zarr_models.v05.image_label_types import Label as LabelV05
from ome_zarr_models.v05.labels import LabelsAttrs as LabelsV05
from ome_zarr_models.v05.well import WellAttrs as WellV05
from pydantic import BaseModel

from svision_dask.omezarr.metadata import first_problem

Version = Literal["0.4", "0.5"]
Attributes = Mapping[str, Any]

KINDS = ("multiscales", "image-label", "plate", "well", "labels", "bioformats2raw.layout")
"""What a group can be, by the key that says so; it can be several."""
MODELS: dict[tuple[str, str], type[BaseModel]] = {
    ("0.4", "multiscales"): ImageV04,
    ("0.4", "image-label"): LabelV04,
    ("0.4", "plate"): PlateV04,
    ("0.4", "well"): WellV04,
    ("0.4", "labels"): LabelsV04,
    ("0.4", "bioformats2raw.layout"): SeriesV04,
    ("0.5", "multiscales"): ImageV05,
    ("0.5", "image-label"): LabelV05,
    ("0.5", "plate"): PlateV05,
    ("0.5", "well"): WellV05,
    ("0.5", "labels"): LabelsV05,
    ("0.5", "bioformats2raw.layout"): SeriesV05,
}
SCHEMAS = {
    "multiscales": "image",
    "image-label": "label",
    "plate": "plate",
    "well": "well",
    "bioformats2raw.layout": "bf2raw",
}
"""Names of the official JSON schemas."""


def kinds_of(version: Version, attributes: Attributes) -> tuple[str, ...]:
    """Say what a group is, by its attributes; nothing where it is no OME-Zarr."""
    ome = _ome(version, attributes)
    return tuple(kind for kind in KINDS if kind in ome)


def metadata_problems(version: Version, attributes: Attributes) -> Iterator[str]:
    """Say in what the attributes of a group break the specification, the first problem of each judge.

    Parameters
    ----------
    version
        Of OME-Zarr.
    attributes
        All of the group's.
    """
    ome = _ome(version, attributes)
    for kind in kinds_of(version, attributes):
        judged = ome[kind] if kind == "image-label" else ome
        problem = _model_problem(MODELS[version, kind], judged)
        if problem:
            yield f"{kind}: {problem}"
        if kind in SCHEMAS:
            yield from (f"{kind}: {problem} (schema)" for problem in _schema_problems(version, kind, attributes))


def _model_problem(model: type[BaseModel], judged: Any) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fields that only SHOULD be there
            model.model_validate(judged)
    except Exception as error:  # validators of the models can meet values that they did not expect
        return first_problem(error)
    return None


def has_schemas() -> bool:
    """Whether the official JSON schemas are installed: the extra ``check``."""
    return find_spec("jsonschema") is not None and _schema_folder("0.5").is_dir()


def _ome(version: Version, attributes: Attributes) -> Attributes:
    ome = attributes.get("ome") if version == "0.5" else attributes
    return ome if isinstance(ome, dict) else {}


def _schema_problems(version: Version, kind: str, attributes: Attributes) -> Iterator[str]:
    """Say where the official schema is first broken; nothing where it is not installed."""
    if not has_schemas():
        return
    error = next(_validator(version, SCHEMAS[kind]).iter_errors(attributes), None)
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{where}: {' '.join(error.message.split())[:200]}" if where else " ".join(error.message.split())[:200]


def _schema_folder(version: str) -> Path:
    """Find the schemas in a package that has them, without importing it, which takes seconds."""
    package = find_spec("ngff_zarr")
    home = Path(package.origin).parent if package is not None and package.origin else Path("ngff_zarr")
    return home / "spec" / version / "schemas"


@cache
def _validator(version: str, name: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    files = {file.stem: json.loads(file.read_text("utf-8")) for file in _schema_folder(version).glob("*.schema")}
    resources = [
        (content.get("$id", f"{stem}.schema"), Resource.from_contents(content, default_specification=DRAFT202012))
        for stem, content in files.items()
    ]
    return Draft202012Validator(files[name], registry=Registry().with_resources(resources))
