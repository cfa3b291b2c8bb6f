"""The pages: every block of code is run or says why not, every link leads somewhere, no figure is typed by hand."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from svision_dask.running.trust_summary import ERROR_OVER_SPREAD

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
PAGES = [path for path in PAGES if "_build" not in path.parts]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def load(path: Path) -> ModuleType:
    """A script that is no module of the package."""
    name = path.stem + "_of_docs"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "benchmarks"))  # scripts there import each other
executed = load(DOCS / "executed.py")
figures = load(ROOT / "benchmarks" / "page.py")
tables = load(ROOT / "benchmarks" / "tables.py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """What a link to a heading of a page may say, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_of_code_is_run_or_says_why_not(path):
    page = path.relative_to(DOCS).with_suffix("").as_posix() if DOCS in path.parents else path.name
    found = list(executed.blocks(page, text_of(path)))
    fenced = [language for language, _ in FENCE.findall(text_of(path)) if language in executed.CODE]
    assert len(found) == len(fenced)
    unmarked = [block.place for block in found if not block.reason]
    assert page in executed.RUN or not unmarked


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_fence_names_its_language(path):
    assert "" not in [language for language, _ in FENCE.findall(text_of(path))]


@pytest.mark.parametrize("page", executed.RUN)
def test_the_pages_that_are_run_have_something_to_run(page):
    assert any(not block.reason for block in executed.blocks(page, text_of(DOCS / f"{page}.md")))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_inside_of_the_repository_lead_somewhere(path):
    for target in LINK.findall(FENCE.sub("", text_of(path))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor and there != DOCS / "benchmarks.md":  # its headings are made when it is built
            assert anchor in anchors(there), target


def test_what_a_package_index_shows_has_no_link_into_the_repository():
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))
    shown = readme = text_of(ROOT / "README.md")
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(change["pattern"], change["replacement"], shown)
    targets = LINK.findall(FENCE.sub("", shown))
    assert targets == [target for target in LINK.findall(FENCE.sub("", readme)) if "://" in target] != []
    assert "The picture" in readme
    assert "The picture" not in shown
    assert re.findall("^## .*", shown, re.MULTILINE) == re.findall("^## .*", readme, re.MULTILINE)
    assert "defines every figure" in shown


