"""Threads: how many, whose, and what becomes of them after fork()."""

import asyncio
import contextvars
import importlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ALGORITHMS, DIRECTIONS, case, compute, fitting, identical, operands, run_python

import fastconv

threads = importlib.import_module("fastconv.threads")  # the package's own `threads` is the function


@pytest.fixture(autouse=True)
def same_count_afterwards():
    before = threads._State.count
    yield
    threads._State.count = before


def test_set_and_get():
    for count in (1, 3, 2):
        fastconv.set_num_threads(count)
        assert fastconv.get_num_threads() == count
    fastconv.set_num_threads(np.int64(5))
    assert fastconv.get_num_threads() == 5
    fastconv.set_num_threads(10**9)
    assert fastconv.get_num_threads() == threads.MOST


WRONG = [0, -1, True, False, 1.0, "2", None, [2], np.array([1, 2])]


@pytest.mark.parametrize("count", WRONG, ids=repr)
def test_wrong_counts_are_refused(count):
    before = fastconv.get_num_threads()
    with pytest.raises((TypeError, ValueError), match=r"^n\b"):
        fastconv.set_num_threads(count)
    with pytest.raises((TypeError, ValueError), match=r"^n\b"), fastconv.threads(count):
        pass
    assert fastconv.get_num_threads() == before


def test_context_nests_and_ends_on_errors():
    fastconv.set_num_threads(4)
    with fastconv.threads(3):
        assert fastconv.get_num_threads() == 3
        with fastconv.threads(1):
            assert fastconv.get_num_threads() == 1
        assert fastconv.get_num_threads() == 3
        fastconv.set_num_threads(7)
        assert fastconv.get_num_threads() == 3
    assert fastconv.get_num_threads() == 7
    with pytest.raises(KeyError), fastconv.threads(2):
        raise KeyError
    assert fastconv.get_num_threads() == 7


def test_context_belongs_to_its_thread():
    fastconv.set_num_threads(4)
    with fastconv.threads(2), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fastconv.get_num_threads).result() == 4
        assert contextvars.copy_context().run(fastconv.get_num_threads) == 2


def test_context_belongs_to_its_task():
    fastconv.set_num_threads(4)

    async def task(count):
        with fastconv.threads(count):
            await asyncio.sleep(0)
            return fastconv.get_num_threads()

    async def both():
        return await asyncio.gather(task(2), task(3))

    assert asyncio.run(both()) == [2, 3]
    assert fastconv.get_num_threads() == 4


