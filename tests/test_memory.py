"""Memory: no kernel reads or writes beyond what it was given, and a call needs little of it."""

import os
import re
import sys

import numpy as np
import pytest
from conftest import (
    DIRECTIONS,
    case,
    compute,
    every_conv_kernel,
    fitting,
    identical,
    operands,
    result_shape,
    run_python,
    skip_unless_supported,
)

import fastconv
from fastconv import calls, passes, plan, workspace

PROBLEMS = [
    case((2, 3, 5, 7), (4, 3, 1, 1)),
    case((2, 17, 9, 9), (19, 17, 1, 1)),
    case((3, 5, 9, 33), (7, 5, 1, 1), stride=2),
    case((2, 3, 8, 17), (5, 3, 3, 3), padding=1),
    case((1, 3, 9, 31), (4, 3, 3, 5), stride=2, padding=(1, 2)),
    case((1, 3, 11, 21), (13, 3, 3, 3), stride=3, dilation=2, padding=2),
    case((2, 6, 7, 18), (9, 2, 3, 2), groups=3, padding=1),
    case((2, 5, 7, 9), (5, 1, 3, 3), groups=5, padding=1),
    case((1, 300, 5, 5), (7, 300, 1, 1)),
    case((1, 40, 6, 5), (15, 40, 3, 3), padding=1),
    case((1, 20, 6, 5), (15, 20, 3, 3), padding=1),
    case((9, 4, 3, 3), (3, 4, 3, 3), padding=1),
    case((1, 1, 1, 1), (1, 1, 1, 1)),
    case((1, 2, 1, 70), (3, 2, 1, 9), padding=(0, 4)),
    case((1, 3, 48, 50), (4, 3, 3, 3), padding=1),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@every_conv_kernel
@pytest.mark.parametrize("threads", [1, 3])
@every_problem
def test_workspace_is_just_large_enough(problem, threads, kernel, junk_scratch, monkeypatch, isa, dtype):
    """Junk in the workspace changes nothing, and the bytes around it stay."""
    skip_unless_supported(kernel, problem)
    monkeypatch.setattr("fastconv.plan.FLOPS_PER_THREAD", 1)  # threads for every problem
    monkeypatch.setattr("fastconv.plan.ELEMENTS_PER_THREAD", 1)
    data = operands(problem, dtype)
    want = compute(kernel.direction, data, "direct")
    with fastconv.threads(threads):
        got = compute(kernel.direction, data, kernel.algorithm)
        assert junk_scratch.intact()
        assert identical(got, compute(kernel.direction, data, kernel.algorithm))
    np.testing.assert_allclose(got, want, rtol=0, atol=4000 * np.finfo(dtype).eps)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@every_conv_kernel
@pytest.mark.parametrize("at", ["start", "end"])
@every_problem
def test_no_access_out_of_bounds(problem, at, kernel, cage, monkeypatch, isa, dtype):
    """Operands, result and workspace lie between walls; a step outside ends the process."""
    skip_unless_supported(kernel, problem)
    monkeypatch.setattr(calls, "scratch", lambda size: cage.place((size,), np.uint8, at))
    monkeypatch.setattr("fastconv.plan.FLOPS_PER_THREAD", 1)
    monkeypatch.setattr("fastconv.plan.ELEMENTS_PER_THREAD", 1)
    data = operands(problem, dtype)
    arrays = (data.input, data.weight, data.bias, data.grad_output)
    caged = type(data)(problem, *(cage.copy(array, at) for array in arrays))
    for threads in (1, 3):
        with fastconv.threads(threads):
            out = cage.place(result_shape(kernel.direction, problem), dtype, at)
            compute(kernel.direction, caged, kernel.algorithm, out=out)
            assert identical(out.copy(), compute(kernel.direction, data, kernel.algorithm))


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("at", ["start", "end"])
@every_problem
@pytest.mark.parametrize("algorithm", ["gemm", "gemm_small"])
def test_no_access_out_of_bounds_prepared(problem, algorithm, at, cage, monkeypatch, isa, dtype):
    monkeypatch.setattr(calls, "scratch", lambda size: cage.place((size,), np.uint8, at))
    problem = fitting(problem, algorithm)
    data = operands(problem, dtype)
    operation = fastconv.prepare_conv2d(
        cage.copy(data.weight, at), data.bias, algorithm=algorithm, **problem.options
    )
    operation(data.input)
    operation._packed = {form: cage.copy(packed, at) for form, packed in operation._packed.items()}
    operation._known.clear()
    out = cage.place(problem.problem.output_shape, dtype, at)
    got = operation(cage.copy(data.input, at), out=out)
    assert identical(got.copy(), compute("forward", data, algorithm))


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 9), (2, 3, 1, 67)], ids=str)
def test_no_access_out_of_bounds_of_the_bias_gradient(shape, at, cage, isa, dtype, rng):
    grad = cage.copy(rng.standard_normal(shape).astype(dtype), at)
    got = calls.bias_grad(grad, shape[1], 2)
    np.testing.assert_allclose(got, grad.sum(axis=(0, 2, 3)), atol=1e-5)


