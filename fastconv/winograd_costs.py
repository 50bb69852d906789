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
            "gemm": (8.46e-06, 0.000369, 7.83e-05, 7.18e-05, 3.15),
            "winograd_f4x4_3x3": (9.01e-06, 0.000134, 9.44e-05, 8.11e-05, 3.37),
            "winograd_f3x3_3x3": (9.05e-06, 0.000152, 8.42e-05, 9.42e-05, 3.46),
            "winograd_f2x2_3x3": (8.68e-06, 9.97e-05, 6.73e-05, 0.000107, 3.27),
        },
        "prepared": {
            "gemm": (8.81e-06, 0.000334, 6e-05, 0.000103, 2.09),
            "winograd_f4x4_3x3": (9.26e-06, 0.00015, 9.32e-05, 4.31e-07, 2.92),
            "winograd_f3x3_3x3": (9.08e-06, 0.00017, 8.13e-05, 6.58e-06, 3.02),
            "winograd_f2x2_3x3": (8.57e-06, 0.000116, 6.53e-05, 1.04e-05, 2.9),
        },
        "input_grad": {
            "gemm": (8.71e-06, 0.000335, 4.34e-05, 0.000349, 5.31),
            "winograd_f4x4_3x3": (9.6e-06, 0.000135, 8.76e-05, 9.21e-05, 4.35),
            "winograd_f3x3_3x3": (9.53e-06, 0.000153, 7.73e-05, 0.000105, 4.5),
            "winograd_f2x2_3x3": (8.96e-06, 0.000102, 6.37e-05, 0.000119, 4.34),
        },
        "weight_grad": {
            "gemm": (8.1e-06, 0.000114, 9.54e-05, 0.000122, 3.3e-06, 3.76),
            "winograd_f4x4_3x3": (1.08e-05, 0.000102, 2.45e-05, 3.52e-05, 3.99),
            "winograd_f3x3_3x3": (1.08e-05, 8.54e-05, 1.89e-05, 5.74e-05, 4.31),
            "winograd_f2x2_3x3": (1.09e-05, 6.2e-05, 1.61e-05, 7.2e-05, 4.01),
        },
    },
    "avx2": {
        "forward": {
            "gemm": (1.68e-05, 0.00057, 0.000118, 6.41e-05, 3.28),
            "winograd_f4x4_3x3": (1.71e-05, 0.00019, 0.000147, 0.000168, 3.58),
            "winograd_f3x3_3x3": (1.7e-05, 0.000188, 0.000131, 0.0002, 3.65),
            "winograd_f2x2_3x3": (1.68e-05, 0.000157, 0.000105, 0.000243, 3.27),
        },
        "prepared": {
            "gemm": (1.67e-05, 0.000516, 0.000104, 0.000105, 2.14),
            "winograd_f4x4_3x3": (1.45e-05, 0.000228, 0.000168, 0.0, 2.74),
            "winograd_f3x3_3x3": (1.47e-05, 0.000218, 0.000148, 0.0, 2.88),
            "winograd_f2x2_3x3": (1.61e-05, 0.000157, 0.000112, 0.0, 2.78),
        },
        "input_grad": {
            "gemm": (1.71e-05, 0.000343, 5.95e-05, 0.000412, 5.27),
            "winograd_f4x4_3x3": (1.77e-05, 0.000192, 0.000104, 0.000168, 4.07),
            "winograd_f3x3_3x3": (1.76e-05, 0.000189, 8.94e-05, 0.000197, 4.26),
            "winograd_f2x2_3x3": (1.71e-05, 0.000156, 7.29e-05, 0.000237, 4.04),
        },
        "weight_grad": {
            "gemm": (1.59e-05, 0.000169, 0.000121, 0.000156, 1.37e-06, 3.65),
            "winograd_f4x4_3x3": (1.78e-05, 0.00015, 6.56e-05, 8.86e-05, 4.45),
            "winograd_f3x3_3x3": (1.72e-05, 0.000125, 6.77e-05, 0.000118, 4.58),
            "winograd_f2x2_3x3": (1.65e-05, 0.000103, 7e-05, 0.000142, 4.28),
        },
    },
}
