"""scipy.ndimage.correlate: sums, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
import scipy.ndimage

from bench.peers.arrays import Arrays
from bench.peers.one_channel import at_most, filtering, supports
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def version() -> str:
    return f"scipy {scipy.__version__}"


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    at_most(15, case, "ndimage.correlate")
    correlate = scipy.ndimage.correlate
    return filtering(case, arrays, lambda image, kernel: correlate(image, kernel, mode="constant"))
