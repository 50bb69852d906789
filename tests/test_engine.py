"""Engines: which there are, which one runs, and that Python and C agree about what they share."""

import ast

import numpy as np
import pytest
from conftest import CHECKOUT, PACKAGE, run_python

import fastconv
from fastconv import engine
from fastconv.passes import GEOMETRY
from fastconv.plan import plan_conv
from fastconv.problem import conv_problem


def flags_of_setup():
    """The keys of ENGINE_FLAGS, read from setup.py without running it."""
    tree = ast.parse((CHECKOUT / "setup.py").read_text())
    keys = set()
    for node in ast.walk(tree):
        target = getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "ENGINE_FLAGS":
            keys |= {key.value for key in node.value.keys}
    return keys


def test_every_engine_is_built_by_setup_and_known_to_the_library():
    assert flags_of_setup() == set(engine.ENGINES)


def test_every_engine_holds_every_kernel():
    kernels = {path.stem for path in (PACKAGE / "kernels").glob("*.pyx")}
    assert kernels
    for isa in engine.built():
        for scalar in engine.DTYPES.values():
            folder = PACKAGE / "_engines" / f"{isa}_{scalar}"
            assert kernels <= {path.name.split(".")[0] for path in folder.iterdir()}


def test_the_baseline_is_always_there():
    assert "baseline" in engine.built()
    assert "baseline" in engine.loadable()
    assert engine.active_isa() in engine.loadable()


def test_the_widest_engine_comes_first():
    needs = [len(engine.ENGINES[isa]) for isa in engine.loadable() if isa != "wide"]
    assert needs == sorted(needs, reverse=True)


def test_geometry_is_laid_out_as_in_c(isa, dtype):
    step = plan_conv(conv_problem((1, 2, 9, 9), (3, 2, 3, 3)), "forward", dtype, "gemm").passes[0]
    sizes = GEOMETRY.itemsize, step.taps.dtype.itemsize * step.taps.shape[1]
    assert engine.load(dtype).gemm.geometry_bytes() == sizes


def test_tiles_are_what_the_flags_say(tile, isa, dtype):
    rows, columns, lanes = tile
    vector_bytes = {"avx512": 64, "wide": 64, "avx2": 32, "baseline": 16}[isa]
    assert lanes * dtype.itemsize == vector_bytes
    assert columns % lanes == 0
    assert rows >= 1


def test_forced_engine_runs_and_is_left(dtype):
    before = engine.active_isa()
    x, w = np.ones((1, 3, 8, 8), dtype), np.ones((4, 3, 3, 3), dtype)
    for isa in engine.loadable():
        with engine.forced(isa):
            assert engine.active_isa() == isa
            assert engine.load(dtype).isa == isa
            assert isa in repr(engine.load(dtype))
            assert (fastconv.conv2d(x, w, algorithm="gemm") == 27).all()
    assert engine.active_isa() == before


def test_forced_engine_is_left_on_errors():
    before = engine.active_isa()
    with pytest.raises(KeyError), engine.forced("baseline"):
        raise KeyError
    assert engine.active_isa() == before


@pytest.mark.parametrize("isa", ["", "AVX2", "sse9", "neon"])
def test_unknown_engines_are_refused(isa):
    with pytest.raises(ValueError, match=r"^isa\b.*baseline"), engine.forced(isa):
        pass


ASK = "import fastconv; from fastconv import engine; print(engine.active_isa())"


@pytest.mark.parametrize("isa", engine.loadable())
def test_the_variable_forces_an_engine(isa):
    done = run_python(ASK, FASTCONV_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


@pytest.mark.parametrize("isa", ["sse9", "AVX2", ""])
def test_the_variable_refuses_what_cannot_run(isa):
    done = run_python(ASK, FASTCONV_ISA=isa)
    assert done.returncode == 1
    assert f"FASTCONV_ISA={isa!r}" in done.stderr
    assert "baseline" in done.stderr


def test_a_folder_without_kernels_says_what_to_do():
    """As when Python finds a checkout that was never built."""
    code = (
        "from fastconv import engine; from pathlib import Path\n"
        "engine._FOLDER = Path('nowhere')\n"
        "engine.loadable()"
    )
    done = run_python(code)
    assert done.returncode == 1
    assert "pip install" in done.stderr


def test_peak_and_copy(isa, dtype):
    """The roofline's two measurements do what they say."""
    machine = engine.load(dtype).machine
    _, _, lanes = machine.tile()
    assert machine.fma_peak(2, 1000) == 2 * 12 * lanes * 1000 * 2
    for size in (0, 1, 1023, 1024, 5000):
        source, target = np.arange(size, dtype=dtype), np.full(size, np.nan, dtype)
        machine.copy(2, target, source)
        np.testing.assert_array_equal(target, source)
