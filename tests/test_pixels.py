"""Dense convolution with channels last, read and written in place ("blocked" with layout="NHWC")."""

import numpy as np
import pytest
from conftest import assert_close, case, channels_last, identical, operands, oracle
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import engine, plan
from fastconv.testing import gradcheck

PROBLEMS = [
    # First layers: 7x7 stride 2, 3x3, 3x3 stride 2, 4x4 stride 4.
    case((2, 3, 37, 45), (64, 3, 7, 7), stride=2, padding=3),
    case((1, 3, 20, 58), (32, 3, 3, 3), padding=1),
    case((2, 3, 31, 30), (32, 3, 3, 3), stride=2, padding=1),
    case((1, 3, 32, 60), (96, 3, 4, 4), stride=4),
    # One channel, one filter; panels that are not full; vectors that are not.
    case((2, 1, 9, 11), (1, 1, 3, 3), padding=1),
    case((1, 4, 9, 29), (33, 4, 3, 2), padding=1),
    case((1, 5, 8, 17), (100, 5, 2, 3)),
    case((1, 2, 6, 16), (15, 2, 1, 1)),
    case((1, 40, 5, 14), (48, 40, 3, 3), padding=1),
    # Taps apart: along rows, along columns; windows mostly in the padding, and wholly.
    case((1, 3, 20, 33), (17, 3, 3, 4), dilation=(1, 3), padding=4),
    case((1, 3, 21, 30), (32, 3, 5, 3), dilation=(4, 1), stride=(2, 1), padding=(9, 1)),
    case((2, 3, 3, 2), (16, 3, 5, 5), stride=2, padding=9),
    case((1, 3, 6, 5), (9, 3, 3, 3), padding=((0, 7), (6, 0))),
    # Rows of one to four pixels; one row.
    case((3, 8, 9, 1), (40, 8, 3, 1), padding=(1, 0)),
    *(case((1, 3, 5, width), (32, 3, 3, 3), padding=1) for width in (1, 2, 3, 4, 7, 13, 15)),
    case((2, 8, 1, 37), (24, 8, 1, 5), stride=(1, 2), padding=(0, 2)),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def options_of(problem, **more):
    return {**problem.options, "layout": "NHWC", "algorithm": "blocked", **more}


@every_problem
@pytest.mark.parametrize("activation", [None, "relu"])
def test_agrees_with_the_definition(problem, activation, isa, dtype):
    data = operands(problem, dtype)
    options = options_of(problem, activation=activation)
    x, want = channels_last(data.input), oracle("forward", data, activation=activation)
    y = fastconv.conv2d(x, data.weight, data.bias, **options)
    assert_close(np.moveaxis(y, -1, 1), want, "forward", problem)
    assert identical(fastconv.prepare_conv2d(data.weight, data.bias, **options)(x), y)


@every_problem
def test_without_a_bias(problem, isa, dtype):
    data = operands(problem, dtype)
    y = fastconv.conv2d(channels_last(data.input), data.weight, **options_of(problem))
    data.bias[...] = 0
    assert_close(np.moveaxis(y, -1, 1), oracle("forward", data), "forward", problem)


@every_problem
def test_same_bits_on_any_number_of_threads(problem, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    plan.plan_conv.cache_clear()
    data, results = operands(problem, dtype), []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(
                fastconv.conv2d(channels_last(data.input), data.weight, data.bias, **options_of(problem))
            )
    plan.plan_conv.cache_clear()
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])


