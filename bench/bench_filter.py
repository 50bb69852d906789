"""Filters of images with one channel: sizes in place and copied, banks, strides, by filter and its rivals."""

import pytest

import fastconv

every_algorithm = pytest.mark.parametrize("algorithm", ["filter", "depthwise", "gemm"])


@every_algorithm
@pytest.mark.parametrize("kernel", [3, 7, 15])
@pytest.mark.parametrize("size", [512, 2048])
def bench_filter(benchmark, random_array, size, kernel, algorithm):
    x, w = random_array(1, 1, size, size), random_array(1, 1, kernel, kernel)
    benchmark(fastconv.conv2d, x, w, padding=kernel // 2, algorithm=algorithm)


@every_algorithm
@pytest.mark.parametrize("filters", [8, 32, 100])
@pytest.mark.parametrize("kernel", [1, 3, 9, 15])
@pytest.mark.parametrize("stride", [1, 2, 3])
def bench_bank(benchmark, random_array, filters, kernel, stride, algorithm):
    x, w = random_array(1, 1, 48, 48), random_array(filters, 1, kernel, kernel)
    benchmark(fastconv.conv2d, x, w, stride=stride, padding=kernel // 2, algorithm=algorithm)