# The default


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 CPUs, without limits or variables; set(quota=...) and so on limit it."""
    version2, version1 = tmp_path / "cpu.max", tmp_path / "v1"
    version1.mkdir()
    monkeypatch.setattr(threads, "_CGROUP_V2_QUOTA", version2)
    monkeypatch.setattr(threads, "_CGROUP_V1", version1)
    monkeypatch.setattr(threads, "_affinity", lambda: 64)
    for name in ("OMP_NUM_THREADS", "FASTCONV_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def limit(v2=None, v1=None, **variables):
        if v2 is not None:
            version2.write_text(v2)
        if v1 is not None:
            for name, value in zip(("quota", "period"), v1, strict=True):
                (version1 / f"cpu.cfs_{name}_us").write_text(value)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return threads._default()

    return limit


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("max 100000\n", 64),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1 100000\n", 1),
        ("9900000 100000\n", 64),
        ("", 64),
        ("nonsense", 64),
        ("100000 0\n", 64),
        ("max", 64),
        ("-1 100000", 64),
    ],
)
def test_quota_of_cgroup_v2(machine, content, count):
    assert machine(v2=content) == count


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (("-1\n", "100000\n"), 64),
        (("300000\n", "100000\n"), 3),
        (("250000\n", "100000\n"), 3),
        (("0\n", "100000\n"), 64),
        (("300000\n", "0\n"), 64),
        (("", ""), 64),
    ],
)
def test_quota_of_cgroup_v1(machine, content, count):
    assert machine(v1=content) == count


def test_no_cgroups_at_all(machine):
    assert machine() == 64


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("3", 3),
        (" 5 ", 5),
        ("4,2", 4),
        ("100", 64),
        ("", 64),
        ("0", 64),
        ("-2", 64),
        ("2.5", 64),
        ("many", 64),
        ("²", 64),
        ("99999999999999999999", 64),
    ],
)
def test_omp_num_threads(machine, value, count):
    assert machine(OMP_NUM_THREADS=value) == count


def test_the_smallest_limit_counts(machine):
    assert machine(v2="300000 100000", OMP_NUM_THREADS="5") == 3
    assert machine(v2="900000 100000") == 5


@pytest.mark.parametrize(("value", "count"), [("7", 7), ("100", 100), ("none", 3), ("99999999999", 1024)])
def test_fastconv_num_threads_overrides(machine, value, count):
    got = machine(v2="300000 100000", OMP_NUM_THREADS="5", FASTCONV_NUM_THREADS=value)
    assert got == count


def test_variables_are_read_at_import():
    code = "import fastconv; print(fastconv.get_num_threads())"
    assert run_python(code, FASTCONV_NUM_THREADS="3").stdout.strip() == "3"


# Use

BUSY = case((2, 48, 40, 41), (50, 48, 3, 3), padding=1)


def test_many_threads_with_different_problems(dtype):
    """Concurrent calls, each with threads and a workspace of its own."""
    problems = [
        case((2, 8 + 5 * i, 19 + i, 23), (9 + 3 * i, 8 + 5 * i, 3, 3), padding=1, stride=1 + i % 2)
        for i in range(8)
    ]
    jobs = [
        (direction, algorithm, operands(fitting(problem, algorithm), dtype))
        for problem in problems
        for direction in DIRECTIONS
        for algorithm in ALGORITHMS
    ]
    want = [compute(direction, data, algorithm) for direction, algorithm, data in jobs]
    start = threading.Barrier(8)

    def worker(number):
        start.wait()
        with fastconv.threads(1 + number % 3):
            for step in range(len(jobs)):
                index = (step + number * 9) % len(jobs)
                direction, algorithm, data = jobs[index]
                if not identical(compute(direction, data, algorithm), want[index]):
                    return f"{direction} by {algorithm}: {data.case}"
        return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(worker, range(8))) == [None] * 8


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", ["gemm", "direct"])
def test_the_gil_is_released(direction, algorithm):
    """Python goes on while a kernel works."""
    size = 400 if algorithm == "direct" else 900
    data = operands(case((1, 16, size, size), (16, 16, 3, 3), padding=1))
    ticks, stop = [], threading.Event()

    def clock():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=clock)
    with fastconv.threads(1):
        ticker.start()
        try:
            before = time.perf_counter()
            compute(direction, data, algorithm)
            after = time.perf_counter()
        finally:
            stop.set()
            ticker.join()
    assert after - before > 0.02, "too short a call to tell"
    assert sum(before < tick < after for tick in ticks) >= 3


FORK = """
import os, signal, sys
import numpy as np
import fastconv

fastconv.set_num_threads(4)
generator = np.random.default_rng(0)
x = generator.random((4, 32, 40, 40), np.float32)
w = generator.random((48, 32, 3, 3), np.float32)
g = generator.random((4, 48, 40, 40), np.float32)

def everything():
    results = []
    for algorithm in ("gemm", "direct"):
        results.append(fastconv.conv2d(x, w, padding=1, algorithm=algorithm))
        results.extend(fastconv.conv2d_backward(g, x, w, padding=1, algorithm=algorithm))
    results.append(fastconv.prepare_conv2d(w, padding=1)(x))
    return [result.tobytes() for result in results]

want = everything()
child = os.fork()
if child == 0:
    code = 1
    try:
        signal.alarm(60)
        assert fastconv.get_num_threads() == 1
        with fastconv.threads(3):
            assert fastconv.get_num_threads() == 1
        code = 0 if everything() == want else 2
        if os.fork() == 0:
            os._exit(0 if everything() == want else 3)
        code = code or os.waitstatus_to_exitcode(os.wait()[1])
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert everything() == want and fastconv.get_num_threads() == 4
print("done")
"""


def test_fork_after_use():
    """libgomp's pool does not survive fork(): the child works alone, and so does its child."""
    done = run_python(FORK, timeout=200)
    assert done.stdout.strip() == "done", done.stderr


def test_threads_come_and_go():
    """Threads that end take their workspace along; new ones start afresh."""
    data = operands(BUSY)
    want = compute("forward", data, "gemm")
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            assert identical(pool.submit(compute, "forward", data, "gemm").result(), want)
