"""Shared by all tests: engines, scalar types, problems with their oracle, guarded memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import fastconv
from fastconv import calls, engine, passes, plan, reference, winograd
from fastconv.problem import ConvProblem, conv_problem
from fastconv.registry import KERNELS

# The machines that run the suite are shared: an example's time says nothing.
settings.register_profile("fastconv", deadline=None, derandomize=True)
settings.load_profile("fastconv")

CHECKOUT = Path(__file__).parents[1]
PACKAGE = Path(fastconv.__file__).parent
DIRECTIONS = ("forward", "input_grad", "weight_grad")
CONV_KERNELS = tuple(row for row in KERNELS if row.operation == "conv")
ALGORITHMS = tuple(dict.fromkeys(row.algorithm for row in CONV_KERNELS))

every_conv_kernel = pytest.mark.parametrize("kernel", CONV_KERNELS, ids=lambda row: row.id)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def pytest_report_header() -> str:
    return f"fastconv: {PACKAGE}, engines {', '.join(engine.loadable())}"


@pytest.fixture(params=engine.loadable())
def isa(request):
    """Runs the test on each engine that this CPU can load."""
    with engine.forced(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture
def tile(isa, dtype):
    """(MR, NR, VL) of the engine at hand."""
    return engine.load(dtype).machine.tile()


@pytest.fixture
def small_cache(monkeypatch, isa):
    """Blocks as for a CPU with next to no cache, so that a small problem has many."""
    monkeypatch.setattr(passes, "l2_bytes", lambda: 1 << 10)
    plan.plan_conv.cache_clear()
    yield
    plan.plan_conv.cache_clear()


def around(*sizes: int) -> list[int]:
    """Each size with its neighbours, and twice the size plus one."""
    neighbours = {size + step for size in sizes for step in (-1, 0, 1)}
    return sorted(n for n in neighbours | {2 * size + 1 for size in sizes} if n > 0)


# Problems


@dataclass(frozen=True)
class Case:
    """A convolution by its shapes and options, as `conv2d` takes them."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> ConvProblem:
        return conv_problem(self.input_shape, self.weight_shape, **self.options)

    def __str__(self) -> str:
        sizes = ["x".join(map(str, shape)) for shape in (self.input_shape, self.weight_shape)]
        options = [f"{name}{value}".replace(" ", "") for name, value in self.options.items()]
        return "-".join((*sizes, *options))


def case(input_shape, weight_shape, **options) -> Case:
    return Case(tuple(input_shape), tuple(weight_shape), options)


# Every option, every edge of a window that a small image can show.
CASES = [
    case((2, 3, 5, 7), (4, 3, 1, 1)),
    case((2, 3, 9, 8), (5, 3, 1, 1), stride=(2, 3)),
    case((1, 3, 5, 4), (2, 3, 1, 1), padding=(2, 1)),
    case((2, 3, 8, 11), (4, 3, 3, 3), padding=1),
    case((2, 3, 9, 13), (4, 3, 3, 5), stride=2, padding=(1, 2)),
    case((1, 2, 13, 11), (3, 2, 3, 3), dilation=(3, 2), padding=2),
    case((2, 2, 12, 15), (3, 2, 4, 2), stride=(3, 2), dilation=(2, 3), padding=((1, 3), (4, 0))),
    case((1, 3, 20, 23), (7, 3, 7, 7), stride=2, padding=3),
    case((2, 6, 7, 6), (9, 2, 3, 2), groups=3, padding=1),
    case((2, 5, 7, 9), (5, 1, 3, 3), groups=5, padding=1),
    case((1, 3, 7, 9), (6, 1, 3, 3), groups=3, stride=2),
    case((2, 5, 9, 20), (15, 1, 5, 4), groups=5, stride=(2, 1), padding=((2, 0), (1, 3))),
    case((1, 7, 7, 7), (7, 1, 9, 3), groups=7, padding=(5, 1), dilation=(1, 2)),
    case((2, 6, 4, 3), (6, 1, 3, 3), groups=6, stride=(3, 2), padding=4),
    case((1, 2, 6, 7), (3, 2, 6, 7)),
    case((1, 2, 3, 2), (3, 2, 5, 4), padding=4),
    case((1, 1, 1, 1), (1, 1, 1, 1)),
    case((1, 1, 1, 40), (1, 1, 1, 9), padding=(0, 4)),
    case((1, 1, 40, 1), (1, 1, 9, 1), padding=(4, 0)),
    case((2, 2, 9, 10), (3, 2, 2, 2), stride=5),
    case((1, 2, 4, 5), (3, 2, 1, 1), stride=3, padding=1),
    *(
        case((2, 2, 7, 10), (3, 2, 2, 3), padding=name, stride=stride, dilation=(2, 1))
        for name in ("valid", "same", "same_lower", "full", "causal")
        for stride in (1, (2, 3))
    ),
]
EMPTY = [
    case((0, 3, 5, 5), (4, 3, 3, 3)),
    case((2, 0, 5, 5), (4, 0, 3, 3)),
    case((2, 3, 5, 5), (0, 3, 3, 3)),
    case((1, 2, 0, 4), (3, 2, 2, 2), padding=1),
    case((1, 2, 4, 0), (3, 2, 3, 3), padding=(0, 2)),
    case((1, 2, 0, 3), (3, 2, 1, 1)),
]


