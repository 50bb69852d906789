"""Correlation by the compiled kernels: any number of axes, reduced to convolutions of images.

An axis along which the kernel has one tap is a batch. Two axes are an image. A third becomes channels: the
planes that a slab of outputs reads, one filter for each output. Further ones are summed tap by tap.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any

import numpy as np

from fastconv import engine
from fastconv.arrays import LINE, Array, new_array
from fastconv.conv import Call, conv2d
from fastconv.plan import plan_conv
from fastconv.problem import conv_problem
from fastconv.signal.window import Window

# A signal is cut into rows, which a filter slides over together: so many at least, of at most and at least
# so many outputs. 10^6 samples, 100 taps, float32, AVX-512, 1 thread: 4.0 ms, 5.0 as one row.
SIGNAL_ROWS, SIGNAL_LENGTH, SHORTEST_ROW = 16, 1 << 12, 1 << 8
PLANES = 6  # of a volume's outputs, computed at once
SLAB_BYTES = 8 << 20  # planes of a volume copied at a time


def correlate_direct(image: Array, kernel: Array, window: Window) -> Array:
    """The window of the correlation of floating-point or complex arrays of one dtype.

    The last axes of the image are those of the kernel, axes before them a batch; operands are trimmed.
    """
    axes = kernel.ndim
    out_shape = (*image.shape[: image.ndim - axes], *window.size)
    long = [axis for axis in range(axes) if kernel.shape[axis] > 1]
    # Batches first: axes of one tap, whose outputs are as many as their elements, move to the front.
    lead = image.ndim - axes
    order = [*range(lead), *(lead + a for a in range(axes) if a not in long), *(lead + a for a in long)]
    batch = image.transpose(order)
    batch = batch.reshape(-1, *batch.shape[image.ndim - len(long) :])
    inner = Window(tuple(window.start[a] for a in long), tuple(window.size[a] for a in long))
    result = _correlate_batch(batch, kernel.reshape([kernel.shape[a] for a in long]), inner)
    result = result.reshape([out_shape[axis] for axis in order])
    return result.transpose(np.argsort(order))


def _correlate_batch(images: Array, kernel: Array, window: Window) -> Array:
    """One batch axis, then those of the kernel, which all have several taps."""
    if kernel.ndim == 0:
        return images * kernel
    if kernel.ndim == 1:
        return _signals(images, kernel, window)
    if kernel.ndim == 2:
        return filter_one_channel(images, kernel, window)
    if kernel.ndim == 3:
        return np.stack([_volume(image, kernel, window) for image in images])
    return _tap_by_tap(images, kernel, window)


def pads_of(image: Array, kernel: Array, window: Window) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each of the last axes, as the window reads them."""
    axes = len(window.size)
    sizes = zip(image.shape[-axes:], kernel.shape[-axes:], window.start, window.size, strict=True)
    return tuple((-first, first + outputs + k - 1 - n) for n, k, first, outputs in sizes)


@functools.lru_cache(maxsize=4096)
def filter_call(image: tuple[int, ...], weight: tuple[int, ...], pads: Any, dtype: np.dtype[Any]) -> Call:
    """(N, C, H, W) images by (K, C, R, S) filters, bound to the kernel that is fastest."""
    return Call(plan_conv(conv_problem(image, weight, padding=pads), "forward", dtype))


engine.forget_on_change(filter_call.cache_clear)


def _filter_images(images: Array, weight: Array, pads: Any) -> Array:
    """`conv2d` on arrays of any layout."""
    x, w = (np.require(array, requirements=["C", "A"]) for array in (images, weight))
    return filter_call(x.shape, w.shape, pads, x.dtype)((x, w, None), None)


def filter_one_channel(images: Array, kernel: Array, window: Window) -> Array:
    """(N, H, W) images by one (R, S) filter: all two-dimensional work on real or complex images.

    Real and imaginary parts of complex images are images by themselves, those of a complex filter two
    filters: (a + bi)(c + di) = ac - bd + (ad + bc)i.
    """
    pads = pads_of(images, kernel, window)
    if images.dtype.kind != "c":
        return _filter_images(images[:, None], kernel[None, None], pads)[:, 0]
    filters = np.stack([kernel.real, kernel.imag] if kernel.imag.any() else [kernel.real])[:, None]
    parts = np.stack([images.real, images.imag]).reshape(-1, 1, *images.shape[1:])
    products = _filter_images(parts, filters, pads).reshape(2, len(images), len(filters), *window.size)
    result = np.empty((len(images), *window.size), images.dtype)
    result.real, result.imag = products[:, :, 0]
    if len(filters) == 2:
        result.real -= products[1, :, 1]
        result.imag += products[0, :, 1]
    return result


