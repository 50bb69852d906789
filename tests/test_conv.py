"""Convolution and its gradients: one contract for all algorithms, engines and scalar types."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    ALGORITHMS,
    CASES,
    CONV_KERNELS,
    DIRECTIONS,
    EMPTY,
    Cage,
    assert_close,
    case,
    check,
    compute,
    error_bound,
    every_algorithm,
    every_conv_kernel,
    every_direction,
    fitting,
    identical,
    operands,
    oracle,
    result_shape,
    skip_unless_supported,
    terms_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

import fastconv
from fastconv import engine, reference
from fastconv.registry import find
from fastconv.testing import adjoint_check, gradcheck

every_case = pytest.mark.parametrize("problem", CASES, ids=str)


# Right results


@every_conv_kernel
@every_case
def test_matches_the_reference(problem, kernel, isa, dtype):
    skip_unless_supported(kernel, problem)
    check(kernel.direction, operands(problem, dtype), kernel.algorithm)


@every_conv_kernel
@pytest.mark.parametrize("problem", EMPTY, ids=str)
def test_empty_axes(problem, kernel, isa, dtype):
    skip_unless_supported(kernel, problem)
    check(kernel.direction, operands(problem, dtype), kernel.algorithm)


@st.composite
def cases(draw):
    """Convolutions with every option in play, channels around the sizes of vectors and tiles."""

    def channels(most=34):
        return draw(st.sampled_from([c for c in (1, 2, 3, 5, 7, 8, 9, 13, 15, 17, 31, 33) if c <= most]))

    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilation = pair(1, draw(st.sampled_from((4, 4, 9)))), pair(1, 3)
    stride = draw(st.sampled_from((kernel, pair(1, 3), pair(1, 3), pair(1, 12))))
    padding = draw(st.sampled_from(("pairs", "ints", "int", "same", "same_lower", "full", "causal")))
    before, after = pair(0, 4), pair(0, 4)
    if padding == "pairs":
        padding = tuple(zip(before, after, strict=True))
    elif padding == "ints":
        padding = after = before
    elif padding == "int":
        padding, before, after = before[0], before[:1] * 2, before[:1] * 2
    else:
        before = after = (0, 0)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(r - b - a, 1) for r, b, a in zip(reach, before, after, strict=True)]
    size = [smallest + draw(st.integers(0, draw(st.sampled_from((18, 18, 70))))) for smallest in least]
    if draw(st.booleans()):
        groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
        group_in, group_out = channels(34 // groups), channels(34 // groups)
    else:  # a channel a group
        groups, group_in, group_out = channels(), 1, draw(st.sampled_from((1, 1, 2)))
    return case(
        (draw(st.integers(0, 3)), groups * group_in, *size),
        (groups * group_out, group_in, *kernel),
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip


@every_direction
@given(
    problem=cases(),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
)
@settings(max_examples=150)
def test_any_problem(direction, problem, isa, dtype, threads):
    data = operands(problem, dtype)
    want = oracle(direction, data)
    with engine.forced(isa), fastconv.threads(threads):
        for row in CONV_KERNELS:
            if row.direction == direction and row.supports(problem.problem):
                got = compute(direction, data, row.algorithm)
                assert_close(got, want, direction, problem, row.algorithm)


@every_direction
@given(
    problem=cases(),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
    layout=st.sampled_from(("NCHW", "NHWC")),
    at=st.sampled_from(("start", "end")),
)
@settings(max_examples=150)
def test_any_problem_between_forbidden_pages(direction, problem, isa, dtype, threads, layout, at):
    """Every result is written, nothing beside it is, and nothing beside the operands is read."""
    data, cage = operands(problem, dtype), Cage()
    axes = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)

    def caged(array, axes=axes):
        return cage.copy(array.transpose(axes), at)

    x, w, g = caged(data.input), caged(data.weight, (0, 1, 2, 3)), caged(data.grad_output)
    want = oracle(direction, data)
    want = want if direction == "weight_grad" else want.transpose(axes)
    out = cage.place(want.shape, dtype, at)
    options = {**problem.options, "layout": layout, "out": out}
    with engine.forced(isa), fastconv.threads(threads):
        if direction == "forward":
            fastconv.conv2d(x, w, data.bias, **options)
        elif direction == "input_grad":
            fastconv.conv2d_input_grad(x.shape, w, g, **options)
        else:
            fastconv.conv2d_weight_grad(x, w.shape, g, **options)
    assert_close(out, want, direction, problem)
    cage.open()


@every_algorithm
@pytest.mark.parametrize("mode", ["valid", "full", "same"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 1), (7, 6)])
def test_single_channel_is_correlate2d(kernel, mode, algorithm, isa, dtype, rng):
    problem = case((1, 1, 17, 23), (1, 1, *kernel), padding=mode)
    skip_unless_supported(find("conv", "forward", algorithm), problem)
    image = rng.uniform(-1, 1, (17, 23)).astype(dtype)
    taps = rng.uniform(-1, 1, kernel).astype(dtype)
    want = signal.correlate2d(image.astype(float), taps.astype(float), mode=mode)
    got = fastconv.conv2d(image[None, None], taps[None, None], padding=mode, algorithm=algorithm)
    bound = error_bound(dtype, taps.size, algorithm)
    np.testing.assert_allclose(got[0, 0], want, rtol=0, atol=bound)


LARGE = [
    case((2, 40, 17, 19), (37, 40, 3, 3), padding=1),
    case((1, 130, 14, 15), (65, 130, 3, 3), padding=1, stride=2),
    case((3, 48, 13, 9), (50, 24, 2, 3), padding=2, groups=2, dilation=2),
]


@every_direction
@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_algorithms_agree(problem, direction, isa, dtype):
    data = operands(problem, dtype)
    terms, want = terms_of(direction, problem), compute(direction, data, "gemm")
    for row in CONV_KERNELS:
        if row.direction == direction and row.supports(problem.problem):
            got = compute(direction, data, row.algorithm)
            bound = error_bound(dtype, terms) + error_bound(dtype, terms, row.algorithm)
            np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=row.id)


@every_conv_kernel
@pytest.mark.parametrize("problem", CASES[3:9] + LARGE, ids=str)
def test_gradients_are_adjoints(problem, kernel, isa, dtype):
    """<g, A x> = <A' g, x>: linear in the input, and linear in the weights."""
    if kernel.direction == "forward":
        pytest.skip("the forward operation is the other side of both identities")
    skip_unless_supported(kernel, problem)
    data, options = operands(problem, dtype), problem.options
    algorithm = kernel.algorithm
    if kernel.direction == "input_grad":
        adjoint_check(
            lambda x: fastconv.conv2d(x, data.weight, algorithm=algorithm, **options),
            lambda g: fastconv.conv2d_input_grad(
                problem.input_shape, data.weight, g, algorithm=algorithm, **options
            ),
            problem.input_shape, problem.problem.output_shape, dtype=dtype,
        )  # fmt: skip
    else:
        adjoint_check(
            lambda w: fastconv.conv2d(data.input, w, algorithm=algorithm, **options),
            lambda g: fastconv.conv2d_weight_grad(
                data.input, problem.weight_shape, g, algorithm=algorithm, **options
            ),
            problem.weight_shape, problem.problem.output_shape, dtype=dtype,
        )  # fmt: skip


