"""The textbook form: an explicit im2col matrix, multiplied by NumPy.

    columns[n, g, (c, t), o] = input[n, g, c, o * stride + t * dilation - before]
    output = weight @ columns,   dw = grad @ columns^T,   dx = col2im(weight^T @ grad)

Kept for teaching and as a yardstick; it stores the whole matrix, R*S times the input.
"""

from __future__ import annotations

import itertools
from math import prod

import numpy as np

from fastconv.arrays import Array
from fastconv.problem import ConvProblem


def _windows(p: ConvProblem, padded: Array, tap: tuple[int, ...]) -> Array:
    """The view of the padded input that one tap sees, as (N, C, *out_size)."""
    spans = tuple(
        slice(t * d, t * d + s * (o - 1) + 1, s)
        for t, d, s, o in zip(tap, p.dilation, p.stride, p.out_size, strict=True)
    )
    view: Array = padded[(slice(None), slice(None), *spans)]
    return view


def _taps(p: ConvProblem) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(k) for k in p.kernel)))


def columns(p: ConvProblem, input: Array) -> Array:
    """The im2col matrix, (N, groups, C / groups * taps, outputs)."""
    padded = np.pad(input, ((0, 0), (0, 0), *p.pads))
    taps = _taps(p)
    matrix = np.empty((p.batch, p.in_channels, len(taps), *p.out_size), input.dtype)
    for index, tap in enumerate(taps):
        matrix[:, :, index] = _windows(p, padded, tap)
    return matrix.reshape(p.batch, p.groups, p.group_in * len(taps), prod(p.out_size))


# Infinity times the padding's zeros is NaN, as in the kernels: no reason for a warning.
_quiet = np.errstate(invalid="ignore", over="ignore")


@_quiet
def forward(p: ConvProblem, input: Array, weight: Array, bias: Array | None, relu: bool, out: Array) -> None:
    kernels = weight.reshape(p.groups, p.group_out, p.group_in * prod(p.kernel))
    product = np.matmul(kernels, columns(p, input)).reshape(p.output_shape)
    if bias is not None:
        product += bias.reshape(1, -1, *(1,) * p.axes)
    if relu:
        np.maximum(product, 0, out=product)
    out[...] = product


@_quiet
def input_grad(p: ConvProblem, weight: Array, grad_output: Array, out: Array) -> None:
    kernels = weight.reshape(p.groups, p.group_out, p.group_in * prod(p.kernel))
    grads = grad_output.reshape(p.batch, p.groups, p.group_out, prod(p.out_size))
    taps = _taps(p)
    matrix = np.matmul(kernels.transpose(0, 2, 1), grads)
    matrix = matrix.reshape(p.batch, p.in_channels, len(taps), *p.out_size)
    padded_size = tuple(i + b + a for i, (b, a) in zip(p.in_size, p.pads, strict=True))
    padded = np.zeros((p.batch, p.in_channels, *padded_size), out.dtype)
    for index, tap in enumerate(taps):
        _windows(p, padded, tap)[...] += matrix[:, :, index]
    inner = tuple(slice(b, b + i) for i, (b, _) in zip(p.in_size, p.pads, strict=True))
    out[...] = padded[(slice(None), slice(None), *inner)]


@_quiet
def weight_grad(p: ConvProblem, input: Array, grad_output: Array, out: Array) -> None:
    grads = grad_output.reshape(p.batch, p.groups, p.group_out, prod(p.out_size))
    product = np.matmul(grads, columns(p, input).swapaxes(2, 3)).sum(axis=0)
    out[...] = product.reshape(p.weight_shape)
