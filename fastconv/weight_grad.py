"""The algorithm for a weight gradient, where every tap is multiplied.

Thresholds come from 8,500 layers on one thread, float32, AVX-512 and AVX2: depthwise with 1 to 8 filters a
channel, 1 to 96 filters of one channel, few channels in or out, groups, and 3 to 512 channels; 1x1 to 11x11,
strides of 1 to 3, maps of 7 to 160 pixels, batches of 1 to 8. The rules before these took more than 1.3 times
as long as the fastest algorithm on 1,793 of them, up to 20 times; these do on 285, up to 3.1 times.
"""

from __future__ import annotations

from math import prod

from fastconv.problem import ConvProblem
from fastconv.registry import find

# 1x1 filters are scalar products of planes, which lie in memory as they are read. Microseconds by "direct",
# "gemm" and "depthwise" (AVX-512): 64 groups of one channel at 112x112 61, 1,320, 849; one channel, 96
# filters there 83, 186, 1,218; 2 -> 8 at 40x40, batch 8, 15 and 28 by the first two.
FEW_PAIRS, FEW_PAIRS_OF_STEPS = 24, 4  # of a filter and a channel, of a group, with stride 1 and with more
THIN = 2  # so few filters or channels are as good whatever there is of the others, with stride 1
# Filters a channel from which on "shifted" is faster than "depthwise", which copies the image for each of
# them, with strides of 1, 2, and 3 and more. 64 of one channel, 4x4, to 37x37 with stride 3: 20 and 180 us.
MANY_FILTERS = (8, 4, 2)
# Timed from 2 to 512 channels a group: with taps "shifted" takes 0.1 to 1.0 times as long as "gemm", but
# where most of a row that it copies meets no tap. For few filters it pays then, too: 16 -> 3, 2x2 with stride
# 3 at 112x112, batch 4, 63 us, by "gemm" 193. Where taps lie apart, channels alone fill its vectors: 1 -> 64,
# 3x3 dilated by 2 at 56x56, batch 8, 629 us, by "gemm" 318.
FARTHEST, FEW_FILTERS = 1.5, 8
FEW_CHANNELS, MANY_FILTERS_APART = 3, 32


def _meets_planes(problem: ConvProblem) -> bool:
    """Is every result a scalar product of planes, and are there few?"""
    channels, filters = problem.group_in, problem.group_out
    if not problem.takes_pixels:
        return False
    if problem.channels_last and channels == filters == 1:  # "depthwise" reads them in place
        return False
    if max(problem.stride) > 1:
        return channels * filters <= FEW_PAIRS_OF_STEPS
    return channels * filters <= FEW_PAIRS or min(channels, filters) <= THIN


def choose(problem: ConvProblem) -> tuple[str, str]:
    """An algorithm, and why."""

    def takes(algorithm: str) -> bool:
        return find("conv", "weight_grad", algorithm).supports(problem)

    if _meets_planes(problem):
        return "direct", "1x1: scalar products of planes where they lie"
    channels, filters = problem.group_in, problem.group_out
    many = MANY_FILTERS[min(max(problem.stride), len(MANY_FILTERS)) - 1]
    if channels == 1 and filters < many and takes("depthwise"):
        return "depthwise", "one input channel a group: nothing to sum over channels"
    apart = problem.dilation[-1] > 1 and channels <= FEW_CHANNELS and filters >= MANY_FILTERS_APART
    near = problem.stride[-1] <= FARTHEST * problem.kernel[-1] or filters <= FEW_FILTERS
    if prod(problem.kernel) > 1 and near and not apart and takes("shifted"):
        return "shifted", "taps read one copy of the image"
    return "gemm", "the general form"