@dataclass(frozen=True)
class Operands:
    """Arrays for a case, uniform in [-1, 1)."""

    case: Case
    input: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad_output: np.ndarray

    def of(self, direction: str) -> tuple[np.ndarray, ...]:
        """The operands that a direction reads."""
        return {
            "forward": (self.input, self.weight, self.bias),
            "input_grad": (self.weight, self.grad_output),
            "weight_grad": (self.input, self.grad_output),
        }[direction]


def operands(case: Case, dtype: Any = np.float32, seed: int = 0) -> Operands:
    generator = np.random.default_rng(seed)
    shapes = case.input_shape, case.weight_shape, case.weight_shape[:1], case.problem.output_shape
    return Operands(case, *(generator.uniform(-1, 1, shape).astype(dtype) for shape in shapes))


def result_shape(direction: str, case: Case) -> tuple[int, ...]:
    return {
        "forward": case.problem.output_shape,
        "input_grad": case.input_shape,
        "weight_grad": case.weight_shape,
    }[direction]


def compute(direction: str, data: Operands, algorithm: str = "auto", **more: Any) -> np.ndarray:
    """fastconv's answer for one direction; the forward one with bias."""
    options = {**data.case.options, "algorithm": algorithm, **more}
    if direction == "forward":
        return fastconv.conv2d(data.input, data.weight, data.bias, **options)
    if direction == "input_grad":
        shape = data.case.input_shape
        return fastconv.conv2d_input_grad(shape, data.weight, data.grad_output, **options)
    shape = data.case.weight_shape
    return fastconv.conv2d_weight_grad(data.input, shape, data.grad_output, **options)


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def explicit_padding(case: Case) -> Any:
    """`padding` as numbers, from the words of the documentation and not from fastconv.problem."""
    padding = case.options.get("padding", 0)
    if not isinstance(padding, str):
        return padding
    pairs = []
    for axis in range(2):
        size, kernel = case.input_shape[2 + axis], case.weight_shape[2 + axis]
        stride = np.broadcast_to(case.options.get("stride", 1), 2)[axis]
        reach = int(np.broadcast_to(case.options.get("dilation", 1), 2)[axis]) * (kernel - 1)
        outputs = int(np.ceil(size / stride))
        total = max(int(outputs - 1) * int(stride) + reach + 1 - size, 0)
        half = total // 2
        pairs.append(
            {
                "valid": (0, 0),
                "full": (reach, reach),
                "causal": (reach, 0),
                "same": (half, total - half),
                "same_lower": (total - half, half),
            }[padding]
        )
    return tuple(pairs)


def oracle(direction: str, data: Operands, activation: str | None = None) -> np.ndarray:
    """The answer of fastconv.reference, in float64."""
    options = {**data.case.options, "padding": explicit_padding(data.case)}
    if direction == "forward":
        return reference.conv(data.input, data.weight, data.bias, activation=activation, **options)
    if direction == "input_grad":
        shape = data.case.input_shape
        return reference.conv_input_grad(shape, data.weight, data.grad_output, **options)
    shape = data.case.weight_shape
    return reference.conv_weight_grad(data.input, shape, data.grad_output, **options)


# Accuracy

# Rounding moves each of T partial sums, whose size grows like a random walk, by up to eps / 2.
# These errors add up like a random walk too: to 0.2 eps sqrt(T) of a result's size, for operands
# uniform in [-1, 1). 4 leaves room for the largest of many results, and for sums of one term. Winograd's
# transforms enlarge them: its algorithms state constants of their own.
ERROR_CONSTANT = 4.0


def terms_of(direction: str, case: Case) -> int:
    """How many products one element of the result sums."""
    p = case.problem
    taps = int(np.prod(p.kernel))
    return {
        "forward": p.group_in * taps,
        "input_grad": p.group_out * taps,
        "weight_grad": p.batch * int(np.prod(p.out_size)),
    }[direction]


