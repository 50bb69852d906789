"""The oracle against what it shares no code with: SciPy, worked examples, adjoints, differences."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal, special

from fastconv import reference
from fastconv.testing import adjoint_check, gradcheck

NAN, INF = np.nan, np.inf


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def spaced(*shape, seed=0):
    """Distinct values at least 0.1 apart, so that no maximum changes hands under a small step."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return (order.reshape(shape) - order.size // 2) * 0.1 + 0.05


@st.composite
def geometries(draw, max_size=6):
    """Arguments of a small convolution, 1 to 3 axes, every option in play."""
    axes = draw(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, dilation = per_axis(1, 3), per_axis(1, 2)
    padding = tuple(zip(per_axis(0, 2), per_axis(0, 2), strict=True))
    size = tuple(
        max(s, d * (k - 1) + 1 - sum(p))
        for s, d, k, p in zip(per_axis(1, max_size), dilation, kernel, padding, strict=True)
    )
    groups = draw(st.integers(1, 2))
    channels, filters = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return {
        "input_shape": (draw(st.integers(0, 2)), groups * channels, *size),
        "weight_shape": (groups * filters, channels, *kernel),
        "options": {
            "stride": per_axis(1, 3),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        },
    }


# Shapes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((28, 5, 2, 2, 2), 14),
        ((32, 5), 28),
        ((7, 3, 2), 3),
        ((224, 7, 2, 3, 3), 112),
        ((7, 3, 1, 2, 2, 2), 7),
        ((5, 2, 2, 0, 0, 1, False), 2),
        ((5, 2, 2, 0, 0, 1, True), 3),
        # The third window would start at 4 >= 3 + 1, in the right padding: dropped.
        ((3, 2, 2, 1, 1, 1, True), 2),
        ((2, 3, 2, 0, 0, 1, True), 1),
        ((2, 3), 0),
        ((0, 1), 0),
        ((0, 3, 1, 1, 1), 0),
    ],
)
def test_output_size(arguments, expected):
    assert reference.output_size(*arguments) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_output_size_counts_windows(kernel, dilation, stride):
    for size, before, after in itertools.product(range(9), range(3), range(3)):
        extent = dilation * (kernel - 1) + 1
        whole = [s for s in range(0, size + before + after, stride) if s + extent <= size + before + after]
        got = reference.output_size(size, kernel, stride, before, after, dilation)
        assert got == len(whole)


