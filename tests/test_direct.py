"""Direct convolution: stretches of a row, steps, and the small problems it is made for."""

import pytest
from conftest import case, check, every_direction, operands

import fastconv

STRETCH = 256  # outputs of a row that are summed at a time


@every_direction
@pytest.mark.parametrize("width", [STRETCH - 1, STRETCH, STRETCH + 1, 2 * STRETCH + 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_longer_than_a_stretch(width, stride, direction, isa, dtype):
    problem = case((1, 2, 2, width * stride), (2, 2, 2, 3), stride=(1, stride), padding=(0, 1))
    check(direction, operands(problem, dtype), "direct")


@every_direction
def test_rows_around_the_vector(direction, tile, dtype):
    _, _, lanes = tile
    for width in (1, lanes - 1, lanes, lanes + 1, 2 * lanes + 1, 4 * lanes + 3):
        problem = case((2, 3, 3, max(width, 1)), (2, 3, 3, 3), padding=1)
        check(direction, operands(problem, dtype), "direct")


@every_direction
@pytest.mark.parametrize("offset", [STRETCH - 2, STRETCH, STRETCH + 2])
def test_padding_beyond_a_stretch(offset, direction, isa, dtype):
    """Whole stretches in which some tap, or every tap, meets padding alone."""
    problem = case((1, 2, 1, 9), (2, 2, 1, 3), padding=((0, 0), (offset, offset)))
    check(direction, operands(problem, dtype), "direct")


@pytest.mark.parametrize("size", [1, 3, 5, 11])
def test_image_filter(size, isa, dtype):
    problem = case((1, 1, 40, 43), (1, 1, size, size), padding=size // 2)
    check("forward", operands(problem, dtype), "direct")


def test_small_problems_are_direct_unless_told():
    shape, filters = (1, 3, 5, 5), (2, 3, 3, 3)
    assert fastconv.plan_conv2d(shape, filters).algorithm == "direct"
    assert fastconv.plan_conv2d(shape, filters, algorithm="gemm").algorithm == "gemm"
    assert fastconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3)).algorithm != "direct"
