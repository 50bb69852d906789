"""Depthwise convolution: strips, tiles, lanes shared by channels, phases, layouts, what it does not take."""

import numpy as np
import pytest
from conftest import (
    around,
    assert_close,
    case,
    channels_last,
    check,
    compute,
    every_direction,
    identical,
    operands,
    oracle,
)
from scipy import signal

import fastconv
from fastconv import engine, plan


def depthwise(channels, size, kernel, multiplier=1, batch=2, **options):
    shape = (multiplier * channels, 1, *np.broadcast_to(kernel, 2))
    return case((batch, channels, *np.broadcast_to(size, 2)), shape, groups=channels, **options)


@every_direction
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15])
def test_every_height_of_taps(kernel, stride, direction, isa, dtype):
    """Up to seven rows of taps are one call, more are several, and step 3 makes a run of each residue."""
    problem = depthwise(3, (23, 20), kernel, stride=stride, padding=kernel // 2)
    check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("stride", [1, 2])
def test_every_height_of_a_tile(stride, direction, isa, dtype):
    for height in range(1, 31):
        problem = depthwise(2, (height * stride, 9), 3, batch=1, stride=stride, padding=1)
        check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_channels_that_share_lanes(channels, stride, direction, tile, dtype):
    _, _, lanes = tile
    for width in (1, 2, 3, 4, 7, 8, lanes // 4, lanes // 2, lanes // 2 + 1):
        problem = depthwise(channels, (5, max(width, 1) * stride), 3, stride=stride, padding=1)
        check(direction, operands(problem, dtype), "depthwise")


TALL_MAPS = [
    depthwise(17, (128, 12), (16, 20), stride=(16, 20), padding=(8, 10)),
    depthwise(17, (112, 13), (8, 2), stride=(8, 2), padding=2),
    depthwise(17, (62, 15), (31, 6), stride=(31, 6), dilation=(1, 3), padding=(21, 4)),
    depthwise(33, (70, 9), (5, 3), stride=(7, 5), multiplier=2),
    depthwise(16, (300, 7), 3, padding=1),
    depthwise(20, (250, 3), (33, 1), dilation=(5, 1), padding=(80, 0), batch=1),
]


@every_direction
@pytest.mark.parametrize("problem", TALL_MAPS, ids=str)
def test_maps_that_are_narrow_and_tall(problem, direction, isa, dtype, junk_scratch):
    """Whole vectors of channels: only columns are few."""
    for threads in (1, 5):
        with fastconv.threads(threads):
            check(direction, operands(problem, dtype), "depthwise")
    assert junk_scratch.intact()


@every_direction
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_planes_around_the_vector(kernel, stride, direction, tile, dtype, junk_scratch):
    """Square kernels: one or two vectors of outputs, their last lanes, the loads that shifts reach into,
    and an odd channel where two share a block."""
    _, _, lanes = tile
    for width in around(lanes // 2, lanes, 2 * lanes, 3 * lanes):
        problem = depthwise(3, (9, width * stride), kernel, batch=1, stride=stride, padding=kernel // 2)
        check(direction, operands(problem, dtype), "depthwise")
    assert junk_scratch.intact()


PLANES = [
    depthwise(3, (20, 37), 3),
    depthwise(4, (20, 37), 5, stride=2, padding=((0, 1), (0, 1))),
    depthwise(3, (21, 38), 3, stride=2, padding="same"),
    depthwise(3, (8, 25), 7, padding=((6, 0), (9, 2))),
    depthwise(3, (5, 26), 5, padding=(7, 6)),  # rows and columns that meet no pixel
    depthwise(2, (33, 20), 7, stride=2, padding=(3, 17)),
    depthwise(3, (2, 40), 5, padding=2),
    depthwise(5, (1, 16), 3, stride=2, padding=1),
    depthwise(5, (14, 14), 5, multiplier=3, padding=2),
    depthwise(3, (18, 45), 3, multiplier=2, stride=2, padding=1),
    depthwise(2, (300, 40), 3, padding=1, batch=1),  # units of rows
    depthwise(2, (201, 90), 5, stride=2, padding=2, batch=1),
    depthwise(1, (64, 530), 7, padding=3),
]


@every_direction
@pytest.mark.parametrize("problem", PLANES, ids=str)
def test_planes_in_place(problem, direction, isa, dtype, junk_scratch, monkeypatch):
    monkeypatch.setattr(plan, "ELEMENTS_PER_THREAD", 1)
    data, results = operands(problem, dtype), []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            check(direction, data, "depthwise")
            results.append(compute(direction, data, "depthwise"))
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])
    assert junk_scratch.intact()


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [14, 23, 40])
def test_nothing_beyond_planes_is_touched(width, stride, kernel, at, isa, dtype, cage):
    shape, rng = (1, 3, 9, width), np.random.default_rng(0)
    window = {"padding": kernel // 2, "groups": 3, "stride": stride}
    result = fastconv.plan_conv2d(shape, (3, 1, kernel, kernel), **window).output_shape
    sizes = (shape, (3, 1, kernel, kernel), result)
    x, w, g = (cage.copy(rng.uniform(-1, 1, size).astype(dtype), at) for size in sizes)
    named = window | {"algorithm": "depthwise"}
    y = fastconv.conv2d(x, w, out=cage.place(result, dtype, at), **named)
    dx = fastconv.conv2d_input_grad(shape, w, g, out=cage.place(shape, dtype, at), **named)
    dw = fastconv.conv2d_weight_grad(x, w.shape, g, out=cage.place(w.shape, dtype, at), **named)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("size", [(9, 40), (7, 7)])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_zeros_beside_planes_are_multiplied(multiplier, size, value, isa, dtype):
    data = operands(depthwise(19, size, 5, multiplier, padding=2), dtype)
    data.weight[-1, 0, 0, 2] = value  # meets zeros alone above the first rows
    y = fastconv.conv2d(data.input, data.weight, padding=2, groups=19, algorithm="depthwise")
    np.testing.assert_array_equal(np.isfinite(y[:, -1, :2]), False)
    np.testing.assert_array_equal(np.isfinite(y[:, :-1]), True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", [3, 5])
def test_one_special_pixel_of_a_plane(kernel, value, isa, dtype):
    """Spoils what it meets, forward and in weight gradients, and nothing else."""
    data = operands(depthwise(2, (12, 41), kernel, batch=1, padding=kernel // 2), dtype)
    data.input[0, 0, 5, 16] = value
    y = compute("forward", data, "depthwise")
    spoiled = np.zeros(y.shape, bool)
    reach = kernel // 2
    spoiled[0, 0, 5 - reach : 6 + reach, 16 - reach : 17 + reach] = True
    np.testing.assert_array_equal(~np.isfinite(y), spoiled)
    data.input[0, 0, 5, 16] = 1
    data.input[0, 0, 0, 40] = value  # in the corner: some taps never meet it
    dw = compute("weight_grad", data, "depthwise")
    met = np.zeros(dw.shape, bool)
    met[0, 0, : reach + 1, reach:] = True
    np.testing.assert_array_equal(~np.isfinite(dw), met)


@every_direction
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_around_the_vector(stride, direction, tile, dtype):
    _, _, lanes = tile
    for width in around(lanes, 2 * lanes, 3 * lanes):
        problem = depthwise(3, (6, width), (3, 5), stride=stride, padding=(1, 2))
        check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("dilation", [1, 2, 3, (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, (2, 1), (1, 2), (2, 4), (3, 1), (1, 5), (7, 3)])
def test_steps_and_gaps(stride, dilation, direction, isa, dtype):
    """Rows of outputs that share lines lie apart by the gap, over what both have in common."""
    problem = depthwise(3, (21, 26), (4, 3), stride=stride, dilation=dilation, padding=(3, 2))
    check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("stride", [3, 5])
@pytest.mark.parametrize("kernel", [2, 22, 23, (24, 1)])
def test_runs_of_a_large_step(kernel, stride, direction, isa, dtype):
    """Fewer rows of taps than the step; more residues than a tile takes rows of taps."""
    check(direction, operands(depthwise(2, (31, 29), kernel, stride=stride), dtype), "depthwise")


def test_a_step_beyond_64_rows(isa, dtype):
    problem = depthwise(2, (150, 141), (3, 2), stride=(70, 67), dilation=(2, 67))
    for direction in ("forward", "input_grad", "weight_grad"):
        check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("size", [7, (5, 32), 14, (28, 16), (9, 28)])
@pytest.mark.parametrize(
    "window", [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 0), (9, 1, 4), (2, 3, 0)], ids=str
)
def test_whole_vectors_of_channels(size, window, direction, tile, dtype):
    """Channels around the vector: the last lanes are idle, or there are too few to take a vector."""
    kernel, stride, padding = window
    if kernel > np.min(size) + 2 * padding:
        pytest.skip("the kernel does not fit")
    for channels in around(tile[2]):
        problem = depthwise(channels, size, kernel, stride=stride, padding=padding)
        check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("kernel", [13, (31, 5)])
@pytest.mark.parametrize("width", [7, 12, 20, 28, 56])
def test_large_kernels_share_lanes(width, kernel, direction, isa, dtype):
    problem = depthwise(5, (17, width), kernel, batch=1, padding=(15, 6))
    check(direction, operands(problem, dtype), "depthwise")


@every_direction
@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_beyond_the_caches(stride, direction, isa, dtype):
    problem = depthwise(333, (14, 13), 3, batch=6, stride=stride, padding=1)
    check(direction, operands(problem, dtype), "depthwise")


CHANNELS_LAST = [
    depthwise(17, (9, 11), 3, padding=1),
    depthwise(33, (30, 70), 3, batch=1, stride=2, padding=1),  # blocks of columns, strips of rows
    depthwise(20, (40, 37), (5, 3), batch=1, padding=2, dilation=2),
    depthwise(3, (12, 31), (4, 5), stride=3, padding=2),
    depthwise(1, (12, 31), 3, padding=1),
    depthwise(16, (7, 9), 9, stride=(1, 2), padding=4),
    depthwise(16, (20, 30), 3, padding=1),  # read in place, as those below
    depthwise(19, (31, 57), 3, stride=2, padding=((0, 2), (3, 0))),
    depthwise(35, (12, 50), 5, batch=1, padding=2),
    depthwise(18, (9, 70), (7, 3), batch=1, padding=4),
    depthwise(17, (30, 66), 3, batch=1, stride=2, dilation=2, padding=2),
    depthwise(16, (5, 40), (1, 3), stride=3, padding=1),
    depthwise(33, (2, 30), 3, padding=1),
    depthwise(18, (14, 14), 5, stride=2, padding=2),
    depthwise(16, (7, 7), 7, batch=3, padding=3),
    depthwise(17, (3, 2), 5, stride=2, padding=9),  # windows that meet nothing
    depthwise(17, (9, 13), 1, stride=2, padding=1),  # one pass of dX, from a second pixel on
    depthwise(17, (20, 8), 3, stride=(2, 1), dilation=(2, 1), padding=(1, 0)),
    depthwise(4, (11, 12), 3, multiplier=2, padding=1),  # through copies, as those below
    case((2, 3, 9, 8), (5, 3, 3, 3), stride=2, padding=1),
    case((2, 4, 6, 5), (6, 2, 1, 1), groups=2),
    case((0, 3, 5, 5), (3, 1, 3, 3), groups=3),
]


@pytest.mark.parametrize("algorithm", ["auto", "gemm", "direct", "im2col"])
@pytest.mark.parametrize("problem", CHANNELS_LAST, ids=str)
def test_channels_last_equal_channels_first(problem, algorithm, isa, dtype):
    data, options = operands(problem, dtype), problem.options
    x, g = channels_last(data.input), channels_last(data.grad_output)
    same = {"layout": "NHWC", "algorithm": algorithm, **options}
    y = fastconv.conv2d(x, data.weight, data.bias, activation="relu", **same)
    want = oracle("forward", data, activation="relu")
    assert_close(np.moveaxis(y, -1, 1), want, "forward", problem)
    prepared = fastconv.prepare_conv2d(data.weight, data.bias, activation="relu", **same)
    assert_close(np.moveaxis(prepared(x), -1, 1), want, "forward", problem)
    grads = fastconv.conv2d_backward(g, x, data.weight, **same)
    assert_close(np.moveaxis(grads.input, -1, 1), oracle("input_grad", data), "input_grad", problem)
    assert_close(grads.weight, oracle("weight_grad", data), "weight_grad", problem)
    np.testing.assert_allclose(grads.bias, data.grad_output.sum((0, 2, 3), float), rtol=1e-5, atol=1e-5)
    assert identical(fastconv.conv2d_input_grad(x.shape, data.weight, g, **same), grads.input)
    assert identical(fastconv.conv2d_weight_grad(x, data.weight.shape, g, **same), grads.weight)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_channels_last_on_any_number_of_threads(direction, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "ELEMENTS_PER_THREAD", 1)
    data = operands(depthwise(37, (40, 50), 3, padding=1), dtype)
    x, g = channels_last(data.input), channels_last(data.grad_output)
    window = {**data.case.options, "layout": "NHWC"}
    run = {
        "forward": lambda: fastconv.conv2d(x, data.weight, data.bias, **window),
        "input_grad": lambda: fastconv.conv2d_input_grad(x.shape, data.weight, g, **window),
        "weight_grad": lambda: fastconv.conv2d_weight_grad(x, data.weight.shape, g, **window),
    }[direction]
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(run())
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_zeros_beside_channels_last_are_multiplied(value, isa, dtype):
    data, options = operands(depthwise(19, (9, 40), 3, padding=1), dtype), {"padding": 1, "groups": 19}
    data.weight[3, 0, 0, 1] = value  # meets zeros alone above the first row
    y = fastconv.conv2d(channels_last(data.input), data.weight, layout="NHWC", **options)
    np.testing.assert_array_equal(np.isfinite(y[:, 0, :, 3]), False)
    np.testing.assert_array_equal(np.isfinite(y[..., 4]), True)
    assert identical(np.moveaxis(y, -1, 1).copy(), fastconv.conv2d(data.input, data.weight, **options))


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("channels", [3, 16, 19])
@pytest.mark.parametrize("width", [20, 28])
def test_nothing_beyond_channels_last_is_touched(channels, width, at, isa, dtype, cage):
    shape, window = (1, 9, width, channels), {"padding": 1, "groups": channels, "layout": "NHWC"}
    rng = np.random.default_rng(0)
    x, w, g = (
        cage.copy(rng.uniform(-1, 1, size).astype(dtype), at) for size in (shape, (channels, 1, 3, 3), shape)
    )
    y = fastconv.conv2d(x, w, out=cage.place(shape, dtype, at), **window)
    dx = fastconv.conv2d_input_grad(shape, w, g, out=cage.place(shape, dtype, at), **window)
    dw = fastconv.conv2d_weight_grad(x, w.shape, g, out=cage.place(w.shape, dtype, at), **window)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()


def test_plans_of_channels_last_say_what_they_copy():
    shape = (1, 28, 28, 32)
    alone = fastconv.plan_conv2d(shape, (32, 1, 3, 3), padding=1, groups=32, layout="NHWC")
    several = fastconv.plan_conv2d(shape, (8, 16, 3, 3), padding=1, groups=2, layout="NHWC")
    assert (alone.output_shape, several.output_shape) == (shape, (1, 28, 28, 8))
    assert not alone.copies
    assert several.copies
    assert "channels first" in several.explain()


@every_direction
@pytest.mark.parametrize("multiplier", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_multiplier(multiplier, stride, direction, isa, dtype):
    for size in (4, 11, 19):
        problem = depthwise(5, size, 3, multiplier, stride=stride, padding=1)
        check(direction, operands(problem, dtype), "depthwise")


EDGES = [
    depthwise(4, (3, 2), (5, 7), padding=(4, 6)),  # kernel larger than the map
    depthwise(4, (3, 4), 3, padding=9),  # padding larger than the kernel
    depthwise(3, (4, 5), 3, stride=2, padding=((7, 0), (0, 8))),
    depthwise(6, 1, 1),
    depthwise(6, 1, 3, padding=1),
    depthwise(6, (1, 40), (1, 9), padding=(0, 4)),
    depthwise(6, (40, 1), (9, 1), padding=(4, 0)),
    depthwise(3, 6, 6),
    depthwise(5, (9, 8), 1, stride=3),  # pixels that no tap meets
    depthwise(2, (7, 31), 2, stride=(5, 4), dilation=3),
    depthwise(3, 7, 3, padding="causal", dilation=2),
    depthwise(3, (8, 7), 4, padding="same", stride=2),
    depthwise(3, 6, (13, 2), padding="full"),
    depthwise(8, 7, 7, batch=1, padding=3),
    depthwise(2, 5, 31, padding=15),
    depthwise(8, 30, 3, batch=1, padding=12),  # outputs of more columns than the map
]


@every_direction
@pytest.mark.parametrize("problem", EDGES, ids=str)
def test_edges(problem, direction, isa, dtype):
    check(direction, operands(problem, dtype), "depthwise")


LONG = [
    depthwise(1, (3, 1100), 3, batch=1, padding=1),  # blocks of columns
    depthwise(2, (5, 700), (3, 9), batch=1, stride=2, padding=(1, 4)),
    depthwise(1, (150, 120), 5, batch=1, padding=2),  # strips of rows
    depthwise(1, (220, 90), 3, batch=2, stride=2, padding=1, dilation=2),
    depthwise(1, (130, 600), (11, 3), batch=1, padding=(5, 1)),
]


@every_direction
@pytest.mark.parametrize("problem", LONG, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_strips_and_blocks(problem, threads, direction, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "ELEMENTS_PER_THREAD", 1)
    with fastconv.threads(threads):
        check(direction, operands(problem, dtype), "depthwise")


def test_an_output_beyond_the_caches(isa, dtype):
    """From 16 MiB on, rows are collected in cache and streamed."""
    shape = (16, 64, 65, 65) if dtype == np.float32 else (8, 64, 65, 65)
    data = operands(case(shape, (64, 1, 3, 3), groups=64, padding=1), dtype)
    want = compute("forward", data, "direct", activation="relu")
    got = compute("forward", data, "depthwise", activation="relu")
    np.testing.assert_allclose(got, want, rtol=0, atol=40 * np.finfo(dtype).eps)


@pytest.mark.parametrize("width", [128, 131])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_input_gradient_beyond_the_caches(width, threads, isa, dtype, rng):
    """From 32 MiB on phases go past the caches; a sample is as if it came alone, wherever `out` lies."""
    shape = (32 if dtype == np.float32 else 16, 16, 129, width)
    options = {"stride": 2, "padding": 1, "groups": 16, "algorithm": "depthwise"}
    weight = rng.standard_normal((16, 1, 3, 3)).astype(dtype)
    g = rng.standard_normal((*shape[:2], 65, (width + 1) // 2)).astype(dtype)
    memory = np.full(np.prod(shape) + 33, np.nan, dtype)
    with fastconv.threads(threads):
        whole = fastconv.conv2d_input_grad(shape, weight, g, **options)
        out = memory[1:-32].reshape(shape)
        assert fastconv.conv2d_input_grad(shape, weight, g, **options, out=out) is out
        for sample in (0, 7, shape[0] - 1):
            alone = fastconv.conv2d_input_grad((1, *shape[1:]), weight, g[sample : sample + 1], **options)
            assert identical(whole[sample : sample + 1], alone)
    assert identical(whole, out)
    assert np.isnan(memory[0])
    assert np.isnan(memory[-32:]).all()


@every_direction
def test_an_empty_batch(direction, isa, dtype):
    problem = depthwise(3, 5, 3, batch=0, padding=1)
    assert identical(
        compute(direction, operands(problem, dtype), "depthwise"),
        compute(direction, operands(problem, dtype), "direct"),
    )


@pytest.mark.parametrize("mode", ["valid", "full", "same"])
@pytest.mark.parametrize("size", [(3, 3), (5, 2), (9, 9), (14, 3)])
def test_one_channel_is_correlate2d(mode, size, isa, dtype, rng):
    image, taps = rng.uniform(-1, 1, (37, 41)).astype(dtype), rng.uniform(-1, 1, size).astype(dtype)
    got = fastconv.conv2d(image[None, None], taps[None, None], padding=mode, algorithm="depthwise")
    want = signal.correlate2d(image.astype(float), taps.astype(float), mode)
    np.testing.assert_allclose(got[0, 0], want, rtol=0, atol=30 * np.finfo(dtype).eps * np.sqrt(taps.size))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 14, 31])
def test_the_gradients_are_adjoint(stride, size, isa, dtype):
    data = operands(depthwise(6, size, 5, stride=stride, padding=2), dtype)
    y = oracle("forward", data) - data.bias.astype(float)[:, None, None]
    product = np.vdot(y, data.grad_output)
    dx, dw = (compute(way, data, "depthwise") for way in ("input_grad", "weight_grad"))
    bound = 100 * np.finfo(dtype).eps * np.sqrt(y.size)
    assert abs(np.vdot(dx.astype(float), data.input) - product) < bound
    assert abs(np.vdot(dw.astype(float), data.weight) - product) < bound


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("width", [6, 20])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_special_values_in_the_weight_gradient(width, value, channels, isa, dtype):
    """A pixel that is not finite reaches the taps that meet it, and no other, whichever axis is last."""
    data = operands(depthwise(channels, (9, width), 3, batch=1, padding=1), dtype)
    data.input[0, 1, 4, width - 1] = value
    with np.errstate(invalid="ignore"):
        want = oracle("weight_grad", data)
    x, g, options = channels_last(data.input), channels_last(data.grad_output), data.case.options
    got = fastconv.conv2d_weight_grad(x, data.weight.shape, g, layout="NHWC", **options)
    assert (np.isfinite(got) == np.isfinite(want)).all()
    got = compute("weight_grad", data, "depthwise")
    assert (np.isfinite(got) == np.isfinite(want)).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=2000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("taps", [1, 3, 9])
def test_long_sums_are_as_accurate_as_those_of_gemm(taps, isa):
    data = operands(depthwise(2, 200, taps, batch=4, padding=taps // 2), np.float32)
    want = oracle("weight_grad", data)
    errors = [np.abs(compute("weight_grad", data, name) - want).max() for name in ("depthwise", "gemm")]
    assert errors[0] <= 2 * errors[1] + 1e-3


@every_direction
def test_what_it_does_not_take(direction):
    for shape, filters, groups in (((1, 4, 9, 9), (4, 4, 3, 3), 1), ((1, 4, 9, 9), (4, 2, 3, 3), 2)):
        with pytest.raises(ValueError, match=r"^algorithm: 'depthwise' does not take this problem"):
            fastconv.plan_conv2d(shape, filters, groups=groups, direction=direction, algorithm="depthwise")


@every_direction
def test_it_is_chosen_where_a_group_has_one_channel(direction):
    def chosen(shape, filters, groups):
        return fastconv.plan_conv2d(shape, filters, groups=groups, direction=direction).algorithm

    assert chosen((1, 32, 28, 28), (32, 1, 3, 3), 32) == "depthwise"
    assert chosen((1, 32, 28, 28), (32, 2, 3, 3), 16) != "depthwise"
    many = chosen((1, 1, 28, 28), (64, 1, 5, 5), 1)  # bank.py chooses forward, by the vectors of the CPU
    taken = {"forward": ("gemm", "filter"), "input_grad": ("depthwise",), "weight_grad": ("shifted",)}
    assert many in taken[direction]
    assert chosen((1, 2, 4, 4), (2, 1, 3, 3), 2) == "direct"


def test_prepared_and_plain_give_the_same_bits(isa, dtype):
    data = operands(depthwise(9, 14, 5, padding=2), dtype)
    operation = fastconv.prepare_conv2d(data.weight, data.bias, activation="relu", **data.case.options)
    assert operation.plan(data.input.shape).algorithm == "depthwise"
    want = fastconv.conv2d(data.input, data.weight, data.bias, activation="relu", **data.case.options)
    assert identical(operation(data.input), want)
    assert (want >= 0).all()


def test_strips_of_avx2_and_avx512_agree():
    """Planes that AVX-512 reads in place add their products in another order: kernels with gaps do not."""
    if not {"avx2", "avx512"} <= set(engine.loadable()):
        pytest.skip("needs both")
    data = operands(depthwise(5, 20, 5, stride=2, padding=2, dilation=2), np.float32)
    for direction in ("forward", "input_grad"):
        results = []
        for isa in ("avx2", "avx512"):
            with engine.forced(isa):
                results.append(compute(direction, data, "depthwise"))
        assert identical(*results)