@every_problem
def test_adjoint_identity(problem, isa):
    """<conv(x), g> = <x, input_grad(g)> = <w, weight_grad(g)>."""
    data = operands(problem, np.float64)
    x, g, options = (
        channels_last(data.input),
        channels_last(data.grad_output),
        options_of(problem, algorithm="auto"),
    )
    y = fastconv.conv2d(x, data.weight, **options_of(problem))
    dx = fastconv.conv2d_input_grad(x.shape, data.weight, g, **options)
    dw = fastconv.conv2d_weight_grad(x, data.weight.shape, g, **options)
    for operand, grad in ((x, dx), (data.weight, dw)):
        np.testing.assert_allclose(np.vdot(y, g), np.vdot(operand, grad), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("problem", [PROBLEMS[2], PROBLEMS[6], PROBLEMS[12]], ids=str)
def test_gradcheck(problem, isa):
    data = operands(problem, np.float64)
    options = options_of(problem)

    def forward(x, weight, bias):
        return fastconv.conv2d(x, weight, bias, **options)

    def backward(grad, x, weight, bias):
        return fastconv.conv2d_backward(grad, x, weight, **{**options, "algorithm": "auto"})

    inputs = (channels_last(data.input), data.weight, data.bias)
    assert gradcheck(forward, inputs, backward, max_elements=40, names=("input", "weight", "bias"))


@pytest.mark.parametrize("filters", [32, 48])
def test_outputs_past_the_caches(filters, isa, dtype):
    problem = case((2, 3, 150, 141), (filters, 3, 3, 3), padding=1)
    data = operands(problem, dtype)
    y = fastconv.conv2d(channels_last(data.input), data.weight, data.bias, **options_of(problem))
    assert_close(np.moveaxis(y, -1, 1), oracle("forward", data), "forward", problem)


@st.composite
def problems(draw):
    channels, filters = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    kernel, stride, dilation, padding = (
        (draw(st.integers(low, high)), draw(st.integers(low, high)))
        for low, high in ((1, 5), (1, 5), (1, 3), (0, 6))
    )
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(draw(st.integers(low, low + 30)) for low in least)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    return case((draw(st.integers(1, 3)), channels, *size), (filters, channels, *kernel), **options)


@given(
    problem=problems(),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
)
@settings(max_examples=150)
def test_any_problem(problem, isa, dtype, threads):
    data = operands(problem, dtype)
    with engine.forced(isa), fastconv.threads(threads):
        y = fastconv.conv2d(channels_last(data.input), data.weight, data.bias, **options_of(problem))
        assert_close(np.moveaxis(y, -1, 1), oracle("forward", data), "forward", problem)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[5], PROBLEMS[9], PROBLEMS[11]], ids=str)
def test_special_values(problem, value, isa, dtype):
    """Zeros of the padding take part, and no lane or pixel hears of another."""
    for which, place in (("input", (0, 1, 0, 0)), ("input", (0, -1, -1, 1)), ("weight", (1, 0, 0, 1)),
                         ("weight", (-1, -1, 0, 0))):  # fmt: skip
        data = operands(problem, dtype)
        getattr(data, which)[place] = value
        got = fastconv.conv2d(channels_last(data.input), data.weight, data.bias, **options_of(problem))
        want = fastconv.conv2d(data.input, data.weight, data.bias, algorithm="direct", **problem.options)
        got = np.moveaxis(got, -1, 1)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        finite = np.isfinite(want)
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("width", [1, 5, 14, 30, 31])
@pytest.mark.parametrize("filters", [7, 16, 32, 40])
def test_nothing_beyond_the_operands_is_touched(filters, width, at, isa, dtype, cage):
    rng = np.random.default_rng(0)
    x, w = (
        cage.copy(rng.uniform(-1, 1, size).astype(dtype), at)
        for size in ((1, 5, width, 3), (filters, 3, 3, 3))
    )
    out = cage.place((1, 5, width, filters), dtype, at)
    y = fastconv.conv2d(x, w, padding=1, layout="NHWC", algorithm="blocked", out=out)
    assert np.isfinite(y).all()


# When it is chosen


def planned(shape, filters, kernel, **options):
    options = {"padding": kernel // 2, "layout": "NHWC", **options}
    channels = shape[-1] // options.get("groups", 1)
    return fastconv.plan_conv2d(shape, (filters, channels, kernel, kernel), **options)


def test_dense_layers_are_not_copied():
    few = planned((1, 56, 56, 3), 32, 3)
    assert few.algorithm == "blocked"
    assert not few.copies
    assert "in place" in few.explain()
    for plan_ in (planned((1, 56, 56, 64), 32, 1), planned((1, 56, 56, 64), 96, 3, stride=2)):
        assert (plan_.algorithm, plan_.copies) == ("blocked", False)


def test_others_are_copied():
    """Few pixels, groups, gradients, and 3x3 layers that Winograd's method takes."""
    for plan_ in (
        planned((1, 7, 7, 512), 256, 1),
        planned((1, 56, 56, 6), 32, 3, groups=2),
        planned((1, 56, 56, 3), 32, 3, direction="input_grad"),
        planned((1, 56, 56, 64), 64, 3),
    ):
        assert plan_.copies


def test_few_pixels_pay_when_weights_are_packed_once():
    shape = (1, 14, 14, 256)
    assert planned(shape, 256, 1).copies
    assert not planned(shape, 256, 1, prepared=True).copies
