"""Output channels in the lanes, "blocked" against "gemm": groups, steps, channels last; input gradients."""

import numpy as np
import pytest

import fastconv
from bench.peers.fastconv_plain import window_arguments
from bench.shapes import FORWARD, INPUT_GRAD, WEIGHT_GRAD

LAYERS = (
    "resnext50_32x4d/conv3_3x3_256_28",
    "resnext50_32x4d/conv5_3x3_1024_14_stride2",
    "resnet50/conv4_3x3_256_256_28_stride2",
)
every_layer = pytest.mark.parametrize("layer", LAYERS)
both = pytest.mark.parametrize("algorithm", ["gemm", "blocked"])


@every_layer
@both
def bench_forward_prepared(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, FORWARD)
    operation = fastconv.prepare_conv2d(arrays.weight, algorithm=algorithm, **window_arguments(case.layer))
    benchmark(operation, arrays.input)


@pytest.mark.parametrize("layer", ["resnet50/conv1", "resnet50/conv2_expand_64_256_56"])
@both
def bench_channels_last(benchmark, operands, layer, algorithm):
    """In place, and by "gemm" on copies."""
    case, arrays = operands(layer, FORWARD)
    image = np.ascontiguousarray(np.moveaxis(arrays.input, 1, -1))
    options = {"layout": "NHWC", "algorithm": algorithm, **window_arguments(case.layer)}
    benchmark(fastconv.prepare_conv2d(arrays.weight, **options), image)


@every_layer
@both
def bench_input_grad(benchmark, operands, layer, algorithm):
    case, arrays = operands(layer, INPUT_GRAD)
    shape, gradient = case.layer.input_shape(case.batch), fastconv.conv2d_input_grad
    options = {"algorithm": algorithm, **window_arguments(case.layer)}
    benchmark(gradient, shape, arrays.weight, arrays.grad_output, **options)


@every_layer
def bench_weight_grad(benchmark, operands, layer):
    """The kernel of "shifted"."""
    case, arrays = operands(layer, WEIGHT_GRAD)
    gradient, shape = fastconv.conv2d_weight_grad, case.layer.weight_shape
    options = {"algorithm": "blocked", **window_arguments(case.layer)}
    benchmark(gradient, arrays.input, shape, arrays.grad_output, **options)
