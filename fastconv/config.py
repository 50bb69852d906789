"""What this installation is and how it runs here: for bug reports, and to see what holds."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

from fastconv import engine, winograd
from fastconv.threads import (
    _affinity,
    _cgroup_quota,
    _default,
    _environment,
    _State,
    get_num_threads,
)

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_PREFIXES = ("FASTCONV_", "OMP_", "GOMP_", "KMP_")


def _versions() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " without GIL"
    return f"{python}{gil}, NumPy {np.__version__}, {platform.system()} {platform.machine()}"


def _engines() -> str:
    built, loadable = engine.built(), engine.loadable()
    idle = [isa for isa in built if isa not in loadable]
    text = f"{engine.active_isa()} in use; loadable: {', '.join(loadable)}"
    return text + (f"; built, but not for this CPU: {', '.join(idle)}" if idle else "")


def _features() -> str:
    return ", ".join(sorted(engine.cpu_features())) or "baseline only"


def _caches() -> str:
    """Caches of the first CPU, as Linux tells them."""
    found = []
    for index in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found.append(f"L{level}{suffix} {size.replace('K', ' KiB').replace('M', ' MiB')}")
    return ", ".join(found) or "unknown"


def _thread_source() -> str:
    """Which of the rules of fastconv.threads the present count comes from."""
    if _State.forked:
        return "after fork(), one thread"
    if get_num_threads() != _State.count:
        return "fastconv.threads(n)"
    if _State.count != _default():
        return "fastconv.set_num_threads"
    if _environment("FASTCONV_NUM_THREADS") is not None:
        return "FASTCONV_NUM_THREADS"
    limits = {
        "CPUs this process may run on": _affinity(),
        "the CPU quota of the cgroup": _cgroup_quota(),
        "OMP_NUM_THREADS": _environment("OMP_NUM_THREADS"),
    }
    return next(name for name, limit in limits.items() if limit == _State.count)


def _openmp() -> str:
    asked = getattr(engine.load(np.float32).machine, "openmp", None)
    if asked is None:
        return "unknown"
    version = asked()
    return f"yes, {version // 100}-{version % 100:02}" if version else "no: one thread"


def _environment_variables() -> str:
    names = sorted(name for name in os.environ if name.startswith(_PREFIXES))
    return ", ".join(f"{name}={os.environ[name]}" for name in names) or "none"


def show_config(file: TextIO | None = None) -> None:
    """Print versions, engines, CPU, caches, threads, and the environment variables in force.

    Parameters
    ----------
    file : text file, optional
        Where to print; standard output by default.

    Raises
    ------
    ImportError
        If no compiled kernels are found.
    RuntimeError
        If FASTCONV_ISA names no engine that runs here.

    Examples
    --------
    >>> from fastconv.config import show_config
    >>> show_config()  # doctest: +ELLIPSIS
    fastconv ...
    """
    # The package itself stands above this module, and is imported before it.
    version = getattr(sys.modules["fastconv"], "__version__", "unknown")
    facts = {
        "versions": _versions(),
        "engine": _engines(),
        "CPU features": _features(),
        "caches": _caches(),
        "threads": f"{get_num_threads()} ({_thread_source()})",
        "OpenMP": _openmp(),
        "Winograd": "on" if winograd.is_on() else "off",
        "environment": _environment_variables(),
    }
    print(f"fastconv {version}", file=file)
    for name, fact in facts.items():
        print(f"  {name + ':':14} {fact}", file=file)
