"""The table of kernels: one row each. Plan, tests, benchmarks and docs read it; nothing else lists them.

To add a kernel, add its row: `operation` and `direction` say what it computes, `algorithm` is what
`algorithm=` calls it, `module` and `entry` say where it lives in fastconv/kernels (im2col lives in
fastconv/im2col.py), `test` and `bench` name the files that hold it to account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WINOGRAD_OUTPUTS = (4, 3, 2, 6)  # of a tile, along an axis; weight gradients by 6 are those by 4
_WINOGRAD = {  # direction -> module and entry
    "forward": ("winograd", "conv"),
    "input_grad": ("winograd", "conv"),
    "weight_grad": ("winograd_grad", "weight_grad"),
}
REACH = 32  # pixels of a window along an axis: further than that, strips would leave the cache


def _any(problem: Any) -> bool:
    return True


def _pointwise(problem: Any) -> bool:
    """A 1x1 convolution of every pixel, and of nothing else."""
    return bool(problem.takes_pixels and max(problem.stride) == 1)


def _planes(problem: Any) -> bool:
    """Convolutions over one or two axes."""
    return bool(problem.axes <= 2)


def _depthwise(problem: Any) -> bool:
    """Every channel by itself, on planes."""
    return bool(problem.group_in == 1 and problem.axes <= 2)


def _near(problem: Any) -> bool:
    """Planes, and windows that reach no further than a strip in cache does."""
    reach = [d * (k - 1) + 1 for d, k in zip(problem.dilation, problem.kernel, strict=True)]
    return bool(problem.axes <= 2 and max(reach) <= REACH)


def _three_by_three(problem: Any) -> bool:
    """Planes, and windows of 3x3 without steps or gaps."""
    ones = (1, 1)
    return bool(problem.kernel == (3, 3) and problem.stride == ones and problem.dilation == ones)


@dataclass(frozen=True)
class Kernel:
    """One kernel: what it computes, where it lives, and for which problems.

    Attributes
    ----------
    id : str
        Unique: algorithm, operation and direction.
    operation, direction, algorithm : str
        The product of these is what a plan chooses by.
    module, entry : str
        `fastconv/kernels/<module>.pyx` and its function.
    test, bench : str
        The files of its tests and benchmarks.
    supports : callable
        Whether it takes a problem.
    module_last : str
        The module for channels last, where that is another one.
    """

    id: str
    operation: str
    direction: str
    algorithm: str
    module: str
    entry: str
    test: str
    bench: str
    supports: Callable[[Any], bool] = _any
    module_last: str = ""


def _row(
    operation: str,
    direction: str,
    algorithm: str,
    module: str,
    entry: str,
    noun: str,
    supports: Callable[[Any], bool] = _any,
    module_last: str = "",
) -> Kernel:
    return Kernel(
        f"{algorithm}_{operation}_{direction}", operation, direction, algorithm, module, entry,
        f"tests/test_{noun}.py", f"bench/bench_{noun}.py", supports, module_last,
    )  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    _row("conv", "forward", "gemm", "gemm", "conv", "gemm"),
    _row("conv", "input_grad", "gemm", "gemm", "conv", "gemm"),
    _row("conv", "weight_grad", "gemm", "weight_grad", "weight_grad", "weight_grad"),
    _row("conv", "forward", "gemm_small", "gemm_small", "conv", "gemm_small", _pointwise),
    _row("conv", "input_grad", "gemm_small", "gemm_small", "conv", "gemm_small", _pointwise),
    _row("conv", "weight_grad", "gemm_small", "weight_grad", "weight_grad", "gemm_small", _pointwise),
    _row("conv", "forward", "blocked", "blocked", "conv", "blocked", _planes, "pixels"),
    _row("conv", "input_grad", "blocked", "blocked", "conv", "blocked", _planes),
    _row("conv", "weight_grad", "blocked", "shifted_grad", "weight_grad", "blocked", _near),
    _row("conv", "forward", "depthwise", "depthwise", "conv", "depthwise", _depthwise),
    _row("conv", "input_grad", "depthwise", "depthwise", "conv", "depthwise", _depthwise),
    _row("conv", "weight_grad", "depthwise", "depthwise_grad", "weight_grad", "depthwise", _depthwise),
    _row("conv", "forward", "filter", "filter", "conv", "filter", _depthwise),
    _row("conv", "input_grad", "filter", "depthwise", "conv", "filter", _depthwise),
    _row("conv", "weight_grad", "filter", "depthwise_grad", "weight_grad", "filter", _depthwise),
    _row("conv", "forward", "shifted", "gemm", "conv", "shifted", _near),
    _row("conv", "input_grad", "shifted", "gemm", "conv", "shifted", _near),
    _row("conv", "weight_grad", "shifted", "shifted_grad", "weight_grad", "shifted", _near),
    *(
        _row("conv", direction, f"winograd_f{size}x{size}_3x3", *where, "winograd", _three_by_three)
        for size in WINOGRAD_OUTPUTS
        for direction, where in _WINOGRAD.items()
    ),
    _row("conv", "forward", "direct", "direct", "conv", "direct"),
    _row("conv", "input_grad", "direct", "direct", "conv", "direct"),
    _row("conv", "weight_grad", "direct", "direct", "weight_grad", "direct"),
    _row("conv", "forward", "im2col", "im2col", "forward", "im2col"),
    _row("conv", "input_grad", "im2col", "im2col", "input_grad", "im2col"),
    _row("conv", "weight_grad", "im2col", "im2col", "weight_grad", "im2col"),
    _row("max_pool", "forward", "lines", "pool_max", "forward", "pool"),
    _row("max_pool", "input_grad", "lines", "pool_max_grad", "backward", "pool"),
    _row("avg_pool", "forward", "lines", "pool_average", "forward", "pool"),
    _row("avg_pool", "input_grad", "lines", "pool_average", "backward", "pool"),
    _row("linear", "forward", "gemm", "gemm", "conv", "dense"),
    _row("linear", "input_grad", "gemm", "gemm", "conv", "dense"),
    _row("linear", "weight_grad", "gemm", "gemm", "conv", "dense"),
    _row("linear", "bias_grad", "lines", "activation", "column_sums", "dense"),
    _row("relu", "forward", "lines", "activation", "relu", "dense"),
    _row("relu", "input_grad", "lines", "activation", "relu_backward", "dense"),
    _row("softmax", "forward", "lines", "activation", "softmax", "dense"),
    _row("softmax", "input_grad", "lines", "activation", "softmax_backward", "dense"),
    _row("cross_entropy", "forward", "lines", "activation", "cross_entropy", "dense"),
    _row("cross_entropy", "input_grad", "lines", "activation", "cross_entropy_backward", "dense"),
)


def find(operation: str, direction: str, algorithm: str) -> Kernel:
    """The row of an algorithm.

    Raises
    ------
    ValueError
        If there is no such algorithm, listing those there are.
    """
    rows = [row for row in KERNELS if (row.operation, row.direction) == (operation, direction)]
    for row in rows:
        if row.algorithm == algorithm:
            return row
    known = ("auto", *(row.algorithm for row in rows))
    raise ValueError(f"algorithm: expected one of {known}, got {algorithm!r}")
