"""Winograd's method for 3x3 kernels of stride 1: its matrices, how work is cut, when it pays, and its switch.

docs/winograd.md explains it. The cost model is fitted to the tables in bench/results/winograd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv.engine import active_isa, forget, load
from fastconv.passes import l2_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import WINOGRAD_OUTPUTS

OUTPUTS = {f"winograd_f{size}x{size}_3x3": size for size in WINOGRAD_OUTPUTS}  # of a tile, along an axis
ALGORITHMS = tuple(OUTPUTS)
# The largest error of a result stays below this times eps * sqrt(terms) * rms of the results; 4 by "gemm".
ERROR_CONSTANTS = {"winograd_f4x4_3x3": 12.0, "winograd_f2x2_3x3": 6.0, "winograd_f6x6_3x3": 100.0}
USUAL = ("winograd_f4x4_3x3", "winograd_f2x2_3x3")  # what "auto" may take
LARGEST_GRAD = 4  # of a tile of a weight gradient: 3x3 results at the points of 6x6 would lose two digits

VALUES_BYTES = 5 << 20  # of a block of transformed inputs at most; twice that if it is the only one
LIMIT = 13 << 20  # of all transformed operands at a time
# Of the operands of a weight gradient: the sums of a chunk are added to all results. Milliseconds in chunks
# of 7 and of 11 MiB: 1024 -> 1024 at 16x16 23.1 and 15.0, batch 16 185 and 146; 512 -> 512 at 7x7, batch 16,
# 9.0 and 7.7.
CHUNK_BYTES = 11 << 20
MOST_TILES = 56  # of a block, which shares the second-level cache with its weights and products
LEAST_TILES = 28  # weights are read once for so many
# So few are one block: weights are read once, and those of a plain call transformed as they are used.
# Milliseconds of 1024 -> 512 at 32x32, a plain call and a prepared one, in two blocks and in one: 50 and 34,
# 27 and 26. Prepared weights of 512 -> 512 at 28x28: 9.0 and 10.2.
WHOLE_TILES, MANY_CHANNELS = 64, 1024
MOST_SUMMED = 100  # tiles of a chunk. Measured from 32 to 400: best, and more would lose digits
# Up to so many channels and filters a weight gradient's chunks fit the second-level cache, with so many tiles
# at least, and form splits, each computed by one thread. Milliseconds on one and two threads, shared chunk by
# chunk and in splits: 64 -> 64 at 224x224 13.1 and 10.9, 12.7 and 6.3; 128 -> 128 at 56x56 2.5 and 1.5, 2.9
# and 2.0.
SPLIT_CHANNELS, SPLIT_TILES, SPLITS = 192, 48, 8
# Of the time of the algorithm that multiplies every tap: below it Winograd's is taken. Weight gradients of
# 8 to 32 channels were predicted least well, by up to a third.
MARGINS = {"forward": 0.95, "input_grad": 0.95, "weight_grad": 0.75}
# Pixels of a weight gradient's sums. With fewer, "gemm" sums round less than the transforms of 6x6 points do:
# rms errors, inputs of 1e-3 to 1e3, were 3.7 times its own at 8x8, 3.2 at 10x10, 2.6 at 13x13 and 18x18, 2.2
# at 20x20. Tiles of 2x2 take a tenth longer at 14x14, at 16x16, which tiles of 4x4 fill, 1.4 to 1.7 times as
# long.
LEAST_SUMMED = 400
FEW_CHANNELS = 8  # with less, lanes stay idle
# Of a group, where there are several: they come one after the other, and threads share each. 32 groups of
# 32 at 7x7 took 296 us on one thread (by "gemm" 436) and 450 on two (266).
FEW_CHANNELS_OF_A_GROUP = 64


class _State:
    on = os.environ.get("FASTCONV_WINOGRAD", "1") != "0"


def is_on() -> bool:
    """May `algorithm="auto"` take Winograd's method?"""
    return _State.on


def set_winograd(on: bool) -> None:
    """Allows or forbids Winograd's method wherever `algorithm` is "auto", for the whole process.

    It is allowed unless the environment says FASTCONV_WINOGRAD=0. Prepared operations keep, for shapes
    that they have seen, what they took. An algorithm that a call names is taken in any case.

    Parameters
    ----------
    on : bool

    Raises
    ------
    TypeError
        If `on` is not a bool.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_winograd(False)
    >>> fastconv.plan_conv2d((1, 64, 48, 48), (64, 64, 3, 3), padding=1).algorithm
    'gemm'
    >>> fastconv.set_winograd(True)
    """
    if not isinstance(on, bool):
        raise TypeError(f"on: expected True or False, got {on!r}")
    _State.on = on
    forget()


