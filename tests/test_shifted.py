"""Weight gradients whose taps read one copy of the image ("shifted"): lanes, lines, pieces, splits."""

import numpy as np
import pytest
from conftest import CASES, around, case, check, compute, identical, operands, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

import fastconv
from fastconv import engine, plan
from fastconv.testing import gradcheck

DIRECTION = "weight_grad"


def grouped(groups, channels, filters, size, kernel=3, batch=2, **options):
    shape = (batch, groups * channels, *np.broadcast_to(size, 2))
    weight = (groups * filters, channels, *np.broadcast_to(kernel, 2))
    return case(shape, weight, **{"groups": groups, "padding": tuple(k // 2 for k in weight[2:]), **options})


# Lanes: channels, columns of taps, and rows of taps where lines are folded


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_around_the_vector(stride, tile, dtype):
    _, _, lanes = tile
    for channels in {1, 2, 3, 4, 5, 8, *around(lanes)}:
        problem = grouped(2, channels, 5, (6, 9), stride=stride)
        check(DIRECTION, operands(problem, dtype), "shifted")


@pytest.mark.parametrize("filters", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17])
def test_every_height_of_a_tile(filters, isa, dtype):
    """With one, two and three vectors: kernels of so many taps in a row."""
    for taps in (1, 2, 3, 4, 7):
        problem = grouped(1, 16, filters, 5, (1, taps), padding=0, batch=1) if taps < 6 else None
        problem = problem or grouped(1, 3, filters, 9, taps, batch=1)
        check(DIRECTION, operands(problem, dtype), "shifted")


FIRST = [
    case((2, 3, 31, 30), (33, 3, 3, 3), stride=2, padding=1),
    case((1, 3, 40, 43), (64, 3, 7, 7), stride=2, padding=3),
    case((2, 3, 33, 32), (40, 3, 4, 4), stride=4),
    case((1, 3, 20, 21), (24, 3, 11, 11), stride=4, padding=2),
    case((1, 5, 17, 16), (31, 5, 5, 3), padding=(2, 1), dilation=(2, 1)),
    case((1, 2, 9, 12), (40, 2, 9, 9), padding=8),
    case((1, 4, 2, 30), (48, 4, 5, 5), padding=2),
]


@pytest.mark.parametrize("problem", FIRST, ids=str)
def test_folded_lines(problem, isa, dtype):
    """Few channels and many filters: rows of taps share the lanes of a pixel."""
    check(DIRECTION, operands(problem, dtype), "shifted")


@pytest.mark.parametrize("dilation", [1, 2, 3, (3, 2), (1, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1), (1, 2), (4, 5)])
@pytest.mark.parametrize("channels", [3, 6])
def test_steps_and_gaps(channels, stride, dilation, isa, dtype):
    problem = grouped(2, channels, 5, (19, 22), 3, stride=stride, dilation=dilation, padding=(3, 2))
    check(DIRECTION, operands(problem, dtype), "shifted")


EDGES = [
    grouped(3, 4, 5, (3, 2), 5, padding=6),  # kernel larger than the map
    grouped(3, 4, 5, (2, 3), 3, padding=9),  # outputs that meet padding alone
    grouped(2, 4, 3, (4, 5), 3, stride=2, padding=((7, 0), (0, 8))),
    grouped(4, 2, 6, 1, 1, padding=0),
    grouped(4, 2, 6, 1, 3),
    grouped(2, 3, 4, (1, 70), 9),
    grouped(2, 3, 4, (70, 1), 9),
    grouped(3, 2, 4, 6, 6, padding=0),
    grouped(5, 3, 2, (9, 8), 1, stride=3, padding=0),
    grouped(2, 5, 7, 8, 3, padding="causal", dilation=2),
    grouped(2, 5, 7, (8, 7), 4, padding="same", stride=2),
    grouped(2, 5, 7, 6, 4, padding="full"),
    grouped(2, 3, 2, 5, 31, padding=15),
    grouped(1, 70, 9, 7, 3),  # blocks of channels, the last one smaller
    grouped(2, 33, 150, 6, 3),  # blocks of filters
]


@pytest.mark.parametrize("problem", [*CASES, *EDGES], ids=str)
def test_edges(problem, isa, dtype):
    check(DIRECTION, operands(problem, dtype), "shifted")


# Pieces: images, rows, columns; and what is dealt into splits


PIECES = [
    grouped(2, 8, 5, 7, 3, batch=9),  # some images at a time, the last ones fewer
    grouped(1, 16, 4, 3, 3, batch=130),
    grouped(2, 16, 6, (61, 30), 3, batch=2),  # rows
    grouped(1, 32, 3, (70, 47), 3, stride=2, batch=1),
    grouped(1, 20, 5, (3, 900), (3, 5), padding=(1, 2), batch=1),  # columns
    grouped(1, 3, 40, (2, 3000), 3, batch=2),
    grouped(1, 32, 2, (4, 500), (20, 20), padding=(10, 0), stride=(1, 2), batch=1),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("problem", PIECES, ids=str)
def test_pieces(problem, threads, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    with fastconv.threads(threads):
        check(DIRECTION, operands(problem, dtype), "shifted")


@pytest.mark.parametrize("problem", [*PIECES[:5], FIRST[0], FIRST[1]], ids=str)
def test_same_bits_on_any_number_of_threads(problem, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    data = operands(problem, dtype)
    with fastconv.threads(1):
        want = compute(DIRECTION, data, "shifted")
    for threads in (2, 3, 5):
        with fastconv.threads(threads):
            assert identical(compute(DIRECTION, data, "shifted"), want)


@st.composite
def problems(draw):
    groups, channels, filters = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kernel, stride, dilation, padding = (
        (draw(st.integers(low, high)), draw(st.integers(low, high)))
        for low, high in ((1, 5), (1, 4), (1, 3), (0, 5))
    )
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(draw(st.integers(low, low + 25)) for low in least)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    shape = (draw(st.integers(1, 4)), groups * channels, *size)
    return case(shape, (groups * filters, channels, *kernel), **options)


@given(
    problem=problems(),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
)
@settings(max_examples=150)
def test_any_problem(problem, isa, dtype, threads):
    with engine.forced(isa), fastconv.threads(threads):
        check(DIRECTION, operands(problem, dtype), "shifted")


# What it means


def test_it_is_a_correlation(isa, dtype, rng):
    x, g = rng.uniform(-1, 1, (3, 20, 31)).astype(dtype), rng.uniform(-1, 1, (4, 18, 27)).astype(dtype)
    got = fastconv.conv2d_weight_grad(x[None], (4, 3, 3, 5), g[None], algorithm="shifted")
    for k in range(4):
        for c in range(3):
            want = signal.correlate2d(x[c].astype(float), g[k].astype(float), "valid")
            np.testing.assert_allclose(got[k, c], want, rtol=0, atol=60 * np.finfo(dtype).eps * np.sqrt(486))


@pytest.mark.parametrize("problem", [grouped(3, 4, 2, 6, 3, stride=2), FIRST[5]], ids=str)
def test_gradcheck(problem, isa):
    data = operands(problem, np.float64)

    def forward(weight):
        return fastconv.conv2d(data.input, weight, **problem.options)

    def backward(grad, weight):
        options = {**problem.options, "algorithm": "shifted"}
        return (fastconv.conv2d_weight_grad(data.input, weight.shape, grad, **options),)

    assert gradcheck(forward, (data.weight,), backward, max_elements=40, names=("weight",))


@pytest.mark.parametrize("problem", [grouped(4, 8, 6, 14), FIRST[1], PIECES[3]], ids=str)
def test_it_is_adjoint(problem, isa, dtype):
    data = operands(problem, dtype)
    y = oracle("forward", data) - data.bias.astype(float)[:, None, None]
    product, dw = np.vdot(y, data.grad_output), compute(DIRECTION, data, "shifted")
    bound = 100 * np.finfo(dtype).eps * np.sqrt(y.size * data.weight[0].size)
    assert abs(np.vdot(dw.astype(float), data.weight) - product) < bound


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("problem", [grouped(2, 4, 5, 9), grouped(1, 3, 40, 9, 5, stride=2)], ids=str)
def test_special_values(problem, value, isa, dtype):
    """As "gemm": padding is zeros that take part, and nothing else meets what is not finite."""
    for place in ((0, 1, 0, 0), (1, 2, 3, 4), (0, 0, -1, -1)):
        for which in ("input", "grad_output"):
            data = operands(problem, dtype)
            getattr(data, which)[place] = value
            got, want = (compute(DIRECTION, data, name) for name in ("shifted", "gemm"))
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
            finite = np.isfinite(want)
            np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_an_empty_batch(isa, dtype):
    assert not compute(DIRECTION, operands(grouped(2, 3, 4, 5, batch=0), dtype), "shifted").any()


# Who takes it


def chosen(*shapes, **more):
    return fastconv.plan_conv2d(*shapes, direction=DIRECTION, **more).algorithm


def test_auto_takes_it_where_there_are_taps():
    assert chosen((1, 128, 56, 56), (128, 4, 3, 3), groups=32, padding=1) == "shifted"
    assert chosen((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3) == "shifted"
    assert chosen((1, 64, 56, 56), (64, 64, 5, 5), padding=2) == "shifted"
    assert chosen((1, 64, 56, 56), (64, 64, 1, 1)) == "gemm"
    assert chosen((1, 64, 56, 56), (64, 64, 2, 2), stride=3) == "shifted"
    assert chosen((1, 64, 56, 56), (64, 64, 2, 2), stride=4) == "gemm"
    assert chosen((1, 64, 56, 56), (64, 1, 3, 3), groups=64) == "depthwise"
    assert chosen((1, 8, 100, 100), (8, 8, 40, 3)) == "gemm"


def test_other_directions_are_those_of_gemm(isa, dtype):
    data = operands(grouped(2, 5, 7, 9), dtype)
    for direction in ("forward", "input_grad"):
        assert identical(compute(direction, data, "shifted"), compute(direction, data, "gemm"))


def test_refuses_a_window_that_reaches_far():
    with pytest.raises(ValueError, match=r"^algorithm: 'shifted' does not take this problem"):
        fastconv.plan_conv2d((1, 4, 50, 50), (4, 4, 33, 1), algorithm="shifted", direction=DIRECTION)
    with pytest.raises(ValueError, match=r"^algorithm: 'shifted' does not take this problem"):
        fastconv.plan_conv2d((1, 4, 50, 50), (4, 4, 3, 3), algorithm="shifted", dilation=16)
