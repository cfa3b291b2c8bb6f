# /// script
# dependencies = ["nox>=2025.10"]
# ///
"""Tests on every Python world, lint and types, each in its own environment: ``nox``, or ``nox -s lint``."""

from pathlib import Path

import nox

WORLDS = ["3.11", "3.12", "3.13", "3.14"]
"""3.11 is the old world of constraints.txt, all others the new one."""
INSTALL = ("-c", "constraints.txt")

nox.needs_version = ">=2025.10"
nox.options.error_on_missing_interpreters = False  # test on those that are here


@nox.session(python=WORLDS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after ``--`` go to pytest."""
    session.install(*INSTALL, "-e", ".[test]")
    session.run("pytest", *(session.posargs or ["-n", "2", "--dist", "loadfile"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Look for errors and formatting."""
    session.install(*INSTALL, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    session.install(*INSTALL, "-e", ".[test]")
    session.run("mypy")


@nox.session(default=False)
def metadata(session: nox.Session) -> None:
    """Check what others read of the repository: its layout, pyproject.toml and CITATION.cff."""
    # Without constraints.txt: cffconvert needs an older jsonschema than the tests do.
    session.install("sp-repo-review[cli]==2026.8.14", "validate-pyproject[all]==0.27", "cffconvert==2.0.0")
    session.run("repo-review", ".")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("cffconvert", "--validate")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, and run what it shows."""
    session.install(*INSTALL, "-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "docs", "docs/_build")


@nox.session(python=WORLDS, default=False)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, and run the demo from the wheel, far from the source."""
    dist = session.create_tmp()
    session.install(*INSTALL, "build")
    for old in Path(dist).glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", dist, ".")
    (built,) = Path(dist).glob("*.whl")
    session.install(*INSTALL, str(built))
    session.chdir(dist)
    session.run("svision-dask", "demo", "--overwrite")


if __name__ == "__main__":
    nox.main()
