"""From a plan to a call: binds a kernel entry to the arguments that the plan fixes.

`bind(plan)` returns `run(*operands, out, threads)`, with the operands of the direction:
forward (input, weight, bias), input_grad (weight, grad_output), weight_grad (input, grad_output).
All operands are native, aligned, C-contiguous and of the plan's dtype and shapes; `out` is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import engine, im2col, winograd
from fastconv.arrays import Array, new_array
from fastconv.passes import PACK_LIMIT, PACKED, Pass
from fastconv.plan import Plan
from fastconv.workspace import scratch

Run = Callable[..., None]


def _bias_only(plan: Plan) -> Run:
    """A problem without a single product: zeros, or the bias."""

    def run(*operands: Any) -> None:
        out = operands[-2]
        bias = operands[2] if plan.direction == "forward" else None
        p = plan.problem
        out[...] = 0 if bias is None else bias if p.channels_last else bias.reshape(1, -1, *(1,) * p.axes)
        if plan.relu:
            np.maximum(out, 0, out=out)

    return run


def _textbook(plan: Plan) -> Run:
    p = plan.problem
    if plan.direction == "forward":
        return lambda x, w, b, out, threads: im2col.forward(p, x, w, b, plan.relu, out)
    if plan.direction == "input_grad":
        return lambda w, g, out, threads: im2col.input_grad(p, w, g, out)
    return lambda x, g, out, threads: im2col.weight_grad(p, x, g, out)


def _direct(plan: Plan) -> Run:
    kernel = engine.load(plan.dtype).direct
    geometry, taps = (plan.passes[0].geometry, plan.passes[0].taps) if plan.passes else (None, None)
    if plan.direction == "forward":
        conv = kernel.conv
        return lambda x, w, b, out, threads: conv(geometry, taps, x, w, b, out, threads)
    if plan.direction == "weight_grad":
        return lambda x, g, out, threads: kernel.weight_grad(geometry, taps, x, g, out, threads)

    def run(weight: Array, grad_output: Array, out: Array, threads: int) -> None:
        if not plan.covers:
            out.fill(0)
        for step in plan.passes:
            kernel.conv(step.geometry, step.taps, grad_output, weight, None, out, threads)

    return run


def _sized(size: Callable[[int], int]) -> Callable[[int], int]:
    """Remembers the workspace's size for each number of threads."""
    known: dict[int, int] = {}

    def sized(threads: int) -> int:
        if threads not in known:
            known[threads] = size(threads)
        return known[threads]

    return sized


