"""fastconv's pools: NCHW, gradients of maxima from window indices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastconv
from bench.peers.arrays import Arrays
from bench.peers.fastconv_plain import version
from bench.shapes import FORWARD, INPUT_GRAD, Case

__all__ = ["prepare", "supports", "version"]


def supports(direction: str) -> bool:
    return direction in (FORWARD, INPUT_GRAD)


def prepare(case: Case, arrays: Arrays, layout: str = "NCHW") -> Callable[[], np.ndarray]:
    fastconv.set_num_threads(case.threads)
    layer = case.layer
    window = layer.kernel_height, layer.stride, layer.padding
    x, g = (in_layout(array, layout) for array in (arrays.input, arrays.grad_output))
    if layer.pooling == "argmax":
        return lambda: fastconv.max_pool2d(x, *window, return_indices="window", layout=layout)[0]
    if case.direction == FORWARD:
        pool = fastconv.max_pool2d if layer.pooling == "max" else fastconv.avg_pool2d
        return lambda: pool(x, *window, layout=layout)
    if layer.pooling == "max":
        indices = fastconv.max_pool2d(x, *window, return_indices="window", layout=layout)[1]
        return lambda: fastconv.max_pool2d_backward(g, x, *window, indices=indices, layout=layout)
    batch, channels, height, width = layer.input_shape(case.batch)
    shape = (batch, channels, height, width) if layout == "NCHW" else (batch, height, width, channels)
    return lambda: fastconv.avg_pool2d_backward(g, shape, *window, layout=layout)


def in_layout(array: np.ndarray | None, layout: str) -> np.ndarray | None:
    if array is None or layout == "NCHW":
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
