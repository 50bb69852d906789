"""Which part of a correlation is asked for: modes, boundaries, and the terms that are not zero.

Everything in this room computes one thing, along as many axes as the kernel has:

    y[i] = sum over r of x[start + i + r] * w[r]    for 0 <= i < size, with x zero outside of its array

A mode decides `start` and `size`; a convolution is the same with w reversed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import Array
from fastconv.problem import check_addressable, one_of

MODES = ("full", "same", "valid")
# SciPy's names for what lies around an image.
BOUNDARIES = {
    "fill": "fill", "pad": "fill", "wrap": "wrap", "circular": "wrap", "symm": "symm", "symmetric": "symm",
}  # fmt: skip


@dataclass(frozen=True)
class Window:
    """The outputs that are wanted: where in x the first one starts, and how many there are, for each axis."""

    start: tuple[int, ...]
    size: tuple[int, ...]


class Trimmed(NamedTuple):
    """Operands without what meets zeros alone."""

    image: Array
    kernel: Array
    window: Window


def window_for(mode: str, image: Sequence[int], kernel: Sequence[int], late: bool = False) -> Window:
    """The window of a mode, for sizes of the two operands along the axes that are summed.

    "same" is the middle of "full"; where that lies between two elements it begins at the earlier one, or
    at the later one where `late` is true, as SciPy's correlate2d has it.

    Raises
    ------
    ValueError
        If the mode is unknown, an output would have a negative size, or mode is "valid" and neither
        operand holds the other.
    """
    one_of(mode, "mode", MODES)
    pairs = tuple(zip(image, kernel, strict=True))
    if mode == "valid":
        if not (all(n >= k for n, k in pairs) or all(n <= k for n, k in pairs)):
            raise ValueError(
                f"mode: 'valid' needs one of in1 and in2 to be at least as large as the other along every "
                f"axis, got {tuple(image)} and {tuple(kernel)}"
            )
        return Window(tuple(min(n - k, 0) for n, k in pairs), tuple(abs(n - k) + 1 for n, k in pairs))
    if mode == "same":
        return Window(tuple((k // 2 if late else (k - 1) // 2) - (k - 1) for _, k in pairs), tuple(image))
    size = tuple(n + k - 1 for n, k in pairs)
    if min(size, default=0) < 0:
        raise ValueError(f"in1: both operands are empty, {tuple(image)} and {tuple(kernel)}: no full output")
    check_addressable(size, "output")
    return Window(tuple(1 - k for _, k in pairs), size)


def trimmed(image: Array, kernel: Array, window: Window) -> Trimmed | None:
    """The same window of the operands without the taps and the elements that only ever meet zeros.

    The last `len(window.size)` axes of the image are those of the kernel. None if no term is left.
    """
    taps: list[slice] = []
    elements: list[slice] = []
    start: list[int] = []
    for n, k, first, outputs in zip(
        image.shape[image.ndim - kernel.ndim :], kernel.shape, window.start, window.size, strict=True
    ):
        tap = slice(max(0, 1 - first - outputs), min(k, n - first))
        first += tap.start
        element = slice(max(0, first), min(n, first + outputs + tap.stop - tap.start - 1))
        if outputs < 1 or tap.stop <= tap.start or element.stop <= element.start:
            return None
        taps.append(tap)
        elements.append(element)
        start.append(first - element.start)
    return Trimmed(image[last_axes(elements)], kernel[tuple(taps)], Window(tuple(start), window.size))


def exchanged(window: Window) -> Window:
    """The window of the same outputs in reverse order, once image and kernel have changed places.

    sum over r of x[start + i + r] w[r] = sum over j of w[j - start - i] x[j]: a correlation of w by x
    whose output size - 1 - i begins at -start - i.
    """
    return Window(
        tuple(1 - first - outputs for first, outputs in zip(window.start, window.size, strict=True)),
        window.size,
    )


def last_axes(slices: Sequence[slice]) -> Any:
    """An index that takes these parts of the last axes, and all of those before."""
    return (..., *slices)


def reverse(array: Array, axes: int) -> Array:
    """A view with the last `axes` axes reversed."""
    view: Array = array[last_axes((slice(None, None, -1),) * axes)]
    return view


def extended(image: Array, kernel: Sequence[int], window: Window, boundary: str, fill: Any) -> Array:
    """All elements of the last two axes that the window reads, with those outside made up by the boundary.

    "wrap" repeats the image, "symm" repeats it mirrored, each as often as a large kernel asks for; "fill"
    puts a number everywhere.
    """
    sizes = image.shape[-2:]
    lengths = [outputs + k - 1 for outputs, k in zip(window.size, kernel, strict=True)]
    inside = [slice(-first, n - first) for first, n in zip(window.start, sizes, strict=True)]
    whole = np.empty((*image.shape[:-2], *lengths), image.dtype)
    if boundary == "fill":
        whole.fill(fill)
    middle = whole[last_axes(inside)]
    middle[...] = image[..., : middle.shape[-2], : middle.shape[-1]]
    if boundary == "fill":
        return whole
    # The columns beside the image first, then whole rows above and below.
    for axis, spread in ((1, whole), (0, whole.swapaxes(-1, -2))):
        first, n, length = window.start[axis], sizes[axis], lengths[axis]
        outside = np.concatenate([np.arange(-first), np.arange(n - first, length)])
        within = (outside + first) % n if boundary == "wrap" else mirrored(outside + first, n)
        spread[..., outside] = spread[..., within - first]
    return whole


def mirrored(index: Array, size: int) -> Array:
    """Positions in an array followed by its mirror image, over and over: d c b a | a b c d | d c b a."""
    within = index % (2 * size)
    nearest: Array = np.minimum(within, 2 * size - 1 - within)
    return nearest
