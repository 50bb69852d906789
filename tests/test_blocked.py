"""Output channels in the lanes, pixels broadcast ("blocked"): shared lanes, steps, long windows."""

import numpy as np
import pytest
from conftest import case, check, compute, identical, operands
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import blocked, calls, engine, passes, plan
from fastconv.problem import conv_problem
from fastconv.testing import gradcheck

PROBLEMS = [
    # Groups that share lanes: 8, 4, 2 and 1 of them, and bundles that are not full.
    case((1, 36, 14, 14), (36, 4, 3, 3), padding=1, groups=9),
    case((2, 40, 9, 11), (40, 8, 3, 3), padding=1, groups=5),
    case((1, 48, 7, 7), (48, 16, 3, 3), padding=1, groups=3),
    case((1, 64, 7, 7), (64, 32, 3, 3), padding=1, groups=2),
    case((1, 15, 8, 10), (6, 5, 2, 3), groups=3),
    # Steps: phases told apart in pairs, in threes, in fours, one by one; those that no tap reads.
    case((1, 20, 15, 17), (35, 20, 3, 3), stride=2, padding=1),
    case((1, 12, 16, 50), (33, 12, 4, 5), stride=3, padding=2),
    case((2, 3, 24, 92), (40, 3, 4, 4), stride=4),
    case((1, 2, 17, 150), (33, 2, 7, 6), stride=(2, 4), padding=(2, 5)),
    case((1, 8, 11, 21), (12, 4, 3, 3), stride=4, padding=1, groups=2),
    case((1, 5, 23, 31), (17, 5, 3, 3), stride=(2, 5), padding=3),
    case((2, 6, 19, 18), (32, 6, 3, 3), stride=2, dilation=2, padding=2),
    case((1, 32, 12, 13), (32, 4, 1, 1), stride=2, groups=8),
    # Windows that lie in the padding for the most part; more padding on one side; nothing but padding.
    case((1, 4, 20, 40), (32, 4, 9, 11), dilation=3, padding=(12, 15)),
    case((1, 3, 6, 5), (9, 3, 3, 3), padding=((0, 7), (6, 0))),
    # Rows of one pixel, of less than half a tile, of several tiles; one row.
    case((3, 8, 9, 1), (40, 8, 3, 1), padding=(1, 0)),
    case((1, 8, 5, 3), (40, 8, 3, 3), padding=1),
    case((1, 8, 3, 130), (16, 8, 3, 5), padding=(1, 2)),
    case((2, 8, 1, 37), (24, 8, 1, 5), stride=(1, 2), padding=(0, 2)),
    # Tiles of two rows, as padding lies on all sides; filters that leave lanes idle.
    case((2, 3, 25, 47), (35, 3, 9, 9), stride=2, dilation=3, padding=12),
    case((1, 2, 31, 23), (33, 2, 7, 10), dilation=3, padding=(9, 13)),
    # Several blocks of the depth, and panels.
    case((1, 150, 6, 6), (70, 150, 3, 3), padding=1),
    case((1, 70, 9, 9), (40, 70, 5, 5), stride=2, padding=2),
    # Input gradients whose phases lie side by side: rows of odd and even length, two rows of them, one
    # pixel; phases in threes and fours, and more than are joined; several blocks of the depth.
    case((1, 40, 11, 11), (300, 40, 3, 3), stride=2, padding=1),
    case((2, 35, 7, 12), (40, 35, 3, 3), stride=(1, 2), padding=1),
    case((1, 36, 5, 61), (40, 36, 3, 3), stride=(1, 2), padding=1),
    case((1, 20, 8, 1), (24, 20, 3, 3), stride=2, padding=1),
    case((1, 33, 13, 55), (150, 33, 4, 5), stride=(2, 3), padding=1),
    case((1, 20, 9, 34), (18, 10, 4, 4), stride=4, padding=2, groups=2),
    case((1, 20, 9, 34), (18, 10, 3, 6), stride=(2, 5), padding=2, groups=2),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@every_problem
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_agrees_with_the_definition(problem, direction, isa, dtype):
    check(direction, operands(problem, dtype), "blocked")


@every_problem
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_same_bits_as_gemm_on_any_number_of_threads(problem, direction, isa, dtype):
    data = operands(problem, dtype)
    want = compute(direction, data, "gemm")
    for threads in (1, 2, 3, 5):
        with fastconv.threads(threads):
            assert identical(compute(direction, data, "blocked"), want)


@every_problem
@pytest.mark.parametrize("activation", [None, "relu"])
def test_prepared(problem, activation, isa, dtype):
    data = operands(problem, dtype)
    options = {**problem.options, "activation": activation, "algorithm": "blocked"}
    for bias in (data.bias, None):
        want = fastconv.conv2d(data.input, data.weight, bias, **options)
        assert identical(fastconv.prepare_conv2d(data.weight, bias, **options)(data.input), want)


@pytest.mark.parametrize("limit", [1, 40_000])
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2], PROBLEMS[-2]], ids=str)
def test_weights_packed_in_parts(problem, limit, isa, dtype, monkeypatch):
    data = operands(problem, dtype)
    want = [compute(direction, data, "blocked") for direction in ("forward", "input_grad")]
    engine.forget()
    monkeypatch.setattr(calls, "PACK_LIMIT", limit)
    monkeypatch.setattr(plan, "PACK_LIMIT", limit)
    got = [compute(direction, data, "blocked") for direction in ("forward", "input_grad")]
    engine.forget()
    assert all(map(identical, got, want))


