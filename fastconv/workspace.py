"""Scratch memory for the kernels: one buffer a calling thread, kept between calls and bounded."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

# A buffer up to this size stays with its thread, so that small layers pay no page faults; a larger one
# is returned after the call.
KEPT_BYTES = 8 << 20


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.buffer = np.empty(0, np.uint8)


_buffers = _Buffers()


def scratch(size: int) -> np.ndarray[Any, Any]:
    """At least `size` bytes of this thread's scratch memory, with whatever the last kernel left in it."""
    buffer = _buffers.buffer
    if buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            _buffers.buffer = buffer
    return buffer
