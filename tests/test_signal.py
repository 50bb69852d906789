"""correlate2d, convolve2d, correlate and convolve against SciPy, and where they promise more."""

import concurrent.futures
import itertools
import warnings
from decimal import Decimal

import numpy as np
import pytest
import scipy.signal
from conftest import identical, run_python
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import signal
from fastconv.signal import direct, numbers, overlap_save, window

MODES = ("full", "same", "valid")
PLANAR = ("correlate2d", "convolve2d")
ANY_AXES = ("correlate", "convolve")
INTEGERS = tuple("bBhHiIlLqQ")
FLOATS = tuple("fd")
COMPLEX = tuple("FD")
# Errors of sums of up to a few hundred terms of size 1, with room for transforms.
TOLERANCE = {"e": 1e-2, "f": 2e-4, "F": 2e-4, "d": 1e-11, "D": 1e-11, "g": 1e-11, "G": 1e-11}

every_mode = pytest.mark.parametrize("mode", MODES)
every_planar = pytest.mark.parametrize("name", PLANAR)
every_any = pytest.mark.parametrize("name", ANY_AXES)
both_methods = pytest.mark.parametrize("method", ["direct", "fft"])


def draw(rng, shape, code):
    """Numbers of a dtype: small integers, or normal ones."""
    dtype = np.dtype(code)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(-5 if dtype.kind == "i" else 0, 100, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def agree(got, want):
    """The same shape, dtype and numbers; those that are not integers up to rounding."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if want.dtype.kind in "biuO":
        np.testing.assert_array_equal(got, want)
    else:
        scale = max(1, np.abs(want).max(initial=0))
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[want.dtype.char] * scale)


def fits(first, second, mode):
    """Does SciPy take these shapes in this mode?"""
    larger = [n >= k for n, k in zip(first, second, strict=True)]
    smaller = [n <= k for n, k in zip(first, second, strict=True)]
    return mode != "valid" or all(larger) or all(smaller)


# Two axes

SHAPES = [
    ((9, 11), (3, 4)),
    ((13, 8), (4, 1)),
    ((8, 13), (1, 5)),
    ((7, 7), (7, 7)),
    ((10, 12), (6, 7)),
    ((3, 4), (9, 11)),
    ((5, 9), (8, 4)),
    ((1, 1), (2, 3)),
    ((40, 37), (17, 16)),
]
BOUNDARIES = [("fill", 0), ("fill", 2), ("wrap", 0), ("symm", 0)]


@every_planar
@every_mode
@pytest.mark.parametrize(("boundary", "fill"), BOUNDARIES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_axes_as_scipy(name, mode, boundary, fill, shapes, rng):
    if not fits(*shapes, mode):
        pytest.skip("neither holds the other")
    for code in "dF":
        x, w = (draw(rng, shape, code) for shape in shapes)
        want = getattr(scipy.signal, name)(x, w, mode, boundary, fill)
        if name == "correlate2d" and mode == "valid" and x.size < w.size:
            want = want.conj()  # see test_valid_with_a_larger_filter
        agree(getattr(signal, name)(x, w, mode, boundary, fill), want)


@every_planar
@every_mode
@pytest.mark.parametrize("codes", [a + b for a in "?bBhHiIlLfdFDg" for b in "?BildfFG"])
def test_two_axes_of_every_dtype(name, mode, codes, rng):
    x, w = draw(rng, (9, 10), codes[0]), draw(rng, (4, 3), codes[1])
    got = getattr(signal, name)(x, w, mode)
    if codes == "??":  # SciPy refuses two-dimensional bools; integers say how many terms there are
        want = getattr(scipy.signal, name)(x.astype(int), w.astype(int), mode) > 0
    else:
        want = getattr(scipy.signal, name)(x, w, mode)
    agree(got, want)


@every_planar
@pytest.mark.parametrize(
    ("synonym", "boundary"), [("pad", "fill"), ("circular", "wrap"), ("symmetric", "symm")]
)
def test_synonyms_of_boundaries(name, synonym, boundary, rng):
    x, w = rng.standard_normal((5, 6)), rng.standard_normal((3, 3))
    function = getattr(signal, name)
    np.testing.assert_array_equal(function(x, w, "same", synonym), function(x, w, "same", boundary))


@pytest.mark.parametrize("fill", [3, 2.7, -1.5, [4], np.int8(3), True])
@pytest.mark.parametrize("code", ["i", "d", "F"])
def test_fillvalues(fill, code, rng):
    x, w = draw(rng, (4, 5), code), draw(rng, (3, 3), code)
    agree(signal.convolve2d(x, w, fillvalue=fill), scipy.signal.convolve2d(x, w, fillvalue=fill))


def test_a_complex_fillvalue(rng):
    x, w = draw(rng, (4, 5), "d"), draw(rng, (3, 3), "D")
    agree(signal.correlate2d(x, w, fillvalue=2 - 1j), scipy.signal.correlate2d(x, w, fillvalue=2 - 1j))


def test_valid_with_a_larger_filter(rng):
    """correlate2d conjugates the filter here too, as correlate does; SciPy conjugates the image."""
    x, w = draw(rng, (3, 4), "D"), draw(rng, (6, 9), "D")
    got = signal.correlate2d(x, w, "valid")
    agree(got, scipy.signal.correlate(x, w, "valid"))
    agree(got, scipy.signal.correlate2d(x, w, "valid").conj())


@every_planar
@every_mode
@pytest.mark.parametrize("lead", [(3,), (2, 3), (1, 1, 2), (0,), (2, 0, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (6, 5), (9, 12)])
def test_leading_axes_are_a_batch(name, mode, lead, kernel, rng):
    x, w = rng.standard_normal((*lead, 8, 9)), rng.standard_normal(kernel)
    function = getattr(signal, name)
    for boundary, fill in BOUNDARIES:
        got = function(x, w, mode, boundary, fill)
        single = function(np.zeros((8, 9)), w, mode, boundary, fill)
        assert got.shape == (*lead, *single.shape)
        for place in np.ndindex(lead):
            agree(got[place], function(x[place], w, mode, boundary, fill))


@every_planar
@pytest.mark.parametrize("code", ["B", "F", "?"])
def test_batches_of_every_kind(name, code, rng):
    x, w = draw(rng, (4, 20, 21), code), draw(rng, (5, 4), code)
    got = getattr(signal, name)(x, w, "same")
    for image, output in zip(x, got, strict=True):
        agree(output, getattr(signal, name)(image, w, "same"))


@every_planar
@pytest.mark.parametrize("shapes", [((0, 3), (2, 2)), ((3, 3), (0, 2)), ((3, 0), (3, 2)), ((0, 0), (0, 0))])
@every_mode
def test_empty_images(name, shapes, mode):
    first, second = map(np.zeros, shapes)
    try:
        want = getattr(scipy.signal, name)(first, second, mode)
    except ValueError:
        with pytest.raises(ValueError, match="in1"):
            getattr(signal, name)(first, second, mode)
    else:
        agree(getattr(signal, name)(first, second, mode), want)


# Any number of axes

ND_SHAPES = [
    ((12,), (5,)),
    ((4,), (9,)),
    ((7,), (7,)),
    ((1,), (1,)),
    ((9, 8), (4, 3)),
    ((9, 8), (1, 3)),
    ((9, 8), (9, 8)),
    ((4, 9), (6, 3)),
    ((5, 6, 7), (2, 3, 4)),
    ((5, 6, 7), (2, 1, 4)),
    ((14, 6, 7), (9, 3, 2)),
    ((2, 3, 4), (5, 6, 7)),
    ((4, 3, 5, 4), (2, 2, 3, 2)),
    ((3, 2, 3, 2, 3), (2, 2, 2, 2, 2)),
]


@every_any
@every_mode
@both_methods
@pytest.mark.parametrize("shapes", ND_SHAPES, ids=str)
def test_any_axes_as_scipy(name, mode, method, shapes, rng):
    if not fits(*shapes, mode):
        pytest.skip("neither holds the other")
    for code in "fDi":
        x, w = (draw(rng, shape, code) for shape in shapes)
        want = getattr(scipy.signal, name)(x, w, mode, "direct")
        agree(getattr(signal, name)(x, w, mode, method), want)
        agree(getattr(signal, name)(x, w, mode), want)


@every_any
@both_methods
@pytest.mark.parametrize("codes", [a + b for a in "?bBhHiIlLefdFDgG" for b in "?BileFd"])
def test_any_axes_of_every_dtype(name, method, codes, rng):
    x, w = draw(rng, 30, codes[0]), draw(rng, 7, codes[1])
    agree(getattr(signal, name)(x, w, "same", method), getattr(scipy.signal, name)(x, w, "same", "direct"))
    volumes = x.reshape(2, 5, 3), w[:4].reshape(2, 2, 1)
    got = getattr(signal, name)(*volumes, "full", method)
    assert got.dtype == np.result_type(x, w)
    if not {"?", "e"} >= set(codes) and got.dtype.char != "e":  # SciPy's direct method does not take these
        agree(got, getattr(scipy.signal, name)(*volumes, "full", "direct"))


@every_any
def test_scalars(name):
    assert getattr(signal, name)(3, 4) == 12
    assert getattr(signal, name)(2j, 3j) == getattr(scipy.signal, name)(2j, 3j)


@every_any
@every_mode
def test_decimals(name, mode):
    x = np.array([Decimal("1.1"), Decimal("2.2"), Decimal("3.3"), Decimal(4)])
    w = np.array([Decimal("0.1"), Decimal("0.2")])
    agree(getattr(signal, name)(x, w, mode), getattr(scipy.signal, name)(x, w, mode))


@every_any
def test_same_is_of_the_shape_of_the_first(name, rng):
    for first, second in itertools.product(range(1, 8), repeat=2):
        x, w = rng.standard_normal(first), rng.standard_normal(second)
        want = getattr(scipy.signal, name)(x, w, "same")
        agree(getattr(signal, name)(x, w, "same"), want)


# Integers are exact


def exact(x, w, mode):
    """Convolution in Python's integers."""
    return scipy.signal.convolve(x.astype(object), w.astype(object), mode)


def wrapped(values, dtype):
    bits = np.dtype(dtype).itemsize * 8
    low = [int(v) % (1 << bits) for v in values]
    return np.array(
        [v - (1 << bits) if np.dtype(dtype).kind == "i" and v >> (bits - 1) else v for v in low], dtype
    )


@both_methods
@pytest.mark.parametrize("code", INTEGERS)
@pytest.mark.parametrize("bits", [4, 11, 14, 20, 26, 31, 40, 52, 63, 64])
def test_integers_are_exact_modulo_their_width(method, code, bits, rng):
    dtype = np.dtype(code)
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -(1 << (bits - 1))), min(limits.max, (1 << (bits - 1)) - 1)
    x, w = (rng.integers(low, high, n, dtype=dtype, endpoint=True) for n in (300, 41))
    for mode in MODES:
        got = signal.convolve(x, w, mode, method)
        np.testing.assert_array_equal(got, wrapped(exact(x, w, mode), dtype))


