"""fastconv with the weights packed once and channels last; results are handed over as NCHW views."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastconv
from bench.peers.arrays import Arrays
from bench.peers.fastconv_plain import version, window_arguments
from bench.peers.fastconv_prepared import supports
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    fastconv.set_num_threads(case.threads)
    x = np.ascontiguousarray(np.moveaxis(arrays.input, 1, -1))
    operation = fastconv.prepare_conv2d(arrays.weight, **window_arguments(case.layer), layout="NHWC")
    return lambda: operation(x).transpose(0, 3, 1, 2)