def _gemm_pass(plan: Plan, step: Pass) -> Run:
    kernel = engine.load(plan.dtype).gemm
    source = PACKED if plan.prepared else step.source
    conv, geometry, taps, prepared = kernel.conv, step.geometry, step.taps, plan.prepared
    size = _sized(lambda n: kernel.workspace_bytes(geometry, taps, source, prepared, n, PACK_LIMIT))

    def run(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        memory = scratch(size(threads))
        conv(geometry, taps, x, w, bias, out, memory, source, prepared, threads, PACK_LIMIT)

    return run


def _gemm(plan: Plan) -> Run:
    if plan.direction == "weight_grad":
        return _gemm_weight_grad(plan)
    steps = [_gemm_pass(plan, step) for step in plan.passes]
    if plan.direction == "forward":
        return steps[0]

    def run(weight: Array, grad_output: Array, out: Array, threads: int) -> None:
        if not plan.covers:
            out.fill(0)
        for step in steps:
            step(grad_output, weight, None, out, threads)

    return run


def _blocked(plan: Plan) -> Run:
    if plan.direction == "weight_grad":
        return _weight_grad(plan, engine.load(plan.dtype).shifted_grad)
    if not plan.passes:  # no tap reaches any pixel
        return lambda weight, grad_output, out, threads: out.fill(0)
    kernel, ready = plan.blocked_kernel, plan.prepared
    geometries, taps = plan.all_passes
    conv = kernel.conv
    size = _sized(lambda n: kernel.workspace_bytes(geometries, taps, ready, n, PACK_LIMIT))

    def forward(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        conv(geometries, taps, x, w, bias, out, scratch(size(threads)), ready, threads, PACK_LIMIT)

    def input_grad(weight: Array, grad_output: Array, out: Array, threads: int) -> None:
        if not plan.covers:
            out.fill(0)
        forward(grad_output, weight, None, out, threads)

    if plan.direction == "input_grad":
        return input_grad
    return forward if plan.rest is None else _with_rest(plan, forward, plan.rest)


def _with_rest(plan: Plan, run: Run, rest: Pass) -> Run:
    """`run` for all filters but the last, which "gemm" takes."""
    last, step = _gemm_pass(plan, rest), plan.passes[0]
    filters = int(step.geometry["rows"])
    cut = plan.blocked_kernel.packed_elements(step.geometry) if plan.prepared else filters

    def forward(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        run(x, w[:cut], None if bias is None else bias[:filters], out, threads)
        last(x, w[cut:], None if bias is None else bias[filters:], out, threads)

    return forward


def _gemm_small(plan: Plan) -> Run:
    if plan.direction == "weight_grad":
        return _gemm_weight_grad(plan)
    kernel, geometry, ready = engine.load(plan.dtype).gemm_small, plan.passes[0].geometry, plan.prepared
    conv, in_place = kernel.conv, plan.direction == "input_grad"
    size = _sized(lambda n: kernel.workspace_bytes(geometry, not in_place, n))

    def run(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        if not ready and not in_place:
            w = pack(plan, w, threads)
        conv(geometry, x, w, bias, out, scratch(size(threads)), not in_place, threads)

    if in_place:
        return lambda w, g, out, threads: run(g, w, None, out, threads)
    return run


def _gemm_weight_grad(plan: Plan) -> Run:
    kernel = engine.load(plan.dtype).weight_grad
    fixed = plan.reduction_arguments
    size = _sized(lambda n: kernel.workspace_bytes(*fixed, n))

    def run(x: Array, grad_output: Array, out: Array, threads: int) -> None:
        kernel.weight_grad(*fixed, x, grad_output, out, scratch(size(threads)), threads)

    return run


def _depthwise(plan: Plan) -> Run:
    if plan.direction == "weight_grad":
        return _weight_grad(plan, engine.load(plan.dtype).depthwise_grad)
    if not plan.passes:  # no tap reaches any pixel
        return lambda weight, grad_output, out, threads: out.fill(0)
    kernel = engine.load(plan.dtype).depthwise
    fixed = plan.phases
    size = _sized(lambda n: kernel.workspace_bytes(*fixed, n))

    def forward(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        kernel.conv(*fixed, x, w, bias, out, scratch(size(threads)), threads)

    def input_grad(weight: Array, grad_output: Array, out: Array, threads: int) -> None:
        if not plan.covers:
            out.fill(0)
        forward(grad_output, weight, None, out, threads)

    return forward if plan.direction == "forward" else input_grad


def _filter(plan: Plan) -> Run:
    if plan.direction != "forward":
        return _depthwise(plan)
    kernel, step = engine.load(plan.dtype).filter, plan.passes[0]
    conv, geometry, taps = kernel.conv, step.geometry, step.taps
    size = _sized(lambda n: kernel.workspace_bytes(geometry, taps, n))
    return lambda x, w, b, out, threads: conv(geometry, taps, x, w, b, out, scratch(size(threads)), threads)


def _shifted(plan: Plan) -> Run:
    if plan.direction != "weight_grad":
        return _gemm(plan)
    return _weight_grad(plan, engine.load(plan.dtype).shifted_grad)


def _winograd(plan: Plan) -> Run:
    if plan.direction == "weight_grad":
        return _winograd_weight_grad(plan)
    if not plan.passes:  # no tap reaches any pixel
        return lambda weight, grad_output, out, threads: out.fill(0)
    kernel, (step,) = engine.load(plan.dtype).winograd, plan.passes
    conv, geometry, taps, cut = kernel.conv, step.geometry, step.taps, plan.winograd_cut
    size = _sized(lambda n: kernel.workspace_bytes(geometry, taps, *cut, n))

    def forward(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        conv(geometry, taps, x, w, bias, out, scratch(size(threads)), *cut, threads)

    if plan.direction == "forward":
        return forward
    return lambda w, g, out, threads: forward(g, w, None, out, threads)


def _winograd_weight_grad(plan: Plan) -> Run:
    kernel, step = engine.load(plan.dtype).winograd_grad, plan.passes[0]
    geometry, taps, cut = step.geometry, step.taps, plan.winograd_cut
    size = _sized(lambda n: kernel.workspace_bytes(geometry, taps, *cut, n))

    def run(x: Array, grad_output: Array, out: Array, threads: int) -> None:
        kernel.weight_grad(geometry, taps, x, grad_output, out, scratch(size(threads)), *cut, threads)

    return run


def _weight_grad(plan: Plan, kernel: Any) -> Run:
    """By a kernel that cuts the problem itself."""
    geometry, taps = plan.passes[0].geometry, plan.passes[0].taps
    size = _sized(lambda n: kernel.workspace_bytes(geometry, taps, n))

    def run(x: Array, grad_output: Array, out: Array, threads: int) -> None:
        kernel.weight_grad(geometry, taps, x, grad_output, out, scratch(size(threads)), threads)

    return run


def _on_copies(plan: Plan) -> Run:
    """Channels that lie last are transposed to the front, and those of the result back."""
    problem = replace(plan.problem, channels_last=False)
    first = replace(plan, problem=problem, copies=False)
    run = bind(first)

    def channels_first(array: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))

    def forward(x: Array, w: Array, bias: Array | None, out: Array, threads: int) -> None:
        y = new_array(first.output_shape, plan.dtype)
        run(channels_first(x), w, bias, y, threads)
        out[...] = np.moveaxis(y, 1, -1)

    def input_grad(weight: Array, grad_output: Array, out: Array, threads: int) -> None:
        dx = new_array(first.output_shape, plan.dtype)
        run(weight, channels_first(grad_output), dx, threads)
        out[...] = np.moveaxis(dx, 1, -1)

    def weight_grad(x: Array, grad_output: Array, out: Array, threads: int) -> None:
        run(channels_first(x), channels_first(grad_output), out, threads)

    runs: dict[str, Run] = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}
    return runs[plan.direction]


_BINDERS: dict[str, Callable[[Plan], Run]] = {
    "im2col": _textbook,
    "direct": _direct,
    "gemm": _gemm,
    "gemm_small": _gemm_small,
    "blocked": _blocked,
    "depthwise": _depthwise,
    "filter": _filter,
    "shifted": _shifted,
    **dict.fromkeys(winograd.ALGORITHMS, _winograd),
}


def bind(plan: Plan) -> Run:
    """The call that carries a plan out with the active engine."""
    if plan.flops == 0:
        return _bias_only(plan)
    if plan.copies:
        return _on_copies(plan)
    return _BINDERS[plan.algorithm](plan)


def is_packed(plan: Plan) -> bool:
    """Does its kernel read weights that `pack` has put in order?"""
    packing = ("gemm", "gemm_small", "blocked", "shifted", *winograd.ALGORITHMS)
    return bool(plan.passes) and plan.algorithm in packing


def pack(plan: Plan, weight: Array, threads: int) -> Array:
    """Weights in the order that the kernel of a forward plan reads them."""
    kernels, step = engine.load(plan.dtype), plan.passes[0]
    if plan.algorithm in winograd.ALGORITHMS:
        outputs = winograd.OUTPUTS[plan.algorithm]
        packed = np.empty(kernels.winograd.packed_elements(step.geometry, step.taps, outputs), plan.dtype)
        kernels.winograd.pack(step.geometry, step.taps, weight, packed, outputs, threads)
        return packed
    if plan.algorithm == "blocked":
        kernel = plan.blocked_kernel
    else:
        kernel = kernels.gemm_small if plan.algorithm == "gemm_small" else kernels.gemm
    filters = int(step.geometry["rows"])
    packed = _packed(kernel, step, weight if plan.rest is None else weight[:filters], threads)
    if plan.rest is None:
        return packed
    return np.concatenate([packed, _packed(kernels.gemm, plan.rest, weight[filters:], threads)])


def _packed(kernel: Any, step: Pass, weight: Array, threads: int) -> Array:
    packed = np.empty(kernel.packed_elements(step.geometry), weight.dtype)
    kernel.pack(step.geometry, step.taps, weight, packed, threads)
    return packed


def bias_grad(grad_output: Array, channels: int, threads: int, channels_last: bool = False) -> Array:
    """The sum of an output's gradient over samples and positions: (K,)."""
    total = np.zeros(channels, grad_output.dtype)
    if channels_last:
        kernel = engine.load(grad_output.dtype).activation.column_sums
        kernel(grad_output.size // max(channels, 1), channels, grad_output, total, threads)
        return total
    if grad_output.size:
        images = grad_output.shape[0]
        pixels = grad_output.size // (images * channels)
        engine.load(grad_output.dtype).weight_grad.bias_grad(grad_output, total, images, pixels, threads)
    return total
