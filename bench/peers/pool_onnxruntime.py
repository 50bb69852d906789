"""ONNX Runtime: a model of one MaxPool or AveragePool node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from bench.peers.arrays import Arrays
from bench.peers.onnx_model import model_of
from bench.peers.onnxruntime import fastest_call, supports, version
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    layer = case.layer
    window = {
        "kernel_shape": [layer.kernel_height, layer.kernel_width],
        "strides": [layer.stride] * 2,
        "pads": [layer.padding] * 4,
    }
    if layer.pooling == "max":
        node = helper.make_node("MaxPool", ["x"], ["y"], **window)
    else:
        node = helper.make_node("AveragePool", ["x"], ["y"], count_include_pad=1, **window)
    return fastest_call(model_of(node, case), case, arrays)
