"""The process of one peer: it prepares, verifies and times cases as the runner asks.

Started as `python -m bench.worker PEER FILE_DESCRIPTOR`. A request is (command, arguments); the
answer is ("done", result) or ("failed", message). Only the peer's own library is loaded here.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np

from bench import machine
from bench.peers.arrays import make_arrays
from bench.shapes import Case

MINIMUM_SECONDS, MINIMUM_CALLS = 0.02, 3
WARM_UP_CALLS = 2


class Worker:
    """The commands; each public method is one."""

    def __init__(self, peer: str) -> None:
        self.adapter = importlib.import_module(f"bench.peers.{peer}")
        self.call: Callable[[], Any] | None = None
        self.case: Case | None = None

    def version(self) -> str:
        return self.adapter.version()

    def supports(self, direction: str) -> bool:
        return self.adapter.supports(direction)

    def prepare(self, case: Case) -> None:
        """Make the case's callable and warm it up."""
        self.call, self.case = None, case
        self.call = self.adapter.prepare(case, make_arrays(case))
        for _ in range(WARM_UP_CALLS):
            self.call()

    def save_output(self, path: str) -> None:
        """In float64 if the peer knows how; its own output else."""
        if hasattr(self.adapter, "exact"):
            np.save(path, self.adapter.exact(self.case, make_arrays(self.case)))
        else:
            np.save(path, np.asarray(self.call()))

    def compare_output(self, path: str) -> tuple[float, float]:
        """The largest difference from the output saved at `path`, and the rms one, relative to its values."""
        expected, output = np.load(path, mmap_mode="r"), np.asarray(self.call())
        if output.shape != expected.shape:
            raise ValueError(f"output shape {output.shape}, expected {expected.shape}")
        largest = squares = 0.0
        for a, b in zip(output, expected, strict=True):
            difference = np.abs(a - b)
            largest = max(largest, float(difference.max()))
            squares += float(np.square(difference, dtype=np.float64).sum())
        if not np.isfinite(squares):
            raise ValueError("output is not finite")
        tiny = np.finfo(np.float32).tiny
        norm = float(np.linalg.norm(np.asarray(expected, np.float64)))
        return largest / max(float(np.abs(expected).max()), tiny), np.sqrt(squares) / max(norm, tiny)

    def time(self) -> float:
        """The shortest of many calls, in seconds."""
        call, shortest, calls = self.call, float("inf"), 0
        begin = perf_counter()
        while calls < MINIMUM_CALLS or perf_counter() - begin < MINIMUM_SECONDS:
            start = perf_counter()
            call()
            shortest = min(shortest, perf_counter() - start)
            calls += 1
        return shortest

    def release(self) -> None:
        """Free the case's arrays."""
        self.call = None
        gc.collect()

    def measure_machine(self, threads: int) -> dict[str, float]:
        return machine.measure(threads)


def serve(worker: Worker, connection: Connection) -> None:
    """Answer until the runner closes the connection."""
    gc.disable()
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", getattr(worker, command)(*arguments)))
        except Exception as error:  # whatever a peer raises is its result
            connection.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    peer_name, file_descriptor = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        serve(Worker(peer_name), Connection(int(file_descriptor)))