def matrices(points: Sequence[Any], outputs: int, taps: int) -> tuple[np.ndarray[Any, Any], ...]:
    """The matrices A, G and B of ``outputs = A' [(G taps) * (B' inputs)]`` for finite points and infinity.

    Points are numbers of any kind, and so are the entries: fractions give exact matrices. With M the
    polynomial that vanishes at all finite points, and M_i at all of them but the i-th, row i of B' holds the
    coefficients of M_i, the last one those of M; row i of G the powers of point i over M_i(point i), the last
    one the highest coefficient alone; and A the powers of the points.

    Parameters
    ----------
    points : sequence of numbers
        ``outputs + taps - 2`` different ones.
    outputs, taps : int

    Returns
    -------
    tuple of array
        (outputs + taps - 1, outputs), (outputs + taps - 1, taps), and (outputs + taps - 1) squared.
    """
    zero, one = points[0] * 0, points[0] * 0 + 1
    count = len(points) + 1
    a, g, b = (np.full((count, width), zero, object) for width in (outputs, taps, count))
    a[-1, -1] = g[-1, -1] = one
    for row in range(count):
        others = [point for index, point in enumerate(points) if index != row]
        b[: len(others) + 1, row] = _vanishing(others, one)
        if row < len(points):
            a[row], g[row] = _powers(points[row], outputs, one), _powers(points[row], taps, one)
            g[row] = [power / prod((points[row] - other for other in others), start=one) for power in g[row]]
    if g[0, 0] < zero:  # a sign that costs nothing on the side of the inputs
        g[0], b[:, 0] = -g[0], -b[:, 0]
    return a, g, b


def _powers(point: Any, count: int, one: Any) -> list[Any]:
    powers = [one]
    while len(powers) < count:
        powers.append(powers[-1] * point)
    return powers


def _vanishing(points: Sequence[Any], one: Any) -> list[Any]:
    """The coefficients, lowest first, of the product of x - point."""
    coefficients = [one]
    for point in points:
        higher, lower = [one * 0, *coefficients], [*coefficients, one * 0]
        coefficients = [high - point * low for high, low in zip(higher, lower, strict=True)]
    return coefficients


