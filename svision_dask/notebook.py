"""Values as small tables, as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def html_table(title: str, rows: Mapping[str, Any]) -> str:
    """Make a table of two columns; text from files is text, whatever is in it."""
    lines = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{lines}</tbody></table>"


def per_axis(axes: str, values: Any) -> str:
    """Write one value per axis, such as ``z 2 · y 0.5``; what is None is left out."""
    return " · ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True) if value is not None)
