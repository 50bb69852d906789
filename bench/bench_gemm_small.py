"""Small maps, "gemm_small" against "gemm": 1x1 layers of 7x7, prepared, and their gradients."""

import pytest

import fastconv
from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD

LAYERS = (
    "resnet50/conv5_expand_512_2048_7",
    "resnet50/conv5_reduce_2048_512_7",
    "mobilenetv2/project_960_160_7",
)
every_layer = pytest.mark.parametrize("layer", LAYERS)
both = pytest.mark.parametrize("algorithm", ["gemm", "gemm_small"])


@every_layer
@both
def bench_forward_prepared(benchmark, operands, layer, algorithm):
    _, arrays = operands(layer, FORWARD)
    benchmark(fastconv.prepare_conv2d(arrays.weight, algorithm=algorithm), arrays.input)


@every_layer
@both
def bench_input_grad(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, INPUT_GRAD)
    shape, gradient = case.layer.input_shape(case.batch), fastconv.conv2d_input_grad
    benchmark(gradient, shape, arrays.weight, arrays.grad_output, algorithm=algorithm)


@every_layer
def bench_weight_grad(benchmark, operands, layer):
    """The kernel of "gemm": its product runs along the pixels, however few."""
    case, arrays = operands(layer, WEIGHT_GRAD)
    gradient = fastconv.conv2d_weight_grad
    benchmark(gradient, arrays.input, case.layer.weight_shape, arrays.grad_output, algorithm="gemm_small")
