"""PyTorch's pools on contiguous NCHW tensors; gradients outside autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench.peers.arrays import Arrays
from bench.peers.torch_nchw import version
from bench.shapes import FORWARD, INPUT_GRAD, Case

__all__ = ["prepare", "supports", "version"]

aten = torch.ops.aten


def supports(direction: str) -> bool:
    return direction in (FORWARD, INPUT_GRAD)


def prepare(
    case: Case, arrays: Arrays, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[], torch.Tensor]:
    torch.set_num_threads(case.threads)

    def tensor(array: np.ndarray | None, shape: tuple[int, ...]) -> torch.Tensor:
        # The gradient of an average reads only the shape and the format of the input.
        values = torch.empty(shape) if array is None else torch.from_numpy(array)
        return values.contiguous(memory_format=memory_format)

    layer = case.layer
    window = [[size] * 2 for size in (layer.kernel_height, layer.stride, layer.padding)]
    x = tensor(arrays.input, layer.input_shape(case.batch))
    if layer.pooling == "argmax":
        return lambda: aten.max_pool2d_with_indices(x, *window)[0]
    if case.direction == FORWARD:
        if layer.pooling == "avg":
            return lambda: torch.nn.functional.avg_pool2d(x, *window)
        return lambda: torch.max_pool2d(x, *window)
    g = tensor(arrays.grad_output, layer.output_shape(case.batch))
    if layer.pooling == "avg":
        return lambda: aten.avg_pool2d_backward(g, x, *window, False, True, None)
    indices = aten.max_pool2d_with_indices(x, *window)[1]
    return lambda: aten.max_pool2d_with_indices_backward(g, x, *window, [1, 1], False, indices)
