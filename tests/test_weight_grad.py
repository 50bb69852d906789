"""The weights' gradient as a product along the pixels: chunks, splits, sides, transposes."""

import numpy as np
import pytest
from conftest import around, case, check, compute, identical, operands, terms_of

import fastconv
from fastconv import plan

DIRECTION = "weight_grad"


def cut_of(problem, dtype):
    return plan.plan_conv(problem.problem, DIRECTION, dtype, "gemm").reduction


def test_rows_and_columns_around_the_tile(tile, dtype):
    rows, columns, lanes = tile
    for filters in around(rows, lanes, 1):
        check(DIRECTION, operands(case((1, 3, 6, 7), (filters, 3, 2, 2)), dtype), "gemm")
    for channels in around(columns, lanes, 1):
        check(DIRECTION, operands(case((1, channels, 6, 7), (5, channels, 1, 1)), dtype), "gemm")


def test_pixels_around_the_vector(tile, dtype):
    _, columns, lanes = tile
    for pixels in around(columns, lanes, 1):
        for shape in ((1, pixels), (pixels, 1)):
            check(DIRECTION, operands(case((1, 5, *shape), (4, 5, 1, 1)), dtype), "gemm")
            problem = case((2, 5, *shape), (4, 5, 1, 1), stride=2, padding=1)
            check(DIRECTION, operands(problem, dtype), "gemm")


# Which side is transposed, and what lies in memory as the product wants it


SIDES = [
    ("few filters", case((1, 64, 12, 12), (3, 64, 1, 1))),
    ("few channels", case((1, 3, 12, 12), (64, 3, 1, 1))),
    ("many taps", case((1, 5, 20, 20), (40, 5, 5, 3), padding=2)),
    ("grouped", case((2, 24, 13, 14), (36, 4, 3, 3), groups=6, padding=1)),
]


@pytest.mark.parametrize(("name", "problem"), SIDES, ids=[name for name, _ in SIDES])
def test_either_side_is_transposed(name, problem, isa, dtype):
    check(DIRECTION, operands(problem, dtype), "gemm")


def test_both_sides_occur(dtype):
    assert {cut_of(problem, dtype).grad_is_left for _, problem in SIDES} == {True, False}


FLAT = [
    case((1, 6, 1, 9), (4, 6, 1, 1), padding=(1, 0), stride=(1, 3)),
    case((1, 6, 1, 5), (4, 6, 1, 1), padding=(0, 2), stride=(1, 2)),
    case((1, 6, 1, 7), (4, 6, 1, 1), padding=(0, 1)),
    case((1, 6, 1, 7), (4, 6, 1, 1), stride=(1, 2)),
    case((3, 6, 1, 400), (4, 6, 1, 1), padding=((0, 0), (3, 0))),
    case((3, 6, 1, 400), (4, 6, 1, 1), padding=((0, 0), (133, 266)), stride=(1, 2)),
    case((3, 6, 1, 400), (4, 6, 1, 1), padding=((0, 1), (0, 0)), stride=(1, 2)),
    case((3, 6, 20, 20), (4, 6, 1, 1)),
]


@pytest.mark.parametrize("problem", FLAT, ids=str)
def test_images_of_one_row(problem, isa, dtype):
    """The image serves in place only where each pixel of it is one pixel of the output."""
    check(DIRECTION, operands(problem, dtype), "gemm")


# How the sum is cut


SMALL_PLANES = [
    case((40, 9, 5, 5), (8, 9, 3, 3), padding=1),
    case((300, 7, 3, 3), (8, 7, 3, 3)),
    case((33, 40, 7, 7), (50, 40, 1, 1)),
    case((29, 12, 9, 6), (10, 6, 2, 3), groups=2, stride=2),
]


@pytest.mark.parametrize("problem", SMALL_PLANES, ids=str)
def test_chunks_that_span_images(problem, isa, dtype):
    assert cut_of(problem, dtype).segments == 1
    check(DIRECTION, operands(problem, dtype), "gemm")


