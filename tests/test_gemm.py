"""Implicit GEMM: every edge of its blocking, every way to read the weights."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    CASES,
    around,
    assert_close,
    case,
    check,
    compute,
    identical,
    operands,
    oracle,
    result_shape,
)
from numpy.testing import assert_allclose, assert_array_equal

import fastconv
from fastconv import calls, engine, passes, plan
from fastconv.passes import IN_PLACE_COLUMNS, IN_PLACE_ROWS, PACKED


def test_rows_around_the_tile(tile, dtype):
    rows, _, _ = tile
    for filters in around(rows, 1):
        for direction in ("forward", "input_grad"):
            problem = case((1, 3, 5, 6), (filters, 3, 2, 3), padding=1)
            check(direction, operands(problem, dtype), "gemm")


def test_channels_around_the_vector(tile, dtype):
    _, _, lanes = tile
    for channels in around(lanes, 1):
        for direction in ("forward", "input_grad"):
            problem = case((2, channels, 4, 5), (3, channels, 3, 3), padding=1)
            check(direction, operands(problem, dtype), "gemm")


def test_pixels_around_the_tile(tile, dtype):
    _, columns, lanes = tile
    for pixels in around(columns, lanes):
        for shape in ((1, pixels), (pixels, 1)):
            for stride in (1, 2):
                problem = case((1, 2, *shape), (3, 2, 1, 1), stride=stride)
                check("forward", operands(problem, dtype), "gemm")
                check("input_grad", operands(problem, dtype), "gemm")
        problem = case((1, 2, 2, 2 * pixels + 3), (3, 2, 2, 3), stride=(1, 2), padding=1)
        check("forward", operands(problem, dtype), "gemm")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_tiles_of_every_height(kernel, threads, tile, dtype):
    most, _, lanes = tile
    with fastconv.threads(threads):
        for filters in range(1, most + 2):
            problem = case((2, 5, 4, 7 * lanes + 3), (filters, 5, kernel, kernel), padding=kernel // 2)
            check("forward", operands(problem, dtype), "gemm")


@pytest.mark.parametrize("columns", [7, 8, 20, 24, 40])
@pytest.mark.parametrize("filters", [3, 8, 20, 40])
def test_rows_of_half_vectors(filters, columns, isa, dtype):
    for stride in (1, 2, 3):
        problem = case((2, 4, 7, columns * stride), (filters, 4, 3, 3), stride=stride, padding=1)
        check("forward", operands(problem, dtype), "gemm")
        check("input_grad", operands(problem, dtype), "gemm")


SWEPT = [
    case((1, 5, 9, 13), (7, 5, 1, 1)),  # one block of rows, a last tile that begins early
    case((2, 12, 10, 10), (70, 12, 1, 1)),
    case((1, 30, 11, 97), (31, 30, 1, 1)),  # few blocks
    case((1, 3, 19, 41), (37, 3, 3, 2), padding=1),  # a band, low tiles
    case((2, 6, 17, 48), (40, 3, 2, 2), groups=2),
    case((1, 8, 33, 25), (29, 8, 3, 3), stride=2, padding=1),
    case((2, 4, 40, 24), (40, 4, 1, 1), stride=2, padding=1),  # pixels gathered in rows
    case((3, 3, 33, 33), (26, 3, 2, 2), stride=2),
    case((2, 1, 9, 45), (33, 1, 2, 2)),  # lines that end within a tile
    case((1, 2, 8, 95), (23, 2, 3, 1), padding=(1, 0)),
    case((2, 16, 20, 12), (50, 8, 1, 1), groups=2),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("problem", SWEPT, ids=str)
def test_sweeps_along_the_pixels(problem, threads, isa, dtype):
    data = operands(problem, dtype)
    with fastconv.threads(threads):
        for direction in ("forward", "input_grad"):
            check(direction, data, "gemm")
        got = compute("forward", data, "gemm", activation="relu")
    want = compute("forward", data, "direct", activation="relu")
    assert_allclose(got, want, rtol=0, atol=2000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("columns", [6, 7, 8, 23, 24, 33, 64])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_input_gradients_lie_a_stride_apart(stride, columns, isa, dtype):
    for kernel in (1, 2, 3):
        problem = case((2, 20, 9, columns), (5, 20, kernel, kernel), stride=stride, padding=kernel // 2)
        check("input_grad", operands(problem, dtype), "gemm")


@pytest.mark.parametrize("columns", [56, 57, 400])
@pytest.mark.parametrize("groups", [1, 33])
def test_input_gradients_of_one_row(columns, groups, isa, dtype):
    """A pass of a single tap reads the row from a band, though it has the image itself as its matrix."""
    for kernel in (1, 3):
        problem = case((2, 33, 1, columns), (33, 33 // groups, kernel, kernel), stride=2, padding=kernel // 2,
                       groups=groups)  # fmt: skip
        check("input_grad", operands(problem, dtype), "gemm")


PATCHES = [
    case((2, 3, 12, 20), (5, 3, 4, 4), stride=4),
    case((1, 5, 34, 70), (7, 5, 2, 2), stride=2),
    case((2, 6, 35, 71), (8, 3, 2, 2), stride=2, groups=2),  # a row and a column that no window covers
    case((3, 2, 10, 23), (4, 2, 3, 5), stride=(3, 5), padding=(1, 2)),  # windows that reach into the padding
    case((1, 3, 32, 48), (20, 3, 16, 16), stride=16),
    case((2, 3, 9, 136), (20, 3, 1, 8), stride=(1, 8)),
    case((2, 2, 4, 40), (3, 2, 2, 32), stride=(2, 32)),  # wider than what is woven
    case((4, 11, 5, 6), (13, 11, 5, 6), stride=(1, 9)),  # one window an image
    case((3, 4, 8, 6), (6, 4, 1, 2), stride=(1, 2), padding=(0, 3)),  # windows in the padding alone
    case((1, 600, 6, 6), (1100, 600, 2, 2), stride=2),  # several blocks of the depth, spans of rows
]


@pytest.mark.parametrize("problem", PATCHES, ids=str)
def test_input_gradients_of_windows_side_by_side(problem, isa, dtype, cage):
    data = operands(problem, dtype)
    planned = plan.plan_conv(problem.problem, "input_grad", dtype, "gemm")
    assert len(planned.passes) == 1
    assert planned.passes[0].geometry["patch"].all()
    check("input_grad", data, "gemm")
    want = compute("input_grad", data, "gemm")
    for threads, at in ((1, "start"), (2, "end"), (5, "end")):
        data = replace(
            data, **{name: cage.copy(getattr(data, name), at) for name in ("weight", "grad_output")}
        )
        with fastconv.threads(threads):
            out = cage.place(want.shape, dtype, at)
            assert identical(compute("input_grad", data, "gemm", out=out), want)


def test_auto_takes_one_product_where_windows_lie_side_by_side(isa):
    def chosen(kernel, **more):
        return fastconv.plan_conv2d((1, 3, 48, 48), (96, 3, kernel, kernel), direction="input_grad", **more)

    assert chosen(4, stride=4).passes[0].geometry["patch"].tolist() == [1, 4, 4]
    assert chosen(4, stride=4).algorithm == "gemm"
    assert chosen(48).algorithm == "gemm"
    for overlapping in ({"stride": 3}, {"stride": 4, "dilation": 2}, {"stride": 5}):
        assert not any(step.geometry["patch"].any() for step in chosen(4, **overlapping).passes)


@pytest.mark.parametrize("value", [1.0, np.inf, np.nan])
@pytest.mark.parametrize("threads", [1, 3])
def test_taps_in_the_padding(threads, value, isa, dtype):
    """Left out where they add zeros; an infinite weight times a zero of the padding is no zero."""
    problem = case((2, 3, 10, 24), (8, 3, 7, 5), dilation=(3, 2), padding=(9, 4))
    assert plan.plan_conv(problem.problem, "forward", dtype, "gemm").passes[0].geometry["skips"]
    data = operands(problem, dtype)
    data.weight[2, 1, 0, 3] = value
    with fastconv.threads(threads):
        found, expected = (compute("forward", data, name) for name in ("gemm", "direct"))
    assert_array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected)
    assert_allclose(found[finite], expected[finite], rtol=0, atol=1e-3)


@pytest.mark.parametrize("width", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_panels_that_span_rows_and_images(batch, width, isa, dtype):
    problem = case((batch, 4, width, width), (5, 4, 3, 3), padding=1)
    check("forward", operands(problem, dtype), "gemm")
    check("input_grad", operands(problem, dtype), "gemm")


DEEP = [
    case((1, 600, 5, 6), (7, 600, 1, 1)),
    case((2, 97, 6, 5), (19, 97, 3, 3), padding=1),
    case((1, 530, 7, 5), (1030, 530, 1, 1), stride=2),
    case((1, 4, 30, 31), (3, 4, 17, 19)),
    case((1, 130, 9, 9), (66, 65, 3, 3), groups=2, padding=1, stride=2),
]


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("problem", DEEP, ids=str)
def test_several_blocks_of_the_depth(problem, direction, isa, dtype):
    check(direction, operands(problem, dtype), "gemm")


@pytest.mark.parametrize("activation", [None, "relu"])
def test_bias_and_activation_apply_once_over_several_blocks(activation, isa, dtype):
    data = operands(DEEP[1], dtype)
    got = compute("forward", data, "gemm", activation=activation)
    want = compute("forward", data, "direct", activation=activation)
    np.testing.assert_allclose(got, want, rtol=0, atol=2000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("threads", [1, 4])
def test_many_blocks_of_rows_and_pixels(direction, threads, small_cache, dtype):
    problem = case((2, 150, 21, 23), (145, 150, 1, 1))
    blocks = plan.plan_conv(problem.problem, direction, dtype, "gemm").passes[0].geometry
    assert blocks["row_block"] < 145
    assert blocks["pixel_block"] < 21 * 23
    with fastconv.threads(threads):
        check(direction, operands(problem, dtype), "gemm")


# Where the weights are read


# reading -> (BAND_IDLE_ROWS, PACK_PIXELS) of the plan, which otherwise chooses by size
READINGS = {
    "im2col, weights in place": (-(1 << 62), 1 << 62),
    "im2col, weights packed": (-(1 << 62), 0),
    "bands": (1 << 62, 1 << 62),
}


@pytest.fixture(params=READINGS.values(), ids=READINGS)
def reading(request, monkeypatch, isa):
    """Each way in which the kernel can read its operands, whatever the plan would have chosen."""
    for name, value in zip(("BAND_IDLE_ROWS", "PACK_PIXELS"), request.param, strict=True):
        monkeypatch.setattr(passes, name, value)
    plan.plan_conv.cache_clear()
    yield
    plan.plan_conv.cache_clear()


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("problem", CASES + DEEP, ids=str)
def test_every_reading(problem, direction, reading, dtype):
    check(direction, operands(problem, dtype), "gemm")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("width", [14, 15, 16, 17, 31, 33, 47, 56, 63])
def test_every_reading_of_wide_rows(width, direction, threads, reading, dtype):
    with fastconv.threads(threads):
        for stride in (1, 2):
            problem = case((2, 12, 6, width), (21, 12, 3, 3), padding=1, stride=stride)
            check(direction, operands(problem, dtype), "gemm")


@pytest.mark.parametrize("problem", [CASES[3], CASES[8], *DEEP[:2]], ids=str)
def test_prepared_by_every_reading(problem, reading, dtype):
    data = operands(problem, dtype)
    operation = fastconv.prepare_conv2d(data.weight, data.bias, algorithm="gemm", **problem.options)
    for _ in range(2):
        assert identical(operation(data.input), compute("forward", data, "gemm"))


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("problem", [*CASES, DEEP[1], case((1, 40, 33, 35), (60, 40, 1, 1))], ids=str)
def test_results_that_bypass_the_caches(problem, direction, shift, monkeypatch, isa, dtype):
    """Large outputs are streamed: here every one is, wherever it lies within a cache line."""
    monkeypatch.setattr(passes, "STREAM_BYTES", 0)
    plan.plan_conv.cache_clear()
    data = operands(problem, dtype)
    shape = result_shape(direction, problem)
    memory = np.full(int(np.prod(shape)) + shift, np.nan, dtype)
    out = memory[shift:].reshape(shape)
    compute(direction, data, "gemm", out=out)
    assert_close(out, oracle(direction, data), direction, problem)
    assert np.isnan(memory[:shift]).all()


def source_of(problem, direction, dtype):
    return plan.plan_conv(problem.problem, direction, dtype, "gemm").passes[0].source


SOURCES = [
    (case((2, 37, 9, 8), (41, 37, 3, 3), padding=1), "forward", IN_PLACE_ROWS),
    (case((2, 37, 9, 8), (41, 37, 1, 1), stride=2), "forward", IN_PLACE_ROWS),
    (case((2, 36, 9, 8), (44, 9, 2, 3), groups=4), "forward", IN_PLACE_ROWS),
    (case((2, 37, 9, 8), (41, 37, 1, 1)), "input_grad", IN_PLACE_COLUMNS),
    (case((2, 36, 9, 8), (44, 9, 1, 1), groups=4), "input_grad", IN_PLACE_COLUMNS),
    (case((2, 37, 9, 8), (41, 37, 3, 3), padding=1), "input_grad", PACKED),
    (case((2, 36, 9, 8), (44, 9, 3, 2), groups=4), "input_grad", PACKED),
    (case((2, 300, 9, 8), (310, 300, 2, 2), stride=(2, 1)), "input_grad", PACKED),
    (case((2, 300, 9, 8), (310, 300, 2, 2), stride=2), "input_grad", IN_PLACE_COLUMNS),
]


@pytest.mark.parametrize(("problem", "direction", "source"), SOURCES, ids=str)
def test_every_source_of_weights(problem, direction, source, monkeypatch, isa, dtype):
    monkeypatch.setattr(passes, "BAND_IDLE_ROWS", -(1 << 62))
    monkeypatch.setattr(passes, "PACK_PIXELS", 1 << 62)
    assert source_of(problem, direction, dtype) == source
    check(direction, operands(problem, dtype), "gemm")


PACKED_PROBLEMS = [
    case((2, 130, 7, 9), (150, 130, 3, 3), padding=1),
    case((2, 96, 7, 9), (80, 24, 3, 3), groups=4, padding=1, stride=2),
    case((2, 30, 48, 31), (150, 15, 4, 4), groups=2, stride=4),
]


@pytest.mark.parametrize("limit", [1, 4096, 100_000])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("problem", PACKED_PROBLEMS, ids=str)
def test_weights_beyond_the_pack_limit(problem, threads, limit, monkeypatch, isa, dtype):
    data = operands(problem, dtype)
    whole = compute("input_grad", data, "gemm")
    with fastconv.threads(threads), engine.forced(isa):
        monkeypatch.setattr(calls, "PACK_LIMIT", limit)
        packed_in_turn = compute("input_grad", data, "gemm")
        assert identical(packed_in_turn, whole)
    monkeypatch.undo()


def test_pack_limit_bounds_the_workspace(monkeypatch, isa, dtype):
    problem = PACKED_PROBLEMS[0].problem
    step = plan.plan_conv(problem, "input_grad", dtype, "gemm")
    whole = step.workspace_for(1)
    monkeypatch.setattr(plan, "PACK_LIMIT", 4096)
    packed = problem.parameters * dtype.itemsize
    assert whole - step.workspace_for(1) > packed // 2
