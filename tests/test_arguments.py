"""Wrong arguments: each is refused before any work, by a message that names it."""

import numpy as np
import pytest
from conftest import case, operands

import fastconv

PROBLEM = case((2, 4, 6, 7), (6, 2, 3, 2), groups=2)
HUGE = 2**62


def arrays(dtype=np.float32):
    data = operands(PROBLEM, dtype)
    return {"input": data.input, "weight": data.weight, "grad_output": data.grad_output}


def call(name, **changes):
    """Calls a public function with right arguments, but for the changes."""
    given = arrays()
    given |= {"input_shape": PROBLEM.input_shape, "weight_shape": PROBLEM.weight_shape}
    taken = {
        "conv2d": ("input", "weight"),
        "conv2d_input_grad": ("input_shape", "weight", "grad_output"),
        "conv2d_weight_grad": ("input", "weight_shape", "grad_output"),
        "conv2d_backward": ("grad_output", "input", "weight"),
        "plan_conv2d": ("input_shape", "weight_shape"),
        "prepare_conv2d": ("weight",),
    }[name]
    return getattr(fastconv, name)(**{key: given[key] for key in taken} | {"groups": 2} | changes)


FUNCTIONS = (
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv2d_backward",
    "plan_conv2d",
    "prepare_conv2d",
)
every_function = pytest.mark.parametrize("function", FUNCTIONS)


class Unhashable(str):
    __hash__ = None


# argument -> values that no function takes
WRONG = {
    "stride": [0, -1, 1.0, True, "2", None, (1, 2, 3), (1,), (), (1.5, 1), (0, 1), (True, 1),
               [1, None], np.array([1, 1]), np.array(1.0), {1: 1}, ((1, 1), (1, 1)), HUGE, b"ab"],
    "dilation": [0, -1, 1.0, True, "2", None, (1, 2, 3), (1,), (), (1.5, 1), (0, 1), (True, 1),
                 [1, None], np.array([1, 1]), {1: 1}, ((1, 1), (1, 1)), HUGE + 1, b"ab"],
    "padding": [-1, 1.0, True, False, None, "SAME", "", "reflect", (1, 2, 3), (1,), (), (1.5, 1),
                (-1, 0), (True, 1), ((1, 1),), ((1, 1), 1), ((1, 1), (1, -1)), ((1, 1), (1, 1.0)),
                ((1, 1, 1), (1, 1, 1)), ("same", "same"), np.ones((2, 2)), {}, HUGE,
                HUGE * HUGE, b"ab"],
    "groups": [0, -1, 1.0, 2.0, True, "2", None, (2,), [2], 3, 4, 100, HUGE + 1, np.array([2, 2])],
    "padding_mode": ["constant", "reflect", "replicate", "circular", "", None, 0, [], ("zeros",),
                     np.array(["zeros", "zeros"]), Unhashable("ones")],
    "layout": ["nchw", "nhwc", "NCW", "NCDHW", "", 0, [], ("NCHW",), np.array(["NCHW", "NCHW"])],
    "algorithm": ["", "GEMM", "winograd_f9", None, 0, [], ("gemm",), np.array(["gemm", "gemm"])],
}  # fmt: skip
ACTIVATIONS = ["ReLU", "", "sigmoid", 0, 1, False, [], ("relu",), max, np.array(["relu", "relu"])]


@every_function
@pytest.mark.parametrize(
    ("argument", "value"),
    [(argument, value) for argument, values in WRONG.items() for value in values],
    ids=repr,
)
def test_wrong_options(function, argument, value):
    if argument == "groups" and function == "prepare_conv2d" and repr(value) == "3":
        pytest.skip("6 filters in 3 groups: right for an input of 6 channels")
    # A number of groups that is wrong for these channels may be said of either side.
    name = "groups|weight" if argument == "groups" else argument
    with pytest.raises((TypeError, ValueError), match=rf"^({name})\b"):
        call(function, **{argument: value})


@pytest.mark.parametrize("function", ["conv2d", "plan_conv2d", "prepare_conv2d"])
@pytest.mark.parametrize("value", ACTIVATIONS, ids=repr)
def test_wrong_activation(function, value):
    with pytest.raises((TypeError, ValueError), match=r"^activation\b"):
        call(function, activation=value)


