"""The table of kernels: one row each. Plan, tests, benchmarks and docs read it; nothing else lists them.

To add a kernel, add its row: `operation` and `direction` say what it computes, `algorithm` is what
`algorithm=` calls it, `module` and `entry` say where it lives in fastconv/kernels (im2col lives in
fastconv/im2col.py), `test` and `bench` name the files that hold it to account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _any(problem: Any) -> bool:
    return True


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


def _conv(direction: str, algorithm: str, module: str, entry: str, noun: str) -> Kernel:
    return Kernel(
        f"{algorithm}_conv_{direction}", "conv", direction, algorithm, module, entry,
        f"tests/test_{noun}.py", f"bench/bench_{noun}.py",
    )  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    _conv("forward", "gemm", "gemm", "conv", "gemm"),
    _conv("input_grad", "gemm", "gemm", "conv", "gemm"),
    _conv("weight_grad", "gemm", "weight_grad", "weight_grad", "weight_grad"),
    _conv("forward", "direct", "direct", "conv", "direct"),
    _conv("input_grad", "direct", "direct", "conv", "direct"),
    _conv("weight_grad", "direct", "direct", "weight_grad", "direct"),
    _conv("forward", "im2col", "im2col", "forward", "im2col"),
    _conv("input_grad", "im2col", "im2col", "input_grad", "im2col"),
    _conv("weight_grad", "im2col", "im2col", "weight_grad", "im2col"),
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
