"""The operands of a case: the same numbers in every worker."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Case


@dataclass(frozen=True)
class Arrays:
    """Float32, C-contiguous, NCHW; None where the direction does not read the operand."""

    input: np.ndarray | None
    weight: np.ndarray | None
    grad_output: np.ndarray | None


def make_arrays(case: Case) -> Arrays:
    """Uniform numbers in [-1, 1), seeded by the layer's name."""
    random = np.random.default_rng(zlib.crc32(case.layer.full_name.encode()))

    def draw(shape: tuple[int, ...], wanted: bool) -> np.ndarray | None:
        if not wanted:
            return None
        values = random.random(shape, dtype=np.float32)
        return np.subtract(2 * values, 1, out=values)

    layer, direction = case.layer, case.direction
    return Arrays(
        input=draw(layer.input_shape(case.batch), direction != INPUT_GRAD or layer.pooling == "max"),
        weight=draw(layer.weight_shape, direction != WEIGHT_GRAD and not layer.pooling),
        grad_output=draw(layer.output_shape(case.batch), direction != FORWARD),
    )