@st.composite
def problems(draw):
    groups, channels, filters = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    kernel, stride, dilation, padding = (
        (draw(st.integers(low, high)), draw(st.integers(low, high)))
        for low, high in ((1, 5), (1, 5), (1, 3), (0, 6))
    )
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(draw(st.integers(low, low + 30)) for low in least)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    shape = (draw(st.integers(1, 3)), groups * channels, *size)
    return case(shape, (groups * filters, channels, *kernel), **options)


@given(
    problem=problems(),
    direction=st.sampled_from(("forward", "input_grad")),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
)
@settings(max_examples=200)
def test_any_problem(problem, direction, isa, dtype, threads):
    with engine.forced(isa), fastconv.threads(threads):
        check(direction, operands(problem, dtype), "blocked")


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[5], PROBLEMS[11]], ids=str)
def test_gradcheck(problem, isa):
    data = operands(problem, np.float64)
    options = {**problem.options, "algorithm": "blocked"}

    def forward(x):
        return fastconv.conv2d(x, data.weight, **options)

    def backward(grad, x):
        return (fastconv.conv2d_input_grad(x.shape, data.weight, grad, **options),)

    assert gradcheck(forward, (data.input,), backward, max_elements=40, names=("input",))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[5], PROBLEMS[10]], ids=str)
def test_special_values(problem, value, isa, dtype):
    """As "direct" has it: zeros of the padding take part, and no lane hears of another."""
    for which, place in (("input", (0, 1, 0, 0)), ("input", (0, -1, -1, 2)), ("weight", (1, 0, 1, 1)),
                         ("weight", (-1, -1, 0, 0))):  # fmt: skip
        data = operands(problem, dtype)
        getattr(data, which)[place] = value
        got, want = (compute("forward", data, name) for name in ("blocked", "gemm"))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        finite = np.isfinite(want)
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e4 * np.finfo(dtype).eps)


# When it is chosen


@pytest.fixture
def no_cache(monkeypatch):
    """Every input is fetched ahead of time."""
    monkeypatch.setattr(passes, "l3_bytes", lambda: 0)
    plan.plan_conv.cache_clear()
    yield
    plan.plan_conv.cache_clear()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_inputs_that_are_fetched(problem, direction, isa, dtype, no_cache):
    planned = plan.plan_conv(problem.problem, direction, dtype, "blocked")
    assert all(step.geometry["fetches"] for step in planned.passes)
    for threads in (1, 3):
        with fastconv.threads(threads):
            check(direction, operands(problem, dtype), "blocked")


