"""Weight gradients with taps, "shifted" against "gemm": grouped layers, first layers, dense layers."""

import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import WEIGHT_GRAD

LAYERS = (
    "resnext50_32x4d/conv2_3x3_128_56",
    "resnext50_32x4d/conv3_3x3_256_56_stride2",
    "resnext50_32x4d/conv4_3x3_512_14",
    "resnext50_32x4d/conv5_3x3_1024_7",
    "resnet50/conv1",
    "resnet50/conv2_3x3_64_64_56",
    "resnet50/conv5_3x3_512_512_7",
)
BATCHES = (1, 8)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("algorithm", ["shifted", "gemm"])
@pytest.mark.parametrize("layer", LAYERS)
def bench_weight_grad(benchmark, random_array, operands, layer, algorithm, batch):
    case, _ = operands(layer, WEIGHT_GRAD)
    x, g = (random_array(*shape(batch)) for shape in (case.layer.input_shape, case.layer.output_shape))
    shape, options = case.layer.weight_shape, window_arguments(case.layer)
    benchmark(fastconv.conv2d_weight_grad, x, shape, g, algorithm=algorithm, **options)