def test_the_smallest_integers():
    x = np.full((9, 9), np.iinfo(np.int64).min)
    w = np.full((3, 3), -1)
    got = signal.correlate2d(x, w, "valid")
    np.testing.assert_array_equal(got, np.full((7, 7), np.iinfo(np.int64).min))


def test_large_integers_in_two_dimensions(rng):
    x, w = (rng.integers(-(1 << 60), 1 << 60, shape) for shape in ((30, 31), (6, 7)))
    for name, mode in itertools.product(PLANAR, MODES):
        agree(getattr(signal, name)(x, w, mode), getattr(scipy.signal, name)(x, w, mode))


def test_images_of_bytes_by_a_large_filter(rng):
    x, w = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((300, 280), (41, 45)))
    want = signal.correlate2d(x.astype(np.int64), w.astype(np.int64), method="direct")
    np.testing.assert_array_equal(signal.correlate2d(x, w), want.astype(np.uint8))
    np.testing.assert_array_equal(signal.correlate2d(x.astype(int), w), want)


# Methods


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every loop over them turns."""
    monkeypatch.setattr(direct, "SLAB_BYTES", 500)
    monkeypatch.setattr(direct, "SIGNAL_LENGTH", 16)
    monkeypatch.setattr(direct, "SHORTEST_ROW", 1)
    monkeypatch.setattr(overlap_save, "TILE_ELEMENTS", 64)
    monkeypatch.setattr(overlap_save, "MANY_ELEMENTS", 64)
    monkeypatch.setattr(overlap_save, "GROUP_ELEMENTS", 300)
    monkeypatch.setattr(overlap_save, "ELEMENTS_PER_THREAD", 1)
    overlap_save.tiling.cache_clear()
    yield
    overlap_save.tiling.cache_clear()


@both_methods
@every_mode
@pytest.mark.parametrize(
    "shapes",
    [
        ((500,), (7,)),
        ((60, 50), (4, 3)),
        ((50, 61), (9, 8)),
        ((20, 12, 11), (3, 2, 4)),
        ((3, 70, 5), (1, 6, 1)),
    ],
    ids=str,
)
def test_many_small_blocks(small_blocks, method, mode, shapes, rng):
    for code in "fD":
        x, w = (draw(rng, shape, code) for shape in shapes)
        agree(signal.correlate(x, w, mode, method), scipy.signal.correlate(x, w, mode, "direct"))


@pytest.mark.parametrize("rows", range(1, 15))
@pytest.mark.parametrize("code", FLOATS + COMPLEX)
def test_filters_of_any_height_on_every_engine(isa, rows, code, rng):
    x, w = draw(rng, (31, 18), code), draw(rng, (rows, 3), code)
    agree(signal.convolve2d(x, w, method="direct"), scipy.signal.convolve2d(x, w))


def test_a_real_image_by_a_complex_filter(rng):
    for a, b in itertools.product("dD", repeat=2):
        x, w = draw(rng, (31, 18), a), draw(rng, (5, 5), b)
        agree(signal.correlate2d(x, w), scipy.signal.correlate2d(x, w))
        agree(signal.correlate2d(x, w, method="fft"), scipy.signal.correlate2d(x, w))


def test_large_filters_go_through_transforms(monkeypatch, rng):
    def refuse(*arguments):
        raise AssertionError("computed directly")

    monkeypatch.setattr(numbers, "correlate_direct", refuse)
    x, w = rng.standard_normal((256, 256)), rng.standard_normal((65, 65))
    agree(signal.correlate2d(x, w, "same"), scipy.signal.fftconvolve(x, w[::-1, ::-1], "same"))


def test_small_filters_are_computed_directly(monkeypatch, rng):
    def refuse(*arguments, **options):
        raise AssertionError("transformed")

    monkeypatch.setattr(numbers, "correlate_fft", refuse)
    signal.correlate2d(rng.standard_normal((512, 512)), rng.standard_normal((7, 7)))
    signal.correlate(rng.standard_normal(10**5), rng.standard_normal(20))


@pytest.mark.parametrize("code", ["f", "D"])
def test_nan_and_infinities_stay_where_they_are(code, rng):
    x, w = draw(rng, (300, 290), code), np.abs(draw(rng, (43, 41), code)).astype(code)
    x[17, 40], x[150, 200], x[280, 3] = np.nan, np.inf, -np.inf
    assert numbers.fft_pays(x, w, window.window_for("same", x.shape, w.shape))
    got = signal.convolve2d(x, w, "same")
    want = signal.convolve2d(x, w, "same", method="direct")
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    finite = np.isfinite(want)
    assert finite.mean() > 0.9
    agree(got[finite], want[finite])


def test_numbers_too_large_to_transform(rng):
    x, w = draw(rng, (300, 290), "f"), draw(rng, (43, 41), "f")
    x[100, 100] = 1e37
    np.testing.assert_allclose(
        signal.convolve2d(x, w), signal.convolve2d(x, w, method="direct"), rtol=1e-4, atol=1e-2
    )
    huge = w * np.float32(1e30)
    got = signal.convolve2d(x[:64, :64], huge)
    assert np.isfinite(got).all()


def test_nan_in_the_smaller_operand_stays_where_it_is():
    x, w = np.ones(4), np.ones(9)
    x[1] = np.nan
    np.testing.assert_array_equal(np.isnan(signal.convolve(x, w)), [False] + [True] * 9 + [False] * 2)


@every_any
def test_transforms_of_nan_warn(name):
    x, w = np.ones(50), np.ones(5)
    x[3] = np.nan
    with pytest.warns(RuntimeWarning, match="NaN"):
        got = getattr(signal, name)(x, w, method="fft")
    assert np.isnan(got).any()


@pytest.mark.parametrize("smallest", [*range(1, 200), 997, 1025, 4097, 65537, 10**6 + 3])
def test_fast_lengths(smallest):
    def is_fast(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    length = overlap_save.fast_length(smallest)
    assert length >= smallest
    assert is_fast(length)
    if smallest > 6:
        assert length % 2 == 0
        assert not any(is_fast(n) for n in range(smallest + smallest % 2, length, 2))


@given(st.lists(st.tuples(st.integers(2, 300), st.integers(1, 3000)), min_size=1, max_size=3))
def test_tiles_cover_the_outputs(sizes):
    taps, outputs = zip(*sizes, strict=True)
    tiles = overlap_save.tiling(taps, outputs)
    for k, n, tile, step in zip(taps, outputs, tiles.tile, tiles.step, strict=True):
        assert 1 <= step <= min(n, tile - k + 1)


# Promises of the library


@pytest.mark.parametrize("size", [3, 9, 33])
def test_the_same_bits_for_any_number_of_threads(size, rng):
    x, w = rng.standard_normal((2, 400, 390)), rng.standard_normal((size, size))
    results = []
    for threads in (1, 2, 5):
        with fastconv.threads(threads):
            results.append(signal.correlate2d(x, w, "same"))
    assert all(identical(results[0], other) for other in results[1:])


def test_calls_at_once(rng):
    x = rng.standard_normal((8, 300, 290))
    w = rng.standard_normal((33, 33))
    want = [signal.correlate2d(image, w) for image in x]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda image: signal.correlate2d(image, w), x))
    assert all(identical(a, b) for a, b in zip(got, want, strict=True))


def test_after_a_fork():
    code = """
