"""Pooling and its gradients. The yardstick is bench_copy: pooling should cost no more."""

import numpy as np
import pytest

import fastconv

# (input shape, window, stride, padding): ResNet-50's stem, VGG-16's first pool, a 7x7 average.
WINDOWS = {
    "resnet50_stem": ((1, 64, 112, 112), 3, 2, 1),
    "vgg16_first": ((1, 64, 224, 224), 2, 2, 0),
    "global_7x7": ((1, 2048, 7, 7), 7, 7, 0),
}
POOLS = {
    "max": (fastconv.max_pool2d, fastconv.max_pool2d_backward),
    "avg": (fastconv.avg_pool2d, fastconv.avg_pool2d_backward),
}
every_window = pytest.mark.parametrize("window", WINDOWS)


@every_window
def bench_copy(benchmark, random_array, window):
    source = random_array(*WINDOWS[window][0])
    benchmark(np.copyto, np.empty_like(source), source)


@every_window
@pytest.mark.parametrize("pool", POOLS)
def bench_pool_forward(benchmark, random_array, pool, window):
    shape, *arguments = WINDOWS[window]
    benchmark(POOLS[pool][0], random_array(*shape), *arguments)


@every_window
@pytest.mark.parametrize("pool", POOLS)
def bench_pool_backward(benchmark, random_array, pool, window):
    shape, *arguments = WINDOWS[window]
    forward, backward = POOLS[pool]
    x = random_array(*shape)
    grad_output = random_array(*forward(x, *arguments).shape)
    benchmark(backward, grad_output, x, *arguments)
