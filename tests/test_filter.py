"""Image filters: heights of tiles and taps, borders, steps and gaps, blocks, and the plan that takes them."""

import numpy as np
import pytest
from conftest import around, case, check, compute, identical, operands
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

import fastconv
from fastconv import engine, plan


def image(size, kernel, filters=1, batch=1, **options):
    return case((batch, 1, *np.broadcast_to(size, 2)), (filters, 1, *np.broadcast_to(kernel, 2)), **options)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [*range(1, 19), 25])
def test_every_height_of_taps(kernel, stride, isa, dtype):
    """Rows of taps come in even pieces of at most eight; a stride shares them out to classes first."""
    check("forward", operands(image((37, 41), kernel, stride=stride, padding=kernel // 2), dtype), "filter")


@pytest.mark.parametrize("stride", [1, 2])
def test_every_height_of_a_map(stride, isa, dtype):
    for height in range(1, 40):
        problem = image((height * stride, 19), 3, filters=2, stride=stride, padding=1)
        check("forward", operands(problem, dtype), "filter")


@pytest.mark.parametrize("filters", [1, 3])
def test_rows_around_the_vector(filters, tile, dtype):
    """Rows of eight vectors and more are read in place, but for the columns that the padding reaches."""
    _, _, lanes = tile
    for width in around(1, lanes, 2 * lanes, 8 * lanes, 9 * lanes):
        for sides in (0, 1, (3, 0)):
            problem = image((20, max(width, 5)), (3, 5), filters, padding=((1, 1), np.broadcast_to(sides, 2)))
            problem.options["padding"] = ((1, 1), tuple(int(side) for side in np.broadcast_to(sides, 2)))
            check("forward", operands(problem, dtype), "filter")


@pytest.mark.parametrize("dilation", [1, 2, 3, (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, (2, 1), (1, 2), (2, 4), (4, 6)])
@pytest.mark.parametrize("size", [(21, 26), (70, 150)])
def test_steps_and_gaps(stride, dilation, size, isa, dtype):
    """Classes of taps, rows of outputs that lie apart, columns that no tap meets."""
    for kernel in ((4, 3), (9, 2), (1, 1)):
        problem = image(size, kernel, 2, stride=stride, dilation=dilation, padding=(3, 2))
        check("forward", operands(problem, dtype), "filter")


EDGES = [
    image((4, 5), (5, 7), padding=(4, 6)),  # kernel larger than the image
    image((3, 4), 3, 2, padding=9),  # padding larger than the kernel
    image((4, 5), 3, stride=2, padding=((7, 0), (0, 8))),
    image(1, 1),
    image(1, 3, padding=1),
    image((1, 3000), (1, 9), padding=(0, 4)),  # blocks of columns
    image((300, 1), (9, 1), padding=(4, 0)),
    image((20, 1024), (13, 3), padding=(6, 1)),  # lines a page apart, copied
    image((40, 1024), 5, padding=2),  # and in place
    image((30, 700), (3, 9), stride=2, padding=(1, 4)),
    image(6, 6),
    image((7, 31), 2, stride=(5, 4), dilation=3),
    image(5, 31, padding=15),
    image(9, 3, 40, batch=3, padding="same"),
    case((2, 6, 9, 40), (12, 1, 3, 3), groups=6, padding=1),  # a channel each
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("problem", EDGES, ids=str)
def test_edges(problem, threads, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    with fastconv.threads(threads):
        check("forward", operands(problem, dtype), "filter")


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 160),
    kernel=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 13), st.integers(0, 13)),
    filters=st.integers(1, 5),
)
def test_any_shape(height, width, kernel, stride, dilation, padding, filters):
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(n, r - 2 * p) for n, r, p in zip((height, width), reach, padding, strict=True)]
    problem = image(size, kernel, filters, stride=stride, dilation=dilation, padding=padding)
    check("forward", operands(problem), "filter")


@pytest.mark.parametrize("mode", ["valid", "full", "same"])
@pytest.mark.parametrize("size", [(3, 3), (5, 2), (9, 9), (14, 3)])
def test_it_is_correlate2d(mode, size, isa, dtype, rng):
    x, w = rng.uniform(-1, 1, (37, 141)).astype(dtype), rng.uniform(-1, 1, size).astype(dtype)
    got = fastconv.conv2d(x[None, None], w[None, None], padding=mode, algorithm="filter")
    want = signal.correlate2d(x.astype(float), w.astype(float), mode)
    # Where "same" lies between two pixels, correlate2d begins at the later one.
    if mode == "same":
        above, left = ((k - 1) // 2 for k in size)
        want = signal.correlate2d(x.astype(float), w.astype(float))
        first, second = size[0] - 1 - above, size[1] - 1 - left
        want = want[first : first + x.shape[0], second : second + x.shape[1]]
    np.testing.assert_allclose(got[0, 0], want, rtol=0, atol=30 * np.finfo(dtype).eps * np.sqrt(w.size))


@pytest.mark.parametrize("width", [40, 300])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_special_values(width, value, isa, dtype):
    """A pixel that is not finite reaches the outputs that meet it, and no other; so does a weight."""
    data = operands(image((24, width), 5, padding=2), dtype)
    data.input[0, 0, 11, width - 2] = value
    got = compute("forward", data, "filter")
    want = compute("forward", data, "direct")
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    data = operands(image((24, width), 5, padding=2), dtype)
    data.weight[0, 0, 1, 1] = value
    assert not np.isfinite(compute("forward", data, "filter")).any()


def test_an_output_beyond_the_caches(isa, dtype):
    """Large outputs are written past the caches; bias and rectifier come with them."""
    data = operands(image((1500, 1536), 3, 2, padding=1), dtype)
    want = compute("forward", data, "direct", activation="relu")
    got = compute("forward", data, "filter", activation="relu")
    np.testing.assert_allclose(got, want, rtol=0, atol=40 * np.finfo(dtype).eps)


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("size", [(18, 150), (3, 300), (1, 2000), (40, 129)])
def test_nothing_is_read_beyond_the_image(size, at, cage, isa, dtype):
    for stride in (1, 2):
        data = operands(image(size, 3, padding=1, stride=stride), dtype)
        caged, weight = cage.copy(data.input, at), cage.copy(data.weight, at)
        out = cage.place(data.case.problem.output_shape, dtype, at)
        fastconv.conv2d(caged, weight, data.bias, algorithm="filter", out=out, **data.case.options)
        assert identical(out.copy(), compute("forward", data, "filter"))


@pytest.mark.parametrize("filters", [1, 12])
def test_the_same_bits_for_any_threads(filters, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    data = operands(image((75, 190), 9, filters, padding=4), dtype)
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(compute("forward", data, "filter"))
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])


def test_avx2_and_avx512_agree():
    if not {"avx2", "avx512"} <= set(engine.loadable()):
        pytest.skip("needs both")
    data = operands(image((40, 150), 7, 2, padding=3), np.float32)
    results = []
    for isa in ("avx2", "avx512"):
        with engine.forced(isa):
            results.append(compute("forward", data, "filter"))
    assert identical(*results)


def test_where_it_is_chosen():
    def chosen(size, filters, kernel, **options):
        return fastconv.plan_conv2d((1, 1, size, size), (filters, 1, kernel, kernel), **options).algorithm

    assert chosen(512, 1, 3, padding=1) == "filter"
    assert chosen(48, 8, 3, padding=1) == "filter"
    assert chosen(48, 4, 3, stride=3) == "filter"
    assert chosen(224, 4, 3, padding=1) == "depthwise"
    assert chosen(224, 64, 3, padding=1) == "gemm"
    assert chosen(512, 1, 3, padding=1, direction="input_grad") == "depthwise"
    assert fastconv.plan_conv2d((1, 8, 64, 64), (8, 1, 3, 3), groups=8).algorithm == "depthwise"


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match=r"^algorithm: 'filter' does not take this problem"):
        fastconv.plan_conv2d((1, 2, 9, 9), (4, 2, 3, 3), algorithm="filter")