def cut(
    problem: ConvProblem, direction: str, algorithm: str, dtype: np.dtype[Any], prepared: bool
) -> tuple[Any, ...]:
    """What the kernel's entries take before the number of threads: the bits do not depend on it."""
    size = OUTPUTS[algorithm]
    if direction == "weight_grad":
        size = min(size, LARGEST_GRAD)
    point_bytes = (size + 2) ** 2 * dtype.itemsize
    if direction == "weight_grad":
        tile = point_bytes * max(problem.group_in + problem.group_out, 1)
        return size, *_chunks(problem, problem.batch * prod(-(-o // size) for o in problem.out_size), tile)
    channels, _, outputs = _sides(problem, direction)
    tile = point_bytes * max(channels, 1)
    whole = problem.batch * prod(-(-o // size) for o in outputs)
    tiles = max(LEAST_TILES, min(MOST_TILES, l2_bytes() // 4 // tile))
    tiles = max(1, min(tiles, VALUES_BYTES // tile))
    pays = not prepared or channels >= MANY_CHANNELS
    if pays and whole <= WHOLE_TILES and whole * tile <= 2 * VALUES_BYTES:
        tiles = WHOLE_TILES
    return size, tiles, prepared, l2_bytes(), LIMIT


def _chunks(problem: ConvProblem, tiles: int, tile_bytes: int) -> tuple[int, int]:
    """Tiles of a chunk of a weight gradient at most, and the splits of its chunks."""
    most = max(1, min(MOST_SUMMED, CHUNK_BYTES // tile_bytes))
    if problem.group_in + problem.group_out > SPLIT_CHANNELS:
        return most, 1
    most = min(most, max(SPLIT_TILES, l2_bytes() // 2 // tile_bytes))
    splits = min(SPLITS, -(-tiles // most))
    length = -(-tiles // (-(-tiles // (most * splits)) * splits))
    return length, min(splits, -(-tiles // length))


def _sides(problem: ConvProblem, direction: str) -> tuple[int, int, tuple[int, ...]]:
    """Channels that are summed, channels of the result, and its size, of one group."""
    if direction == "input_grad":
        return problem.group_out, problem.group_in, problem.in_size
    return problem.group_in, problem.group_out, problem.out_size


def work(
    algorithm: str, channels: int, filters: int, batch: int, outputs: tuple[int, ...], lanes: int, grad: bool
) -> tuple[float, ...]:
    """What the time of a call is made of: products, inputs, results, weights, and the call itself.

    A weight gradient transforms both its operands, and its sums once a chunk. "gemm" stands for the
    algorithms that multiply every tap.
    """
    if algorithm not in OUTPUTS:
        pixels = batch * -(-prod(outputs) // lanes) * lanes
        products = 9 * channels * filters * pixels
        return (
            float(products),
            float(channels * pixels),
            float(filters * pixels),
            9.0 * channels * filters,
            1.0,
        )
    size = OUTPUTS[algorithm]
    points, tiles = (size + 2) ** 2, batch * prod(-(-o // size) for o in outputs)
    inside, across = -(-channels // lanes) * lanes, -(-filters // lanes) * lanes
    pairs = points * (inside if grad else channels) * across
    sums = pairs * (-(-tiles // MOST_SUMMED) if grad else 1)
    return (
        float(pairs * tiles),
        float(points * inside * tiles),
        float(points * across * tiles),
        float(sums),
        1.0,
    )


def choose(
    problem: ConvProblem, direction: str, prepared: bool, dtype: np.dtype[Any]
) -> tuple[str, str] | None:
    """The algorithm that the cost model finds fastest, and why; None if it multiplies every tap."""
    if not _State.on:
        return None
    costs = COSTS.get(active_isa(), COSTS["avx2"])["prepared" if prepared else direction]
    channels, filters, outputs = _sides(problem, direction)
    lanes, grad = load(dtype).machine.tile()[2], direction == "weight_grad"
    times = {
        name: problem.groups * float(
            np.dot(cost, work(name, channels, filters, problem.batch, outputs, lanes, grad))
        )
        for name, cost in costs.items()
    }  # fmt: skip
    if grad and problem.batch * prod(outputs) < LEAST_SUMMED:
        del times["winograd_f4x4_3x3"]
    best = min(times, key=lambda name: times[name])
    share = times[best] / times["gemm"]
    few = FEW_CHANNELS if problem.groups == 1 else FEW_CHANNELS_OF_A_GROUP
    if share >= MARGINS[direction] or channels < few:
        return None
    return best, f"3x3, stride 1: by the cost model in {share:.0%} of the time of multiplying every tap"


# Microseconds for a unit of each kind of work that `work` counts, by `python -m bench.winograd_grid fit` from
# tables of a Xeon (family 6, model 167). Machines differ in speed more than in proportions.
COSTS: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "avx512": {
        "forward": {
            "gemm": (1.39e-05, 0.000351, 0.000199, 0.000253, 4.03),
            "winograd_f4x4_3x3": (1.72e-05, 0.0002, 0.000192, 0.000116, 2.83),
            "winograd_f2x2_3x3": (1.43e-05, 0.000136, 0.000151, 0.000156, 2.75),
        },
        "prepared": {
            "gemm": (1.42e-05, 0.000405, 0.000205, 0.000145, 3.93),
            "winograd_f4x4_3x3": (1.66e-05, 0.000234, 0.000199, 6.55e-05, 2.91),
            "winograd_f2x2_3x3": (1.46e-05, 0.000164, 0.000145, 2.51e-05, 3.39),
        },
        "input_grad": {
            "gemm": (1.37e-05, 0.000534, 0.000144, 0.000627, 5.63),
            "winograd_f4x4_3x3": (1.73e-05, 0.000205, 0.000187, 0.000123, 3.67),
            "winograd_f2x2_3x3": (1.47e-05, 0.000146, 0.000131, 0.00015, 3.88),
        },
        "weight_grad": {
            "gemm": (1.15e-05, 0.000261, 0.000189, 0.00014, 3.95),
            "winograd_f4x4_3x3": (1.51e-05, 0.000185, 0.000571, 0.000116, 1.77),
            "winograd_f2x2_3x3": (1.46e-05, 8.93e-05, 0.000551, 9.47e-05, 0.969),
        },
    },
    "avx2": {
        "forward": {
            "gemm": (2.18e-05, 0.000941, 0.000264, 0.000322, 3.42),
            "winograd_f4x4_3x3": (2.45e-05, 0.00028, 0.000257, 0.000194, 2.98),
            "winograd_f2x2_3x3": (2.16e-05, 0.000231, 0.000177, 0.000246, 2.88),
        },
        "prepared": {
            "gemm": (2.21e-05, 0.000965, 0.00027, 0.000182, 3.82),
            "winograd_f4x4_3x3": (2.4e-05, 0.000294, 0.000267, 5.01e-05, 3.3),
            "winograd_f2x2_3x3": (2.17e-05, 0.000232, 0.000179, 7.43e-06, 3.65),
        },
        "input_grad": {
            "gemm": (2.26e-05, 0.000592, 0.000185, 0.000774, 5.64),
            "winograd_f4x4_3x3": (2.45e-05, 0.000298, 0.000231, 0.000208, 3.97),
            "winograd_f2x2_3x3": (2.15e-05, 0.000243, 0.000155, 0.000264, 3.91),
        },
        "weight_grad": {
            "gemm": (1.97e-05, 0.000181, 0.000162, 0.000197, 4.2),
            "winograd_f4x4_3x3": (2.22e-05, 0.000315, 0.00048, 0.000186, 2.77),
            "winograd_f2x2_3x3": (2.05e-05, 0.000236, 0.000438, 0.000301, 2.26),
        },
    },
}
