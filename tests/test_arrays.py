"""Odd arrays: however they lie in memory, the result is right and they stay as they were."""

import numpy as np
import pytest
from conftest import (
    case,
    compute,
    every_conv_kernel,
    every_direction,
    fitting,
    identical,
    operands,
    result_shape,
)

import fastconv
from fastconv.arrays import LINE, as_operand, check_out, is_target, new_array

PROBLEM = case((2, 4, 9, 8), (6, 2, 3, 2), groups=2, stride=2, padding=1)


def strided(array):
    wide = np.full([2 * size for size in array.shape], np.nan, array.dtype)
    wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
    return wide[tuple(slice(None, None, 2) for _ in array.shape)]


def negative(array):
    backwards = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[backwards])[backwards]


def transposed(array):
    return np.ascontiguousarray(array.transpose()).transpose()


def read_only(array):
    twin = array.copy()
    twin.flags.writeable = False
    return twin


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    twin = memory[1:].view(array.dtype).reshape(array.shape)
    twin[...] = array
    assert not twin.flags.aligned
    return twin


class Subclass(np.ndarray):
    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("no arithmetic of the subclass is wanted")


class Wrapper:
    """Something that is no array, but gives one."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


class Interface:
    def __init__(self, array):
        self._keep = array
        self.__array_interface__ = array.__array_interface__


def with_metadata(array):
    return array.view(np.dtype(array.dtype, metadata={"unit": "K"}))


FORMS = {
    "strided": strided,
    "negative strides": negative,
    "Fortran order": np.asfortranarray,
    "transposed": transposed,
    "read-only": read_only,
    "byte-swapped": byte_swapped,
    "misaligned": misaligned,
    "subclass": lambda array: array.view(Subclass),
    "__array__": Wrapper,
    "__array_interface__": Interface,
    "metadata": with_metadata,
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def in_form(data, form):
    arrays = (data.input, data.weight, data.bias, data.grad_output)
    return type(data)(data.case, *map(form, arrays))


@every_form
@every_conv_kernel
def test_any_form(kernel, form, dtype):
    data = operands(fitting(PROBLEM, kernel.algorithm), dtype)
    odd = in_form(data, form)
    got = compute(kernel.direction, odd, kernel.algorithm)
    assert type(got) is np.ndarray
    assert identical(got, compute(kernel.direction, data, kernel.algorithm))


@every_form
def test_any_form_backward_and_prepared(form, dtype):
    data, odd = operands(PROBLEM, dtype), in_form(operands(PROBLEM, dtype), form)
    want = fastconv.conv2d_backward(data.grad_output, data.input, data.weight, **PROBLEM.options)
    got = fastconv.conv2d_backward(odd.grad_output, odd.input, odd.weight, **PROBLEM.options)
    assert all(identical(a, b) for a, b in zip(got, want, strict=True))
    operation = fastconv.prepare_conv2d(odd.weight, odd.bias, **PROBLEM.options)
    want = fastconv.prepare_conv2d(data.weight, data.bias, **PROBLEM.options)(data.input)
    assert identical(operation(odd.input), want)


def test_broadcast_input(dtype):
    image = np.broadcast_to(dtype.type(0.5), (2, 4, 9, 8))
    weight = operands(PROBLEM, dtype).weight
    want = fastconv.conv2d(image.copy(), weight, **PROBLEM.options)
    assert identical(fastconv.conv2d(image, weight, **PROBLEM.options), want)


def test_memmap(tmp_path, dtype):
    data = operands(PROBLEM, dtype)
    path = tmp_path / "input"
    np.ascontiguousarray(data.input).tofile(path)
    for mode in ("r", "c"):
        mapped = np.memmap(path, dtype, mode, shape=data.input.shape)
        got = fastconv.conv2d(mapped, data.weight, data.bias, **PROBLEM.options)
        assert type(got) is np.ndarray
        assert identical(got, compute("forward", data))


@every_conv_kernel
def test_inputs_are_never_changed(kernel, isa, dtype):
    problem = fitting(PROBLEM, kernel.algorithm)
    data = operands(problem, dtype)
    before = [array.copy() for array in data.of(kernel.direction)]
    compute(kernel.direction, data, kernel.algorithm)
    assert all(map(identical, data.of(kernel.direction), before))
    if kernel.direction != "forward":
        fastconv.conv2d_backward(
            data.grad_output, data.input, data.weight, algorithm=kernel.algorithm, **problem.options
        )
        assert all(map(identical, data.of(kernel.direction), before))


# out=


OUT_FORMS = {
    name: FORMS[name]
    for name in (
        "strided",
        "negative strides",
        "Fortran order",
        "transposed",
        "misaligned",
        "subclass",
    )
}


@pytest.mark.parametrize("form", OUT_FORMS.values(), ids=OUT_FORMS)
@every_conv_kernel
def test_out_in_any_form(kernel, form, dtype):
    problem = fitting(PROBLEM, kernel.algorithm)
    data = operands(problem, dtype)
    out = form(np.full(result_shape(kernel.direction, problem), np.nan, dtype))
    assert compute(kernel.direction, data, kernel.algorithm, out=out) is out
    want = compute(kernel.direction, data, kernel.algorithm)
    assert identical(np.array(out, order="C", subok=False), want)


def test_out_of_a_memmap(tmp_path, dtype):
    data = operands(PROBLEM, dtype)
    shape = result_shape("forward", PROBLEM)
    out = np.memmap(tmp_path / "out", dtype, "w+", shape=shape)
    compute("forward", data, out=out)
    assert identical(np.array(out), compute("forward", data))


SAME_SHAPE = case((2, 4, 6, 5), (4, 4, 3, 3), padding=1)


@every_conv_kernel
@pytest.mark.parametrize("shift", [0, 1, 7, 60])
def test_out_that_overlaps_an_operand(kernel, shift, isa, dtype):
    """Right, however out and an operand share memory."""
    problem = fitting(SAME_SHAPE, kernel.algorithm)
    data = operands(problem, dtype)
    want = compute(kernel.direction, data, kernel.algorithm)
    for position, operand in enumerate(data.of(kernel.direction)):
        if kernel.direction == "forward" and position == 2:
            continue  # the bias is smaller than any result; it has its own test below
        size = max(operand.size, want.size) + shift
        memory = np.zeros(size, dtype)
        twin = memory[: operand.size].reshape(operand.shape)
        twin[...] = operand
        out = memory[size - want.size :].reshape(want.shape)
        arrays = list(data.of(kernel.direction))
        arrays[position] = twin
        options = {**problem.options, "algorithm": kernel.algorithm, "out": out}
        if kernel.direction == "forward":
            fastconv.conv2d(*arrays, **options)
        elif kernel.direction == "input_grad":
            fastconv.conv2d_input_grad(problem.input_shape, *arrays, **options)
        else:
            fastconv.conv2d_weight_grad(arrays[0], problem.weight_shape, arrays[1], **options)
        assert identical(out, want)


def test_out_that_overlaps_the_bias(isa, dtype):
    data = operands(SAME_SHAPE, dtype)
    want = compute("forward", data)
    out = np.zeros_like(want)
    bias = out.ravel()[17:21]
    bias[...] = data.bias
    fastconv.conv2d(data.input, data.weight, bias, out=out, **SAME_SHAPE.options)
    assert identical(out, want)


def test_out_that_overlaps_a_strided_operand(dtype):
    data = operands(SAME_SHAPE, dtype)
    memory = np.zeros(2 * data.input.size, dtype)
    x = memory[::2].reshape(data.input.shape)
    x[...] = data.input
    out = memory[: data.input.size].reshape(data.input.shape)
    assert identical(
        fastconv.conv2d(x, data.weight, data.bias, out=out, **SAME_SHAPE.options),
        compute("forward", data),
    )


def test_a_chain_in_place(dtype):
    """The same array as input and as output, layer after layer."""
    data = operands(SAME_SHAPE, dtype)
    once = compute("forward", data)
    want = fastconv.conv2d(once, data.weight, data.bias, **SAME_SHAPE.options)
    x = data.input.copy()
    operation = fastconv.prepare_conv2d(data.weight, data.bias, algorithm="direct", padding=1)
    for _ in range(2):
        assert operation(x, out=x) is x
    np.testing.assert_allclose(x, want, rtol=0, atol=200 * np.finfo(dtype).eps)


@every_direction
def test_results_are_new_arrays(direction, dtype):
    """Each call has a result of its own, which belongs to the caller."""
    data = operands(PROBLEM, dtype)
    first, second = compute(direction, data), compute(direction, data)
    assert not np.shares_memory(first, second)
    assert first.flags.carray
    second.fill(7)
    assert identical(first, compute(direction, data))


def test_large_results_begin_on_a_line(dtype):
    for shape in ((1, 1, 91, 91), (2, 3, 64, 64), (9000, 1)):
        result = new_array(shape, dtype)
        assert (result.shape, result.dtype) == (shape, dtype)
        assert result.dtype is dtype
        assert result.ctypes.data % LINE == 0
        assert result.flags.carray
        result.fill(1)
        assert not np.shares_memory(result, new_array(shape, dtype))
    with pytest.raises(MemoryError):
        new_array((1 << 50,), dtype)


# The door


def test_operands_that_fit_are_not_copied(dtype):
    array = np.ones((2, 3), dtype)
    assert np.shares_memory(as_operand(array, "x"), array)
    assert np.shares_memory(as_operand(read_only(array).view(Subclass), "x"), array) is False
    locked = read_only(array)
    assert np.shares_memory(as_operand(locked, "x"), locked)


@every_form
def test_as_operand_is_what_kernels_read(form, dtype):
    array = as_operand(form(np.arange(24, dtype=dtype).reshape(2, 3, 4)), "x")
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.ravel().tolist() == list(range(24))


def test_scalars_become_arrays_without_axes(dtype):
    assert as_operand(dtype.type(3), "x").shape == ()
    assert as_operand(np.array(3, dtype), "x").shape == ()


def test_is_target(dtype):
    out = np.zeros((4, 4), dtype)
    assert check_out(out, (4, 4), dtype) is out
    assert is_target(out, np.zeros(3), None)
    assert not is_target(out, out[1:])
    assert not is_target(out.T)
    assert not is_target(out[:, ::2])
    assert not is_target(misaligned(out))
