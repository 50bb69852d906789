"""Winograd's method: its algorithms, how their work is cut, and where their matrices come from."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv.passes import l2_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import WINOGRAD_OUTPUTS

OUTPUTS = {f"winograd_f{size}x{size}_3x3": size for size in WINOGRAD_OUTPUTS}  # of a tile, along an axis
ALGORITHMS = tuple(OUTPUTS)
# The largest error of a result stays below this times eps * sqrt(terms) * rms of the results; 4 by "gemm".
ERROR_CONSTANTS = {"winograd_f4x4_3x3": 12.0, "winograd_f2x2_3x3": 6.0}
WEIGHT_LIMIT = 8 << 20  # bytes of transformed weights at a time in a plain call
VALUES_BYTES = 5 << 20  # of a block of transformed inputs at most, and of a chunk's operands of a weight gradient
MOST_SUMMED = 1000  # tiles of a chunk: more would lose digits
MOST_TILES = 56  # of a block, which shares the second-level cache with its weights and products
LEAST_TILES = 28  # weights are read once for so many
FUSED_TILES = 64  # a plain call on so few transforms its weights panel by panel, as they are used
# The largest error of a result stays below this times eps * sqrt(terms) * rms of the results; 4 by "gemm".
ERROR_CONSTANTS = {"winograd_f4x4_3x3": 12.0, "winograd_f2x2_3x3": 6.0}
WEIGHT_LIMIT = 8 << 20  # bytes of transformed weights at a time in a plain call
CHUNK_BYTES = 6 << 20  # of the transformed operands of a weight gradient
MOST_SUMMED = 1000  # tiles of a chunk: more would lose digits
LEAST_TILES, MOST_TILES = 28, 112  # of a block


def cut(
    problem: ConvProblem, direction: str, algorithm: str, dtype: np.dtype[Any], prepared: bool
) -> tuple[Any, ...]:
    """What the kernel's entries take before the number of threads: the bits do not depend on it."""
    size = OUTPUTS[algorithm]
    point_bytes = (size + 2) ** 2 * dtype.itemsize
    if direction == "weight_grad":
        tile = point_bytes * max(problem.group_in + problem.group_out, 1)
        return size, max(1, min(MOST_SUMMED, VALUES_BYTES // tile))
    channels, outputs = problem.group_in, problem.out_size
    if direction == "input_grad":
        channels, outputs = problem.group_out, problem.in_size
    tile = point_bytes * max(channels, 1)
    whole = problem.batch * prod(-(-o // size) for o in outputs)
    tiles = max(LEAST_TILES, min(MOST_TILES, l2_bytes() // 4 // tile))
    if not prepared and whole <= FUSED_TILES:
        tiles = FUSED_TILES
    return size, max(1, min(tiles, VALUES_BYTES // tile)), prepared, l2_bytes(), WEIGHT_LIMIT
