"""Which compiled engine runs: one for each instruction set and scalar type.

The CPU is asked once; the widest engine that it can run and that was built is chosen.
FASTCONV_ISA=baseline|avx2|avx512 (or wide, in builds that have it) forces one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

# Engine -> the CPU features it needs, best first. setup.py holds the compiler flags of each.
ENGINES: dict[str, frozenset[str]] = {
    "avx512": frozenset({"avx2", "avx512"}),
    "avx2": frozenset({"avx2"}),
    "baseline": frozenset(),
    "wide": frozenset({"avx2"}),
}
DTYPES: dict[np.dtype[Any], str] = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}

_PACKAGE = "fastconv._engines"
_FOLDER = Path(__file__).with_name("_engines")


class Engine:
    """The kernel modules of one (isa, dtype), imported when first used.

    Parameters
    ----------
    isa : str
        A key of `ENGINES`.
    dtype : numpy.dtype
        float32 or float64, in native byte order.
    """

    def __init__(self, isa: str, dtype: np.dtype[Any]) -> None:
        self.isa = isa
        self.dtype = dtype
        self._package = f"{_PACKAGE}.{isa}_{DTYPES[dtype]}"

    def __getattr__(self, kernel: str) -> ModuleType:
        if kernel.startswith("__"):
            raise AttributeError(kernel)
        module = importlib.import_module(f"{self._package}.{kernel}")
        setattr(self, kernel, module)
        return module

    def __repr__(self) -> str:
        return f"Engine(isa={self.isa!r}, dtype={self.dtype.name!r})"


def built() -> tuple[str, ...]:
    """Engines that this installation holds, best first."""
    return tuple(isa for isa in ENGINES if (_FOLDER / f"{isa}_f32").is_dir())


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the CPU can run, asked through the humblest engine at hand."""
    if not built():
        raise ImportError(
            "fastconv: no compiled kernels found. Install it (pip install .), or in a checkout "
            "build them in place: pip install -e ."
        )
    humblest = min(built(), key=lambda isa: len(ENGINES[isa]))
    return Engine(humblest, np.dtype(np.float32)).machine.cpu_features()  # type: ignore[no-any-return]


def loadable() -> tuple[str, ...]:
    """Engines that are built and that this CPU can run, best first."""
    features = cpu_features()
    return tuple(isa for isa in built() if ENGINES[isa] <= features)


@functools.cache
def _default_isa() -> str:
    """FASTCONV_ISA where it is set, else the best loadable engine."""
    wanted = os.environ.get("FASTCONV_ISA")
    if wanted is None:
        return loadable()[0]
    if wanted not in loadable():
        raise RuntimeError(
            f"FASTCONV_ISA={wanted!r}: expected one of {list(loadable())}, the engines that are "
            "built here and that this CPU can run"
        )
    return wanted


class _State:
    forced: str | None = None
    caches: ClassVar[list[Callable[[], None]]] = []


def active_isa() -> str:
    """The engine in use."""
    return _State.forced or _default_isa()


def forget_on_change(clear: Callable[[], None]) -> None:
    """Registers what empties a cache of bound kernels; called whenever the engine in use changes."""
    _State.caches.append(clear)


def forget() -> None:
    """Empties every cache of bound kernels."""
    for clear in _State.caches:
        clear()


@contextlib.contextmanager
def forced(isa: str) -> Iterator[None]:
    """Uses one of `loadable()` engines within a `with` block, for the whole process: for tests."""
    if isa not in loadable():
        raise ValueError(f"isa: expected one of {loadable()}, got {isa!r}")
    before, _State.forced = _State.forced, isa
    try:
        forget()
        yield
    finally:
        _State.forced = before
        forget()


def load(dtype: Any, isa: str | None = None) -> Engine:
    """The engine for a scalar type.

    Parameters
    ----------
    dtype : numpy.dtype or str
        float32 or float64.
    isa : str, optional
        One of `loadable()`; the active one unless given.
    """
    return _load(np.dtype(dtype), isa or active_isa())


@functools.cache
def _load(dtype: np.dtype[Any], isa: str) -> Engine:
    return Engine(isa, dtype)
