"""Dense convolution with channels last: output channels fill the vectors, pixels are broadcast where they lie.

    out[n, y, x, m] = activation(bias[m] + sum over t, c of weight[m, c, t] * in[n, y * step + t_y, x * step + t_x, c])

A row of taps reads one stretch of a row of the input, its pixels and their channels side by side, and sums of all
channels of a pixel leave in the order in which they lie: nothing is copied, transposed or split by the step. Only
tiles at the sides, whose windows reach into the padding, read a copy with its zeros; rows of taps in the padding are
left out. A unit of work is a band of rows of outputs of one image, against one panel of NR output channels after
the other. Every sum runs over t, then c, in ascending order.
"""

from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.blocked_pack cimport Rows, pack_lanes, rows_of
from fastconv.kernels.blocked_work cimport Span, aligned, rows_met, taps_across
from fastconv.kernels.gemm_pack cimport are_finite, ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.pixels_tile cimport Run, Spot, tile_of_width
from fastconv.kernels.simd cimport (
    MR, NR, VL, flush_denormals, is_vec_aligned, real, restore_denormals, stream_fence,
)

cdef enum:
    ROWS_BYTES = 96 << 10  # of the input that a unit's panels read in turn
    UNITS = 4  # for each thread, at least, where there are rows enough


cdef struct Work:
    const Geometry* g
    const Tap* taps
    const real* input
    const real* weight           # packed[panel, t, c, lane]
    const real* bias
    real* out
    Py_ssize_t across            # taps of a row
    Py_ssize_t down
    Py_ssize_t gap               # columns from tap to tap, and rows
    Py_ssize_t row_gap
    Py_ssize_t window            # columns that a tile's windows cover, at most
    Py_ssize_t panels
    Py_ssize_t rows              # of outputs of a unit
    Py_ssize_t units             # of an image
    Py_ssize_t depth             # weights of an output channel
    bint skips                   # rows of taps in the padding: all weights are finite
    bint stream
    Run* in_place                # of all taps, in the input and in a copied window
    Run* copied
    Py_ssize_t runs              # of a row of taps


# What a thread writes beside the output.
cdef struct Scratch:
    real* window
    real* sums                   # [MR][NR], of tiles that are stored in part


cdef Py_ssize_t reach(const Work* w) noexcept nogil:
    return (w.across - 1) * w.gap


cdef Py_ssize_t window_bytes(const Work* w) noexcept nogil:
    return aligned(w.down * w.window * w.g.channels)


cdef Py_ssize_t table_bytes(const Work* w) noexcept nogil:
    return 2 * (ceil_div(w.runs * w.down * <Py_ssize_t> sizeof(Run), 64) * 64)


cdef Py_ssize_t thread_bytes(const Work* w) noexcept nogil:
    return window_bytes(w) + aligned(MR * NR)