@every_algorithm
@every_case
def test_gradcheck(problem, algorithm):
    problem = fitting(problem, algorithm)
    data = operands(problem, np.float64)
    options = {**problem.options, "algorithm": algorithm}

    def forward(x, w, b):
        return fastconv.conv2d(x, w, b, **options)

    def backward(g, x, w, b):
        return fastconv.conv2d_backward(g, x, w, **options)

    arrays = data.input, data.weight, data.bias
    assert gradcheck(forward, arrays, backward, max_elements=40, names=("input", "weight", "bias"))


# Bias, activation, all gradients at once


@every_algorithm
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("problem", [CASES[3], CASES[8], LARGE[1]], ids=str)
def test_bias_and_activation(problem, activation, algorithm, isa, dtype):
    problem = fitting(problem, algorithm)
    data = operands(problem, dtype)
    got = compute("forward", data, algorithm, activation=activation)
    assert_close(got, oracle("forward", data, activation), "forward", problem, algorithm)
    assert activation is None or got.min() == 0
    plain = fastconv.conv2d(
        data.input, data.weight, activation=activation, algorithm=algorithm, **problem.options
    )
    want = reference.conv(data.input, data.weight, activation=activation, **problem.options)
    assert_close(plain, want, "forward", problem, algorithm)


@every_algorithm
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("problem", EMPTY[:2], ids=str)
def test_a_sum_of_nothing_is_the_bias(problem, activation, algorithm, isa, dtype):
    problem = fitting(problem, algorithm)
    data = operands(problem, dtype)
    got = compute("forward", data, algorithm, activation=activation)
    bias = data.bias if activation is None else np.maximum(data.bias, 0)
    assert identical(got, np.broadcast_to(bias[:, None, None], got.shape).copy())


