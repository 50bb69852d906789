"""Direct convolution: stretches of a row, steps, and the small problems it is made for."""

import numpy as np
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


@pytest.mark.parametrize("pixels", [4095, 4096, 4097, 3 * 4096 + 65])
def test_weight_gradients_of_planes_are_summed_in_stretches(pixels, isa, dtype):
    """1x1 filters without padding: a scalar product of planes."""
    problem = case((2, 3, 1, pixels), (6, 1, 1, 1), groups=3)
    check("weight_grad", operands(problem, dtype), "direct")


def test_long_sums_round_little(isa):
    """A plane of a million products, of mean 100: the error is far below that of a sum one by one."""
    x, g = np.random.default_rng(0).uniform(9.5, 10.5, (2, 1, 1, 1024, 1024)).astype(np.float32)
    (found,) = fastconv.conv2d_weight_grad(x, (1, 1, 1, 1), g, algorithm="direct").ravel()
    want = np.vdot(x.astype(np.float64), g.astype(np.float64))
    assert abs(found - want) <= 1e-6 * want


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_planes_are_scaled_where_they_lie(direction, isa):
    def chosen(channels, filters, size, **more):
        shapes = (1, channels, size, size), (filters, 1, 1, 1)
        return fastconv.plan_conv2d(*shapes, groups=channels, direction=direction, **more).algorithm

    assert chosen(32, 32, 28) == chosen(32, 64, 28) == "direct"
    assert chosen(192, 192, 128) == "gemm"  # 12 MB of results
    assert chosen(2, 128, 28) == "gemm"
    assert chosen(32, 32, 28, stride=2) == chosen(32, 32, 28, padding=1) == "depthwise"
    last = fastconv.plan_conv2d((1, 28, 28, 32), (32, 1, 1, 1), groups=32, layout="NHWC", direction=direction)
    assert last.algorithm == "depthwise"