def test_a_block_that_fails_stops_the_build(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# Page\n\n```sh\necho fine\nfalse\n```\n", encoding="utf-8")
    monkeypatch.setattr(executed, "DOCS", tmp_path)
    monkeypatch.setattr(executed, "RUN", ("page",))
    with pytest.raises(executed.BlockError, match="page, line 3 failed"):
        executed.outputs(tmp_path)


@pytest.mark.parametrize(
    ("page", "marker", "reason"),
    [("README.md", "demo", "CI runs it"), ("README.md", "magic", None), ("start", "demo", None)],
)
def test_only_what_ci_reads_counts_as_run_by_it(page, marker, reason):
    text = f"<!-- {marker} command -->\n```sh\nsvision-dask demo\n```\n"
    if reason:
        assert [block.reason for block in executed.blocks(page, text)] == [reason]
    else:
        with pytest.raises(executed.BlockError, match=f"runs no '{marker} command'"):
            list(executed.blocks(page, text))


def test_blocks_of_python_share_their_names_and_show_what_they_print(tmp_path, monkeypatch):
    page = "```python\na = 6\n```\n\n<!-- not run: no snakes here -->\n```sh\nsnakes\n```\n\n"
    page += "```python\nprint(7 * a)\n```\n"
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    monkeypatch.setattr(executed, "DOCS", tmp_path)
    monkeypatch.setattr(executed, "RUN", ("page",))
    shown = executed.with_outputs("page", page, executed.outputs(tmp_path)["page"])
    assert "```text\n42\n```" in shown
    assert "Not run when this page is built: no snakes here." in shown


def test_the_figures_of_the_readme_are_those_of_the_benchmarks():
    readme = text_of(ROOT / "README.md")
    assert readme == figures.with_figures(readme), "run: python benchmarks/page.py"


@pytest.mark.parametrize("marker", ["BEGIN", "END"])
def test_figures_that_stand_there_twice_or_not_at_all_are_noticed(marker):
    readme, line = text_of(ROOT / "README.md"), getattr(figures, marker)
    for text, count in ((f"{readme}\n{line}\n", 2), (readme.replace(line, ""), 0)):
        with pytest.raises(ValueError, match=f"{count} lines '{line}', and there must be one"):
            figures.with_figures(text)


def by_volume(rows, value):
    """Mean over the seeds, of each volume and preset."""
    groups = {}
    for row in rows.values():
        groups.setdefault((row["volume"], row["preset"]), []).append(value(row))
    return [sum(each) / len(each) for each in groups.values()]


def test_what_is_said_of_trust_maps_is_what_was_measured():
    rows = json.loads(text_of(ROOT / "benchmarks" / "results" / "trust.json"))["rows"]
    page = " ".join(text_of(DOCS / "compare.md").split())
    ratios = by_volume(rows, lambda row: row["ratio"])
    assert f"{min(ratios):.0f} to {max(ratios):.0f}" == ERROR_OVER_SPREAD
    assert f"the spread is {ERROR_OVER_SPREAD} times smaller than the error" in page

    def shares(which):
        found = by_volume(rows, lambda row: row["at_best"] if which == "best" else row["maps"][which]["top"])
        return f"{100 * min(found):.0f} to {100 * max(found):.0f} %"

    assert f"largest spread hold {shares('spread')} of the squared error (at best" in page
    assert f"sorted by the error itself, {shares('best')})" in page
    assert f"where the result is steepest hold {shares('slope')}, without any map" in page
    assert f"Consistency predicts less of the error ({shares('consistency')})" in page


def test_what_is_said_of_comparing_is_what_was_measured():
    found = json.loads(text_of(ROOT / "benchmarks" / "results" / "compare.json"))
    largest = max(found["rows"], key=lambda row: row["fine_voxels"])
    page = " ".join(text_of(DOCS / "compare.md").split())
    assert (largest["fine_voxels"], found["environment"]["cores"]) == (10**9, 2)
    memory, seconds = largest["peak_bytes_with_the_page"], largest["seconds"] + largest["seconds_of_the_page"]
    said = f"took {memory / 1e9:.1f} GB of memory at most, and {seconds / 60:.0f} minutes on two cores"
    assert said in page
    assert memory < 2e9
    assert largest["reports_of_progress"] == 512  # one for each block


def test_other_runtimes_are_as_close_as_is_said(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = json.loads(text_of(ROOT / "benchmarks" / "results" / "interchange.json"))["rows"]
    assert set() < set(rows) <= set(load(ROOT / "benchmarks" / "interchange.py").CASES)
    off = {f"{model}, {how}": value for model, row in rows.items() for how, value in row.items() if ", " in how}
    assert len(off) == 6 * len(rows)
    assert max(off.values()) <= 1e-5, off
    assert "to 10⁻⁵ of its range" in text_of(DOCS / "interchange.md")


def test_tables_in_pages_are_made_of_the_results():
    pages = [text_of(path) for path in tables.PAGES]
    assert pages == [tables.with_tables(page) for page in pages], "run: python benchmarks/tables.py"
    assert [name for page in pages for _, name, _ in tables.MARKED.findall(page)] == list(tables.TABLES)


def test_the_page_of_benchmarks_has_every_result(tmp_path, monkeypatch):
    rows = {"volume a": {"psnr": 31.25, "tile": [64, 32]}, "volume b": {"psnr": 7.5, "tile": [1, 2]}}
    found = {"environment": {"cores": 3}, "rows": rows, "other": 5.125, "unset": None}
    found["seeds"] = {"mean": 2.0, "lowest": 1.5, "highest": 2.5}
    (tmp_path / "newest.json").write_text(json.dumps(found))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    shown = figures.tables()
    assert "| volume a | 31.25 | 64×32 |" in shown
    assert "| other | 5.125 |" in shown
    assert "| seeds | 2 (1.5 to 2.5) |" in shown
    assert "unset" not in shown
    assert "Measured with: cores 3." in shown


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_to_results_lead_to_a_heading_of_the_page_of_benchmarks(path):
    linked = set(re.findall(r"\]\([./]*benchmarks/results/(\w+)\.md\)|benchmarks\.md#([\w-]+)\)", text_of(path)))
    headings = re.findall(r"^##+ (.+)$", figures.tables(), re.MULTILINE)
    assert {file or anchor for file, anchor in linked} <= {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("script", ["quality", "speed", "transfer"])
def test_tables_beside_results_are_made_of_them(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    results = ROOT / "benchmarks" / "results"
    found = json.loads(text_of(results / f"{script}.json"))
    table = load(ROOT / "benchmarks" / f"{script}.py").table(found.get("rows") or found["found"])
    assert text_of(results / f"{script}.md") == table


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program():
    source = "".join(text_of(path) for path in (ROOT / "svision_dask").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # literals that go on in the next line
    shown = re.findall(r"^\| `([^`]+)` \|", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)
    assert len(shown) > 15
    assert [message for message in shown if message not in source] == []


def test_every_test_that_the_promises_name_is_there():
    text = text_of(DOCS / "reliability.md")
    named = re.findall(r"\[`(test_\w+)`\]\([^)]+\)((?:[:,] \*[^*]+\*)*)", text)
    assert len(named) > 25
    for module, phrases in named:
        source = text_of(ROOT / "tests" / f"{module}.py")
        for phrase in re.findall(r"\*([^*]+)\*", phrases):
            assert phrase.replace(" ", "_") in source, f"{module}: {phrase}"


def test_every_promise_names_a_test():
    promises = re.split(r"^\d\. ", text_of(DOCS / "reliability.md").partition("Not promised")[0], flags=re.MULTILINE)
    assert len(promises) == 7
    assert all("../tests/test_" in promise for promise in promises[1:])


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_test_that_a_page_names_is_there(path):
    for module in re.findall(r"tests/(test_\w+)", text_of(path)):
        assert (ROOT / "tests" / f"{module}.py").exists(), module


def test_every_page_is_in_the_table_of_contents():
    contents = [block for path in DOCS.glob("*.md") for block in FENCE.findall(text_of(path)) if "toctree" in block[0]]
    listed = {line for _, entries in contents for line in entries.splitlines()}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES if DOCS in path.parents}
    assert pages - listed == {"index"}
