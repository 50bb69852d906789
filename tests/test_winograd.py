"""3x3 convolutions by Winograd's method, forward and gradients.

"winograd_f4x4_3x3", "winograd_f3x3_3x3", "winograd_f2x2_3x3" and "winograd_f6x6_3x3".
"""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    CHECKOUT,
    Operands,
    around,
    case,
    check,
    compute,
    every_direction,
    identical,
    operands,
    run_python,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

import fastconv
from fastconv import engine, plan, winograd, winograd_costs
from fastconv.problem import conv_problem
from fastconv.testing import gradcheck

every_winograd = pytest.mark.parametrize("algorithm", winograd.ALGORITHMS)


def layer(channels, filters, size, batch=1, **options):
    groups = options.get("groups", 1)
    shape = (batch, groups * channels, *np.broadcast_to(size, 2))
    return case(shape, (groups * filters, channels, 3, 3), **{"padding": 1, **options})


# Tiles, runs of tiles, blocks of runs; panels and blocks of channels


@every_winograd
@every_direction
def test_every_size_of_a_map(direction, algorithm, isa, dtype):
    for height, width in ((1, 1), (1, 9), (2, 3), (3, 4), (4, 4), (5, 6), (7, 7), (8, 5), (9, 17), (13, 2)):
        for padding in (1, 0, 2) if min(height, width) > 2 else (1, 2):
            problem = layer(3, 5, (height, width), 2, padding=padding)
            check(direction, operands(problem, dtype), algorithm)


@every_winograd
@every_direction
def test_channels_around_the_vector_and_the_panel(direction, algorithm, tile, dtype):
    _, panel, lanes = tile
    for channels in {1, 2, *around(lanes), *around(panel), 4 * lanes + 1}:
        check(direction, operands(layer(channels, 5, (6, 9)), dtype), algorithm)
        check(direction, operands(layer(5, channels, (6, 9)), dtype), algorithm)


PROBLEMS = [
    layer(8, 9, (31, 30), 2),
    layer(17, 33, 14, 3),
    layer(5, 6, (40, 61), padding=((0, 3), (2, 1))),
    layer(4, 3, (9, 8), 2, groups=3),
    layer(5, 7, 8, padding="full"),
    layer(5, 7, (8, 9), padding="causal"),
    layer(4, 5, (2, 3), padding=7),
    layer(3, 4, (2, 150)),
    layer(3, 4, (150, 2)),
    layer(6, 5, 3, 40),
    layer(2, 3, 7, 9, padding=0),
    layer(97, 98, (41, 40)),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@every_winograd
@every_direction
@every_problem
def test_agrees_with_the_definition(problem, direction, algorithm, isa, dtype):
    check(direction, operands(problem, dtype), algorithm)


@every_winograd
@every_direction
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[1], PROBLEMS[3]], ids=str)
def test_many_blocks_and_portions(problem, direction, algorithm, isa, dtype, monkeypatch):
    """Few tiles at a time, few panels of weights at a time, few channels of a panel."""
    monkeypatch.setattr(winograd, "MOST_TILES", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    monkeypatch.setattr(winograd, "WHOLE_TILES", 0)
    monkeypatch.setattr(winograd, "LIMIT", 1)
    monkeypatch.setattr(winograd, "VALUES_BYTES", 1)
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 1)
    monkeypatch.setattr(winograd, "l2_bytes", lambda: 1)
    with engine.forced(isa):  # plans are forgotten
        check(direction, operands(problem, dtype), algorithm)


@every_winograd
@every_direction
@every_problem
def test_same_bits_on_any_number_of_threads(problem, direction, algorithm, isa, dtype, monkeypatch):
    monkeypatch.setattr(plan, "FLOPS_PER_THREAD", 1)
    data = operands(problem, dtype)
    with fastconv.threads(1):
        want = compute(direction, data, algorithm)
    for threads in (2, 3, 5):
        with fastconv.threads(threads):
            assert identical(compute(direction, data, algorithm), want)


