"""Convolution in two dimensions, its gradients, prepared operations and plans.

Names, argument order and defaults are those of torch.nn.functional, on NumPy arrays. Everything here
checks, plans, allocates and calls; the arithmetic is in fastconv/kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv import calls, engine
from fastconv.arrays import FLOAT32, FLOAT64, Array, as_operand, check_out, is_target, new_array
from fastconv.plan import FLOPS_PER_THREAD, Plan, plan_conv
from fastconv.problem import ConvProblem, Padding, conv_problem, is_exact, one_of
from fastconv.threads import get_num_threads

Ints = int | Sequence[int]

KNOWN_CALLS = 4096  # plans kept for the fast path of conv2d


class ConvGradients(NamedTuple):
    """Gradients of a convolution, each of the shape of its variable."""

    input: Array
    weight: Array
    bias: Array | None


class Call:
    """A plan bound to its kernel: what a call with known arguments needs."""

    __slots__ = ("dtype", "most_threads", "output_shape", "plan", "run")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dtype = plan.dtype
        self.run = calls.bind(plan)
        self.output_shape = plan.output_shape
        self.most_threads = plan.threads

    def __call__(self, operands: tuple[Any, ...], out: Any) -> Array:
        """Runs into `out`, or into a new array; an `out` that overlaps an operand is written last."""
        threads = 1 if self.most_threads == 1 else min(get_num_threads(), self.most_threads)
        if out is None:
            fresh = new_array(self.output_shape, self.dtype)
            self.run(*operands, fresh, threads)
            return fresh
        target: Array = check_out(out, self.output_shape, self.dtype)
        if not is_target(out, *operands):
            target = new_array(self.output_shape, self.dtype)
        self.run(*operands, target, threads)
        if target is not out:
            out[...] = target
        result: Array = out
        return result


_bound: dict[tuple[Any, ...], Call] = {}  # by the arguments of plan_conv
_seen: dict[tuple[Any, ...], Call] = {}  # by the arguments of conv2d or of a gradient, as given
_seen_backward: dict[tuple[Any, ...], tuple[ConvProblem, Call, Call]] = {}  # the same of conv2d_backward
engine.forget_on_change(_bound.clear)
engine.forget_on_change(_seen.clear)
engine.forget_on_change(_seen_backward.clear)


def _call_for(plan_key: tuple[Any, ...]) -> Call:
    """plan_key: the arguments of plan_conv."""
    call = _bound.get(plan_key)
    if call is None:
        if len(_bound) >= KNOWN_CALLS:
            _bound.clear()
        call = _bound[plan_key] = Call(plan_conv(*plan_key))
    return call


def _plain_key(
    direction: str, shape: Any, operands: tuple[Any, ...], window: tuple[Any, ...], words: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """What a gradient's call is known by, if its operands are plain arrays and all else is exact."""
    dtype = getattr(operands[0], "dtype", None)
    if not (dtype is FLOAT32 or dtype is FLOAT64) or shape.__class__ is not tuple:
        return None
    for array in operands:
        if array.__class__ is not np.ndarray or array.dtype is not dtype or not array.flags.carray:
            return None
    if not is_exact((*shape, *window, *words)):
        return None
    return direction, shape, *[array.shape for array in operands], dtype is FLOAT32, window, words


def _is_plain_bias(bias: Any, weight: Array, dtype: np.dtype[Any]) -> bool:
    """Does it need no more checks than `check_bias` would make?"""
    return (
        bias.__class__ is np.ndarray
        and bias.dtype is dtype
        and bias.shape == weight.shape[:1]
        and bias.flags.carray
    )


def _remember(seen: dict[tuple[Any, ...], Any], key: tuple[Any, ...] | None, known: Any) -> None:
    if key is not None:
        if len(seen) >= KNOWN_CALLS:
            seen.clear()
        seen[key] = known


def _check_activation(activation: Any) -> bool:
    return bool(one_of(activation, "activation", (None, "relu")) == "relu")


def _check_algorithm(algorithm: Any) -> str:
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm: expected a str, got {algorithm!r}")
    return algorithm


