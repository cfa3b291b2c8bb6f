"""Each library has a home, our imports point downwards, modules stay small. A new module gets a row in the tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "svision_dask"

LAYERS = (
    {"backend", "codec", "errors", "degradation", "geometry", "architecture", "workload", "plan"},
    {"network", "resample", "stage", "volume", "noise", "noise_estimate", "neurites", "arguments"}
    | {"locations", "remote_store", "transfer"},
    {
        "model",
        "conformance",
        "labels",
        "omezarr",
        "omezarr_arrays",
        "omezarr_attributes",
        "omezarr_checksums",
        "omezarr_collections",
        "omezarr_extras",
        "omezarr_metadata",
        "omezarr_write",
        "tiff",
        "tiff_files",
        "tiff_metadata",
        "tiff_planes",
        "formats",
    }
    | {"baselines", "ledger", "metrics", "output", "pairs", "psf", "pyramid", "sample", "selection", "simulate"}
    | {"beads", "resolution", "seams", "serving"},
    {"axial", "drift", "enhancement", "exam", "fitting", "self_check", "zoom"},
    {"training", "regions", "cluster", "connection", "preflight", "figure", "image", "label_images", "charts"},
    {"pipeline", "verification", "checking"},
    {"demo", "plates", "compared", "scan", "fineness", "comparison", "report", "report_views", "viewing"},
    {"compare_command", "view_command", "console", "options", "given", "cli", "__main__", "__init__"},
)
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}

WITHIN_LAYER = {
    ("architecture", "degradation"),
    ("architecture", "errors"),
    ("architecture", "geometry"),
    ("axial", "zoom"),
    ("backend", "errors"),
    ("codec", "errors"),
    ("cli", "console"),
    ("cli", "given"),
    ("conformance", "omezarr_metadata"),
    ("cli", "compare_command"),
    ("compare_command", "console"),
    ("comparison", "compared"),
    ("comparison", "fineness"),
    ("comparison", "scan"),
    ("fineness", "compared"),
    ("report", "comparison"),
    ("report", "report_views"),
    ("report_views", "comparison"),
    ("report_views", "scan"),
    ("scan", "compared"),
    ("viewing", "compared"),
    ("viewing", "scan"),
    ("cli", "view_command"),
    ("connection", "cluster"),
    ("connection", "preflight"),
    ("given", "console"),
    ("cli", "options"),
    ("drift", "zoom"),
    ("fitting", "exam"),
    ("fitting", "zoom"),
    ("formats", "omezarr"),
    ("formats", "labels"),
    ("formats", "omezarr_collections"),
    ("formats", "selection"),
    ("formats", "omezarr_metadata"),
    ("formats", "tiff"),
    ("formats", "tiff_files"),
    ("geometry", "degradation"),
    ("geometry", "errors"),
    ("labels", "omezarr"),
    ("labels", "omezarr_metadata"),
    ("omezarr", "omezarr_metadata"),
    ("omezarr_attributes", "omezarr_metadata"),
    ("omezarr_metadata", "omezarr_extras"),
    ("omezarr_checksums", "omezarr_metadata"),
    ("omezarr_collections", "omezarr_metadata"),
    ("omezarr_write", "omezarr_arrays"),
    ("omezarr_write", "omezarr_attributes"),
    ("omezarr_write", "omezarr_metadata"),
    ("image", "cluster"),
    ("image", "label_images"),
    ("image", "regions"),
    ("output", "ledger"),
    ("output", "omezarr"),
    ("output", "omezarr_write"),
    ("plan", "backend"),
    ("plan", "codec"),
    ("plan", "degradation"),
    ("plan", "errors"),
    ("plan", "geometry"),
    ("plan", "workload"),
    ("regions", "preflight"),
    ("locations", "transfer"),
    ("remote_store", "locations"),
    ("remote_store", "transfer"),
    ("resolution", "metrics"),
    ("sample", "model"),
    ("stage", "network"),
    ("stage", "resample"),
    ("tiff_files", "tiff"),
    ("tiff", "tiff_metadata"),
    ("tiff", "tiff_planes"),
    ("tiff_planes", "tiff_metadata"),
    ("workload", "geometry"),
    ("__main__", "cli"),
}
"""The only imports between modules of one layer: (importer, imported)."""

LIBRARIES = {
    "__init__": set(),
    "__main__": set(),
    "architecture": set(),
    "arguments": {"dask"},
    "axial": {"numpy", "torch"},
    "backend": {"torch"},
    "baselines": {"numpy", "scipy", "torch"},
    "checking": {"dask", "numpy"},
    "conformance": {"jsonschema", "ome_zarr_models", "pydantic", "referencing"},
    "beads": {"numpy", "scipy"},
    "charts": {"matplotlib", "numpy"},
    "cli": {"click"},
    "cluster": {"dask", "distributed", "psutil"},
    "compare_command": {"click"},
    "compared": {"numpy"},
    "comparison": set(),
    "connection": {"cryptography", "dask", "dask_jobqueue", "distributed"},
    "codec": set(),
    "console": {"click", "rich"},
    "degradation": set(),
    "demo": {"numpy", "tifffile"},
    "drift": {"numpy", "torch"},
    "enhancement": {"dask", "numpy"},
    "errors": set(),
    "exam": {"numpy", "torch"},
    "fineness": {"numpy", "skimage"},
    "fitting": {"numpy", "torch"},
    "figure": {"matplotlib", "numpy"},
    "formats": {"dask", "numpy"},
    "geometry": set(),
    "given": {"click", "distributed"},
    "image": {"distributed", "numpy"},
    "label_images": set(),
    "labels": {"numpy", "ome_zarr_models"},
    "ledger": {"filelock", "numpy"},
    "locations": {"fsspec"},
    "transfer": {"aiohttp", "fsspec"},
    "metrics": {"numpy", "skimage"},
    "model": {"numpy", "safetensors", "torch"},
    "network": {"torch"},
    "neurites": {"numpy"},
    "noise": {"numpy", "scipy"},
    "noise_estimate": {"numpy", "scipy"},
    "omezarr": {"numpy", "zarr"},
    "omezarr_arrays": {"numpy", "zarr"},
    "omezarr_attributes": {"ome_zarr", "ome_zarr_models", "zarr"},
    "omezarr_checksums": {"numpy", "zarr"},
    "omezarr_collections": set(),
    "omezarr_extras": set(),
    "omezarr_metadata": {"ome_zarr_models", "pydantic", "zarr"},
    "omezarr_write": {"numpy", "zarr"},
    "options": {"click"},
    "output": set(),
    "pairs": {"numpy", "torch"},
    "pipeline": {"distributed", "numpy"},
    "plan": set(),
    "plates": {"distributed"},
    "preflight": {"distributed", "psutil"},
    "psf": {"numpy", "scipy", "tifffile"},
    "pyramid": {"numpy"},
    "regions": {"cloudpickle", "dask", "distributed", "numpy", "torch", "zarr"},
    "remote_store": {"zarr"},
    "report": {"numpy"},
    "report_views": {"matplotlib", "numpy"},
    "resample": {"numpy", "torch"},
    "resolution": {"numpy"},
    "sample": {"numpy"},
    "selection": {"dask", "numpy"},
    "scan": {"numpy"},
    "seams": {"numpy", "scipy"},
    "self_check": {"numpy", "torch"},
    "serving": set(),
    "simulate": {"numpy", "scipy"},
    "stage": {"torch"},
    "tiff": {"numpy", "tifffile"},
    "tiff_files": {"numpy"},
    "tiff_metadata": {"tifffile"},
    "tiff_planes": {"numpy", "tifffile"},
    "training": {"numpy", "torch"},
    "verification": {"distributed"},
    "view_command": {"click"},
    "viewing": {"neuroglancer", "numpy"},
    "volume": {"dask", "numpy"},
    "workload": set(),
    "zoom": {"numpy", "torch"},
}
"""The third-party libraries that each module may import, at its top or inside a function."""

MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
SLOW_TO_IMPORT = {"distributed", "matplotlib", "ome_zarr", "torch"}


def imported_names(module: str) -> set[str]:
    """Every dotted name that ``module`` imports anywhere in it; ``from a import b`` gives ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(filter(None, ["svision_dask" if node.level else "", node.module]))
            names |= {f"{home}.{alias.name}" for alias in node.names}
    return names


