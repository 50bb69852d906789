"""Shared by all tests: every loadable engine, both scalar types, hypothesis without a deadline."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from fastconv import engine

# The machines that run the suite are shared: an example's time says nothing.
settings.register_profile("fastconv", deadline=None, derandomize=True)
settings.load_profile("fastconv")


@pytest.fixture(params=engine.loadable())
def isa(request):
    """Runs the test on each engine that this CPU can load."""
    with engine.forced(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)
