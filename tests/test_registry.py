"""The table of kernels is complete: every row leads to a kernel, a test, a benchmark and a page."""

import importlib

import pytest
from conftest import CHECKOUT, CONV_KERNELS, DIRECTIONS, PACKAGE

import fastconv
from fastconv import calls, engine
from fastconv.registry import KERNELS, Kernel, find

every_row = pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.id)
COMPILED = {path.stem for path in (PACKAGE / "kernels").glob("*.pyx")}


def test_ids_are_unique():
    assert len({row.id for row in KERNELS}) == len(KERNELS)
    keys = {(row.operation, row.direction, row.algorithm) for row in KERNELS}
    assert len(keys) == len(KERNELS)


@every_row
def test_its_entry_exists_in_every_engine(row, dtype):
    if row.module in COMPILED:
        modules = [getattr(engine.load(dtype, isa), row.module) for isa in engine.loadable()]
    else:
        modules = [importlib.import_module(f"fastconv.{row.module}")]
    for module in modules:
        assert callable(getattr(module, row.entry))


@every_row
@pytest.mark.parametrize("kind", ["test", "bench"])
def test_it_has_a_test_and_a_benchmark(row, kind):
    path = CHECKOUT / getattr(row, kind)
    assert path.is_file(), f"{row.id} names {path.name}"
    # Where there is one algorithm alone, nobody names it: the operation's name will do.
    kind_of_row = (row.operation, row.direction)
    rivals = [other for other in KERNELS if (other.operation, other.direction) == kind_of_row]
    word = row.algorithm if len(rivals) > 1 else row.operation
    assert word in path.read_text(), f"{path.name} does not mention {word}"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_public_algorithm_is_a_row(direction):
    """What the message for an unknown algorithm offers, what is bound, and the table: one list."""
    rows = {row.algorithm for row in CONV_KERNELS if row.direction == direction}
    with pytest.raises(ValueError, match=r"^algorithm: expected one of") as raised:
        fastconv.plan_conv2d((1, 1, 3, 3), (1, 1, 3, 3), algorithm="none such", direction=direction)
    for algorithm in ("auto", *rows):
        assert repr(algorithm) in str(raised.value)
        kernel = 3 if algorithm.startswith("winograd") else 1
        plan = fastconv.plan_conv2d(
            (1, 8, 9, 9), (8, 1, kernel, kernel), groups=8, algorithm=algorithm, direction=direction
        )
        assert plan.algorithm in rows
        assert callable(calls.bind(plan))


@pytest.mark.parametrize("algorithm", sorted({row.algorithm for row in CONV_KERNELS}))
def test_conv2d_documents_its_algorithms(algorithm):
    assert f'"{algorithm}"' in fastconv.conv2d.__doc__


@every_row
def test_find(row):
    assert find(row.operation, row.direction, row.algorithm) is row
    with pytest.raises(ValueError, match="algorithm"):
        find(row.operation, row.direction, "none such")


def test_rows_are_values():
    assert all(isinstance(row, Kernel) for row in KERNELS)
    with pytest.raises(AttributeError):
        KERNELS[0].algorithm = "other"


@pytest.mark.parametrize("module", sorted(COMPILED))
def test_the_architecture_lists_every_kernel_module(module):
    path = CHECKOUT / "docs" / "architecture.md"
    assert path.is_file()
    assert f"{module}.pyx" in path.read_text()


@pytest.mark.parametrize("module", sorted(COMPILED - {"machine", "memory"}))
def test_every_kernel_module_has_a_row(module):
    """`machine` measures, `memory` allocates; the others compute something that the table must know."""
    assert module in {name for row in KERNELS for name in (row.module, row.module_last)}
