"""From a problem and a CPU to a frozen Plan: which algorithm, why, and in which passes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from fastconv import depthwise, pixels, weight_grad, winograd, winograd_costs
from fastconv.blocked import FAR_STEP, gain, rest_of
from fastconv.engine import forget_on_change, load
from fastconv.passes import (
    PACK_LIMIT,
    PACK_PIXELS,
    PACKED,
    Pass,
    Reduction,
    channels_fill_vectors,
    cut_reduction,
    forward_pass,
    identity_pass,
    input_grad_passes,
    patch_pass,
    skip_padding,
)
from fastconv.problem import ConvProblem
from fastconv.registry import Kernel, find
from fastconv.threads import get_num_threads

# Up to here "auto" takes the direct kernel, whose loops are the pixels of a row for each weight: 8 -> 8
# channels at 12x12 2.1 us, "gemm" 2.4, at 3x3 with 3x3 filters 8.9, 3.3; 3 -> 8 at 48x48, step 3, 4.8, 4.1.
DIRECT_FLOPS, DIRECT_WEIGHTS, DIRECT_WEIGHTS_STEPS = 20_000, 64, 16
DEPTHWISE_FLOPS = 2_000  # and up to here where a group has one input channel
# And of a single filter with long steps up to so many taps: of 100 channels, 3x3 with stride 3 at 112x112,
# 289 us, by "blocked" 535; 1.15 to 1.6 times as fast as the better of "gemm" and "blocked" with 2x2 and 3x3
# (geometric means of 400 layers, strides of 3 to 5), 0.9 to 1.1 times with 4x4.
LONE_FILTER_TAPS = 9
# Whose weight gradients arrange their sums themselves.
SELF_CUT = ("depthwise", "filter", "shifted", "blocked")
FLOPS_PER_THREAD = 500_000  # below this another thread costs more than it brings
# The same for one input channel a group, where copies count: elements of input and output, and flops at so
# many an element. One thread and two, us: 3x3 at 14x14, 64 channels 10.1 and 11.0, 96 13.0 and 12.5, 192 20.2
# and 15.0; stride 2, 96 7.8 and 8.0, 192 14.6 and 12.3; 7x7 at 7x7, 64 7.1 and 7.6, 96 8.8 and 8.5 (AVX-512).
ELEMENTS_PER_THREAD, FLOPS_PER_ELEMENT = 12_500, 45


@dataclass(frozen=True)
class Plan:
    """How one direction of a convolution is computed.

    Attributes
    ----------
    problem : ConvProblem
        Shapes, stride, padding, dilation, groups.
    direction : str
        "forward", "input_grad" or "weight_grad".
    algorithm : str
        As `algorithm=` names it.
    reason : str
        Why this algorithm.
    dtype : numpy.dtype
    relu : bool
        Whether the rectifier is fused.
    prepared : bool
        Whether the weights come packed, from `prepare_conv2d`.
    passes : tuple of Pass
        Kernel calls, in order.
    covers : bool
        Whether the passes write every element of the output; otherwise it starts as zeros.
    reduction : Reduction or None
        For a weight gradient by "gemm".
    rest : Pass or None
        For "blocked": the filters that "gemm" takes, as they would leave lanes idle.
    copies : bool
        Whether operands whose channels lie last are transposed for a kernel that wants them first.
    """

    problem: ConvProblem
    direction: str
    algorithm: str
    reason: str
    dtype: np.dtype[Any]
    relu: bool = False
    prepared: bool = False
    passes: tuple[Pass, ...] = field(default=(), compare=False)  # the others decide them
    covers: bool = True
    reduction: Reduction | None = None
    rest: Pass | None = field(default=None, compare=False)
    copies: bool = False

    @property
    def kernel(self) -> Kernel:
        """The row of the registry that computes it."""
        return find("conv", self.direction, self.algorithm)

    @property
    def output_shape(self) -> tuple[int, ...]:
        if self.direction == "forward":
            return self.problem.output_shape
        if self.direction == "input_grad":
            return self.problem.input_shape
        return self.problem.weight_shape

    @property
    def flops(self) -> int:
        """Multiplications and additions, counted as the direct method does them."""
        return self.problem.flops

    @property
    def threads(self) -> int:
        """The most threads that pay for this problem."""
        if self.algorithm == "depthwise":
            p = self.problem
            elements = prod(p.input_shape) + prod(p.output_shape) + self.flops // FLOPS_PER_ELEMENT
            return max(1, elements // ELEMENTS_PER_THREAD)
        return max(1, self.flops // FLOPS_PER_THREAD)

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of a call with the current number of threads."""
        return self.workspace_for(min(get_num_threads(), self.threads))

    def workspace_for(self, threads: int) -> int:
        """Bytes beside operands and output that a call on that many threads uses."""
        if self.flops == 0 or self.algorithm == "direct" or (self.algorithm != "im2col" and not self.passes):
            return 0
        p = self.problem
        if self.algorithm == "im2col":
            return p.batch * p.in_channels * prod(p.kernel) * prod(p.out_size) * self.dtype.itemsize
        kernels = load(self.dtype)
        if self.algorithm == "filter" and self.direction == "forward":
            (step,) = self.passes
            return int(kernels.filter.workspace_bytes(step.geometry, step.taps, threads))
        if self.algorithm in winograd.ALGORITHMS:
            (step,) = self.passes
            kernel = kernels.winograd_grad if self.direction == "weight_grad" else kernels.winograd
            return int(kernel.workspace_bytes(step.geometry, step.taps, *self.winograd_cut, threads))
        if self.direction == "weight_grad" and self.algorithm in SELF_CUT:
            (image,) = self.passes
            shifted = self.algorithm in ("shifted", "blocked")
            kernel = kernels.shifted_grad if shifted else kernels.depthwise_grad
            return int(kernel.workspace_bytes(image.geometry, image.taps, threads))
        if self.algorithm == "blocked" and self.direction != "weight_grad":
            sized = self.blocked_kernel.workspace_bytes
            size = int(sized(*self.all_passes, self.prepared, threads, PACK_LIMIT))
            return size if self.rest is None else max(size, self._pass_workspace(self.rest, threads))
        if self.algorithm in ("depthwise", "filter"):
            return int(kernels.depthwise.workspace_bytes(*self.phases, threads))
        if self.direction == "weight_grad":
            return int(kernels.weight_grad.workspace_bytes(*self.reduction_arguments, threads))
        return max((self._pass_workspace(step, threads) for step in self.passes), default=0)

    def _pass_workspace(self, step: Pass, threads: int) -> int:
        if self.algorithm == "gemm_small":
            small, packed = load(self.dtype).gemm_small, self.direction == "forward"
            copy = 0 if self.prepared or not packed else small.packed_elements(step.geometry)
            return int(small.workspace_bytes(step.geometry, packed, threads) + copy * self.dtype.itemsize)
        source = PACKED if self.prepared else step.source
        size = load(self.dtype).gemm.workspace_bytes
        return int(size(step.geometry, step.taps, source, self.prepared, threads, PACK_LIMIT))

    @property
    def all_passes(self) -> tuple[Any, ...]:
        """Geometries and taps of all passes, one after the other."""
        geometries = np.stack([step.geometry for step in self.passes])
        return geometries, np.concatenate([step.taps for step in self.passes])

    @property
    def blocked_kernel(self) -> Any:
        """The module of "blocked" for the layout of the problem."""
        row = find("conv", self.direction, "blocked")
        in_place = self.problem.channels_last and not self.copies
        return getattr(load(self.dtype), row.module_last if in_place else row.module)

    @property
    def phases(self) -> tuple[Any, ...]:
        """What the entries of kernels/depthwise.pyx take before the operands: all passes at once.

        The passes of an input gradient are the products of phases of the height and of the width.
        """
        rows = 1
        if self.direction == "input_grad":
            row = int(self.passes[0].geometry["out_axis"][1]) // (1, *self.problem.stride)[-2]
            rows = len({int(step.geometry["out_offset"]) // row for step in self.passes})
        return *self.all_passes, rows, len(self.passes) // rows

    @property
    def reduction_arguments(self) -> tuple[Any, ...]:
        """What the entries of kernels/weight_grad.pyx take before the operands."""
        image, grad = self.passes
        cut = self.reduction
        assert cut is not None
        return (
            image.geometry, image.taps, grad.geometry, grad.taps, cut.grad_is_left, cut.image_whole,
            cut.grad_whole, cut.segments, cut.chunks, cut.splits,
        )  # fmt: skip

    @property
    def winograd_cut(self) -> tuple[Any, ...]:
        """What the entries of kernels/winograd.pyx take beside geometry, taps and operands."""
        return winograd.cut(self.problem, self.direction, self.algorithm, self.dtype, self.prepared)

    def explain(self) -> str:
        """The plan in words: algorithm, why, work, memory, blocking."""
        p = self.problem
        lines = [
            f"conv{p.axes}d {self.direction}: {self.algorithm} ({self.reason})"
            + (", on copies with channels first" if self.copies else ""),
            f"  input {p.input_shape}, weight {p.weight_shape}, output {p.output_shape}, "
            f"{self.dtype}, groups {p.groups}",
            f"  {self.flops / 1e6:,.1f} MFLOP, {p.parameters:,} parameters, "
            f"workspace {self.workspace_bytes / 1024:,.0f} KiB, "
            f"at most {min(get_num_threads(), self.threads)} threads",
        ]
        for number, step in enumerate(self.passes):
            g = step.geometry
            lines.append(
                f"  pass {number}: {int(g['taps'])} taps, KC {int(g['depth_block']) * int(g['taps'])}, "
                f"MC {int(g['row_block'])}, NC {int(g['pixel_block'])}"
            )
        return "\n".join(lines)


def _is_tiny(problem: ConvProblem) -> bool:
    """Is there less to compute than to set up?"""
    weights = DIRECT_WEIGHTS if max(problem.stride) == 1 else DIRECT_WEIGHTS_STEPS
    return problem.flops <= DIRECT_FLOPS and problem.parameters <= weights


def _has_patches(problem: ConvProblem, direction: str) -> bool:
    """An input gradient whose taps are rows of one product (kernels/gemm_patch.pxd)."""
    return direction == "input_grad" and problem.is_patchwork


def _choose(problem: ConvProblem, direction: str, prepared: bool, dtype: np.dtype[Any]) -> tuple[str, str]:
    """The algorithm for "auto", and why."""
    if (prepared or not _is_tiny(problem)) and pixels.pay(problem, direction, prepared, dtype):
        return "blocked", "channels lie last: pixels are read and written in place"
    algorithm, reason = _choose_direct(problem, direction, prepared, dtype)
    general = algorithm in ("gemm", "shifted", "blocked") and not _has_patches(problem, direction)
    if general and find("conv", direction, winograd.ALGORITHMS[0]).supports(problem):
        return winograd_costs.choose(problem, direction, prepared, dtype) or (algorithm, reason)
    return algorithm, reason


def _choose_direct(
    problem: ConvProblem, direction: str, prepared: bool, dtype: np.dtype[Any]
) -> tuple[str, str]:
    """The best of the algorithms that multiply every tap."""
    tiny = _is_tiny(problem)
    alone = find("conv", direction, "depthwise").supports(problem)
    alone = alone and (problem.flops > DEPTHWISE_FLOPS or not tiny)
    if tiny and not alone and not prepared:
        return "direct", "few products of few weights: packing would cost more"
    if direction == "weight_grad":
        return weight_grad.choose(problem)
    if alone and (found := depthwise.choose(problem, direction, dtype)):
        return found
    one = direction == "forward" and problem.groups == problem.group_out == 1
    if one and problem.stride[-1] >= FAR_STEP and prod(problem.kernel) <= LONE_FILTER_TAPS and not prepared:
        return "direct", "one filter, and long steps: packing pixels would cost more than it brings"
    # Weights of an input gradient lie as this kernel reads them; others have to be packed for it beforehand.
    if (
        (direction == "input_grad" or (direction == "forward" and prepared))
        and find("conv", direction, "gemm_small").supports(problem)
        and channels_fill_vectors(problem, direction, dtype)
    ):
        return "gemm_small", "few pixels: output channels fill the vectors"
    # Large weights that meet few pixels in a plain call are read in place (512 channels at 14x14, stride 2,
    # two threads: 1.2 ms, packed 1.5).
    few = problem.batch * prod(problem.out_size) < PACK_PIXELS and not prepared and direction == "forward"
    costly = few and prod(problem.weight_shape) * dtype.itemsize > PACK_LIMIT
    if (
        not costly
        and find("conv", direction, "blocked").supports(problem)
        and gain(problem, direction, dtype) >= 1
    ):
        return "blocked", "output channels fill the vectors, pixels are broadcast"
    if _has_patches(problem, direction):
        return "gemm", "windows lie side by side: one product over all taps"
    return "gemm", "the general form"


def _takes_channels_last(problem: ConvProblem, direction: str, algorithm: str) -> bool:
    """Does the kernel read channels that lie last where they lie?"""
    if algorithm == "blocked":
        return pixels.take(problem, direction)
    return algorithm == "depthwise" and problem.group_out == 1


@functools.lru_cache(maxsize=4096)
def plan_conv(
    problem: ConvProblem,
    direction: str,
    dtype: np.dtype[Any],
    algorithm: str = "auto",
    relu: bool = False,
    prepared: bool = False,
) -> Plan:
    """The plan for one direction of a convolution.

    Raises
    ------
    ValueError
        If there is no such algorithm, or it does not take the problem.
    """
    reason = "asked for"
    if algorithm == "auto":
        algorithm, reason = _choose(problem, direction, prepared, dtype)
    row = find("conv", direction, algorithm)
    if not row.supports(problem):
        raise ValueError(f"algorithm: {algorithm!r} does not take this problem: {problem}")
    make = functools.partial(Plan, problem, direction, algorithm, reason, dtype, relu, prepared)
    if problem.channels_last and not _takes_channels_last(problem, direction, algorithm):
        first = replace(problem, channels_last=False)
        same = plan_conv(first, direction, dtype, algorithm, relu, prepared)
        return replace(same, problem=problem, reason=reason, copies=True)
    if algorithm == "im2col" or problem.flops == 0:
        return make()
    fit = skip_padding if algorithm == "blocked" else lambda step: step
    if direction == "forward":
        rest = rest_of(problem, direction, dtype) if algorithm == "blocked" else 0
        rows = problem.group_out - rest
        last = forward_pass(problem, dtype, relu, rows, rest) if rest else None
        return make((fit(forward_pass(problem, dtype, relu, 0, rows)),), rest=last)
    if direction == "weight_grad":
        image, grad = forward_pass(problem, dtype, False), identity_pass(problem, dtype)
        if algorithm in ("direct", *SELF_CUT, *winograd.ALGORITHMS):
            return make((image,))
        return make((image, grad), True, cut_reduction(problem, image, grad, dtype))
    if algorithm in ("gemm", "shifted") and _has_patches(problem, direction):
        patches, covers = patch_pass(problem, dtype)
        return make((patches,), covers)
    passes, covers = input_grad_passes(problem, dtype)
    return make(tuple(map(fit, passes)), covers)


forget_on_change(plan_conv.cache_clear)  # plans depend on the tile of the engine
