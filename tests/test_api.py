"""The public names: all typed, all documented, and shown as tables in notebooks."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import svision_dask as sv
from svision_dask.running.pipeline import plan_volume
from tests.models import fast

FUNCTIONS = [name for name in sv.__all__ if inspect.isfunction(getattr(sv, name))]
CLASSES = [name for name in sv.__all__ if inspect.isclass(getattr(sv, name))]
METHODS = [
    f"{name}.{method}"
    for name in CLASSES
    for method, made in inspect.getmembers(getattr(sv, name), lambda m: inspect.isfunction(m) or inspect.ismethod(m))
    if not method.startswith("_") and made.__module__.startswith("svision_dask")
]


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
        (plan_volume(volume, model.architecture), ["z 2 · y 2 · x 2"]),
    ):
        cells = Cells()
        cells.feed(value._repr_html_())
        assert cells.tags == {"table", "caption", "tbody", "tr", "th", "td"}
        assert not [text for text in shown if text not in cells.texts]
