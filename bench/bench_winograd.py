"""3x3 layers by Winograd's method, with each size of a tile, against "gemm" and "shifted"."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD

LAYERS = (
    "resnet50/conv2_3x3_64_64_56",
    "resnet50/conv3_3x3_128_128_28",
    "resnet50/conv4_3x3_256_256_14",
    "resnet50/conv5_3x3_512_512_7",
    "vgg16/conv1_64_64_224",
    "vgg16/conv4_512_512_28",
)
every_layer = pytest.mark.parametrize("layer", LAYERS)
SIZES = ["winograd_f4x4_3x3", "winograd_f3x3_3x3", "winograd_f2x2_3x3"]
every_algorithm = pytest.mark.parametrize("algorithm", [*SIZES, "winograd_f6x6_3x3", "gemm"])


@every_layer
@every_algorithm
def bench_forward(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, FORWARD)
    benchmark(
        fastconv.conv2d, arrays.input, arrays.weight, algorithm=algorithm, **window_arguments(case.layer)
    )


@every_layer
@every_algorithm
def bench_forward_prepared(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, FORWARD)
    options = window_arguments(case.layer)
    benchmark(fastconv.prepare_conv2d(arrays.weight, algorithm=algorithm, **options), arrays.input)


@every_layer
@every_algorithm
def bench_input_grad(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, INPUT_GRAD)
    shape, options = case.layer.input_shape(case.batch), window_arguments(case.layer)
    gradient = fastconv.conv2d_input_grad
    benchmark(gradient, shape, arrays.weight, arrays.grad_output, algorithm=algorithm, **options)


@every_layer
@pytest.mark.parametrize("algorithm", [*SIZES, "shifted"])
def bench_weight_grad(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, WEIGHT_GRAD)
    shape, options = case.layer.weight_shape, window_arguments(case.layer)
    gradient = fastconv.conv2d_weight_grad
    benchmark(gradient, arrays.input, shape, arrays.grad_output, algorithm=algorithm, **options)
