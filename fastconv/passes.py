"""From a problem to passes: the geometries, blockings and tap tables that the kernels read.

A forward convolution is one pass; an input gradient is one for each phase of the stride; a weight
gradient is a product of two images of passes, with its long sum cut by `Reduction`. Every threshold is
a named constant that cites its measurement (docs/performance.md, section "Thresholds").
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.arrays import LINE
from fastconv.engine import load
from fastconv.problem import ConvProblem

# The struct Geometry of kernels/geometry.pxd, field by field.
GEOMETRY = np.dtype(
    [(name, np.intp) for name in ("batch", "groups", "rows", "channels", "taps")]
    + [(name, np.intp, 3) for name in ("in_size", "out_size", "step")]
    + [(name, np.intp) for name in ("in_image", "in_group", "in_channel")]
    + [("in_axis", np.intp, 3)]
    + [(name, np.intp) for name in ("out_offset", "out_image", "out_group", "out_row")]
    + [("out_axis", np.intp, 3)]
    + [(name, np.intp) for name in ("weight_group", "weight_row", "weight_channel")]
    + [(name, np.intp, 3) for name in ("patch", "grid", "before", "image_size")]
    + [
        (name, np.intp)
        for name in ("relu", "stream", "bands", "skips", "fetches", "depth_block", "row_block", "pixel_block")
    ]
)
# Where the micro-kernel reads the weights: the enum Source of kernels/gemm_task.pxd.
IN_PLACE_ROWS, IN_PLACE_COLUMNS, PACKED = range(3)
# What `bands` of a geometry says: the last is IN_HALVES of kernels/gemm_band.pxd.
NO_BANDS, BANDS, HALF_BANDS = range(3)
# What its `stream` says: outputs fit the caches, or are larger, and rows begin at vectors' boundaries, too.
FITS, LARGE, STREAMS = range(3)

_Taps = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # of one axis: indices, offsets

DEPTH_BYTES = 1024  # KC: bytes of a column of the depth block; a panel of NR columns then fits L1
LARGE_L2 = 1 << 20  # from here on panels stream from L2 as fast, and twice the depth halves the waiting sums
SMALL_PLANE = 128  # pixels of an output plane: below it chunks of a weight gradient span images
SPLIT_UNITS = 16  # independent sums that a weight gradient offers to threads, where its pixels allow
SPLIT_PIXELS = 1024  # least pixels of one of them
STREAM_BYTES = 4 << 20  # outputs from here on are written past the caches, without reading them first ...
STREAM_HALVES_BYTES = 16 << 20  # ... or from here, where a line takes two stores and little is computed
STREAM_DEPTH = 64  # the least depth that is no longer little
PACK_PIXELS = 128  # fewer pixels than this leave a plain call's weights where they are
PAGE = 4096  # columns of weights this far apart, or a multiple, share a few lines of each cache: pack them
BAND_IDLE_ROWS = 20  # filling im2col panels tap by tap costs as much as multiplying so many more rows
BAND_HALF_ROWS = 3  # reading vectors in halves costs as much as multiplying so many more
PADDING_SHARE = 0.05  # of the products with rows of the padding, from here on they are left out
MOST_PIXELS = 512  # of a tile: beyond it nothing is gained, and work is shared out more coarsely
SHORT_DEPTH = 32  # up to here the writing of large outputs decides: then ...
WRITTEN_ROWS = 32  # ... as many rows at a time as there are streams that a prefetcher follows
BAND_BYTES = 1 << 20  # the largest band of a thread
FETCH_SHARE = 8  # inputs of an eighth of L3 are not in it when they are read: others want room, too
PACK_LIMIT = 4 << 20  # bytes of weights packed at a time in a plain call


def _cache_bytes(level: int, otherwise: int) -> int:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "level").read_text().strip() == str(level):
                return int((index / "size").read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return otherwise


@functools.cache
def l2_bytes() -> int:
    """The second-level cache of one core; 512 KiB where the system does not say."""
    return _cache_bytes(2, 512 << 10)


@functools.cache
def l3_bytes() -> int:
    """The third-level cache that cores share; 32 MiB where the system does not say."""
    return _cache_bytes(3, 32 << 20)


@dataclass(frozen=True)
class Pass:
    """One call of a convolution kernel: a geometry and its taps, as the kernel reads them."""

    geometry: np.ndarray[Any, Any]
    taps: np.ndarray[Any, Any]
    source: int


@dataclass(frozen=True)
class Reduction:
    """How a weight gradient's sum over pixels is arranged: the arguments of kernels/weight_grad.pyx."""

    grad_is_left: bool
    image_whole: bool
    grad_whole: bool
    segments: int
    chunks: int
    splits: int