@every_algorithm
@pytest.mark.parametrize("problem", [CASES[4], CASES[8], *EMPTY], ids=str)
def test_backward_is_each_gradient(problem, algorithm, isa, dtype):
    problem = fitting(problem, algorithm)
    data = operands(problem, dtype)
    options = {**problem.options, "algorithm": algorithm}
    grads = fastconv.conv2d_backward(data.grad_output, data.input, data.weight, **options)
    assert isinstance(grads, fastconv.ConvGradients)
    assert identical(grads.input, compute("input_grad", data, algorithm))
    assert identical(grads.weight, compute("weight_grad", data, algorithm))
    want = reference.conv_bias_grad(data.grad_output)
    assert grads.bias.dtype == dtype
    bound = error_bound(dtype, terms_of("weight_grad", problem))
    np.testing.assert_allclose(grads.bias, want, rtol=0, atol=bound)


def test_backward_without_bias(dtype):
    data = operands(CASES[3], dtype)
    grads = fastconv.conv2d_backward(
        data.grad_output, data.input, data.weight, bias=False, **CASES[3].options
    )
    assert grads.bias is None
    assert grads.weight.shape == data.weight.shape


# Where results go


@every_conv_kernel
@pytest.mark.parametrize("problem", [*CASES[3:10], CASES[17], *EMPTY], ids=str)
def test_every_element_of_out_is_written(problem, kernel, isa, dtype):
    skip_unless_supported(kernel, problem)
    data = operands(problem, dtype)
    out = np.full(result_shape(kernel.direction, problem), np.nan, dtype)
    assert compute(kernel.direction, data, kernel.algorithm, out=out) is out
    assert identical(out, compute(kernel.direction, data, kernel.algorithm))


# The same bits


THREADED = [
    case((1, 64, 28, 30), (70, 64, 3, 3), padding=1),
    case((3, 33, 15, 17), (45, 33, 3, 3), padding=1, stride=2),
    case((4, 64, 20, 20), (65, 64, 1, 1)),
    case((2, 96, 7, 7), (200, 96, 3, 3), padding=1),
    case((8, 36, 12, 9), (72, 12, 3, 2), groups=3),
    case((1, 3, 90, 70), (16, 3, 7, 7), stride=2, padding=3),
    case((1, 1, 300, 290), (1, 1, 5, 5), padding=2),
    case((3, 70, 29, 31), (70, 1, 5, 5), groups=70, stride=2, padding=2),
    case((6, 190, 7, 9), (380, 1, 5, 3), groups=190, padding=1),
]


@every_conv_kernel
@pytest.mark.parametrize("problem", THREADED, ids=str)
def test_same_bits_for_any_number_of_threads(problem, kernel, isa, dtype):
    skip_unless_supported(kernel, problem)
    data = operands(problem, dtype)
    assert problem.problem.flops > 5 * 500_000, "too small for five threads"
    with fastconv.threads(1):
        alone = compute(kernel.direction, data, kernel.algorithm)
    for count in (1, 2, 5):
        with fastconv.threads(count):
            assert identical(compute(kernel.direction, data, kernel.algorithm), alone)


@pytest.mark.parametrize("channels", [1, 7, 64])
def test_bias_gradient_has_the_same_bits_for_any_number_of_threads(channels, isa, dtype, rng):
    grad_output = rng.standard_normal((5, channels, 149, 151)).astype(dtype)
    x, w = np.zeros((5, 1, 149, 151), dtype), np.zeros((channels, 1, 1, 1), dtype)
    results = []
    for count in (1, 2, 5):
        with fastconv.threads(count):
            results.append(fastconv.conv2d_backward(grad_output, x, w).bias)
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])
    bound = error_bound(dtype, 5 * 149 * 151)
    np.testing.assert_allclose(results[0], reference.conv_bias_grad(grad_output), rtol=0, atol=bound)