def imported_libraries(module: str) -> set[str]:
    """The third-party libraries that ``module`` imports."""
    return {name.split(".")[0] for name in imported_names(module)} - sys.stdlib_module_names - {"svision_dask"}


def imported_modules(module: str) -> set[str]:
    """Our own modules that ``module`` imports; a name of the package itself counts as ``__init__``."""
    names = [name.split(".") for name in imported_names(module) if name.split(".")[0] == "svision_dask"]
    return {parts[1] if len(parts) > 1 and parts[1] in MODULES else "__init__" for parts in names}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_libraries_it_is_the_home_of(module):
    assert module in LIBRARIES, f"{module}.py has no row in LIBRARIES"
    assert imported_libraries(module) <= LIBRARIES[module]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module):
    assert module in LAYER, f"{module}.py has no layer in LAYERS"
    allowed = {name for name, layer in LAYER.items() if layer < LAYER[module]}
    allowed |= {imported for importer, imported in WITHIN_LAYER if importer == module}
    assert imported_modules(module) <= allowed


def test_both_tables_have_the_same_modules():
    assert set(LAYER) == set(LIBRARIES)


def test_imports_within_a_layer_are_within_a_layer_and_never_circular():
    assert all(LAYER[importer] == LAYER[imported] for importer, imported in WITHIN_LAYER)
    remaining = set(WITHIN_LAYER)
    while leaves := {edge for edge in remaining if edge[1] not in {importer for importer, _ in remaining}}:
        remaining -= leaves
    assert not remaining


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module):
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= 400


def test_no_module_is_named_after_what_it_is_not_about():
    assert not {Path(module).name.strip("_") for module in MODULES} & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("module", ["svision_dask", "svision_dask.cli"])
def test_importing_is_quick_because_slow_libraries_wait_until_they_are_used(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert module in loaded.stdout.split()
    assert not SLOW_TO_IMPORT & set(loaded.stdout.split())
