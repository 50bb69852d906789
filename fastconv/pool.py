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
from math import prod
from typing import Any

import numpy as np

from fastconv import engine
from fastconv.arrays import FLOAT32, FLOAT64, Array, as_operand, check_out, is_target, new_array
from fastconv.problem import LARGEST, Padding
from fastconv.problem_pool import PoolProblem, check_flag, pool_problem, refuse_empty_windows
from fastconv.threads import get_num_threads
from fastconv.workspace import scratch

Ints = int | Sequence[int]

# The struct PoolGeometry of kernels/pool.pxd, field by field.
GEOMETRY = np.dtype(
    [("planes", np.intp), ("inner", np.intp)]
    + [(n, np.intp, 3) for n in ("in_size", "out_size", "kernel", "stride", "dilation", "before")]
)
# The struct Tap of kernels/pool_index.pxd.
TAP = np.dtype([("offset", np.intp, 3), ("position", np.intp)])
# Index dtype -> the enum IndexKind of kernels/pool_index.pxd.
INDEX_KINDS = {
    None: 0,
    np.dtype(np.uint8): 1,
    np.dtype(np.uint16): 2,
    np.dtype(np.uint32): 3,
    np.dtype(np.int64): 4,
}
_FLAT = np.dtype(np.int64)
# The enum FinishKind of kernels/pool_reduce.pxd.
FACTOR, QUOTIENT, QUOTIENTS = 1, 2, 3

# Elements read and written for each thread: a second one breaks even at 16,000 (3x3 stride 2, Xeon
# with AVX-512: 5.8 us on one thread and on two; at 31,000 8.7 and 7.3).
ELEMENTS_PER_THREAD = 8_192
# The gradient gathers where windows are small and rows long, and scatters elsewhere. On a Xeon with
# AVX-512 and one thread, gathering takes 0.6 (2x2 stride 2, rows of 224), 0.85 (3x3 stride 1, 56),
# 1.1 (3x3 stride 2, 112), 1.7 (5x5, 20) and 3.9 (3x3 stride 2, 13) times as long (bench_pool.py).
GATHER_TAPS = 9
GATHER_WIDTH = 32  # elements of a row of the input

_VECTOR = 16  # elements of the longest vector: divisors are read in whole ones
TABLE_ENTRIES = 1 << 16  # of the table that turns flat indices into taps; larger ones cost two divisions each

_KNOWN_CALLS = 4096  # calls kept for the fast path


def _three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Values of 1 to 3 spatial axes as (depth, height, width)."""
    return (fill,) * (3 - len(values)) + tuple(values)


def _geometry(p: PoolProblem) -> Array:
    """What the kernels know of a problem; the stride is immaterial where there is one window."""
    geometry = np.zeros((), GEOMETRY)
    geometry["planes"] = p.batch if p.channels_last else p.batch * p.channels
    geometry["inner"] = p.channels if p.channels_last else 1
    geometry["in_size"] = _three(p.in_size, 1)
    geometry["out_size"] = _three(p.out_size, 1)
    geometry["kernel"] = _three(p.kernel, 1)
    geometry["stride"] = [
        stride if size > 1 else 1
        for stride, size in zip(_three(p.stride, 1), _three(p.out_size, 1), strict=True)
    ]
    geometry["dilation"] = _three(p.dilation, 1)
    geometry["before"] = _three([before for before, _ in p.pads], 0)
    return geometry


def _mirror(p: PoolProblem) -> Array | None:
    """The problem whose sums are the gradient of an average with stride 1; None where there is no such.

    Element h lies in windows h + before - t, so that their gradients are a window of grad_output with the
    padding kernel - 1 - before.
    """
    geometry = _geometry(p)
    before = (geometry["kernel"] - 1) * geometry["dilation"] - geometry["before"]
    overlap = (geometry["out_size"] > 1) & (geometry["kernel"] > 1)
    if not overlap.any() or (geometry["stride"] > 1).any() or (before < 0).any():
        return None
    mirror = geometry.copy()
    mirror["in_size"], mirror["out_size"] = geometry["out_size"], geometry["in_size"]
    mirror["before"] = before
    return mirror


def _taps(p: PoolProblem) -> Array:
    """Where each tap of a window lies, from its first: along each axis, and in the plane."""
    taps = np.zeros(p.taps, TAP)
    kernel, dilation = _three(p.kernel, 1), _three(p.dilation, 1)
    offsets = np.indices(kernel).reshape(3, -1).T * dilation
    taps["offset"] = offsets
    height, width = _three(p.in_size, 1)[1:]
    taps["position"] = (offsets[:, 0] * height + offsets[:, 1]) * width + offsets[:, 2]
    return taps


def _codes_at(positions: Array) -> Array | None:
    """The tap at each position from a window's first, or -1; None where taps share one, or beyond a limit."""
    size = int(positions[-1]) + 1
    if size > TABLE_ENTRIES or len(np.unique(positions)) < len(positions):
        return None
    table = np.full(size, -1, np.int32)
    table[positions] = np.arange(len(positions))
    return table


