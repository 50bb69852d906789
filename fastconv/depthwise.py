"""The algorithm where a group has one input channel, forward and for input gradients.

weight_grad.py chooses for weight gradients, bank.py where that channel is the only one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv import bank
from fastconv.blocked import joins_depthwise
from fastconv.problem import ConvProblem

FEW_FLOPS = 20_000  # up to here packing would cost more than it brings
# Filters a group from which on a matrix product is faster: it reads the image less often. Measured with 8, 32
# and 100 filters of 1x1 to 15x15 and strides of 1 to 3 on a 48x48 image; with up to FEW_TAPS it is from half
# as many on.
MANY_FILTERS = 64
FEW_TAPS = 9
# Filters a group from which on 1x1 filters are a matrix product, and bytes of results that "gemm" writes past
# the caches. Microseconds by "direct", "gemm" and "depthwise" (AVX-512): 8 channels at 112x112, batch 4, 48,
# 103, 102; 192 at 64x64, batch 4, 1,326, 752, 1,093; 3 -> 24 at 160x160, batch 8, 715, 468, 976; input
# gradients, 1 -> 16 at 160x160 32, 37, 80, 1 -> 32 at 112x112, batch 4, 115, 99, 317.
SCALED = {"forward": 4, "input_grad": 32}
SCALED_BYTES = 8 << 20


def choose(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """An algorithm, and why; None for those of many input channels."""
    if problem.takes_pixels and max(problem.stride) == 1 and not problem.channels_last:
        result = problem.output_shape if direction == "forward" else problem.input_shape
        if problem.group_out < SCALED[direction] and prod(result) * dtype.itemsize < SCALED_BYTES:
            return "direct", "1x1, one input channel a group: planes are scaled where they lie"
        return "gemm", "1x1, one input channel a group: a product of a column and a row"
    if problem.groups == 1 and direction == "forward":
        return bank.choose(problem, dtype)
    if joins_depthwise(problem, direction, dtype):
        return "blocked", "depthwise steps: phases that lie side by side leave as one row"
    many = MANY_FILTERS if prod(problem.kernel) > FEW_TAPS else MANY_FILTERS // 2
    if direction == "input_grad" or problem.flops <= FEW_FLOPS or problem.group_out < many:
        return "depthwise", "one input channel a group: nothing to sum over channels"
    return None
