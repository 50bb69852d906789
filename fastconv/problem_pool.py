"""Frozen descriptions of pooling problems: validated geometry and output shapes.

The shape algebra is that of `fastconv.problem`, with two additions of pooling:

    output = ceil((input + before + after - dilation * (kernel - 1) - 1) / stride) + 1   (ceil_mode)

less the last window where that would start past the input, in the padding after it; and the number
of elements in a window, which is the divisor of an average.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod
from typing import Any

from fastconv.problem import (
    LARGEST,
    LAYOUTS,
    Pads,
    check_layout,
    check_shape,
    output_size,
    per_axis,
    resolve_padding,
)


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """Windows over an input, whatever is done with them and in whichever direction.

    `in_size`, `out_size`, `kernel`, `stride`, `dilation` and `pads` have one entry a spatial axis.
    """

    batch: int
    channels: int
    in_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...]
    out_size: tuple[int, ...]
    ceil_mode: bool = False
    channels_last: bool = False

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return prod(self.kernel)

    def _shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.channels_last:
            return (self.batch, *size, self.channels)
        return (self.batch, self.channels, *size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape(self.in_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self._shape(self.out_size)

    def counts(self, axis: int, padded: bool) -> tuple[int, ...]:
        """For each output along an axis: its window's taps inside the input, or the padded input.

        What overhangs the padding, as the last window of `ceil_mode` may, is never counted.
        """
        before, after = self.pads[axis]
        size, dilation = self.in_size[axis], self.dilation[axis]
        low, high = (-before, size + after) if padded else (0, size)
        counts = []
        for start in range(-before, self.out_size[axis] * self.stride[axis] - before, self.stride[axis]):
            first = max(-(-(low - start) // dilation), 0)
            last = min(-(-(high - start) // dilation), self.kernel[axis])
            counts.append(max(last - first, 0))
        return tuple(counts)


def _windows(
    size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int, ceil_mode: bool
) -> int:
    """Windows along one axis; 0 or less where not even one fits."""
    if not ceil_mode:
        return output_size(size, kernel, stride, pads, dilation)
    count = output_size(size, kernel, stride, (pads[0], pads[1] + stride - 1), dilation)
    return count - 1 if (count - 1) * stride >= size + pads[0] else count


@functools.lru_cache(maxsize=4096)
def _pool_problem(
    input_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Pads,
    dilation: tuple[int, ...],
    ceil_mode: bool,
    channels_last: bool,
) -> PoolProblem:
    batch, channels, *sizes = _channels_first(input_shape, channels_last)
    out_size = []
    for axis, size in enumerate(sizes):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        out = _windows(size, kernel[axis], stride[axis], pads[axis], dilation[axis], ceil_mode)
        if out < 1 and (size + sum(pads[axis]) > 0 or kernel[axis] > 1):
            raise ValueError(
                f"kernel_size: its reach {reach} along spatial axis {axis} exceeds the input's "
                f"size {size} with padding {pads[axis]} (input {input_shape}, kernel_size {kernel})"
            )
        out_size.append(max(out, 0))
    problem = PoolProblem(
        batch, channels, tuple(sizes), kernel, stride, pads, dilation, tuple(out_size), ceil_mode,
        channels_last,
    )  # fmt: skip
    extents = [
        size + sum(pad) + dilation[axis] * kernel[axis] + stride[axis]
        for axis, (size, pad) in enumerate(zip(sizes, pads, strict=True))
    ]
    if prod(problem.output_shape) * 8 > LARGEST or prod(extents) * max(batch * channels, 1) * 8 > LARGEST:
        raise ValueError(
            f"input: shape {input_shape} with kernel_size {kernel}, stride {stride}, "
            f"padding {pads} and dilation {dilation} is beyond the address space"
        )
    return problem


def _channels_first(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1]) if channels_last else shape


def check_flag(value: Any, name: str) -> bool:
    """A bool, and nothing that merely resembles one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def pool_problem(
    input_shape: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    *,
    layout: Any = None,
    axes: int = 2,
    name: str = "input",
) -> PoolProblem:
    """Validates the arguments of a pooling operation and describes it.

    Parameters are those of `fastconv.max_pool2d`, with a shape in place of the input; `name` is
    what messages call it.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what it got and what it takes.
    """
    channels_last = check_layout(layout if layout is not None else LAYOUTS[axes][0], axes)
    input_shape = check_shape(input_shape, name, axes)
    kernel = per_axis(kernel_size, "kernel_size", axes)
    strides = kernel if stride is None else per_axis(stride, "stride", axes)
    dilations = per_axis(dilation, "dilation", axes)
    in_size = _channels_first(input_shape, channels_last)[2:]
    pads = resolve_padding(padding, in_size, kernel, strides, dilations)
    return _pool_problem(
        input_shape,
        kernel,
        strides,
        pads,
        dilations,
        check_flag(ceil_mode, "ceil_mode"),
        channels_last,
    )


def refuse_empty_windows(problem: PoolProblem) -> None:
    """Raises ValueError where a window lies wholly in the padding: it has no maximum."""
    for axis in range(problem.axes):
        for output, count in enumerate(problem.counts(axis, padded=False)):
            if count == 0:
                start = output * problem.stride[axis] - problem.pads[axis][0]
                raise ValueError(
                    f"padding: the window at output {output} of spatial axis {axis} holds no "
                    f"element of the input, so no maximum: it starts at {start}, with kernel_size "
                    f"{problem.kernel[axis]}, dilation {problem.dilation[axis]} and padding "
                    f"{problem.pads[axis]} around {problem.in_size[axis]} elements"
                )
