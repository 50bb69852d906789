"""The command line: python -m bench compare | quick | cliffs | report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from bench import cliffs, machine, report, results, tables
from bench.peers import ALL_PEERS, PEERS, Peer
from bench.runner import ALLOCATORS, PeerError, Runner
from bench.shapes import DIRECTIONS, Case
from bench.suites import BOUND_BY_MEMORY, PEERS_OF_SUITE, QUICK_LAYERS, SUITES, WITH_ERRORS, layers_of

ISA_CHOICES = ("native", "baseline", "avx2", "avx512")


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; `compare` goes on from here with --resume", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser("compare", help="time a suite, keep the results, print tables")
    add_case_options(compare, batch=[1, 16], directions=list(DIRECTIONS), rounds=5, layers="")
    compare.add_argument("--resume", action="store_true", help="continue the last run of the file")
    compare.set_defaults(run=run_compare, keep=True)
    quick = commands.add_parser("quick", help="a minute or two on a few layers; keeps nothing")
    add_case_options(quick, batch=[1], directions=list(DIRECTIONS), rounds=3, layers=QUICK_LAYERS)
    quick.set_defaults(run=run_compare, keep=False, resume=False)
    grid = commands.add_parser("cliffs", help="a grid of shapes against PyTorch -> docs/cliffs-<cpu>.png")
    grid.add_argument("--docs", type=Path, default=report.DOCS, help="folder of the picture")
    grid.set_defaults(run=cliffs.run)
    to_docs = commands.add_parser("report", help="results -> docs/performance*.md and pictures")
    to_docs.add_argument("--docs", type=Path, default=report.DOCS, help="folder of these pages")
    to_docs.set_defaults(run=lambda options: report.write(options.docs))
    return parser


def add_case_options(
    parser: argparse.ArgumentParser,
    batch: list[int],
    directions: list[str],
    rounds: int,
    layers: str,
) -> None:
    add, every_core = parser.add_argument, sorted({1, machine.cores()})
    add("--suite", choices=SUITES, default="gemm")
    add("--layers", default=layers, metavar="REGEX", help="only layers whose name matches")
    add("--batch", type=int, nargs="+", default=batch)
    add("--threads", type=int, nargs="+", default=every_core)
    add("--directions", nargs="+", choices=DIRECTIONS, default=directions)
    add("--peers", nargs="+", choices=PEERS, help="by default those of the suite")
    add("--rounds", type=int, default=rounds)
    add("--allocator", choices=ALLOCATORS, default="keep", help="see bench/README.md")
    add("--isa", choices=ISA_CHOICES, default="native", help="cap every peer that can be capped")


def run_compare(options: argparse.Namespace) -> int:
    isa = machine.best_isa() if options.isa == "native" else options.isa
    peers, note = choose_peers(options.peers or default_peers(options.suite), isa)
    found = results.load(results.RESULTS / f"{machine.cpu_slug()}-{isa}.json")
    if not options.keep:
        found = results.Results(found.path)
    done = found.measured_in_last_run() if options.resume else set()
    if not done:
        found.runs.append(new_run(isa, note, options.allocator))
    wanted = list(cases_of(options))
    measure([case for case in wanted if case.key not in done], peers, isa, options, found)
    keys = {case.key for case in wanted}
    print_tables(found, [found.cases[key] for key in found.cases if key in keys], options.suite)
    return 0


def default_peers(suite: str) -> list[str]:
    usual = [peer.name for peer in ALL_PEERS if peer.by_default]
    return list(PEERS_OF_SUITE.get(suite, usual))


def choose_peers(names: list[str], isa: str) -> tuple[list[Peer], str]:
    """The installed peers that can be held to `isa`, and a note on those left out."""
    chosen, left_out = [], []
    for peer in (PEERS[name] for name in PEERS if name in names):
        if not peer.is_installed():
            left_out.append(f"{peer.label} is not installed")
        elif isa != machine.best_isa() and isa not in peer.limits:
            left_out.append(f"{peer.label} cannot be limited to {isa}")
        else:
            chosen.append(peer)
    note = f" ({'; '.join(left_out)})" if left_out else ""
    print(f"instruction set: {isa}{note}", file=sys.stderr)
    return chosen, note


def new_run(isa: str, note: str, allocator: str) -> dict:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {"isa": isa, "note": note, "allocator": allocator, "date": now}
    about["machine"] = machine.describe()
    return {**about, "versions": {}, "machine_rates": {}}


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """Threads outermost: the workers of a thread count live as long as it is measured."""
    layers = layers_of(options.suite, options.layers)
    for threads in options.threads:
        for direction in options.directions:
            for batch in options.batch:
                for layer in layers:
                    if direction in layer.directions:
                        yield Case(layer, batch, direction, threads)


def measure(
    cases: list[Case],
    peers: list[Peer],
    isa: str,
    options: argparse.Namespace,
    found: results.Results,
) -> None:
    """Time the cases, adding each to `found` and saving as it goes."""
    run = found.runs[-1]
    isa_limit = "" if isa == machine.best_isa() else isa
    bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
    bar = tqdm(total=sum(map(weight, cases)), bar_format=bar_format)
    for threads in options.threads:
        here = [case for case in cases if case.threads == threads]
        if not here:
            continue
        with Runner(peers, threads, isa_limit, options.allocator, options.rounds) as runner:
            start_run(runner, run, bar)
            note_machine(runner, run, bar)
            for case in here:
                bar.set_description(f"{case.layer.name} {case.direction} {threads}t b{case.batch}")
                found.add(runner.run(case))
                bar.update(weight(case))
                if options.keep:
                    found.save()
            note_machine(runner, run, bar)
    if options.keep:
        found.save()
    bar.close()


def weight(case: Case) -> float:
    """What share of the remaining time a case takes: a fixed part, and one by its work."""
    return 1 + case.layer.flops(case.batch) / 1e9 / case.threads


def start_run(runner: Runner, run: dict, bar: tqdm) -> None:
    """Note the versions, say which peers do not start; refuse to continue a different run."""
    noted = {**runner.versions, **run["versions"]}
    if run["allocator"] != runner.allocator or not runner.versions.items() <= noted.items():
        raise SystemExit("versions or allocator differ from the run that --resume would continue")
    run["versions"] = noted
    for name, reason in runner.unavailable.items():
        bar.write(f"{name} does not start: {reason}")


def note_machine(runner: Runner, run: dict, bar: tqdm) -> None:
    """FMA peak and bandwidth, the best seen in this run."""
    try:
        measured = runner.measure_machine()
    except PeerError as error:
        bar.write(f"no FMA peak: {error}")
        return
    best = run["machine_rates"].setdefault(str(runner.threads), measured)
    for name, rate in measured.items():
        best[name] = max(best[name], rate)


def print_tables(found: results.Results, cases: list[results.CaseResult], suite: str) -> None:
    first = "bandwidth" if suite in BOUND_BY_MEMORY else "layers"
    more = ("errors",) if suite in WITH_ERRORS else ()
    for view in (first, *more, "summary", "losses", "problems", "machine"):
        print(f"\n{tables.VIEWS[view](found, cases)}")
