"""The dense layer: classifier heads of ResNet-50 and VGG-16, one sample and a batch."""

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
