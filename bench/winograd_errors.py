"""How exact each peer is on a 3x3 layer: rms errors beside a float64 result, relative to its rms.

python -m bench.winograd_errors resnet50/conv4_3x3_256_256_14
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace

import numpy as np

import fastconv
from bench.peers import PEERS
from bench.peers.arrays import make_arrays
from bench.shapes import FORWARD, Case, layers_by_name
from bench.suites import PEERS_OF_SUITE


def inputs(kind: str, values: np.ndarray) -> np.ndarray:
    """Uniform values as they are, far from zero, or of magnitudes from 1e-3 to 1e3."""
    if kind == "offset":
        return values + np.float32(10)
    if kind == "range":
        magnitudes = np.random.default_rng(0).uniform(-3, 3, values.shape)
        return (values * 10**magnitudes).astype(np.float32)
    return values


def report(name: str) -> None:
    case = Case(layers_by_name()[name], 1, FORWARD, 1)
    for kind in ("uniform", "offset", "range"):
        arrays = make_arrays(case)
        assert arrays.input is not None
        assert arrays.weight is not None
        arrays = replace(arrays, input=inputs(kind, arrays.input))
        stride, padding, dilation, groups = case.layer.window
        exact = fastconv.conv2d(
            arrays.input.astype(float), arrays.weight.astype(float), None, stride, padding, dilation, groups,
            algorithm="gemm",
        )  # fmt: skip
        for peer in PEERS_OF_SUITE["winograd"]:
            if not PEERS[peer].is_installed():
                continue
            got = np.asarray(importlib.import_module(f"bench.peers.{peer}").prepare(case, arrays)())
            error = np.sqrt(np.mean((got.reshape(exact.shape) - exact) ** 2) / np.mean(exact**2))
            print(f"{name}  {kind:8} {PEERS[peer].label:24} {error:.2e}")


if __name__ == "__main__":
    for layer in sys.argv[1:] or ["resnet50/conv2_3x3_64_64_56", "resnet50/conv5_3x3_512_512_7"]:
        report(layer)
