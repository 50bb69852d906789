"""linear, relu, softmax, cross_entropy and their gradients, on every engine, against the oracle."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastconv import reference
from fastconv.dense import (
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
)
from fastconv.testing import gradcheck
from fastconv.threads import threads

# Around vector lengths, register tiles, lanes (32), blocks of rows (128) and depth blocks (256).
SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 127, 129, 257]
DTYPES = st.sampled_from([np.float32, np.float64])
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-40]


def draw(shape, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_close(got, expected, dtype, terms=1, scale=1.0):
    """Within a few roundings of each of `terms` summands of size `scale`."""
    assert got.dtype == dtype
    limit = 8 * np.finfo(dtype).eps * np.sqrt(max(terms, 1)) * scale
    np.testing.assert_allclose(got, expected, rtol=limit, atol=limit)


def odd_views(array):
    """The same values in other memory: strided, reversed, read-only, swapped, misaligned."""
    strided = np.repeat(array, 2, axis=-1)[..., ::2]
    reversed_ = array[..., ::-1].copy()[..., ::-1]
    read_only = array.copy()
    read_only.flags.writeable = False
    misaligned = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype)
    return {
        "strided": strided,
        "reversed": reversed_,
        "fortran": np.asfortranarray(array),
        "read-only": read_only,
        "byte-swapped": array.astype(array.dtype.newbyteorder()),
        "misaligned": misaligned.reshape(array.shape),
    }


# linear


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 5), (33, 64), (257, 10)])
def test_linear(samples, size, dtype):
    depth, features = size
    x, w, b = (
        draw((samples, depth), dtype),
        draw((features, depth), dtype, 1),
        draw(features, dtype, 2),
    )
    assert_close(linear(x, w, b), reference.linear(x, w, b), dtype, depth)
    g = draw((samples, features), dtype, 3)
    got, expected = linear_backward(g, x, w), reference.linear_backward(g, x, w)
    for name, terms in {"input": features, "weight": samples, "bias": samples}.items():
        position = got._fields.index(name)
        assert_close(got[position], expected[position], dtype, terms, scale=2)


@given(
    lead=st.lists(st.integers(0, 5), max_size=3),
    depth=st.integers(0, 70),
    features=st.integers(0, 70),
    bias=st.booleans(),
    activation=st.sampled_from([None, "relu"]),
    dtype=DTYPES,
)
def test_linear_of_any_shape(lead, depth, features, bias, activation, dtype):
    x, w = draw((*lead, depth), dtype), draw((features, depth), dtype, 1)
    b = draw(features, dtype, 2) if bias else None
    expected = reference.linear(x, w, b)
    if activation:
        expected = reference.relu(expected)
    got = linear(x, w, b, activation=activation)
    assert got.shape == expected.shape
    assert_close(got, expected, dtype, depth)
    g = draw(expected.shape, dtype, 3)
    grads, wanted = linear_backward(g, x, w, bias=bias), reference.linear_backward(g, x, w)
    assert_close(grads.input, wanted[0], dtype, features)
    assert_close(grads.weight, wanted[1], dtype, g.size // max(features, 1))
    if bias:
        assert_close(grads.bias, wanted[2], dtype, g.size // max(features, 1))
    else:
        assert grads.bias is None


def test_one_sample_does_not_depend_on_its_batch(isa, dtype):
    x, w, b = draw((37, 300), dtype), draw((50, 300), dtype, 1), draw(50, dtype, 2)
    whole = linear(x, w, b)
    for count in (1, 5, 36):
        assert_array_equal(linear(x[:count], w, b), whole[:count])


def test_linear_out(dtype):
    x, w = draw((6, 6), dtype), draw((6, 6), dtype, 1)
    expected = linear(x, w)
    for out in (np.full((6, 6), np.nan, dtype), np.full((12, 12), np.nan, dtype)[::2, ::-2]):
        assert linear(x, w, out=out) is out
        assert_array_equal(out, expected)
    for target in (0, 1):
        operands = [x.copy(), w.copy()]
        assert_array_equal(linear(*operands, out=operands[target]), expected)
    memory = np.concatenate([x.ravel(), np.zeros(3, dtype)])
    shifted = memory[3:].reshape(6, 6)
    assert_array_equal(linear(memory[:36].reshape(6, 6), w, out=shifted), expected)


# Activations and losses


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("count", [*SIZES, 4095, 4096, 4097, 9001])
def test_relu(count, dtype):
    x, g = draw(count, dtype), draw(count, dtype, 1)
    x[: len(SPECIAL)] = SPECIAL[:count]
    g[1:9] = SPECIAL[: max(min(count - 1, 8), 0)]
    assert_array_equal(relu(x), reference.relu(x))
    assert_array_equal(relu_backward(g, x), reference.relu_backward(g, x))


def test_relu_clears_negative_denormals(isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.full(40, -tiny)
    assert_array_equal(relu(x), np.zeros(40, dtype))
    assert_array_equal(relu_backward(np.ones(40, dtype), x), np.zeros(40, dtype))
    assert_array_equal(relu(-x), -x)


def test_relu_in_place(dtype):
    x = draw((5, 7), dtype)
    expected = relu(x)
    whole = x.copy()
    assert relu(whole, out=whole) is whole
    assert_array_equal(whole, expected)
    memory = np.concatenate([x.ravel(), np.zeros(1, dtype)])
    assert_array_equal(relu(memory[:-1], out=memory[1:]), expected.ravel())
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    assert_array_equal(relu(strided, out=strided), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("inner", [1, 2, 31, 32, 33, 70])
def test_softmax(count, inner, dtype):
    x = 5 * draw((3, count, inner), dtype)
    s = softmax(x, 1)
    assert_close(s, reference.softmax(x, 1), dtype, count)
    g = draw(x.shape, dtype, 1)
    assert_close(softmax_backward(g, s, 1), reference.softmax_backward(g, s, 1), dtype, count)


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    dtype=DTYPES,
)
def test_softmax_of_any_shape_and_axis(shape, data, dtype):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = draw(shape, dtype)
    assert_close(softmax(x, axis), reference.softmax(x, axis), dtype, 9)
    assert_close(softmax(np.asfortranarray(x), axis), reference.softmax(x, axis), dtype, 9)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("count", [1, 5, 32, 40])
@pytest.mark.parametrize("inner", [1, 3])
def test_softmax_of_special_values(count, inner, dtype):
    for value in SPECIAL:
        for place in {0, count // 2, count - 1}:
            x = draw((2, count, inner), dtype)
            x[0, place, 0] = value
            assert_close(softmax(x, 1), reference.softmax(x, 1), dtype, count)
    x = np.full((2, count, inner), -np.inf, dtype)
    assert_array_equal(softmax(x, 1), reference.softmax(x, 1))
    largest = np.finfo(dtype).max
    x = np.full((2, count, inner), largest, dtype)
    assert_close(softmax(x, 1), np.full(x.shape, 1 / count), dtype)


def test_exponential_is_within_two_ulp(isa, dtype):
    lowest = {"float32": -87.3, "float64": -708.3}[dtype.name]
    x = np.zeros((2, 100_000), dtype)
    x[1] = np.concatenate([np.linspace(lowest, 0, 50_000), np.linspace(-1, 0, 50_000)])
    s = softmax(x, 0).astype(np.longdouble)
    exact = np.exp(x[1].astype(np.longdouble))
    error = abs(s[1] / s[0] - exact) / exact  # with the rounding of one product
    assert error.max() < 1.5 * np.finfo(dtype).eps


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(7, 10), (1, 1), (0, 4), (65, 33), (3, 5, 2, 17), (2, 40, 33)])
def test_cross_entropy(shape, reduction, dtype):
    x = 3 * draw(shape, dtype)
    labels = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    expected = reference.cross_entropy(x, labels, reduction) if x.size or reduction != "none" else []
    got = cross_entropy(x, labels, reduction)
    assert_close(got, np.reshape(expected, got.shape), dtype, shape[1], scale=4)
    g = draw(labels.shape, dtype, 2) if reduction == "none" else 0.5
    grad = cross_entropy_backward(x, labels, reduction, g)
    assert_close(grad, reference.cross_entropy_backward(x, labels, reduction, g), dtype, shape[1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_cross_entropy_of_special_values(value, dtype):
    labels = np.array([0, 2, 1])
    x = draw((3, 4), dtype)
    x[1, 2] = x[2, 3] = value
    losses = cross_entropy(x, labels, "none")
    assert_close(losses, reference.cross_entropy(x, labels, "none"), dtype, 4)
    grad = cross_entropy_backward(x, labels, "sum")
    assert_close(grad, reference.cross_entropy_backward(x, labels, "sum"), dtype, 4)


# Promises that hold for all


def every_result(dtype):
    """Every operation on problems large enough for several threads, by name."""
    x, w, b = draw((300, 256), dtype), draw((200, 256), dtype, 1), draw(200, dtype, 2)
    g, labels = draw((300, 200), dtype, 3), np.arange(300) % 256
    big = draw((40, 50, 70), dtype, 4)
    grads = linear_backward(g, x, w)
    return {
        "linear": linear(x, w, b, activation="relu"),
        "linear input": grads.input,
        "linear weight": grads.weight,
        "linear bias": grads.bias,
        "relu": relu(big),
        "relu_backward": relu_backward(big, big[::-1]),
        "softmax": softmax(big),
        "softmax axis 1": softmax(big, 1),
        "softmax_backward": softmax_backward(big, softmax(big, 1), 1),
        "cross_entropy": cross_entropy(x, labels),
        "cross_entropy_backward": cross_entropy_backward(x, labels),
    }


def test_the_same_bits_for_any_number_of_threads(isa, dtype):
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(every_result(dtype))
    for name, value in results[0].items():
        for other in results[1:]:
            assert np.asarray(value).tobytes() == np.asarray(other[name]).tobytes(), name


@pytest.mark.parametrize(
    "kind", ["strided", "reversed", "fortran", "read-only", "byte-swapped", "misaligned"]
)
def test_odd_arrays(kind, dtype):
    x, w, g = draw((5, 6), dtype), draw((4, 6), dtype, 1), draw((5, 4), dtype, 2)
    labels = np.array([0, 5, 1, 2, 3])
    ox, ow, og = (odd_views(a)[kind] for a in (x, w, g))
    odd_labels = odd_views(labels)[kind]
    before = [a.tobytes() for a in (ox, ow, og, odd_labels)]
    assert_array_equal(linear(ox, ow), linear(x, w))
    for got, expected in zip(linear_backward(og, ox, ow), linear_backward(g, x, w), strict=True):
        assert_array_equal(got, expected)
    assert_array_equal(relu(ox), relu(x))
    assert_array_equal(relu_backward(ox, ox), relu_backward(x, x))
    assert_array_equal(softmax(ox, 0), softmax(x, 0))
    assert_array_equal(softmax_backward(ox, softmax(ox)), softmax_backward(x, softmax(x)))
    assert cross_entropy(ox, odd_labels) == cross_entropy(x, labels)
    grad = cross_entropy_backward(ox, odd_labels)
    assert_array_equal(grad, cross_entropy_backward(x, labels))
    assert grad.dtype == dtype
    assert [a.tobytes() for a in (ox, ow, og, odd_labels)] == before


@pytest.mark.parametrize("label_type", [np.int8, np.uint8, np.int32, np.uint64, np.intp])
def test_labels_of_any_integer_type(label_type):
    x, labels = draw((4, 3), np.float64), np.array([0, 1, 2, 1])
    assert cross_entropy(x, labels.astype(label_type)) == cross_entropy(x, labels)


@pytest.mark.usefixtures("isa")
def test_gradcheck():
    x, w, b = draw((2, 3, 5), np.float64), draw((4, 5), np.float64, 1), draw(4, np.float64, 2)
    assert gradcheck(linear, (x, w, b), lambda g, x, w, b: linear_backward(g, x, w))
    assert gradcheck(relu, x, relu_backward)
    for axis in (0, 1, -1):
        assert gradcheck(
            lambda x, axis=axis: softmax(x, axis),
            x,
            lambda g, x, axis=axis: softmax_backward(g, softmax(x, axis), axis),
        )
    labels = np.array([[0, 1, 2, 2, 0], [1, 1, 0, 2, 0]])
    for reduction in ("mean", "sum", "none"):
        assert gradcheck(
            lambda x, reduction=reduction: cross_entropy(x, labels, reduction),
            x,
            lambda g, x, reduction=reduction: cross_entropy_backward(x, labels, reduction, g),
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes():
    expected = every_result(np.float32)
    child = os.fork()
    if child == 0:
        got = every_result(np.float32)
        same = all(np.array_equal(got[name], expected[name]) for name in expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Bad arguments

X, W, G = draw((5, 6), np.float64), draw((4, 6), np.float64, 1), draw((5, 4), np.float64, 2)
LABELS = np.array([0, 1, 2, 3, 4])
F32 = np.float32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear([[1.0]], W), TypeError, "input"),
        (lambda: linear(X.astype(int), W), TypeError, "input.*int64"),
        (lambda: linear(X.astype(np.float16), W), TypeError, "input.*float16"),
        (lambda: linear(X, W.astype(F32)), TypeError, "weight.*float64.*float32"),
        (lambda: linear(X, W, np.zeros(4, F32)), TypeError, "bias.*float32"),
        (lambda: linear(np.array(1.0), W), ValueError, "input"),
        (lambda: linear(X, W[0]), ValueError, "weight"),
        (lambda: linear(X, W[:, :5]), ValueError, "weight.*6.*(4, 5)"),
        (lambda: linear(X, W, np.zeros(5)), ValueError, "bias.*(4,).*(5,)"),
        (lambda: linear(X, W, activation="gelu"), ValueError, "activation.*gelu"),
        (lambda: linear(X, W, activation=["relu"]), ValueError, "activation"),
        (lambda: linear(X, W, out=[1]), TypeError, "out"),
        (lambda: linear(X, W, out=np.zeros((5, 4), F32)), TypeError, "out.*float32"),
        (lambda: linear(X, W, out=np.zeros((4, 5))), ValueError, "out"),
        (lambda: linear_backward(G[:4], X, W), ValueError, "grad_output.*(5, 4).*(4, 4)"),
        (lambda: linear_backward(G.astype(F32), X, W), TypeError, "grad_output"),
        (lambda: relu("text"), TypeError, "input"),
        (lambda: relu_backward(G, X), ValueError, "grad_output"),
        (lambda: softmax(X, 2), ValueError, "axis.*2"),
        (lambda: softmax(X, -3), ValueError, "axis.*-3"),
        (lambda: softmax(X, 1.0), TypeError, "axis"),
        (lambda: softmax(X, True), TypeError, "axis"),
        (lambda: softmax(np.array(1.0)), ValueError, "axis"),
        (lambda: softmax_backward(G, X), ValueError, "grad_output"),
        (lambda: softmax_backward(X.astype(F32), X), TypeError, "grad_output"),
        (lambda: cross_entropy(X[0], LABELS), ValueError, "logits"),
        (lambda: cross_entropy(X, [0] * 5), TypeError, "target.*list"),
        (lambda: cross_entropy(X, LABELS * 1.0), TypeError, "target.*float64"),
        (lambda: cross_entropy(X, LABELS > 0), TypeError, "target.*bool"),
        (lambda: cross_entropy(X, LABELS[:4]), ValueError, "target.*(5,).*(4,)"),
        (lambda: cross_entropy(X, LABELS + 2), ValueError, "target.*0 to 5.*2 to 6"),
        (lambda: cross_entropy(X, LABELS - 1), ValueError, "target"),
        (lambda: cross_entropy(X, np.full(5, 2**64 - 1, np.uint64)), ValueError, "target"),
        (lambda: cross_entropy(X[:, :0], LABELS), ValueError, "target"),
        (lambda: cross_entropy(X, LABELS, "max"), ValueError, "reduction.*max"),
        (lambda: cross_entropy_backward(X, LABELS, "mean", np.ones(5)), ValueError, "grad_output"),
        (lambda: cross_entropy_backward(X, LABELS, "none", np.ones(4)), ValueError, "grad_output"),
        (lambda: cross_entropy_backward(X, LABELS, "none", np.ones(5, F32)), TypeError, "grad_out"),
        (lambda: cross_entropy_backward(X, LABELS, "sum", "1"), TypeError, "grad_output"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_read_only_out_is_refused():
    out = np.zeros((5, 4))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        linear(X, W, out=out)


def test_results_beyond_the_address_space_are_refused():
    nothing = np.zeros((2**31, 0), np.float32)
    with pytest.raises(ValueError, match="address space"):
        linear(nothing, nothing)
