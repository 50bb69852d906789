"""Results -> the tables between the markers in docs/performance*.md, a page a machine, and pictures there.

A marker names a view of tables.VIEWS, or `pictures`, and filters: any of cpu, isa, suite,
direction, batch, threads. The text between the two comments is replaced:

    <!-- bench:begin losses isa=avx2 suite=gemm threads=1 -->
    <!-- bench:end losses -->
"""

from __future__ import annotations

import re
from pathlib import Path

from bench import pictures, results, tables
from bench.results import CaseResult, Results
from bench.suites import layers_of

DRAWN = "gemm"
DOCS = Path(__file__).resolve().parent.parent / "docs"
MARKER = re.compile(
    r"(?P<begin><!-- bench:begin (?P<view>\w+)(?P<filters>[^>]*?)-->\n)"
    r".*?(?P<end><!-- bench:end (?P=view) -->)",
    re.DOTALL,
)
FIRST_PAGE = "# Performance\n" + "".join(
    f"\n## {view.capitalize()}\n\n<!-- bench:begin {view} -->\n<!-- bench:end {view} -->\n"
    for view in (*tables.VIEWS, "pictures")
)


def write(docs: Path) -> int:
    """Fill every marker of performance.md, started if there is none, and of the pages beside it; draw."""
    files = [results.load(path) for path in sorted(results.RESULTS.glob("*.json"))]
    if not files:
        print(f"nothing to report: {results.RESULTS} is empty")
        return 1
    docs.mkdir(parents=True, exist_ok=True)
    # One suite has pictures, where all of it is measured: shapes of different suites in one chart say little.
    drawn = {found.path.stem: pictures.draw(found, whole_suite(found, DRAWN), docs) for found in files}
    pages = sorted(docs.glob("performance*.md")) or [docs / "performance.md"]

    def fill(marker: re.Match[str]) -> str:
        filters = dict(item.split("=", 1) for item in marker["filters"].split())
        body = render(marker["view"], filters, files, drawn)
        return f"{marker['begin']}\n{body}\n\n{marker['end']}"

    for page in pages:
        text, count = MARKER.subn(fill, page.read_text() if page.exists() else FIRST_PAGE)
        page.write_text(text)
        print(f"{page}: {count} tables; {sum(map(len, drawn.values()))} pictures beside it")
    return 0


def whole_suite(found: Results, suite: str) -> list[CaseResult]:
    """The cases of a suite, or none if some of its layers are missing."""
    cases = select(found, {"suite": suite})
    return cases if {case.layer for case in cases} == {layer.full_name for layer in layers_of(suite)} else []


def render(view: str, filters: dict[str, str], files: list[Results], drawn: dict[str, list[Path]]) -> str:
    """One view of each results file that the filters leave cases of."""
    parts = []
    for found in files:
        cases = select(found, filters)
        if not cases:
            continue
        run = found.run_of(cases[-1])
        heading = f"{run['machine']['cpu']}, {run['isa']}:"
        if view == "pictures":
            body = "\n".join(f"![{path.stem}]({path.name})" for path in drawn[found.path.stem])
        else:
            body = tables.VIEWS[view](found, cases)
        parts.append(f"{heading}\n\n{body}")
    return "\n\n".join(parts) or "Not measured yet."


def select(found: Results, filters: dict[str, str]) -> list[CaseResult]:
    """The cases of a results file that pass; an unknown filter raises."""
    rest = dict(filters)
    suite, cpu, isa = (rest.pop(name, "") for name in ("suite", "cpu", "isa"))
    names = {layer.full_name for layer in layers_of(suite)} if suite else None

    def passes(case: CaseResult) -> bool:
        run = found.run_of(case)
        return (
            (names is None or case.layer in names)
            and cpu in run["machine"]["cpu"]
            and isa in ("", run["isa"])
            and all(str(getattr(case, name)) == value for name, value in rest.items())
        )

    return [case for case in found.cases.values() if passes(case)]