def chosen(shape, filters, kernel, **options):
    groups = options.get("groups", 1)
    return fastconv.plan_conv2d(shape, (filters, shape[1] // groups, kernel, kernel), **options).algorithm


def test_auto_takes_it_for_groups_and_steps(isa):
    """ResNeXt's layers of stride 2, and their input gradients; of stride 1 with tall tiles."""
    tall = engine.load(np.dtype(np.float32)).machine.tile()[0] >= blocked.LARGE_TILE
    for direction in ("forward", "input_grad"):
        options = {"padding": 1, "groups": 32, "direction": direction}
        assert chosen((1, 512, 28, 28), 512, 3, stride=2, **options) == "blocked"
        assert (chosen((1, 512, 14, 14), 512, 3, **options) == "blocked") == tall
    windows = {"stride": 3, "groups": 8, "direction": "input_grad"}
    assert chosen((1, 128, 27, 27), 128, 3, **windows) == "blocked" or not tall
    assert chosen((1, 256, 28, 28), 512, 1, stride=2) == "gemm"
    assert chosen((1, 64, 56, 56), 41, 5, stride=2, padding=2) == "gemm"


def test_gemm_takes_filters_that_leave_lanes_idle(isa, dtype):
    _, panel, vector = engine.load(np.dtype(dtype)).machine.tile()
    shape, options = (1, 8, 48, 48), {"stride": 2, "dilation": 3, "padding": 21, "dtype": dtype}
    with_rest = fastconv.plan_conv2d(shape, (2 * panel + 1, 8, 15, 15), algorithm="blocked", **options)
    takes = blocked.REST * vector >= 1
    assert (with_rest.rest is not None) == takes
    assert int(with_rest.passes[0].geometry["rows"]) == 2 * panel + (not takes)
    even = fastconv.plan_conv2d(shape, (2 * panel, 8, 15, 15), algorithm="blocked", **options)
    assert even.rest is None
    few = fastconv.plan_conv2d((1, 8, 12, 12), (2 * panel + 1, 8, 3, 3), padding=1, stride=2, dtype=dtype)
    assert few.algorithm == "gemm"  # hardly any padding


def test_planes_that_lie_pages_apart(isa, dtype):
    """Tiles of joined phases begin and end with lines: nothing but speed depends on it."""
    problem = case((2, 40, 64, 128), (48, 20, 3, 3), stride=(2, 4), padding=1, groups=2)
    data = operands(problem, dtype)
    want = compute("input_grad", data, "gemm")
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            assert identical(compute("input_grad", data, "blocked"), want)


def test_lanes_used(isa, dtype):
    _, panel, vector = engine.load(dtype).machine.tile()
    assert blocked.lanes_used(vector, 1, dtype) == blocked.lanes_used(panel, 8, dtype) == 1
    assert blocked.lanes_used(vector // 2 + 1, 1, dtype) == (vector // 2 + 1) / vector
    assert blocked.lanes_used(vector, 2, dtype) == 1


def test_refuses_volumes():
    problem = conv_problem((1, 2, 3, 3, 3), (2, 2, 2, 2, 2), axes=3)
    with pytest.raises(ValueError, match=r"^algorithm: 'blocked' does not take this problem"):
        plan.plan_conv(problem, "forward", np.dtype(np.float32), "blocked")


def test_auto_takes_it_for_depthwise_steps_of_three(isa):
    def chosen(size, kernel, stride, **more):
        shapes = (1, 32, size, size), (32, 1, kernel, kernel)
        options = {"groups": 32, "stride": stride, "direction": "input_grad", **more}
        return fastconv.plan_conv2d(*shapes, **options).algorithm

    assert chosen(64, 3, 3) == chosen(64, 5, 3) == "blocked"
    assert chosen(64, 3, 2) == chosen(64, 2, 3) == chosen(64, 7, 3) == chosen(7, 3, 3) == "depthwise"
    assert chosen(64, 3, 3, direction="forward") == "depthwise"


def test_auto_with_long_steps(isa):
    """Of a single group: few filters leave lanes idle, but "gemm" would pack pixel after pixel."""
    if isa != "baseline":
        assert chosen((1, 64, 64, 64), 12, 3, stride=3, padding=1) == "blocked"
        assert chosen((1, 64, 56, 56), 128, 4, stride=4) == "blocked"
    assert chosen((1, 64, 64, 64), 2, 7, stride=3, padding=3) == "gemm"
    assert chosen((1, 128, 64, 64), 256, 8, stride=8) == "gemm"
    assert chosen((1, 32, 64, 64), 8, 15, stride=3, padding=7) == "gemm"
    assert chosen((1, 100, 64, 64), 1, 3, stride=3, padding=1) == "direct"


def test_auto_leaves_long_steps_of_groups_to_gemm(isa):
    def chosen(kernel, stride):
        return fastconv.plan_conv2d((8, 128, 32, 32), (128, 16, *kernel), groups=8, stride=stride).algorithm

    assert chosen((2, 2), 3) == chosen((1, 7), 3) == "gemm"
