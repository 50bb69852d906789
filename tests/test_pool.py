"""Pooling against the float64 reference: every engine, every option, odd arrays, bad arguments."""

import itertools

import numpy as np
import pytest
from conftest import channels_last
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import calls_pool, engine, pool, reference
from fastconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from fastconv.testing import adjoint_check, gradcheck

NAN, INF = np.nan, np.inf
# Sizes around the vector lengths: 2, 4, 8 and 16 elements.
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 37)
# kernel_size, stride, padding, dilation
COMMON = {
    "2x2_stride2": (2, 2, 0, 1),
    "3x3_stride2_pad1": (3, 2, 1, 1),
    "3x3_stride2": (3, 2, 0, 1),
    "3x3_stride1_pad1": (3, 1, 1, 1),
    "5x5_stride1_pad2": (5, 1, 2, 1),
    "13x13_stride1_pad6": (13, 1, 6, 1),
    "3x3_stride3": (3, 3, 0, 1),
    "2x5_stride3x4": ((2, 5), (3, 4), (1, 2), 1),
    "1x1_stride2": (1, 2, 0, 1),
    "3x2_dilated": ((3, 2), (1, 2), (1, 1), (2, 3)),
    "asymmetric": ((3, 3), (2, 2), ((0, 2), (2, 1)), (1, 1)),
    "wide_17x19": ((17, 19), (1, 1), ((8, 8), (9, 9)), (1, 1)),
}
common = pytest.mark.parametrize("arguments", COMMON.values(), ids=COMMON)


