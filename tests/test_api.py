"""The public names: all typed, all documented, and shown as tables in notebooks."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from distributed import Client

import svision_dask as sv
from svision_dask.running.outcome import Made
from svision_dask.stores.locations import Location
from tests.models import fast

FUNCTIONS = [name for name in sv.__all__ if inspect.isfunction(getattr(sv, name))]
CLASSES = [name for name in sv.__all__ if inspect.isclass(getattr(sv, name))]
METHODS = [
    f"{name}.{method}"
    for name in CLASSES
    for method, made in inspect.getmembers(getattr(sv, name), lambda m: inspect.isfunction(m) or inspect.ismethod(m))
    if not method.startswith("_") and made.__module__.startswith("svision_dask")
]

TYPES = {name: getattr(sv, name) for name in CLASSES} | {"Client": Client, "Location": Location}
"""What signatures name though it is imported for the type checker alone."""
STOOD_FOR = {"Remote"}
"""In signatures that take a str in place of it, which is what users give."""


def public(name: str):
    made = sv
    for part in name.split("."):
        made = getattr(made, part)
    return made


def section(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, re.M | re.S)
    return found.group(1) if found else ""


def test_every_public_name_is_a_function_or_a_class():
    assert sorted([*FUNCTIONS, *CLASSES]) == sorted(sv.__all__) == list(sv.__all__)


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_all_of_a_signature_is_typed(name):
    signature = inspect.signature(public(name))
    given = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    assert not [p.name for p in given if p.annotation is p.empty]
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_result_and_error_of_a_function_is_documented(name):
    made, text = public(name), inspect.getdoc(public(name)) or ""
    documented = {
        word.strip()
        for line in section(text, "Parameters").splitlines()
        if re.match(r"\w", line)
        for word in line.split(",")
    }
    assert documented == set(inspect.signature(made).parameters)
    assert section(text, "Returns").strip() or inspect.signature(made).return_annotation in (None, "None")
    assert section(text, "Raises").strip()


@pytest.mark.parametrize("name", [*CLASSES, *METHODS])
def test_every_class_and_method_says_what_it_is_and_what_it_is_given(name):
    made = public(name)
    text = inspect.getdoc(made) or ""
    assert text
    if not inspect.isclass(made):
        given = [p for p in inspect.signature(made).parameters if p not in ("self", "cls")]
        assert not [p for p in given if not re.search(rf"\b{p}\b", text)]


def classes_of(hint: object) -> Iterator[type]:
    """All classes that a type is made of, such as those of ``Callable[[Progress], None] | None``."""
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    if inspect.isclass(hint) and not parts:
        yield hint
    for part in parts:
        yield from classes_of(part)


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_every_class_of_ours_that_a_signature_names_is_public(name):
    hints = typing.get_type_hints(public(name), localns=TYPES)
    named = {made for hint in hints.values() for made in classes_of(hint) if made.__module__.startswith("svision_dask")}
    assert {made.__name__ for made in named} - STOOD_FOR <= set(CLASSES)


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_every_error_and_warning_that_is_documented_can_be_caught_by_its_name(name):
    text = inspect.getdoc(public(name)) or ""
    said = re.findall(r"^(\w+)$", section(text, "Raises") + section(text, "Warns"), re.M)
    assert not [error for error in said if error not in CLASSES and not hasattr(builtins, error)]


@pytest.mark.parametrize("name", [name for name in CLASSES if is_dataclass(getattr(sv, name))])
def test_every_field_says_what_it_is(name):
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(public(name)))).body
    documented = {
        field.target.id
        for field, text in zip(made.body, made.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    assert {field.name for field in fields(public(name)) if not field.name.startswith("_")} <= documented


def test_a_report_is_printed_in_three_lines_that_say_what_was_notable():
    volume = sv.open_volume(np.zeros((8, 16, 16), np.uint16), spacing=1)
    plan = sv.plan_volume(volume, fast((2, 2, 2)))
    made = Made(levels=(plan.fine, plan.coarse), missing_chunks=0, empty_regions=3, smaller_tiles=0)
    report = sv.Report(output="fine.zarr", plan=plan, made=made, model_path="a.safetensors", model_digest="", seconds=7)
    assert str(report).splitlines() == [
        "fine.zarr: z 16 · y 32 · x 32, uint16, in 7 s",
        f"2 levels, {len(plan.regions)} regions, 3 of a single value",
        "model a.safetensors",
    ]


class Cells(HTMLParser):
    """What a browser would show, and the tags that it would make of it."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_volumes_plans_and_models_are_tables_whose_text_is_text(tmp_path):
    named = "<script>x</script>&"
    volume = sv.open_volume(np.zeros((8, 16, 16), np.uint16), spacing=(2, 0.5, 0.5), unit="um")
    volume = replace(volume, name=named)
    model = replace(fast((2, 2, 2)), provenance={"input": named})
    for value, shown in (
        (volume, ["z 8 · y 16 · x 16", f"Volume {named}"]),
        (model, [model.digest, named]),
        (sv.plan_volume(volume, model), ["z 2 · y 2 · x 2"]),
    ):
        cells = Cells()
        cells.feed(value._repr_html_())
        assert cells.tags == {"table", "caption", "tbody", "tr", "th", "td"}
        assert not [text for text in shown if text not in cells.texts]