def _signals(signals: Array, kernel: Array, window: Window) -> Array:
    """(N, L) signals by one (S,) filter: the rows of one image. Long signals are rows that overlap."""
    (outputs,) = window.size
    row = min(SIGNAL_LENGTH, -(-outputs // (SIGNAL_ROWS * LINE)) * LINE)
    if len(signals) >= SIGNAL_ROWS or row < SHORTEST_ROW:
        image = Window((0, *window.start), (len(signals), outputs))
        together: Array = filter_one_channel(signals[None], kernel[None], image)[0]
        return together
    ((before, after),) = pads_of(signals, kernel, window)
    rows = -(-outputs // row)
    padded = np.pad(signals, ((0, 0), (before, after + rows * row - outputs)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, row + len(kernel) - 1, axis=1)[:, ::row]
    image = Window((0, 0), (len(signals) * rows, row))
    parts = filter_one_channel(windows.reshape(1, len(signals) * rows, -1), kernel[None], image)
    result: Array = parts.reshape(len(signals), -1)[:, :outputs]
    return result


def _volume(volume: Array, kernel: Array, window: Window) -> Array:
    """A (D, H, W) volume by one (T, R, S) filter: slabs of planes are channels, their outputs filters."""
    if volume.dtype.kind == "c":
        return _complex_volume(volume, kernel, window)
    depth, (outer, *sides) = len(kernel), pads_of(volume, kernel, window)
    planes = min(PLANES, window.size[0])
    slabs = -(-window.size[0] // planes)
    padded = np.pad(volume, ((outer[0], outer[1] + slabs * planes - window.size[0]), (0, 0), (0, 0)))
    weight = np.zeros((planes, planes + depth - 1, *kernel.shape[1:]), kernel.dtype)
    for plane in range(planes):
        weight[plane, plane : plane + depth] = kernel
    result = new_array((slabs, planes, *window.size[1:]), volume.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(padded, planes + depth - 1, axis=0)[::planes]
    step = max(1, SLAB_BYTES // max(1, windows[0].nbytes))
    for first in range(0, slabs, step):
        part = np.ascontiguousarray(np.moveaxis(windows[first : first + step], -1, 1))
        conv2d(part, weight, padding=tuple(sides), out=result[first : first + step])
    return result.reshape(-1, *window.size[1:])[: window.size[0]]


def _complex_volume(volume: Array, kernel: Array, window: Window) -> Array:
    """(a + bi)(c + di) = ac - bd + (ad + bc)i, on real volumes."""
    parts = [np.ascontiguousarray(part) for part in (volume.real, volume.imag)]
    result = np.empty(window.size, volume.dtype)
    result.real, result.imag = (_volume(part, kernel.real, window) for part in parts)
    if kernel.imag.any():
        result.real -= _volume(parts[1], kernel.imag, window)
        result.imag += _volume(parts[0], kernel.imag, window)
    return result


def _tap_by_tap(images: Array, kernel: Array, window: Window) -> Array:
    """Sums over the first axis of the kernel, of correlations along the others."""
    inner = Window(window.start[1:], window.size[1:])
    result = np.zeros((len(images), *window.size), images.dtype)
    for tap, part in enumerate(kernel):
        first = max(0, -window.start[0] - tap)
        last = min(window.size[0], images.shape[1] - window.start[0] - tap)
        if first < last:
            read = images[:, first + window.start[0] + tap : last + window.start[0] + tap]
            flat = read.reshape(-1, *read.shape[2:])
            result[:, first:last] += _correlate_batch(flat, part, inner).reshape(result[:, first:last].shape)
    return result


def direct_flops(kernel: tuple[int, ...], outputs: int) -> int:
    """Multiplications and additions that `correlate_direct` does on real operands, idle ones included."""
    long = [k for k in kernel if k > 1]
    taps = prod(long)
    if len(long) > 2:
        taps = taps // long[-3] * (long[-3] + PLANES - 1)
    return 2 * outputs * taps
