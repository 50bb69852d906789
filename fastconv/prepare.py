"""Prepared convolutions: weights packed once, for many calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv import calls
from fastconv.arrays import Array, as_operand
from fastconv.conv import KNOWN_CALLS, Call, Ints, check_bias, plan_conv2d
from fastconv.plan import Plan
from fastconv.problem import Padding, check_layout, integer, per_axis, resolve_padding
from fastconv.threads import get_num_threads


class PreparedConv2d:
    """A convolution whose weights are packed once: call it with inputs. Made by `prepare_conv2d`."""

    def __init__(self, weight: Array, bias: Array | None, arguments: dict[str, Any]) -> None:
        self.weight = weight
        self.bias = bias
        for array in (weight, bias):
            if array is not None:  # packed once: a change would be lost
                array.flags.writeable = False
        self._arguments = arguments
        self._packed: dict[str, Array] = {}  # by algorithm
        self._known: dict[tuple[int, ...], tuple[Call, Array]] = {}

    def plan(self, input_shape: Sequence[int]) -> Plan:
        """The plan for inputs of one shape."""
        return plan_conv2d(
            input_shape, self.weight.shape, dtype=self.weight.dtype, prepared=True, **self._arguments
        )

    def _bind(self, input_shape: tuple[int, ...]) -> tuple[Call, Array]:
        """The call for one shape of input, and the weights in the form that it reads."""
        plan = self.plan(input_shape)
        if calls.is_packed(plan):
            if plan.algorithm not in self._packed:
                self._packed[plan.algorithm] = calls.pack(plan, self.weight, get_num_threads())
            weight = self._packed[plan.algorithm]
        else:
            weight = self.weight
        if len(self._known) >= KNOWN_CALLS:
            self._known.clear()
        bound = self._known[input_shape] = (Call(plan), weight)
        return bound

    def __call__(self, input: Array, *, out: Array | None = None) -> Array:
        """Convolves `input`, as `conv2d` would; `out` may overlap it."""
        x = input
        if not (x.__class__ is np.ndarray and x.dtype is self.weight.dtype and x.flags.carray):
            x = as_operand(input, "input", self.weight.dtype)
        call, weight = self._known.get(x.shape) or self._bind(x.shape)
        return call((x, weight, self.bias), out)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.weight, self.bias, self._arguments)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"PreparedConv2d(weight={self.weight.shape}, {self.weight.dtype}, {given})"


def _restore(weight: Array, bias: Array | None, arguments: dict[str, Any]) -> PreparedConv2d:
    return PreparedConv2d(weight, bias, arguments)


def prepare_conv2d(
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    activation: str | None = None,
    algorithm: str = "auto",
) -> PreparedConv2d:
    """Packs weights once, for many calls: `prepare_conv2d(w, b, ...)(x)` equals `conv2d(x, w, b, ...)`.

    Parameters
    ----------
    weight : (K, C / groups, R, S) array of float32 or float64
        Copied: later changes to it do not reach the operation.
    bias : (K,) array of the same dtype, optional
    stride, padding, dilation, groups, padding_mode, layout, activation, algorithm
        As for `conv2d`.

    Returns
    -------
    PreparedConv2d
        Callable as `operation(input, out=None)`, with `plan(input_shape)`; it pickles.

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, range, dtype or type, naming the argument, before anything is packed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> layer = fastconv.prepare_conv2d(np.ones((8, 3, 3, 3), np.float32), padding="same")
    >>> layer(np.ones((1, 3, 5, 5), np.float32)).shape
    (1, 8, 5, 5)
    """
    w = np.array(as_operand(weight, "weight"))
    if w.ndim != 4:
        raise ValueError(f"weight: expected 4 sizes (K, C / groups, R, S), got shape {w.shape}")
    b = check_bias(bias, w.shape[0], w.dtype)
    # Copies too: a list of the caller's may change after this.
    dilations = per_axis(dilation, "dilation", 2)
    pads = padding
    if not isinstance(padding, str):
        pads = resolve_padding(padding, (1, 1), w.shape[2:], (1, 1), dilations)
    arguments = {
        "stride": per_axis(stride, "stride", 2), "padding": pads,
        "dilation": dilations, "groups": integer(groups, "groups"),
        "padding_mode": padding_mode, "layout": layout, "activation": activation, "algorithm": algorithm,
    }  # fmt: skip
    operation = PreparedConv2d(w, None if b is None else b.copy(), arguments)
    # All arguments are checked now, not at the first call, on an input that the kernel fits.
    size = [max(d * (k - 1) + 1, 1) for k, d in zip(w.shape[2:], dilations, strict=True)]
    channels = w.shape[1] * arguments["groups"]
    operation.plan((1, *size, channels) if check_layout(layout, 2) else (1, channels, *size))
    return operation