@every_algorithm
@pytest.mark.parametrize(
    "problem",
    [
        case((5, 19, 14, 14), (23, 19, 3, 3), padding=1),
        case((5, 70, 5, 5), (33, 70, 1, 1)),
        case((5, 300, 7, 7), (20, 300, 3, 3), padding=1, stride=2),
        case((5, 8, 9, 11), (8, 1, 3, 3), groups=8),
    ],
    ids=str,
)
def test_a_sample_does_not_depend_on_its_batch(problem, algorithm, isa, dtype):
    problem = fitting(problem, algorithm)
    if algorithm == "im2col":
        pytest.skip("NumPy's BLAS makes no such promise")
    data = operands(problem, dtype)
    whole = compute("forward", data, algorithm)
    for sample in range(5):
        one = slice(sample, sample + 1)
        alone = fastconv.conv2d(
            data.input[one], data.weight, data.bias, algorithm=algorithm, **problem.options
        )
        assert identical(alone, whole[one])


# Values beyond the ordinary


def with_values(shape, dtype, values, rng):
    array = rng.uniform(-1, 1, shape).astype(dtype)
    places = rng.choice(array.size, len(values), replace=False)
    array.flat[places] = values
    return array


NAN, INF = np.nan, np.inf


@every_algorithm
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("values", [(NAN,), (INF,), (-INF,), (INF, -INF, NAN, INF)], ids=str)
@pytest.mark.parametrize("where", ["input", "weight", "bias"])
def test_special_values_propagate(where, values, activation, algorithm, isa, dtype, rng):
    """As if the padding were zeros that take part in the sum: infinity times zero is NaN."""
    problem = fitting(case((2, 5, 9, 19), (5, 5, 3, 3)), algorithm)
    shapes = {"input": problem.input_shape, "weight": problem.weight_shape, "bias": (5,)}
    arrays = {
        name: with_values(shape, dtype, values if name == where else (), rng)
        for name, shape in shapes.items()
    }
    for padding in (0, 1) if problem.weight_shape[2:] == (3, 3) else (0,):
        options = {**problem.options, "padding": padding, "activation": activation}
        want = reference.conv(**arrays, **options)
        got = fastconv.conv2d(**arrays, algorithm=algorithm, **options)
        np.testing.assert_allclose(got, want, rtol=0, atol=error_bound(dtype, 45, algorithm))


@every_algorithm
def test_overflow_is_infinite(algorithm, isa, dtype):
    problem = fitting(case((1, 2, 1, 9), (2, 2, 1, 1)), algorithm)
    x = np.full(problem.input_shape, np.finfo(dtype).max, dtype)
    got = fastconv.conv2d(x, np.full(problem.weight_shape, 2, dtype), algorithm=algorithm, **problem.options)
    assert (got == np.inf).all()


@every_conv_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_the_floating_point_mode_is_restored(kernel, threads, isa, dtype):
    with fastconv.threads(threads):
        problem = fitting(THREADED[1], kernel.algorithm)
        compute(kernel.direction, operands(problem, dtype), kernel.algorithm)
    tiny = np.full(9, np.finfo(dtype).smallest_subnormal * 8)
    assert (tiny / dtype.type(2) > 0).all()
    assert float(np.finfo(np.float64).tiny) / 2 > 0


def test_every_algorithm_has_every_direction():
    assert {(row.algorithm, row.direction) for row in CONV_KERNELS} == {
        (algorithm, direction) for algorithm in ALGORITHMS for direction in DIRECTIONS
    }


# Inputs or outputs of 8 MiB and more: what is read is fetched early, what is written may go past the caches.
LARGE = [
    (case((5, 96, 67, 68), (96, 3, 3, 3), padding=1, groups=32), "blocked"),
    (case((3, 192, 64, 63), (192, 6, 3, 3), padding=1, stride=2, groups=32), "blocked"),
    (case((8, 3, 224, 224), (96, 3, 4, 4), stride=4), "gemm"),
    (case((9, 64, 68, 66), (70, 64, 3, 3), stride=2, padding=1), "gemm"),
    (case((9, 22, 129, 131), (22, 1, 3, 3), padding=1, groups=22), "depthwise"),
    (case((8, 60, 122, 124), (60, 1, 3, 3), padding=1, stride=2, groups=60), "depthwise"),
]


@pytest.mark.parametrize(("problem", "algorithm"), LARGE, ids=str)
def test_large_batches_have_the_bits_of_single_images(problem, algorithm, isa):
    data = operands(problem)
    first = replace(problem, input_shape=(1, *problem.input_shape[1:]))
    alone = replace(data, case=first, input=data.input[-1:], grad_output=data.grad_output[-1:])
    for direction in ("forward", "input_grad"):
        want = compute(direction, alone, algorithm)
        for threads in (1, 3):
            with fastconv.threads(threads):
                found = compute(direction, data, algorithm)
            assert identical(found[-1:], want)