SPLIT = [
    case((1, 3, 70, 66), (8, 3, 3, 3), padding=1),
    case((5, 16, 32, 30), (24, 16, 1, 1)),
    case((100, 8, 8, 8), (8, 8, 3, 3), padding=1),
    case((4, 6, 40, 40), (6, 2, 3, 3), groups=3),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("problem", SPLIT, ids=str)
def test_splits_are_added(problem, threads, isa, dtype):
    assert cut_of(problem, dtype).splits > 1
    with fastconv.threads(threads):
        check(DIRECTION, operands(problem, dtype), "gemm")


def test_a_long_sum_keeps_its_accuracy(isa, dtype):
    """Chunks and splits make a tree of short sums: the error stays near that of one chunk."""
    problem = case((2, 2, 300, 301), (3, 2, 1, 1))
    data = operands(problem, dtype)
    want = compute(DIRECTION, operands(problem, dtype), "im2col").astype(np.float64)
    if dtype == np.float32:
        exact = operands(problem, dtype)
        want = np.einsum(
            "nkp,ncp->kc",
            exact.grad_output.reshape(2, 3, -1).astype(float),
            exact.input.reshape(2, 2, -1).astype(float),
        ).reshape(3, 2, 1, 1)
    got = compute(DIRECTION, data, "gemm")
    # A plain running sum in float32 would be allowed 4 * eps * terms / 3.
    bound = np.finfo(dtype).eps * terms_of(DIRECTION, problem) / 16
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "problem",
    [
        case((2, 150, 13, 12), (145, 150, 1, 1)),
        case((2, 70, 13, 12), (134, 35, 3, 3), groups=2, padding=1),
        case((1, 3, 30, 30), (70, 3, 11, 11), stride=2),
    ],
    ids=str,
)
def test_many_blocks(problem, threads, small_cache, dtype):
    data = operands(problem, dtype)
    with fastconv.threads(threads):
        check(DIRECTION, data, "gemm")
    with fastconv.threads(1):
        alone = compute(DIRECTION, data, "gemm")
    with fastconv.threads(threads):
        assert identical(compute(DIRECTION, data, "gemm"), alone)


@pytest.mark.parametrize(
    ("shape", "filters", "options", "algorithm"),
    [
        # 1x1: scalar products of planes
        ((1, 32, 28, 28), (32, 1, 1, 1), {"groups": 32}, "direct"),
        ((1, 1, 28, 28), (96, 1, 1, 1), {}, "direct"),
        ((1, 32, 28, 28), (1, 32, 1, 1), {}, "direct"),
        ((1, 4, 28, 28), (4, 4, 1, 1), {}, "direct"),
        ((1, 8, 28, 28), (16, 8, 1, 1), {}, "gemm"),
        ((1, 32, 28, 28), (2, 32, 1, 1), {}, "direct"),
        ((1, 32, 28, 28), (32, 1, 1, 1), {"groups": 32, "stride": 2}, "direct"),
        ((1, 32, 28, 28), (32, 1, 1, 1), {"groups": 32, "padding": 1}, "depthwise"),
        ((1, 28, 28, 32), (32, 1, 1, 1), {"groups": 32, "layout": "NHWC"}, "depthwise"),
        # filters a channel
        ((1, 8, 28, 28), (56, 1, 3, 3), {"groups": 8}, "depthwise"),
        ((1, 8, 28, 28), (64, 1, 3, 3), {"groups": 8}, "shifted"),
        ((1, 8, 28, 28), (24, 1, 3, 3), {"groups": 8, "stride": 2}, "depthwise"),
        ((1, 8, 28, 28), (32, 1, 3, 3), {"groups": 8, "stride": 2}, "shifted"),
        ((1, 8, 28, 28), (16, 1, 3, 3), {"groups": 8, "stride": 3}, "shifted"),
        ((1, 1, 28, 28), (64, 1, 3, 3), {"dilation": 2}, "gemm"),
        # steps wider than a filter
        ((1, 16, 28, 28), (32, 16, 2, 2), {"stride": 3}, "shifted"),
        ((1, 16, 28, 28), (32, 16, 2, 2), {"stride": 4}, "gemm"),
        ((1, 16, 28, 28), (4, 16, 2, 2), {"stride": 4}, "shifted"),
        ((1, 16, 28, 28), (32, 16, 1, 1), {"stride": 2}, "gemm"),
        # beyond the reach of strips
        ((1, 2, 8, 4000), (2, 2, 1, 3), {"dilation": (1, 1900)}, "gemm"),
    ],
    ids=str,
)
def test_what_auto_takes(shape, filters, options, algorithm):
    plan = fastconv.plan_conv2d(shape, filters, direction="weight_grad", **options)
    assert plan.algorithm == algorithm
