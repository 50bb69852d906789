"""fastconv.signal: image filters by either method, signals, volumes, and what a small call costs."""

import numpy as np
import pytest

from fastconv import signal

every_method = pytest.mark.parametrize("method", ["direct", "fft"])


@every_method
@pytest.mark.parametrize("size", [3, 7, 15, 21, 31])
def bench_filter(benchmark, random_array, size, method):
    image, kernel = random_array(1024, 1024), random_array(size, size)
    benchmark(signal.correlate2d, image, kernel, "same", method=method)


@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
def bench_boundary(benchmark, random_array, boundary):
    benchmark(signal.correlate2d, random_array(1024, 1024), random_array(7, 7), "same", boundary)


@every_method
@pytest.mark.parametrize("taps", [30, 100, 300])
def bench_signal(benchmark, random_array, taps, method):
    benchmark(signal.correlate, random_array(10**6), random_array(taps), "same", method)


@every_method
@pytest.mark.parametrize("size", [3, 7])
def bench_volume(benchmark, random_array, size, method):
    benchmark(signal.correlate, random_array(64, 64, 64), random_array(size, size, size), "same", method)


def bench_bytes(benchmark, random_array):
    image = (255 * random_array(1024, 1024)).astype(np.uint8)
    benchmark(signal.correlate2d, image, np.ones((7, 7), np.uint8), "same")


def bench_small_call(benchmark, random_array):
    benchmark(signal.correlate2d, random_array(8, 8), random_array(3, 3), "same")
