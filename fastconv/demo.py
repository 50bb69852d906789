"""`python -m fastconv demo`: trains a small CNN on handwritten digits and shows what it learned.

    images (N, 1, 8, 8)
      -> conv 3x3, 32 filters, ReLU -> max pool 2x2 -> (N, 32, 4, 4)
      -> conv 3x3, 64 filters, ReLU -> max pool 2x2 -> (N, 64, 2, 2)
      -> dense -> 10 scores -> softmax, cross-entropy

Read it from the top: the network and its gradients, the optimiser, the training loop, a gradient
check of the result, a comparison with textbook NumPy, a picture. Every operation is fastconv's.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import Array
from fastconv.conv import conv2d, conv2d_backward, plan_conv2d
from fastconv.dense import (
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    relu_backward,
    softmax,
)
from fastconv.pool import max_pool2d, max_pool2d_backward
from fastconv.testing import GradcheckResult, gradcheck
from fastconv.threads import get_num_threads

Parameters = dict[str, Array]

SHAPES = {
    "conv1.weight": (32, 1, 3, 3), "conv1.bias": (32,),
    "conv2.weight": (64, 32, 3, 3), "conv2.bias": (64,),
    "dense.weight": (10, 64 * 2 * 2), "dense.bias": (10,),
}  # fmt: skip
EPOCHS, BATCH, LEARNING_RATE = 40, 32, 3e-3


class Network:
    """The CNN: `forward` remembers what `backward` needs."""

    pooled1: Array
    best1: Array  # where each maximum was, likewise below
    best2: Array

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    @classmethod
    def initialised(cls, rng: np.random.Generator) -> Network:
        """He's initialisation: variance 2 / fan-in keeps the scale of activations behind ReLUs."""
        parameters = {}
        for name, shape in SHAPES.items():
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])) if name.endswith("weight") else 0)
            parameters[name] = scale * rng.standard_normal(shape, np.float32)
        return cls(parameters)

    def forward(self, images: Array, algorithm: str = "auto") -> Array:
        """Images (N, 1, 8, 8) to scores (N, 10)."""
        p, self.images = self.parameters, images
        layer: dict[str, Any] = {"padding": 1, "activation": "relu", "algorithm": algorithm}
        self.maps1 = conv2d(images, p["conv1.weight"], p["conv1.bias"], **layer)
        self.pooled1, self.best1 = max_pool2d(self.maps1, 2, return_indices=True)
        self.maps2 = conv2d(self.pooled1, p["conv2.weight"], p["conv2.bias"], **layer)
        pooled2, self.best2 = max_pool2d(self.maps2, 2, return_indices=True)
        self.features = pooled2.reshape(len(images), -1)
        return linear(self.features, p["dense.weight"], p["dense.bias"])

    def backward(self, grad_scores: Array) -> Parameters:
        """Gradient of each parameter, from that of the scores: `forward` read from its end."""
        p = self.parameters
        dense = linear_backward(grad_scores, self.features, p["dense.weight"])
        grad = dense.input.reshape(self.best2.shape)
        grad = max_pool2d_backward(grad, self.maps2, 2, indices=self.best2)
        grad = relu_backward(grad, self.maps2)
        conv2 = conv2d_backward(grad, self.pooled1, p["conv2.weight"], padding=1)
        grad = max_pool2d_backward(conv2.input, self.maps1, 2, indices=self.best1)
        grad = relu_backward(grad, self.maps1)
        conv1 = conv2d_backward(grad, self.images, p["conv1.weight"], padding=1)
        grads = (conv1.weight, conv1.bias, conv2.weight, conv2.bias, dense.weight, dense.bias)
        return dict(zip(SHAPES, grads, strict=True))  # type: ignore[arg-type]


