"""OpenVINO: a model of one convolution whose weight is a constant, compiled for one stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino
from openvino import opset13

from bench.peers.arrays import Arrays
from bench.shapes import FORWARD, Case


def version() -> str:
    return f"openvino {openvino.__version__.split('-')[0]}"


def supports(direction: str) -> bool:
    return direction == FORWARD


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    """Input and output stay in tensors of their own: no allocation and no copy in the timed call."""
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.compile_model(build_model(case, arrays.weight), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(arrays.input, shared_memory=True))
    output = np.empty(case.layer.output_shape(case.batch), np.float32)
    request.set_output_tensor(openvino.Tensor(output, shared_memory=True))

    # Tensors do not keep alive what they share.
    def run(kept: tuple[np.ndarray, ...] = (arrays.input, output)) -> np.ndarray:
        request.infer()
        return kept[1]

    return run


def build_model(case: Case, weight: np.ndarray) -> openvino.Model:
    stride, padding, dilation, groups = case.layer.window
    x = opset13.parameter(case.layer.input_shape(case.batch), np.float32)
    window = ([stride] * 2, [padding] * 2, [padding] * 2, [dilation] * 2)
    if groups == 1:
        y = opset13.convolution(x, opset13.constant(weight), *window)
    else:
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        y = opset13.group_convolution(x, opset13.constant(grouped), *window)
    return openvino.Model([y], [x])