def error_bound(dtype: Any, terms: int, algorithm: str = "") -> float:
    """c * eps * sqrt(terms) * rms, the rms being that of a sum of so many products."""
    rms = np.sqrt(max(terms, 1)) / 3  # that of the operands is 1 / sqrt(3)
    constant = winograd.ERROR_CONSTANTS.get(algorithm, ERROR_CONSTANT)
    return float(constant * np.finfo(dtype).eps * np.sqrt(max(terms, 1)) * (rms + 1))


def assert_close(got: np.ndarray, want: np.ndarray, direction: str, case: Case, algorithm: str = "") -> None:
    assert got.shape == want.shape
    bound = error_bound(got.dtype, terms_of(direction, case), algorithm)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=bound)


def check(direction: str, data: Operands, algorithm: str) -> None:
    """One direction by one algorithm against the oracle."""
    got = compute(direction, data, algorithm)
    assert got.dtype == data.input.dtype
    assert_close(got, oracle(direction, data), direction, data.case, algorithm)


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits, NaN and signs of zero included."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def skip_unless_supported(row: Any, case: Case) -> None:
    if not row.supports(case.problem):
        pytest.skip(f"{row.algorithm} does not take this problem")


def fitting(problem: Case, algorithm: str) -> Case:
    """The problem, or a twin that the algorithm takes: a filter a channel, filters of one tap or 3x3."""
    rows = [row for row in CONV_KERNELS if row.algorithm == algorithm]
    filters, channels = problem.weight_shape[0], problem.input_shape[1]
    groups = problem.options.get("groups", 1)
    alone = {**problem.options, "groups": channels}
    each = filters // channels * channels or channels if channels else 0
    twins = [
        problem,
        Case(problem.input_shape, (each, 1, *problem.weight_shape[2:]), alone),
        Case(problem.input_shape, (filters, problem.weight_shape[1], 1, 1), {"groups": groups}),
        Case(problem.input_shape, (filters, problem.weight_shape[1], 3, 3), {"groups": groups, "padding": 2}),
    ]
    for twin in twins if channels else (problem, *twins[2:]):
        if all(row.supports(twin.problem) for row in rows):
            return twin
    pytest.skip(f"{algorithm} does not take this problem")


# Memory

JUNK, GUARD, GUARD_BYTES = 0xC3, 0x5A, 256


class JunkScratch:
    """Stands in for fastconv.calls.scratch: exactly the bytes asked for, junk, between guards."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def __call__(self, size: int) -> np.ndarray:
        whole = np.full(size + 2 * GUARD_BYTES, GUARD, np.uint8)
        inner = whole[GUARD_BYTES : GUARD_BYTES + size]
        inner[:] = JUNK
        self.given.append(whole)
        return inner

    def intact(self) -> bool:
        return all(
            (whole[:GUARD_BYTES] == GUARD).all() and (whole[-GUARD_BYTES:] == GUARD).all()
            for whole in self.given
        )


@pytest.fixture
def junk_scratch(monkeypatch):
    scratch = JunkScratch()
    monkeypatch.setattr(calls, "scratch", scratch)
    return scratch


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0
_PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Cage:
    """Memory between two pages that nobody may touch: a step beyond an array ends the process."""

    def __init__(self) -> None:
        self._maps: list[tuple[mmap.mmap, int, int]] = []

    def place(self, shape: Any, dtype: Any, at: str) -> np.ndarray:
        """An array of NaN that begins behind a wall (at "start") or ends before one (at "end")."""
        page, size = mmap.PAGESIZE, int(np.prod(shape)) * np.dtype(dtype).itemsize
        room = -(-max(size, 1) // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for wall in (address, address + page + room):
            if _libc.mprotect(wall, page, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._maps.append((memory, address, room))
        offset = page if at == "start" else page + room - size
        array = np.frombuffer(memory, dtype, size // np.dtype(dtype).itemsize, offset)
        array.fill(np.nan if np.dtype(dtype).kind == "f" else 0)
        return array.reshape(shape)

    def copy(self, array: np.ndarray, at: str) -> np.ndarray:
        twin = self.place(array.shape, array.dtype, at)
        twin[...] = array
        return twin

    def open(self) -> None:
        """Takes the walls down, so that the memory can be freed."""
        for _, address, room in self._maps:
            _libc.mprotect(address, mmap.PAGESIZE, _PROT_READ_WRITE)
            _libc.mprotect(address + mmap.PAGESIZE + room, mmap.PAGESIZE, _PROT_READ_WRITE)


@pytest.fixture
def cage():
    cage = Cage()
    yield cage
    cage.open()


# Processes


def run_python(code: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter that imports the fastconv under test."""
    variables = {**os.environ, **environment}
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=variables, check=False
    )
