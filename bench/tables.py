"""Markdown tables of the results, aligned so that they read well in a terminal too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from bench.comparisons import COMPARISONS, Ratio, Summary, ratio, ratios
from bench.peers import PEERS
from bench.results import CaseResult, Results
from bench.shapes import DIRECTIONS, layers_by_name

OURS = (
    "fastconv_plain",
    "fastconv_prepared",
    "fastconv_prepared_nhwc",
    "fastconv_signal",
    "pool_fastconv",
    "pool_fastconv_nhwc",
)


def markdown(header: list[str], rows: Iterable[list[str]], text_columns: int) -> str:
    """The first `text_columns` columns to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = [
        "-" * width if column < text_columns else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([render(header), "| " + " | ".join(rule) + " |", *map(render, lines[1:])])


def ordered(cases: Iterable[CaseResult]) -> list[CaseResult]:
    """By direction, threads and batch; inside of these in the order of the shape files."""
    position = {name: index for index, name in enumerate(layers_by_name())}

    def key(case: CaseResult) -> tuple[int, ...]:
        direction = DIRECTIONS.index(case.direction)
        return direction, case.threads, case.batch, position[case.layer]

    return sorted(cases, key=key)


def peers_in(cases: Iterable[CaseResult]) -> list[str]:
    present = {name for case in cases for name in case.peers}
    return [name for name in PEERS if name in present]


def layers(results: Results, cases: list[CaseResult]) -> str:
    """One row a case: GFLOP/s of each peer, percent of the FMA peak, the ratios."""
    peers = peers_in(cases)
    shown = [c for c in COMPARISONS if any(ratio(case, c) for case in cases)]
    header = ["layer", "direction", "threads", "batch", *(PEERS[name].label for name in peers)]
    header += ["% of peak", *(comparison.name for comparison in shown)]
    rows = []
    for case in ordered(cases):
        row = [case.layer, case.direction, str(case.threads), str(case.batch)]
        row += [rate(case, name) for name in peers]
        row.append(percent_of_peak(results, case))
        row += [ratio_cell(ratio(case, comparison)) for comparison in shown]
        rows.append(row)
    return markdown(header, rows, text_columns=2)


def errors(results: Results, cases: list[CaseResult]) -> str:
    """One row a case: GFLOP/s of each peer, and its rms error relative to the rms of the exact result."""
    peers = peers_in(cases)
    header = ["layer", "direction", "threads", "batch", *(PEERS[name].label for name in peers)]
    rows = []
    for case in ordered(cases):
        row = [case.layer, case.direction, str(case.threads), str(case.batch)]
        rows.append(row + [rate_and_error(case, name) for name in peers])
    return markdown(header, rows, text_columns=2)


def rate_and_error(case: CaseResult, peer: str) -> str:
    """Also of a result that is too inexact to count."""
    result = case.peers.get(peer)
    if result is None or not result.rounds or result.rms_error is None:
        return ""
    return f"{case.gflops(peer):.1f}, {result.rms_error:.1e}"


def rate(case: CaseResult, peer: str) -> str:
    result = case.peers.get(peer)
    if result is None:
        return ""
    return f"{case.gflops(peer):.1f}" if result.is_valid else "failed"


def percent_of_peak(results: Results, case: CaseResult) -> str:
    """Of fastconv's best call; direct flops, so that Winograd may exceed 100."""
    peak = results.run_of(case)["machine_rates"].get(str(case.threads), {}).get("fma_peak")
    ours = [name for name in OURS if name in case.peers and case.peers[name].is_valid]
    if not peak or not ours:
        return ""
    return f"{100e9 * max(case.gflops(name) for name in ours) / peak:.0f}"


def bandwidth(results: Results, cases: list[CaseResult]) -> str:
    """One row a case: GB/s of each peer, percent of the copy bandwidth, the ratios."""
    peers = peers_in(cases)
    shown = [c for c in COMPARISONS if any(ratio(case, c) for case in cases)]
    header = ["layer", "direction", "threads", "batch", *(f"{PEERS[name].label}, GB/s" for name in peers)]
    header += ["% of copy", *(comparison.name for comparison in shown)]
    rows = []
    for case in ordered(cases):
        row = [case.layer, case.direction, str(case.threads), str(case.batch)]
        for name in peers:
            valid = name in case.peers and case.peers[name].is_valid
            row.append(f"{case.bandwidth(name) / 1e9:.1f}" if valid else "")
        row.append(percent_of_copy(results, case))
        row += [ratio_cell(ratio(case, comparison)) for comparison in shown]
        rows.append(row)
    return markdown(header, rows, text_columns=2)


def percent_of_copy(results: Results, case: CaseResult) -> str:
    """Of fastconv's best call; what stays in a cache may exceed 100."""
    copy = results.run_of(case)["machine_rates"].get(str(case.threads), {}).get("copy_bandwidth")
    ours = [name for name in OURS if name in case.peers and case.peers[name].is_valid]
    if not copy or not ours:
        return ""
    return f"{100 * max(case.bandwidth(name) for name in ours) / copy:.0f}"


def ratio_cell(found: Ratio | None) -> str:
    """A loss is set in bold."""
    if found is None:
        return ""
    return f"**{found.best:.2f}**" if found.is_loss else f"{found.best:.2f}"


def summary(results: Results, cases: list[CaseResult]) -> str:
    """Every comparison by direction, threads and batch."""

    def group(case: CaseResult) -> tuple[str, int, int]:
        return case.direction, case.threads, case.batch

    rows = []
    for (direction, threads, batch), members in groupby(ordered(cases), key=group):
        members = list(members)
        for comparison in COMPARISONS:
            if found := ratios(members, comparison):
                row = [comparison.name, direction, str(threads), str(batch)]
                rows.append(row + summary_cells(Summary.of(found)))
    header = ["comparison", "direction", "threads", "batch", "layers", "geometric mean"]
    header += ["by round medians", "minimum", "below 1.0"]
    return markdown(header, rows, text_columns=2)


def summary_cells(total: Summary) -> list[str]:
    means = total.geometric_mean, total.typical_geometric_mean, total.minimum
    return [str(total.count), *(f"{value:.2f}" for value in means), str(total.losses)]


def losses(results: Results, cases: list[CaseResult]) -> str:
    """Every case in which fastconv is slower, the worst first."""
    compared = [r for comparison in COMPARISONS for r in ratios(cases, comparison)]
    found = [r for r in compared if r.is_loss]
    if not compared:
        return "Nothing was compared."
    if not found:
        return f"fastconv is slower in none of {len(compared)} comparisons."
    header = ["layer", "comparison", "rival", "direction", "threads", "batch", "ratio"]
    header += ["by round medians", "% of peak"]
    rows = []
    for r in sorted(found, key=lambda r: r.best):
        row = [r.case.layer, r.comparison.name, PEERS[r.rival].label, r.case.direction]
        row += [str(r.case.threads), str(r.case.batch), f"{r.best:.2f}", f"{r.typical:.2f}"]
        rows.append([*row, percent_of_peak(results, r.case)])
    return markdown(header, rows, text_columns=4)


def problems(results: Results, cases: list[CaseResult]) -> str:
    """Every timing that does not count, with its reason."""
    rows = [
        [case.layer, case.direction, str(case.threads), str(case.batch), name, result.problem]
        for case in ordered(cases)
        for name, result in case.peers.items()
        if result.problem
    ]
    if not rows:
        return "No peer failed; all gave the same results, up to rounding."
    header = ["layer", "direction", "threads", "batch", "peer", "problem"]
    return markdown(header, rows, text_columns=6)


def machine(results: Results, cases: list[CaseResult]) -> str:
    """The machine and the versions of the last run that the cases come from."""
    run = results.runs[max((case.run for case in cases), default=-1)]
    about = run["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    rows = [
        ["CPU", f"{about['cpu']}, {about['cores']} cores, {about['isa']}"],
        ["caches", caches],
        ["system", f"{about['system']}, Python {about['python']}, NumPy {about['numpy']}"],
        ["peers", ", ".join(dict.fromkeys(run["versions"].values()))],
        ["instruction set", run["isa"] + run["note"]],
        ["allocator", run["allocator"]],
        ["date", run["date"]],
    ]
    for threads, rates in run["machine_rates"].items():
        peak, copy = rates["fma_peak"] / 1e9, rates["copy_bandwidth"] / 1e9
        rows.append([f"{threads} thread(s)", f"FMA {peak:.1f} GFLOP/s, copy {copy:.1f} GB/s"])
    return markdown(["machine", ""], rows, text_columns=2)


VIEWS: dict[str, Callable[[Results, list[CaseResult]], str]] = {
    "machine": machine,
    "summary": summary,
    "losses": losses,
    "layers": layers,
    "errors": errors,
    "bandwidth": bandwidth,
    "problems": problems,
}
