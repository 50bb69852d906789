"""The weights' gradient by "gemm": pointwise, strided and first layers, small planes, the bias."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import WEIGHT_GRAD

LAYERS = (
    "resnet50/conv1",
    "resnet50/conv2_reduce_256_64_56",
    "resnet50/conv2_expand_64_256_56",
    "resnet50/conv3_3x3_128_128_56_stride2",
    "resnet50/conv5_expand_512_2048_7",
    "mobilenetv2/project_96_24_56",
)
BATCHES = (1, 8)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS)
def bench_weight_grad(benchmark, random_array, operands, layer, batch):
    case, _ = operands(layer, WEIGHT_GRAD)
    x, g = (random_array(*shape(batch)) for shape in (case.layer.input_shape, case.layer.output_shape))
    shape, options = case.layer.weight_shape, window_arguments(case.layer)
    gradient = fastconv.conv2d_weight_grad
    benchmark(gradient, x, shape, g, algorithm="gemm", **options)


@pytest.mark.parametrize("layer", LAYERS)
def bench_backward(benchmark, random_array, operands, layer):
    """All three gradients, as a training step asks for them."""
    case, arrays = operands(layer, WEIGHT_GRAD)
    weight, options = random_array(*case.layer.weight_shape), window_arguments(case.layer)
    backward = fastconv.conv2d_backward
    benchmark(backward, arrays.grad_output, arrays.input, weight, algorithm="gemm", **options)
