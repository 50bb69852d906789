"""fastconv with the weights packed once, as peers that prepack are to be compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastconv
from bench.peers.arrays import Arrays
from bench.peers.fastconv_plain import version, window_arguments
from bench.shapes import FORWARD, Case

__all__ = ["prepare", "supports", "version"]


def supports(direction: str) -> bool:
    return direction == FORWARD


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    fastconv.set_num_threads(case.threads)
    x = arrays.input
    operation = fastconv.prepare_conv2d(arrays.weight, **window_arguments(case.layer))
    return lambda: operation(x)