# Convolution against SciPy and NumPy


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 1)])
def test_conv_is_correlate2d(kernel):
    image, taps = normal(9, 11), normal(*kernel, seed=1)
    expected = signal.correlate2d(image, taps, mode="valid")
    got = reference.conv(image[None, None], taps[None, None])
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-13)
    full = [(k - 1, k - 1) for k in kernel]
    got = reference.conv(image[None, None], taps[None, None], padding=full)
    np.testing.assert_allclose(got[0, 0], signal.correlate2d(image, taps, mode="full"), atol=1e-13)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_is_ndimage_correlate(axes):
    image, taps = normal(*(7, 6, 5)[:axes]), normal(*(3, 5, 3)[:axes], seed=1)
    expected = ndimage.correlate(image, taps, mode="constant")
    got = reference.conv(image[None, None], taps[None, None], padding=[k // 2 for k in taps.shape])
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-13)


@given(geometries())
def test_conv_sums_correlations_over_channels(problem):
    options = problem["options"]
    x, w = normal(*problem["input_shape"]), normal(*problem["weight_shape"], seed=1)
    bias = normal(w.shape[0], seed=2)
    got = reference.conv(x, w, bias, **options)
    padded = np.pad(x, [(0, 0), (0, 0), *options["padding"]])
    # Dilation puts zeros between the taps; stride keeps every s-th value of the dense result.
    spread = np.zeros(
        [
            *w.shape[:2],
            *(d * (k - 1) + 1 for d, k in zip(options["dilation"], w.shape[2:], strict=True)),
        ]
    )
    spread[:, :, *(slice(None, None, d) for d in options["dilation"])] = w
    kept = tuple(slice(None, None, s) for s in options["stride"])
    filters_per_group = w.shape[0] // options["groups"]
    for n, k in np.ndindex(*got.shape[:2]):
        first = k // filters_per_group * w.shape[1]
        planes = padded[n, first : first + w.shape[1]]
        dense = sum(
            signal.correlate(plane, taps, mode="valid", method="direct")
            for plane, taps in zip(planes, spread[k], strict=True)
        )
        np.testing.assert_allclose(got[n, k], dense[kept] + bias[k], atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_is_a_product_of_windows(stride):
    x, w = normal(2, 3, 10, 8), normal(4, 3, 3, 2, seed=1)
    windows = sliding_window_view(x, (3, 2), axis=(2, 3))[:, :, ::stride, ::stride]
    expected = np.einsum("ncijab,kcab->nkij", windows, w)
    np.testing.assert_allclose(reference.conv(x, w, stride=stride), expected, atol=1e-12)


def test_groups_are_separate_convolutions():
    x, w, b = normal(2, 6, 7, 5), normal(9, 2, 3, 3, seed=1), normal(9, seed=2)
    parts = [
        reference.conv(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3], b[3 * g : 3 * g + 3]) for g in range(3)
    ]
    np.testing.assert_allclose(reference.conv(x, w, b, groups=3), np.concatenate(parts, axis=1))


def test_depthwise_is_one_filter_per_channel():
    x, w = normal(1, 4, 6, 6), normal(4, 1, 3, 3, seed=1)
    expected = [ndimage.correlate(x[0, c], w[c, 0], mode="constant") for c in range(4)]
    np.testing.assert_allclose(reference.conv(x, w, padding=1, groups=4)[0], expected, atol=1e-13)


# Worked examples


def test_lecture_layer_shape():
    """28 x 28 x 3, 20 kernels of 5 x 5, stride 2, padding 2: 14 x 14 x 20."""
    got = reference.conv(np.ones((1, 3, 28, 28)), np.ones((20, 3, 5, 5)), stride=2, padding=2)
    assert got.shape == (1, 20, 14, 14)
    # All ones: each output counts the taps inside the image, 3 x 3 x 3 of 75 in the first corner.
    assert got[0, 0, 0, 0] == 27
    assert got[0, 0, 1, 1] == 75
    assert got[0, 0, -1, -1] == 48


def test_hand_worked_convolution():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[None, None]
    w = np.array([[1, 0], [0, -1]])[None, None]
    np.testing.assert_array_equal(reference.conv(x, w)[0, 0], [[-4, -4], [-4, -4]])
    np.testing.assert_array_equal(reference.conv(x, w, [5])[0, 0], [[1, 1], [1, 1]])
    np.testing.assert_array_equal(reference.conv(x, w, [3], activation="relu")[0, 0], np.zeros((2, 2)))
    np.testing.assert_array_equal(
        reference.conv(x, w, stride=2, padding=[(1, 0), (0, 1)])[0, 0], [[-2, 0], [-4, 6]]
    )


def test_hand_worked_gradients():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[None, None]
    w = np.array([[1, 2], [3, 4]])[None, None]
    g = np.array([[1, 0], [0, 2]])[None, None]
    dx = reference.conv_input_grad(x.shape, w, g)
    np.testing.assert_array_equal(dx[0, 0], [[1, 2, 0], [3, 6, 4], [0, 6, 8]])
    dw = reference.conv_weight_grad(x, w.shape, g)
    np.testing.assert_array_equal(dw[0, 0], [[11, 14], [20, 23]])
    np.testing.assert_array_equal(reference.conv_bias_grad(g), [3])


def test_hand_worked_transposed_convolution():
    """2 x 2 to 4 x 4: every input element stamps the kernel, two apart, and stamps add up."""
    x = np.array([[1, 2], [3, 4]])[None, None]
    got = reference.conv_transpose(x, np.ones((1, 1, 2, 2)), stride=2)
    np.testing.assert_array_equal(got[0, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    got = reference.conv_transpose(x, np.ones((1, 1, 3, 3)), stride=2, padding=[(0, 1), (0, 1)])
    np.testing.assert_array_equal(got[0, 0], [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]])
    got = reference.conv_transpose(x, np.ones((1, 1, 3, 3)))
    np.testing.assert_array_equal(got[0, 0], [[1, 3, 3, 2], [4, 10, 10, 6], [4, 10, 10, 6], [3, 7, 7, 4]])


def test_output_padding_and_dilation_of_transposed_convolution():
    x, w = np.array([[[1, 2]]]), np.array([[[1, 10]]])
    options = {"stride": 3, "dilation": 2}
    got = reference.conv_transpose(x, w, [0.5], **options)
    np.testing.assert_array_equal(got[0, 0], np.array([1, 0, 10, 2, 0, 20]) + 0.5)
    got = reference.conv_transpose(x, w, **options, output_padding=2, padding=[(1, 0)])
    np.testing.assert_array_equal(got[0, 0], [0, 10, 2, 0, 20, 0, 0])


# Adjoints and finite differences of the convolutions


@given(geometries())
def test_conv_gradients_are_adjoints(problem):
    options, x_shape, w_shape = problem["options"], problem["input_shape"], problem["weight_shape"]
    x, w = normal(*x_shape), normal(*w_shape, seed=1)
    y_shape = reference.conv(x, w, **options).shape
    adjoint_check(
        lambda x: reference.conv(x, w, **options),
        lambda g: reference.conv_input_grad(x_shape, w, g, **options),
        x_shape,
        y_shape,
    )
    adjoint_check(
        lambda w: reference.conv(x, w, **options),
        lambda g: reference.conv_weight_grad(x, w_shape, g, **options),
        w_shape,
        y_shape,
    )


@given(geometries(), st.data())
def test_conv_transpose_is_the_adjoint_of_conv(problem, data):
    options, x_shape, w_shape = problem["options"], problem["input_shape"], problem["weight_shape"]
    w = normal(*w_shape)
    y = normal(*reference.conv(np.zeros(x_shape), w, **options).shape)
    # The rows of x that no window reaches are what output_padding restores.
    unreached = [
        size + sum(pad) - (s * (o - 1) + d * (k - 1) + 1)
        for size, pad, s, o, d, k in zip(
            x_shape[2:],
            options["padding"],
            options["stride"],
            y.shape[2:],
            options["dilation"],
            w_shape[2:],
            strict=True,
        )
    ]
    got = reference.conv_transpose(y, w, **options, output_padding=unreached)
    np.testing.assert_allclose(got, reference.conv_input_grad(x_shape, w, y, **options), atol=1e-12)
    options = {**options, "padding": 0}
    extra = [data.draw(st.integers(0, 3)) for _ in unreached]

    def forward(y, w):
        return reference.conv_transpose(y, w, **options, output_padding=extra)

    up_shape = forward(y, w).shape
    adjoint_check(
        lambda y: forward(y, w),
        lambda g: reference.conv_transpose_input_grad(y.shape, w, g, **options),
        y.shape,
        up_shape,
    )
    adjoint_check(
        lambda w: forward(y, w),
        lambda g: reference.conv_transpose_weight_grad(y, w_shape, g, **options),
        w_shape,
        up_shape,
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_gradients_are_difference_quotients(axes):
    options = {"stride": 2, "padding": [(1, 2)] * axes, "dilation": 2, "groups": 2}
    x, w, b = normal(2, 4, *[4] * axes), normal(2, 2, *[2] * axes, seed=1), normal(2, seed=2)

    def gradients(g, x, w, b):
        return (
            reference.conv_input_grad(x.shape, w, g, **options),
            reference.conv_weight_grad(x, w.shape, g, **options),
            reference.conv_bias_grad(g),
        )

    gradcheck(lambda *a: reference.conv(*a, **options), (x, w, b), gradients, max_elements=40)


def test_conv_transpose_gradients_are_difference_quotients():
    options = {"stride": (2, 3), "padding": [(0, 1), (1, 0)], "dilation": (1, 2), "groups": 2}

    def function(x, w, b):
        return reference.conv_transpose(x, w, b, **options, output_padding=1)

    def gradients(g, x, w, b):
        return (
            reference.conv_transpose_input_grad(x.shape, w, g, **options),
            reference.conv_transpose_weight_grad(x, w.shape, g, **options),
            reference.conv_bias_grad(g),
        )

    inputs = normal(2, 4, 3, 2), normal(4, 1, 2, 3, seed=1), normal(2, seed=2)
    gradcheck(function, inputs, gradients, max_elements=40)


# Pooling


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pools_are_reductions_of_windows(stride):
    x = normal(2, 3, 10, 9)
    windows = sliding_window_view(x, (3, 2), axis=(2, 3))[:, :, ::stride, ::stride]
    output, indices = reference.max_pool(x, (3, 2), stride)
    np.testing.assert_array_equal(output, windows.max(axis=(-2, -1)))
    np.testing.assert_array_equal(
        np.take_along_axis(x.reshape(2, 3, -1), indices.reshape(2, 3, -1), axis=-1),
        output.reshape(2, 3, -1),
    )
    np.testing.assert_allclose(reference.avg_pool(x, (3, 2), stride), windows.mean(axis=(-2, -1)))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pools_are_ndimage_filters(axes):
    x = normal(*(8, 7, 6)[:axes])
    output, _ = reference.max_pool(x[None, None], 3, stride=1, padding=1)
    expected = ndimage.maximum_filter(x, 3, mode="constant", cval=-INF)
    np.testing.assert_array_equal(output[0, 0], expected)
    means = reference.avg_pool(x[None, None], 3, stride=1, padding=1)
    np.testing.assert_allclose(means[0, 0], ndimage.uniform_filter(x, 3, mode="constant"))
    spread = np.zeros([5] * axes, dtype=bool)
    spread[(slice(None, None, 2),) * axes] = True
    output, _ = reference.max_pool(x[None, None], 3, stride=1, padding=2, dilation=2)
    expected = ndimage.maximum_filter(x, footprint=spread, mode="constant", cval=-INF)
    np.testing.assert_array_equal(output[0, 0], expected)


def test_hand_worked_pools():
    x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [6, 6, 7, 8], [9, 2, 8, 8]])[None, None]
    output, indices = reference.max_pool(x, 2)
    np.testing.assert_array_equal(output[0, 0], [[4, 5], [9, 8]])
    np.testing.assert_array_equal(indices[0, 0], [[4, 7], [12, 11]])
    grad = reference.max_pool_backward([[[[1, 2], [3, 4]]]], indices, x.shape)
    np.testing.assert_array_equal(grad[0, 0], [[0, 0, 0, 0], [1, 0, 0, 2], [0, 0, 0, 4], [3, 0, 0, 0]])
    np.testing.assert_array_equal(reference.avg_pool(x, 2)[0, 0], [[2.5, 2], [5.75, 7.75]])


@pytest.mark.parametrize(
    ("row", "output", "indices"),
    [
        ([1, NAN, 3, NAN, 2], [NAN, NAN, NAN], [1, 1, 3]),
        ([NAN, INF, -INF, -INF, -INF], [NAN, INF, -INF], [0, 1, 2]),
        ([-INF] * 5, [-INF] * 3, [0, 1, 2]),
        ([2, 2, 2, 3, 3], [2, 3, 3], [0, 3, 3]),
        ([0.0, -0.0, 0.0, -1, -1], [0, 0, 0], [0, 1, 2]),
    ],
)
def test_max_pool_of_nan_infinities_and_ties(row, output, indices):
    got = reference.max_pool(np.array(row)[None, None], 3, stride=1)
    np.testing.assert_array_equal(got[0][0, 0], output)
    np.testing.assert_array_equal(got[1][0, 0], indices)


def test_max_pool_padding_never_wins():
    output, indices = reference.max_pool(np.full((1, 1, 3, 3), -INF), 3, stride=2, padding=1)
    assert (output == -INF).all()
    np.testing.assert_array_equal(indices[0, 0], [[0, 1], [3, 4]])
    output, _ = reference.max_pool(np.full((1, 1, 2), -5.0), 2, stride=1, padding=[(1, 1)])
    np.testing.assert_array_equal(output[0, 0], [-5, -5, -5])


def test_max_pool_refuses_a_window_without_input():
    with pytest.raises(ValueError, match="no input element"):
        reference.max_pool(np.ones((1, 1, 2)), 2, stride=1, padding=[(3, 0)])


def test_overlapping_max_pool_gradients_add_up():
    _, indices = reference.max_pool(np.array([[[0.0, 9.0, 0.0]]]), 2, stride=1)
    np.testing.assert_array_equal(
        reference.max_pool_backward([[[1.0, 10.0]]], indices, (1, 1, 3)), [[[0, 11, 0]]]
    )


@pytest.mark.parametrize(
    ("options", "divisors"),
    [
        ({"kernel_size": 2}, [2, 2]),
        ({"kernel_size": 2, "ceil_mode": True}, [2, 2, 1]),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, [3, 3, 3]),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, [2, 3, 2]),
        # The last window covers element 4 and a padding cell, then hangs over by 2.
        ({"kernel_size": 4, "stride": 3, "padding": [(2, 1)], "ceil_mode": True}, [4, 4, 2]),
        (
            {
                "kernel_size": 4,
                "stride": 3,
                "padding": [(2, 1)],
                "ceil_mode": True,
                "count_include_pad": False,
            },
            [2, 4, 1],
        ),
        ({"kernel_size": 2, "ceil_mode": True, "divisor_override": 5}, [5, 5, 5]),
        ({"kernel_size": 2, "dilation": 3, "stride": 1}, [2, 2]),
        ({"kernel_size": 2, "dilation": 3, "stride": 2, "ceil_mode": True}, [2, 1]),
    ],
)
def test_avg_pool_divisors(options, divisors):
    sums = reference.avg_pool(np.ones((1, 1, 5)), **{**options, "divisor_override": 1})
    got = reference.avg_pool(np.ones((1, 1, 5)), **options)
    np.testing.assert_allclose(sums[0, 0] / got[0, 0], divisors)


