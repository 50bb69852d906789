"""Correlation by the compiled kernels: any number of axes, reduced to convolutions of images.

An axis along which the kernel has one tap is a batch. Two axes are an image. A third becomes channels: the
planes that a slab of outputs reads, one filter for each output. Further ones are summed tap by tap.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv.arrays import Array, new_array
from fastconv.conv import conv2d
from fastconv.signal.window import Window

# Filters of more rows than this compute PHASES rows of outputs at once (`filter_images`). Milliseconds with
# 1, 4, 6 and 8 rows at once, 1024x1024 float32, AVX-512, 2 threads: 3x3 0.76, 0.85, 0.84, 0.84; 5x5 1.21,
# 1.04, 1.00, 1.06; 9x9 2.50, 1.78, 1.62, 1.65; 15x15 5.97, 3.26, 2.92, 2.93.
SINGLE_ROWS = 3
PHASES = 6
# Outputs of one call: its rows are put in order while they are in the cache. 4096x4096, 7x7, 2 threads:
# 33 ms in bands of 4 MiB, 41 in one.
BAND_BYTES = 4 << 20
# Longer signals are cut: 10^6 samples, 30 taps, float32, 1 thread: 9.4 ms whole, 1.8 ms in parts of 10^5.
SIGNAL_LENGTH = 1 << 15
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


def _pads(image: Array, kernel: Array, window: Window) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each of the last axes, as the window reads them."""
    axes = len(window.size)
    sizes = zip(image.shape[-axes:], kernel.shape[-axes:], window.start, window.size, strict=True)
    return tuple((-first, first + outputs + k - 1 - n) for n, k, first, outputs in sizes)


def filter_one_channel(images: Array, kernel: Array, window: Window) -> Array:
    """(N, H, W) images by one (R, S) filter: all two-dimensional work on real or complex images.

    A complex image is two channels, its real and its imaginary part; a complex filter is two filters.
    """
    pads = _pads(images, kernel, window)
    if images.dtype.kind != "c":
        return filter_images(images[:, None], kernel[None, None], pads)[:, 0]
    real, imaginary = kernel.real, kernel.imag
    parts = np.stack([images.real, images.imag], axis=1)
    if not imaginary.any():
        halves = filter_images(parts.reshape(-1, 1, *images.shape[1:]), real[None, None], pads)
        halves = halves.reshape(len(images), 2, *window.size)
    else:
        weights = np.stack([np.stack([real, -imaginary]), np.stack([imaginary, real])])
        halves = filter_images(parts, weights, pads)
    result = np.empty((len(images), *window.size), images.dtype)
    result.real, result.imag = halves[:, 0], halves[:, 1]
    return result


def filter_images(images: Array, weight: Array, pads: Any) -> Array:
    """`conv2d` for few filters: (N, C, H, W) by (K, C, R, S), where K is so small that registers stay idle.

    Output rows P i to P i + P - 1 become P channels: filter p is the filter moved down by p rows, and the
    image is read with stride P. That is (R + P - 1) / R times the multiplications, at several times the rate.
    """
    filters, channels, taps, width = weight.shape
    phases = PHASES // filters if taps > SINGLE_ROWS else 1
    if phases < 2:
        # conv2d knows calls with an int again at once: 10 us in place of 45.
        same = len({amount for pair in pads for amount in pair}) == 1
        return conv2d(images, weight, padding=pads[0][0] if same else pads)
    (above, below), sides = pads
    rows = images.shape[2] + above + below - taps + 1
    columns = images.shape[3] + sum(sides) - width + 1
    moved = np.zeros((filters, phases, channels, taps + phases - 1, width), weight.dtype)
    for phase in range(phases):
        moved[:, phase, :, phase : phase + taps] = weight
    moved = moved.reshape(-1, *moved.shape[2:])
    whole = -(-rows // phases)
    result = new_array((len(images), filters, whole, phases, columns), images.dtype)
    band = max(1, BAND_BYTES // max(1, result[:, :, 0].nbytes))
    for first in range(0, whole, band):
        last = min(whole, first + band)
        top, bottom = first * phases - above, last * phases + taps - 1 - above
        part = images[:, :, max(0, top) : max(0, bottom)]
        around = (max(0, -top), bottom - max(0, top) - part.shape[2]), sides
        computed = conv2d(part, moved, stride=(phases, 1), padding=around)
        split = computed.reshape(len(images), filters, phases, last - first, columns)
        result[:, :, first:last] = split.swapaxes(2, 3)
    return result.reshape(len(images), filters, whole * phases, columns)[:, :, :rows]


def _signals(signals: Array, kernel: Array, window: Window) -> Array:
    """(N, L) signals by one (S,) filter; long signals as rows that overlap."""
    (outputs,) = window.size
    if outputs <= 2 * SIGNAL_LENGTH:
        flat = Window((0, *window.start), (1, outputs))
        return filter_one_channel(signals[:, None], kernel[None], flat)[:, 0]
    ((before, after),) = _pads(signals, kernel, window)
    rows = -(-outputs // SIGNAL_LENGTH)
    padding = before, after + rows * SIGNAL_LENGTH - outputs
    padded = np.pad(signals, ((0, 0), padding))
    length = SIGNAL_LENGTH + len(kernel) - 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, length, axis=1)[:, ::SIGNAL_LENGTH]
    flat = Window((0, 0), (1, SIGNAL_LENGTH))
    result = filter_one_channel(windows.reshape(-1, 1, length), kernel[None], flat)
    return result.reshape(len(signals), -1)[:, :outputs]


def _volume(volume: Array, kernel: Array, window: Window) -> Array:
    """A (D, H, W) volume by one (T, R, S) filter: slabs of planes are channels, their outputs filters."""
    if volume.dtype.kind == "c":
        return _complex_volume(volume, kernel, window)
    depth, (outer, *sides) = len(kernel), _pads(volume, kernel, window)
    planes = min(PHASES, window.size[0])
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
    if len(long) >= 2 and (len(long) > 2 or long[-2] > SINGLE_ROWS):
        axis = -2 if len(long) == 2 else len(long) - 3
        taps = taps // long[axis] * (long[axis] + PHASES - 1)
    return 2 * outputs * taps
