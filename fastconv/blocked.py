"""When output channels in the lanes pay: an estimate of the speed of "blocked" beside that of "gemm".

Where filters fill vectors but for a few, "gemm" takes those few: 100 filters are 96 and 4.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fastconv.engine import load
from fastconv.passes import PAGE, STREAM_BYTES, l2_bytes, padding_shares
from fastconv.problem import ConvProblem

# Factors fitted to times of both on one thread: 2 to 256 channels a group on maps of 7 to 56 pixels, and the
# grid of bench/cliffs.py, AVX-512 and AVX2, float32.
LARGE_TILE = 12  # pixels
TALL, LOW = 0.97, 0.92  # where lanes are as busy, with a large tile (AVX-512) and with a smaller one (AVX2)
STEPS = {"forward": 1.15, "input_grad": 1.35}  # steps between pixels: panels are filled tap by tap
# With a smaller tile, whose chains of sums are as many as hide the latency and no more: steps count where
# there are groups, the few rows of small groups are too few for "gemm", and a panel of one vector is too
# narrow here (what that costs, in times of a vector).
LOW_STEPS, SHARED, LONE = 1.15, 1.1, 0.5
# Input gradients of steps: phases that lie side by side leave as one row, where "gemm" runs each by itself,
# group after group, and stores elements that lie apart. Their speed beside it, with a large tile and with a
# smaller one, and the time of a weight that is packed, in products; for windows side by side, which "gemm"
# takes as one product, too. Fitted to 2,400 layers of 3 to 512 channels a group on maps of 7 to 112 pixels,
# steps of 2, 3 and 4.
JOINED = {True: (1.7, 6), False: (1.35, 12)}
JOINED_WINDOWS = {True: (1.7, 10), False: (1.0, 32)}
ALONE = 0.8  # of the speed, where groups do not share lanes
RUN = 64_000  # the time of a run of "gemm", in products
# And that of a weight that each image reads anew, as those of a group exceed L2; of windows the first, too.
STREAMED = 12
MOST_JOINED = 4
HALVES = 0.93  # of the speed of whole vectors
SKIPPED = 0.8  # of the products with columns of the padding
LEAST_DEPTH = 64  # of a single group: with less the transposition of results shows ...
# ... but for these steps with large tiles, as panels are filled tap by tap: 3 -> 96, 4x4 stride 4 at 224x224
# takes 164 us, by "gemm" 179. Not where planes of results lie pages apart (3 -> 128 at 256x256: 330, 264),
# nor where "gemm" writes them past the caches (3 -> 64 at batch 16: 3.8 ms, 3.1).
LONG_STEPS, LEAST_DEPTH_OF_LONG_STEPS = (3, 4), 32
# Depthwise steps of 3 have nine phases: 96 channels, 3x3 at 64x64, batch 2, 276 us, by "depthwise" 526; on
# AVX2 16 channels at 112x112 92 and 130. With many taps "depthwise" is faster: 576 channels, 11x11 at 28x28,
# batch 8, 5.7 ms and 3.5 (AVX2).
ALONE_STEP, ALONE_TAPS = 3, 25
# Forward, of a single group with these steps: microseconds by "gemm" of a pixel that is packed, of a row of
# them, of a row for each tap, of a product, of a weight, and of the call; and by "blocked" of a pixel that is
# copied, of a row, of the product of a vector, of a vector of weights, of a result, and of the call. Fitted
# to 8,500 layers with large tiles and 7,000 with smaller ones: 8 to 256 channels, 1 to 200 filters of 2x2 to
# 7x7, maps of 14 to 112. What they choose takes 1.02 to 1.04 times as long as the better one. With longer
# steps "gemm" is the better one: 128 -> 256, 8x8 with stride 8 at 64x64, takes 1.4 ms, by "blocked" 2.8.
FAR_COSTS = {
    (True, 3): (
        (3.72e-4, 0, 1.41e-3, 9.08e-6, 1.36e-4, 2.35),
        (2.24e-4, 8.84e-4, 1.23e-4, 3.12e-3, 1.53e-4, 3.07),
    ),
    (True, 4): (
        (1.02e-4, 5.3e-3, 9.37e-4, 9.41e-6, 5.46e-5, 2),
        (2.07e-4, 1.03e-3, 1.13e-4, 3.12e-3, 2.54e-4, 3.29),
    ),
    (False, 3): (
        (3.97e-4, 4.49e-4, 1.13e-3, 1.76e-5, 2.18e-4, 2.46),
        (3.3e-4, 6.15e-4, 1.46e-4, 1.7e-3, 2.41e-4, 3.3),
    ),
    (False, 4): (
        (0, 5.76e-3, 2.75e-4, 1.86e-5, 5.42e-5, 2.26),
        (3.48e-4, 3.7e-4, 1.36e-4, 1.83e-3, 3.96e-4, 3.43),
    ),
}
# Of those. With larger kernels, whose windows overlap, it is chosen as with shorter steps: 32 -> 64, 11x11
# with stride 5 at 64x64, 573 us by "gemm", 418.
FAR_KERNEL, MOST_FAR = 7, 4
# Groups with steps of 3 and more: images are copied element by element, each in the time of so many products.
# 128 channels in 8 groups, 2x2 with stride 3 at 32x32, batch 8: 788 us, by "gemm" 325.
FAR_STEP, COPIED = 3, 16
# With fewer products than these a tile's end, where results are transposed, shows beside "gemm", with large
# tiles and steps of 1 and 2: 3 -> 64, 7x7, to 112x112 takes 1,061 us, by "gemm" 1,014.
SHALLOW_DEPTH, SHALLOW = 160, 0.87
REPEATED = 32  # bytes that `vrepeat` loads
FULL = 0.95  # and the least share of lanes that its filters fill
# Filters beyond whole vectors that "gemm" takes, as a share of one, and the time of each beside the others':
# of 8 channels, 15x15 dilated by 3, stride 2, 96 filters take 916 us, 4 by "gemm" 84, all by "blocked" 1,116.
REST, REST_COST = 0.25, 2.0
# It pays where so many products meet columns of the padding, with steps of 1 and 2: 100 filters of 11x11 to
# 15x15 dilated by 3 take 0.90 to 0.95 of the time of "gemm", with steps of 3 1.0 to 1.1.
REST_STEP = 2
REST_PADDING = 0.15


def _evenly(count: int, most: int) -> float:
    """How much of its tiles a row fills, cut into even parts of at most `most`, each of two halves."""
    tiles = -(-count // most)
    cut: list[int] = [(i + 1) * count // tiles - i * count // tiles for i in range(tiles)]
    return count / sum(part + part % 2 for part in cut)


def groups_shared(rows: int, groups: int, dtype: np.dtype[Any]) -> int:
    """How many groups lie side by side in the lanes."""
    _, panel, vector = load(dtype).machine.tile()
    shared = 1
    while 2 * shared * rows <= panel and 2 * shared <= min(groups, vector, REPEATED // dtype.itemsize):
        shared *= 2
    return shared


def lanes_used(rows: int, groups: int, dtype: np.dtype[Any]) -> float:
    """The share of lanes that the output channels of a group fill, or those of groups that share them."""
    _, panel, vector = load(dtype).machine.tile()
    shared = groups_shared(rows, groups, dtype)
    lanes: int = panel if shared > 1 else -(-rows // vector) * vector
    return shared * rows / lanes


def rest_of(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> int:
    """How many filters "gemm" takes."""
    _, panel, vector = load(dtype).machine.tile()
    rest: int = problem.group_out % vector
    forward = direction == "forward" and problem.groups == 1 and not problem.channels_last
    return rest if forward and problem.group_out > panel and rest <= REST * vector else 0


def _steps_far(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> bool:
    plane = prod(problem.out_size) * dtype.itemsize
    large = load(dtype).machine.tile()[0] >= LARGE_TILE
    cached = problem.batch * problem.group_out * plane < STREAM_BYTES and plane % PAGE != 0
    return direction == "forward" and large and problem.stride[-1] in LONG_STEPS and cached


def joins_depthwise(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> bool:
    """An input gradient of depthwise steps whose phases are joined, and fill vectors?"""
    alone = problem.axes == 2 and problem.group_out == 1 < problem.groups and not problem.channels_last
    return (
        direction == "input_grad"
        and alone
        and problem.stride[-1] == ALONE_STEP
        and prod(problem.kernel) <= ALONE_TAPS
        and problem.out_size[-1] >= load(dtype).machine.tile()[2]
        and _joins(problem)
    )


def _joins(problem: ConvProblem) -> bool:
    """Do the phases of an input gradient along a row all have taps, and few are they?"""
    step, reached = problem.stride[-1], np.arange(problem.kernel[-1]) * problem.dilation[-1]
    return 1 < step <= MOST_JOINED and len(np.unique(reached % step)) == step


def _gain_of_joined(problem: ConvProblem, dtype: np.dtype[Any], large: bool, fill: float) -> float:
    """Of an input gradient whose phases are joined; `fill` is how much of its tiles and lanes is used."""
    speed, packed = (JOINED_WINDOWS if problem.is_patchwork else JOINED)[large]
    weights = prod(problem.weight_shape)
    products = weights * problem.batch * prod(problem.out_size)
    runs = problem.groups - 1 if problem.is_patchwork else problem.groups * prod(problem.stride)
    moved = packed * weights
    if weights // problem.groups * dtype.itemsize > l2_bytes():
        moved += STREAMED * weights * (problem.batch if problem.is_patchwork else problem.batch - 1)
    return (products + RUN * runs) / (products / (speed * fill) + moved)


def _gain_of_steps(problem: ConvProblem, vector: int, large: bool) -> float:
    """Forward, of a single group with steps of 3 and more."""
    if problem.stride[-1] > MOST_FAR:
        return 0.0
    filters, weights = problem.group_out, problem.group_in * prod(problem.kernel)
    pixels, vectors = problem.batch * prod(problem.out_size), -(-filters // vector)
    rows = pixels // problem.out_size[-1]
    met = problem.group_in * prod(map(min, problem.kernel, problem.stride))  # of each channel, an output
    gemm, blocked = FAR_COSTS[large, problem.stride[-1]]
    products = weights * filters * pixels
    by_gemm = np.dot(gemm, (met * pixels, met * rows, weights * rows, products, weights * filters, 1))
    vector_products = weights * vectors * pixels
    return float(by_gemm / np.dot(
        blocked, (met * pixels, met * rows, vector_products, weights * vectors, filters * pixels, 1)
    ))  # fmt: skip


def gain(problem: ConvProblem, direction: str, dtype: np.dtype[Any]) -> float:
    """The time of "gemm" over that of "blocked", roughly; 0 for what was not measured."""
    machine = load(dtype).machine
    tile, _, vector = machine.tile()
    large = tile >= LARGE_TILE
    rows, depth = problem.group_out, problem.group_in * prod(problem.kernel)
    width = problem.out_size[-1]
    if direction == "input_grad":
        rows, depth = problem.group_in, problem.group_out * prod(problem.kernel)
        width = -(-problem.in_size[-1] // problem.stride[-1])
    if 0 in (width, rows, depth) or prod(problem.kernel) == 1:
        return 0.0
    rest = rest_of(problem, direction, dtype)
    used = lanes_used(rows - rest, problem.groups, dtype)
    outside = padding_shares(problem)[-1]
    busy: float = width / (-(-width // vector) * vector)
    if machine.has_halves():
        busy = max(busy, HALVES * width / (-(-width // (vector // 2)) * (vector // 2)))
    fill = used * _evenly(width, tile) / busy * (1 + SKIPPED * outside)
    alone = groups_shared(rows, problem.groups, dtype) == 1
    vectors = -(-rows // vector)
    if not large and alone and vectors % 2:
        fill *= vectors / (vectors + LONE)
    if direction == "input_grad" and _joins(problem):
        return _gain_of_joined(problem, dtype, large, fill * (ALONE if alone else 1))
    far = direction == "forward" and problem.groups == 1 and problem.stride[-1] >= FAR_STEP
    if far and depth >= LEAST_DEPTH and max(problem.kernel) <= max(FAR_KERNEL, problem.stride[-1]):
        return _gain_of_steps(problem, vector, large)
    if problem.groups == 1 and (
        depth < (LEAST_DEPTH_OF_LONG_STEPS if _steps_far(problem, direction, dtype) else LEAST_DEPTH)
        or used < FULL
        or (rest and (outside < REST_PADDING or max(problem.stride) > REST_STEP))
    ):
        return 0.0
    steps = max(problem.stride) > 1
    if direction == "forward" and problem.groups > 1 and max(problem.stride) >= FAR_STEP:
        fill /= 1 + COPIED * prod(problem.in_size) / (prod(problem.out_size) * prod(problem.kernel) * rows)
    if large:
        whole = TALL * fill * (STEPS[direction] if steps else 1)
        if problem.groups == 1 and depth < SHALLOW_DEPTH and max(problem.stride) <= 2:
            whole *= SHALLOW
    else:
        whole = LOW * fill * (LOW_STEPS if steps and problem.groups > 1 else 1) * (1 if alone else SHARED)
    return rows / ((rows - rest) / whole + REST_COST * rest)