@pytest.mark.parametrize("include", [False, True])
def test_avg_pool_window_without_input_is_zero(include):
    got = reference.avg_pool(np.ones((1, 1, 2)), 2, 1, [(3, 0)], count_include_pad=include)
    assert got[0, 0, 0] == 0
    assert np.isfinite(got).all()


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2, "padding": 1},
]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", POOLS)
def test_pool_gradients(options, axes):
    x = spaced(2, 2, *(5, 4, 3)[:axes])

    def max_gradient(g, x):
        return reference.max_pool_backward(g, reference.max_pool(x, **options)[1], x.shape)

    gradcheck(lambda x: reference.max_pool(x, **options)[0], x, max_gradient, max_elements=40)
    for more in ({}, {"count_include_pad": False}, {"divisor_override": 3}):
        every = {**options, **more}
        adjoint_check(
            lambda x, every=every: reference.avg_pool(x, **every),
            lambda g, every=every: reference.avg_pool_backward(g, x.shape, **every),
            x.shape,
            reference.avg_pool(x, **every).shape,
        )


# Dense layers, activations, losses


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_linear(batch):
    x, w, b = normal(*batch, 4), normal(5, 4, seed=1), normal(5, seed=2)
    np.testing.assert_allclose(reference.linear(x, w, b), x @ w.T + b)
    np.testing.assert_allclose(reference.linear(x, w), x @ w.T)
    gradcheck(reference.linear, (x, w, b), lambda g, x, w, b: reference.linear_backward(g, x, w))