cdef Work work_of(cnp.ndarray passes, cnp.ndarray taps, int threads):
    """One pass, of one group; its taps are a grid, row by row."""
    cdef Work w
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(passes)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef Py_ssize_t line
    w.g = g
    w.taps = tap
    w.across = taps_across(g, tap)
    w.down = g.taps // w.across
    w.gap = tap[1].offset[2] - tap[0].offset[2] if w.across > 1 else 1
    w.row_gap = tap[w.across].offset[1] - tap[0].offset[1] if w.down > 1 else 1
    w.runs = 1 if w.gap == 1 else w.across
    w.window = (MR - 1) * g.step[2] + reach(&w) + 1
    w.panels = ceil_div(g.rows, NR)
    w.depth = g.channels * g.taps
    line = larger(g.step[1] * g.in_axis[1] * <Py_ssize_t> sizeof(real), 1)
    w.rows = smaller(larger(ROWS_BYTES // line, 1), larger(g.out_size[1], 1))
    if threads > 1:
        w.rows = smaller(w.rows, larger(g.out_size[1] * g.batch // (UNITS * threads), 1))
    w.units = ceil_div(g.out_size[1], w.rows)
    w.rows = ceil_div(g.out_size[1], larger(w.units, 1))
    return w


cdef void list_runs(Work* w, char* memory) noexcept nogil:
    cdef Py_ssize_t r, s, at
    w.in_place = <Run*> memory
    w.copied = <Run*> (memory + table_bytes(w) // 2)
    for r in range(w.down):
        for s in range(w.runs):
            at = r * w.runs + s
            w.in_place[at].at = r * w.row_gap * w.g.in_axis[1] + s * w.gap * w.g.in_axis[2]
            w.copied[at].at = (r * w.window + s * w.gap) * w.g.channels
            w.in_place[at].weight = w.copied[at].weight = (r * w.across + s) * w.g.channels * NR


cdef Span live_rows(const Work* w, Py_ssize_t y) noexcept nogil:
    """Rows of taps that the outputs of row y need."""
    cdef Span all
    all.first = 0
    all.last = w.down
    return rows_met(w.g, w.taps, w.across, y, y) if w.skips else all


cdef void copy_window(const Work* w, const real* image, Py_ssize_t top, const Span* live, Py_ssize_t left,
                      Py_ssize_t columns, real* to) noexcept nogil:
    """What `columns` columns from `left` on hold in the rows of the live taps: zeros outside of the input."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t r, y, channels = g.channels, first = larger(left, 0), last = smaller(left + columns, g.in_size[2])
    cdef Py_ssize_t item = sizeof(real)
    for r in range(live.first, live.last):
        y = top + r * w.row_gap
        if y < 0 or y >= g.in_size[1] or last <= first:
            memset(to + r * w.window * channels, 0, columns * channels * item)
            continue
        memset(to + r * w.window * channels, 0, (first - left) * channels * item)
        memcpy(to + (r * w.window + first - left) * channels, image + y * g.in_axis[1] + first * g.in_axis[2],
               (last - first) * channels * item)
        memset(to + (r * w.window + last - left) * channels, 0, (left + columns - last) * channels * item)


cdef void run_tile(int vectors, Py_ssize_t half, const Spot* s) noexcept nogil:
    if vectors == 1:
        tile_of_width(1, half, s)
    else:
        tile_of_width(2, half, s)


cdef Py_ssize_t beside(const Work* w, Py_ssize_t number, Py_ssize_t tiles, Py_ssize_t half) noexcept nogil:
    """How many tiles from one on are alike, and have their windows inside the input's columns."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t left = 2 * half * number * g.step[2] + w.taps[0].offset[2], count = 1
    cdef Py_ssize_t columns = (2 * half - 1) * g.step[2] + reach(w) + 1
    if 2 * half * tiles != g.out_size[2]:
        return 1
    while number + count < tiles and left + 2 * half * count * g.step[2] + columns <= g.in_size[2]:
        count += 1
    return count


cdef void run_row(const Work* w, Spot* s, Py_ssize_t lanes, const real* image, real* out, Py_ssize_t y,
                  const Scratch* at) noexcept nogil:
    """One panel against one row of outputs. Where its width is odd, two tiles share a pixel."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t width = g.out_size[2], tiles = ceil_div(width, MR), number = 0, x, half, left, columns, i
    cdef Py_ssize_t top = y * g.step[1] + w.taps[0].offset[1]
    cdef Span live = live_rows(w, y)
    cdef bint inside = top + live.first * w.row_gap >= 0 and top + (live.last - 1) * w.row_gap < g.in_size[1]
    cdef bint whole
    cdef int vectors = 1 if lanes <= VL else 2
    s.count = (live.last - live.first) * w.runs
    while number < tiles:
        x = number * width // tiles
        half = ((number + 1) * width // tiles - x + 1) // 2
        x = larger(smaller(x, width - 2 * half), 0)
        left = x * g.step[2] + w.taps[0].offset[2]
        columns = (2 * half - 1) * g.step[2] + reach(w) + 1
        whole = lanes % VL == 0 and 2 * half <= width
        s.tiles = 1
        if inside and left >= 0 and left + columns <= g.in_size[2]:
            s.runs = w.in_place + live.first * w.runs
            s.input = image + top * g.in_axis[1] + left * g.in_axis[2]
            if whole:
                s.tiles = beside(w, number, tiles, half)
        else:
            copy_window(w, image, top, &live, left, columns, at.window)
            s.runs = w.copied + live.first * w.runs
            s.input = at.window
        s.out = out + y * g.out_axis[1] + x * g.out_axis[2] if whole else at.sums
        s.out_gap = g.out_axis[2] if whole else NR
        s.stream = w.stream and whole
        run_tile(vectors, half, s)
        if not whole:
            for i in range(smaller(2 * half, width)):
                memcpy(out + y * g.out_axis[1] + (x + i) * g.out_axis[2], at.sums + i * NR,
                       lanes * <Py_ssize_t> sizeof(real))
        number += s.tiles


cdef void run_unit(const Work* w, Py_ssize_t number, char* memory) noexcept nogil:
    cdef const Geometry* g = w.g
    cdef Py_ssize_t image = number // w.units, first = number % w.units * w.rows, panel, y, i, lanes
    cdef const real* source = w.input + image * g.in_image
    cdef real[NR] start
    cdef Scratch at
    cdef Spot s
    at.window = <real*> memory
    at.sums = <real*> (memory + window_bytes(w))
    s.gap = g.step[2] * g.in_axis[2] * <Py_ssize_t> sizeof(real)
    s.length = g.channels if w.gap > 1 else w.across * g.channels
    s.start = start
    s.least = 0 if g.relu else -INFINITY
    for panel in range(w.panels):
        lanes = smaller(g.rows - panel * NR, NR)
        s.weight = w.weight + panel * w.depth * NR
        for i in range(NR):
            start[i] = w.bias[panel * NR + i] if w.bias != NULL and i < lanes else 0
        for y in range(first, smaller(first + w.rows, g.out_size[1])):
            run_row(w, &s, lanes, source, w.out + image * g.out_image + panel * NR, y, &at)


cdef void run_all(Work* w, int threads, char* memory) noexcept nogil:
    cdef Py_ssize_t units = w.units * w.g.batch, size = thread_bytes(w), unit
    cdef unsigned int mode = 0
    w.skips = are_finite(w.weight, w.panels * w.depth * NR)
    w.stream = w.g.stream != 0 and is_vec_aligned(w.out) and w.g.out_axis[2] % VL == 0
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for unit in range(units):
            run_unit(w, unit, memory)
        stream_fence()
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="static"):
            run_unit(w, unit, memory + threadid() * size)
        stream_fence()
        restore_denormals(mode)


cdef void pack_panels(const Work* w, const real* weight, real* to, int threads) noexcept nogil:
    cdef Py_ssize_t panel
    for panel in prange(w.panels, num_threads=threads):
        pack_panel(w, weight, panel, to + panel * w.depth * NR)


cdef void pack_panel(const Work* w, const real* weight, Py_ssize_t panel, real* to) noexcept nogil:
    cdef const Geometry* g = w.g
    cdef Rows rows
    cdef Py_ssize_t vector, c
    for vector in range(NR // VL):
        rows = rows_of(g, weight, 0, panel * NR + vector * VL, g.taps)
        for c in range(g.channels):
            pack_lanes(g, w.taps, &rows, False, c * g.weight_channel, g.channels * NR, to + c * NR + vector * VL)


cdef Py_ssize_t packed_bytes(const Work* w) noexcept nogil:
    return aligned(w.panels * w.depth * NR)


def workspace_bytes(cnp.ndarray passes, cnp.ndarray taps, bint prepared, int threads, Py_ssize_t pack_limit):
    """Bytes that `conv` needs beside its operands."""
    cdef Work w = work_of(passes, taps, threads)
    return table_bytes(&w) + (0 if prepared else packed_bytes(&w)) + thread_bytes(&w) * threads + 64


def packed_elements(cnp.ndarray passes):
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(passes)
    return ceil_div(g.rows, NR) * g.channels * g.taps * NR


def pack(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray weight, cnp.ndarray to, int threads):
    """Weights -> `to`, in the order that `conv` reads with prepared=True."""
    cdef Work w = work_of(passes, taps, threads)
    cdef const real* source = <const real*> cnp.PyArray_DATA(weight)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    with nogil:
        pack_panels(&w, source, target, threads)


def conv(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out,
         cnp.ndarray workspace, bint prepared, int threads, Py_ssize_t pack_limit):
    """The equation above over `out`; the plan has checked every argument."""
    cdef Work w = work_of(passes, taps, threads)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        list_runs(&w, memory)
        memory += table_bytes(&w)
        if not prepared:
            pack_panels(&w, w.weight, <real*> memory, threads)
            w.weight = <const real*> memory
            memory += packed_bytes(&w)
        run_all(&w, threads, memory)
