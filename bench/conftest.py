"""pytest-benchmark on fastconv alone: `pytest bench`. Operands and shapes that the files share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench.peers.arrays import Arrays, make_arrays
from bench.shapes import Case, layers_by_name

BATCH = 1


@pytest.fixture
def random_array() -> Callable[..., np.ndarray]:
    """random_array(*shape): float32 in [0, 1), the same every time."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.random(shape, dtype=np.float32)


@pytest.fixture
def operands() -> Callable[[str, str], tuple[Case, Arrays]]:
    """operands(layer, direction): the case of a layer named in shapes/, and its arrays."""

    def make(layer: str, direction: str) -> tuple[Case, Arrays]:
        case = Case(layers_by_name()[layer], BATCH, direction, threads=1)
        return case, make_arrays(case)

    return make
