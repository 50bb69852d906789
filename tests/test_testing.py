"""gradcheck and adjoint_check: right gradients pass, wrong ones are found and named."""

from collections import namedtuple

import numpy as np
import pytest

from fastconv.testing import adjoint_check, gradcheck

X = np.random.default_rng(1).standard_normal((3, 4))
W = np.random.default_rng(2).standard_normal((4, 2))


def matmul_gradients(grad_output, x, w):
    return grad_output @ w.T, x.T @ grad_output


def relu(x):
    return np.maximum(x, 0)


def relu_gradient(grad_output, x):
    return grad_output * (x > 0)


# gradcheck: right gradients


def test_right_gradients_pass():
    result = gradcheck(np.matmul, (X, W), matmul_gradients)
    assert result
    assert result.passed
    assert result.failures == ()
    assert max(result.max_errors) < 1e-8
    assert X[result.worst_indices[0]].shape == W[result.worst_indices[1]].shape == ()


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (np.sin, lambda g, x: g * np.cos(x)),
        (np.exp, lambda g, x: (g * np.exp(x),)),
        (np.sum, lambda g, x: np.full_like(x, g)),
        (lambda x: float((x**2).sum()), lambda g, x: 2 * g * x),
        (lambda x: x.T, lambda g, x: g.T),
        (relu, relu_gradient),
    ],
)
def test_lone_input_and_scalar_output(function, gradient):
    assert gradcheck(function, X, gradient)


def test_named_tuple_of_gradients():
    pair = namedtuple("pair", "input weight")
    assert gradcheck(np.matmul, [X, W], lambda g, x, w: pair(*matmul_gradients(g, x, w)))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_step_follows_the_magnitude_of_the_input(scale):
    point = scale * X
    assert gradcheck(lambda x: (x / scale) ** 2, point, lambda g, x: 2 * g * x / scale**2, atol=1.0)
    assert gradcheck(lambda x: 3 * x, point, lambda g, x: 3 * g, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 1, 2, 1)])
def test_shapes(shape):
    x = np.asarray(np.random.default_rng(3).standard_normal(shape))
    result = gradcheck(lambda x: x * x, (x,), lambda g, x: (2 * g * x,))
    assert result
    assert (result.worst_indices[0] is None) == (x.size == 0)


def test_memory_layout_does_not_matter():
    swapped = X.astype(X.dtype.newbyteorder())
    for x in (X.T, X[::-1, ::2], np.asfortranarray(X), swapped):
        assert gradcheck(np.sin, x, lambda g, x: g * np.cos(x))


def test_inputs_without_gradient():
    labels = np.array([0, 2, 1])

    def pick(x, labels):
        return x[np.arange(3), labels]

    def gradients(grad_output, x, labels):
        grad = np.zeros_like(x)
        grad[np.arange(3), labels] = grad_output
        return grad, None

    result = gradcheck(pick, (X, labels), gradients)
    assert result
    assert result.max_errors[1] is result.worst_indices[1] is None


def test_given_cotangent_is_used():
    seen = []

    def gradient(grad_output, x):
        seen.append(grad_output)
        return 2 * grad_output

    cotangent = np.arange(12.0).reshape(3, 4)
    assert gradcheck(lambda x: 2 * x, X, gradient, grad_output=cotangent)
    np.testing.assert_array_equal(seen[0], cotangent)


# gradcheck: what disturbs finite differences


def test_writing_to_arguments_is_harmless():
    def function(x):
        x *= 2
        return x

    def gradient(grad_output, x):
        grad_output *= 2
        x[:] = np.nan
        return grad_output

    before = X.copy()
    assert gradcheck(function, X, gradient)
    np.testing.assert_array_equal(X, before)


def test_reused_output_buffer():
    buffer = np.empty_like(X)
    assert gradcheck(lambda x: np.sin(x, out=buffer), X, lambda g, x: g * np.cos(x))


def test_same_seed_same_result():
    def cubed(rng):
        return gradcheck(lambda x: x**3, X, lambda g, x: 3 * g * x**2, max_elements=5, rng=rng).max_errors

    assert cubed(None) == cubed(None) == cubed(0) == cubed(np.random.default_rng(0))
    assert cubed(1) != cubed(2)


