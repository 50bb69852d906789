"""MNN: a module of one convolution, converted from ONNX so that its weight is a constant.

`MNN.tools` is not imported: it installs a package for usage reports as soon as it is. The converter inside
of it does not need that. Modules, not sessions: a session's second run finds its input overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _tools
import MNN
import numpy as np
from MNN import expr, nn

from bench.peers.arrays import Arrays
from bench.peers.onnx_model import build_model
from bench.shapes import FORWARD, Case


class Output:
    """A variable that becomes an array when it is looked at, which is not timed."""

    def __init__(self, variable: Any, shape: tuple[int, ...]) -> None:
        self.variable, self.shape = variable, shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.variable.read(), np.float32).reshape(self.shape)


def version() -> str:
    return f"MNN {MNN.version()}"


def supports(direction: str) -> bool:
    return direction == FORWARD


def prepare(case: Case, arrays: Arrays) -> Callable[[], Output]:
    net = load_net(build_model(case, arrays.weight), case.threads)
    shape = case.layer.output_shape(case.batch)
    x = expr.const(arrays.input, list(arrays.input.shape), expr.NCHW)
    return lambda: Output(net.forward([x])[0], shape)


def load_net(model: bytes, threads: int) -> Any:
    settings = {"backend": "CPU", "precision": "high", "numThread": threads}
    with TemporaryDirectory() as folder:
        source, target = str(Path(folder, "layer.onnx")), str(Path(folder, "layer.mnn"))
        Path(source).write_bytes(model)
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", source, "--MNNModel", target])
        manager = nn.create_runtime_manager((settings,))
        return nn.load_module_from_file(target, ["x"], ["y"], runtime_manager=manager)
