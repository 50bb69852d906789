"""No cliffs: a grid of shapes, forward, against PyTorch's NCHW call, as one picture.

Every kernel size, stride, dilation and number of channels of the grid, most of which no network has: the
place to look for a shape that falls off. Both libraries run in one process, taking turns, on one thread each
time; the shortest of several runs counts. A cell that looks slow is measured again, so that a moment in which
the machine was busy is no cliff: the shortest times of all its measurements count, for both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bench import machine, results
from bench.runner import ALLOCATORS

KERNELS = range(1, 16)
STEPS = (1, 2, 3)  # strides, and dilations
CHANNELS = (1, 3, 8, 32, 100)
SIDE = 48  # of the map
TOLERANCE = 1.1  # slower than this many times PyTorch's time is a cliff
SECONDS, LEAST_RUNS = 0.01, 3  # of each library in a cell
AGAIN = 3  # times that a slow cell is measured at most


class Cell(NamedTuple):
    kernel: int
    stride: int
    dilation: int
    channels: int
    filters: int
    groups: int

    @property
    def row(self) -> str:
        """Its line in the picture."""
        return f"{self.channels}-{self.filters}" + (" each" if self.groups > 1 else "")


def cells() -> list[Cell]:
    """Of every pair of channel counts one group, and one group a channel where there are as many filters."""
    found = []
    for stride, dilation in itertools.product(STEPS, STEPS):
        for channels, filters in itertools.product(CHANNELS, CHANNELS):
            for groups in {1, channels} if filters % channels == 0 else {1}:
                found += [Cell(k, stride, dilation, channels, filters, groups) for k in KERNELS]
    return sorted(set(found), key=lambda cell: (cell.groups > 1, cell))


def measure(cell: Cell, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds of fastconv and of PyTorch."""
    import torch

    import fastconv

    k, stride, dilation, channels, filters, groups = cell
    padding = dilation * (k - 1) // 2
    x = rng.standard_normal((1, channels, SIDE, SIDE), np.float32)
    w = rng.standard_normal((filters, channels // groups, k, k), np.float32)
    tensors = torch.from_numpy(x), torch.from_numpy(w)

    def ours() -> Any:
        return fastconv.conv2d(x, w, None, stride, padding, dilation, groups)

    def theirs() -> Any:
        return torch.conv2d(*tensors, None, stride, padding, dilation, groups)

    scale = float(np.abs(ours()).max(initial=1))
    assert np.allclose(ours() / scale, theirs().numpy() / scale, atol=1e-4), cell
    best = [float("inf")] * 2
    begin, runs = perf_counter(), 0
    while runs < LEAST_RUNS or perf_counter() - begin < 2 * SECONDS:
        for number, call in enumerate((ours, theirs)):
            start = perf_counter()
            call()
            best[number] = min(best[number], perf_counter() - start)
        runs += 1
    return best[0], best[1]


def run(options: argparse.Namespace) -> int:
    kept = {**os.environ, **ALLOCATORS["keep"]}  # as for the other tables; read when a process begins
    if kept != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], kept)
    import torch

    import fastconv

    torch.set_num_threads(1)
    rng, found = np.random.default_rng(0), []
    with fastconv.threads(1), torch.no_grad():
        for cell in tqdm(cells()):
            ours, theirs = measure(cell, rng)
            for _ in range(AGAIN):
                if ours > TOLERANCE * theirs:
                    ours, theirs = map(min, (ours, theirs), measure(cell, rng))
            found.append([*cell, ours, theirs])
    path = results.RESULTS / "cliffs" / f"{machine.cpu_slug()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine.describe(), "cells": found}) + "\n")
    print(summary(found))
    draw(found, options.docs / f"cliffs-{machine.cpu_slug()}.png")
    return 0


def summary(found: list[list[float]]) -> str:
    ratios = np.array([theirs / ours for *_, ours, theirs in found])
    slow = sorted((theirs / ours, Cell(*map(int, cell))) for *cell, ours, theirs in found)
    lines = [
        f"{len(found)} cells, geometric mean {np.exp(np.log(ratios).mean()):.2f}, least {ratios.min():.2f}, "
        f"{int((ratios * TOLERANCE < 1).sum())} slower than PyTorch by more than 10%"
    ]
    return "\n".join(lines + [f"  {ratio:.2f} {cell}" for ratio, cell in slow[:20] if ratio * TOLERANCE < 1])


def draw(found: list[list[float]], path: Path) -> None:
    """One map a stride and dilation: kernel sizes across, channels down, the ratio as colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratios = {Cell(*map(int, cell)): theirs / ours for *cell, ours, theirs in found}
    rows = list(dict.fromkeys(cell.row for cell in ratios))
    figure, axes = plt.subplots(len(STEPS), len(STEPS), figsize=(13, 19), sharex=True, sharey=True)
    for (i, stride), (j, dilation) in itertools.product(enumerate(STEPS), enumerate(STEPS)):
        grid = np.full((len(rows), len(KERNELS)), np.nan)
        for cell, ratio in ratios.items():
            if (cell.stride, cell.dilation) == (stride, dilation):
                grid[rows.index(cell.row), KERNELS.index(cell.kernel)] = np.log2(ratio)
        image = axes[i, j].imshow(grid, cmap="PiYG", vmin=-3, vmax=3, aspect="auto")
        axes[i, j].set_title(f"stride {stride}, dilation {dilation}", fontsize=10)
        axes[i, j].set_xticks(range(0, len(KERNELS), 2), [str(k) for k in KERNELS[::2]])
        axes[i, j].set_yticks(range(len(rows)), rows, fontsize=6)
    bar = figure.colorbar(image, ax=axes, shrink=0.4, ticks=range(-3, 4))
    bar.ax.set_yticklabels([f"{2.0**t:g}" for t in range(-3, 4)])
    bar.set_label("PyTorch's time over fastconv's: green is faster")
    figure.supxlabel("kernel size")
    figure.supylabel("input channels - filters (each: one group a channel)")
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
