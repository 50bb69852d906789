"""The textbook form: its matrix, and its three products."""

import numpy as np
import pytest
from conftest import case, check, every_direction, operands

from fastconv import im2col

PROBLEMS = [
    case((2, 4, 6, 7), (6, 2, 3, 2), groups=2, stride=(2, 1), padding=((1, 0), (0, 2))),
    case((1, 3, 9, 8), (2, 3, 2, 3), dilation=(3, 2), padding=1),
    case((2, 3, 5, 5), (2, 3, 1, 1)),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_columns_by_their_definition(problem):
    p, x = problem.problem, operands(problem, np.float64).input
    matrix = im2col.columns(p, x)
    taps = list(np.ndindex(*p.kernel))
    outputs = list(np.ndindex(*p.out_size))
    assert matrix.shape == (p.batch, p.groups, p.group_in * len(taps), len(outputs))
    for n, g, row, column in np.ndindex(*matrix.shape):
        channel, tap = g * p.group_in + row // len(taps), taps[row % len(taps)]
        position = [
            o * s + t * d - before
            for o, s, t, d, (before, _) in zip(
                outputs[column], p.stride, tap, p.dilation, p.pads, strict=True
            )
        ]
        inside = all(0 <= i < size for i, size in zip(position, p.in_size, strict=True))
        want = x[n, channel, *position] if inside else 0
        assert matrix[n, g, row, column] == want


@every_direction
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_products(problem, direction, dtype):
    check(direction, operands(problem, dtype), "im2col")


@every_direction
def test_products_of_a_large_layer(direction, dtype):
    problem = case((3, 40, 19, 17), (30, 40, 3, 3), padding=1, stride=2)
    check(direction, operands(problem, dtype), "im2col")