@pytest.mark.parametrize("function", ["conv2d_input_grad", "conv2d_weight_grad", "conv2d_backward"])
def test_gradients_take_no_activation(function):
    with pytest.raises(TypeError, match="activation"):
        call(function, activation="relu")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("stride", 1.0), ("stride", True), ("padding", False), ("dilation", True), ("dilation", 1.0),
     ("groups", True), ("groups", 1.0), ("padding", 0.0), ("stride", (1, True)), ("dilation", (1.0, 1)),
     ("padding", (0, False)), ("padding", ((0, 0), (0, 0.0)))],
    ids=repr,
)  # fmt: skip
def test_equal_is_not_the_same(argument, value):
    """1 == 1.0 == True, also as keys of a cache: a call seen before must not let them in."""
    x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 1, 1))
    for _ in range(3):
        fastconv.conv2d(x, w, stride=1, padding=0, dilation=1, groups=1)
        fastconv.conv2d(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        fastconv.conv2d(x, w, padding=((0, 0), (0, 0)))
    for _ in range(2):
        with pytest.raises(TypeError, match=f"^{argument}"):
            fastconv.conv2d(x, w, **{argument: value})


def test_a_call_seen_before_checks_bias_and_out():
    x, w, b = np.ones((1, 2, 5, 5)), np.ones((3, 2, 1, 1)), np.arange(3.0)
    want = fastconv.conv2d(x, w) + b[:, None, None]
    for _ in range(2):
        out = np.empty((1, 3, 5, 5))
        assert fastconv.conv2d(x, w, b, out=out) is out
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(fastconv.conv2d(x, w, np.repeat(b, 2)[::2]), want)
        for bias in (np.ones(2), np.ones((3, 1)), np.ones(4)):
            with pytest.raises(ValueError, match=r"^bias"):
                fastconv.conv2d(x, w, bias)
        for bias in (np.ones(3, np.float32), [0, 1, 2]):
            with pytest.raises(TypeError, match=r"^bias"):
                fastconv.conv2d(x, w, bias)
        with pytest.raises(ValueError, match=r"^out"):
            fastconv.conv2d(x, w, b, out=np.empty((1, 3, 5, 4)))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("stride", 1.0), ("stride", True), ("padding", False), ("dilation", True), ("groups", True),
     ("stride", (1, True)), ("dilation", (1.0, 1)), ("padding", (0, False))],
    ids=repr,
)  # fmt: skip
def test_equal_is_not_the_same_to_gradients(argument, value):
    x, w, g = np.ones((1, 2, 5, 5)), np.ones((3, 2, 1, 1)), np.ones((1, 3, 5, 5))
    calls = [
        lambda **more: fastconv.conv2d_input_grad(x.shape, w, g, **more),
        lambda **more: fastconv.conv2d_weight_grad(x, w.shape, g, **more),
        lambda **more: fastconv.conv2d_backward(g, x, w, **more),
    ]
    for gradient in calls:
        for _ in range(3):
            gradient(stride=1, padding=0, dilation=1, groups=1)
            gradient(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        with pytest.raises(TypeError, match=f"^{argument}"):
            gradient(**{argument: value})
    for shape in ((True, 2, 5, 5), (1.0, 2, 5, 5)):
        with pytest.raises(TypeError, match=r"^input"):
            fastconv.conv2d_input_grad(shape, w, g)


def test_backward_seen_before_checks_its_operands():
    x, w, g = np.ones((1, 2, 5, 5)), np.ones((3, 2, 1, 1)), np.ones((1, 3, 5, 5))
    for _ in range(2):
        grads = fastconv.conv2d_backward(g, x, w)
        np.testing.assert_array_equal(grads.bias, [25, 25, 25])
        assert fastconv.conv2d_backward(g, x, w, bias=False).bias is None
        np.testing.assert_array_equal(fastconv.conv2d_backward(g[..., ::-1], x, w).weight, grads.weight)
        with pytest.raises(ValueError, match=r"^grad_output"):
            fastconv.conv2d_backward(g[..., 1:], x, w)
        with pytest.raises(TypeError, match=r"^grad_output"):
            fastconv.conv2d_backward(g.astype(np.float32), x, w)
        with pytest.raises(TypeError, match=r"^algorithm"):
            fastconv.conv2d_backward(g, x, w, algorithm=None)


# Arrays

NOT_ARRAYS = [None, 1.0, "abc", [[1.0]], (1.0,), {}, object(), b"1234", range(4)]
OTHER_DTYPES = [np.float16, np.longdouble, np.int64, np.uint8, np.bool_, np.complex64, object, "U3"]


def array_functions(name):
    takers = {
        "input": ("conv2d", "conv2d_weight_grad", "conv2d_backward"),
        "weight": ("conv2d", "conv2d_input_grad", "conv2d_backward", "prepare_conv2d"),
        "grad_output": ("conv2d_input_grad", "conv2d_weight_grad", "conv2d_backward"),
        "bias": ("conv2d", "prepare_conv2d"),
    }
    return [(function, name) for function in takers[name]]


TAKEN = [pair for name in ("input", "weight", "grad_output", "bias") for pair in array_functions(name)]
every_array = pytest.mark.parametrize(("function", "name"), TAKEN)


@every_array
@pytest.mark.parametrize("value", NOT_ARRAYS, ids=lambda value: type(value).__name__)
def test_not_an_array(function, name, value):
    if name == "bias" and value is None:
        pytest.skip("None is no bias")
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        call(function, **{name: value})


@every_array
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_other_dtypes(function, name, dtype):
    value = (arrays() | {"bias": np.zeros(6)})[name].astype(dtype)
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        call(function, **{name: value})


@pytest.mark.parametrize(("function", "name"), [pair for pair in TAKEN if pair[1] == "grad_output"])
def test_grad_output_of_another_dtype(function, name):
    with pytest.raises(TypeError, match=r"^grad_output\b"):
        call(function, grad_output=arrays(np.float64)["grad_output"])


@pytest.mark.parametrize("function", ["conv2d", "conv2d_backward"])
def test_mixed_dtypes(function):
    with pytest.raises(TypeError, match=r"^weight\b"):
        call(function, weight=arrays(np.float64)["weight"])
    if function == "conv2d":
        with pytest.raises(TypeError, match=r"^bias\b"):
            call(function, bias=np.zeros(6))


@every_array
def test_masked_arrays(function, name):
    value = np.ma.masked_array((arrays() | {"bias": np.zeros(6, np.float32)})[name])
    with pytest.raises(TypeError, match=rf"^{name}\b.*masked"):
        call(function, **{name: value})


WRONG_SHAPES = {
    "input": [(), (7,), (4, 6, 7), (1, 2, 4, 6, 7), (2, 3, 6, 7), (2, 4, 2, 7), (2, 4, 6, 1)],
    "weight": [(), (6,), (2, 3, 2), (6, 2, 1, 3, 2), (6, 3, 3, 2), (5, 2, 3, 2), (6, 2, 7, 2),
               (6, 2, 3, 8), (6, 2, 0, 2), (6, 2, 3, 0)],
    "grad_output": [(), (6,), (2, 6, 4), (2, 6, 4, 5), (2, 6, 6, 4), (2, 5, 4, 6), (1, 6, 4, 6)],
    "bias": [(), (5,), (7,), (1, 6), (6, 1), (0,), (1, 6, 1, 1)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "name", "shape"),
    [(function, name, shape) for function, name in TAKEN for shape in WRONG_SHAPES[name]],
    ids=str,
)
def test_wrong_shapes(function, name, shape):
    if function == "prepare_conv2d" and shape in [(6, 3, 3, 2), (6, 2, 7, 2), (6, 2, 3, 8)]:
        pytest.skip("right for another input")
    # A kernel and an image that do not fit, or their channels, may be said of either.
    allowed = {"input": "input|weight", "weight": "weight|input|groups"}.get(name, name)
    with pytest.raises(ValueError, match=rf"^({allowed})\b"):
        call(function, **{name: np.zeros(shape, np.float32)})


WRONG_SIZES = [None, 5, 4.0, "abcd", (), (2, 4, 6), (2, 4, 6, 7, 8), (2, 4, 6, -7), (2, 4, 6, 7.0),
               (2, 4, 6, True), (2, 4, 6, None), (2, 4, HUGE, HUGE), (2, 4, 6, HUGE * 4),
               (0, 4, HUGE, 7), {2: 4}]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "name"),
    [("conv2d_input_grad", "input"), ("conv2d_weight_grad", "weight"),
     ("plan_conv2d", "input"), ("plan_conv2d", "weight")],
)  # fmt: skip
@pytest.mark.parametrize("sizes", WRONG_SIZES, ids=str)
def test_wrong_shape_arguments(function, name, sizes):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}"):
        call(function, **{f"{name}_shape": sizes})