import os, numpy as np
from fastconv import set_num_threads, signal
set_num_threads(2)
x, w = np.ones((300, 300)), np.ones((33, 33))
want = signal.correlate2d(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(signal.correlate2d(x, w), want) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = run_python(code.replace("\nchild", "\nimport warnings; warnings.simplefilter('ignore')\nchild"))
    assert done.returncode == 0, done.stderr


def forms(array):
    """An array in every form that holds the same numbers."""
    spread = np.zeros([2 * n for n in array.shape], array.dtype)[
        tuple(slice(None, None, 2) for _ in array.shape)
    ]
    spread[...] = array
    yield spread
    yield np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    yield np.asfortranarray(array)
    yield array.astype(array.dtype.newbyteorder())
    locked = array.copy()
    locked.flags.writeable = False
    yield locked
    buffer = np.zeros(array.nbytes + 1, np.uint8)[1:]
    misaligned = buffer.view(array.dtype).reshape(array.shape)
    misaligned[...] = array
    yield misaligned
    yield array.tolist()


@pytest.mark.parametrize("code", ["f", "d", "D", "H", "q"])
@pytest.mark.parametrize("size", [3, 6])
def test_arrays_of_every_form(code, size, rng):
    x, w = draw(rng, (20, 17), code), draw(rng, (size, size), code)
    want = signal.convolve2d(x, w)
    for image, kernel in zip(forms(x), forms(w), strict=True):
        before = np.array(image), np.array(kernel)
        got = signal.convolve2d(image, kernel)
        if isinstance(image, np.ndarray):
            assert identical(got, want)
        elif np.dtype(code).kind != "u":  # lists are signed
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(kernel, before[1])


BAD_PLANAR = [
    ({"in1": [1, 2]}, ValueError, "in1: expected at least two axes"),
    ({"in1": 3}, ValueError, "in1: expected at least two axes"),
    ({"in1": None}, ValueError, "in1: "),
    ({"in2": [1, 2]}, ValueError, "in2: expected two axes"),
    ({"in2": np.ones((1, 2, 2))}, ValueError, "in2: expected two axes"),
    ({"in1": [["a"]]}, ValueError, "in1: expected numbers"),
    ({"in2": np.array([["2020-01-01"]], "M8[D]")}, ValueError, "in2: expected numbers"),
    ({"in1": [[Decimal(1)]]}, ValueError, "in1, in2: expected numbers"),
    ({"in1": np.ma.ones((3, 3))}, TypeError, "in1: masked"),
    ({"mode": "spam"}, ValueError, "mode: expected one of"),
    ({"mode": 0}, ValueError, "mode: expected one of"),
    ({"mode": ["full"]}, ValueError, "mode: expected one of"),
    ({"boundary": "reflect"}, ValueError, "boundary: expected one of"),
    ({"boundary": None}, ValueError, "boundary: expected one of"),
    ({"method": "spam"}, ValueError, "method: expected one of"),
    ({"fillvalue": [1, 2]}, ValueError, "fillvalue: "),
    ({"fillvalue": []}, ValueError, "fillvalue: "),
    ({"fillvalue": 1j}, ValueError, "fillvalue: could not cast"),
    ({"fillvalue": "1"}, ValueError, "fillvalue: expected a number"),
    ({"fillvalue": None}, ValueError, "fillvalue: expected a number"),
    (
        {"in1": np.ones((2, 2), "B"), "in2": np.ones((2, 2), "B"), "fillvalue": -1},
        ValueError,
        "fillvalue: could",
    ),
    (
        {"in1": np.ones((2, 2), "B"), "in2": np.ones((2, 2), "B"), "fillvalue": 256},
        ValueError,
        "fillvalue: could",
    ),
    (
        {"in1": np.ones((2, 2), "i"), "in2": np.ones((2, 2), "i"), "fillvalue": np.nan},
        ValueError,
        "fillvalue: ",
    ),
    ({"in1": np.ones((2, 3)), "in2": np.ones((3, 2)), "mode": "valid"}, ValueError, "mode: 'valid' needs"),
]


@every_planar
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_PLANAR, ids=lambda value: str(value)[:40])
def test_bad_arguments_of_two_axes(name, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        getattr(signal, name)(**{"in1": np.ones((3, 3)), "in2": np.ones((2, 2)), **arguments})


BAD_ANY = [
    ({"in1": [[1, 2]]}, ValueError, "in2: expected as many axes"),
    ({"in2": 2}, ValueError, "in2: expected as many axes"),
    ({"in2": []}, ValueError, "in2: the array is empty"),
    ({"in1": []}, ValueError, "in1: the array is empty"),
    ({"in1": ["a"]}, ValueError, "in1: expected numbers"),
    ({"in2": np.ma.ones(2)}, TypeError, "in2: masked"),
    ({"in1": [[Decimal(1)]], "in2": [[Decimal(1)]]}, ValueError, "in1, in2: expected numbers"),
    ({"mode": "spam"}, ValueError, "mode: expected one of"),
    ({"mode": None}, ValueError, "mode: expected one of"),
    ({"method": "bacon"}, ValueError, "method: expected one of"),
    ({"method": None}, ValueError, "method: expected one of"),
    ({"in1": np.ones((2, 3)), "in2": np.ones((3, 2)), "mode": "valid"}, ValueError, "mode: 'valid' needs"),
]


@every_any
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ANY, ids=lambda value: str(value)[:40])
def test_bad_arguments_of_any_axes(name, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        getattr(signal, name)(**{"in1": np.ones(3), "in2": np.ones(2), **arguments})


def test_results_beyond_the_address_space_are_refused():
    image = np.lib.stride_tricks.as_strided(np.zeros(1), (1 << 29, 1 << 29), (0, 0))
    with pytest.raises(ValueError, match="address space"):
        signal.convolve2d(image, np.ones((3, 3)))


def test_an_empty_first_operand_in_mode_same():
    assert signal.convolve(np.zeros((3, 0)), np.ones((2, 2)), "same").shape == (3, 0)


@given(
    st.data(),
    st.sampled_from(ANY_AXES),
    st.sampled_from(MODES),
    st.sampled_from("?bHlfdFD"),
    st.sampled_from("?bHlfdFD"),
)
def test_any_shapes_as_scipy(data, name, mode, first_code, second_code):
    axes = data.draw(st.integers(1, 3))
    most = {1: 40, 2: 12, 3: 6}[axes]
    first, second = (data.draw(st.tuples(*[st.integers(1, most)] * axes)) for _ in range(2))
    if not fits(first, second, mode):
        with pytest.raises(ValueError, match="mode"):
            getattr(signal, name)(np.ones(first), np.ones(second), mode)
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    x, w = draw(rng, first, first_code), draw(rng, second, second_code)
    got = getattr(signal, name)(x, w, mode)
    if first_code == second_code == "?":
        agree(got, getattr(scipy.signal, name)(x.astype(int), w.astype(int), mode, "direct") > 0)
    else:
        agree(got, getattr(scipy.signal, name)(x, w, mode, "direct"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(getattr(signal, name)(x, w, mode, "fft"), got)
