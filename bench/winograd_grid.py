"""Times of 3x3 layers by "gemm" (weight gradients: "shifted") and by Winograd's method, as data for "auto".

    python -m bench.winograd_grid bench/results/winograd/avx512.tsv
    FASTCONV_ISA=avx2 python -m bench.winograd_grid bench/results/winograd/avx2.tsv
    python -m bench.winograd_grid fit            # the table COSTS of fastconv/winograd_costs.py

Rows are (kind, C, K, map, batch, threads) and the shortest of interleaved calls, in microseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.optimize import nnls

import fastconv
from fastconv.problem import conv_problem
from fastconv.winograd_costs import USUAL, work

CHANNELS = (
    (3, 64), (8, 64), (64, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512),
    (64, 256), (512, 128),
)  # fmt: skip
MAPS = (3, 6, 7, 9, 14, 28, 56, 112)
BATCHES = (1, 16)
MOST_FLOPS = 8e9
KINDS = ("forward", "prepared", "input_grad", "weight_grad")
TABLES = Path(__file__).parent / "results" / "winograd"
HEADER = ("kind", "C", "K", "map", "batch", "threads", "gemm", *USUAL)


def calls_of(kind: str, c: int, k: int, size: int, batch: int) -> list[Callable[[], Any]]:
    generator = np.random.default_rng(0)
    x, w, g = (
        generator.standard_normal(shape, np.float32)
        for shape in ((batch, c, size, size), (k, c, 3, 3), (batch, k, size, size))
    )
    base = "shifted" if kind == "weight_grad" else "gemm"

    def call(algorithm: str) -> Callable[[], Any]:
        options = {"padding": 1, "algorithm": algorithm}
        if kind == "forward":
            return lambda: fastconv.conv2d(x, w, **options)
        if kind == "input_grad":
            return lambda: fastconv.conv2d_input_grad(x.shape, w, g, **options)
        if kind == "weight_grad":
            return lambda: fastconv.conv2d_weight_grad(x, w.shape, g, **options)
        operation = fastconv.prepare_conv2d(w, **options)
        return lambda: operation(x)

    return [call(algorithm) for algorithm in (base, *USUAL)]


def shortest(calls: list[Callable[[], Any]], seconds: float = 0.15) -> list[float]:
    best = [np.inf] * len(calls)
    for call in calls:
        call()
    end, rounds = perf_counter() + seconds, 0
    while rounds < 3 or perf_counter() < end:
        for number, call in enumerate(calls):
            start = perf_counter()
            call()
            best[number] = min(best[number], perf_counter() - start)
        rounds += 1
    return [value * 1e6 for value in best]


def rows(threads: tuple[int, ...] = (1,)) -> Iterator[tuple[Any, ...]]:
    for kind in KINDS:
        for c, k in CHANNELS:
            for size in MAPS:
                for batch in BATCHES:
                    if 18 * c * k * size**2 * batch > MOST_FLOPS:
                        continue
                    for count in threads:
                        with fastconv.threads(count):
                            yield kind, c, k, size, batch, count, *shortest(calls_of(kind, c, k, size, batch))


def measure(path: str) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w") as table:
        print(*HEADER, sep="\t", file=table)
        for row in rows():
            print(*row[:6], *(f"{value:.1f}" for value in row[6:]), sep="\t", file=table, flush=True)


def load(path: Path) -> Iterator[tuple[str, tuple[int, ...], list[float]]]:
    """(kind, (C, K, map, batch, threads), times) of each row."""
    for line in path.read_text().splitlines()[1:]:
        kind, *numbers = line.split("\t")
        yield kind, tuple(map(int, numbers[:5])), [float(value) for value in numbers[5:]]


def fit(path: Path, lanes: int) -> dict[str, dict[str, tuple[float, ...]]]:
    """Non-negative costs of each kind and algorithm with the least relative errors."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for kind in KINDS:
        table = [(shape, times) for name, shape, times in load(path) if name == kind]
        for number, algorithm in enumerate(("gemm", *USUAL)):
            shares, ones = [], np.ones(len(table))
            for (c, k, size, batch, _), times in table:
                problem = conv_problem((batch, c, size, size), (k, c, 3, 3), padding=1)
                amounts = work(algorithm, problem, kind, lanes)
                shares.append([amount / times[number] for amount in amounts])
            costs, _ = nnls(np.array(shares), ones)
            found.setdefault(kind, {})[algorithm] = tuple(float(f"{cost:.3g}") for cost in costs)
    return found


def main() -> None:
    if sys.argv[1:] != ["fit"]:
        measure(sys.argv[1])
        return
    for path, lanes in ((TABLES / "avx512.tsv", 16), (TABLES / "avx2.tsv", 8)):
        print(path.stem, fit(path, lanes))


if __name__ == "__main__":
    main()
