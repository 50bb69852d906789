"""ONNX Runtime: a model of one Conv node whose weight is an initializer, so that it prepacks."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import onnxruntime

from bench.peers.arrays import Arrays
from bench.peers.onnx_model import build_model
from bench.shapes import FORWARD, Case


def version() -> str:
    return f"onnxruntime {onnxruntime.__version__}"


def supports(direction: str) -> bool:
    return direction == FORWARD


def prepare(case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    return fastest_call(build_model(case, arrays.weight), case, arrays)


def fastest_call(model: bytes, case: Case, arrays: Arrays) -> Callable[[], np.ndarray]:
    """The faster of two ways to call a session: arrays in and out, or bound buffers."""
    session = start_session(model, case.threads)
    ways = run_on_arrays(session, arrays), run_on_bound_buffers(session, arrays, case)
    return min(ways, key=shortest_time)


def start_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_on_arrays(session: onnxruntime.InferenceSession, arrays: Arrays) -> Callable[[], np.ndarray]:
    feed = {"x": arrays.input}
    return lambda: session.run(None, feed)[0]


def run_on_bound_buffers(
    session: onnxruntime.InferenceSession, arrays: Arrays, case: Case
) -> Callable[[], np.ndarray]:
    """Input and output stay in place: no allocation and no copy in the timed call."""
    binding = session.io_binding()
    output = np.empty(case.layer.output_shape(case.batch), np.float32)
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(arrays.input))
    binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return output

    return run


def shortest_time(call: Callable[[], np.ndarray], calls: int = 5) -> float:
    call()
    durations = []
    for _ in range(calls):
        start = perf_counter()
        call()
        durations.append(perf_counter() - start)
    return min(durations)
