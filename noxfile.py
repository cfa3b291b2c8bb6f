"""Tests on every Python world, lint and types, each in its own environment: ``nox``, or ``nox -s lint``."""

import nox

WORLDS = ["3.11", "3.12", "3.13", "3.14"]
"""3.11 is the old world of constraints.txt, all others the new one."""
INSTALL = ("-c", "constraints.txt")

nox.options.error_on_missing_interpreters = False  # test on those that are here


@nox.session(python=WORLDS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after ``--`` go to pytest."""
    session.install(*INSTALL, "-e", ".[test]")
    session.run("pytest", *session.posargs)


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
