"""Frozen descriptions of a problem: validated geometry, output shapes, flops.

One shape algebra serves forward, gradients, transposed convolution and pooling, for 1 to 3 spatial axes:

    output = (input + before + after - dilation * (kernel - 1) - 1) // stride + 1

Everything that a caller can get wrong about shapes and integers is refused here, by name.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Pads = tuple[tuple[int, int], ...]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]

# Bytes: products of sizes are checked against this, and so is every int. Sums and products of two or
# three such ints, as kernels form them, still fit a Py_ssize_t.
LARGEST = 2**60
PADDING_NAMES = ("valid", "same", "same_lower", "full", "causal")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def integer(value: Any, name: str, smallest: int = 1) -> int:
    """`value` as an int within bounds; no bool, no float."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None
    if number < smallest:
        raise ValueError(f"{name}: expected at least {smallest}, got {number}")
    if number > LARGEST:
        raise ValueError(f"{name}: {number} is beyond the address space")
    return number


def is_exact(values: tuple[Any, ...]) -> bool:
    """Are these None, ints, words, and tuples of such? Two that are equal then mean the same.

    What calls are known by must be so: True == 1 == 1.0 would find each other's plans.
    """
    for value in values:
        kind = value.__class__
        if (
            kind is not int
            and kind is not str
            and value is not None
            and not (kind is tuple and is_exact(value))
        ):
            return False
    return True


def per_axis(value: Any, name: str, axes: int, smallest: int = 1) -> tuple[int, ...]:
    """An int for every spatial axis, from one int or a sequence of one a spatial axis."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        if len(value) != axes:
            raise ValueError(f"{name}: expected an int or {axes} ints, got {value!r}")
        return tuple(integer(item, name, smallest) for item in value)
    return (integer(value, name, smallest),) * axes


def resolve_padding(
    padding: Any,
    in_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Pads:
    """(before, after) for each axis, from an int, ints, pairs, or a name.

    "valid" pads nothing; "full" by the kernel's reach on both sides; "causal" by it before only.
    "same" gives ceil(input / stride) outputs, with the odd element at the end; "same_lower" with it
    at the start.
    """
    axes = len(kernel)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if isinstance(padding, str):
        if padding not in PADDING_NAMES:
            raise ValueError(f"padding: expected ints or one of {PADDING_NAMES}, got {padding!r}")
        if padding == "valid":
            return ((0, 0),) * axes
        if padding == "full":
            return tuple((r, r) for r in reach)
        if padding == "causal":
            return tuple((r, 0) for r in reach)
        pads = []
        for size, r, s in zip(in_size, reach, stride, strict=True):
            total = max((-(-size // s) - 1) * s + r + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if padding == "same" else (large, small))
        return tuple(pads)
    if isinstance(padding, Sequence) and any(isinstance(item, Sequence) for item in padding):
        if len(padding) != axes or any(
            not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2 for item in padding
        ):
            raise ValueError(
                f"padding: expected {axes} (before, after) pairs, one a spatial axis, got {padding!r}"
            )
        return tuple((integer(b, "padding", 0), integer(a, "padding", 0)) for b, a in padding)
    return tuple((p, p) for p in per_axis(padding, "padding", axes, smallest=0))


def output_size(in_size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
    """Outputs along one axis; 0 or less where the kernel does not fit."""
    return (in_size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1


def check_shape(shape: Any, name: str, axes: int) -> tuple[int, ...]:
    """A full shape of 2 + axes non-negative ints whose product is addressable."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name}: expected {axes + 2} ints, got {shape!r}") from None
    if len(sizes) != axes + 2:
        raise ValueError(f"{name}: expected {axes + 2} sizes, got {sizes}")
    sizes = tuple(integer(size, name, 0) for size in sizes)
    check_addressable(sizes, name)
    return sizes


def check_addressable(sizes: tuple[int, ...], name: str) -> None:
    """Refuses what no array can be; as NumPy does, axes of size 0 do not excuse the others."""
    if prod(max(size, 1) for size in sizes) * 8 > LARGEST:
        raise ValueError(f"{name}: {sizes} is beyond the address space")


def one_of(value: Any, name: str, known: tuple[str | None, ...]) -> Any:
    """`value`, if it is one of the words known."""
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"{name}: expected one of {known}, got {value!r}")
    return value


