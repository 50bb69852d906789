"""The dense layer, ReLU, softmax and cross-entropy, each with its gradients.

`linear` and its gradients are matrix products through the same kernel as convolution: one 1x1 pass
whose strides say what is a row, what is summed over, and what is a pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import Array, as_operand, check_out, is_target, new_array
from fastconv.engine import load
from fastconv.passes import PACK_LIMIT, Pass, make_pass
from fastconv.plan import FLOPS_PER_THREAD
from fastconv.problem import LARGEST
from fastconv.threads import get_num_threads
from fastconv.workspace import scratch

__all__ = [
    "LinearGradients",
    "cross_entropy",
    "cross_entropy_backward",
    "linear",
    "linear_backward",
    "relu",
    "relu_backward",
    "softmax",
    "softmax_backward",
]

ACTIVATIONS = (None, "relu")
REDUCTIONS = ("mean", "sum", "none")
# Below this many elements another thread costs more than it brings: two threads break even at 2^14
# elements of relu, 2^12 of softmax (Xeon with AVX-512).
COPIED_PER_THREAD = 1 << 14
EXPONENTIALS_PER_THREAD = 1 << 12


class LinearGradients(NamedTuple):
    """Gradients of a dense layer, each of the shape of its variable."""

    input: Array
    weight: Array
    bias: Array | None


class _Strides(NamedTuple):
    """Where one factor of a product begins its next row and its next column, in elements."""

    row: int
    column: int


class _Product(NamedTuple):
    """A matrix product as the kernel takes it."""

    task: Pass
    flops: int
    relu: bool


@functools.lru_cache(maxsize=1024)
def _product(
    sizes: tuple[int, int, int],
    left: _Strides,
    right: _Strides,
    out: _Strides,
    relu: bool,
    dtype: np.dtype[Any],
) -> _Product:
    """out[m, p] = sum over k of left[m, k] * right[k, p], for sizes (m, k, p)."""
    rows, depth, columns = sizes
    line = (1, 1, columns)
    fields = {
        "batch": 1, "groups": 1, "rows": rows, "channels": depth, "step": (1, 1, 1), "relu": relu,
        "in_size": line, "in_channel": right.row, "in_axis": (0, 0, right.column),
        "out_size": line, "out_row": out.row, "out_axis": (0, 0, out.column),
        "weight_row": left.row, "weight_channel": left.column,
    }  # fmt: skip
    task = make_pass(fields, np.zeros((1, 4), np.intp), dtype)
    return _Product(task, 2 * prod(sizes), relu)


def _threads(work: int, per_thread: int) -> int:
    return min(get_num_threads(), max(1, work // per_thread))


def _multiply(product: _Product, left: Array, right: Array, bias: Array | None, out: Array) -> None:
    """Runs a product; one without terms is its bias, or zero."""
    task, flops, is_relu = product
    if flops == 0:
        out[...] = 0 if bias is None else bias
        if is_relu:
            relu(out, out=out)
        return
    kernel = load(out.dtype).gemm
    threads = _threads(flops, FLOPS_PER_THREAD)
    size = kernel.workspace_bytes(task.geometry, task.taps, task.source, False, threads, PACK_LIMIT)
    kernel.conv(
        task.geometry, task.taps, right, left, bias, out, scratch(size), task.source, False,
        threads, PACK_LIMIT,
    )  # fmt: skip


def _new(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if prod(shape) * dtype.itemsize > LARGEST:
        raise ValueError(f"output: {shape} is beyond the address space")
    return new_array(shape, dtype)


def _target(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], operands: Sequence[Any]) -> Array:
    """The array that a kernel writes: `out` itself where it can, else a new one."""
    if out is not None and is_target(check_out(out, shape, dtype), *operands):
        return out  # type: ignore[no-any-return]
    return _new(shape, dtype)


def _delivered(result: Array, out: Any) -> Array:
    """`result`, moved to `out` where that is another array."""
    if out is None or out is result:
        return result
    out[...] = result
    return out  # type: ignore[no-any-return]


def _check_same_shape(array: Array, name: str, shape: tuple[int, ...], of: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, that of {of}, got {array.shape}")


def _check_linear(input: Any, weight: Any) -> tuple[Array, Array]:
    x = as_operand(input, "input")
    w = as_operand(weight, "weight", x.dtype)
    if x.ndim == 0:
        raise ValueError("input: expected at least one axis, got a scalar")
    if w.ndim != 2:
        raise ValueError(f"weight: expected shape (out, in), got {w.shape}")
    if w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight: expected {x.shape[-1]} input features for input of shape {x.shape}, got shape {w.shape}"
        )
    return x, w


def linear(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Apply a dense layer: ``y[..., k] = act(bias[k] + sum_c x[..., c] w[k, c])``.

    Parameters
    ----------
    input : array, (..., in)
        float32 or float64.
    weight : array, (out, in)
        Of the dtype of `input`, as is `bias`.
    bias : array, (out,), optional
    activation : {None, "relu"}
        Applied as the result is written.
    out : array, (..., out), optional
        Where the result goes; it may overlap the operands.

    Returns
    -------
    array, (..., out)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import linear
    >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, -1.0]]), activation="relu")
    array([[11.,  0.]])
    """
    x, w = _check_linear(input, weight)
    features, depth = w.shape
    b = None if bias is None else as_operand(bias, "bias", x.dtype)
    if b is not None and b.shape != (features,):
        raise ValueError(f"bias: expected shape {(features,)}, got {b.shape}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    result = _target(out, (*x.shape[:-1], features), x.dtype, (input, weight, bias))
    samples = prod(x.shape[:-1])
    task = _product(
        (features, depth, samples), _Strides(depth, 1), _Strides(1, depth), _Strides(1, features),
        activation == "relu", x.dtype,
    )  # fmt: skip
    _multiply(task, w, x, b, result)
    return _delivered(result, out)


def linear_backward(grad_output: Array, input: Array, weight: Array, bias: bool = True) -> LinearGradients:
    """Return the gradients of ``<grad_output, linear(input, weight, bias)>``.

    Parameters
    ----------
    grad_output : array, (..., out)
    input : array, (..., in)
    weight : array, (out, in)
    bias : bool
        Whether the layer has a bias.

    Returns
    -------
    LinearGradients
        Named tuple (input, weight, bias); `bias` is None for a layer without.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import linear_backward
    >>> grads = linear_backward(np.array([[1.0]]), np.array([[2.0, 3.0]]), np.array([[5.0, 7.0]]))
    >>> grads.input, grads.weight, grads.bias
    (array([[5., 7.]]), array([[2., 3.]]), array([1.]))
    """
    x, w = _check_linear(input, weight)
    features, depth = w.shape
    g = as_operand(grad_output, "grad_output", x.dtype)
    _check_same_shape(g, "grad_output", (*x.shape[:-1], features), "the output")
    samples = prod(x.shape[:-1])
    grad_input, grad_weight = new_array(x.shape, x.dtype), new_array(w.shape, x.dtype)
    rows = _Strides(depth, 1)
    by_sample = _product((samples, features, depth), _Strides(features, 1), rows, rows, False, x.dtype)
    _multiply(by_sample, g, w, None, grad_input)
    by_feature = _product((features, samples, depth), _Strides(1, features), rows, rows, False, x.dtype)
    _multiply(by_feature, g, x, None, grad_weight)
    grad_bias = None
    if bias:
        grad_bias = np.empty(features, x.dtype)
        threads = _threads(g.size, COPIED_PER_THREAD)
        load(x.dtype).activation.column_sums(samples, features, g, grad_bias, threads)
    return LinearGradients(grad_input, grad_weight, grad_bias)


def relu(input: Array, *, out: Array | None = None) -> Array:
    """Return ``max(x, 0)``, element by element; NaN stays NaN.

    Parameters
    ----------
    input : array
        float32 or float64, of any shape.
    out : array, optional
        Where the result goes; `input` itself will do.

    Returns
    -------
    array, of the shape of `input`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import relu
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    x = as_operand(input, "input")
    # Reading and writing the same place is safe element by element; a shifted overlap is not.
    operands = () if out is x else (input,)
    result = _target(out, x.shape, x.dtype, operands)
    load(x.dtype).activation.relu(x, result, _threads(x.size, COPIED_PER_THREAD))
    return _delivered(result, out)


def relu_backward(grad_output: Array, input: Array) -> Array:
    """Return the gradient of `relu`: 0 where ``x <= 0``, else `grad_output`.

    Parameters
    ----------
    grad_output, input : array
        Of one shape and dtype. The output of `relu` may stand for its input.

    Returns
    -------
    array, of the shape of `input`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import relu_backward
    >>> relu_backward(np.array([5.0, 6.0]), np.array([-1.0, 2.0]))
    array([0., 6.])
    """
    x = as_operand(input, "input")
    g = as_operand(grad_output, "grad_output", x.dtype)
    _check_same_shape(g, "grad_output", x.shape, "input")
    result = new_array(x.shape, x.dtype)
    threads = _threads(x.size, COPIED_PER_THREAD)
    load(x.dtype).activation.relu_backward(g, x, result, threads)
    return result


def _split_at(shape: tuple[int, ...], axis: Any, name: str) -> tuple[int, int, int]:
    """(elements before, along, after) an axis."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis: expected an int, got {axis!r}")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: {axis} is out of range for {name} of shape {shape}")
    axis = int(axis) % len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def softmax(input: Array, axis: int = -1) -> Array:
    """Return ``s_i = exp(x_i) / sum_j exp(x_j)`` along an axis; no finite x overflows.

    Parameters
    ----------
    input : array
        float32 or float64.
    axis : int

    Returns
    -------
    array, of the shape of `input`
        A line that holds NaN or inf, or nothing but -inf, is NaN throughout.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import softmax
    >>> softmax(np.array([1000.0, 1000.0, -1000.0]))
    array([0.5, 0.5, 0. ])
    """
    x = as_operand(input, "input")
    split = _split_at(x.shape, axis, "input")
    result = new_array(x.shape, x.dtype)
    if x.size:
        threads = _threads(x.size, EXPONENTIALS_PER_THREAD)
        load(x.dtype).activation.softmax(*split, x, result, threads)
    return result


