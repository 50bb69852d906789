"""What peers that filter images of one channel share: which cases they take, and batches as a loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.peers.arrays import Arrays
from bench.shapes import FORWARD, Case


def supports(direction: str) -> bool:
    return direction == FORWARD


def filtering(
    case: Case, arrays: Arrays, apply: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Callable[[], np.ndarray]:
    """A call that applies `apply(image, kernel)` to each image; its output is as large as the image."""
    layer = case.layer
    _, _, *kernel = layer.weight_shape
    centred = all(size == 2 * layer.padding + 1 for size in kernel)
    if layer.channels != 1 or layer.kernels != 1 or layer.stride != 1 or layer.dilation != 1 or not centred:
        raise ValueError("only filters of one channel whose output is as large as the image")
    images, weight = arrays.input[:, 0], arrays.weight[0, 0]
    if len(images) == 1:
        return lambda: apply(images[0], weight)[None, None]
    return lambda: np.stack([apply(image, weight) for image in images])[:, None]


def at_most(taps: int, case: Case, name: str) -> None:
    """Refuses filters that would take minutes."""
    if case.layer.kernel_height > taps:
        raise ValueError(f"{name} takes seconds beyond {taps}x{taps} taps: not measured")
