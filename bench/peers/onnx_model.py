"""ONNX models of one node, from x to y, for peers that read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.shapes import Case

OPSET, IR_VERSION = 17, 8


def build_model(case: Case, weight: np.ndarray) -> bytes:
    stride, padding, dilation, groups = case.layer.window
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=[padding] * 4,
        dilations=[dilation] * 2, group=groups,
    )  # fmt: skip
    return model_of(node, case, [numpy_helper.from_array(weight, "w")])


def model_of(node: onnx.NodeProto, case: Case, constants: Sequence[onnx.TensorProto] = ()) -> bytes:
    shapes = {"x": case.layer.input_shape(case.batch), "y": case.layer.output_shape(case.batch)}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString()
