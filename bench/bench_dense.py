"""The dense layer: classifier heads of ResNet-50 and VGG-16, one sample and a batch."""

import numpy as np
import pytest

import fastconv

HEADS = {"resnet50": (2048, 1000), "vgg16_middle": (4096, 4096)}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("head", HEADS)
def bench_linear(benchmark, random_array, head, batch):
    features_in, features_out = HEADS[head]
    x, weight = random_array(batch, features_in), random_array(features_out, features_in)
    benchmark(fastconv.linear, x, weight, random_array(features_out))


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("head", HEADS)
def bench_linear_backward(benchmark, random_array, head, batch):
    features_in, features_out = HEADS[head]
    x, weight = random_array(batch, features_in), random_array(features_out, features_in)
    benchmark(fastconv.linear_backward, random_array(batch, features_out), x, weight)


def bench_relu(benchmark, random_array):
    benchmark(fastconv.relu, random_array(16, 64, 56, 56))


def bench_relu_backward(benchmark, random_array):
    shape = (16, 64, 56, 56)
    benchmark(fastconv.relu_backward, random_array(*shape), random_array(*shape))


def bench_softmax(benchmark, random_array):
    benchmark(fastconv.softmax, random_array(256, 1000))


def bench_softmax_backward(benchmark, random_array):
    output = fastconv.softmax(random_array(256, 1000))
    benchmark(fastconv.softmax_backward, random_array(256, 1000), output)


@pytest.mark.parametrize("function", [fastconv.cross_entropy, fastconv.cross_entropy_backward])
def bench_cross_entropy(benchmark, random_array, function):
    benchmark(function, random_array(256, 1000), np.arange(256) % 1000)
