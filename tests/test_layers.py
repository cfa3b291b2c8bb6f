"""Each library has a home, our imports point downwards, modules stay small. A new module gets a row in the tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "svision_dask"

FOLDERS = (
    "",
    "stores",
    "tiff",
    "omezarr",
    "opening",
    "network",
    "training",
    "running",
    "judging",
    "simulation",
    "interchange",
    "commands",
    "plugin",
)
"""From the bottom up: a module imports from its own folder and from those before it. The first is the package's own."""

ENTRANCES = {"__init__", "__main__"}
"""These hand out what is below them, so that they stand above all folders."""

LIBRARIES = {
    "backend": {"numpy", "torch"},
    "commands/cli": {"click"},
    "commands/compare": {"click"},
    "commands/console": {"click"},
    "commands/events": {"click"},
    "commands/export": {"click"},
    "commands/given": {"click", "distributed"},
    "commands/options": {"click"},
    "commands/progress": {"click", "rich"},
    "commands/view": {"click"},
    "interchange/bioimage_io": {"bioimageio", "numpy"},
    "interchange/graph": {"torch"},
    "interchange/tracing": {"onnx", "torch"},
    "judging/beads": {"numpy", "scipy"},
    "judging/charts": {"matplotlib", "numpy"},
    "judging/checking": {"dask", "numpy"},
    "judging/compared": {"numpy"},
    "judging/figure": {"matplotlib", "numpy"},
    "judging/fineness": {"numpy", "skimage"},
    "judging/report": {"numpy"},
    "judging/report_views": {"matplotlib", "numpy"},
    "judging/resolution": {"numpy"},
    "judging/scan": {"numpy"},
    "judging/seams": {"numpy", "scipy"},
    "judging/view_layers": {"numpy"},
    "judging/viewing": {"PIL", "neuroglancer"},
    "metrics": {"numpy", "skimage"},
    "network/baselines": {"numpy", "scipy", "torch"},
    "network/layers": {"torch"},
    "network/model": {"numpy", "safetensors", "torch"},
    "network/portable": {"torch"},
    "network/resample": {"numpy", "torch"},
    "network/stage": {"torch"},
    "omezarr/arrays": {"numpy", "zarr"},
    "omezarr/attributes": {"ome_zarr", "ome_zarr_models", "zarr"},
    "omezarr/bounds": {"numcodecs", "zarr"},
    "omezarr/checksums": {"numpy", "zarr"},
    "omezarr/conformance": {"jsonschema", "ome_zarr_models", "pydantic", "referencing"},
    "omezarr/labels": {"numpy", "ome_zarr_models"},
    "omezarr/metadata": {"ome_zarr_models", "pydantic", "zarr"},
    "omezarr/pyramid": {"numpy"},
    "omezarr/read": {"numpy", "zarr"},
    "omezarr/transposed": {"numpy"},
    "omezarr/write": {"numpy", "zarr"},
    "opening/formats": {"dask", "numpy"},
    "opening/in_memory": {"dask", "numpy"},
    "opening/selection": {"dask", "numpy"},
    "plugin/layers": {"napari", "numpy"},
    "plugin/widget": {"magicgui", "napari", "qtpy"},
    "plugin/work": {"dask", "numpy"},
    "running/arguments": {"dask"},
    "running/cluster": {"dask", "distributed", "psutil"},
    "running/connection": {"cryptography", "dask", "dask_jobqueue", "distributed"},
    "running/display": {"numpy", "zarr"},
    "running/enhancement": {"dask", "numpy"},
    "running/image": {"distributed", "numpy"},
    "running/ledger": {"filelock", "numpy"},
    "running/pipeline": {"distributed", "numpy"},
    "running/plates": {"distributed"},
    "running/preflight": {"distributed", "psutil"},
    "running/progress": {"dask", "distributed"},
    "running/regions": {"dask", "numpy", "torch", "zarr"},
    "running/scheduling": {"cloudpickle", "distributed"},
    "running/trial": {"distributed", "torch"},
    "running/trust_maps": {"numpy"},
    "running/trust_summary": {"numpy"},
    "running/verification": {"distributed"},
    "simulation/demo": {"numpy", "tifffile"},
    "simulation/neurites": {"numpy"},
    "simulation/simulate": {"numpy", "scipy"},
    "stores/locations": {"fsspec"},
    "stores/remote_store": {"zarr"},
    "stores/transfer": {"aiohttp", "fsspec"},
    "tiff/companion": {"tifffile"},
    "tiff/decoded": {"numpy"},
    "tiff/files": {"numpy"},
    "tiff/metadata": {"tifffile"},
    "tiff/planes": {"numpy", "tifffile"},
    "tiff/read": {"numpy", "tifffile"},
    "training/axial": {"numpy", "torch"},
    "training/brightness": {"torch"},
    "training/drift": {"numpy", "torch"},
    "training/exam": {"numpy", "torch"},
    "training/fitting": {"numpy", "torch"},
    "training/noise": {"numpy", "scipy"},
    "training/noise_estimate": {"numpy", "scipy"},
    "training/pairs": {"numpy", "torch"},
    "training/psf": {"numpy", "scipy", "tifffile"},
    "training/sample": {"numpy"},
    "training/self_check": {"numpy", "torch"},
    "training/train": {"numpy", "torch"},
    "training/zoom": {"numpy", "torch"},
    "volume": {"dask", "numpy"},
}
"""The third-party libraries that a module may import, at its top or in a function; without a row it imports none."""

MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
SLOW_TO_IMPORT = {"distributed", "matplotlib", "ome_zarr", "torch"}


def folder(module: str) -> str:
    """The folder that ``module`` is in: empty for the package itself."""
    return module.rpartition("/")[0]


def imported_names(module: str) -> set[str]:
    """Every dotted name that ``module`` imports anywhere in it; ``from a import b`` gives ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}.py has a relative import, which these tests do not follow"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_libraries(module: str) -> set[str]:
    """The third-party libraries that ``module`` imports."""
    return {name.split(".")[0] for name in imported_names(module)} - sys.stdlib_module_names - {"svision_dask"}


def imported_modules(module: str) -> set[str]:
    """Our own modules that ``module`` imports; a name of the package itself counts as ``__init__``."""
    return {home(name.split(".")[1:]) for name in imported_names(module) if name.split(".")[0] == "svision_dask"}


def home(parts: list[str]) -> str:
    """The longest beginning of a dotted name that is a module of ours."""
    for length in range(len(parts), 0, -1):
        for module in ("/".join(parts[:length]), "/".join((*parts[:length], "__init__"))):
            if module in MODULES:
                return module
    return "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_libraries_it_is_the_home_of(module):
    assert imported_libraries(module) <= LIBRARIES.get(module, set())


def test_only_modules_have_a_row_among_the_libraries():
    assert set(LIBRARIES) <= set(MODULES)


@pytest.mark.parametrize("module", sorted(set(MODULES) - ENTRANCES))
def test_a_module_imports_only_from_its_folder_and_those_below(module):
    below = FOLDERS[: FOLDERS.index(folder(module)) + 1]
    assert {folder(imported) for imported in imported_modules(module)} <= set(below)
    assert not imported_modules(module) & ENTRANCES


def test_no_modules_import_each_other_in_a_circle():
    remaining = {(module, imported) for module in set(MODULES) - ENTRANCES for imported in imported_modules(module)}
    while leaves := {edge for edge in remaining if edge[1] not in {importer for importer, _ in remaining}}:
        remaining -= leaves
    assert not remaining


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module):
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= 400


def test_no_module_is_named_after_what_it_is_not_about():
    assert not {Path(module).name.strip("_") for module in MODULES} & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("module", ["svision_dask", "svision_dask.commands.cli"])
def test_importing_is_quick_because_slow_libraries_wait_until_they_are_used(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert module in loaded.stdout.split()
    assert not SLOW_TO_IMPORT & set(loaded.stdout.split())
