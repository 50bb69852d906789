"""Pooling in two dimensions, and its gradients.

Names, argument order and defaults are those of torch.nn.functional, on NumPy arrays. Everything
here checks, plans, allocates and calls; the arithmetic is in fastconv/kernels.

Rules where others differ: NaN wins over every number and ties go to the first; padding never wins,
and a window without an element of the input is refused by maximum pooling and averages to 0;
`ceil_mode` drops a window that would start in the padding after the input; an average's divisor
never counts what overhangs the padding. Any amount of padding is taken, also more than half of the
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv import engine
from fastconv.arrays import FLOAT32, FLOAT64, Array, as_operand, check_out, new_array
from fastconv.calls_pool import FLAT, AverageCall, MaxCall, bind
from fastconv.problem import LARGEST, Padding, is_exact
from fastconv.problem_pool import check_flag, pool_problem

Ints = int | Sequence[int]

_KNOWN_CALLS = 4096  # calls kept for the fast path
_seen: dict[tuple[Any, ...], Any] = {}  # by exact arguments
engine.forget_on_change(_seen.clear)


def _remember(key: tuple[Any, ...], call: Any) -> None:
    if len(_seen) >= _KNOWN_CALLS:
        _seen.clear()
    _seen[key] = call


def _is_ready(array: Any) -> bool:
    """Can a kernel read this as it is?"""
    return (
        array.__class__ is np.ndarray
        and (array.dtype is FLOAT32 or array.dtype is FLOAT64)
        and array.flags.carray
    )


def _max_call(
    x: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    layout: Any,
) -> MaxCall:
    key = None
    if is_exact((kernel_size, stride, padding, dilation, layout)) and ceil_mode.__class__ is bool:
        key = (x.shape, x.dtype, kernel_size, stride, padding, dilation, ceil_mode, layout)
        call = _seen.get(key)
        if call is not None:
            return call  # type: ignore[no-any-return]
    problem = pool_problem(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout=layout)
    call = bind(MaxCall, problem, x.dtype)
    if key is not None:
        _remember(key, call)
    return call  # type: ignore[no-any-return]


def _average_call(
    shape: Any, dtype: np.dtype[Any], kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any,
    count_include_pad: Any, divisor_override: Any, dilation: Any, layout: Any, name: str,
) -> AverageCall:  # fmt: skip
    key = None
    if (
        is_exact((kernel_size, stride, padding, divisor_override, dilation, layout))
        and ceil_mode.__class__ is bool
        and count_include_pad.__class__ is bool
        and shape.__class__ is tuple
        and is_exact(shape)
    ):
        key = (
            "average", shape, dtype, kernel_size, stride, padding, ceil_mode, count_include_pad,
            divisor_override, dilation, layout,
        )  # fmt: skip
        call = _seen.get(key)
        if call is not None:
            return call  # type: ignore[no-any-return]
    check_flag(count_include_pad, "count_include_pad")
    problem = pool_problem(shape, kernel_size, stride, padding, dilation, ceil_mode, layout=layout, name=name)
    call = bind(AverageCall, problem, dtype, count_include_pad, _check_divisor(divisor_override))
    if key is not None:
        _remember(key, call)
    return call  # type: ignore[no-any-return]


def _check_divisor(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"divisor_override: expected None or an int other than 0, got {value!r}")
    number = int(value)
    if number == 0 or abs(number) > LARGEST:
        raise ValueError(f"divisor_override: expected None or an int other than 0, got {value!r}")
    return number


def _check_grad(grad_output: Any, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Array:
    array = as_operand(grad_output, "grad_output", dtype)
    if array.shape != shape:
        raise ValueError(f"grad_output: expected shape {shape}, that of the output, got {array.shape}")
    return array


def _check_indices(indices: Any, call: MaxCall) -> Array:
    if not isinstance(indices, np.ndarray):
        raise TypeError(f"indices: expected a NumPy array, got {type(indices).__name__}")
    native = indices.dtype.newbyteorder("=")
    if native not in (FLAT, call.index_dtype):
        raise TypeError(
            f"indices: expected dtype int64 (positions in the plane) or {call.index_dtype} "
            f"(positions in a window of {call.problem.taps} elements), got {indices.dtype}"
        )
    if indices.shape != call.problem.output_shape:
        raise ValueError(
            f"indices: expected shape {call.problem.output_shape}, that of the output, got {indices.shape}"
        )
    return np.require(np.asarray(indices, native), requirements=["C", "A"])


def max_pool2d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool | str = False,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """The maximum of each window of each channel.

    ``y[n, c, p, q] = max over r, s of
    x[n, c, p * stride + r * dilation - padding, q * stride + s * dilation - padding]`` over the
    taps (r, s) that are inside the image. A NaN wins over every number, and of equal values the
    first in row-major order wins; padding never does.

    Parameters
    ----------
    input : (N, C, H, W) array of float32 or float64, or (N, H, W, C) with layout="NHWC"
    kernel_size : int or (int, int)
        Size R, S of the window, in pixels.
    stride : int or (int, int), optional
        Step between windows; the kernel's size by default.
    padding : int, (int, int), ((before, after), (before, after)) or str
        As in `conv2d`. Not limited to half of the window, but each window must hold an element of
        the image.
    dilation : int or (int, int)
        Step between the elements of a window.
    ceil_mode : bool
        Whether a last window that overhangs the padded image counts. One that would start in the
        padding after the image never does.
    return_indices : bool or "window"
        True: also int64 positions of the maxima in their plane, h * W + w, as PyTorch has them.
        "window": positions in the window, r * S + s, in the smallest of uint8, uint16 and uint32
        that holds them: an eighth of the memory, and faster for `max_pool2d_backward`.
    layout : "NCHW" or "NHWC"
    out : array of the output's shape and dtype, optional
        Where the result goes. It may overlap the input.

    Returns
    -------
    output : (N, C, P, Q) array, or (N, P, Q, C)
    indices : array of the same shape, with `return_indices` only

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 5.0, 2.0], [3.0, 4.0, 0.0]]]])
    >>> y, indices = fastconv.max_pool2d(x, 2, stride=1, return_indices=True)
    >>> y.tolist(), indices.tolist()
    ([[[[5.0, 5.0]]]], [[[[1, 1]]]])
    """
    x = input if _is_ready(input) else as_operand(input, "input")
    call = _max_call(x, kernel_size, stride, padding, dilation, ceil_mode, layout)
    shape = call.problem.output_shape
    if return_indices is False:
        return call.write(shape, out, (input, x), lambda target: call.values(x, target))
    if return_indices is not True and return_indices != "window":
        raise ValueError(f"return_indices: expected False, True or 'window', got {return_indices!r}")
    call.window_taps()
    indices = np.empty(shape, FLAT if return_indices is True else call.index_dtype)
    y = call.write(shape, out, (input, x), lambda target: call.indexed(x, target, indices))
    return y, indices


def max_pool2d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    indices: Array | None = None,
    *,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool2d` with respect to its input.

    ``dx[n, c, h, w] = sum of g[n, c, p, q]`` over the windows (p, q) whose maximum is at (h, w), in
    the order of the windows: the same bits for any number of threads.

    Parameters
    ----------
    grad_output : (N, C, P, Q) array of float32 or float64
    input : (N, C, H, W) array of the same dtype
        As given to `max_pool2d`.
    kernel_size, stride, padding, dilation, ceil_mode, layout
        As given to `max_pool2d`.
    indices : (N, C, P, Q) array, optional
        What `max_pool2d` returned, in either form. Without them they are computed from `input`.
    out : (N, C, H, W) array, optional
        Where the gradient goes. It may overlap the operands.

    Returns
    -------
    (N, C, H, W) array

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, and for indices that are no
        element of their window, before anything is written.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 5.0, 2.0], [3.0, 4.0, 0.0]]]])
    >>> fastconv.max_pool2d_backward(np.ones((1, 1, 1, 2)), x, 2, stride=1).tolist()
    [[[[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]]
    """
    x = input if _is_ready(input) else as_operand(input, "input")
    call = _max_call(x, kernel_size, stride, padding, dilation, ceil_mode, layout)
    shape = call.problem.input_shape
    g = _check_grad(grad_output, call.problem.output_shape, x.dtype)
    call.window_taps()
    if indices is None:
        codes = np.empty(call.problem.output_shape, call.index_dtype)
        call.indexed(x, None, codes)
        return call.write(shape, out, (grad_output, g), lambda target: call.backward(g, codes, True, target))
    checked = _check_indices(indices, call)
    if out is not None:
        check_out(out, shape, x.dtype)
    # A new target, so that bad indices are refused before anything is written.
    target = new_array(shape, x.dtype)
    call.backward(g, checked, False, target)
    if out is None:
        return target
    out[...] = target
    return out


