"""fastconv's pools with channels last; results are handed over as NCHW views."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.peers import pool_fastconv
from bench.peers.arrays import Arrays
from bench.peers.pool_fastconv import supports, version
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    run = pool_fastconv.prepare(case, arrays, layout="NHWC")
    return lambda: run().transpose(0, 3, 1, 2)
