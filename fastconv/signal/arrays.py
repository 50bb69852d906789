"""`correlate` and `convolve` of scipy.signal, along any number of axes."""

from __future__ import annotations

import warnings
from typing import Any

from fastconv.arrays import Array
from fastconv.problem import one_of
from fastconv.signal import numbers
from fastconv.signal.images import as_array
from fastconv.signal.window import MODES, reverse, window_for


def _operands(in1: Any, in2: Any, mode: Any, method: Any) -> tuple[Array, Array]:
    one_of(mode, "mode", MODES)
    one_of(method, "method", numbers.METHODS)
    first, second = as_array(in1, "in1"), as_array(in2, "in2")
    if first.ndim != second.ndim:
        raise ValueError(
            f"in2: expected as many axes as in1 has, got shapes {first.shape} and {second.shape}"
        )
    if second.size == 0:
        raise ValueError(f"in2: the array is empty, shape {second.shape}")
    if first.size == 0 and mode != "same":
        raise ValueError(f"in1: the array is empty, shape {first.shape}")
    return first, second


def _correlate(first: Array, second: Array, mode: str, method: str) -> Array:
    window = window_for(mode, first.shape, second.shape)
    if method == "fft" and not numbers.is_finite(first, second):
        warnings.warn(
            "fastconv.signal: NaN or infinities spread over the results of method='fft'; "
            "method='direct' keeps them where they are",
            RuntimeWarning,
            stacklevel=3,
        )
    return numbers.correlate(first, second, window, method)


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """Cross-correlates two arrays of any number of axes: `scipy.signal.correlate`, faster.

    ``z[k] = sum over l of x[l] * conj(y[l - k + n - 1])`` for x = `in1` and y = `in2` of n elements, along
    every axis; the lags run from 1 - n to the size of x, less one.

    Parameters
    ----------
    in1, in2 : array_like
        As many axes each. Bools, integers, floating-point or complex numbers; objects that can be
        multiplied and added, such as Decimal, in one dimension.
    mode : {"full", "same", "valid"}
        "full": every lag. "same": the middle of it, of the shape of `in1`. "valid": no element from
        outside; one of the arrays must hold the other.
    method : {"auto", "direct", "fft"}
        "direct" sums products, "fft" transforms tiles, "auto" takes the faster, and "direct" for tiles that
        hold NaN or infinities. Integers are exact by either.

    Returns
    -------
    array of the result type of both operands, or a scalar if both are scalars

    Raises
    ------
    ValueError
        For a wrong shape, mode, method or dtype, or an empty operand, naming the argument.
    TypeError
        For a masked array.

    Warns
    -----
    RuntimeWarning
        If method is "fft" and an operand holds NaN or infinities.

    References
    ----------
    `scipy.signal.correlate`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import signal
    >>> signal.correlate([1, 2, 3], [0, 1, 1])
    array([1, 3, 5, 3, 0])
    >>> signal.correlate(np.ones((4, 5, 6)), np.ones((2, 2, 2)), mode="valid").shape
    (3, 4, 5)
    """
    first, second = _operands(in1, in2, mode, method)
    conjugate = second.conj() if second.dtype.kind in "cO" else second
    if first.ndim == 0:
        return first[()] * conjugate[()]
    return _correlate(first, conjugate, mode, method)


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """Convolves two arrays of any number of axes: `scipy.signal.convolve`, faster.

    ``z[k] = sum over l of x[l] * y[k - l]`` for x = `in1` and y = `in2`, along every axis.

    Parameters
    ----------
    in1, in2, mode, method
        As for `correlate`.

    Returns
    -------
    array of the result type of both operands, or a scalar if both are scalars

    Raises
    ------
    ValueError, TypeError
        As `correlate` does.

    Warns
    -----
    RuntimeWarning
        If method is "fft" and an operand holds NaN or infinities.

    References
    ----------
    `scipy.signal.convolve`.

    Examples
    --------
    >>> from fastconv import signal
    >>> signal.convolve([1, 2, 3], [0, 1, 1])
    array([0, 1, 3, 5, 3])
    >>> signal.convolve([[True, False]], [[True, True]])
    array([[ True,  True, False]])
    """
    first, second = _operands(in1, in2, mode, method)
    if first.ndim == 0:
        return first[()] * second[()]
    return _correlate(first, reverse(second, second.ndim), mode, method)
