"""Direct convolution of few channels: image filters of several sizes, and first layers."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import FORWARD

IMAGE = (1, 1, 512, 512)
KERNEL_SIZES = (3, 5, 7, 11)
FIRST_LAYERS = ("resnet50/conv1", "vgg16/conv1_3_64_224", "mobilenetv2/conv1")


@pytest.mark.parametrize("size", KERNEL_SIZES)
def bench_filter(benchmark, random_array, size):
    image, kernel = random_array(*IMAGE), random_array(1, 1, size, size)
    benchmark(fastconv.conv2d, image, kernel, padding=size // 2, algorithm="direct")


@pytest.mark.parametrize("size", KERNEL_SIZES)
def bench_filter_input_grad(benchmark, random_array, size):
    grad_output, kernel = random_array(*IMAGE), random_array(1, 1, size, size)
    gradient, options = fastconv.conv2d_input_grad, {"algorithm": "direct", "padding": size // 2}
    benchmark(gradient, IMAGE, kernel, grad_output, **options)


@pytest.mark.parametrize("size", KERNEL_SIZES)
def bench_filter_weight_grad(benchmark, random_array, size):
    image, grad_output = random_array(*IMAGE), random_array(*IMAGE)
    gradient, options = fastconv.conv2d_weight_grad, {"algorithm": "direct", "padding": size // 2}
    benchmark(gradient, image, (1, 1, size, size), grad_output, **options)


@pytest.mark.parametrize("layer", FIRST_LAYERS)
def bench_first_layer(benchmark, operands, layer):
    case, arrays = operands(layer, FORWARD)
    options = window_arguments(case.layer)
    benchmark(fastconv.conv2d, arrays.input, arrays.weight, algorithm="direct", **options)