@every_winograd
def test_a_sample_does_not_depend_on_its_batch(algorithm, isa, dtype):
    data = operands(layer(17, 20, (13, 30), 3), dtype)
    whole = compute("forward", data, algorithm)
    for n in range(3):
        alone = fastconv.conv2d(data.input[n : n + 1], data.weight, data.bias, padding=1, algorithm=algorithm)
        assert identical(alone, whole[n : n + 1])


@every_winograd
@every_problem
def test_prepared_has_the_bits_of_a_plain_call(problem, algorithm, isa, dtype):
    data = operands(problem, dtype)
    options = {"algorithm": algorithm, "activation": "relu", **problem.options}
    operation = fastconv.prepare_conv2d(data.weight, data.bias, **options)
    assert identical(operation(data.input), fastconv.conv2d(data.input, data.weight, data.bias, **options))


@st.composite
def problems(draw):
    groups, channels, filters = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    pads = tuple((draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(2))
    size = tuple(draw(st.integers(max(3 - sum(pad), 1), 25)) for pad in pads)
    return layer(channels, filters, size, draw(st.integers(1, 4)), groups=groups, padding=pads)


@given(
    problem=problems(),
    direction=st.sampled_from(("forward", "input_grad", "weight_grad")),
    algorithm=st.sampled_from(winograd.ALGORITHMS),
    isa=st.sampled_from(engine.loadable()),
    dtype=st.sampled_from((np.float32, np.float64)),
    threads=st.integers(1, 3),
)
@settings(max_examples=200)
def test_any_problem(problem, direction, algorithm, isa, dtype, threads):
    with engine.forced(isa), fastconv.threads(threads):
        check(direction, operands(problem, dtype), algorithm)


# What it means


@every_winograd
def test_it_is_a_correlation(algorithm, isa, dtype, rng):
    image, taps = rng.uniform(-1, 1, (19, 30)).astype(dtype), rng.uniform(-1, 1, (3, 3)).astype(dtype)
    for mode in ("full", "same", "valid"):
        got = fastconv.conv2d(image[None, None], taps[None, None], padding=mode, algorithm=algorithm)
        want = signal.correlate2d(image.astype(float), taps.astype(float), mode)
        bound = 5 * winograd.ERROR_CONSTANTS[algorithm] * np.finfo(dtype).eps
        np.testing.assert_allclose(got[0, 0], want, rtol=0, atol=bound)


@every_winograd
@pytest.mark.parametrize("problem", [layer(3, 4, (6, 7), 2), layer(2, 3, 5, groups=2, padding=2)], ids=str)
def test_gradcheck(problem, algorithm, isa):
    data = operands(problem, np.float64)
    options = {**problem.options, "algorithm": algorithm}

    def backward(grad, x, weight):
        grads = fastconv.conv2d_backward(grad, x, weight, bias=False, **options)
        return grads.input, grads.weight

    assert gradcheck(
        lambda x, weight: fastconv.conv2d(x, weight, **options),
        (data.input, data.weight), backward, max_elements=40, names=("input", "weight"),
    )  # fmt: skip


@every_winograd
@pytest.mark.parametrize("problem", [layer(20, 30, 14), PROBLEMS[2]], ids=str)
def test_gradients_are_adjoint(problem, algorithm, isa, dtype):
    data = operands(problem, dtype)
    y = fastconv.conv2d(data.input, data.weight, algorithm=algorithm, **problem.options).astype(float)
    product = np.vdot(y, data.grad_output)
    bound = 200 * np.finfo(dtype).eps * np.sqrt(y.size * data.weight[0].size)
    dx, dw = (
        compute(direction, data, algorithm).astype(float) for direction in ("input_grad", "weight_grad")
    )
    assert abs(np.vdot(dx, data.input) - product) < bound
    assert abs(np.vdot(dw, data.weight) - product) < bound


@every_winograd
@every_direction
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e38])
@pytest.mark.parametrize("size", [(11, 14), (31, 30)], ids=str)
def test_special_values(size, direction, value, algorithm, isa, dtype):
    """Where a value that is not finite, or overflows at a point, meets a window, and nowhere else."""
    problem = layer(4, 5, size, 2)
    names = {"forward": ("input", "weight", "bias"), "input_grad": ("weight", "grad_output"),
             "weight_grad": ("input", "grad_output")}[direction]  # fmt: skip
    value = value * 1e270 if dtype == np.float64 and value == 1e38 else value
    for name in names:
        data = operands(problem, dtype)
        array = getattr(data, name)
        array[(1,) * array.ndim] = value
        got, want = (compute(direction, data, which) for which in (algorithm, "gemm"))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        if not np.isfinite(value):
            finite = np.isfinite(want)
            np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}], ids=str)
