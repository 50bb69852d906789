"""Pooling and its gradients. The yardstick is bench_copy: pooling should cost no more."""

import numpy as np
import pytest

import fastconv

# (input shape, window, stride, padding)
WINDOWS = {
    "resnet50_stem": ((1, 64, 112, 112), 3, 2, 1),
    "resnet50_stem_batch16": ((16, 64, 112, 112), 3, 2, 1),
    "vgg16_first": ((1, 64, 224, 224), 2, 2, 0),
    "inception_3x3_stride1": ((1, 64, 56, 56), 3, 1, 1),
    "spp_5x5": ((1, 256, 20, 20), 5, 1, 2),
    "spp_13x13": ((1, 256, 20, 20), 13, 1, 6),
    "squeezenet_13": ((1, 512, 13, 13), 3, 2, 0),
    "global_7x7": ((1, 2048, 7, 7), 7, 7, 0),
}
POOLS = {"max": fastconv.max_pool2d, "avg": fastconv.avg_pool2d}
every_window = pytest.mark.parametrize("window", WINDOWS)


@every_window
def bench_copy(benchmark, random_array, window):
    source = random_array(*WINDOWS[window][0])
    benchmark(np.copyto, np.empty_like(source), source)


@every_window
@pytest.mark.parametrize("pool", POOLS)
def bench_pool_forward(benchmark, random_array, pool, window):
    shape, *arguments = WINDOWS[window]
    benchmark(POOLS[pool], random_array(*shape), *arguments)


@every_window
@pytest.mark.parametrize("form", ["window", True], ids=["window", "flat"])
def bench_max_pool_with_indices(benchmark, random_array, window, form):
    shape, *arguments = WINDOWS[window]
    x = random_array(*shape)
    benchmark(fastconv.max_pool2d, x, *arguments, return_indices=form)


@every_window
@pytest.mark.parametrize("form", ["window", True, None], ids=["window", "flat", "recomputed"])
def bench_max_pool_backward(benchmark, random_array, window, form):
    shape, *arguments = WINDOWS[window]
    x = random_array(*shape)
    y, indices = fastconv.max_pool2d(x, *arguments, return_indices=form or True)
    grad_output = random_array(*y.shape)
    if form is None:
        indices = None
    benchmark(fastconv.max_pool2d_backward, grad_output, x, *arguments, indices=indices)


@every_window
def bench_avg_pool_backward(benchmark, random_array, window):
    shape, *arguments = WINDOWS[window]
    grad_output = random_array(*fastconv.avg_pool2d(random_array(*shape), *arguments).shape)
    benchmark(fastconv.avg_pool2d_backward, grad_output, shape, *arguments)


def bench_max_pool_call_overhead(benchmark):
    benchmark(fastconv.max_pool2d, np.zeros((1, 1, 4, 4), np.float32), 2)
