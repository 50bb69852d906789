"""PyTorch on contiguous NCHW tensors: oneDNN, or ATen's own kernels where it prefers them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bench.peers.arrays import Arrays
from bench.shapes import DIRECTIONS, FORWARD, INPUT_GRAD, WEIGHT_GRAD, Case

# For the whole worker: entered per call it would be timed.
INFERENCE_MODE = torch.inference_mode()
INFERENCE_MODE.__enter__()


def version() -> str:
    return f"torch {torch.__version__}"


def supports(direction: str) -> bool:
    return direction in DIRECTIONS


def prepare(
    case: Case, arrays: Arrays, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[], torch.Tensor]:
    torch.set_num_threads(case.threads)

    def tensor(array: np.ndarray | None, shape: tuple[int, ...]) -> torch.Tensor:
        # A gradient reads only the shape and the format of the operand it differentiates by.
        values = torch.empty(shape) if array is None else torch.from_numpy(array)
        return values.contiguous(memory_format=memory_format)

    layer = case.layer
    x = tensor(arrays.input, layer.input_shape(case.batch))
    weight = tensor(arrays.weight, layer.weight_shape)
    if case.direction == FORWARD:
        return lambda: torch.conv2d(x, weight, None, *layer.window)
    grad_output = tensor(arrays.grad_output, layer.output_shape(case.batch))
    return gradient(case, grad_output, x, weight)


def exact(case: Case, arrays: Arrays) -> np.ndarray:
    """The same in float64, image by image: PyTorch's float64 kernels unfold whatever they are given."""
    layer, single = case.layer, replace(case, batch=1)

    def image(number: int) -> np.ndarray:
        rows = slice(number, number + 1)
        operands = (
            (arrays.input, rows, layer.input_shape(1)),
            (arrays.weight, slice(None), layer.weight_shape),
            (arrays.grad_output, rows, layer.output_shape(1)),
        )
        doubles = (
            np.zeros(shape) if array is None else array[part].astype(np.float64)
            for array, part, shape in operands
        )
        return np.asarray(prepare(single, Arrays(*doubles))())

    images = (image(number) for number in range(case.batch))
    return sum(images) if case.direction == WEIGHT_GRAD else np.concatenate(list(images))


def gradient(
    case: Case, grad_output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """One gradient alone: the output mask keeps PyTorch from computing the other two."""
    stride, padding, dilation, groups = case.layer.window
    window = [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups
    wanted = 0 if case.direction == INPUT_GRAD else 1
    mask = [wanted == 0, wanted == 1, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(grad_output, x, weight, None, *window, mask)[wanted]