def test_large_input_is_sampled():
    calls = []

    def function(x):
        calls.append(None)
        return x[:50].sum()

    x = np.zeros((100, 10))
    grad = np.zeros_like(x)
    grad[:50] = 1
    assert gradcheck(function, x, lambda g, x: g * grad, max_elements=20)
    assert len(calls) == 1 + 2 * 20
    assert not gradcheck(
        function, x, lambda g, x: g * np.ones_like(x), max_elements=20, raise_exception=False
    )


# gradcheck: wrong gradients


@pytest.mark.parametrize(
    "wrong",
    [
        lambda gx, gw: (1.0001 * gx, gw),
        lambda gx, gw: (-gx, gw),
        lambda gx, gw: (np.zeros_like(gx), gw),
        lambda gx, gw: (gx[::-1], gw),
        lambda gx, gw: (gx * np.nan, gw),
        lambda gx, gw: (gx + np.inf, gw),
    ],
)
def test_wrong_gradient_fails(wrong):
    def gradients(*arguments):
        return wrong(*matmul_gradients(*arguments))

    with pytest.raises(AssertionError, match=r"^the gradient of inputs\[0\] is wrong at"):
        gradcheck(np.matmul, (X, W), gradients)
    with pytest.raises(AssertionError, match=r"^the gradient of left is wrong at"):
        gradcheck(np.matmul, (X, W), gradients, names=("left", "right"))
    result = gradcheck(np.matmul, (X, W), gradients, raise_exception=False)
    assert not result
    assert not result.passed
    assert len(result.failures) == 1
    assert result.max_errors[0] > 1e-5 > result.max_errors[1]


@pytest.mark.parametrize("index", [(0, 0), (2, 3), (1, 2)])
def test_one_wrong_element_is_named(index):
    def gradients(grad_output, x, w):
        grad, other = matmul_gradients(grad_output, x, w)
        grad[index] += 1e-3
        return grad, other

    with pytest.raises(AssertionError, match=r"wrong at 1 of 12 elements") as caught:
        gradcheck(np.matmul, (X, W), gradients)
    assert f"most at {index}" in str(caught.value)
    result = gradcheck(np.matmul, (X, W), gradients, raise_exception=False)
    assert result.worst_indices[0] == index
    assert result.max_errors[0] == pytest.approx(1e-3, rel=1e-4)


def test_every_wrong_input_is_reported():
    result = gradcheck(
        np.matmul,
        (X, W),
        lambda *a: [2 * g for g in matmul_gradients(*a)],
        raise_exception=False,
    )
    assert [message.split(" is ")[0] for message in result.failures] == [
        "the gradient of inputs[0]",
        "the gradient of inputs[1]",
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g.T, r"inputs\[0\] has shape \(4, 3\), expected \(3, 4\)"),
        (lambda g: g.ravel(), r"inputs\[0\] has shape \(12,\), expected"),
        (lambda g: g.sum(), r"inputs\[0\] has shape \(\), expected"),
        (lambda g: g.astype(np.float32), r"inputs\[0\] has dtype float32, expected float64"),
    ],
)
def test_wrong_shape_or_dtype_fails(spoil, message):
    with pytest.raises(AssertionError, match=message):
        gradcheck(np.sin, X, lambda g, x: spoil(g * np.cos(x)))
    assert not gradcheck(np.sin, X, lambda g, x: spoil(g * np.cos(x)), raise_exception=False).passed


def test_kink_fails_and_is_explained():
    x = np.array([-1.0, 0.0, 2.0])
    ones = np.ones(3)
    with pytest.raises(AssertionError, match=r"at \(1,\).*0 on the left, 1 on the right"):
        gradcheck(relu, x, relu_gradient, grad_output=ones)
    assert gradcheck(relu, x + 0.5, relu_gradient, grad_output=ones)


def test_smooth_failure_is_not_called_a_kink():
    result = gradcheck(np.exp, X, lambda g, x: 2 * g * np.exp(x), raise_exception=False)
    assert "smooth" not in result.failures[0]


def test_value_that_is_not_finite_fails():
    x = np.array([1.0, -1.0])
    with np.errstate(invalid="ignore"):
        result = gradcheck(np.sqrt, x, lambda g, x: g / (2 * np.sqrt(x)), raise_exception=False)
    assert "not finite" in result.failures[0]
    assert result.max_errors == (np.inf,)


# gradcheck: bad arguments


def identity_gradient(grad_output, *inputs):
    return (grad_output,) * len(inputs)


