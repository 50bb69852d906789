"""Prepared operations: weights packed once, the same results for every shape of input."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import case, compute, every_algorithm, fitting, identical, operands

import fastconv

WEIGHTS = [
    case((2, 6, 13, 12), (17, 6, 3, 3), padding=1),
    case((1, 37, 9, 9), (45, 37, 1, 1), stride=2),
    case((2, 24, 11, 10), (36, 6, 3, 2), groups=4, dilation=2, padding="same"),
    case((1, 300, 7, 8), (31, 300, 1, 1)),
    case((3, 48, 6, 7), (20, 48, 3, 3), padding=((1, 0), (2, 1))),
    case((1, 5, 9, 9), (5, 1, 3, 3), groups=5),
]
SIZES = [(1, 13, 12), (2, 9, 9), (3, 14, 15), (1, 30, 31), (0, 9, 9), (5, 9, 7)]
every_weight = pytest.mark.parametrize("problem", WEIGHTS, ids=str)


def prepare(data, **more):
    return fastconv.prepare_conv2d(data.weight, data.bias, **{**data.case.options, **more})


@every_weight
@every_algorithm
@pytest.mark.parametrize("activation", [None, "relu"])
def test_equals_the_plain_call_bit_for_bit(problem, algorithm, activation, isa, dtype, rng):
    """The order of the sums does not depend on where the weights lie."""
    problem = fitting(problem, algorithm)
    data = operands(problem, dtype)
    operation = prepare(data, algorithm=algorithm, activation=activation)
    for batch, height, width in SIZES:
        x = rng.uniform(-1, 1, (batch, problem.input_shape[1], height, width)).astype(dtype)
        want = fastconv.conv2d(
            x, data.weight, data.bias, algorithm=algorithm, activation=activation, **problem.options
        )
        for _ in range(2):
            assert identical(operation(x), want)


def test_without_bias(isa, dtype):
    data = operands(WEIGHTS[0], dtype)
    operation = fastconv.prepare_conv2d(data.weight, padding=1, algorithm="gemm")
    want = fastconv.conv2d(data.input, data.weight, padding=1, algorithm="gemm")
    assert identical(operation(data.input), want)


@pytest.mark.parametrize("threads", [1, 3])
def test_packs_the_same_on_any_number_of_threads(threads, isa, dtype):
    data = operands(WEIGHTS[4], dtype)
    with fastconv.threads(threads):
        got = prepare(data, algorithm="gemm")(data.input)
    assert identical(got, compute("forward", data, "gemm"))


@every_algorithm
def test_later_changes_do_not_reach_it(algorithm, dtype):
    problem = fitting(WEIGHTS[0], algorithm)
    data = operands(problem, dtype)
    around = problem.weight_shape[2] // 2
    stride, padding = [1, 1], [[around, around], [around, around]]
    operation = prepare(data, stride=stride, padding=padding, algorithm=algorithm)
    want = compute("forward", data, algorithm)
    data.weight[...] = np.nan
    data.bias[...] = np.nan
    stride[0], padding[0][0] = 2, 0
    assert identical(operation(data.input), want)
    assert identical(operation(data.input[:1]), want[:1]) or algorithm == "im2col"


def test_out(isa, dtype):
    data = operands(WEIGHTS[0], dtype)
    operation = prepare(data, algorithm="gemm")
    out = np.full(WEIGHTS[0].problem.output_shape, np.nan, dtype)
    assert operation(data.input, out=out) is out
    assert identical(out, operation(data.input))


@pytest.mark.parametrize(
    "twin",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda op, p=p: pickle.loads(pickle.dumps(op, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
@pytest.mark.parametrize("used", [False, True])
@every_weight
def test_pickles_and_copies(problem, used, twin, dtype):
    data = operands(problem, dtype)
    operation = prepare(data, activation="relu")
    want = prepare(data, activation="relu")(data.input)
    if used:
        operation(data.input)
    other = twin(operation)
    assert identical(other(data.input), want)
    assert repr(other) == repr(operation)
    assert other.plan(data.input.shape) == operation.plan(data.input.shape)


def test_a_pickle_holds_the_weights_once(dtype):
    data = operands(WEIGHTS[3], dtype)
    operation = prepare(data)
    operation(data.input)
    assert len(pickle.dumps(operation)) < data.weight.nbytes + 4096


def test_plan(dtype):
    data = operands(WEIGHTS[0], dtype)
    plan = prepare(data).plan(data.input.shape)
    assert plan.prepared
    assert plan.output_shape == WEIGHTS[0].problem.output_shape
    assert plan.dtype == dtype


def test_says_what_it_is(dtype):
    text = repr(prepare(operands(WEIGHTS[2], dtype)))
    assert text.startswith("PreparedConv2d(weight=(36, 6, 3, 2)")
    assert dtype.name in text
    assert "groups=4" in text


@pytest.mark.parametrize("integer", [np.int64, np.int8, np.uint32, lambda value: np.array(value)])
def test_any_kind_of_integer(integer, dtype):
    data = operands(WEIGHTS[2], dtype)
    got = fastconv.prepare_conv2d(
        data.weight, data.bias, integer(1), "same", integer(2), integer(4), algorithm="gemm"
    )(data.input)
    assert identical(got, compute("forward", data, "gemm"))


def test_many_threads_share_one(dtype, rng):
    data = operands(WEIGHTS[4], dtype)
    inputs = [rng.standard_normal((1, 48, 5 + i, 9)).astype(dtype) for i in range(16)]
    want = [fastconv.conv2d(x, data.weight, data.bias, algorithm="gemm", **data.case.options) for x in inputs]
    operation = prepare(data, algorithm="gemm")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(operation, inputs))
    assert all(map(identical, got, want))


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (4, 0, 3, 3)], ids=str)
def test_empty_weights(shape, dtype):
    operation = fastconv.prepare_conv2d(np.ones(shape, dtype), np.ones(shape[0], dtype))
    got = operation(np.ones((2, shape[1], 5, 5), dtype))
    assert identical(got, np.ones((2, shape[0], 3, 3), dtype))