def check_bias(bias: Any, channels: int, dtype: np.dtype[Any]) -> Array | None:
    if bias is None:
        return None
    array = as_operand(bias, "bias", dtype)
    if array.shape != (channels,):
        raise ValueError(f"bias: expected shape ({channels},), one a filter, got {array.shape}")
    return array


def _check_grad(grad_output: Any, problem: ConvProblem, dtype: np.dtype[Any]) -> Array:
    array = as_operand(grad_output, "grad_output", dtype)
    if array.shape != problem.output_shape:
        raise ValueError(
            f"grad_output: expected shape {problem.output_shape}, that of the output, got {array.shape}"
        )
    return array


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    activation: str | None = None,
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    """Cross-correlates a batch of images with filters: deep learning's convolution.

    ``y[n, k, p, q] = bias[k] + sum over c, r, s of
    x[n, c, p * stride + r * dilation - padding, q * stride + s * dilation - padding] * w[k, c, r, s]``

    Parameters
    ----------
    input : (N, C, H, W) array of float32 or float64
    weight : (K, C / groups, R, S) array of the same dtype
    bias : (K,) array of the same dtype, optional
    stride, dilation : int or (int, int)
        Steps between outputs, and between taps, in pixels.
    padding : int, (int, int), ((before, after), (before, after)) or str
        Zeros around the image, in pixels. "valid": none. "same": ceil(H / stride) outputs, an odd
        row or column of zeros at the end, "same_lower" at the start. "full": the kernel's reach on
        both sides. "causal": the reach before, nothing after.
    groups : int
        C and K are cut into this many groups; filters see the channels of their own group.
    padding_mode : str
        "zeros".
    layout : str
        "NCHW", or "NHWC" for channels last in the input and in the output: (N, H, W, C) and (N, P, Q, K).
        Filters are (K, C / groups, R, S) in either. Depthwise convolutions with a filter a channel work
        in place, and so do dense ones, forward, where that pays; of others the operands are transposed, and
        the result back.
    activation : None or "relu"
        Applied to the result in the same pass.
    algorithm : str
        "auto", or one of the registry: "gemm", "gemm_small" (1x1 kernels on few pixels), "blocked" (output
        channels in the lanes: groups, steps), "depthwise" and "filter" (one input channel a group, or in
        all), "shifted" (weight gradients whose taps read one copy of the image), "winograd_f4x4_3x3",
        "winograd_f3x3_3x3", "winograd_f2x2_3x3" and "winograd_f6x6_3x3" (3x3 kernels of stride 1;
        docs/winograd.md states their errors), "direct", "im2col".
    out : (N, K, P, Q) array, optional
        Where the result goes. It may overlap the operands.

    Returns
    -------
    (N, K, P, Q) array, P = floor((H + pads - dilation * (R - 1) - 1) / stride) + 1, Q likewise

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.
    MemoryError
        If the result or the workspace cannot be allocated.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.ones((1, 3, 28, 28), np.float32)
    >>> w = np.ones((20, 3, 5, 5), np.float32)
    >>> fastconv.conv2d(x, w, stride=2, padding=2).shape
    (1, 20, 14, 14)
    """
    # A call seen before, on plain arrays, goes straight to its kernel: a dictionary look-up in place of
    # the checks below.
    if (
        input.__class__ is np.ndarray
        and weight.__class__ is np.ndarray
        and (
            stride.__class__ is padding.__class__ is dilation.__class__ is groups.__class__ is int
            or is_exact((stride, padding, dilation, groups))
        )
    ):
        dtype = input.dtype
        if (
            (dtype is FLOAT32 or dtype is FLOAT64)
            and weight.dtype is dtype
            and input.flags.carray
            and weight.flags.carray
            and (bias is None or _is_plain_bias(bias, weight, dtype))
        ):
            key = (
                input.shape, weight.shape, dtype is FLOAT32, stride, padding, dilation, groups,
                padding_mode, layout, activation, algorithm,
            )  # fmt: skip
            try:
                call = _seen.get(key)
            except TypeError:  # an argument that cannot be hashed is refused below, by name
                call = None
            if call is not None:
                if out is not None:
                    return call((input, weight, bias), out)
                output = new_array(call.output_shape, dtype)
                threads = 1 if call.most_threads == 1 else min(get_num_threads(), call.most_threads)
                call.run(input, weight, bias, output, threads)
                return output
            call = _forward_call(
                input, weight, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm
            )
            _remember(_seen, key, call)
            return call((input, weight, bias), out)
    x = as_operand(input, "input")
    w = as_operand(weight, "weight", x.dtype)
    call = _forward_call(x, w, stride, padding, dilation, groups, padding_mode, layout, activation, algorithm)
    b = check_bias(bias, w.shape[0], x.dtype)
    return call((x, w, b), out)


