"""NumPy as textbooks have it: windows copied into a matrix, then a product by BLAS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.peers.arrays import Arrays
from bench.shapes import FORWARD, WEIGHT_GRAD, Case, Layer


def version() -> str:
    return f"numpy {np.__version__}"


def supports(direction: str) -> bool:
    return direction in (FORWARD, WEIGHT_GRAD)


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    layer, x, weight, grad_output = case.layer, arrays.input, arrays.weight, arrays.grad_output
    output_shape = layer.output_shape(case.batch)
    split = case.batch, layer.groups, layer.kernels // layer.groups, -1
    if case.direction == FORWARD:
        kernels = weight.reshape(1, layer.groups, layer.kernels // layer.groups, -1)
        return lambda: (kernels @ columns(x, layer)).reshape(output_shape)
    grad_rows = grad_output.reshape(split)
    transposed = (0, 1, 3, 2)
    return lambda: (grad_rows @ columns(x, layer).transpose(transposed)).sum(0).reshape(layer.weight_shape)


def columns(x: np.ndarray, layer: Layer) -> np.ndarray:
    """The im2col matrix of every sample and group: (N, groups, C/groups*R*S, output pixels)."""
    pad, dilation, stride = layer.padding, layer.dilation, layer.stride
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    _, _, kernel_height, kernel_width = layer.weight_shape
    reach = dilation * (kernel_height - 1) + 1, dilation * (kernel_width - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    windows = windows[:, :, ::stride, ::stride, ::dilation, ::dilation]
    batch, _, height, width, _, _ = windows.shape
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(batch, layer.groups, -1, height * width)