@every_winograd
def test_refuses_steps_and_gaps(options, algorithm):
    with pytest.raises(ValueError, match=rf"^algorithm: '{algorithm}' does not take this problem"):
        fastconv.plan_conv2d((1, 4, 9, 9), (4, 4, 3, 3), algorithm=algorithm, **options)


# Its matrices


POINTS = {
    4: [Fraction(p) for p in (0, 1, -1)],
    5: [Fraction(p) for p in ("5/4", "-5/4", "3/8", "-3/8")],
    6: [Fraction(p) for p in (0, "5/8", "-5/8", "3/2", "-3/2")],
    8: [Fraction(p) for p in (0, "1/2", "-1/2", 1, -1, 2, -2)],
}
every_split = pytest.mark.parametrize(("points", "outputs"), [(4, 2), (4, 3), (5, 3), (6, 4), (6, 3), (8, 6)])


@every_split
def test_the_matrices_are_exact(points, outputs):
    """A' [(G taps) * (B' inputs)] is the correlation, for every pair of unit vectors, in exact arithmetic."""
    taps = points + 1 - outputs
    a, g, b = winograd.matrices(POINTS[points], outputs, taps)
    for tap in range(taps):
        for place in range(points):
            found = [sum(a[i, o] * g[i, tap] * b[place, i] for i in range(points)) for o in range(outputs)]
            assert found == [int(place == o + tap) for o in range(outputs)]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("grad", [False, True], ids=["results", "weight_gradients"])
def test_the_kernels_transform_by_them(points, grad, isa, dtype):
    """Weight gradients are 3 results, and are divided on the way out."""
    if grad and points == 8:
        return
    outputs = 3 if grad else points - 2
    a, g, b = (
        matrix.astype(float) for matrix in winograd.matrices(POINTS[points], outputs, points + 1 - outputs)
    )
    parts = (0, 1, 2)
    if grad:
        parts, divided = (0, 3, 4), g[:, :1] + (g[:, :1] == 0)
        g, a = g / divided, a * divided
    entry, lanes = engine.load(dtype).winograd.transform, engine.load(dtype).machine.tile()[2]
    for part, matrix in zip(parts, (b.T, g, a.T), strict=True):
        for row in range(matrix.shape[1]):
            values = np.zeros((points, lanes), dtype)
            values[row] = 1
            entry(values, points, part)
            want = matrix[:, row]
            np.testing.assert_allclose(values[: len(want)].T, [want] * lanes, rtol=1e-6, atol=1e-7)


# How exact it is


# Beside those of "gemm" and "direct"; docs/winograd.md states them.
FACTORS = {algorithm: 10.0 if algorithm == "winograd_f6x6_3x3" else 2.5 for algorithm in winograd.ALGORITHMS}
every_kind = pytest.mark.parametrize("kind", ["uniform", "normal", "offset", "range"])


def drawn(kind, shape, rng):
    """Values around zero, with mean 10 and deviation 1, or of magnitudes from 1e-3 to 1e3."""
    values = rng.uniform(-1, 1, shape) if kind == "uniform" else rng.standard_normal(shape)
    if kind == "offset":
        values += 10
    if kind == "range":
        values *= 10 ** rng.uniform(-3, 3, shape)
    return values


def of_kind(kind, problem, dtype):
    data, rng = operands(problem, dtype), np.random.default_rng(1)
    drawn_ones = (drawn(kind, array.shape, rng).astype(dtype) for array in (data.input, data.grad_output))
    return Operands(problem, next(drawn_ones), data.weight, data.bias, next(drawn_ones))


