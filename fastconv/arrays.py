"""Arrays at the door: what is accepted, and the native, aligned, C-contiguous form the kernels read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fastconv.engine import load

Array = np.ndarray[Any, Any]

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
# By an equal dtype: calls compare theirs by identity, which a copy of the dtype would fail.
NATIVE: dict[Any, np.dtype[Any]] = {FLOAT32: FLOAT32, FLOAT64: FLOAT64}


def as_operand(value: Any, name: str, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as a native, aligned, C-contiguous array; a copy only where it is none already.

    Raises
    ------
    TypeError
        If it is no array, masked, not of float32 or float64, or not of `dtype` where that is given.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the mask first")
    if not isinstance(value, np.ndarray):
        if not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
            raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")
        value = np.asarray(value)
    native = NATIVE.get(value.dtype.newbyteorder("="))
    if native is None:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
    if dtype is not None and native != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, that of the first operand, got {native}")
    return np.require(np.asarray(value, native), requirements=["C", "A"])


# From this size on a result starts on a cache line: vector stores that straddle two lines cost a 12.8 MB
# output of a 1x1 layer 20 ms instead of 16 (Xeon with AVX-512, 1 thread).
ALIGNED_BYTES = 32 << 10
LINE = 64


def new_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array for a result, on a cache line's boundary where it is large.

    Raises
    ------
    MemoryError
        If it cannot be allocated.
    """
    size = prod(shape) * dtype.itemsize
    if size < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    array: Array = _empty_on_line()(shape, dtype, size, LINE)
    return array


@functools.cache
def _empty_on_line() -> Callable[[tuple[int, ...], np.dtype[Any], int, int], Array]:
    return load(FLOAT32).memory.empty_on_line  # type: ignore[no-any-return]


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Refuses an `out` that the result does not fit."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out: expected a NumPy array without a mask, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: the array is read-only")
    return out


def is_target(out: Array, *operands: Any) -> bool:
    """Can a kernel write to `out` at once: C-contiguous, native, and apart from what it reads?"""
    return (
        out.flags.carray
        and out.dtype.isnative
        and not any(isinstance(a, np.ndarray) and np.may_share_memory(out, a) for a in operands)
    )
