"""Interleaved timing: long-lived workers, one for each peer, asked in turn, round after round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from time import sleep
from typing import Any

from bench.peers import Peer
from bench.results import CaseResult, PeerResult
from bench.shapes import Case

ANSWER_SECONDS = 120.0
# By default glibc returns large freed blocks to the kernel, so that a call which allocates is timed
# for its page faults: PyTorch took 12 ms for VGG's first layer in place of 2.3. "keep" spares every
# peer that; "system" times what a program that changes nothing sees.
ALLOCATORS = {
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)},
    "system": {},
}
ROOT = Path(__file__).resolve().parent.parent
# A case disturbed from outside goes on until each peer's two best rounds agree, within bounds.
SETTLED, MOST_ROUNDS = 1.03, 3


class PeerError(Exception):
    """The peer raised, crashed or did not answer; the message says which."""


class WorkerProcess:
    """The runner's end of one worker; a crashed worker is started again for the next case."""

    def __init__(self, peer: Peer, settings: dict[str, str]) -> None:
        self.peer = peer
        self.environment = {**os.environ, **settings}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.connection, worker_end = Pipe()
        descriptor = worker_end.fileno()
        command = [sys.executable, "-m", "bench.worker", self.peer.name, str(descriptor)]
        self.process = subprocess.Popen(
            command, env=self.environment, cwd=ROOT, pass_fds=[descriptor], stdin=subprocess.DEVNULL
        )
        worker_end.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        """The worker's answer; raises PeerError."""
        if self.process is None:
            self.start()
        try:
            self.connection.send((command, arguments))
            if not self.connection.poll(ANSWER_SECONDS):
                self.stop()
                raise PeerError(f"no answer to {command} in {ANSWER_SECONDS:.0f} s")
            status, result = self.connection.recv()
        except (EOFError, OSError):
            raise PeerError(f"{command}: {self.how_it_ended()}") from None
        if status == "failed":
            raise PeerError(result)
        return result

    def release(self) -> None:
        """Free the last case's arrays, if the worker still lives."""
        if self.process is not None:
            with suppress(PeerError):
                self.ask("release")

    def how_it_ended(self) -> str:
        code = self.process.wait()
        self.process = None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def stop(self) -> None:
        if self.process is None:
            return
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.process = None


@dataclass
class Runner:
    """The workers of one thread count, for as many cases as wanted; a context manager."""

    peers: list[Peer]
    threads: int
    isa_limit: str  # "" lets every peer choose
    allocator: str
    rounds: int
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Runner:
        self.folder = tempfile.TemporaryDirectory()
        for peer in self.peers:
            worker = WorkerProcess(peer, self._settings(peer))
            try:
                self.versions[peer.name] = worker.ask("version")
                self.workers[peer.name] = worker
            except PeerError as error:
                self.unavailable[peer.name] = str(error)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers.values():
            worker.stop()
        self.folder.cleanup()

    def _settings(self, peer: Peer) -> dict[str, str]:
        """The environment variables of a peer's worker."""
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        threads = dict.fromkeys(variables, str(self.threads))
        return {**threads, **ALLOCATORS[self.allocator], **peer.limits.get(self.isa_limit, {})}

    def run(self, case: Case) -> CaseResult:
        """Prepare every peer, verify each against the first's result in float64, then time them in turn.

        Without that result errors stay unknown: beside a rounded one they would be wrong.
        """
        results: dict[str, PeerResult] = {}
        reference = Path(self.folder.name) / "reference.npy"
        reference.unlink(missing_ok=True)
        for name, worker in self.workers.items():
            # The first that knows the direction makes the reference, or nobody does.
            makes_reference = not any(results.values())
            results[name] = self._prepare(worker, case, reference, makes_reference)
        for done in range(MOST_ROUNDS * self.rounds):
            timed = self._timed(results)
            if done >= self.rounds and all(is_settled(results[name].rounds) for name in timed):
                break
            # Every other round backwards: no peer always follows the same neighbour.
            for name in timed if done % 2 == 0 else reversed(timed):
                self._time(self.workers[name], results[name])
                sleep(self.workers[name].peer.quiet_after)
        for worker in self.workers.values():
            worker.release()
        supported = {name: result for name, result in results.items() if result is not None}
        return CaseResult.of(case, supported)

    def _prepare(
        self, worker: WorkerProcess, case: Case, reference: Path, makes_reference: bool
    ) -> PeerResult | None:
        try:
            if not worker.ask("supports", case.direction):
                return None
            worker.ask("prepare", case)
            if makes_reference:
                worker.ask("save_output", str(reference))
            if not reference.exists():
                return PeerResult()
            error, rms_error = worker.ask("compare_output", str(reference))
            return PeerResult(error=error, rms_error=rms_error)
        except PeerError as error:
            return PeerResult(failure=str(error))

    @staticmethod
    def _timed(results: dict[str, PeerResult | None]) -> list[str]:
        return [name for name, result in results.items() if result and not result.failure]

    @staticmethod
    def _time(worker: WorkerProcess, result: PeerResult) -> None:
        try:
            result.rounds.append(worker.ask("time"))
        except PeerError as error:
            result.failure = str(error)

    def measure_machine(self) -> dict[str, float]:
        """FMA peak and copy bandwidth, by a fastconv worker of its own; raises PeerError.

        Large arrays would leave a timed worker with memory that the others do not have.
        """
        for peer in self.peers:
            if peer.package == "fastconv":
                worker = WorkerProcess(peer, self._settings(peer))
                try:
                    return worker.ask("measure_machine", self.threads)
                finally:
                    worker.stop()
        raise PeerError("fastconv, whose kernel measures it, is not among the peers")


def is_settled(rounds: list[float]) -> bool:
    """Whether the two shortest rounds agree, so that the minimum is not a lucky or lone one."""
    best, *others = sorted(rounds)
    return not others or others[0] <= SETTLED * best
