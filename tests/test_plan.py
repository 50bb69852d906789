"""Plans: frozen, cached, picklable, and they say what will be done."""

import pickle
from dataclasses import FrozenInstanceError
from math import prod

import numpy as np
import pytest
from conftest import (
    CONV_KERNELS,
    case,
    compute,
    every_conv_kernel,
    every_direction,
    fitting,
    operands,
)

import fastconv
from fastconv import calls
from fastconv.passes import GEOMETRY
from fastconv.plan import plan_conv

LAYER = case((2, 16, 30, 31), (24, 8, 3, 3), groups=2, stride=2, padding=1)
EMPTY = [
    case((0, 3, 5, 5), (4, 3, 3, 3)),
    case((1, 2, 0, 4), (3, 2, 2, 2), padding=1),
    case((1, 2, 1, 1), (3, 2, 1, 1), padding=1, stride=3),
]


def make(kernel, problem=LAYER, dtype=np.float32):
    problem = fitting(problem, kernel.algorithm)
    return fastconv.plan_conv2d(
        problem.input_shape, problem.weight_shape,
        direction=kernel.direction, algorithm=kernel.algorithm, dtype=dtype, **problem.options,
    )  # fmt: skip


@every_conv_kernel
def test_says_what_will_be_done(kernel, dtype):
    plan = make(kernel, dtype=dtype)
    layer = fitting(LAYER, kernel.algorithm)
    p = layer.problem
    assert (plan.direction, plan.algorithm, plan.dtype) == (
        kernel.direction,
        kernel.algorithm,
        dtype,
    )
    assert plan.kernel is kernel
    assert plan.reason == "asked for"
    weights = p.out_channels * p.group_in * prod(p.kernel)
    assert plan.flops == p.flops == 2 * 2 * prod(p.out_size) * weights
    assert plan.output_shape == compute(kernel.direction, operands(layer, dtype)).shape
    text = plan.explain()
    for word in (
        kernel.direction,
        kernel.algorithm,
        str(p.input_shape),
        dtype.name,
        f"groups {p.groups}",
        "MFLOP",
    ):
        assert word in text


@every_conv_kernel
@pytest.mark.parametrize("problem", EMPTY, ids=str)
def test_empty_problems_have_plans_too(problem, kernel, dtype):
    plan = make(kernel, problem, dtype)
    assert plan.workspace_bytes >= 0
    assert kernel.direction in plan.explain()


@every_direction
@pytest.mark.parametrize(
    ("problem", "is_small"),
    [
        (case((1, 1, 3, 3), (1, 1, 3, 3)), True),
        (case((1, 64, 56, 56), (64, 64, 3, 3), padding=1), False),
    ],
    ids=["small", "large"],
)
def test_auto_chooses_and_says_why(problem, is_small, direction):
    plan = fastconv.plan_conv2d(
        problem.input_shape, problem.weight_shape, direction=direction, **problem.options
    )
    assert (plan.algorithm == "direct") == is_small
    assert plan.algorithm != "im2col"
    assert plan.reason
    assert plan.reason != "asked for"
    assert plan.reason in plan.explain()


def test_frozen():
    plan = make(CONV_KERNELS[0])
    with pytest.raises(FrozenInstanceError):
        plan.algorithm = "direct"


@every_conv_kernel
def test_equal_plans_are_found_in_the_cache(kernel):
    assert make(kernel) is make(kernel)
    same = {**LAYER.options, "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    other = case(LAYER.input_shape, LAYER.weight_shape, **same)
    assert make(kernel, other) is make(kernel)
    assert make(kernel, dtype=np.float64) is not make(kernel)


def test_the_cache_is_bounded():
    assert plan_conv.cache_info().maxsize <= 10_000


@every_conv_kernel
def test_pickles(kernel, dtype):
    plan = make(kernel, dtype=dtype)
    twin = pickle.loads(pickle.dumps(plan))
    assert twin == plan
    assert hash(twin) == hash(plan)
    assert twin.explain() == plan.explain()
    assert twin != make(kernel, EMPTY[0], dtype)
    for ours, theirs in zip(plan.passes, twin.passes, strict=True):
        np.testing.assert_array_equal(ours.taps, theirs.taps)
        assert ours.geometry == theirs.geometry


@every_conv_kernel
def test_a_pickled_plan_still_runs(kernel, dtype):
    twin = pickle.loads(pickle.dumps(make(kernel, dtype=dtype)))
    data = operands(fitting(LAYER, kernel.algorithm), dtype)
    arrays = data.of(kernel.direction)
    out = np.empty(twin.output_shape, dtype)
    calls.bind(twin)(*arrays, out, 1)
    with fastconv.threads(1):
        want = compute(kernel.direction, data, kernel.algorithm)
    np.testing.assert_array_equal(out, want)


def test_threads_grow_with_the_work():
    def threads(size):
        return fastconv.plan_conv2d((1, 64, size, size), (64, 64, 3, 3), padding=1).threads

    assert threads(1) == 1
    assert threads(8) <= threads(64) <= threads(224)
    assert threads(224) > 64


def test_workspace_follows_the_number_of_threads():
    plan = fastconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3), padding=1, algorithm="gemm")
    sizes = []
    for count in (1, 2, 4):
        with fastconv.threads(count):
            sizes.append(plan.workspace_bytes)
    assert 0 < sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
def test_planning_does_not_grow_with_the_image(direction):
    plan = fastconv.plan_conv2d((1, 1, 10**9, 10**8), (1, 1, 3, 3), direction=direction)
    assert plan.flops == 2 * 9 * (10**9 - 2) * (10**8 - 2)


@pytest.mark.parametrize("stride", [1, 7, 10**6])
def test_planning_does_not_grow_with_the_stride(stride):
    plan = fastconv.plan_conv2d(
        (1, 1, 10**8, 10**8), (1, 1, 3, 3), stride=stride, direction="input_grad", algorithm="gemm"
    )
    assert len(plan.passes) == (1 if stride == 1 else 9)
    assert plan.covers == (stride == 1)


def test_taps_of_the_forward_pass():
    problem = case((1, 2, 9, 9), (3, 2, 2, 3), dilation=(2, 3), padding=((1, 0), (4, 0)))
    step = plan_conv(problem.problem, "forward", np.dtype(np.float32), "gemm").passes[0]
    want = [(0, r * 2 - 1, s * 3 - 4, r * 3 + s) for r in range(2) for s in range(3)]
    assert step.taps.tolist() == [list(tap) for tap in want]
    assert step.taps.dtype == np.intp
    assert step.taps.flags.carray
    assert step.geometry.dtype == GEOMETRY


def test_phases_of_the_input_gradient_share_out_the_taps():
    problem = case((1, 2, 20, 20), (3, 2, 5, 4), stride=(3, 2), dilation=(2, 1), padding=1)
    plan = plan_conv(problem.problem, "input_grad", np.dtype(np.float32), "gemm")
    taps = sorted(int(index) for step in plan.passes for index in step.taps[:, 3])
    assert taps == list(range(20))
