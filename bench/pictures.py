"""docs/roofline-*.png and docs/ratios-*.png: one of each for a results file and thread count."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bench.comparisons import COMPARISONS, Comparison, Ratio, Summary, ratios
from bench.peers import PEERS
from bench.results import CaseResult, Results
from bench.shapes import DIRECTIONS
from bench.tables import peers_in

WIN, LOSS, ROOF = "#2a7f62", "#c8323c", "#333333"
MARKERS = {
    "torch_nchw": ("o", "#8aa4c8"),
    "torch_channels_last": ("s", "#5b6fb5"),
    "onnxruntime": ("^", "#b59a5b"),
    "fastconv_plain": ("o", "#2a7f62"),
    "fastconv_prepared": ("D", "#e07a1f"),
}
DIRECTION_TITLES = {
    "forward": "forward",
    "input_grad": "gradient of the input",
    "weight_grad": "gradient of the weights",
}
LABELLED_LOSSES = 3
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 10,
    "figure.dpi": 110,
}


def draw(found: Results, of_suite: list[CaseResult], docs: Path) -> list[Path]:
    """Draw the cases of one suite that the file holds; the paths of the pictures."""
    paths = []
    for threads in sorted({case.threads for case in of_suite}):
        cases = [case for case in of_suite if case.threads == threads]
        for kind, picture in (("roofline", roofline), ("ratios", ratio_chart)):
            with plt.rc_context(STYLE):
                figure = picture(found, cases)
                if figure is not None:
                    path = docs / f"{kind}-{found.path.stem}-{threads}t.png"
                    figure.savefig(path, bbox_inches="tight")
                    plt.close(figure)
                    paths.append(path)
    return paths


def heading(found: Results, case: CaseResult) -> str:
    run = found.run_of(case)
    threads = "1 thread" if case.threads == 1 else f"{case.threads} threads"
    return f"{run['machine']['cpu']}, {run['isa']}, {threads}, float32"


def roofline(found: Results, cases: list[CaseResult]) -> Figure | None:
    """Speed over arithmetic intensity, a panel a direction, under the two measured roofs."""
    rates = found.run_of(cases[-1])["machine_rates"].get(str(cases[0].threads))
    if not rates:
        return None
    peak, bandwidth = rates["fma_peak"] / 1e9, rates["copy_bandwidth"] / 1e9
    directions = [d for d in DIRECTIONS if any(case.direction == d for case in cases)]
    figure, panels = plt.subplots(
        1, len(directions), figsize=(5.2 * len(directions), 5), sharey=True, squeeze=False
    )
    for axes, direction in zip(panels[0], directions, strict=True):
        prepare_axes(axes, DIRECTION_TITLES[direction])
        draw_points(axes, [case for case in cases if case.direction == direction])
        draw_roof(axes, peak, bandwidth)
    panels[0][0].set_ylabel("GFLOP/s (operations of the direct algorithm)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    roofs = f"roof: measured FMA peak {peak:.0f} GFLOP/s, copy bandwidth {bandwidth:.0f} GB/s"
    figure.suptitle(f"{heading(found, cases[-1])}\n{roofs}", fontsize=11)
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def prepare_axes(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("flop per byte of input, weights and output")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, steps in ((axes.xaxis, (1, 2, 5)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#dddddd", linewidth=0.6)


def draw_points(axes: Axes, cases: list[CaseResult]) -> None:
    for peer in peers_in(cases):
        valid = [case for case in cases if peer in case.peers and case.peers[peer].is_valid]
        if peer not in MARKERS or not valid:
            continue
        marker, colour = MARKERS[peer]
        ours = peer.startswith("fastconv")
        intensity = [case.shape.flops(case.batch) / case.shape.bytes(case.batch) for case in valid]
        axes.scatter(
            intensity,
            [case.gflops(peer) for case in valid],
            s=26 if ours else 20,
            marker=marker,
            facecolors=colour if ours else "none",
            edgecolors=colour,
            alpha=0.85,
            label=PEERS[peer].label,
        )


def draw_roof(axes: Axes, peak: float, bandwidth: float) -> None:
    """The FMA peak, and left of the ridge the copy bandwidth."""
    left, right = axes.get_xlim()
    intensity = np.geomspace(min(left, peak / bandwidth / 2), right, 200)
    axes.plot(intensity, np.minimum(peak, bandwidth * intensity), color=ROOF, linewidth=1.4)


def ratio_chart(found: Results, cases: list[CaseResult]) -> Figure | None:
    """A panel for each comparison and direction: the ratio of every case, sorted."""
    panels = []
    for comparison in COMPARISONS:
        for direction in comparison.directions:
            here = [case for case in cases if case.direction == direction]
            if sorted_ratios := sorted(ratios(here, comparison), key=lambda r: r.best):
                panels.append((comparison, direction, sorted_ratios))
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (5.2 * columns, 3.9 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_ratios(axes, *panel)
    bottom, top = grid[0][0].get_ylim()
    grid[0][0].set_ylim(min(bottom, 0.45), max(1.6 * top, 2.2))
    for row in grid:
        row[0].set_ylabel("speed of fastconv, rival = 1")
    figure.suptitle(heading(found, cases[-1]))
    figure.tight_layout()
    return figure


def draw_ratios(axes: Axes, comparison: Comparison, direction: str, found: list[Ratio]) -> None:
    """Bars from the line of equality: up for wins, down for losses, the worst by name."""
    values = np.array([ratio.best for ratio in found])
    colours = np.where(values < 1, LOSS, WIN)
    axes.bar(range(len(found)), values - 1, bottom=1, color=colours, width=0.85)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(1, color=ROOF, linewidth=1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_xticks([])
    total = Summary.of(found)
    axes.set_title(f"{comparison.name}, {DIRECTION_TITLES[direction]}", fontsize=10)
    axes.set_xlabel(
        f"{total.count} cases: geometric mean {total.geometric_mean:.2f}, "
        f"minimum {total.minimum:.2f}, {total.losses} below 1",
        fontsize=9,
    )
    losses = [ratio for ratio in found if ratio.is_loss][:LABELLED_LOSSES]
    text = "\n".join(f"{r.best:.2f}  {r.case.layer}, batch {r.case.batch}" for r in losses)
    place = {"transform": axes.transAxes, "va": "top", "fontsize": 8, "color": LOSS}
    axes.text(0.03, 0.97, text, **place)
