"""show_config says what is in force, and where it comes from."""

import io
import sys

import numpy as np
import pytest

from fastconv import config, engine
from fastconv.config import show_config
from fastconv.threads import _State, threads


def shown():
    text = io.StringIO()
    show_config(text)
    return text.getvalue()


def line(name):
    return next(text for text in shown().splitlines() if text.strip().startswith(f"{name}:"))


def test_prints_to_standard_output(capsys):
    show_config()
    assert capsys.readouterr().out == shown()


def test_facts():
    assert np.__version__ in line("versions")
    for isa in engine.built():
        assert isa in line("engine")
    for feature in engine.cpu_features():
        assert feature in line("CPU features")
    assert line("caches")
    assert line("OpenMP")


def test_active_engine(isa):
    assert f"{isa} in use" in line("engine")


def test_engines_that_this_cpu_cannot_run(monkeypatch):
    loadable = engine.loadable()
    monkeypatch.setattr(engine, "loadable", lambda: loadable)
    monkeypatch.setattr(engine, "built", lambda: ("avx1024", *loadable))
    assert "built, but not for this CPU: avx1024" in line("engine")


def test_threads_and_where_they_come_from(monkeypatch):
    for name in ("FASTCONV_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "_affinity", lambda: 8)
    monkeypatch.setattr(config, "_cgroup_quota", lambda: None)
    monkeypatch.setattr(sys.modules["fastconv.threads"], "_affinity", lambda: 8)
    monkeypatch.setattr(sys.modules["fastconv.threads"], "_cgroup_quota", lambda: None)
    monkeypatch.setattr(_State, "count", 8)
    assert "8 (CPUs this process may run on" in line("threads")
    with threads(3):
        assert "3 (fastconv.threads(n)" in line("threads")
    monkeypatch.setattr(_State, "count", 5)
    assert "5 (fastconv.set_num_threads" in line("threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "5 (OMP_NUM_THREADS" in line("threads")
    monkeypatch.setenv("FASTCONV_NUM_THREADS", "5")
    assert "5 (FASTCONV_NUM_THREADS" in line("threads")
    monkeypatch.setattr(_State, "forked", True)
    assert "1 (after fork()" in line("threads")


@pytest.mark.parametrize(
    ("answer", "words"), [(202111, "yes, 2021-11"), (0, "no: one thread"), (None, "unknown")]
)
def test_openmp(monkeypatch, answer, words):
    machine = engine.load(np.float32).machine
    if answer is None:
        monkeypatch.delattr(machine, "openmp", raising=False)
    else:
        monkeypatch.setattr(machine, "openmp", lambda: answer, raising=False)
    assert words in line("OpenMP")


def test_caches_of_an_unknown_system(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "_CACHES", tmp_path)
    assert line("caches").endswith("unknown")


def test_environment(monkeypatch):
    for name in list(config.os.environ):
        if name.startswith(config._PREFIXES):
            monkeypatch.delenv(name)
    assert line("environment").endswith("none")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "OMP_WAIT_POLICY=passive" in line("environment")
