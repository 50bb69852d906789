"""The results files: results/<cpu>-<isa>.json, one record for each case, one for each run.

A case replaces the same case measured earlier; every case names the run that measured it, and a
run holds what was the same for all of its cases: machine, versions, FMA peak, copy bandwidth.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.shapes import Case, Layer, layers_by_name

RESULTS = Path(__file__).with_name("results")
# Above it a result is wrong, not rounded: float32 sums of 10^6 terms stay below 10^-4.
ERROR_LIMIT = 1e-3


@dataclass
class PeerResult:
    """One peer in one case: the shortest call of each round, in seconds.

    `error` is the largest difference from the reference, relative to its largest value; `rms_error` the
    rms difference, relative to its rms.
    """

    rounds: list[float] = field(default_factory=list)
    error: float | None = None
    rms_error: float | None = None
    failure: str = ""

    @property
    def seconds(self) -> float:
        return min(self.rounds)

    @property
    def is_valid(self) -> bool:
        return bool(self.rounds) and not self.problem

    @property
    def problem(self) -> str:
        """Why the timing does not count; empty if it does."""
        if not self.failure and self.error is not None and self.error > ERROR_LIMIT:
            return f"differs by {self.error:.1e}"
        return self.failure


@dataclass
class CaseResult:
    """One record of the file; `run` is the index of the run that measured it."""

    layer: str
    batch: int
    direction: str
    threads: int
    peers: dict[str, PeerResult]
    run: int = 0

    @classmethod
    def of(cls, case: Case, peers: dict[str, PeerResult]) -> CaseResult:
        return cls(*case.key, peers)

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.layer, self.batch, self.direction, self.threads

    @property
    def shape(self) -> Layer:
        return layers_by_name()[self.layer]

    def gflops(self, peer: str) -> float:
        """Rate in GFLOP/s, counting the direct algorithm's operations."""
        return self.shape.flops(self.batch) / self.peers[peer].seconds / 1e9

    def bandwidth(self, peer: str) -> float:
        """Rate in bytes/s, counting input, weights and output once."""
        return self.shape.bytes(self.batch) / self.peers[peer].seconds


@dataclass
class Results:
    """A results file in memory."""

    path: Path
    runs: list[dict] = field(default_factory=list)
    cases: dict[tuple, CaseResult] = field(default_factory=dict)

    def add(self, case: CaseResult) -> None:
        case.run = len(self.runs) - 1
        self.cases[case.key] = case

    def measured_in_last_run(self) -> set[tuple]:
        return {key for key, case in self.cases.items() if case.run == len(self.runs) - 1}

    def run_of(self, case: CaseResult) -> dict:
        return self.runs[case.run]

    def save(self) -> None:
        """Replace the file as a whole, one record a line."""
        self._forget_unused_runs()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        runs = ",\n".join(json.dumps(run) for run in self.runs)
        cases = ",\n".join(json.dumps(compact(self.cases[key])) for key in sorted(self.cases))
        draft = self.path.with_suffix(".part")
        draft.write_text(f'{{"runs": [\n{runs}\n], "cases": [\n{cases}\n]}}\n')
        os.replace(draft, self.path)

    def _forget_unused_runs(self) -> None:
        used = sorted({case.run for case in self.cases.values()} | {len(self.runs) - 1})
        self.runs = [self.runs[index] for index in used]
        for case in self.cases.values():
            case.run = used.index(case.run)


def compact(case: CaseResult) -> dict:
    """The record as written: four digits are more than a timing has."""
    record = asdict(case)
    for result in record["peers"].values():
        result["rounds"] = [float(f"{seconds:.4g}") for seconds in result["rounds"]]
        for name in ("error", "rms_error"):
            if result[name] is not None:
                result[name] = float(f"{result[name]:.2g}")
        if not result["failure"]:
            del result["failure"]
    return record


def load(path: Path) -> Results:
    """The file's content; empty if there is no such file."""
    results = Results(path)
    if path.exists():
        content = json.loads(path.read_text())
        results.runs = content["runs"]
        for record in content["cases"]:
            peers = {name: PeerResult(**result) for name, result in record.pop("peers").items()}
            case = CaseResult(**record, peers=peers)
            results.cases[case.key] = case
    return results
