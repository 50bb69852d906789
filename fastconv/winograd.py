"""Winograd's method: its algorithms, how their work is cut, and where their matrices come from."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv.engine import load
from fastconv.passes import l2_bytes
from fastconv.problem import ConvProblem
from fastconv.registry import WINOGRAD_OUTPUTS

OUTPUTS = {f"winograd_f{size}x{size}_3x3": size for size in WINOGRAD_OUTPUTS}  # of a tile, along an axis
ALGORITHMS = tuple(OUTPUTS)
# The largest error of a result stays below this times eps * sqrt(terms) * rms of the results; 4 by "gemm".
ERROR_CONSTANTS = {"winograd_f4x4_3x3": 12.0, "winograd_f2x2_3x3": 6.0}
WEIGHT_LIMIT = 8 << 20  # bytes of transformed weights at a time in a plain call
CHUNK_BYTES = 6 << 20  # of the transformed operands of a weight gradient
MOST_SUMMED = 1000  # tiles of a chunk: more would lose digits
LEAST_TILES, MOST_TILES = 28, 112  # of a block


def cut(problem: ConvProblem, direction: str, algorithm: str, dtype: np.dtype[Any], prepared: bool) -> tuple[Any, ...]:
    """What the kernel's entries take before the number of threads: the bits do not depend on it."""
    size = OUTPUTS[algorithm]
    if direction == "weight_grad":
        values = (size + 2) ** 2 * max(problem.group_in + problem.group_out, 1) * dtype.itemsize
        return size, max(LEAST_TILES, min(MOST_SUMMED, CHUNK_BYTES // values))
    channels = problem.group_out if direction == "input_grad" else problem.group_in
    height = load(dtype).machine.tile()[0]
    values = (size + 2) ** 2 * max(channels, 1) * dtype.itemsize
    tiles = max(LEAST_TILES, min(MOST_TILES, l2_bytes() // 2 // values)) // height * height
    return size, max(tiles, height), prepared, l2_bytes(), WEIGHT_LIMIT
