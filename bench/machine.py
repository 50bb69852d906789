"""The CPU: its name, cores, caches and instruction set, its FMA peak and its copy bandwidth."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

COPY_BYTES = 256 << 20  # source and destination together exceed every cache in use today
FMA_ITERATIONS = 2_000_000
BEST_OF = 7


def measure(threads: int) -> dict[str, float]:
    """FMA peak in flop/s (float32) and copy bandwidth in bytes/s, read and written both counted.

    The one place that knows the package's two measuring kernels:
    fma_peak(threads, iterations) -> floating point operations done; copy(threads, dst, src).
    """
    from fastconv import engine

    kernels = engine.load(np.float32).machine
    source = np.ones(COPY_BYTES // 4, np.float32)
    destination = np.zeros_like(source)

    def fma() -> float:
        return float(kernels.fma_peak(threads, FMA_ITERATIONS))

    def copy() -> float:
        kernels.copy(threads, destination, source)
        return 2.0 * source.nbytes

    return {"fma_peak": best_rate(fma), "copy_bandwidth": best_rate(copy)}


def best_rate(work: Callable[[], float]) -> float:
    """The highest amount of work a second, of several runs; `work` returns the amount it did."""
    work()
    rates = []
    for _ in range(BEST_OF):
        start = perf_counter()
        amount = work()
        rates.append(amount / (perf_counter() - start))
    return max(rates)


def describe() -> dict[str, object]:
    """What identifies the machine in a results file."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "caches": caches(),
        "isa": best_isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The CPU's marketing name; family, model and stepping too, since virtual ones hide it."""
    fields = cpu_fields()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    numbers = "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields['model name']} ({numbers})"


def cpu_slug() -> str:
    """The CPU's name as it stands in file names."""
    name = re.sub(r"\((R|TM|r|tm)\)|CPU|@.*?GHz", "", cpu_name())
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def best_isa() -> str:
    """The widest engine's name that this CPU runs."""
    flags = set(cpu_fields().get("flags", "").split())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        return "avx512"
    if {"avx2", "fma"} <= flags:
        return "avx2"
    return "neon" if platform.machine() in ("aarch64", "arm64") else "baseline"


def cpu_fields() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def caches() -> dict[str, str]:
    """Size of each cache that the first core sees, such as {"L1d": "48K", "L2": "2048K"}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / f).read_text().strip() for f in ("level", "type", "size"))
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found[f"L{level}{suffix}"] = size
    return found