def rms_errors(direction, data, algorithms, want):
    return [np.sqrt(np.mean((compute(direction, data, name) - want) ** 2)) for name in algorithms]


def widened(data):
    return Operands(data.case, *(array.astype(float) for array in (*data.of("forward"), data.grad_output)))


@every_kind
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("channels", [64, 128, 256, 512, 1024])
def test_errors(channels, direction, kind, isa):
    """rms errors, with the channels of the benchmark's layers, beside those of "gemm" and of "direct"."""
    few = 16
    shape = (channels, few) if direction == "forward" else (few, channels)
    data = of_kind(kind, layer(*shape, 14), np.float32)
    want = compute(direction, widened(data), "gemm")
    found = dict(zip(FACTORS, rms_errors(direction, data, FACTORS, want), strict=True))
    usual = min(rms_errors(direction, data, ["gemm", "direct"], want))
    assert all(error <= FACTORS[name] * usual for name, error in found.items())


@every_kind
@pytest.mark.parametrize(
    ("batch", "size"),
    [*((1, size) for size in (7, 14, 16, 28, 32, 56, 64, 112, 128, 224, 256)),
     *((16, size) for size in (7, 14, 16, 28, 32, 56, 64, 112)),
     (2, 14), (2, 56), (4, 28), (8, 7), (8, 16)],
)  # fmt: skip
def test_errors_of_weight_gradients(size, batch, kind, isa):
    """Of all that "auto" may take, on the maps of the benchmark's layers and others."""
    channels = 64 if batch * size * size < 4_000 else 16
    data = of_kind(kind, layer(channels, channels, size, batch), np.float32)
    problem = conv_problem(data.input.shape, data.weight.shape, padding=1)
    taken = [name for name in winograd_costs.USUAL if winograd.is_exact(problem, "weight_grad", name)]
    want = compute("weight_grad", widened(data), "gemm")
    *errors, gemm, direct = rms_errors("weight_grad", data, (*taken, "gemm", "direct"), want)
    assert max(errors) <= 2.5 * min(gemm, direct)


@every_kind
@every_direction
@every_winograd
def test_errors_in_float64(algorithm, direction, kind, isa):
    data = of_kind(kind, layer(32, 32, 16), np.float64)
    want = in_long_doubles(direction, data)
    error, usual = rms_errors(direction, data, (algorithm, "gemm"), want)
    assert error <= FACTORS[algorithm if direction != "weight_grad" else "winograd_f4x4_3x3"] * usual


def in_long_doubles(direction, data):
    """A layer with one pixel of padding by its definition."""
    x, w, g = (array.astype(np.longdouble) for array in (data.input, data.weight, data.grad_output))
    size, sums = x.shape[-1], {"forward": "nchw,kc->nkhw", "input_grad": "nkhw,kc->nchw"}
    if direction == "input_grad":
        x, w = g, w[..., ::-1, ::-1]
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = {(r, s): x[..., r : r + size, s : s + size] for r in range(3) for s in range(3)}
    if direction == "weight_grad":
        grads = [np.einsum("nchw,nkhw->kc", window, g) for window in windows.values()]
        return np.stack(grads, axis=-1).reshape(w.shape)
    return sum(np.einsum(sums[direction], window, w[..., r, s]) for (r, s), window in windows.items()) + (
        data.bias[:, None, None] if direction == "forward" else 0
    )


# How much memory it takes

