"""Every gradient against finite differences: the table of `python -m fastconv gradcheck`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from fastconv.arrays import Array
from fastconv.conv import conv2d, conv2d_input_grad, conv2d_weight_grad
from fastconv.dense import (
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
)
from fastconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from fastconv.problem import conv_problem
from fastconv.registry import KERNELS
from fastconv.testing import GradcheckResult, gradcheck

__all__ = ["Case", "cases", "report"]

DIRECTIONS = ("forward", "input_grad", "weight_grad")

# Configuration -> shapes of input and weight, and the arguments of conv2d.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "3x3, padding 1": ((2, 3, 7, 6), (4, 3, 3, 3), {"padding": 1}),
    "stride 2, padding 1": ((2, 3, 8, 7), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "stride (3, 2)": ((1, 2, 11, 9), (3, 2, 2, 3), {"stride": (3, 2)}),
    "padding ((0, 2), (1, 0))": ((1, 2, 5, 6), (3, 2, 3, 2), {"padding": ((0, 2), (1, 0))}),
    'padding "same", 4x2': ((1, 2, 6, 5), (3, 2, 4, 2), {"padding": "same"}),
    "dilation (2, 3)": ((1, 2, 8, 9), (3, 2, 3, 2), {"dilation": (2, 3), "padding": 1}),
    "groups 2": ((2, 4, 6, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "1x1": ((2, 5, 4, 3), (6, 5, 1, 1), {}),
    "1x1, stride 2": ((2, 5, 5, 4), (6, 5, 1, 1), {"stride": 2}),
    "depthwise": ((2, 5, 6, 7), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, 2 filters each": ((1, 3, 6, 7), (6, 1, 3, 3), {"groups": 3, "stride": 2}),
}  # fmt: skip

WINDOWS: dict[str, dict[str, Any]] = {
    "2x2": {"kernel_size": 2},
    "3x3, stride 2, padding 1": {"kernel_size": 3, "stride": 2, "padding": 1},
    "(3, 2), stride 1, overlapping": {"kernel_size": (3, 2), "stride": 1},
}


@dataclass(frozen=True)
class Case:
    """One row of the table: the arguments of `fastconv.testing.gradcheck`, and what to call it."""

    operation: str
    configuration: str
    function: Callable[..., Any]
    inputs: tuple[Array, ...]
    gradients: Callable[..., Any]

    def check(self) -> GradcheckResult:
        return gradcheck(self.function, self.inputs, self.gradients, raise_exception=False)


def _draw(*shapes: tuple[int, ...]) -> tuple[Array, ...]:
    rng = np.random.default_rng(20260101)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def _conv_case(label: str, configuration: str, algorithms: dict[str, str]) -> Case:
    """A convolution; `algorithms` names one for each direction."""
    input_shape, weight_shape, arguments = CONVOLUTIONS[configuration]
    kinds = [{**arguments, "algorithm": algorithms.get(way, "auto")} for way in DIRECTIONS]
    forward, input_grad, weight_grad = kinds

    def function(x: Array, w: Array, b: Array) -> Array:
        return conv2d(x, w, b, **forward)

    def gradients(g: Array, x: Array, w: Array, b: Array) -> tuple[Array, Array, Array]:
        return (
            conv2d_input_grad(x.shape, w, g, **input_grad),
            conv2d_weight_grad(x, w.shape, g, **weight_grad),
            g.sum(axis=(0, 2, 3)),
        )

    return Case("conv2d", label, function, _draw(input_shape, weight_shape, weight_shape[:1]), gradients)


def _algorithm_cases() -> Iterator[Case]:
    """Each algorithm by name, at the first configuration that all its kernels take."""
    rows = [row for row in KERNELS if row.operation == "conv"]
    for name in dict.fromkeys(row.algorithm for row in rows):
        own = [row for row in rows if row.algorithm == name]
        for configuration in ("3x3, padding 1", "depthwise", "1x1", "stride 2, padding 1"):
            input_shape, weight_shape, arguments = CONVOLUTIONS[configuration]
            problem = conv_problem(input_shape, weight_shape, **arguments)
            if all(row.supports(problem) for row in own):
                label = f'algorithm "{name}", {configuration}'
                yield _conv_case(label, configuration, {row.direction: name for row in own})
                break


def _pool_cases() -> Iterator[Case]:
    (x,) = _draw((2, 3, 7, 8))
    for label, sizes in WINDOWS.items():

        def largest(x: Array, sizes: dict[str, Any] = sizes) -> Any:
            return max_pool2d(x, **sizes)

        def largest_back(g: Array, x: Array, sizes: dict[str, Any] = sizes) -> Array:
            return max_pool2d_backward(g, x, **sizes)

        def mean(x: Array, sizes: dict[str, Any] = sizes) -> Array:
            return avg_pool2d(x, **sizes)

        def mean_back(g: Array, x: Array, sizes: dict[str, Any] = sizes) -> Array:
            return avg_pool2d_backward(g, x.shape, **sizes)

        yield Case("max_pool2d", label, largest, (x,), largest_back)
        yield Case("avg_pool2d", label, mean, (x,), mean_back)


def _dense_cases() -> Iterator[Case]:
    x, w, b = _draw((2, 3, 5), (4, 5), (4,))

    def linear_gradients(g: Array, x: Array, w: Array, b: Array) -> Sequence[Array | None]:
        return linear_backward(g, x, w)

    yield Case("linear", "(2, 3, 5) to (2, 3, 4)", linear, (x, w, b), linear_gradients)
    yield Case("relu", "(2, 3, 5)", relu, (x,), relu_backward)
    for axis in (-1, 1):

        def share(x: Array, axis: int = axis) -> Array:
            return softmax(x, axis)

        def share_back(g: Array, x: Array, axis: int = axis) -> Array:
            return softmax_backward(g, softmax(x, axis), axis)

        yield Case("softmax", f"axis {axis}", share, (x,), share_back)
    labels = np.array([[0, 1, 2, 2, 0], [1, 1, 0, 2, 0]])
    for reduction in ("mean", "sum", "none"):

        def loss(x: Array, reduction: str = reduction) -> Any:
            return cross_entropy(x, labels, reduction)

        def loss_back(g: Array, x: Array, reduction: str = reduction) -> Array:
            return cross_entropy_backward(x, labels, reduction, g)

        yield Case("cross_entropy", f'reduction "{reduction}"', loss, (x,), loss_back)


def cases() -> list[Case]:
    """Everything that is differentiable, in the order of the table."""
    return [
        *(_conv_case(name, name, {}) for name in CONVOLUTIONS),
        *_algorithm_cases(),
        *sorted(_pool_cases(), key=lambda case: case.operation),
        *_dense_cases(),
    ]


def report(file: TextIO | None = None) -> bool:
    """Print the table of all cases; return whether every gradient passed.

    Parameters
    ----------
    file : text file, optional
        Where to print; standard output by default.

    Examples
    --------
    >>> import io
    >>> from fastconv.verify import report
    >>> report(io.StringIO())
    True
    """
    failures = []
    print(f"{'operation':14} {'configuration':40} largest error", file=file)
    for case in cases():
        result = case.check()
        error = max((e for e in result.max_errors if e is not None), default=0.0)
        verdict = "pass" if result else "FAIL"
        print(f"{case.operation:14} {case.configuration:40} {error:13.1e}  {verdict}", file=file)
        failures += [f"{case.operation}, {case.configuration}: {f}" for f in result.failures]
    print("\n".join(failures) or "every gradient agrees with finite differences", file=file)
    return not failures
