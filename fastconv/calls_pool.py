"""From a pooling problem to a call of its kernels: what they read of it, and which way a gradient takes.

A call's methods take operands that are native, aligned, C-contiguous and of the call's dtype and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv import engine
from fastconv.arrays import Array, check_out, is_target, new_array
from fastconv.problem_pool import PoolProblem, refuse_empty_windows
from fastconv.threads import get_num_threads
from fastconv.workspace import scratch

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
FLAT = np.dtype(np.int64)
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


class Call:
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


class MaxCall(Call):
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


class AverageCall(Call):
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


_KNOWN_CALLS = 4096
_bound: dict[tuple[Any, ...], Any] = {}  # by problem, dtype and what else a call is made of
engine.forget_on_change(_bound.clear)


def bind(kind: type, *arguments: Any) -> Any:
    """kind(*arguments), a MaxCall or an AverageCall, remembered."""
    key = (kind, *arguments)
    call = _bound.get(key)
    if call is None:
        if len(_bound) >= _KNOWN_CALLS:
            _bound.clear()
        call = _bound[key] = kind(*arguments)
    return call