# BAND_IDLE_ROWS, PACK_PIXELS: as in test_gemm.py
READINGS = [(-(1 << 62), 1 << 62), (-(1 << 62), 0), (1 << 62, 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize(("fill", "pixels"), READINGS, ids=["im2col", "packed", "bands"])
@every_problem
def test_no_access_out_of_bounds_by_any_reading(
    problem, fill, pixels, at, direction, cage, monkeypatch, isa, dtype
):
    monkeypatch.setattr(passes, "BAND_IDLE_ROWS", fill)
    monkeypatch.setattr(passes, "PACK_PIXELS", pixels)
    monkeypatch.setattr(calls, "scratch", lambda size: cage.place((size,), np.uint8, at))
    data = operands(problem, dtype)
    arrays = (data.input, data.weight, data.bias, data.grad_output)
    caged = type(data)(problem, *(cage.copy(array, at) for array in arrays))
    out = cage.place(result_shape(direction, problem), dtype, at)
    got = compute(direction, caged, "gemm", out=out).copy()
    want = compute(direction, data, "direct")
    np.testing.assert_allclose(got, want, rtol=0, atol=4000 * np.finfo(dtype).eps)


# How much


@every_conv_kernel
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch", [1, 16])
def test_workspace_is_bounded_whatever_the_layer(kernel, threads, batch):
    """For the largest layers of VGG and ResNet, and dense ones written as convolutions.

    Sums that wait between depth blocks take rows times pixels of a tile, for each thread; packed
    weights come on top once. Of tiles of 6x6, which no plan takes by itself, 16 filters of 4,096 channels
    have 64 points each: 32 MiB in double precision.
    """
    if kernel.algorithm == "im2col":
        pytest.skip("the textbook form stores its matrix: that is what it is for")
    for problem in (
        case((batch, 64, 224, 224), (64, 64, 3, 3), padding=1),
        case((batch, 512, 28, 28), (512, 512, 3, 3), padding=1),
        case((batch, 3, 224, 224), (64, 3, 7, 7), padding=3, stride=2),
        case((batch, 2048, 7, 7), (512, 2048, 1, 1)),
        case((batch, 512, 7, 7), (4096, 512, 7, 7)),
        case((batch, 256, 64, 64), (256, 1, 3, 3), groups=256, padding=1),
    ):
        problem = fitting(problem, kernel.algorithm)
        for dtype in (np.float32, np.float64):
            step = plan.plan_conv(problem.problem, kernel.direction, np.dtype(dtype), kernel.algorithm)
            once = (32 if kernel.algorithm == "winograd_f6x6_3x3" else 12) << 20
            assert step.workspace_for(threads) <= (16 << 20) * threads + once


PEAK = """
import numpy as np, fastconv

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

direction = DIRECTION
fastconv.set_num_threads(2)
shape, filters = (2, 64, 200, 201), (64, 64, 3, 3)
generator = np.random.default_rng(0)
x, g = (generator.random(shape, np.float32) for _ in range(2))
w = generator.random(filters, np.float32)

def call(x, w, g):
    options = dict(padding=1, algorithm="gemm")
    if direction == "forward":
        return fastconv.conv2d(x, w, **options)
    if direction == "input_grad":
        return fastconv.conv2d_input_grad(x.shape, w, g, **options)
    return fastconv.conv2d_weight_grad(x, w.shape, g, **options)

call(x[:1, :, :16, :16].copy(), w, g[:1, :, :16, :16].copy())  # modules, threads
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark starts again from here
result = call(x, w, g)
print("extra", status("VmHWM") - before - result.nbytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_peak_memory_of_a_call(direction):
    """Beside operands and result at most 8 MB; the im2col matrix would take 185 MB."""
    code = PEAK.replace("DIRECTION", repr(direction))
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    extra = int(re.search(r"extra (-?\d+)", done.stdout).group(1))
    assert extra <= 8 << 20


def test_a_large_workspace_is_given_back():
    small = workspace.scratch(1000)
    assert workspace.scratch(10) is small
    large = workspace.scratch(workspace.KEPT_BYTES + 1)
    assert large.size > workspace.KEPT_BYTES
    assert workspace.scratch(10) is small


def test_a_result_beyond_memory_is_refused():
    x = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(MemoryError):
        fastconv.conv2d(x, np.ones((1, 1, 1, 1), np.float32), padding=2**26)
