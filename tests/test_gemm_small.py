"""1x1 convolutions of small maps, where output channels fill the vectors ("gemm_small")."""

import numpy as np
import pytest
from conftest import case, check, compute, identical, operands

import fastconv

# Panels full, narrow and of one channel; maps of one pixel, of part of a block, of several blocks.
PROBLEMS = [
    case((1, 40, 7, 7), (96, 40, 1, 1)),
    case((1, 7, 7, 7), (31, 7, 1, 1)),
    case((2, 33, 5, 5), (65, 33, 1, 1)),
    case((3, 64, 1, 1), (10, 64, 1, 1)),
    case((1, 1, 3, 2), (1, 1, 1, 1)),
    case((2, 12, 4, 9), (15, 4, 1, 1), groups=3),
    case((1, 130, 2, 1), (64, 65, 1, 1), groups=2),
    case((1, 20, 13, 17), (33, 20, 1, 1)),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@every_problem
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_agrees_with_the_definition(problem, direction, isa, dtype):
    check(direction, operands(problem, dtype), "gemm_small")


@every_problem
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_same_bits_as_gemm_on_any_number_of_threads(problem, direction, isa, dtype):
    data = operands(problem, dtype)
    want = compute(direction, data, "gemm")
    for threads in (1, 2, 3, 5):
        with fastconv.threads(threads):
            assert identical(compute(direction, data, "gemm_small"), want)


@every_problem
@pytest.mark.parametrize("activation", [None, "relu"])
def test_prepared(problem, activation, isa, dtype):
    data = operands(problem, dtype)
    options = {**problem.options, "activation": activation}
    want = fastconv.conv2d(data.input, data.weight, data.bias, algorithm="gemm", **options)
    for bias in (data.bias, None):
        operation = fastconv.prepare_conv2d(data.weight, bias, algorithm="gemm_small", **options)
        if bias is None:
            want = fastconv.conv2d(data.input, data.weight, algorithm="gemm", **options)
        assert identical(operation(data.input), want)


def test_auto_takes_it_where_pixels_are_few(isa):
    """A prepared 1x1 layer of 7x7, and its input gradient; not larger maps, not weights that need packing."""

    def chosen(size, **more):
        return fastconv.plan_conv2d((1, 96, size, size), (160, 96, 1, 1), **more).algorithm

    assert chosen(7, prepared=True) == "gemm_small"
    assert chosen(7, direction="input_grad") == "gemm_small"
    assert chosen(7) == "gemm"
    assert chosen(14, prepared=True) == "gemm"
    assert chosen(14, direction="input_grad") == "gemm"


def test_one_operation_serves_small_maps_and_large(isa, dtype, rng):
    weight = rng.uniform(-1, 1, (64, 48, 1, 1)).astype(dtype)
    operation = fastconv.prepare_conv2d(weight)
    for size in (7, 20, 7, 1):
        x = rng.uniform(-1, 1, (1, 48, size, size)).astype(dtype)
        assert identical(operation(x), fastconv.conv2d(x, weight, algorithm="gemm"))


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"padding": ((0, 1), (0, 0))}], ids=str)
def test_refuses_what_is_not_pointwise(options):
    with pytest.raises(ValueError, match=r"^algorithm: 'gemm_small' does not take this problem"):
        fastconv.plan_conv2d((1, 4, 7, 7), (4, 4, 1, 1), algorithm="gemm_small", **options)
    with pytest.raises(ValueError, match=r"^algorithm: 'gemm_small' does not take this problem"):
        fastconv.conv2d(np.ones((1, 4, 7, 7)), np.ones((4, 4, 3, 3)), algorithm="gemm_small")
