"""Checks of gradients written by hand: finite differences and the adjoint identity.

Both work on any functions of NumPy arrays, whether they come from fastconv or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["AdjointResult", "GradcheckResult", "adjoint_check", "gradcheck"]

Array: TypeAlias = NDArray[Any]
Gradients: TypeAlias = "Sequence[Array | None]"


@dataclass(frozen=True)
class GradcheckResult:
    """What `gradcheck` found; true if every gradient passed.

    Attributes
    ----------
    passed : bool
    max_errors : tuple of float or None
        For each input the largest absolute error found, inf where it is not a number. None where
        no element was compared: no gradient, an empty input, or a gradient of the wrong shape.
    worst_indices : tuple of tuple of int or None
        For each input the element whose error is furthest above, or least below, its tolerance.
    failures : tuple of str
        One message for each input that failed.
    """

    passed: bool
    max_errors: tuple[float | None, ...]
    worst_indices: tuple[tuple[int, ...] | None, ...]
    failures: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True)
class AdjointResult:
    """What `adjoint_check` found; true if the identity holds.

    Attributes
    ----------
    passed : bool
    forward_product, adjoint_product : float
        ``<g, A x>`` and ``<A' g, x>``.
    error : float
        Their difference relative to the larger of ``|g| |A x|`` and ``|A' g| |x|``; inf where it
        is not a number or could not be computed.
    failure : str or None
        What is wrong.
    """

    passed: bool
    forward_product: float
    adjoint_product: float
    error: float
    failure: str | None

    def __bool__(self) -> bool:
        return self.passed


def gradcheck(
    function: Callable[..., Any],
    inputs: Array | Sequence[Array],
    gradients: Callable[..., Array | Gradients],
    *,
    grad_output: Array | None = None,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_elements: int = 256,
    rng: np.random.Generator | int | None = None,
    names: Sequence[str] | None = None,
    raise_exception: bool = True,
) -> GradcheckResult:
    """Compare gradients with central finite differences.

    With a cotangent g, each element i of each input is moved by ``h = step * max(1, |x_i|)``, and

    ``<g, f(x + h e_i) - f(x - h e_i)> / 2h``

    must equal element i of the gradient of ``<g, f(x)>`` within ``atol + rtol * |quotient|``. Each
    gradient must also have the shape and the dtype of its input. `function` and `gradients` get
    copies of the inputs, so that neither can disturb the check by writing to them.

    Parameters
    ----------
    function : callable
        ``function(*inputs)`` returns one float64 array or a float.
    inputs : array or sequence of arrays
        The point of the check. Arrays that are differentiated are float64; arrays of integers or
        booleans (labels, masks, indices) are allowed where the gradient is None.
    gradients : callable
        ``gradients(grad_output, *inputs)`` returns a tuple or list with, for each input, its
        gradient, or None to leave that input out. A lone array will do for a lone input.
    grad_output : array, optional
        The cotangent g, of the shape of the output. Drawn from a standard normal by default.
    step : float
        Relative for elements larger than 1. The default balances truncation and rounding.
    rtol, atol : float
        Tolerances. Rounding alone contributes about ``2e-16 * |f| / step`` to a quotient: scale
        `function` down, or raise `atol`, where outputs are large.
    max_elements : int
        An input with more elements is checked at this many of them, chosen at random.
    rng : numpy.random.Generator or int, optional
        Source of g and of the choice of elements. By default a fixed seed: the same call checks
        the same elements every time.
    names : sequence of str, optional
        What messages call the inputs; ``inputs[0]``, ``inputs[1]``, ... by default.
    raise_exception : bool
        Whether a wrong gradient raises. If not, look at the result.

    Returns
    -------
    GradcheckResult

    Raises
    ------
    AssertionError
        If a gradient is wrong: the message names the input and its worst element, and says where
        the function has a kink or a jump, at which no gradient can pass.
    TypeError, ValueError
        If an argument is unusable; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.testing import gradcheck
    >>> x, w = np.array([[1.0, 2.0, 3.0]]), np.array([[0.5], [0.0], [-1.0]])
    >>> def gradients(grad_output, x, w):
    ...     return grad_output @ w.T, x.T @ grad_output
    >>> gradcheck(np.matmul, (x, w), gradients, names=("x", "w")).passed
    True
    """
    _check_callable("function", function)
    _check_callable("gradients", gradients)
    arrays = _checked_inputs(inputs)
    labels = _checked_names(names, len(arrays))
    _check_number("step", step, positive=True)
    _check_number("max_elements", max_elements, Integral, positive=True)
    _check_number("rtol", rtol)
    _check_number("atol", atol)
    generator = np.random.default_rng(0 if rng is None else rng)

    value = _evaluate(function, arrays)
    cotangent = _checked_cotangent(grad_output, value.shape, generator)
    returned = gradients(cotangent.copy(), *(array.copy() for array in arrays))
    probe = _Probe(function, arrays, value, cotangent, step)
    outcomes = []
    for position, gradient in enumerate(_checked_gradients(returned, arrays, labels)):
        label, array = labels[position], arrays[position]
        if gradient is None:
            outcomes.append(_Outcome())
        elif message := _misfit(f"the gradient of {label}", gradient, array):
            outcomes.append(_Outcome(failure=message))
        else:
            elements = _chosen_elements(array.shape, max_elements, generator)
            outcomes.append(_compare(label, gradient, probe, position, elements, rtol, atol))

    failures = tuple(outcome.failure for outcome in outcomes if outcome.failure)
    if failures and raise_exception:
        raise AssertionError("\n".join(failures))
    return GradcheckResult(
        passed=not failures,
        max_errors=tuple(outcome.max_error for outcome in outcomes),
        worst_indices=tuple(outcome.worst_index for outcome in outcomes),
        failures=failures,
    )


def adjoint_check(
    forward: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    input_shape: int | Sequence[int],
    output_shape: int | Sequence[int],
    *,
    dtype: DTypeLike = np.float64,
    rtol: float | None = None,
    rng: np.random.Generator | int | None = None,
    raise_exception: bool = True,
) -> AdjointResult:
    """Compare ``<g, A x>`` with ``<A' g, x>`` for random x and g.

    The gradient of a linear function is its adjoint: this one identity checks every element of it,
    without finite differences and in any precision.

    Parameters
    ----------
    forward, adjoint : callable
        ``A`` and ``A'``: linear, without bias, each from one array to one array of `dtype`.
    input_shape, output_shape : int or sequence of int
        Shapes of x and of ``A x``.
    dtype : dtype
        Of x and g: a real floating-point type.
    rtol : float, optional
        Largest error allowed, relative to the larger of ``|g| |A x|`` and ``|A' g| |x|``; 1000
        machine epsilons by default.
    rng : numpy.random.Generator or int, optional
        Source of x and g, a fixed seed by default.
    raise_exception : bool
        Whether a failure raises. If not, look at the result.

    Returns
    -------
    AdjointResult

    Raises
    ------
    AssertionError
        If the identity does not hold, or a result has the wrong shape or dtype.
    TypeError, ValueError
        If an argument is unusable; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.testing import adjoint_check
    >>> adjoint_check(np.diff, lambda g: -np.diff(g, prepend=0, append=0), (5,), (4,)).passed
    True
    """
    _check_callable("forward", forward)
    _check_callable("adjoint", adjoint)
    kind = np.dtype(dtype)
    if kind.kind != "f":
        raise TypeError(f"dtype must be a real floating-point type, got {kind}")
    limit = 1000 * float(np.finfo(kind).eps) if rtol is None else rtol
    _check_number("rtol", limit)
    generator = np.random.default_rng(0 if rng is None else rng)
    x = np.asarray(generator.standard_normal(input_shape), dtype=kind)
    g = np.asarray(generator.standard_normal(output_shape), dtype=kind)

    image, back = np.asarray(forward(x.copy())), np.asarray(adjoint(g.copy()))
    failure = _misfit("the result of forward", image, g)
    failure = failure or _misfit("the result of adjoint", back, x)
    if failure is None:
        result = _adjoint_result(x, g, image, back, limit)
    else:
        result = AdjointResult(False, np.nan, np.nan, np.inf, failure)
    if raise_exception and not result:
        raise AssertionError(result.failure)
    return result


def _adjoint_result(x: Array, g: Array, image: Array, back: Array, rtol: float) -> AdjointResult:
    x, g, image, back = (array.astype(np.float64).ravel() for array in (x, g, image, back))
    with np.errstate(invalid="ignore", over="ignore"):
        forward_product, adjoint_product = float(g @ image), float(back @ x)
        norm = np.linalg.norm
        scale = float(max(norm(g) * norm(image), norm(back) * norm(x)))
        difference = abs(forward_product - adjoint_product)
    error = difference / scale if difference else 0.0
    if np.isnan(error):
        error = np.inf
    failure = None
    if error > rtol:
        failure = (
            f"adjoint: <g, A x> = {forward_product:.10g} but <A' g, x> = {adjoint_product:.10g}; "
            f"relative error {error:.3g}, allowed {rtol:.3g}"
        )
    return AdjointResult(failure is None, forward_product, adjoint_product, error, failure)


@dataclass(frozen=True)
class _Outcome:
    """What was found for one input."""

    max_error: float | None = None
    worst_index: tuple[int, ...] | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Probe:
    """A function, the point where it is differentiated, its value there, and the cotangent g."""

    function: Callable[..., Any]
    arrays: list[Array]
    value: Array
    cotangent: Array
    step: float

    def derivatives(self, position: int, index: tuple[int, ...]) -> tuple[float, float, float]:
        """Return the central, left and right difference quotients of ``<g, f>`` at an element."""
        array = self.arrays[position]
        here = float(array[index])
        h = self.step * max(1.0, abs(here))
        # x + h is rounded: quotients over the steps really taken are exact for linear functions.
        above, below = here + h, here - h
        array[index] = above
        up = self._evaluate()
        array[index] = below
        down = self._evaluate()
        array[index] = here
        with np.errstate(invalid="ignore", over="ignore"):
            central = np.vdot(self.cotangent, up - down) / (above - below)
            left = np.vdot(self.cotangent, self.value - down) / (here - below)
            right = np.vdot(self.cotangent, up - self.value) / (above - here)
        return float(central), float(left), float(right)

    def _evaluate(self) -> Array:
        value = _evaluate(self.function, self.arrays)
        if value.shape != self.value.shape:
            raise ValueError(
                f"function returned shape {self.value.shape}, then {value.shape} after a step: "
                f"the shape of its result may not depend on values"
            )
        return value


def _compare(
    label: str,
    gradient: Array,
    probe: _Probe,
    position: int,
    elements: list[tuple[int, ...]],
    rtol: float,
    atol: float,
) -> _Outcome:
    """Compare the chosen elements of one gradient with difference quotients."""
    if not elements:
        return _Outcome()
    quotients = np.array([probe.derivatives(position, index) for index in elements])
    central = quotients[:, 0]
    analytic = np.array([float(gradient[index]) for index in elements])
    finite = np.isfinite(central)
    errors = np.full(len(elements), np.inf)
    errors[finite] = np.nan_to_num(np.abs(analytic - central)[finite], nan=np.inf, posinf=np.inf)
    tolerances = atol + rtol * np.abs(np.where(finite, central, 0.0))
    worst = int((errors - tolerances).argmax())
    failure = None
    if wrong := int((errors > tolerances).sum()):
        failure = (
            f"the gradient of {label} is wrong at {wrong} of {len(elements)} elements checked, "
            f"most at {elements[worst]}: it is {analytic[worst]:.10g}, the difference quotient is "
            f"{central[worst]:.10g}, error {errors[worst]:.3g}, allowed {tolerances[worst]:.3g}"
            + _kink_note(*quotients[worst])
        )
    return _Outcome(float(errors.max()), elements[worst], failure)


def _kink_note(central: float, left: float, right: float) -> str:
    """Explain a failure where the one-sided quotients differ by more than curvature can."""
    if not np.isfinite(central):
        return ". The function is not finite there"
    if abs(right - left) <= 1e-3 * max(1.0, abs(left), abs(right)):
        return ""
    return (
        f". The function is not smooth there: the difference quotient is {left:.6g} on the left, "
        f"{right:.6g} on the right. Check it at another point"
    )


def _chosen_elements(
    shape: tuple[int, ...], max_elements: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= max_elements:
        return list(np.ndindex(*shape))
    flat = np.sort(generator.choice(size, size=max_elements, replace=False))
    return [tuple(int(i) for i in np.unravel_index(f, shape)) for f in flat]


def _evaluate(function: Callable[..., Any], arrays: list[Array]) -> Array:
    """Return a copy of the value, since a function may reuse one output buffer."""
    result = function(*(array.copy() for array in arrays))
    if isinstance(result, (tuple, list)):
        raise TypeError(f"function must return one array, got a {type(result).__name__}")
    value = np.array(result)
    if value.dtype != np.float64:
        raise TypeError(f"function must return float64 from float64 inputs, got {value.dtype}")
    return value


def _checked_inputs(inputs: Array | Sequence[Array]) -> list[Array]:
    """Return private copies of the inputs in a list."""
    given = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
    if not given:
        raise ValueError("inputs must hold at least one array, got none")
    for position, array in enumerate(given):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"inputs[{position}] must be an array, got {type(array).__name__}")
        if array.dtype.kind not in "iub" and array.dtype.newbyteorder("=") != np.float64:
            raise TypeError(
                f"inputs[{position}] must be float64, got {array.dtype}: finite differences need "
                f"double precision"
            )
    return [np.array(array, dtype=array.dtype.newbyteorder("=")) for array in given]


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"inputs[{position}]" for position in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise ValueError(f"names must hold one name for each of {count} inputs, got {names!r}")
    return [str(name) for name in names]


def _checked_cotangent(
    grad_output: Array | None, shape: tuple[int, ...], generator: np.random.Generator
) -> Array:
    if grad_output is None:
        return np.asarray(generator.standard_normal(shape))
    cotangent = np.array(grad_output)
    if cotangent.dtype != np.float64:
        raise TypeError(f"grad_output must be float64, got {cotangent.dtype}")
    if cotangent.shape != shape:
        raise ValueError(f"grad_output must have the shape {shape} of the output, got {cotangent.shape}")
    return cotangent


def _checked_gradients(
    returned: Array | Gradients, arrays: list[Array], labels: list[str]
) -> list[Array | None]:
    """Return one gradient or None for each input."""
    lone = len(arrays) == 1 and not isinstance(returned, (tuple, list))
    entries = (returned,) if lone else returned
    if not isinstance(entries, (tuple, list)):
        raise TypeError(f"gradients must return a tuple or list, got {type(entries).__name__}")
    if len(entries) != len(arrays):
        raise ValueError(
            f"gradients must return one entry for each of {len(arrays)} inputs, got {len(entries)}"
        )
    if all(gradient is None for gradient in entries):
        raise ValueError("gradients returned None for every input: there is nothing to check")
    for label, array, gradient in zip(labels, arrays, entries, strict=True):
        if gradient is not None and array.dtype != np.float64:
            raise TypeError(f"gradients must return None for {label}, which is {array.dtype}")
    return [None if gradient is None else np.asarray(gradient) for gradient in entries]


def _misfit(label: str, got: Array, like: Array) -> str | None:
    """Return what is wrong with the shape or dtype of a result, if anything."""
    if got.shape != like.shape:
        return f"{label} has shape {got.shape}, expected {like.shape}"
    if got.dtype != like.dtype:
        return f"{label} has dtype {got.dtype}, expected {like.dtype}"
    return None


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")


def _check_number(name: str, value: object, kind: type = Real, *, positive: bool = False) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a number ({kind.__name__}), got {type(value).__name__}")
    if not 0 <= value < np.inf or (positive and value == 0):  # type: ignore[operator]
        sign = "positive" if positive else "nonnegative"
        raise ValueError(f"{name} must be {sign} and finite, got {value}")