def normal(rng, shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def coarse(rng, shape, dtype=np.float64):
    """Few distinct values: ties everywhere, some of them between infinities and NaN."""
    values = np.array([-INF, -1, -1, 0, 0, 1, 1, INF, NAN, NAN])
    return rng.choice(values, shape, p=[0.2, *[0.125] * 6, 0.02, 0.02, 0.01]).astype(dtype)


def distinct(shape, seed=0):
    """Distinct values at least 0.1 apart, so that no maximum changes hands under a small step."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return (order.reshape(shape) - order.size // 2) * 0.1 + 0.05


def tolerance(dtype, terms):
    return 4 * np.finfo(dtype).eps * np.sqrt(terms)


def fits(size, kernel, stride, padding, dilation, ceil_mode=False):
    """Does every window along an axis hold an element of the input, and is there a window?"""
    before, after = padding
    count = reference.output_size(size, kernel, stride, before, after, dilation, ceil_mode)
    starts = np.arange(count) * stride - before
    taps = starts[:, None] + np.arange(kernel) * dilation
    return count > 0 and bool(((taps >= 0) & (taps < size)).any(axis=1).all())


@st.composite
def problems(draw, empty_windows=False):
    """A shape and the arguments of a pool over it, every option in play."""
    size, kernel, stride, padding, dilation = [], [], [], [], []
    ceil_mode = draw(st.booleans())
    for axis in range(2):
        largest = 40 if axis else 9
        for _ in range(100):
            case = (
                draw(st.integers(1, largest)), draw(st.integers(1, 5)), draw(st.integers(1, 4)),
                (draw(st.integers(0, 3)), draw(st.integers(0, 3))), draw(st.integers(1, 3)),
            )  # fmt: skip
            count = reference.output_size(*case[:3], *case[3], case[4], ceil_mode)
            if count > 0 and (empty_windows or fits(*case, ceil_mode)):
                break
        else:
            case = (4, 2, 2, (0, 0), 1)
        for values, value in zip((size, kernel, stride, padding, dilation), case, strict=True):
            values.append(value)
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *size)
    options = {
        "kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding),
        "dilation": tuple(dilation), "ceil_mode": ceil_mode,
    }  # fmt: skip
    return shape, options


def check_max(x, layout="NCHW", **options):
    """Values, indices in both forms and gradients, from both forms and from neither."""
    to = (lambda a: a) if layout == "NCHW" else channels_last
    back = (lambda a: a) if layout == "NCHW" else channels_first
    expected, positions = reference.max_pool(x, **options)
    given_x = to(x)
    alone = np.full(to(expected).shape, NAN, x.dtype)
    assert max_pool2d(given_x, **options, layout=layout, out=alone) is alone
    y, flat = max_pool2d(given_x, **options, return_indices=True, layout=layout)
    also, codes = max_pool2d(given_x, **options, return_indices="window", layout=layout)
    assert y.dtype == x.dtype
    assert flat.dtype == np.int64
    for result in (alone, y, also):
        np.testing.assert_array_equal(back(result), expected)
    np.testing.assert_array_equal(back(flat), positions)

    g = np.random.default_rng(1).standard_normal(expected.shape).astype(x.dtype)
    expected = reference.max_pool_backward(g, positions, x.shape)
    scale = reference.max_pool_backward(np.abs(g), positions, x.shape)
    arguments = dict(options, layout=layout)
    gradients = [
        max_pool2d_backward(
            to(g), given_x, **arguments, indices=indices, out=np.full(given_x.shape, NAN, x.dtype)
        )
        for indices in (None, flat, codes)
    ]
    assert gradients[0].dtype == x.dtype
    error = np.abs(back(gradients[0]) - expected)
    assert (error <= tolerance(x.dtype, np.prod(options["kernel_size"])) * scale).all()
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, gradients[0])


def check_average(x, layout="NCHW", **options):
    to = (lambda a: a) if layout == "NCHW" else channels_last
    back = (lambda a: a) if layout == "NCHW" else channels_first
    limit = tolerance(x.dtype, np.prod(options["kernel_size"]))
    expected, scale = reference.avg_pool(x, **options), reference.avg_pool(np.abs(x), **options)
    out = np.full(to(expected).shape, NAN, x.dtype)
    assert avg_pool2d(to(x), **options, layout=layout, out=out) is out
    assert (np.abs(back(out) - expected) <= limit * np.abs(scale)).all()

    g = np.random.default_rng(1).standard_normal(expected.shape).astype(x.dtype)
    expected = reference.avg_pool_backward(g, x.shape, **options)
    scale = reference.avg_pool_backward(np.abs(g), x.shape, **options)
    out = np.full(to(x).shape, NAN, x.dtype)
    result = avg_pool2d_backward(to(g), out.shape, **options, layout=layout, out=out)
    assert result is out
    assert (np.abs(back(out) - expected) <= limit * np.abs(scale)).all()


def channels_first(array):
    return np.moveaxis(array, -1, 1)


def named(arguments):
    kernel, stride, padding, dilation = arguments
    return {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}


# Against the reference


@common
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_max_pool_of_common_windows(isa, dtype, rng, arguments, layout):
    for width in (19, 33):
        check_max(coarse(rng, (2, 3, 18, width), dtype), **named(arguments), layout=layout)


@common
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_average_pool_of_common_windows(isa, dtype, rng, arguments, layout):
    for width in (19, 33):
        check_average(normal(rng, (2, 3, 18, width), dtype), **named(arguments), layout=layout)


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((2, 3, 4), (1, 2, 3))))
def test_widths_around_the_vector_length(isa, dtype, rng, kernel, stride):
    for width in WIDTHS:
        options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "dilation": 1}
        check_max(coarse(rng, (1, 2, 5, width), dtype), **options)
        check_average(normal(rng, (1, 2, 5, width), dtype), **options)


def every_engine():
    """Yields each dtype on each engine: hypothesis shows all of them the same examples."""
    for isa, scalar in itertools.product(engine.loadable(), (np.float32, np.float64)):
        with engine.forced(isa):
            yield np.dtype(scalar)


layouts = st.sampled_from(["NCHW", "NHWC"])


@given(problem=problems(), seed=st.integers(0, 9), layout=layouts)
def test_max_pool_of_any_geometry(problem, seed, layout):
    shape, options = problem
    for dtype in every_engine():
        check_max(coarse(np.random.default_rng(seed), shape, dtype), layout=layout, **options)


@given(
    problem=problems(empty_windows=True),
    seed=st.integers(0, 9),
    layout=layouts,
    count_include_pad=st.booleans(),
    divisor_override=st.sampled_from([None, None, 1, 7, -3]),
)
def test_average_pool_of_any_geometry(problem, seed, layout, count_include_pad, divisor_override):
    shape, options = problem
    options.update(count_include_pad=count_include_pad, divisor_override=divisor_override)
    for dtype in every_engine():
        check_average(normal(np.random.default_rng(seed), shape, dtype), layout=layout, **options)


# Windows, strides, paddings and shapes for which kernels take a way of their own.
WAYS = {
    "small planes share a strip": ((2, 37, 8, 8), 3, 1, 1),
    "small planes, padded rows": ((1, 40, 5, 3), (3, 2), 1, 1),
    "long windows, many planes": ((1, 19, 20, 20), (9, 13), 1, (4, 6)),
    "long windows, several blocks": ((2, 3, 45, 70), (8, 20), 1, (3, 10)),
    "long windows, lower planes": ((1, 5, 6, 9), (11, 17), 1, (5, 8)),
    "long windows, much padding": ((1, 2, 21, 12), (9, 8), 1, ((8, 3), (0, 7))),
    "long windows, slices of channels": ((1, 75, 10, 21), 9, 1, 4),
    "long windows with a stride": ((1, 3, 70, 41), (8, 9), (3, 2), (4, 4)),
    "a stack of several strips": ((1, 1, 40, 260), (9, 3), 1, (4, 1)),
    "wide rows": ((1, 1, 4, 4500), (2, 8), 1, (1, 4)),
    "pairs in one tall plane": ((2, 5, 14, 14), 2, 2, 0),
    "pairs with a row left over": ((2, 5, 15, 15), 2, 2, 0),
    "pairs of one column": ((1, 4, 9, 21), (3, 1), 2, (1, 0)),
    "pairs under three rows": ((1, 4, 9, 21), (3, 2), (1, 2), (1, 0)),
    "one window holds its plane": ((3, 21, 7, 7), 7, 7, 0),
    "one window, tiny planes": ((3, 21, 1, 3), (1, 3), 1, 0),
    "one window leaves a rest": ((2, 5, 9, 7), 7, 7, 0),
    "windows of 3 side by side": ((2, 5, 11, 20), 3, 3, 0),
    "stride 1 down, 2 across": ((1, 3, 6, 40), 3, (1, 2), 1),
    "one plane": ((1, 1, 33, 65), 3, 2, 1),
    "gradients of wide rows": ((1, 9, 6, 530), (3, 6), 1, (1, 3)),
    "gradients of many planes": ((3, 9, 35, 21), (5, 4), (2, 1), (2, 1)),
    "windows apart, of many channels": ((2, 135, 9, 8), (4, 3), (5, 4), (0, 1)),
    "one window of many channels": ((1, 257, 14, 15), (14, 15), 1, 0),
    "one window of more taps than are listed": ((1, 130, 33, 32), (33, 32), 1, 0),
    "rows run on": ((1, 200, 8, 8), 3, 1, 1),
    "rows run on, 5x5": ((2, 90, 17, 17), 5, 1, 2),
    "rows run on, planes lower than windows": ((1, 151, 3, 5), (5, 3), 1, (2, 1)),
    "rows run on, even windows": ((1, 130, 6, 11), (2, 4), 1, ((1, 0), (1, 2))),
}


@pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_way(isa, dtype, rng, case, layout, threads):
    shape, kernel, stride, padding = case
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": 1}
    with fastconv.threads(threads):
        check_max(coarse(rng, shape, dtype), layout=layout, **options)
        check_average(normal(rng, shape, dtype), layout=layout, **options)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 33, 256, 257), 2, 2, 0),
        ((2, 33, 256, 257), 3, 2, 1),
        ((1, 35, 350, 350), 3, 1, 1),
        ((3, 1000, 38, 39), 3, 1, 1),
        ((8, 640, 29, 29), 3, (2, 1), 0),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_inputs_larger_than_what_caches_hold_for_certain(isa, rng, shape, kernel, stride, padding, layout):
    """They are fetched ahead of time: the same results as image by image and channel by channel."""
    x = rng.standard_normal(shape, np.float32)
    part = (slice(None), slice(0, 32))
    whole, some = (a if layout == "NCHW" else channels_last(a) for a in (x, np.ascontiguousarray(x[part])))
    for compute in (max_pool2d, avg_pool2d):
        few = compute(some, kernel, stride, padding, layout=layout)
        for threads in (1, 3):
            with fastconv.threads(threads):
                found = compute(whole, kernel, stride, padding, layout=layout)
            found = found[part] if layout == "NCHW" else found[..., part[1]]
            np.testing.assert_allclose(found, few, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [2, 3, 9])
def test_an_infinity_stays_in_its_windows(isa, dtype, kernel):
    x = normal(np.random.default_rng(0), (1, 3, 20, 20), dtype)
    x[0, 1, 10, 10] = INF
    for stride in (1, 2):
        expected = np.isinf(reference.avg_pool(x, kernel, stride))
        np.testing.assert_array_equal(np.isinf(avg_pool2d(x, kernel, stride)), expected)
        assert not np.isnan(avg_pool2d(x, kernel, stride)).any()
    g = normal(np.random.default_rng(1), (1, 3, 20, 20), dtype)
    g[0, 1, 10, 10] = INF
    shape = (1, 3, 19 + kernel, 19 + kernel)
    spread = avg_pool2d_backward(g, shape, kernel, 1)
    assert np.isinf(spread).sum() == kernel**2
    assert not np.isnan(spread).any()


def test_quotients_are_those_of_a_division(isa, dtype, rng):
    """The average over one divisor is the rounded quotient of the sum, whatever the divisor."""
    x = normal(rng, (1, 4, 9, 40), dtype)
    for divisor in (3, 7, 9, 49, 1_000_003, -5):
        sums = avg_pool2d(x, 1, 1, divisor_override=1)
        got = avg_pool2d(x, 1, 1, divisor_override=divisor)
        np.testing.assert_array_equal(got, sums / np.dtype(dtype).type(divisor))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
def test_nothing_is_read_or_written_beyond_an_array(isa, dtype, cage, case, at, layout):
    shape, kernel, stride, padding = case
    if shape[-1] > 1000:
        return
    options = {"layout": layout}
    random = np.random.default_rng(0)
    x = normal(random, shape, dtype)
    x = cage.copy(x if layout == "NCHW" else channels_last(x), at)
    y, codes = max_pool2d(x, kernel, stride, padding, return_indices="window", **options)
    out, g = (cage.place(y.shape, dtype, at) for _ in range(2))
    assert max_pool2d(x, kernel, stride, padding, out=out, **options) is out
    avg_pool2d(x, kernel, stride, padding, out=out, **options)
    g[...] = normal(random, y.shape, dtype)
    grad = cage.place(x.shape, dtype, at)
    avg_pool2d_backward(g, x.shape, kernel, stride, padding, out=grad, **options)
    codes = cage.copy(codes, at)
    max_pool2d_backward(g, x, kernel, stride, padding, indices=codes, out=grad, **options)


# Maxima


def test_nan_wins_and_the_first_one_is_the_index(isa, dtype):
    x = np.zeros((1, 1, 4, 40), dtype)
    x[0, 0, 1, 21] = x[0, 0, 2, 20] = NAN
    x[0, 0, 0, :] = INF
    y, indices = max_pool2d(x, 4, 1, return_indices=True)
    windows = slice(18, 21)
    assert np.isnan(y[0, 0, 0, windows]).all()
    np.testing.assert_array_equal(indices[0, 0, 0, windows], 40 + 21)
    assert indices[0, 0, 0, 17] == 80 + 20
    assert np.isnan(max_pool2d(x, 4, 1)[0, 0, 0, 17:22]).all()
    assert (y[0, 0, 0, :17] == INF).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_of_either_sign_and_position_propagates(isa, dtype, sign):
    for position in range(3 * 33):
        x = np.full((1, 1, 3, 33), -1, dtype)
        x.flat[position] = np.copysign(NAN, sign)
        y = max_pool2d(x, 3, 1, 1)
        np.testing.assert_array_equal(y, reference.max_pool(x, 3, 1, 1)[0])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kernel", [(8, 8), (13, 13), (9, 70)])
def test_long_windows_hold_what_is_not_a_number(isa, dtype, rng, kernel, layout):
    padding = tuple(size // 2 for size in kernel)
    for values in ([NAN], [INF], [-INF], [INF, -INF], [NAN, INF, -INF]):
        x = coarse(rng, (2, 3, 40, 37), dtype)
        x.flat[rng.choice(x.size, len(values), replace=False)] = values
        expected = reference.max_pool(x, kernel, 1, padding)[0]
        if layout == "NHWC":
            x, expected = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, expected))
        np.testing.assert_array_equal(max_pool2d(x, kernel, 1, padding, layout=layout), expected)


@pytest.mark.parametrize("value", [-INF, INF, NAN, 0.0])
def test_constant_windows_give_the_first_element_inside(isa, dtype, value):
    x = np.full((1, 2, 7, 18), value, dtype)
    for stride, padding, dilation in itertools.product((1, 2, 3), (0, 2), (1, 2)):
        check_max(x, kernel_size=3, stride=stride, padding=padding, dilation=dilation)


def test_denormals_are_compared_exactly(isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([0, tiny, -tiny, 2 * tiny] * 9, dtype).reshape(1, 1, 2, 18)
    check_max(x, kernel_size=2, stride=1)
    check_max(x, kernel_size=2)


def test_index_dtypes(isa):
    x = np.random.default_rng(0).standard_normal((1, 1, 300, 300)).astype(np.float32)
    for kernel, expected in ((16, np.uint8), (17, np.uint16), ((256, 257), np.uint32)):
        y, codes = max_pool2d(x, kernel, 40, return_indices="window")
        assert codes.dtype == expected
        _, positions = max_pool2d(x, kernel, 40, return_indices=True)
        width = np.broadcast_to(kernel, 2)[1]
        rows, columns = np.divmod(codes[0, 0].astype(np.int64), width)
        p, q = np.indices(codes.shape[2:]) * 40
        np.testing.assert_array_equal(positions[0, 0], (p + rows) * 300 + q + columns)
        np.testing.assert_array_equal(y[0, 0].ravel(), x.ravel()[positions[0, 0].ravel()])
        g = np.ones_like(y)
        for indices in (codes, positions):
            gradient = max_pool2d_backward(g, x, kernel, 40, indices=indices)
            assert gradient.sum() == g.size


def test_overlapping_windows_add_up(isa, dtype):
    x = np.zeros((1, 1, 5, 21), dtype)
    x[0, 0, 2, 10] = 1
    g = np.ones((1, 1, 3, 19), dtype)
    assert max_pool2d_backward(g, x, 3, 1)[0, 0, 2, 10] == 9


@pytest.mark.parametrize("kernel", [2, 3, 12])
def test_unselected_gradients_do_not_leak(isa, dtype, kernel):
    """NaN and inf in grad_output go to their own element, not to its neighbours."""
    x = normal(np.random.default_rng(3), (1, 1, 12, 24), dtype)
    y, positions = max_pool2d(x, kernel, 1, return_indices=True)
    g = np.zeros_like(y)
    g[0, 0, 0, 1], g[0, 0, -1, -1] = NAN, INF
    expected = reference.max_pool_backward(g, positions, x.shape)
    np.testing.assert_array_equal(max_pool2d_backward(g, x, kernel, 1), expected)


# Averages


def test_ceil_mode_counts_no_overhang(isa):
    x = np.ones((1, 1, 6, 6), np.float32)
    for include in (True, False):
        y = avg_pool2d(x, 3, 2, 0, True, include)
        np.testing.assert_array_equal(y, np.ones((1, 1, 3, 3)))


def test_a_constant_stays_exact(isa, dtype):
    x = np.full((1, 1, 60, 60), 3, dtype)
    for kernel in (2, 3, 5, 7, 49):
        assert (avg_pool2d(x, kernel, 1) == 3).all()


def test_a_window_in_the_padding_averages_to_zero(isa, dtype):
    x = np.ones((1, 1, 3, 3), dtype)
    for include in (True, False):
        options = {"kernel_size": 2, "stride": 1, "padding": 3, "count_include_pad": include}
        check_average(x, **options)
        assert avg_pool2d(x, **options)[0, 0, 0, 0] == 0


def test_averages_of_infinities(isa, dtype):
    x = np.zeros((1, 1, 2, 20), dtype)
    x[0, 0, 0, 3], x[0, 0, 1, 10], x[0, 0, 0, 11], x[0, 0, 1, 18] = INF, INF, -INF, NAN
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(avg_pool2d(x, 2), reference.avg_pool(x, 2))


# Gradients


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@common
def test_gradients_by_finite_differences(isa, arguments, layout):
    options = dict(named(arguments), layout=layout, ceil_mode=True)
    shape = (1, 2, 7, 9) if layout == "NCHW" else (1, 7, 9, 2)
    x = distinct(shape)
    if arguments[0] == (17, 19):
        return
    if arguments[0] != 13:
        gradcheck(
            lambda x: max_pool2d(x, **options),
            x,
            lambda g, x: max_pool2d_backward(g, x, **options),
            step=1e-4,
        )
    gradcheck(
        lambda x: avg_pool2d(x, **options, count_include_pad=False),
        x,
        lambda g, x: avg_pool2d_backward(g, x.shape, **options, count_include_pad=False),
    )


@common
def test_average_adjoint(isa, dtype, arguments):
    options, shape = named(arguments), (2, 3, 18, 23)
    adjoint_check(
        lambda x: avg_pool2d(x, **options),
        lambda g: avg_pool2d_backward(g, shape, **options),
        shape,
        avg_pool2d(np.zeros(shape), **options).shape,
        dtype=dtype,
    )


# Threads


@common
@pytest.mark.parametrize("planes", [(1, 1), (3, 5)])
def test_the_same_bits_for_any_number_of_threads(isa, dtype, rng, arguments, planes, monkeypatch):
    monkeypatch.setattr(calls_pool, "ELEMENTS_PER_THREAD", 1)
    pool._seen.clear()
    calls_pool._bound.clear()
    options = named(arguments)
    x = coarse(rng, (*planes, 40, 70), dtype)
    finite = normal(rng, x.shape, dtype)
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            y, codes = max_pool2d(x, **options, return_indices="window")
            g = normal(np.random.default_rng(0), y.shape, dtype)
            results.append(
                (
                    y, codes, max_pool2d(x, **options), max_pool2d_backward(g, x, **options),
                    max_pool2d_backward(g, x, **options, indices=codes),
                    avg_pool2d(finite, **options), avg_pool2d_backward(g, x.shape, **options),
                )
            )  # fmt: skip
    pool._seen.clear()
    calls_pool._bound.clear()
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_long_windows_have_the_bits_of_one_thread_whatever_they_hold(isa, dtype, rng, layout, monkeypatch):
    """Zeros of both signs, and a NaN for which one of the threads takes another maximum."""
    monkeypatch.setattr(calls_pool, "ELEMENTS_PER_THREAD", 1)
    pool._seen.clear()
    calls_pool._bound.clear()
    x = -np.abs(coarse(rng, (1, 1, 100, 37) if layout == "NCHW" else (1, 100, 37, 20), dtype))
    x[rng.random(x.shape) < 0.5] = 0.0
    x.flat[x.size // 5] = NAN
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(max_pool2d(x, 13, 1, 6, layout=layout).tobytes())
    pool._seen.clear()
    calls_pool._bound.clear()
    assert results[1:] == results[:1] * 2


def test_planes_that_run_on_have_the_bits_of_strips(isa, dtype, rng, monkeypatch):
    """Six planes are whole units of one thread, and bands of rows of five."""
    monkeypatch.setattr(calls_pool, "ELEMENTS_PER_THREAD", 1)
    pool._seen.clear()
    calls_pool._bound.clear()
    x = coarse(rng, (1, 6, 40, 37), dtype)
    finite = normal(rng, x.shape, dtype)
    finite[rng.random(x.shape) < 0.5] = -0.0
    results = []
    for threads in (1, 5):
        with fastconv.threads(threads):
            results.append([max_pool2d(x, 3, 1, 1), avg_pool2d(finite, 5, 1, 2)])
    pool._seen.clear()
    calls_pool._bound.clear()
    for first, second in zip(*results, strict=True):
        assert first.tobytes() == second.tobytes()


# Arrays


def odd_arrays(x):
    """The same numbers, laid out otherwise."""
    yield "fortran", np.asfortranarray(x)
    yield "negative strides", np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]
    yield "strided", np.repeat(x, 2, axis=-1)[..., ::2]
    yield "byte-swapped", x.astype(x.dtype.newbyteorder())
    memory = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = memory[1:].view(x.dtype).reshape(x.shape)
    misaligned[...] = x
    yield "misaligned", misaligned
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    yield "broadcast", np.broadcast_to(x[:1, :1], x.shape)


def test_odd_arrays_give_the_same_results_and_stay_as_they_were(dtype, rng):
    x = normal(rng, (2, 3, 9, 20), dtype)
    for name, odd in odd_arrays(x):
        plain, before = np.array(odd, x.dtype, order="C"), odd.copy()
        y, indices = max_pool2d(plain, 3, 2, 1, return_indices=True)
        got, got_indices = max_pool2d(odd, 3, 2, 1, return_indices=True)
        g = normal(rng, y.shape, dtype)
        pairs = [
            (got, y),
            (got_indices, indices),
            (max_pool2d(odd, 3, 2, 1), y),
            (avg_pool2d(odd, 3, 2, 1), avg_pool2d(plain, 3, 2, 1)),
            (max_pool2d_backward(g, odd, 3, 2, 1), max_pool2d_backward(g, plain, 3, 2, 1)),
        ]
        for result, expected in pairs:
            assert result.dtype == dtype or result.dtype == np.int64
            np.testing.assert_array_equal(result, expected, err_msg=name)
        np.testing.assert_array_equal(odd, before, err_msg=name)


def test_odd_gradients_and_indices(dtype, rng):
    x = normal(rng, (2, 3, 9, 20), dtype)
    y, positions = max_pool2d(x, 3, 2, 1, return_indices=True)
    codes = max_pool2d(x, 3, 2, 1, return_indices="window")[1]
    g = normal(rng, y.shape, dtype)
    expected = max_pool2d_backward(g, x, 3, 2, 1)
    average = avg_pool2d_backward(g, x.shape, 3, 2, 1)
    for name, odd in list(odd_arrays(g))[:-1]:
        result = max_pool2d_backward(odd, x, 3, 2, 1, indices=positions)
        np.testing.assert_array_equal(result, expected, err_msg=name)
        result = avg_pool2d_backward(odd, x.shape, 3, 2, 1)
        np.testing.assert_array_equal(result, average, err_msg=name)
    for indices in (positions, codes):
        for name, odd in list(odd_arrays(indices))[:-1]:
            result = max_pool2d_backward(g, x, 3, 2, 1, indices=odd)
            np.testing.assert_array_equal(result, expected, err_msg=name)


def test_out_may_overlap_and_need_not_be_contiguous(dtype, rng):
    x = normal(rng, (2, 3, 8, 16), dtype)
    for forward in (max_pool2d, avg_pool2d):
        expected = forward(x, 3, 1, 1)
        inplace = x.copy()
        assert forward(inplace, 3, 1, 1, out=inplace) is inplace
        np.testing.assert_array_equal(inplace, expected)
        strided = np.full((2, 3, 8, 32), NAN, dtype)
        forward(x, 3, 1, 1, out=strided[..., ::2])
        np.testing.assert_array_equal(strided[..., ::2], expected)
        assert np.isnan(strided[..., 1::2]).all()
    g = x.copy()
    expected = avg_pool2d_backward(x, x.shape, 3, 1, 1)
    np.testing.assert_array_equal(avg_pool2d_backward(g, g.shape, 3, 1, 1, out=g), expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (0, 0, 2, 2)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_empty_batches(shape, layout):
    shape = shape if layout == "NCHW" else (shape[0], *shape[2:], shape[1])
    x = np.zeros(shape, np.float32)
    y, indices = max_pool2d(x, 2, return_indices=True, layout=layout)
    assert y.shape == indices.shape == avg_pool2d(x, 2, layout=layout).shape
    assert y.size == 0
    assert max_pool2d_backward(y, x, 2, layout=layout).shape == shape
    assert avg_pool2d_backward(y, shape, 2, layout=layout).shape == shape
    assert max_pool2d(x, 13, 1, 6, layout=layout).shape == shape  # long windows have a way of their own


def test_averages_of_nothing_but_padding():
    for shape in ((1, 2, 0, 4), (1, 2, 4, 0)):
        y = avg_pool2d(np.zeros(shape), 2, 1, 1)
        assert y.size
        assert not y.any()
        assert avg_pool2d_backward(y, shape, 2, 1, 1).shape == shape


def test_large_strides_and_paddings():
    x = np.arange(64.0).reshape(1, 1, 8, 8)
    check_max(x, kernel_size=9, stride=9, padding=((0, 5), (1, 6)), dilation=1)
    check_average(x, kernel_size=40, stride=33, padding=30)
    assert max_pool2d(x, 8, 1_000_000)[0, 0, 0, 0] == 63


# Bad arguments

X = np.zeros((1, 2, 8, 8), np.float32)
BAD = {
    "not an array": (([[1.0]], 2), {}, TypeError, "input"),
    "integers": ((np.zeros((1, 1, 4, 4), int), 2), {}, TypeError, "input"),
    "three axes": ((X[0], 2), {}, ValueError, "input"),
    "empty window": ((X, 0), {}, ValueError, "kernel_size"),
    "float window": ((X, 2.0), {}, TypeError, "kernel_size"),
    "bool window": ((X, True), {}, TypeError, "kernel_size"),
    "three windows": ((X, (2, 2, 2)), {}, ValueError, "kernel_size"),
    "window too large": ((X, 9), {}, ValueError, "kernel_size"),
    "stride 0": ((X, 2, 0), {}, ValueError, "stride"),
    "negative padding": ((X, 2, 2, -1), {}, ValueError, "padding"),
    "unknown padding": ((X, 2, 2, "sane"), {}, ValueError, "padding"),
    "unequal pairs": ((X, 2, 2, ((1, 1), 1)), {}, ValueError, "padding"),
    "dilation 0": ((X, 2), {"dilation": 0}, ValueError, "dilation"),
    "huge": ((X, 2**61, 1, 2**61), {}, ValueError, "address space"),
    "ceil_mode": ((X, 2), {"ceil_mode": 1}, TypeError, "ceil_mode"),
    "layout": ((X, 2), {"layout": "CHWN"}, ValueError, "layout"),
    "out shape": ((X, 2), {"out": np.zeros((1, 2, 4, 5), np.float32)}, ValueError, "out"),
    "out dtype": ((X, 2), {"out": np.zeros((1, 2, 4, 4))}, TypeError, "out"),
    "out list": ((X, 2), {"out": [1]}, TypeError, "out"),
}
MAX_BAD = {
    "indices": ((X, 2), {"return_indices": "flat"}, ValueError, "return_indices"),
    "window in the padding": ((X, 2, 2, 2), {}, ValueError, "padding"),
    "window in the padding by dilation": ((X, 2, 20, 10), {"dilation": 20}, ValueError, "padding"),
    "no element": ((np.zeros((1, 1, 0, 4)), 2, 1, 1), {}, ValueError, "padding"),
}
AVERAGE_BAD = {
    "divisor 0": ((X, 2), {"divisor_override": 0}, ValueError, "divisor_override"),
    "divisor 2.0": ((X, 2), {"divisor_override": 2.0}, TypeError, "divisor_override"),
    "divisor True": ((X, 2), {"divisor_override": True}, TypeError, "divisor_override"),
    "include": ((X, 2), {"count_include_pad": 1}, TypeError, "count_include_pad"),
}


@pytest.mark.parametrize("case", [*BAD.values(), *MAX_BAD.values()], ids=[*BAD, *MAX_BAD])
def test_bad_arguments_of_max_pool(case):
    arguments, options, error, name = case
    with pytest.raises(error, match=name):
        max_pool2d(*arguments, **options)


@pytest.mark.parametrize("case", [*BAD.values(), *AVERAGE_BAD.values()], ids=[*BAD, *AVERAGE_BAD])
def test_bad_arguments_of_average_pool(case):
    arguments, options, error, name = case
    with pytest.raises(error, match=name):
        avg_pool2d(*arguments, **options)


def test_an_argument_equal_to_a_known_one_is_still_checked():
    max_pool2d(X, 1, 1)
    avg_pool2d(X, 1, 1)
    for pooled in (max_pool2d, avg_pool2d):
        with pytest.raises(TypeError, match="kernel_size"):
            pooled(X, True, 1)
        with pytest.raises(TypeError, match="stride"):
            pooled(X, 1, 1.0)
        pooled(X, (1, 1), (1, 1))
        with pytest.raises(TypeError, match="kernel_size"):
            pooled(X, (1, True), (1, 1))
        with pytest.raises(TypeError, match="stride"):
            pooled(X, (1, 1), (1.0, 1))


def test_read_only_out_is_refused():
    out = np.zeros((1, 2, 4, 4), np.float32)
    out.flags.writeable = False
    for pooled in (max_pool2d, avg_pool2d):
        with pytest.raises(ValueError, match="out"):
            pooled(X, 2, out=out)


def test_bad_gradients():
    g = np.zeros((1, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="grad_output"):
        max_pool2d_backward(g[..., 1:], X, 2)
    with pytest.raises(TypeError, match="grad_output"):
        max_pool2d_backward(g.astype(np.float64), X, 2)
    with pytest.raises(ValueError, match="grad_output"):
        avg_pool2d_backward(g[..., 1:], X.shape, 2)
    with pytest.raises(ValueError, match="input_shape"):
        avg_pool2d_backward(g, (2, 8, 8), 2)
    with pytest.raises(TypeError, match="input_shape"):
        avg_pool2d_backward(g, 8, 2)


def test_bad_indices():
    g = np.zeros((1, 2, 4, 4), np.float32)
    for indices, error in (
        ([0], TypeError),
        (np.zeros(g.shape, np.int32), TypeError),
        (np.zeros(g.shape, np.uint16), TypeError),
        (np.zeros(g.shape), TypeError),
        (np.zeros(g.shape[1:], np.int64), ValueError),
    ):
        with pytest.raises(error, match="indices"):
            max_pool2d_backward(g, X, 2, indices=indices)


@pytest.mark.parametrize("kernel", [3, 11])
def test_indices_outside_their_window_are_refused_before_anything_is_written(isa, dtype, kernel):
    x = normal(np.random.default_rng(0), (2, 3, 12, 30), dtype)
    options = {"kernel_size": kernel, "stride": 1, "padding": 1}
    y, positions = max_pool2d(x, **options, return_indices=True)
    codes = max_pool2d(x, **options, return_indices="window")[1]
    out = np.full_like(x, 7)
    wrong = []
    for value in (-1, -(2**63), 2**63 - 1, 12 * 30, 0, 12 * 30 - 1):
        bad = positions.copy()
        bad[-1, -1, 1, 15 - kernel // 2] = value
        wrong.append(bad)
    for at, value in (((0, 0, 0, 9), 0), ((0, 0, 2, 0), 0), ((1, 2, -1, -1), kernel**2 - 1)):
        bad = codes.copy()
        bad[at] = value
        wrong.append(bad)
    bad = codes.copy()
    bad[1, 1, 1, 1] = kernel**2
    for indices in (*wrong, bad):
        with pytest.raises(ValueError, match="indices"):
            max_pool2d_backward(np.ones_like(y), x, **options, indices=indices, out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("dilation", [1, (2, 1), (1, 3)])
def test_every_code_is_refused_unless_it_is_a_tap_inside(isa, dtype, dilation):
    """Nine planes: eight that are scattered in turn, and one."""
    kernel, stride, padding = (3, 5), (1, 2), (1, 2)
    x = np.zeros((1, 9, 8, 19), dtype)
    y, codes = max_pool2d(x, kernel, stride, padding, dilation, return_indices="window")
    down, across = np.broadcast_to(dilation, 2)
    for plane, row, column in itertools.product((3, 8), (0, 3, y.shape[2] - 1), (0, 2, y.shape[3] - 1)):
        for code in range(256):
            tap = row - 1 + code // 5 * down, 2 * column - 2 + code % 5 * across
            is_right = code < 15 and 0 <= tap[0] < 8 and 0 <= tap[1] < 19
            indices = codes.copy()
            indices[0, plane, row, column] = code
            try:
                found = max_pool2d_backward(y + 1, x, kernel, stride, padding, dilation, indices=indices)
            except ValueError:
                assert not is_right
            else:
                assert is_right
                assert found.sum() == y.size
                assert found[(0, plane, *tap)] > 0


def test_positions_between_dilated_taps_are_refused():
    x = np.zeros((1, 1, 8, 8))
    y, positions = max_pool2d(x, 2, 1, dilation=2, return_indices=True)
    positions[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="indices"):
        max_pool2d_backward(y, x, 2, 1, dilation=2, indices=positions)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((24, 8), 8, 8, 4),
        ((30, 9), 8, 3, 4),
        ((40, 7), 3, 2, 1),
        ((40, 9), (3, 1), 3, 0),
        ((64, 64), 13, 13, 6),
    ],
    ids=str,
)
def test_gradients_of_averages_of_few_outputs(
    size, window, stride, padding, count_include_pad, isa, dtype, rng
):
    """Window by window, or rows copied: a plane in one piece, and cut among threads."""
    options = {"stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    shape = (1, 2, *size)
    y = avg_pool2d(np.zeros(shape, dtype), window, **options)
    g = normal(rng, y.shape, dtype)
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(avg_pool2d_backward(g, shape, window, **options))
    x = normal(rng, shape, np.float64)
    inner = np.vdot(avg_pool2d(x, window, **options), g.astype(np.float64))
    pool._seen.clear()
    calls_pool._bound.clear()
    assert abs(np.vdot(x, results[0].astype(np.float64)) - inner) <= 1e-4 * np.abs(g).sum()
    want = np.zeros(shape)
    for p, q in np.ndindex(y.shape[2:]):
        probe = np.zeros((1, 1, *y.shape[2:]))
        probe[0, 0, p, q] = 1
        want += g[:, :, p, q, None, None] * avg_pool2d_backward(probe, (1, 1, *size), window, **options)
    np.testing.assert_allclose(results[0], want, atol=4e-6)
    assert all(other.tobytes() == results[0].tobytes() for other in results[1:])


@pytest.mark.parametrize("form", [True, "window"])
@pytest.mark.parametrize("window", [2, 3, 5, (1, 9), (9, 1), (17, 17), (2, 150)], ids=str)
def test_maxima_of_windows_side_by_side(window, form, isa, dtype, rng):
    """Two columns are spread, wider windows placed; codes of 8 and of 16 bits, rows and columns left over."""
    rows, columns = window if isinstance(window, tuple) else (window, window)
    x = normal(rng, (2, 3, 2 * rows + rows // 2, 3 * columns + columns // 2), dtype)
    y, indices = max_pool2d(x, window, return_indices=form)
    g = normal(rng, y.shape, dtype)
    want = np.zeros(x.shape, dtype)
    for n, c, p, q in np.ndindex(y.shape):
        at = np.s_[n, c, p * rows : (p + 1) * rows, q * columns : (q + 1) * columns]
        want[at][np.unravel_index(np.argmax(x[at]), (rows, columns))] = g[n, c, p, q]
    np.testing.assert_array_equal(max_pool2d_backward(g, x, window, indices=indices), want)
