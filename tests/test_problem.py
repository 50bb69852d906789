"""Shapes: one algebra for outputs, paddings and their names."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import reference
from fastconv.problem import PADDING_NAMES, conv_problem, output_size, per_axis, resolve_padding

SIZES = st.integers(1, 40)
SMALL = st.integers(1, 5)


@given(size=SIZES, kernel=SMALL, stride=SMALL, before=SMALL, after=SMALL, dilation=SMALL)
def test_output_size_is_the_reference(size, kernel, stride, before, after, dilation):
    got = output_size(size, kernel, stride, (before, after), dilation)
    assert max(got, 0) == reference.output_size(size, kernel, stride, before, after, dilation)


@given(size=SIZES, kernel=SMALL, stride=SMALL, dilation=SMALL)
def test_named_paddings(size, kernel, stride, dilation):
    def pads(name):
        return resolve_padding(name, (size,), (kernel,), (stride,), (dilation,))[0]

    reach = dilation * (kernel - 1)
    assert pads("valid") == (0, 0)
    assert pads("full") == (reach, reach)
    assert pads("causal") == (reach, 0)
    for name in ("same", "same_lower"):
        assert output_size(size, kernel, stride, pads(name), dilation) == -(-size // stride)
        assert abs(pads(name)[0] - pads(name)[1]) <= 1
    assert pads("same") == pads("same_lower")[::-1]
    assert pads("same")[0] <= pads("same")[1]


@pytest.mark.parametrize(
    ("padding", "pads"),
    [
        (0, ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ([[1, 2], [3, 4]], ((1, 2), (3, 4))),
        (np.int64(3), ((3, 3), (3, 3))),
        ((np.int8(1), np.uint64(2)), ((1, 1), (2, 2))),
        # k = 10: the odd one goes to the end, as in PyTorch, ONNX SAME_UPPER and TensorFlow.
        ("same", ((4, 5), (4, 5))),
        ("same_lower", ((5, 4), (5, 4))),
    ],
    ids=str,
)
def test_paddings(padding, pads):
    got = resolve_padding(padding, (30, 30), (10, 10), (1, 1), (1, 1))
    assert got == pads
    assert all(type(value) is int for pair in got for value in pair)


def test_same_with_a_stride_pads_only_what_is_needed():
    assert resolve_padding("same", (5, 6), (3, 3), (2, 2), (1, 1)) == ((1, 1), (0, 1))
    assert resolve_padding("same", (4, 4), (1, 1), (3, 3), (1, 1)) == ((0, 0), (0, 0))


@pytest.mark.parametrize("name", PADDING_NAMES)
def test_every_name_works(name):
    problem = conv_problem((2, 3, 11, 13), (4, 3, 3, 5), padding=name)
    assert problem.output_shape[:2] == (2, 4)


@pytest.mark.parametrize(
    ("value", "result"),
    [(3, (3, 3)), ((2, 1), (2, 1)), ([2, 1], (2, 1)), (np.int32(3), (3, 3)), (range(1, 3), (1, 2))],
    ids=str,
)
def test_per_axis(value, result):
    assert per_axis(value, "stride", 2) == result


def test_a_problem_says_what_it_is():
    problem = conv_problem((2, 6, 9, 8), (8, 3, 3, 2), stride=(2, 1), padding=1, groups=2)
    assert problem.input_shape == (2, 6, 9, 8)
    assert problem.weight_shape == (8, 3, 3, 2)
    assert problem.output_shape == (2, 8, 5, 9)
    assert (problem.axes, problem.group_in, problem.group_out) == (2, 3, 4)
    assert problem.parameters == 8 * 3 * 3 * 2
    assert problem.flops == 2 * (2 * 8 * 5 * 9) * (3 * 3 * 2)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes):
    problem = conv_problem((1, 2, *(9,) * axes), (3, 2, *(3,) * axes), stride=2, axes=axes)
    assert problem.output_shape == (1, 3, *(4,) * axes)


def test_problems_are_values():
    problem = conv_problem((1, 2, 9, 9), (3, 2, 3, 3), padding="full")
    same = conv_problem([1, 2, 9, 9], np.array((3, 2, 3, 3)), (1, 1), ((2, 2), [2, 2]))
    assert problem == same == pickle.loads(pickle.dumps(problem))
    assert hash(problem) == hash(same)
    with pytest.raises(AttributeError):
        problem.batch = 2


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_kernel_that_just_fits(size):
    assert conv_problem((1, 1, size, size), (1, 1, size, size)).out_size == (1, 1)
    with pytest.raises(ValueError, match=r"^input: size"):
        conv_problem((1, 1, size, size), (1, 1, size + 1, size))
    padded = conv_problem((1, 1, size, size), (1, 1, size + 1, size), padding=((0, 1), (0, 0)))
    assert padded.out_size == (1, 1)