def softmax_backward(grad_output: Array, output: Array, axis: int = -1) -> Array:
    """Return ``dx_i = s_i (g_i - sum_j g_j s_j)``, the gradient of `softmax` from its output s.

    Parameters
    ----------
    grad_output, output : array
        Of one shape and dtype.
    axis : int

    Returns
    -------
    array, of the shape of `output`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import softmax_backward
    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    s = as_operand(output, "output")
    g = as_operand(grad_output, "grad_output", s.dtype)
    _check_same_shape(g, "grad_output", s.shape, "output")
    split = _split_at(s.shape, axis, "output")
    result = new_array(s.shape, s.dtype)
    if s.size:
        threads = _threads(s.size, COPIED_PER_THREAD)
        load(s.dtype).activation.softmax_backward(*split, g, s, result, threads)
    return result


def _check_labels(logits: Any, target: Any, reduction: Any) -> tuple[Array, Array]:
    x = as_operand(logits, "logits")
    if x.ndim < 2:
        raise ValueError(f"logits: expected shape (N, C, *spatial), got {x.shape}")
    if not isinstance(target, np.ndarray):
        raise TypeError(f"target: expected an integer array, got {type(target).__name__}")
    labels = np.asarray(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target: expected an integer array, got {labels.dtype}")
    _check_same_shape(labels, "target", (x.shape[0], *x.shape[2:]), "logits without its classes")
    if labels.size and not (labels.min() >= 0 and labels.max() < x.shape[1]):
        raise ValueError(
            f"target: expected labels from 0 to {x.shape[1] - 1}, "
            f"got labels from {labels.min()} to {labels.max()}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
    return x, np.require(labels, np.intp, ["C", "A"])


def cross_entropy(logits: Array, target: Array, reduction: str = "mean") -> Any:
    """Return ``log(sum_j exp(x_j)) - x_target``, reduced over samples and positions.

    Parameters
    ----------
    logits : array, (N, C, *spatial)
        Scores x of the C classes, float32 or float64.
    target : int array, (N, *spatial)
        Class labels from 0 to C - 1.
    reduction : {"mean", "sum", "none"}
        The mean over no elements is NaN.

    Returns
    -------
    scalar of the dtype of `logits`, or for "none" an array of the shape of `target`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import cross_entropy
    >>> float(cross_entropy(np.array([[0.0, 0.0]]), np.array([1])))  # log 2
    0.6931471805599453
    """
    x, labels = _check_labels(logits, target, reduction)
    losses = np.empty(labels.shape, x.dtype)
    if losses.size:
        split = _split_at(x.shape, 1, "logits")
        threads = _threads(x.size, EXPONENTIALS_PER_THREAD)
        load(x.dtype).activation.cross_entropy(*split, x, labels, losses, threads)
    if reduction == "none":
        return losses
    with np.errstate(invalid="ignore", over="ignore"):
        total = losses.sum(dtype=np.float64)
        return x.dtype.type(total if reduction == "sum" else np.divide(total, losses.size))


def _loss_scales(grad_output: Any, labels: Array, reduction: str, dtype: np.dtype[Any]) -> Array:
    """The gradient of each sample's own loss."""
    if isinstance(grad_output, Real):
        g: Any = float(grad_output)
    elif isinstance(grad_output, np.ndarray) and grad_output.ndim == 0:
        g = float(as_operand(grad_output, "grad_output"))
    else:
        g = as_operand(grad_output, "grad_output", dtype)
        if reduction != "none":
            raise ValueError(
                f"grad_output: expected a scalar for reduction {reduction!r}, got shape {g.shape}"
            )
        _check_same_shape(g, "grad_output", labels.shape, "target")
    if reduction == "mean":
        g = g / max(labels.size, 1)
    scales = np.empty(labels.shape, dtype)
    scales[...] = g
    return scales


def cross_entropy_backward(
    logits: Array, target: Array, reduction: str = "mean", grad_output: Any = 1.0
) -> Array:
    """Return ``dx_j = g (softmax(x)_j - [j = target])``, g divided by their number for "mean".

    Parameters
    ----------
    logits : array, (N, C, *spatial)
    target : int array, (N, *spatial)
    reduction : {"mean", "sum", "none"}
    grad_output : float, or array of the shape of `target` for "none"
        Gradient g of the loss.

    Returns
    -------
    array, of the shape of `logits`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.dense import cross_entropy_backward
    >>> cross_entropy_backward(np.array([[0.0, 0.0]]), np.array([1]))
    array([[ 0.5, -0.5]])
    """
    x, labels = _check_labels(logits, target, reduction)
    scales = _loss_scales(grad_output, labels, reduction, x.dtype)
    result = new_array(x.shape, x.dtype)
    if result.size:
        split = _split_at(x.shape, 1, "logits")
        threads = _threads(x.size, EXPONENTIALS_PER_THREAD)
        load(x.dtype).activation.cross_entropy_backward(*split, x, labels, scales, result, threads)
    return result