def _divisors(p: PoolProblem, count_include_pad: bool, override: int | None) -> list[Array]:
    """The factors of the divisor for each output along (depth, height, width)."""
    factors = [
        np.maximum(np.array(p.counts(axis, count_include_pad), np.float64), 1) for axis in range(p.axes)
    ]
    if override is not None:
        factors = [np.ones_like(factor) for factor in factors]
        factors[-1] *= override
    factors[-1] = np.repeat(factors[-1], p.channels if p.channels_last else 1)
    return [np.ones(1)] * (3 - p.axes) + factors


def _finish(factors: list[Array]) -> int:
    """How sums become averages, as a FinishKind: exactly by a factor, by one divisor, or by many."""
    if any(np.ptp(factor) for factor in factors if factor.size):
        return QUOTIENTS
    mantissa, _ = np.frexp(prod(float(factor[0]) for factor in factors if factor.size))
    return FACTOR if abs(mantissa) == 0.5 else QUOTIENT


class _Call:
    """A pooling problem bound to its kernels: what a call with known arguments needs."""

    __slots__ = ("dtype", "empty", "geometry", "kernels", "most_threads", "problem", "sizes")

    def __init__(self, problem: PoolProblem, dtype: np.dtype[Any]) -> None:
        self.problem = problem
        self.dtype = dtype
        self.kernels = engine.load(dtype)
        self.geometry = _geometry(problem)
        elements = prod(problem.input_shape) + prod(problem.output_shape)
        self.empty = 0 in problem.input_shape or 0 in problem.output_shape
        self.most_threads = max(1, elements // ELEMENTS_PER_THREAD)
        self.sizes: dict[str, int] = {}

    def workspace(self, threads: int, part: str) -> Array:
        return scratch(self.sizes[part] * threads + 64)

    def threads(self) -> int:
        return 1 if self.most_threads == 1 else min(get_num_threads(), self.most_threads)

    def write(self, shape: tuple[int, ...], out: Any, operands: tuple[Any, ...], run: Any) -> Array:
        """run(target), into `out` or a new array; an `out` that overlaps is written last."""
        if out is None:
            target = new_array(shape, self.dtype)
            run(target)
            return target
        result = check_out(out, shape, self.dtype)
        target = result if is_target(result, *operands) else new_array(shape, self.dtype)
        run(target)
        if target is not result:
            result[...] = target
        return result


class _MaxCall(_Call):
    __slots__ = ("codes_at", "gather", "index_dtype", "scatters_pixels", "taps")

    def __init__(self, problem: PoolProblem, dtype: np.dtype[Any]) -> None:
        refuse_empty_windows(problem)
        super().__init__(problem, dtype)
        width = problem.in_size[-1] * (problem.channels if problem.channels_last else 1)
        self.gather = problem.taps <= GATHER_TAPS and width >= GATHER_WIDTH
        # Threads would share an image by bands, and visit most windows twice: 20x20, 256 channels, 5x5 with a
        # step of 1 took 143 us on one thread and 598 on two.
        overlap = any(k > s for k, s in zip(problem.kernel, problem.stride, strict=True))
        self.scatters_pixels = problem.channels_last and overlap and not self.gather
        self.index_dtype = np.dtype(
            np.uint8 if problem.taps <= 1 << 8 else np.uint16 if problem.taps <= 1 << 16 else np.uint32
        )
        self.taps: Array | None = None
        self.codes_at: Array | None = None
        forward, backward = self.kernels.pool_max, self.kernels.pool_max_grad
        self.sizes = {
            "values": forward.thread_bytes(self.geometry, False),
            "indices": forward.thread_bytes(self.geometry, True),
            "backward": backward.thread_bytes(self.geometry, self.gather),
        }

    def window_taps(self) -> Array:
        if self.taps is None:
            if self.problem.taps >= 1 << 31:
                raise ValueError(
                    f"kernel_size: indices need windows of less than 2**31 elements, got "
                    f"{self.problem.kernel}"
                )
            self.taps = _taps(self.problem)
            self.codes_at = _codes_at(self.taps["position"])
        return self.taps

    def values(self, x: Array, out: Array) -> None:
        if self.empty:
            return
        threads = self.threads()
        workspace = self.workspace(threads, "values")
        self.kernels.pool_max.forward(self.geometry, x, out, workspace, threads)

    def indexed(self, x: Array, out: Array | None, indices: Array) -> None:
        if self.empty:
            return
        threads = self.threads()
        workspace = self.workspace(threads, "indices")
        kind = INDEX_KINDS[indices.dtype]
        self.kernels.pool_max.forward_indexed(
            self.geometry, self.window_taps(), x, out, indices, kind, workspace, threads
        )

    def backward(self, grad_output: Array, indices: Array, trusted: bool, out: Array) -> None:
        if self.empty:
            out.fill(0)
            return
        threads = self.threads()
        if self.scatters_pixels:
            threads = min(threads, self.problem.batch)
        workspace = self.workspace(threads, "backward")
        kind = INDEX_KINDS[indices.dtype]
        bad = self.kernels.pool_max_grad.backward(
            self.geometry, self.window_taps(), self.codes_at, grad_output, indices, kind, trusted,
            self.gather, out, workspace, threads,
        )  # fmt: skip
        if bad:
            raise ValueError(
                "indices: some are no element of their window inside the input; expected those "
                "that max_pool2d returns for the same arguments"
            )


class _AverageCall(_Call):
    __slots__ = ("divisors", "finish", "mirror", "mirrored")

    def __init__(
        self,
        problem: PoolProblem,
        dtype: np.dtype[Any],
        count_include_pad: bool,
        override: int | None,
    ) -> None:
        super().__init__(problem, dtype)
        factors = _divisors(problem, count_include_pad, override)
        self.divisors = np.concatenate([*factors, np.ones(_VECTOR)]).astype(dtype)
        self.finish = _finish(factors)
        self.mirror = _mirror(problem) if self.finish != QUOTIENTS else None
        # The one divisor, where the mirrored problem looks for its factors.
        self.mirrored = np.ones(sum(_three(problem.in_size, 1)) + _VECTOR, dtype)
        self.mirrored[0] = prod(float(factor[0]) for factor in factors if factor.size)
        kernel = self.kernels.pool_average
        self.sizes = {
            "forward": kernel.thread_bytes(self.geometry, False),
            "backward": kernel.thread_bytes(self.geometry, True),
        }
        if self.mirror is not None:
            self.sizes["backward"] = kernel.thread_bytes(self.mirror, False)

    def forward(self, x: Array, out: Array) -> None:
        if self.empty:
            out.fill(0)
            return
        threads = self.threads()
        workspace = self.workspace(threads, "forward")
        self.kernels.pool_average.forward(
            self.geometry, self.divisors, self.finish, x, out, workspace, threads
        )

    def backward(self, grad_output: Array, out: Array) -> None:
        if self.empty:
            out.fill(0)
            return
        threads = self.threads()
        workspace = self.workspace(threads, "backward")
        kernel = self.kernels.pool_average
        if self.mirror is not None:
            kernel.forward(self.mirror, self.mirrored, self.finish, grad_output, out, workspace, threads)
            return
        kernel.backward(self.geometry, self.divisors, self.finish, grad_output, out, workspace, threads)


_seen: dict[tuple[Any, ...], Any] = {}  # by exact arguments
_bound: dict[tuple[Any, ...], Any] = {}  # by problem, dtype and what else a call is made of
engine.forget_on_change(_seen.clear)
engine.forget_on_change(_bound.clear)


def _bind(kind: type, *arguments: Any) -> Any:
    key = (kind, *arguments)
    call = _bound.get(key)
    if call is None:
        if len(_bound) >= _KNOWN_CALLS:
            _bound.clear()
        call = _bound[key] = kind(*arguments)
    return call


def _plain(*values: Any) -> bool:
    """Are these ints, strings or None? True == 1 == 1.0 would find each other's calls."""
    return all(value is None or value.__class__ in _PLAIN for value in values)


_PLAIN = frozenset({int, str})


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
) -> _MaxCall:
    key = None
    if _plain(kernel_size, stride, padding, dilation, layout) and ceil_mode.__class__ is bool:
        key = (x.shape, x.dtype, kernel_size, stride, padding, dilation, ceil_mode, layout)
        call = _seen.get(key)
        if call is not None:
            return call  # type: ignore[no-any-return]
    problem = pool_problem(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout=layout)
    call = _bind(_MaxCall, problem, x.dtype)
    if key is not None:
        _remember(key, call)
    return call  # type: ignore[no-any-return]


def _average_call(
    shape: Any, dtype: np.dtype[Any], kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any,
    count_include_pad: Any, divisor_override: Any, dilation: Any, layout: Any, name: str,
) -> _AverageCall:  # fmt: skip
    key = None
    if (
        _plain(kernel_size, stride, padding, divisor_override, dilation, layout)
        and ceil_mode.__class__ is bool
        and count_include_pad.__class__ is bool
        and shape.__class__ is tuple
        and _plain(*shape)
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
    call = _bind(_AverageCall, problem, dtype, count_include_pad, _check_divisor(divisor_override))
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


def _check_indices(indices: Any, call: _MaxCall) -> Array:
    if not isinstance(indices, np.ndarray):
        raise TypeError(f"indices: expected a NumPy array, got {type(indices).__name__}")
    native = indices.dtype.newbyteorder("=")
    if native not in (_FLAT, call.index_dtype):
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
    indices = np.empty(shape, _FLAT if return_indices is True else call.index_dtype)
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
