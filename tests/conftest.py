"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch starts OpenMP. Its threads spin while they wait for each other; where tests share the cores with anything
# else, they spin for a core that the other needs, and training takes four times as long. Results are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real volumes, kept beside the project and never in it."""
    folder = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; set SVISION_DATA")
    return folder