def avg_pool2d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The average of each window of each channel.

    ``y[n, c, p, q] = 1 / divisor[p, q] * sum over r, s of
    x[n, c, p * stride + r * dilation - padding, q * stride + s * dilation - padding]``

    Parameters
    ----------
    input : (N, C, H, W) array of float32 or float64, or (N, H, W, C) with layout="NHWC"
    kernel_size, stride, padding, dilation, ceil_mode, layout
        As in `max_pool2d`; a window may lie wholly in the padding, and averages to 0.
    count_include_pad : bool
        The divisor counts the taps inside the padded image, or only those inside the image. Taps
        that overhang the padding are never counted.
    divisor_override : int, optional
        The divisor of every window, instead.
    out : array of the output's shape and dtype, optional
        Where the result goes. It may overlap the input.

    Returns
    -------
    (N, C, P, Q) array, or (N, P, Q, C)

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 5.0, 2.0], [3.0, 7.0, 0.0]]]])
    >>> fastconv.avg_pool2d(x, 2, stride=1).tolist()
    [[[[4.0, 3.5]]]]
    """
    x = input if _is_ready(input) else as_operand(input, "input")
    call = _average_call(
        x.shape, x.dtype, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override, dilation, layout, "input",
    )  # fmt: skip
    return call.write(call.problem.output_shape, out, (input, x), lambda target: call.forward(x, target))


def avg_pool2d_backward(
    grad_output: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    out: Array | None = None,
) -> Array:
    """The gradient of `avg_pool2d` with respect to its input.

    ``dx[n, c, h, w] = sum of g[n, c, p, q] / divisor[p, q]`` over the windows (p, q) that hold
    (h, w).

    Parameters
    ----------
    grad_output : (N, C, P, Q) array of float32 or float64
    input_shape : (N, C, H, W)
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, layout
        As given to `avg_pool2d`.
    out : (N, C, H, W) array, optional
        Where the gradient goes. It may overlap `grad_output`.

    Returns
    -------
    (N, C, H, W) array, with the same bits for any number of threads

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is computed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool2d_backward(np.ones((1, 1, 1, 2)), (1, 1, 2, 3), 2, stride=1).tolist()
    [[[[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]]]
    """
    g = grad_output if _is_ready(grad_output) else as_operand(grad_output, "grad_output")
    call = _average_call(
        input_shape, g.dtype, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override, dilation, layout, "input_shape",
    )  # fmt: skip
    _check_grad(g, call.problem.output_shape, None)
    return call.write(
        call.problem.input_shape, out, (grad_output, g), lambda target: call.backward(g, target)
    )
