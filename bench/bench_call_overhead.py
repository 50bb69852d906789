"""What a call costs beside its arithmetic: conv2d on 8x8 pixels against an empty function."""

import fastconv


def empty(x, weight):
    pass


def bench_empty_function(benchmark, random_array):
    benchmark(empty, random_array(1, 1, 8, 8), random_array(1, 1, 3, 3))


def bench_conv2d(benchmark, random_array):
    benchmark(fastconv.conv2d, random_array(1, 1, 8, 8), random_array(1, 1, 3, 3))


def bench_conv2d_into(benchmark, random_array):
    x, weight, output = (random_array(1, 1, size, size) for size in (8, 3, 6))
    benchmark(fastconv.conv2d, x, weight, out=output)


def bench_prepared(benchmark, random_array):
    operation = fastconv.prepare_conv2d(random_array(1, 1, 3, 3))
    benchmark(operation, random_array(1, 1, 8, 8))
