"""scipy.signal.oaconvolve: overlap-add, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
import scipy.signal

from bench.peers.arrays import Arrays
from bench.peers.one_channel import filtering, supports
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def version() -> str:
    return f"scipy {scipy.__version__}"


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    oaconvolve = scipy.signal.oaconvolve
    return filtering(case, arrays, lambda image, kernel: oaconvolve(image, kernel[::-1, ::-1], "same"))
