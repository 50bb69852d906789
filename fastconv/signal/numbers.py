"""Correlation of any numbers, by correlations of floating-point ones; and the choice of a method.

floats             as they are; float16 in float32
complex            as two channels (direct), or by complex transforms
integers, bools    exactly, modulo the width of the result: in float32 or float64 where no sum can exceed what
                   these hold, else in parts of few bits, each of which fits
long doubles       in NumPy, tap by tap; objects in one dimension by numpy.convolve
"""

from __future__ import annotations

import itertools
from math import log2, prod

import numpy as np

from fastconv import engine
from fastconv.arrays import Array
from fastconv.signal.direct import correlate_direct, direct_flops
from fastconv.signal.overlap_save import FIXED_COST, correlate_fft, tiling
from fastconv.signal.window import Window, exchanged, last_axes, reverse, trimmed

METHODS = ("auto", "direct", "fft")
NATIVE = {np.dtype(code) for code in "fdFD"}
# Sums below these are exact in a float32, in a float64, and after transforms in float64. The last leaves 11
# bits for the rounding of transforms of up to 2^30 elements that are 4096 times the taps.
FLOAT32_BITS, FLOAT64_BITS, FFT_BITS = 24, 53, 42
WORD_BITS = 64

# What overlap-save costs beside the direct method, in flops of the latter: for one step of a logarithm of an
# element, and for a call. One-channel "same" filters, float32, AVX-512: equal at 25x25 to 29x29 with one
# thread, 31x31 to 37x37 with two, on 512x512 to 4096x4096; signals of 10^6 samples at 200 and 300 taps.
FFT_FLOPS = 58.0
FFT_CALL_FLOPS = 1.5e7
SIGNAL_RATE = 2.5  # how many times slower a flop is in one dimension, where no two taps share a line
VOLUME_RATE = 1.5  # and in three or more, where planes are channels of a matrix product
COMPLEX_COST = 2.5  # of a complex transform, in real ones
# Rates of the direct method in narrower vectors; numpy.fft has no engines, and keeps its own.
VECTOR_RATE = {64: 1.0, 32: 0.6, 16: 0.2}


def correlate(image: Array, kernel: Array, window: Window, method: str = "auto") -> Array:
    """y[..., i] = sum over r of x[..., start + i + r] * w[r], in the result type of both, by any method.

    The last axes of the image are those of the kernel; the axes before them are a batch.

    Raises
    ------
    ValueError
        If the numbers are none that can be summed.
    """
    dtype = np.result_type(image, kernel)
    if not (dtype.kind in "biufc" or (dtype.kind == "O" and image.ndim == kernel.ndim == 1)):
        raise ValueError(
            f"in1, in2: expected numbers (objects in one dimension only), got dtypes {image.dtype} and "
            f"{kernel.dtype}"
        )
    shape = (*image.shape[: image.ndim - kernel.ndim], *window.size)
    parts = trimmed(image, kernel, window)
    if parts is None or 0 in shape:
        return np.zeros(shape, dtype)
    image, kernel, window = parts
    # A kernel with NaN would spoil sums that it meets with zeros around the image alone: it stays the image.
    if prod(image.shape[image.ndim - kernel.ndim :]) < kernel.size and dtype.kind != "O" and is_finite(image):
        return _exchanged(image, kernel, window, method)
    if dtype.kind in "biu":
        return _whole(image, kernel, window, method).astype(dtype)
    if dtype.kind == "O" or (dtype not in NATIVE and dtype.kind != "f") or dtype == np.longdouble:
        return _by_numpy(image.astype(dtype), kernel.astype(dtype), window)
    working = dtype if dtype in NATIVE else np.dtype(np.float32)
    result = _floating(image.astype(working, copy=False), kernel.astype(working, copy=False), window, method)
    return result.astype(dtype, copy=False)


def _exchanged(image: Array, kernel: Array, window: Window, method: str) -> Array:
    """The same with the smaller operand as the kernel; image by image, as each is a kernel of its own."""
    axes = kernel.ndim
    batch = image.shape[: image.ndim - axes]
    images = image.reshape(-1, *image.shape[image.ndim - axes :])
    turned = [reverse(correlate(kernel, each, exchanged(window), method), axes) for each in images]
    return np.stack(turned).reshape(*batch, *window.size) if batch else turned[0]


def _floating(image: Array, kernel: Array, window: Window, method: str) -> Array:
    """float32, float64 and their complex twins."""
    if method == "fft" or (method == "auto" and fft_pays(image, kernel, window)):
        return correlate_fft(image, kernel, window, exact=method == "auto")
    return correlate_direct(image, kernel, window)


