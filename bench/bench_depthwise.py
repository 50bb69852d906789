"""Depthwise convolution: 3x3, 5x5, 7x7 and 31x31 on large and small maps, in every direction."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD

LAYERS = (
    "mobilenetv2/depthwise_32_112",
    "mobilenetv2/depthwise_96_112_stride2",
    "mobilenetv2/depthwise_960_7",
    "efficientnet_b0/depthwise_240_28_5x5",
    "efficientnet_b0/depthwise_672_14_5x5_stride2",
    "convnext_t/depthwise_96_56_7x7",
    "convnext_t/depthwise_768_7_7x7",
)
every_layer = pytest.mark.parametrize("layer", LAYERS)


@every_layer
def bench_forward(benchmark, operands, layer):
    case, arrays = operands(layer, FORWARD)
    options = window_arguments(case.layer)
    benchmark(fastconv.conv2d, arrays.input, arrays.weight, algorithm="depthwise", **options)


@every_layer
def bench_input_grad(benchmark, operands, layer):
    case, arrays = operands(layer, INPUT_GRAD)
    shape, options = case.layer.input_shape(case.batch), window_arguments(case.layer)
    gradient = fastconv.conv2d_input_grad
    benchmark(gradient, shape, arrays.weight, arrays.grad_output, algorithm="depthwise", **options)


@every_layer
def bench_weight_grad(benchmark, operands, layer):
    case, arrays = operands(layer, WEIGHT_GRAD)
    shape, options = case.layer.weight_shape, window_arguments(case.layer)
    gradient = fastconv.conv2d_weight_grad
    benchmark(gradient, arrays.input, shape, arrays.grad_output, algorithm="depthwise", **options)


@pytest.mark.parametrize("size", [13, 31])
def bench_large_kernel(benchmark, random_array, size):
    x, w = random_array(1, 64, 56, 56), random_array(64, 1, size, size)
    benchmark(fastconv.conv2d, x, w, padding=size // 2, groups=64, algorithm="depthwise")
