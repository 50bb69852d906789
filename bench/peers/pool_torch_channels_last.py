"""PyTorch's pools with all operands already in channels_last, the format they are fastest in."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.peers import pool_torch_nchw
from bench.peers.arrays import Arrays
from bench.peers.pool_torch_nchw import supports, version
from bench.shapes import Case

__all__ = ["prepare", "supports", "version"]


def prepare(case: Case, arrays: Arrays) -> Callable[[], torch.Tensor]:
    return pool_torch_nchw.prepare(case, arrays, memory_format=torch.channels_last)