# C, K, map: the benchmark's layers of ResNet-50, VGG-16 and a U-Net.
LAYERS = [
    (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (64, 64, 224), (64, 128, 112),
    (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 14),
    (64, 64, 256), (64, 128, 128), (128, 128, 128), (128, 256, 64), (256, 256, 64), (256, 512, 32),
    (512, 512, 32), (512, 1024, 16), (1024, 1024, 16), (1024, 512, 32), (512, 256, 64), (256, 128, 128),
    (128, 64, 256),
]  # fmt: skip


@every_direction
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("algorithm", winograd_costs.USUAL)
def test_two_threads_take_16_megabytes(algorithm, batch, direction, isa):
    with fastconv.threads(2):
        for channels, filters, size in LAYERS:
            shapes = (batch, channels, size, size), (filters, channels, 3, 3)
            options = {"direction": direction, "algorithm": algorithm, "dtype": np.float32}
            assert fastconv.plan_conv2d(*shapes, padding=1, **options).workspace_bytes <= 16 << 20


# When "auto" takes it


def chosen(*shapes, **more):
    return fastconv.plan_conv2d(*shapes, padding=1, **more).algorithm


@every_direction
def test_auto_takes_it_where_it_pays(direction, isa):
    large = ("shifted",) if direction == "weight_grad" else ("gemm", "blocked")
    size = 3 if direction == "weight_grad" else 4  # of a tile that rounds little enough
    assert chosen((1, 64, 56, 56), (64, 64, 3, 3), direction=direction) == f"winograd_f{size}x{size}_3x3"
    assert chosen((1, 64, 224, 224), (64, 64, 3, 3), direction=direction) == "winograd_f4x4_3x3"
    if direction != "input_grad":
        assert chosen((1, 3, 56, 56), (64, 3, 3, 3), direction=direction) in large
    assert chosen((1, 64, 56, 56), (64, 64, 3, 3), direction=direction, stride=2) in large
    assert chosen((1, 64, 56, 56), (64, 64, 5, 5), direction=direction) in large
    plan_ = fastconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3), direction=direction, padding=1)
    assert "by the cost model" in plan_.explain()


@pytest.mark.parametrize("engine_name", ["avx512", "avx2"])
def test_the_cost_model_is_never_far_from_what_was_measured(engine_name, monkeypatch):
    """Of the measured layers none that "auto" gives to Winograd's method took 5% longer than by "gemm"."""
    monkeypatch.setattr(winograd_costs, "active_isa", lambda: engine_name)
    monkeypatch.setattr(winograd, "l2_bytes", lambda: 1 << 20)
    lanes = {"avx512": 16, "avx2": 8}[engine_name]
    machine = SimpleNamespace(machine=SimpleNamespace(tile=lambda: (0, 0, lanes)))
    monkeypatch.setattr(winograd_costs, "load", lambda dtype: machine)
    for line in (CHECKOUT / f"bench/results/winograd/{engine_name}.tsv").read_text().splitlines()[1:]:
        kind, *numbers = line.split("\t")
        c, k, size, batch, _ = map(int, numbers[:5])
        times = dict(zip(("gemm", *winograd_costs.USUAL), map(float, numbers[5:]), strict=True))
        direction = "forward" if kind == "prepared" else kind
        problem = conv_problem((batch, c, size, size), (k, c, 3, 3), padding=1)
        found = winograd_costs.choose(problem, direction, kind == "prepared", np.dtype(np.float32))
        if found is not None:
            assert times[found[0]] <= 1.05 * times["gemm"] + 1, line


def test_the_switch():
    shapes = (1, 64, 48, 48), (64, 64, 3, 3)
    x, w = np.ones(shapes[0]), np.ones(shapes[1])
    try:
        fastconv.set_winograd(False)
        assert chosen(*shapes) == "gemm"
        assert chosen(*shapes, direction="weight_grad") == "shifted"
        assert identical(fastconv.conv2d(x, w), fastconv.conv2d(x, w, algorithm="gemm"))
        assert chosen(*shapes, algorithm="winograd_f4x4_3x3") == "winograd_f4x4_3x3"
    finally:
        fastconv.set_winograd(True)
    assert chosen(*shapes) == "winograd_f4x4_3x3"
    with pytest.raises(TypeError, match=r"^on: expected True or False, got 1"):
        fastconv.set_winograd(1)


def test_the_environment():
    code = (
        "import fastconv; print(fastconv.plan_conv2d((1, 64, 48, 48), (64, 64, 3, 3), padding=1).algorithm)"
    )
    assert run_python(code, FASTCONV_WINOGRAD="0").stdout.strip() == "gemm"
    assert run_python(code, FASTCONV_WINOGRAD="1").stdout.strip() == "winograd_f4x4_3x3"
