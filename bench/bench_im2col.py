"""The textbook form, with NumPy's matmul: the yardstick for what the kernels spare."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD

LAYERS = (
    "resnet50/conv1",
    "resnet50/conv2_reduce_256_64_56",
    "resnet50/conv3_3x3_128_128_56_stride2",
    "mobilenetv2/project_96_24_56",
)
every_layer = pytest.mark.parametrize("layer", LAYERS)


@every_layer
def bench_forward(benchmark, operands, layer):
    case, arrays = operands(layer, FORWARD)
    options = window_arguments(case.layer)
    benchmark(fastconv.conv2d, arrays.input, arrays.weight, algorithm="im2col", **options)


@every_layer
def bench_input_grad(benchmark, operands, layer):
    case, arrays = operands(layer, INPUT_GRAD)
    shape, options = case.layer.input_shape(case.batch), window_arguments(case.layer)
    gradient = fastconv.conv2d_input_grad
    benchmark(gradient, shape, arrays.weight, arrays.grad_output, algorithm="im2col", **options)


@every_layer
def bench_weight_grad(benchmark, operands, layer):
    case, arrays = operands(layer, WEIGHT_GRAD)
    shape, options = case.layer.weight_shape, window_arguments(case.layer)
    gradient = fastconv.conv2d_weight_grad
    benchmark(gradient, arrays.input, shape, arrays.grad_output, algorithm="im2col", **options)
