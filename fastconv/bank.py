"""The algorithm for filters of images with one channel, few or many: a bank of them.

Thresholds come from times on one thread, float32, AVX-512 and AVX2: 4 to 100 filters of 1x1 to 15x15, strides
of 1 to 3, on images of 24x24 to 224x224, and the grid of bench/cliffs.py.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv.blocked import FULL, LARGE_TILE, lanes_used
from fastconv.engine import load
from fastconv.passes import padding_shares
from fastconv.problem import ConvProblem

# Milliseconds by "gemm" and "filter", AVX-512: on 224x224, 32 filters 3x3 (6.4 MB of outputs) 0.34 and 1.08,
# 16 filters 0.16 and 0.18; on 48x48, 100 filters 3x3 0.036 and 0.057, 13x13 0.53 and 0.52. AVX2, 64 filters
# on 48x48: 5x5 0.101 and 0.083.
BANK, BANK_BYTES = 32, 2 << 20  # so many filters with so many bytes of outputs are a matrix product
LARGE_BANK = 64  # so many are one of whatever size, ...
LARGE_BANK_TAPS = 100  # ... with few taps, or stride 2; narrow vectors: both with FEW_TAPS at most
# Microseconds by "gemm", "filter" and "blocked", AVX-512: stride 2 on 224x224, 32 filters 3x3 84, 148, 132,
# 8 filters 26, 36 and 63; on 24x24, 32 filters 5x5 5.5, 7.0 and 5.1. 1x1 on 48x48, 32 filters: 8.0 and 8.8.
BANK_1X1 = 16  # filters
WIDE_MAP = 24  # outputs along an axis
FEW_FILTERS, TALL_FILTER, TALL_MAP = 8, 9, 16
# With 32 filters "blocked" takes 0.9 to 0.55 of the time of "filter" where steps are 3, and 0.85 to 0.7 for
# 9x9 to 15x15 dilated by 2 and 3. AVX2, 32 filters 3x3 with stride 2 on 224x224: 0.25 ms, "gemm" 0.13.
OUTSIDE = 0.1  # of the products: with columns of the padding
FEW_TAPS = 9


def choose(p: ConvProblem, dtype: np.dtype[Any]) -> tuple[str, str]:
    """An algorithm, and why."""
    filters, taps = p.out_channels, prod(p.kernel)
    written = p.batch * filters * prod(p.out_size) * dtype.itemsize
    rows = p.kernel[0] if p.axes == 2 else 1
    stride, steps = max(p.stride), max(*p.stride, *p.dilation)
    wide = load(dtype).machine.tile()[0] >= LARGE_TILE
    halved = stride == 2 and taps >= FEW_TAPS and min(p.out_size) >= WIDE_MAP
    if (
        (filters >= BANK and written > BANK_BYTES and (stride < 3 if wide else taps <= FEW_TAPS))
        or (filters >= LARGE_BANK and (taps <= (LARGE_BANK_TAPS if wide else FEW_TAPS) or stride == 2))
        or (filters >= BANK_1X1 and taps == 1)
        or (filters >= (FEW_FILTERS if wide else BANK) and halved)
    ):
        return "gemm", "many filters of one channel: a matrix product"
    strided = wide and stride > 1 and taps >= FEW_TAPS
    outside = rows >= TALL_FILTER and padding_shares(p)[-1] >= OUTSIDE
    if filters >= BANK and lanes_used(filters, 1, dtype) >= FULL and (strided or outside):
        return "blocked", "many filters of one channel fill the vectors"
    if filters == 1 or steps > 2 or rows >= TALL_FILTER or taps == 1:
        return "filter", "one channel: filters slide over rows that registers share"
    if filters >= FEW_FILTERS and p.out_size[0] >= TALL_MAP:
        return "filter", "one channel: filters slide over rows that registers share"
    return "depthwise", "one input channel a group: nothing to sum over channels"