def fft_pays(image: Array, kernel: Array, window: Window, whole: bool = False) -> bool:
    """Is overlap-save the faster method, by the measured costs above?

    `whole` says that the numbers are float32 in place of integers, whose transforms take float64.
    """
    batch = prod(image.shape[: image.ndim - kernel.ndim])
    long = [axis for axis in range(kernel.ndim) if kernel.shape[axis] > 1]
    vector = engine.load(kernel.real.dtype).machine.tile()[2] * kernel.real.itemsize
    direct = direct_flops(kernel.shape, batch * prod(window.size)) / VECTOR_RATE.get(vector, 1.0)
    direct *= (4 if kernel.dtype.kind == "c" else 1) * (SIGNAL_RATE, 1, VOLUME_RATE)[min(len(long), 3) - 1]
    if direct < FFT_CALL_FLOPS:
        return False
    sizes = tuple(window.size[axis] for axis in long)
    tiles = tiling(tuple(kernel.shape[axis] for axis in long), sizes)
    elements = tiles.elements(sizes) * batch * prod(window.size) // prod(sizes)
    transformed = elements * (FIXED_COST + log2(prod(tiles.tile))) * FFT_FLOPS
    transformed *= (COMPLEX_COST if kernel.dtype.kind == "c" else 1) * (2 if whole else 1)
    return bool(transformed + FFT_CALL_FLOPS < direct)


def _magnitude(array: Array) -> int:
    """The largest absolute value of integers or bools."""
    return max(int(array.max()), -int(array.min()))


def _whole(image: Array, kernel: Array, window: Window, method: str) -> Array:
    """Integers and bools: exact sums modulo 2^64, or whether there is a term, for bools."""
    peaks = _magnitude(image), _magnitude(kernel)
    bound = peaks[0] * peaks[1] * kernel.size
    is_bool = image.dtype.kind == kernel.dtype.kind == "b"
    for dtype, bits in ((np.float32, FLOAT32_BITS), (np.float64, FLOAT64_BITS)):
        if bound < 1 << bits:
            x, w = image.astype(dtype), kernel.astype(dtype)
            fft = method == "fft" or (method == "auto" and fft_pays(x, w, window, whole=dtype == np.float32))
            if fft and bound >> FFT_BITS == 0:
                return _rounded(correlate_fft(x.astype(float), w.astype(float), window), is_bool)
            if not fft:
                return _rounded(correlate_direct(x, w, window), is_bool)
    return _by_parts(image, kernel, window, method)


def _rounded(sums: Array, is_bool: bool) -> Array:
    if is_bool:
        return sums > 0.5
    # float32 holds sums that were computed directly, and are integers that an int32 holds too.
    return sums.astype(np.int32) if sums.dtype == np.float32 else np.rint(sums, out=sums).astype(np.int64)


def _by_parts(image: Array, kernel: Array, window: Window, method: str) -> Array:
    """Integers whose sums may exceed a float64: products of parts of few bits, shifted and added.

    With x = sum of x_a 2^(La) and w = sum of w_b 2^(Lb), parts of L bits: the terms of 64 bits and more
    vanish modulo 2^64. The last part holds the sign.
    """
    fft = method == "fft" or (
        method == "auto" and fft_pays(image.astype(float), kernel.astype(float), window)
    )
    bits = ((FFT_BITS if fft else FLOAT64_BITS) - kernel.size.bit_length()) // 2
    run = correlate_fft if fft else correlate_direct
    total = np.zeros((*image.shape[: image.ndim - kernel.ndim], *window.size), np.uint64)
    pieces = [_parts(array, bits) for array in (image, kernel)]
    for (a, x), (b, w) in itertools.product(enumerate(pieces[0]), enumerate(pieces[1])):
        if bits * (a + b) < WORD_BITS:
            sums = np.rint(run(x, w, window)).astype(np.int64).view(np.uint64)
            total += sums << np.uint64(bits * (a + b))
    return total.view(np.int64)


def _parts(array: Array, bits: int) -> list[Array]:
    """float64 arrays of integers below 2^bits in size, whose sum, each `bits` higher, is the array."""
    rest: Array = array.astype(np.int64)  # of a uint64 only the value modulo 2^64 counts
    found: list[Array] = []
    while rest.any() and len(found) * bits < WORD_BITS:
        if _magnitude(rest) < 1 << bits:
            found.append(rest.astype(float))
            break
        found.append((rest & ((1 << bits) - 1)).astype(float))
        rest = rest >> bits
    return found


def _by_numpy(image: Array, kernel: Array, window: Window) -> Array:
    """Long doubles and objects, in their own arithmetic."""
    if image.ndim == kernel.ndim == 1:
        first = window.start[0] + len(kernel) - 1
        return np.asarray(np.convolve(image, kernel[::-1])[first : first + window.size[0]])
    axes = kernel.ndim
    lead = image.ndim - axes
    result = np.zeros((*image.shape[:lead], *window.size), image.dtype)
    for taps in np.ndindex(kernel.shape):
        read, write = [], []
        for axis, tap in enumerate(taps):
            shift = window.start[axis] + tap
            first = max(0, -shift)
            last = max(first, min(window.size[axis], image.shape[lead + axis] - shift))
            write.append(slice(first, last))
            read.append(slice(first + shift, last + shift))
        result[last_axes(write)] += image[last_axes(read)] * kernel[taps]
    return result


def is_finite(*arrays: Array) -> bool:
    """Neither NaN nor infinity in any of them?"""
    return all(array.dtype.kind not in "fc" or bool(np.isfinite(array).all()) for array in arrays)
