"""fastconv as a function: weights are read as they are, on every call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastconv
from bench.peers.arrays import Arrays
from bench.shapes import DIRECTIONS, FORWARD, INPUT_GRAD, Case, Layer


def version() -> str:
    return f"fastconv {fastconv.__version__}"


def supports(direction: str) -> bool:
    return direction in DIRECTIONS


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    fastconv.set_num_threads(case.threads)
    layer, x, weight, grad_output = case.layer, arrays.input, arrays.weight, arrays.grad_output
    window = window_arguments(layer)
    if case.direction == FORWARD:
        return lambda: fastconv.conv2d(x, weight, None, *layer.window)
    if case.direction == INPUT_GRAD:
        input_shape = layer.input_shape(case.batch)
        return lambda: fastconv.conv2d_input_grad(input_shape, weight, grad_output, **window)
    return lambda: fastconv.conv2d_weight_grad(x, layer.weight_shape, grad_output, **window)


def window_arguments(layer: Layer) -> dict[str, int]:
    return dict(zip(("stride", "padding", "dilation", "groups"), layer.window, strict=True))
