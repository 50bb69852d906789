"""OpenCV's filter2D, with zeros around the image."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from bench.peers.arrays import Arrays
from bench.peers.one_channel import filtering, supports
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def version() -> str:
    return f"opencv {cv2.__version__}"


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    cv2.setNumThreads(case.threads)
    zeros = cv2.BORDER_CONSTANT
    return filtering(case, arrays, lambda image, kernel: cv2.filter2D(image, -1, kernel, borderType=zeros))