class Adam:
    """Steps along the mean gradient over the root of its mean square (Kingma and Ba, 2015)."""

    def __init__(self, parameters: Parameters, decay: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.mean = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.square = {name: np.zeros_like(value) for name, value in parameters.items()}

    def step(self, grads: Parameters, rate: float) -> None:
        self.steps += 1
        b1, b2 = self.decay
        for name, grad in grads.items():
            self.mean[name] += (1 - b1) * (grad - self.mean[name])
            self.square[name] += (1 - b2) * (grad * grad - self.square[name])
            mean = self.mean[name] / (1 - b1**self.steps)
            root = np.sqrt(self.square[name] / (1 - b2**self.steps))
            self.parameters[name] -= rate * mean / (root + 1e-8)


class Digits(NamedTuple):
    """Images (N, 1, 8, 8), float32 in [0, 1], and their labels: four fifths and one fifth."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        needed = f"fastconv: the demo needs {name.partition('.')[0]}"
        raise SystemExit(f'{needed}: pip install "fastconv[demo]"') from None


def load_digits(seed: int) -> Digits:
    """The 1,797 digits that scikit-learn ships, split so that each class keeps its share."""
    images, labels = _extra("sklearn.datasets").load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    split = _extra("sklearn.model_selection").train_test_split
    train, test, train_labels, test_labels = split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    return Digits(train, train_labels, test, test_labels)


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to one pixel each way: where a digit stands says nothing."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = zip(padded, rng.integers(0, 3, (len(images), 2)), strict=True)
    return np.stack([image[:, r : r + 8, c : c + 8] for image, (r, c) in moves])


def train(
    digits: Digits, epochs: int, seed: int, watch: Callable[[float], None] | None = None
) -> tuple[Network, list[float]]:
    """Returns a trained network and its mean loss in each epoch; `watch` sees them as they come."""
    rng = np.random.default_rng(seed)
    network = Network.initialised(rng)
    optimiser = Adam(network.parameters)
    history = []
    for epoch in range(epochs):
        rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        order, losses = rng.permutation(len(digits.train_images)), []
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            labels = digits.train_labels[chosen]
            scores = network.forward(shifted(digits.train_images[chosen], rng))
            losses.append(float(cross_entropy(scores, labels)))
            optimiser.step(network.backward(cross_entropy_backward(scores, labels)), rate)
        history.append(float(np.mean(losses)))
        if watch:
            watch(history[-1])
    return network, history


def accuracy(network: Network, images: Array, labels: Array) -> float:
    """Share of images whose largest score is at their label."""
    return float((network.forward(images).argmax(axis=1) == labels).mean())


def check_gradients(network: Network, images: Array, labels: Array) -> GradcheckResult:
    """The loss of the whole network, differentiated by each parameter, against differences."""
    doubles = images.astype(np.float64)
    point = [value.astype(np.float64) for value in network.parameters.values()]

    def network_at(values: tuple[Array, ...]) -> Network:
        return Network(dict(zip(SHAPES, values, strict=True)))

    def loss(*values: Array) -> Any:
        return cross_entropy(network_at(values).forward(doubles), labels)

    def gradients(grad_output: Array, *values: Array) -> tuple[Array, ...]:
        copy = network_at(values)
        scores = copy.forward(doubles)
        grad = cross_entropy_backward(scores, labels, grad_output=grad_output)
        return tuple(copy.backward(grad).values())

    return gradcheck(
        loss, point, gradients, grad_output=np.array(1.0), names=list(SHAPES),
        max_elements=40, raise_exception=False,
    )  # fmt: skip


def textbook_forward(parameters: Parameters, images: Array) -> Array:
    """The same network as textbooks write it in NumPy: im2col, matmul, and a maximum by reshape."""
    maps = images
    for layer in ("conv1", "conv2"):
        weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
        padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        n, c, h, w = windows.shape[:4]
        columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)
        product = columns @ weight.reshape(len(weight), -1).T + bias
        maps = np.maximum(product, 0).reshape(n, h, w, -1).transpose(0, 3, 1, 2)
        maps = maps.reshape(n, -1, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    scores: Array = maps.reshape(len(images), -1) @ parameters["dense.weight"].T
    return scores + parameters["dense.bias"]


def best_time(call: Callable[[], object], seconds: float = 0.5) -> float:
    """The fastest of as many calls as fit into `seconds`, at least three."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(network: Network, images: Array) -> list[tuple[str, float, float]]:
    """(implementation, seconds an image, largest difference of a score) over one batch."""
    scores = network.forward(images)
    rivals: dict[str, Callable[[], Array]] = {
        "fastconv": lambda: network.forward(images),
        'fastconv, algorithm="im2col"': lambda: network.forward(images, "im2col"),
        "textbook NumPy: im2col, matmul": lambda: textbook_forward(network.parameters, images),
    }
    return [
        (name, best_time(call) / len(images), float(abs(call() - scores).max()))
        for name, call in rivals.items()
    ]


def draw(network: Network, digits: Digits, path: Path) -> None:
    """The first layer's filters beside test digits, the least sure first, with predictions."""
    figure = _extra("matplotlib.figure").Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    left.suptitle("What the first layer learned: 32 filters")
    filters = network.parameters["conv1.weight"][:, 0]
    limit = float(abs(filters).max())
    for axes, kernel in zip((grid := left.subplots(8, 4)).flat, filters, strict=True):
        shown = axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.axis("off")
    left.colorbar(shown, ax=grid, shrink=0.7, aspect=40, label="weight")

    right.suptitle("Held-out digits: the 14 least sure, then 14 of the rest; errors in red")
    confidence = softmax(network.forward(digits.test_images))
    order = np.argsort(confidence.max(axis=1), kind="stable")
    picked = [*order[:14], *order[np.linspace(14, len(order) - 1, 14).astype(int)]]
    for axes, index in zip(right.subplots(4, 7).flat, picked, strict=True):
        guess, label = int(confidence[index].argmax()), int(digits.test_labels[index])
        colour, remark = ("black", "") if guess == label else ("crimson", f", is {label}")
        title = f"{guess} ({confidence[index, guess]:.0%}){remark}"
        axes.imshow(digits.test_images[index, 0], cmap="gray_r")
        axes.set_title(title, fontsize=9, color=colour)
        axes.axis("off")
    figure.savefig(path, dpi=130)


def run(epochs: int = EPOCHS, seed: int = 0, output: str = "fastconv-demo.png") -> float:
    """The whole demo; returns the accuracy on the held-out digits."""
    progress, digits, _ = _extra("tqdm").tqdm, load_digits(seed), _extra("matplotlib")
    print(f"{len(digits.train_labels)} digits to learn from, {len(digits.test_labels)} held out")
    start = time.perf_counter()
    with progress(total=epochs, unit="epoch", desc="training") as bar:

        def watch(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        network, _ = train(digits, epochs, seed, watch)
    took = time.perf_counter() - start
    share = accuracy(network, digits.test_images, digits.test_labels)
    print(f"accuracy on held-out digits: {share:.2%} after {took:.1f} s of training")
    report_plans()
    report_times(network, digits.test_images)
    report_gradients(network, digits)
    draw(network, digits, Path(output))
    print(f"\npicture: {output}")
    return share


def report_plans() -> None:
    print(f"\nhow fastconv convolves a batch of {BATCH}")
    for layer, size in (("conv1", 8), ("conv2", 4)):
        shape = SHAPES[f"{layer}.weight"]
        for direction in ("forward", "input_grad", "weight_grad"):
            plan = plan_conv2d((BATCH, shape[1], size, size), shape, padding=1, direction=direction)
            print(f"  {layer} {direction:12}{plan.algorithm}: {plan.reason}")


def report_times(network: Network, images: Array) -> None:
    where = f"batch of {len(images)}, {get_num_threads()} threads (NumPy's matmul: its own)"
    print(f"\ntime per image, forward, {where}")
    timings = compare(network, images)
    for name, per_image, difference in timings:
        ratio = per_image / timings[0][1]
        print(f"  {name:32}{per_image * 1e6:8.2f} us{ratio:7.2f}x   scores within {difference:.0e}")


def report_gradients(network: Network, digits: Digits) -> None:
    print("\ngradients of the loss of 4 digits against finite differences, float64")
    result = check_gradients(network, digits.test_images[:4], digits.test_labels[:4])
    for name, error in zip(SHAPES, result.max_errors, strict=True):
        print(f"  {name:14} largest error {error:.0e}")
    print("  all right" if result else "\n".join(result.failures))