def _forward_call(
    x: Array,
    w: Array,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    layout: Any,
    activation: Any,
    algorithm: Any,
) -> Call:
    problem = conv_problem(
        x.shape, w.shape, stride, padding, dilation, groups, padding_mode=padding_mode, layout=layout
    )
    relu = _check_activation(activation)
    return _call_for((problem, "forward", x.dtype, _check_algorithm(algorithm), relu))


def conv2d_input_grad(
    input_shape: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to its input.

    ``dx[n, c, h, w] = sum over k, r, s of g[n, k, p, q] * w[k, c, r, s]`` where tap (r, s) of output
    (p, q) meets pixel (h, w). Computed phase by phase of the stride: no product with a zero.

    Parameters
    ----------
    input_shape : (N, C, H, W)
    weight : (K, C / groups, R, S) array of float32 or float64
    grad_output : (N, K, P, Q) array of the same dtype
    stride, padding, dilation, groups, padding_mode, layout, algorithm
        As given to `conv2d`.
    out : (N, C, H, W) array, optional

    Returns
    -------
    (N, C, H, W) array

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w, g = np.ones((8, 3, 3, 3)), np.ones((1, 8, 4, 4))
    >>> fastconv.conv2d_input_grad((1, 3, 9, 9), w, g, stride=2).shape
    (1, 3, 9, 9)
    """
    window, words = (stride, padding, dilation, groups), (padding_mode, layout, algorithm)
    key = _plain_key("input_grad", input_shape, (weight, grad_output), window, words)
    if key is not None and (call := _seen.get(key)) is not None:
        return call((weight, grad_output), out)
    w = as_operand(weight, "weight")
    problem = conv_problem(input_shape, w.shape, *window, padding_mode=padding_mode, layout=layout)
    g = _check_grad(grad_output, problem, w.dtype)
    call = _call_for((problem, "input_grad", w.dtype, _check_algorithm(algorithm)))
    _remember(_seen, key, call)
    return call((w, g), out)


def conv2d_weight_grad(
    input: Array,
    weight_shape: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    """The gradient of `conv2d` with respect to its weights.

    ``dw[k, c, r, s] = sum over n, p, q of
    g[n, k, p, q] * x[n, c, p * stride + r * dilation - padding, q * stride + s * dilation - padding]``

    Parameters
    ----------
    input : (N, C, H, W) array of float32 or float64
    weight_shape : (K, C / groups, R, S)
    grad_output : (N, K, P, Q) array of the same dtype
    stride, padding, dilation, groups, padding_mode, layout, algorithm
        As given to `conv2d`.
    out : (K, C / groups, R, S) array, optional

    Returns
    -------
    (K, C / groups, R, S) array, with the same bits for any number of threads

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, g = np.ones((1, 3, 9, 9)), np.ones((1, 8, 4, 4))
    >>> fastconv.conv2d_weight_grad(x, (8, 3, 3, 3), g, stride=2)[0, 0, 0, 0]
    16.0
    """
    window, words = (stride, padding, dilation, groups), (padding_mode, layout, algorithm)
    key = _plain_key("weight_grad", weight_shape, (input, grad_output), window, words)
    if key is not None and (call := _seen.get(key)) is not None:
        return call((input, grad_output), out)
    x = as_operand(input, "input")
    problem = conv_problem(x.shape, weight_shape, *window, padding_mode=padding_mode, layout=layout)
    g = _check_grad(grad_output, problem, x.dtype)
    call = _call_for((problem, "weight_grad", x.dtype, _check_algorithm(algorithm)))
    _remember(_seen, key, call)
    return call((x, g), out)


def conv2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    bias: bool = True,
) -> ConvGradients:
    """All gradients of `conv2d`.

    Parameters
    ----------
    grad_output : (N, K, P, Q) array
        The gradient with respect to the output.
    input : (N, C, H, W) array of float32 or float64
    weight : (K, C / groups, R, S) array of the same dtype
    stride, padding, dilation, groups, padding_mode, layout, algorithm
        As given to `conv2d`.
    bias : bool
        Whether the bias' gradient is wanted.

    Returns
    -------
    ConvGradients
        Named tuple (input, weight, bias), each of the shape of its variable; bias is None if not wanted.

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 3, 5, 5)), np.ones((2, 3, 3, 3))
    >>> grads = fastconv.conv2d_backward(np.ones((1, 2, 3, 3)), x, w)
    >>> grads.input.shape, grads.weight.shape, grads.bias
    ((1, 3, 5, 5), (2, 3, 3, 3), array([9., 9.]))
    """
    if not isinstance(bias, bool):
        raise TypeError(f"bias: expected True or False (is its gradient wanted?), got {bias!r}")
    window, words = (stride, padding, dilation, groups), (padding_mode, layout, algorithm)
    key = _plain_key("backward", (), (input, weight, grad_output), window, words)
    if key is not None and (known := _seen_backward.get(key)) is not None:
        x, w, g = input, weight, grad_output
        problem, input_grad, weight_grad = known
    else:
        x = as_operand(input, "input")
        w = as_operand(weight, "weight", x.dtype)
        problem = conv_problem(x.shape, w.shape, *window, padding_mode=padding_mode, layout=layout)
        g = _check_grad(grad_output, problem, x.dtype)
        algorithm = _check_algorithm(algorithm)
        input_grad, weight_grad = (
            _call_for((problem, direction, x.dtype, algorithm)) for direction in ("input_grad", "weight_grad")
        )
        _remember(_seen_backward, key, (problem, input_grad, weight_grad))
    threads = min(get_num_threads(), max(1, g.size // FLOPS_PER_THREAD))
    return ConvGradients(
        input_grad((w, g), None),
        weight_grad((x, g), None),
        calls.bias_grad(g, problem.out_channels, threads, problem.channels_last) if bias else None,
    )


def plan_conv2d(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    activation: str | None = None,
    algorithm: str = "auto",
    direction: str = "forward",
    dtype: Any = np.float32,
    prepared: bool = False,
) -> Plan:
    """How `conv2d` or one of its gradients would be computed, without computing it.

    Parameters
    ----------
    input_shape : (N, C, H, W)
    weight_shape : (K, C / groups, R, S)
    stride, padding, dilation, groups, padding_mode, layout, activation, algorithm
        As given to `conv2d`.
    direction : str
        "forward", "input_grad" or "weight_grad".
    dtype : float32 or float64
    prepared : bool
        Whether the weights would come from `prepare_conv2d`.

    Returns
    -------
    Plan
        With algorithm, output_shape, flops, workspace_bytes and explain().

    Raises
    ------
    ValueError, TypeError
        As `conv2d` would.

    Examples
    --------
    >>> import fastconv
    >>> plan = fastconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> plan.output_shape, plan.flops
    ((1, 64, 56, 56), 231211008)
    """
    one_of(direction, "direction", ("forward", "input_grad", "weight_grad"))
    if not isinstance(prepared, bool):
        raise TypeError(f"prepared: expected True or False, got {prepared!r}")
    try:
        scalar = None if dtype is None else np.dtype(dtype)  # to NumPy, None is float64
    except TypeError:
        scalar = None
    if scalar is None or scalar not in (FLOAT32, FLOAT64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    problem = conv_problem(
        input_shape, weight_shape, stride, padding, dilation, groups,
        padding_mode=padding_mode, layout=layout,
    )  # fmt: skip
    relu = _check_activation(activation)
    return plan_conv(problem, direction, scalar, _check_algorithm(algorithm), relu, prepared)