def _strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """C-order strides, in elements."""
    return tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def _three(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    """Values of 1 to 3 spatial axes as (depth, height, width)."""
    return (fill,) * (3 - len(values)) + tuple(values)


def _blocking(geometry: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> None:
    """KC, MC and NC: even parts of the depth, weights in a quarter of L2, pixels and waiting sums in half."""
    taps, channels = int(geometry["taps"]), int(geometry["channels"])
    depth = DEPTH_BYTES * (2 if l2_bytes() >= LARGE_L2 else 1) // dtype.itemsize
    blocks = max(1, -(-channels * taps // depth))
    geometry["depth_block"] = max(1, -(-channels // blocks))
    column_bytes = max(1, int(geometry["depth_block"]) * taps * dtype.itemsize)
    geometry["row_block"] = max(l2_bytes() // 4 // column_bytes, 64)
    if blocks > 1:
        column_bytes += int(geometry["rows"]) * dtype.itemsize
    geometry["pixel_block"] = min(max(l2_bytes() // 2 // column_bytes, 64), MOST_PIXELS)


def _write_in_streams(geometry: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> None:
    """A smaller MC where the depth is short and large outputs go through the caches."""
    depth = int(geometry["channels"]) * int(geometry["taps"])
    written = int(geometry["rows"]) * int(geometry["out_size"].prod()) * dtype.itemsize
    if depth <= SHORT_DEPTH and written > l2_bytes() and geometry["stream"] != STREAMS:
        geometry["row_block"] = WRITTEN_ROWS


def _collapse(geometry: np.ndarray[Any, Any], taps: np.ndarray[Any, Any]) -> None:
    """Pixels that lie side by side on both ends of a 1x1 convolution become one long row."""
    size = tuple(int(s) for s in geometry["out_size"])
    dense = list(_strides(size))
    if (
        len(taps) == 1
        and not taps[0, :3].any()
        and list(geometry["step"]) == [1, 1, 1]
        and tuple(geometry["in_size"]) == size
        and list(geometry["in_axis"]) == dense
        and list(geometry["out_axis"]) == dense
    ):
        geometry["in_size"] = geometry["out_size"] = (1, 1, prod(size))
        geometry["in_axis"] = geometry["out_axis"] = (prod(size), prod(size), 1)


def _tap_table(p: ConvProblem, axes: Sequence[_Taps]) -> np.ndarray[Any, Any]:
    """Rows (offset d, h, w, index) of every combination of taps, one from each spatial axis."""
    alone = np.zeros(1, np.intp)
    offsets = [alone] * (3 - p.axes) + [offset for _, offset in axes]
    index = functools.reduce(
        lambda outer, axis: np.add.outer(outer * axis[0], axis[1]),
        zip(p.kernel, (r for r, _ in axes), strict=True),
        alone[0],
    )
    return np.stack([*(o.ravel() for o in np.meshgrid(*offsets, indexing="ij")), index.ravel()], axis=1)


def make_pass(fields: dict[str, Any], table: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> Pass:
    geometry = np.zeros((), GEOMETRY)
    for name, value in fields.items():
        geometry[name] = value
    geometry["taps"] = len(table)
    _collapse(geometry, table)
    _blocking(geometry, dtype)
    geometry["bands"] = _takes_bands(geometry, table, dtype)
    geometry["stream"] = _streams(geometry, dtype)
    _write_in_streams(geometry, dtype)
    read = int(geometry["batch"]) * int(geometry["in_image"]) * dtype.itemsize
    geometry["fetches"] = FETCH_SHARE * read >= l3_bytes()
    geometry["skips"] = geometry["bands"] != NO_BANDS and _share_in_padding(geometry, table) >= PADDING_SHARE
    return Pass(geometry, table, _weight_source(geometry, table, dtype.itemsize))


def _streams(geometry: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> int:
    """Are outputs to be written past the caches: so many that this beats reading their lines first?

    A line that takes two stores may leave in halves, the more so the less there is to compute between them.
    """
    outputs = int(geometry["batch"]) * int(geometry["out_image"]) * dtype.itemsize
    vector: int = load(dtype).machine.tile()[2]
    depth = int(geometry["channels"]) * int(geometry["taps"])
    in_halves = vector * dtype.itemsize < LINE and depth < STREAM_DEPTH
    if geometry["patch"].any() or outputs < (STREAM_HALVES_BYTES if in_halves else STREAM_BYTES):
        return FITS
    size = tuple(geometry["out_size"])
    runs_on = geometry["bands"] == NO_BANDS and tuple(geometry["out_axis"]) == _strides(size)
    width = int(prod(size) if runs_on else size[-1])  # of panels that run on from row to row
    aligned = int(geometry["out_row"]) % vector == 0 and width % vector == 0
    return STREAMS if aligned else LARGE


def _takes_bands(geometry: np.ndarray[Any, Any], table: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> int:
    """Are outputs to be read from bands, by vectors or by halves of them? Panels are filled tap by tap.

    What is counted is the work for lanes that stay idle, in rows of the product.
    """
    if (
        (len(table) <= geometry["step"].prod() and geometry["out_axis"][2] == 1)  # no pixel is read twice
        or geometry["in_size"][0] != 1
        or geometry["out_size"][0] != 1
        or geometry["in_axis"][2] != 1
        or not geometry["out_size"].all()
    ):
        return NO_BANDS
    height, width = (int(size) for size in geometry["out_size"][1:])
    vector, rows = load(dtype).machine.tile()[2], int(geometry["rows"])
    reach = [int(r) + 1 for r in np.ptp(table[:, :3], axis=0)]
    step = [int(s) for s in geometry["step"]]
    tile_rows = max(int(geometry["pixel_block"]) // width, 1)
    band = int(geometry["depth_block"]) * ((tile_rows - 1) * step[1] + reach[1])
    band *= (width * step[2] + reach[2]) * dtype.itemsize

    def idle(lanes: int) -> float:
        return rows * (height * -(-width // lanes) * lanes / (height * width) - 1)

    by_vectors, by_halves = idle(vector), idle(vector // 2) + BAND_HALF_ROWS
    in_halves = load(dtype).machine.has_halves() and by_halves < by_vectors
    # Panels run on into the next image where the last vector of one would be mostly empty.
    pixels = height * width * int(geometry["batch"])
    in_panels = rows * (-(-pixels // vector) * vector / pixels - 1)
    in_bands = by_halves if in_halves else by_vectors
    # Bands want packed weights, and large ones that meet few pixels are not worth packing.
    weights = int(geometry["groups"]) * rows * int(geometry["channels"]) * len(table) * dtype.itemsize
    costly = pixels < PACK_PIXELS and weights > PACK_LIMIT
    if costly or band > BAND_BYTES or in_bands - in_panels > BAND_IDLE_ROWS:
        return NO_BANDS
    return HALF_BANDS if in_halves else BANDS


def _share_in_padding(geometry: np.ndarray[Any, Any], table: np.ndarray[Any, Any], axis: int = 1) -> float:
    """Of all pairs of a row of outputs (or a column) and a tap, how many meet a row of the padding."""
    rows = np.add.outer(np.arange(geometry["out_size"][axis]) * geometry["step"][axis], table[:, axis])
    return float(np.mean((rows < 0) | (rows >= geometry["in_size"][axis])))


def padding_shares(p: ConvProblem) -> tuple[float, ...]:
    """Along each axis, the share of pairs of an output and a tap that meets the padding."""
    shares = []
    for axis, (before, _) in enumerate(p.pads):
        taps = np.arange(p.kernel[axis]) * p.dilation[axis] - before
        at = np.add.outer(np.arange(p.out_size[axis]) * p.stride[axis], taps)
        shares.append(float(np.mean((at < 0) | (at >= p.in_size[axis]))) if at.size else 0.0)
    return tuple(shares)


def skip_padding(step: Pass) -> Pass:
    """The pass for a kernel that leaves taps out along both axes."""
    geometry = step.geometry.copy()
    geometry["bands"] = NO_BANDS
    if geometry["out_size"].all():
        share = max(_share_in_padding(geometry, step.taps, axis) for axis in (1, 2))
        geometry["skips"] = share >= PADDING_SHARE
    return Pass(geometry, step.taps, PACKED)


def _weight_source(geometry: np.ndarray[Any, Any], table: np.ndarray[Any, Any], itemsize: int) -> int:
    """Packing a weight costs a fraction of a cycle and pays back with each vector of pixels it meets.

    Weights beyond the limit would be packed in parts, and the image with each part: they stay in place.
    """
    pixels = int(geometry["batch"]) * int(geometry["out_size"].prod())
    in_order = np.array_equal(table[:, 3], np.arange(len(table)))
    along = in_order and geometry["weight_channel"] == len(table)
    weights = int(geometry["groups"] * geometry["rows"] * geometry["channels"]) * len(table)
    if along and not geometry["bands"] and weights * itemsize > PACK_LIMIT:
        return IN_PLACE_ROWS
    if pixels >= PACK_PIXELS or geometry["bands"]:
        return PACKED
    if along:
        return IN_PLACE_ROWS
    crowded = int(geometry["weight_channel"]) * itemsize % PAGE == 0
    if len(table) == 1 and geometry["weight_row"] == 1 and table[0, 3] == 0 and not crowded:
        return IN_PLACE_COLUMNS
    return PACKED


def _layout(p: ConvProblem, channels: int, size: tuple[int, ...]) -> tuple[int, int, int, tuple[int, ...]]:
    """Strides of an operand of `channels` channels: of an image, a group, a channel, and the three axes."""
    plane = prod(size)
    channel, axes = plane, _strides(size)
    if p.channels_last:
        channel, axes = 1, tuple(stride * channels for stride in axes)
    return channels * plane, channels // p.groups * channel, channel, axes


def forward_pass(
    p: ConvProblem, dtype: np.dtype[Any], relu: bool, first: int = 0, rows: int | None = None
) -> Pass:
    """All output channels of each group, or `rows` of them from `first` on: their weights come alone."""
    kernel = _three(p.kernel, 1)
    in_size, out_size = _three(p.in_size, 1), _three(p.out_size, 1)
    taps = [
        (np.arange(k), np.arange(k) * d - before)
        for k, d, (before, _) in zip(p.kernel, p.dilation, p.pads, strict=True)
    ]
    in_image, in_group, in_channel, in_axis = _layout(p, p.in_channels, in_size)
    out_image, out_group, out_row, out_axis = _layout(p, p.out_channels, out_size)
    fields = {
        "batch": p.batch, "groups": p.groups, "rows": p.group_out if rows is None else rows,
        "channels": p.group_in, "out_offset": first * out_row,
        "in_size": in_size, "out_size": out_size, "step": _three(p.stride, 1),
        "in_image": in_image, "in_group": in_group, "in_channel": in_channel, "in_axis": in_axis,
        "out_image": out_image, "out_group": out_group, "out_row": out_row, "out_axis": out_axis,
        "weight_group": p.group_out * p.group_in * prod(kernel),
        "weight_row": p.group_in * prod(kernel), "weight_channel": prod(kernel), "relu": relu,
    }  # fmt: skip
    return make_pass(fields, _tap_table(p, taps), dtype)


def _phases(p: ConvProblem, axis: int) -> dict[int, _Taps]:
    """Phase -> the taps that reach input position phase + stride * i, from output i + offset."""
    stride, before = p.stride[axis], p.pads[axis][0]
    r = np.arange(p.kernel[axis])
    reached = r * p.dilation[axis] - before
    return {
        int(phase): (r[meets], (phase - reached[meets]) // stride)
        for phase in np.unique(reached % stride)
        if phase < p.in_size[axis]
        for meets in [reached % stride == phase]
    }


def input_grad_passes(p: ConvProblem, dtype: np.dtype[Any]) -> tuple[tuple[Pass, ...], bool]:
    """One pass for each phase of the input's positions modulo the stride; do they cover the input?

    Within a phase the gradient is a convolution of stride 1 with a subset of the taps: no product
    with an inserted zero is ever computed. A phase that no tap reaches has no pass.
    """
    in_size, out_size = _three(p.in_size, 1), _three(p.out_size, 1)
    kernel, stride = _three(p.kernel, 1), _three(p.stride, 1)
    in_image, in_group, in_channel, in_axis = _layout(p, p.in_channels, in_size)
    out_image, out_group, out_row, out_axis = _layout(p, p.out_channels, out_size)
    per_axis = [_phases(p, axis) for axis in range(p.axes)]
    covers = all(len(f) == min(s, i) for f, s, i in zip(per_axis, p.stride, p.in_size, strict=True))
    passes = []
    for chosen in itertools.product(*(phases.items() for phases in per_axis)):
        phase, taps = zip(*chosen, strict=True)
        start = _three(phase, 0)
        fields = {
            "batch": p.batch, "groups": p.groups, "rows": p.group_in, "channels": p.group_out,
            "in_size": out_size, "step": (1, 1, 1),
            "out_size": [-(-(i - f) // s) for i, f, s in zip(in_size, start, stride, strict=True)],
            "in_image": out_image, "in_group": out_group, "in_channel": out_row, "in_axis": out_axis,
            "out_offset": sum(f * s for f, s in zip(start, in_axis, strict=True)),
            "out_image": in_image, "out_group": in_group, "out_row": in_channel,
            "out_axis": [s * a for s, a in zip(stride, in_axis, strict=True)],
            "weight_group": p.group_out * p.group_in * prod(kernel),
            "weight_row": prod(kernel), "weight_channel": p.group_in * prod(kernel),
        }  # fmt: skip
        passes.append(make_pass(fields, _tap_table(p, taps), dtype))
    return tuple(passes), covers


def patch_pass(p: ConvProblem, dtype: np.dtype[Any]) -> tuple[Pass, bool]:
    """The input gradient of windows that lie side by side as one product; does it cover the input?"""
    in_size, out_size = _three(p.in_size, 1), _three(p.out_size, 1)
    kernel, plane = _three(p.kernel, 1), prod(p.out_size)
    before = _three(tuple(first for first, _ in p.pads), 0)
    in_image, in_group, in_channel, in_axis = _layout(p, p.in_channels, in_size)
    taps = prod(kernel)
    fields = {
        "batch": p.batch, "groups": p.groups, "rows": p.group_in * taps, "channels": p.group_out,
        "in_size": (1, 1, plane), "out_size": (1, 1, plane), "step": (1, 1, 1),
        "in_image": p.out_channels * plane, "in_group": p.group_out * plane,
        "in_channel": plane, "in_axis": (plane, plane, 1),
        "out_image": in_image, "out_group": in_group, "out_row": in_channel, "out_axis": in_axis,
        "weight_group": p.group_out * p.group_in * taps, "weight_row": 1, "weight_channel": p.group_in * taps,
        "patch": kernel, "grid": out_size, "before": before, "image_size": in_size,
    }  # fmt: skip
    covers = all(o * k - b >= i for o, k, b, i in zip(out_size, kernel, before, in_size, strict=True))
    return make_pass(fields, np.zeros((1, 4), np.intp), dtype), covers


def channels_fill_vectors(p: ConvProblem, direction: str, dtype: np.dtype[Any]) -> bool:
    """Of a 1x1 convolution of few pixels: do output channels leave fewer lanes idle than pixels do?"""
    _, panel, vector = load(dtype).machine.tile()
    pixels = p.batch * prod(p.out_size)
    rows = p.group_in if direction == "input_grad" else p.group_out
    return (
        0 < pixels < PACK_PIXELS and -(-rows // panel) * panel * pixels < -(-pixels // vector) * vector * rows
    )


def identity_pass(p: ConvProblem, dtype: np.dtype[Any]) -> Pass:
    """The output's gradient as the image of a 1x1 convolution: its rows are its channels."""
    plane = prod(p.out_size)
    fields = {
        "batch": p.batch, "groups": p.groups, "channels": p.group_out,
        "in_size": (1, 1, plane), "out_size": (1, 1, plane), "step": (1, 1, 1),
        "in_image": p.out_channels * plane, "in_group": p.group_out * plane,
        "in_channel": plane, "in_axis": (plane, plane, 1), "out_axis": (plane, plane, 1),
        "weight_row": 1, "weight_channel": 1,
    }  # fmt: skip
    return make_pass(fields, np.zeros((1, 4), np.intp), dtype)


def cut_reduction(p: ConvProblem, image: Pass, grad: Pass, dtype: np.dtype[Any]) -> Reduction:
    """How the long sum over pixels is cut, from the problem alone: the bits depend on it."""
    plane, taps = prod(p.out_size), len(image.taps)
    rows, columns = p.group_out, p.group_in * taps
    per_image = plane >= SMALL_PLANE or p.batch <= 1
    segments = p.batch if per_image else 1
    pixels = plane if per_image else plane * p.batch
    chunks = max(1, round(pixels * dtype.itemsize / DEPTH_BYTES))
    image_whole = (
        per_image
        and taps == 1
        and tuple(image.geometry["in_size"]) == (1, 1, plane)
        and max(p.stride) == 1
        and not any(map(any, p.pads))
    )
    block = max(64, min(256, l2_bytes() // 8192)) * 4 // dtype.itemsize
    image.geometry["row_block"] = grad.geometry["row_block"] = block
    natural = p.groups * -(-rows // block) * -(-columns // block)
    splits = 1
    while (
        2 * splits * natural <= SPLIT_UNITS
        and p.batch * plane >= 2 * splits * SPLIT_PIXELS
        and 2 * splits * prod(p.weight_shape) * dtype.itemsize <= PACK_LIMIT
    ):
        splits *= 2
    # The factor on the right is transposed; on the left its rows serve as they are. With the image on the
    # left the result leaves transposed.
    grad_left = columns * (1.0 if image_whole else 1.35) <= rows + rows * columns / max(plane * p.batch, 1)
    return Reduction(grad_left, image_whole, per_image, segments, chunks, splits)