def test_relu():
    x = np.array([-INF, -1.0, 0.0, 2.0, INF, NAN])
    np.testing.assert_array_equal(reference.relu(x), [0, 0, 0, 2, INF, NAN])
    np.testing.assert_array_equal(reference.relu_backward(np.full(6, 3), x), [0, 0, 0, 3, 3, 3])
    gradcheck(reference.relu, spaced(4, 5), reference.relu_backward)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis):
    x = normal(3, 4, 5)
    output = reference.softmax(x, axis)
    np.testing.assert_allclose(output, special.softmax(x, axis=axis))
    np.testing.assert_allclose(reference.softmax(1e4 + x, axis), output, rtol=1e-10)
    gradcheck(
        lambda x: reference.softmax(x, axis),
        x,
        lambda g, x: reference.softmax_backward(g, reference.softmax(x, axis), axis),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("spatial", [(), (2, 3)])
def test_cross_entropy(spatial, reduction):
    logits = normal(3, 4, *spatial)
    target = np.random.default_rng(1).integers(0, 4, (3, *spatial))
    picked = np.take_along_axis(special.log_softmax(logits, axis=1), target[:, None], axis=1)[:, 0]
    expected = {"mean": -picked.mean(), "sum": -picked.sum(), "none": -picked}[reduction]
    np.testing.assert_allclose(reference.cross_entropy(logits, target, reduction), expected)
    gradcheck(
        lambda x, t: reference.cross_entropy(x, t, reduction),
        (logits, target),
        lambda g, x, t: (reference.cross_entropy_backward(x, t, reduction, g), None),
    )


def test_cross_entropy_of_extremes():
    logits = np.array([[1e4, 0.0], [0.0, -INF]])
    np.testing.assert_array_equal(reference.cross_entropy(logits, [1, 0], "none"), [1e4, 0])
    assert np.isnan(reference.cross_entropy(np.ones((0, 3)), np.zeros(0, dtype=int)))
    grad = reference.cross_entropy_backward(np.ones((0, 3)), np.zeros(0, dtype=int))
    assert grad.shape == (0, 3)


# Dtypes, empty arrays, bad shapes


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64])
def test_everything_is_float64_and_inputs_are_left_alone(dtype):
    x = np.arange(-12, 12).reshape(1, 2, 3, 4).astype(dtype)
    w = np.ones((2, 2, 2, 2), dtype)
    before = x.copy()
    g = np.ones((1, 2, 2, 3), dtype)
    results = [
        reference.conv(x, w, np.ones(2, dtype), activation="relu"),
        reference.conv_input_grad(x.shape, w, g),
        reference.conv_weight_grad(x, w.shape, g),
        reference.conv_bias_grad(g),
        reference.conv_transpose(x, w),
        *reference.max_pool(x, 2)[:1],
        reference.avg_pool(x, 2),
        reference.linear(x, np.ones((3, 4), dtype)),
        reference.relu(x),
        reference.softmax(x),
    ]
    assert {result.dtype for result in results} == {np.dtype(np.float64)}
    assert reference.max_pool(x, 2)[1].dtype == np.int64
    np.testing.assert_array_equal(x, before)


