"""SciPy's own tests of correlate, convolve, correlate2d and convolve2d, run against fastconv.signal.

SciPy's test module is executed once more, under another name, with the four functions replaced: the names
that it imports, and those that it reaches through `signal`. SciPy itself stays as it is, for other tests.
"""

import importlib.util
import types
from unittest import mock

import numpy as np
import pytest

import fastconv.signal

pytest.importorskip("scipy")
import scipy.signal

SOURCE = importlib.util.find_spec("scipy.signal.tests.test_signaltools")
if SOURCE is None or SOURCE.origin is None:
    pytest.skip("this SciPy comes without its tests", allow_module_level=True)

REPLACED = {name: getattr(fastconv.signal, name) for name in fastconv.signal.__all__}
CLASSES = (
    "TestConvolve",
    "TestConvolve2d",
    "TestCorrelateReal",
    "TestCorrelate",
    "TestCorrelateComplex",
    "TestCorrelate2d",
)
FUNCTIONS = ("test_correlation_lags", "test_convolve_longdtype_input")

# Every test of SciPy's that fastconv.signal does not pass, or is not asked to: (class, test) -> why.
DEVIATIONS = {}
LEFT_OUT = {
    ("TestConvolve2d", "test_large_array"): "takes more than 10 GB; SciPy does not run it by default either",
}


class NoMark:
    """A mark that changes nothing, with or without arguments."""

    mark = pytest.mark.skipif(False, reason="never").mark
    name = mark.name

    def __call__(self, *given, **named):
        return given[0] if len(given) == 1 and callable(given[0]) else self


class KnownMarks:
    """`pytest.mark` without the marks that only SciPy's own plug-ins understand."""

    marks = pytest.mark

    def __getattr__(self, name):
        known = name in ("parametrize", "skipif", "filterwarnings", "usefixtures")
        return getattr(self.marks, name) if known else NoMark()


def without_backends(*functions, **options):
    """Stands in for SciPy's decorator that says which array libraries a function takes."""
    return lambda item: item


def parameter(function, *more, **options):
    return pytest.param(function, *more)


class Signal(types.SimpleNamespace):
    """scipy.signal with the replaced functions."""

    def __getattr__(self, name):
        return getattr(scipy.signal, name)


def scipy_tests():
    """SciPy's test module, bound to fastconv.signal."""
    module = types.ModuleType("scipy_test_signaltools_for_fastconv")
    module.__file__, module.__package__ = SOURCE.origin, "scipy.signal.tests"
    helpers = {"make_xp_test_case": without_backends, "make_xp_pytest_param": parameter}
    import scipy._lib._array_api as array_api

    replaced = [mock.patch.object(scipy.signal, name, function) for name, function in REPLACED.items()]
    replaced += [mock.patch.object(array_api, n, f) for n, f in helpers.items() if hasattr(array_api, n)]
    replaced.append(mock.patch.object(pytest, "mark", KnownMarks()))
    with open(SOURCE.origin, encoding="utf-8") as source:
        code = compile(source.read(), SOURCE.origin, "exec")
    for patch in replaced:
        patch.start()
    try:
        exec(code, module.__dict__)
    finally:
        for patch in replaced:
            patch.stop()
    module.signal = Signal(**REPLACED)
    return module


@pytest.fixture
def xp():
    """NumPy in the form in which SciPy's tests ask for an array library."""
    from scipy._lib._array_api import array_namespace

    return array_namespace(np.empty(0))


@pytest.fixture
def num_parallel_threads():
    return 1


TESTS = scipy_tests()
for name in (*CLASSES, *FUNCTIONS):
    globals()[name] = getattr(TESTS, name)
for (holder, test), reason in DEVIATIONS.items():
    setattr(globals()[holder], test, pytest.mark.xfail(reason=reason)(getattr(globals()[holder], test)))
for (holder, test), reason in LEFT_OUT.items():
    setattr(globals()[holder], test, pytest.mark.skip(reason=reason)(getattr(globals()[holder], test)))


def test_the_functions_are_replaced():
    for name, function in REPLACED.items():
        assert getattr(TESTS, name) is getattr(TESTS.signal, name) is function
        assert getattr(scipy.signal, name) is not function
