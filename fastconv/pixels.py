"""When a dense convolution with channels last computes in place (kernels/pixels.pyx), and not by copies."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv import winograd, winograd_costs
from fastconv.problem import ConvProblem
from fastconv.registry import find

# AVX-512, one thread, microseconds in place and by copies: 1024 -> 256 channels at 14x14 704, 946; plain
# calls, which pack the weights, 1,162, 1,011; 512 -> 128 at 28x28, plain, 770, 1,325; 512 -> 2048 at 7x7
# 1,421, 897.
LEAST_PIXELS, LEAST_PLAIN_PIXELS = 128, 512  # of outputs: they fill tiles, and repay the packing
FEW_CHANNELS = 8  # that do not ask how many pixels there are
# 3x3, in place and Winograd by copies: 32 -> 64 at 56x56 705, 490; 16 -> 128 at 28x28 179, 149; 8 -> 128 94,
# 113; 32 -> 16 at 56x56 204, 237; 16 -> 32 at 112x112 710, 748.
WINOGRAD_IN, WINOGRAD_OUT = 16, 64  # channels from which on Winograd's method serves


def take(problem: ConvProblem, direction: str) -> bool:
    """Does the kernel take the problem?"""
    supported = find("conv", direction, "blocked").supports(problem)
    return problem.channels_last and direction == "forward" and problem.groups == 1 and supported


def pay(problem: ConvProblem, direction: str, prepared: bool, dtype: np.dtype[Any]) -> bool:
    """Does it take it, and is it faster than any other?"""
    if not take(problem, direction):
        return False
    pixels = problem.batch * prod(problem.out_size)
    if problem.group_in > FEW_CHANNELS and pixels < (LEAST_PIXELS if prepared else LEAST_PLAIN_PIXELS):
        return False
    transforms = (
        problem.group_in >= WINOGRAD_IN
        and problem.group_out >= WINOGRAD_OUT
        and find("conv", direction, winograd.ALGORITHMS[0]).supports(problem)
    )
    return not (transforms and winograd_costs.choose(problem, direction, prepared, dtype))