def test_infinities_and_nan_propagate_without_warnings():
    x = np.array([[[INF, -INF, 1.0, NAN, 2.0, 3.0]]])
    w = np.ones((1, 1, 2))
    expected = [[[NAN, -INF, NAN, NAN, 5]]]
    np.testing.assert_array_equal(reference.conv(x, w), expected)
    np.testing.assert_array_equal(reference.avg_pool(x, 2, 1, divisor_override=1), expected)
    transposed = [[[INF, NAN, -INF, NAN, NAN, 5, 3]]]
    np.testing.assert_array_equal(reference.conv_transpose(x, w), transposed)
    np.testing.assert_array_equal(reference.conv_input_grad((1, 1, 7), w, x), transposed)
    np.testing.assert_array_equal(reference.avg_pool_backward(2 * x, (1, 1, 7), 2, 1), transposed)
    assert np.isnan(reference.conv_weight_grad(x, (1, 1, 6), [[[0.0]]])[0, 0, 0])
    assert np.isnan(reference.conv_bias_grad(x))
    # Padding is zeros that are multiplied like any other element: 0 * inf is NaN.
    np.testing.assert_array_equal(reference.conv([[[1.0]]], [[[INF, 1.0]]], padding=[(1, 0)]), [[[NAN]]])


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 2, 0, 4), (2, 0, 4, 4)])
def test_empty_arrays_have_empty_results_and_zero_gradients(shape):
    x, w = np.zeros(shape), np.ones((3, shape[1], 2, 2))
    y = reference.conv(x, w)
    assert y.shape == (shape[0], 3, max(shape[2] - 1, 0), 3)
    assert not y.any()
    np.testing.assert_array_equal(reference.conv_weight_grad(x, w.shape, y), np.zeros(w.shape))
    np.testing.assert_array_equal(reference.conv_input_grad(x.shape, w, y), x)
    np.testing.assert_array_equal(reference.conv_bias_grad(y), np.zeros(3))
    output, indices = reference.max_pool(x, 2)
    assert output.shape == (*shape[:2], shape[2] // 2, 2)
    np.testing.assert_array_equal(reference.max_pool_backward(output, indices, shape), x)
    assert reference.avg_pool(x, 2).shape == output.shape
    np.testing.assert_array_equal(reference.avg_pool_backward(output, shape, 2), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.conv(np.ones((1, 3, 4)), np.ones((2, 1, 3))), "channels"),
        (lambda: reference.conv(np.ones((1, 2, 4)), np.ones((3, 1, 3)), groups=2), "groups"),
        (lambda: reference.conv(np.ones((1, 2, 4)), np.ones((3, 2, 3)), np.ones(1)), "bias"),
        (lambda: reference.conv(np.ones((1, 1, 4)), np.ones((1, 1, 3)), padding=(1, 2)), "padding"),
        (lambda: reference.conv(np.ones((1, 1, 4)), np.ones((1, 1, 3)), stride=(1, 2)), "expected"),
        (lambda: reference.conv(np.ones((1, 1, 4)), np.ones((1, 1, 3)), activation="x"), "activ"),
        (
            lambda: reference.conv_input_grad((1, 1, 4), np.ones((1, 1, 3)), np.ones((1, 1, 1))),
            "grad_output",
        ),
        (lambda: reference.conv_transpose(np.ones((1, 1, 4)), np.ones((2, 1, 3))), "channels"),
    ],
)
def test_mistakes_are_not_broadcast_away(call, message):
    with pytest.raises(ValueError, match=message):
        call()