def check_layout(layout: Any, axes: int) -> bool:
    """Is this the layout with channels last?"""
    return bool(one_of(layout, "layout", LAYOUTS[axes]) == LAYOUTS[axes][1])


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """A convolution, whatever its direction: y[n, k] = sum over c of x[n, c] * w[k, c].

    Sizes are those of the forward operation. `in_size`, `out_size`, `kernel`, `stride`, `dilation`
    and `pads` have one entry a spatial axis.
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    in_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...]
    out_size: tuple[int, ...]
    channels_last: bool = False

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    def _shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch, *size, channels) if self.channels_last else (self.batch, channels, *size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape(self.in_channels, self.in_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self._shape(self.out_channels, self.out_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.group_in, *self.kernel)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the direct method, padding included."""
        return 2 * prod(self.output_shape) * self.group_in * prod(self.kernel)

    @property
    def is_patchwork(self) -> bool:
        """Do the windows lie side by side, each pixel in at most one of them, and have they several taps?"""
        axes = zip(self.kernel, self.stride, self.dilation, self.out_size, strict=True)
        return prod(self.kernel) > 1 and all((k == s or o == 1) and (d == 1 or k == 1) for k, s, d, o in axes)

    @property
    def takes_pixels(self) -> bool:
        """1x1 without padding: every result meets one pixel of each channel."""
        return max(self.kernel) == 1 and not any(map(any, self.pads))

    @property
    def parameters(self) -> int:
        return prod(self.weight_shape)


@functools.lru_cache(maxsize=4096)
def _conv_problem(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Pads,
    dilation: tuple[int, ...],
    groups: int,
    channels_last: bool,
) -> ConvProblem:
    batch, in_channels, *in_size = _channels_first(input_shape, channels_last)
    out_channels, group_in, *kernel = weight_shape
    if in_channels != group_in * groups:
        raise ValueError(
            f"weight: expected {in_channels}/{groups} input channels a group for input of shape "
            f"{input_shape}, got shape {weight_shape}"
        )
    if out_channels % groups:
        raise ValueError(f"groups: {groups} does not divide the {out_channels} output channels")
    out_size = []
    for axis, size in enumerate(in_size):
        out = output_size(size, kernel[axis], stride[axis], pads[axis], dilation[axis])
        if kernel[axis] < 1:
            raise ValueError(f"weight: the kernel is empty, shape {weight_shape}")
        if out < 1 and (out < 0 or size + sum(pads[axis]) > 0 or kernel[axis] > 1):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            raise ValueError(
                f"input: size {size} with padding {pads[axis]} is smaller than the kernel's reach "
                f"{reach} along spatial axis {axis} (input {input_shape}, weight {weight_shape})"
            )
        out_size.append(max(out, 0))
    problem = ConvProblem(
        batch, in_channels, out_channels, groups, tuple(in_size), tuple(kernel), stride, pads,
        dilation, tuple(out_size), channels_last,
    )  # fmt: skip
    check_addressable(problem.output_shape, "output")
    return problem


def _channels_first(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1]) if channels_last else shape


def conv_problem(
    input_shape: Any,
    weight_shape: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    padding_mode: Any = "zeros",
    layout: Any = None,
    axes: int = 2,
) -> ConvProblem:
    """Validates the arguments of a convolution and describes it.

    Parameters are those of `fastconv.conv2d`, with shapes in place of arrays.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what it got and what it takes.
    """
    channels_last = check_layout(layout if layout is not None else LAYOUTS[axes][0], axes)
    input_shape = check_shape(input_shape, "input", axes)
    weight_shape = check_shape(weight_shape, "weight", axes)
    groups = integer(groups, "groups", 1)
    strides = per_axis(stride, "stride", axes)
    dilations = per_axis(dilation, "dilation", axes)
    if one_of(padding_mode, "padding_mode", PADDING_MODES) != "zeros":
        raise ValueError(f"padding_mode: only 'zeros' is supported so far, got {padding_mode!r}")
    in_size = _channels_first(input_shape, channels_last)[2:]
    pads = resolve_padding(padding, in_size, weight_shape[2:], strides, dilations)
    return _conv_problem(input_shape, weight_shape, strides, pads, dilations, groups, channels_last)
