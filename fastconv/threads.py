"""How many threads the kernels use.

The default is the smallest of: CPUs this process may run on, the cgroup's CPU quota, and
OMP_NUM_THREADS; FASTCONV_NUM_THREADS overrides it. After fork() a child runs on one thread: the
OpenMP pool of the parent does not survive in it, and entering a parallel region there would hang.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_CGROUP_V2_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")

MOST = 1024

_scoped: ContextVar[int | None] = ContextVar("fastconv_threads", default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota() -> int | None:
    """CPUs that the cgroup grants, rounded up, or None without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if _CGROUP_V2_QUOTA.exists():
            quota, period = _CGROUP_V2_QUOTA.read_text().split()
        else:
            quota = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            return max(1, math.ceil(int(quota) / int(period)))
    return None


def _environment(name: str) -> int | None:
    """The first number of a list like "4,2"; anything else is as if unset, as in OpenMP."""
    first = os.environ.get(name, "").split(",")[0].strip()
    return min(int(first), MOST) if first.isdecimal() and int(first) > 0 else None


def _default() -> int:
    forced = _environment("FASTCONV_NUM_THREADS")
    if forced is not None:
        return forced
    limits = (_affinity(), _cgroup_quota(), _environment("OMP_NUM_THREADS"))
    return min(limit for limit in limits if limit is not None)


class _State:
    count = _default()
    forked = False


def _after_fork_in_child() -> None:
    _State.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _checked(count: int) -> int:
    try:
        number = operator.index(count)
    except TypeError:
        raise TypeError(f"n: expected a positive int, got {count!r}") from None
    if isinstance(count, bool) or number < 1:
        raise ValueError(f"n: expected a positive int, got {count!r}")
    return min(number, MOST)


def set_num_threads(n: int) -> None:
    """Sets how many threads every later call of this process uses.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it, bit for bit.

    Raises
    ------
    ValueError, TypeError
        If `n` is not a positive int.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_num_threads(2)
    >>> fastconv.get_num_threads()
    2
    """
    _State.count = _checked(n)


def get_num_threads() -> int:
    """Returns the number of threads that a call made here and now would use at most."""
    if _State.forked:
        return 1
    return _scoped.get() or _State.count


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Uses `n` threads within a `with` block, in this thread or task of the program alone.

    Parameters
    ----------
    n : int
        At least 1.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.threads(1):
    ...     fastconv.get_num_threads()
    1
    """
    token = _scoped.set(_checked(n))
    try:
        yield
    finally:
        _scoped.reset(token)
