"""fastconv.signal, as a caller of SciPy would call it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastconv
from bench.peers.arrays import Arrays
from bench.peers.one_channel import filtering, supports
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def version() -> str:
    return f"fastconv {fastconv.__version__}"


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    fastconv.set_num_threads(case.threads)
    correlate2d = fastconv.signal.correlate2d
    return filtering(case, arrays, lambda image, kernel: correlate2d(image, kernel, "same"))