def values_above(x):
    return x[x > X[1, 1]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, X, identity_gradient), TypeError, "^function must be callable"),
        ((np.sin, X, "cos"), TypeError, "^gradients must be callable"),
        ((np.sin, X.astype(np.float32), identity_gradient), TypeError, r"^inputs\[0\] .*float32"),
        ((np.add, (X, X + 1j), identity_gradient), TypeError, r"^inputs\[1\] .*complex128"),
        ((np.add, (X, [1.0]), identity_gradient), TypeError, r"^inputs\[1\] .* list"),
        ((np.sin, (), identity_gradient), ValueError, "^inputs must hold"),
        ((np.add, (X, X), lambda g, x, y: g), TypeError, "^gradients must return a tuple"),
        ((np.add, (X, X), lambda g, x, y: (g,)), ValueError, "^gradients .* 2 inputs, got 1"),
        ((np.add, (X, X), lambda g, x, y: (None, None)), ValueError, "^gradients .* None"),
        ((np.divmod, (X, X), identity_gradient), TypeError, "^function must return one array"),
        ((np.isnan, X, identity_gradient), TypeError, "^function must return float64.*bool"),
        ((values_above, X, lambda g, x: np.zeros_like(x)), ValueError, "^function returned shape"),
        (
            (np.multiply, (X, np.arange(4)), identity_gradient),
            TypeError,
            r"^gradients must return None for inputs\[1\]",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        gradcheck(*arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"step": 0.0}, ValueError),
        ({"step": "small"}, TypeError),
        ({"rtol": -1e-3}, ValueError),
        ({"atol": np.nan}, ValueError),
        ({"max_elements": 0}, ValueError),
        ({"max_elements": 2.5}, TypeError),
        ({"names": ("x", "y")}, ValueError),
        ({"names": "x"}, ValueError),
        ({"grad_output": np.ones(3)}, ValueError),
        ({"grad_output": np.ones((3, 4), np.float32)}, TypeError),
    ],
)
def test_bad_options_are_named(options, error):
    with pytest.raises(error, match=f"^{next(iter(options))} must"):
        gradcheck(np.sin, X, lambda g, x: g * np.cos(x), **options)


# adjoint_check


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adjoint_passes(dtype):
    matrix = W.astype(dtype)
    result = adjoint_check(lambda x: matrix.T @ x, lambda g: matrix @ g, 4, 2, dtype=dtype)
    assert result
    assert result.error < 1000 * np.finfo(dtype).eps
    assert result.forward_product == pytest.approx(result.adjoint_product, rel=1e-5)


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((), ()), ((3, 0, 2), (3, 0, 2))])
def test_adjoint_of_empty_and_scalar(shapes):
    assert adjoint_check(lambda x: 2 * x, lambda g: 2 * g, *shapes)


@pytest.mark.parametrize(
    ("adjoint", "message"),
    [
        (lambda g: W @ g + 1e-6, "relative error"),
        (lambda g: -(W @ g), "relative error"),
        (lambda g: np.full(4, np.nan), "relative error inf"),
        (lambda g: (W @ g)[:3], r"result of adjoint has shape \(3,\), expected \(4,\)"),
        (lambda g: (W @ g).astype(np.float32), "result of adjoint has dtype float32"),
    ],
)
def test_wrong_adjoint_fails(adjoint, message):
    with pytest.raises(AssertionError, match=message):
        adjoint_check(lambda x: W.T @ x, adjoint, (4,), (2,))
    result = adjoint_check(lambda x: W.T @ x, adjoint, (4,), (2,), raise_exception=False)
    assert not result
    assert result.error > 1e-8


def test_bias_is_not_linear():
    with pytest.raises(AssertionError, match="relative error"):
        adjoint_check(lambda x: x + 1, lambda g: g, (5,), (5,))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "name"),
    [
        ((None, np.sin), {}, TypeError, "forward"),
        ((np.sin, None), {}, TypeError, "adjoint"),
        ((np.sin, np.sin), {"dtype": np.int64}, TypeError, "dtype"),
        ((np.sin, np.sin), {"rtol": -1}, ValueError, "rtol"),
    ],
)
def test_bad_adjoint_arguments(arguments, options, error, name):
    with pytest.raises(error, match=f"^{name} must"):
        adjoint_check(*arguments, (3,), (3,), **options)
