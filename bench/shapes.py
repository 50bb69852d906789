"""Layers of convolution and pooling as data: the lines of shapes/*.txt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHAPES = Path(__file__).with_name("shapes")
FLOAT_BYTES = 4
FORWARD, INPUT_GRAD, WEIGHT_GRAD = DIRECTIONS = ("forward", "input_grad", "weight_grad")
POOLS = "pools"  # the network whose layers pool; their names begin with what they do


@dataclass(frozen=True)
class Layer:
    """One layer of convolution or pooling; `height` and `width` are those of its input."""

    network: str
    name: str
    channels: int
    height: int
    width: int
    kernels: int
    kernel_height: int
    kernel_width: int
    stride: int
    padding: int
    dilation: int
    groups: int

    @property
    def full_name(self) -> str:
        return f"{self.network}/{self.name}"

    @property
    def geometry(self) -> tuple[int | str, ...]:
        """Everything but the names: equal for layers that are the same computation."""
        return (self.pooling, *self.input_shape(1), *self.weight_shape, *self.window)

    @property
    def window(self) -> tuple[int, int, int, int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def pooling(self) -> str:
        """max, argmax (maxima and their indices) or avg; empty for convolutions."""
        return self.name.partition("_")[0] if self.network == POOLS else ""

    @property
    def directions(self) -> tuple[str, ...]:
        if self.pooling:
            return (FORWARD,) if self.pooling == "argmax" else (FORWARD, INPUT_GRAD)
        return DIRECTIONS

    @property
    def kind(self) -> str:
        """The family a layer belongs to; suites select by it."""
        if self.pooling:
            return self.pooling
        if self.channels <= 4:
            return "first"
        if self.groups == self.channels:
            return "depthwise"
        if self.groups > 1:
            return "grouped"
        if self.stride > 1:
            return "strided"
        if self.dilation > 1:
            return "dilated"
        return f"{self.kernel_height}x{self.kernel_width}"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        channels_per_group = self.channels // self.groups
        return self.kernels, channels_per_group, self.kernel_height, self.kernel_width

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.channels, self.height, self.width

    def output_shape(self, batch: int) -> tuple[int, int, int, int]:
        height = self._output_size(self.height, self.kernel_height)
        width = self._output_size(self.width, self.kernel_width)
        return batch, self.kernels, height, width

    def _output_size(self, size: int, kernel: int) -> int:
        return (size + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.stride + 1

    def flops(self, batch: int) -> int:
        """Operations of the direct algorithm, the same in every direction; padding counts."""
        _, kernels, height, width = self.output_shape(batch)
        _, channels_per_group, kernel_height, kernel_width = self.weight_shape
        terms = channels_per_group * kernel_height * kernel_width
        return 2 * batch * kernels * height * width * terms

    def bytes(self, batch: int) -> int:
        """Compulsory traffic: input, weights (pools have none) and output, each once, in float32."""
        shapes = [self.input_shape(batch), self.output_shape(batch)]
        if not self.pooling:
            shapes.append(self.weight_shape)
        return FLOAT_BYTES * sum(a * b * c * d for a, b, c, d in shapes)


@dataclass(frozen=True)
class Case:
    """What is timed: one layer in one direction, for one batch size and thread count."""

    layer: Layer
    batch: int
    direction: str
    threads: int

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.layer.full_name, self.batch, self.direction, self.threads


@cache
def load_network(network: str) -> tuple[Layer, ...]:
    """The layers of shapes/<network>.txt, in its order."""
    lines = (SHAPES / f"{network}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return tuple(Layer(network, name, *map(int, numbers)) for name, *numbers in rows)


@cache
def layers_by_name() -> dict[str, Layer]:
    """Every known layer by its full name, such as resnet50/conv1."""
    networks = sorted(path.stem for path in SHAPES.glob("*.txt"))
    return {layer.full_name: layer for network in networks for layer in load_network(network)}
