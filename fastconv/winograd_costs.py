"""When Winograd's method pays: a cost model, fitted to the tables in bench/results/winograd."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv import winograd
from fastconv.engine import active_isa, load
from fastconv.problem import ConvProblem
from fastconv.winograd import OUTPUTS, count_tiles, sides

USUAL = ("winograd_f4x4_3x3", "winograd_f3x3_3x3", "winograd_f2x2_3x3")  # what "auto" may take
LEAST = 8  # channels and filters; of weight gradients a whole vector
# Of the time of the algorithm that multiplies every tap: below it Winograd's is taken. Fewer than so many
# channels or filters are predicted worse, and machines differ: weight gradients of 16 of each at 56x56, batch
# 16, took 1.01 times as long as "shifted" on an EPYC and 1.95 times on a Xeon.
MARGIN = 0.95
FEW = {"forward": (16, 0.82), "input_grad": (16, 0.82), "weight_grad": (32, 0.75)}
# Of a group, where there are several: they come one after the other, and threads share each. 32 groups of
# 32 at 7x7 took 296 us on one thread (by "gemm" 436) and 450 on two (266).
LEAST_OF_A_GROUP = 64
# Fewer tiles wait for prepared weights as long as so many multiply them, longer where more weights than these
# lie beyond the caches: 512 -> 512 at 7x7 takes 1,281 us for 4 tiles and 38 MB, 684 us for 16 and 17 MB.
NEAR_TILES, FAR_TILES, FAR_WEIGHTS = 6, 10, 786_432


def choose(
    problem: ConvProblem, direction: str, prepared: bool, dtype: np.dtype[Any]
) -> tuple[str, str] | None:
    """The algorithm that the cost model finds fastest, and why; None if it multiplies every tap."""
    narrow, lanes = min(problem.group_in, problem.group_out), load(dtype).machine.tile()[2]
    least = LEAST if problem.groups == 1 else LEAST_OF_A_GROUP
    if not winograd.is_on() or narrow < (max(least, lanes) if direction == "weight_grad" else least):
        return None
    kind = "prepared" if prepared else direction
    costs = COSTS.get(active_isa(), COSTS["avx2"])[kind]
    exact = [name for name in USUAL if winograd.is_exact(problem, direction, name)]
    times = {name: float(np.dot(costs[name], work(name, problem, kind, lanes))) for name in ("gemm", *exact)}
    best = min(times, key=lambda name: times[name])
    share = times[best] / times["gemm"]
    few, margin_of_few = FEW[direction]
    if share >= (margin_of_few if narrow < few else MARGIN):
        return None
    return best, f"3x3, stride 1: by the cost model in {share:.0%} of the time of multiplying every tap"


def work(algorithm: str, problem: ConvProblem, kind: str, lanes: int) -> list[float]:
    """What the time of a group is made of: products, transforms, and, last, the call itself.

    The kind of a call is its direction, or "prepared"; "gemm" stands for all that multiply every tap.
    """
    of_tiles = _of_sums if kind == "weight_grad" else _of_tiles
    parts = of_tiles if algorithm in OUTPUTS else _of_taps
    return [*map(float, parts(algorithm, problem, kind, lanes)), 1.0]


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _of_taps(_: str, problem: ConvProblem, kind: str, lanes: int) -> tuple[int, ...]:
    """Products, inputs, results and weights; of weight gradients also rows of pixels, whose ends cost."""
    channels, filters, outputs = sides(problem, kind)
    pixels, weights = problem.batch * prod(outputs), 9 * channels * filters
    if kind == "weight_grad":
        rows = weights * problem.batch * outputs[0]
        return weights * pixels, channels * pixels, filters * pixels, weights, rows
    pixels = problem.batch * _whole(prod(outputs), lanes)
    return weights * pixels, channels * pixels, filters * pixels, weights


def _of_tiles(algorithm: str, problem: ConvProblem, kind: str, lanes: int) -> tuple[int, ...]:
    """Products, inputs, results and weights."""
    channels, filters, outputs = sides(problem, kind)
    size = OUTPUTS[algorithm]
    points, tiles = (size + 2) ** 2, count_tiles(problem.batch, outputs, size)
    inputs, results = points * _whole(channels, lanes), points * _whole(filters, lanes)
    pairs = channels * results
    multiplied = tiles
    if kind == "prepared":
        multiplied = max(tiles, FAR_TILES if pairs > FAR_WEIGHTS else NEAR_TILES)
    return pairs * multiplied, inputs * tiles, results * tiles, pairs


def _of_sums(algorithm: str, problem: ConvProblem, kind: str, lanes: int) -> tuple[int, ...]:
    """Products, both operands, the sums of parts, and those of chunks."""
    channels, filters, outputs = sides(problem, kind)
    size, length, part, _ = winograd.cut(problem, kind, algorithm, np.dtype(np.float32), False)
    points, tiles = (size + 2) ** 2, count_tiles(problem.batch, outputs, size)
    chunks = -(-tiles // length)
    parts = chunks * min(winograd.MOST_PARTS, -(-tiles // (chunks * part)))
    pairs = points * _whole(channels, 2 * lanes) * filters
    operands = points * (_whole(channels, lanes) + _whole(filters, lanes)) * tiles
    return pairs * tiles, operands, pairs * parts, points * _whole(channels, lanes) * filters * chunks


# Microseconds for a unit of each kind of work, by `python -m bench.winograd_grid fit` from tables of an EPYC
# (family 26, model 2). Machines differ in speed more than in proportions: on a Xeon (family 6, model 167) the
# same costs chose as well.
COSTS: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "avx512": {
        "forward": {
            "gemm": (8.64e-06, 0.000406, 7.79e-05, 7.16e-05, 3.23),
            "winograd_f4x4_3x3": (9.22e-06, 0.000143, 9.77e-05, 8.1e-05, 3.44),
            "winograd_f3x3_3x3": (9.23e-06, 0.000151, 8.84e-05, 9.46e-05, 3.48),
            "winograd_f2x2_3x3": (8.79e-06, 0.000107, 7.24e-05, 0.000107, 3.25),
        },
        "prepared": {
            "gemm": (8.92e-06, 0.000415, 6.76e-05, 0.000104, 2.14),
            "winograd_f4x4_3x3": (9.41e-06, 0.000167, 9.5e-05, 0.0, 3.13),
            "winograd_f3x3_3x3": (9.09e-06, 0.000179, 8.54e-05, 5.87e-06, 3.11),
            "winograd_f2x2_3x3": (8.68e-06, 0.000132, 6.77e-05, 8.95e-06, 2.98),
        },
        "input_grad": {
            "gemm": (9.17e-06, 0.000318, 1.16e-05, 0.00036, 5.16),
            "winograd_f4x4_3x3": (1.04e-05, 0.000123, 8.42e-05, 9.28e-05, 4.2),
            "winograd_f3x3_3x3": (1.01e-05, 0.000137, 7.63e-05, 0.000106, 4.37),
            "winograd_f2x2_3x3": (9.53e-06, 9.55e-05, 6.14e-05, 0.000121, 4.2),
        },
        "weight_grad": {
            "gemm": (8.36e-06, 0.000147, 0.000107, 0.000123, 3.09e-06, 3.91),
            "winograd_f4x4_3x3": (1.1e-05, 0.000124, 2.2e-05, 3.73e-05, 4.16),
            "winograd_f3x3_3x3": (1.1e-05, 0.000107, 1.81e-05, 5.41e-05, 4.32),
            "winograd_f2x2_3x3": (1.19e-05, 7.05e-05, 0.0, 7.99e-05, 4.25),
        },
    },
    "avx2": {
        "forward": {
            "gemm": (1.72e-05, 0.000617, 0.000122, 7.17e-05, 3.43),
            "winograd_f4x4_3x3": (1.75e-05, 0.000204, 0.000153, 0.000169, 3.62),
            "winograd_f3x3_3x3": (1.74e-05, 0.000202, 0.000137, 0.000198, 3.77),
            "winograd_f2x2_3x3": (1.72e-05, 0.000167, 0.000113, 0.000244, 3.28),
        },
        "prepared": {
            "gemm": (1.74e-05, 0.000526, 0.000105, 0.000105, 2.29),
            "winograd_f4x4_3x3": (1.49e-05, 0.000239, 0.000172, 0.0, 2.88),
            "winograd_f3x3_3x3": (1.54e-05, 0.000222, 0.000151, 0.0, 3.14),
            "winograd_f2x2_3x3": (1.67e-05, 0.000166, 0.000112, 0.0, 2.96),
        },
        "input_grad": {
            "gemm": (1.76e-05, 0.000341, 6.68e-05, 0.000429, 5.37),
            "winograd_f4x4_3x3": (1.8e-05, 0.000198, 0.000111, 0.000181, 4.2),
            "winograd_f3x3_3x3": (1.79e-05, 0.000195, 9.52e-05, 0.000213, 4.38),
            "winograd_f2x2_3x3": (1.76e-05, 0.000162, 7.34e-05, 0.000258, 4.11),
        },
        "weight_grad": {
            "gemm": (1.66e-05, 0.000165, 0.000117, 0.00017, 1.03e-06, 3.72),
            "winograd_f4x4_3x3": (1.85e-05, 0.000152, 6.63e-05, 9.17e-05, 4.51),
            "winograd_f3x3_3x3": (1.81e-05, 0.000134, 6.65e-05, 0.000113, 4.43),
            "winograd_f2x2_3x3": (1.92e-05, 0.000106, 3.26e-05, 0.000171, 4.41),
        },
    },
}
