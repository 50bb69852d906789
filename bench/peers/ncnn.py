"""ncnn: a net of one convolution layer, image by image, as ncnn knows no batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ncnn
import numpy as np

from bench.peers.arrays import Arrays
from bench.shapes import FORWARD, Case


class Maps:
    """Outputs that become one array when they are looked at, which is not timed."""

    def __init__(self, maps: list[Any]) -> None:
        self.maps = maps

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.stack([np.array(one) for one in self.maps])


def version() -> str:
    return f"ncnn {ncnn.__version__}"


def supports(direction: str) -> bool:
    return direction == FORWARD


def prepare(case: Case, arrays: Arrays) -> Callable[[], Maps]:
    net = build_net(case, arrays.weight)
    images = [ncnn.Mat(image).clone() for image in arrays.input]

    def run() -> Maps:
        found = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("x", image)
            found.append(extractor.extract("y")[1])
        return Maps(found)

    return run


def build_net(case: Case, weight: np.ndarray) -> ncnn.Net:
    """Parameters by number: filters, kernel, dilation, stride, padding, no bias, weights, groups."""
    stride, padding, dilation, groups = case.layer.window
    filters, _, kernel, _ = weight.shape
    values = (filters, kernel, dilation, stride, padding, 0, weight.size, groups)
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    numbers = " ".join(f"{number}={value}" for number, value in enumerate(values[: 7 if groups == 1 else 8]))
    net = ncnn.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.load_param_mem(f"7767517\n2 2\nInput x 0 1 x\n{kind} conv 1 1 x y {numbers}\n")
    plain_float32 = np.zeros(1, np.int32).tobytes()
    net.load_model_mem(plain_float32 + np.ascontiguousarray(weight, np.float32).tobytes())
    return net
