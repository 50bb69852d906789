"""Winograd's method for 3x3 kernels of stride 1: its matrices, how work is cut, and its switch.

docs/winograd.md explains it.
"""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv.engine import active_isa, forget
from fastconv.passes import l2_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import WINOGRAD_OUTPUTS

OUTPUTS = {f"winograd_f{size}x{size}_3x3": size for size in WINOGRAD_OUTPUTS}  # of a tile, along an axis
ALGORITHMS = tuple(OUTPUTS)
# The largest error of a result stays below this times eps * sqrt(terms) * rms of the results; 4 by "gemm".
ERROR_CONSTANTS = {
    "winograd_f4x4_3x3": 12.0, "winograd_f3x3_3x3": 6.0, "winograd_f2x2_3x3": 6.0, "winograd_f6x6_3x3": 100.0,
}  # fmt: skip
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
# The rms error of weight gradients is at most 2.5 times that of "direct", whose own grows with `laxity`, from
# these on, for tiles of each size. By 4x4, 3x3 and 2x2, uniform operands: at 14x14 4.7, 2.5 and 1.6 times, at
# 28x28 3.6, 2.1 and 1.3, at 112x112 2.3, 1.2 and 0.8.
LAXITIES = {4: 360, 3: 46, 2: 0}
# The products of a chunk are summed in parts of at most so many tiles: short ones round less, long ones take
# 5 to 10% less time. The second and the third serve from these laxities on.
PART_TILES, MOST_PARTS = (13, 24, 48), 8
LONG_PARTS = {4: (360, 600), 3: (100, 250), 2: (30, 100)}
UNFUSED = 0.7  # of the laxity, where a product is rounded before it is added: transforms suffer more


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
        length, splits = _chunks(problem, count_tiles(problem.batch, problem.out_size, size), tile)
        return size, length, PART_TILES[bisect(LONG_PARTS[size], laxity(problem))], splits
    channels, _, outputs = sides(problem, direction)
    tile = point_bytes * max(channels, 1)
    whole = count_tiles(problem.batch, outputs, size)
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


def laxity(problem: ConvProblem) -> float:
    """How much the definition's own weight gradient rounds: more for each image than for its pixels."""
    laxity = problem.batch * prod(problem.out_size) ** 0.6
    return float(laxity * UNFUSED if active_isa() == "baseline" else laxity)


def is_exact(problem: ConvProblem, direction: str, algorithm: str) -> bool:
    """Is the rms error of results at most 2.5 times that of "direct"?"""
    return direction != "weight_grad" or laxity(problem) >= LAXITIES[OUTPUTS[algorithm]]


def count_tiles(batch: int, outputs: Sequence[int], size: int) -> int:
    return batch * prod(-(-o // size) for o in outputs)


def sides(problem: ConvProblem, direction: str) -> tuple[int, int, tuple[int, ...]]:
    """Channels that are summed, channels of the result, and its size, of one group."""
    if direction == "input_grad":
        return problem.group_out, problem.group_in, problem.in_size
    return problem.group_in, problem.group_out, problem.out_size