def wrong_outs(shape):
    good = np.zeros(shape, np.float32)
    locked = good.copy()
    locked.flags.writeable = False
    return {
        "shape": np.zeros((*shape[:3], shape[3] + 1), np.float32),
        "axes": np.zeros(shape[1:], np.float32),
        "dtype": np.zeros(shape),
        "integers": np.zeros(shape, np.int32),
        "byte order": good.astype(">f4"),
        "read-only": locked,
        "broadcast": np.broadcast_to(np.float32(0), shape),
        "masked": np.ma.masked_array(good),
        "list": good.tolist(),
        "scalar": np.float32(0),
        "text": "out",
    }


@pytest.mark.parametrize("name", wrong_outs((1, 1, 1, 1)))
@pytest.mark.parametrize("function", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_wrong_out(function, name):
    out = wrong_outs(call(function).shape)[name]
    before = np.array(out)
    with pytest.raises((TypeError, ValueError), match=r"^out\b"):
        call(function, out=out)
    np.testing.assert_array_equal(np.array(out), before)


def test_wrong_arguments_of_a_prepared_operation():
    operation = call("prepare_conv2d")
    for wrong in (None, [[1.0]], np.zeros((2, 4, 6, 7)), np.ma.zeros((2, 4, 6, 7), np.float32)):
        with pytest.raises(TypeError, match=r"^input\b"):
            operation(wrong)
    for shape in ((), (4, 6, 7), (2, 3, 6, 7), (2, 4, 2, 7)):
        with pytest.raises(ValueError, match=r"^(input|weight)\b"):
            operation(np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=r"^(input|weight)\b"):
            operation.plan(shape)
    with pytest.raises(ValueError, match=r"^out\b"):
        operation(np.zeros((2, 4, 6, 7), np.float32), out=np.zeros((2, 6, 4, 5), np.float32))


@pytest.mark.parametrize("direction", ["", "backward", "FORWARD", None, 0, [], ("forward",)], ids=repr)
def test_wrong_direction(direction):
    with pytest.raises((TypeError, ValueError), match=r"^direction\b"):
        call("plan_conv2d", direction=direction)


@pytest.mark.parametrize("dtype", [None, "float16", "nonsense", int, ">f4", np.complex128, 5, []], ids=repr)
def test_wrong_dtype_of_a_plan(dtype):
    with pytest.raises((TypeError, ValueError), match=r"^dtype\b"):
        call("plan_conv2d", dtype=dtype)


@pytest.mark.parametrize("prepared", [None, 1, "yes", []], ids=repr)
def test_wrong_prepared(prepared):
    with pytest.raises((TypeError, ValueError), match=r"^prepared\b"):
        call("plan_conv2d", prepared=prepared)


@pytest.mark.parametrize("bias", [None, 1, "yes", np.zeros(6)], ids=lambda value: type(value).__name__)
def test_backward_bias_is_a_bool(bias):
    with pytest.raises(TypeError, match=r"^bias\b"):
        call("conv2d_backward", bias=bias)


# Sizes beyond all bounds


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": HUGE},
        {"padding": 2**40},
        {"padding": ((0, HUGE), (0, 0))},
        {"padding": ((0, 0), (HUGE, HUGE))},
        {"padding": (2**31, 2**31)},
        {"padding": HUGE, "stride": HUGE},
        {"padding": "full", "dilation": HUGE},
        {"padding": "full", "dilation": 2**33},
        {"dilation": HUGE},
        {"dilation": 2**31, "padding": 2**40},
    ],
    ids=str,
)
def test_results_beyond_the_address_space(options, batch):
    x, w = np.ones((batch, 1, 4, 4)), np.ones((1, 1, 2, 2))
    with pytest.raises((ValueError, MemoryError)):
        fastconv.conv2d(x, w, **options)
    with pytest.raises((ValueError, MemoryError)):
        fastconv.conv2d_weight_grad(x, w.shape, x, **options)


@pytest.mark.parametrize("algorithm", ["direct", "gemm"])
@pytest.mark.parametrize("reach", [2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**59])
def test_reach_beyond_32_bits(reach, algorithm):
    """Strides, dilations and paddings of any size work where the result is small."""
    x, w = np.arange(1.0, 17).reshape(1, 1, 4, 4), np.arange(1.0, 10).reshape(1, 1, 3, 3)
    options = {"algorithm": algorithm}
    # The outer taps fall beyond the image on every side: the centre alone remains.
    got = fastconv.conv2d(x, w, dilation=reach, padding=reach, **options)
    np.testing.assert_array_equal(got, 5 * x)
    grads = fastconv.conv2d_backward(x, x, w, dilation=reach, padding=reach, **options)
    np.testing.assert_array_equal(grads.input, 5 * x)
    assert grads.weight[0, 0, 1, 1] == (x * x).sum()
    assert np.count_nonzero(grads.weight) == 1
    # One output, whatever the stride.
    got = fastconv.conv2d(x, w, stride=reach, **options)
    assert got.item() == (x[0, 0, :3, :3] * w).sum()
    grads = fastconv.conv2d_backward(np.ones((1, 1, 1, 1)), x, w, stride=reach, **options)
    np.testing.assert_array_equal(grads.input[0, 0, :3, :3], w[0, 0])
    assert np.count_nonzero(grads.input) == 9


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2**40), (1, 1, 2**20, 2**20), (2**50, 1, 1, 1)], ids=str)
def test_gradients_beyond_memory(sizes):
    """Shapes alone ask for them: they must fail at once, not after a day of planning."""
    k, _, r, s = sizes
    x = np.ones((1, 1, 1, 1))
    if k == 1:
        padding = ((r - 1, 0), (s - 1, 0))
        with pytest.raises((ValueError, MemoryError)):
            fastconv.conv2d_weight_grad(x, sizes, x, padding=padding)
    shape = (1, 1, r * k, s)
    with pytest.raises((ValueError, MemoryError)):
        fastconv.conv2d_input_grad(shape, x, x, stride=(r * k, s))
