"""Channels last on wide maps: pixels are read where they lie, all channels of a column of outputs in one sweep.

A tile is a few outputs below each other, of every channel in turn: the rows of the input are walked from end to end,
as the caches fetch them. Only windows that reach into the padding are copied, with their zeros. The channels left over
by whole vectors are computed with those before them, in a vector that reaches back: sums are the same.
"""

from libc.string cimport memcpy, memset

from fastconv.kernels.depthwise_strip cimport aligned
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.depthwise_tile cimport SHORT, Tile
from fastconv.kernels.depthwise_work cimport Work
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.simd cimport VL, real

ctypedef void (*RunTile)(bint, int, int, Tile*) noexcept nogil

# Outputs along one axis whose windows lie inside the input.
cdef struct Inside:
    Py_ssize_t first
    Py_ssize_t last              # and one


# What one thread computes with.
cdef struct Sweep:
    RunTile run
    const Work* work
    const Grid* grid
    const Py_ssize_t* offset     # of the columns of taps
    real* window                 # of a column of outputs
    const real* zeros            # a vector


cdef inline Inside inside(Py_ssize_t first, Py_ssize_t reach, Py_ssize_t step, Py_ssize_t in_size,
                          Py_ssize_t out_size) noexcept nogil:
    cdef Inside whole
    cdef Py_ssize_t room = in_size - 1 - reach - first
    whole.first = smaller(larger(ceil_div(-first, step), 0), out_size)
    whole.last = smaller(room // step + 1, out_size) if room >= 0 else 0
    whole.last = larger(whole.last, whole.first)
    return whole


cdef inline Py_ssize_t row_reach(const Grid* grid) noexcept nogil:
    return (grid.rows.count - 1) * grid.rows.gap


cdef inline Py_ssize_t column_reach(const Grid* grid) noexcept nogil:
    return (grid.columns.count - 1) * grid.columns.gap


cdef inline Py_ssize_t sweep_size(const Grid* grid) noexcept nogil:
    """Bytes of a thread's copied window, its offsets and a vector of zeros."""
    cdef Py_ssize_t lines = (SHORT - 1) * grid.g.step[1] + row_reach(grid) + 1
    return (aligned(lines * (column_reach(grid) + 1) * grid.g.groups * <Py_ssize_t> sizeof(real))
            + aligned(grid.columns.count * <Py_ssize_t> sizeof(Py_ssize_t)) + 64)


cdef inline Sweep carve_sweep(RunTile run, const Work* w, char* memory) noexcept nogil:
    cdef Sweep s
    cdef Py_ssize_t* offset = <Py_ssize_t*> (memory + 64)
    cdef Py_ssize_t t
    s.run = run
    s.work = w
    s.grid = &w.single
    s.zeros = <const real*> memory
    memset(memory, 0, 64)
    for t in range(s.grid.columns.count):
        offset[t] = t * s.grid.columns.gap * s.grid.g.groups
    s.offset = offset
    s.window = <real*> (memory + 64 + aligned(s.grid.columns.count * <Py_ssize_t> sizeof(Py_ssize_t)))
    return s


cdef inline void sweep_column(const Sweep* s, Py_ssize_t rows, const real* input, Py_ssize_t pitch,
                              const Py_ssize_t* offset, real* out) noexcept nogil:
    """`rows` outputs below each other, of all channels."""
    cdef const Work* w = s.work
    cdef Py_ssize_t channels = s.grid.g.groups, whole = channels // VL, back = channels - VL
    cdef bint advances = s.grid.advance == 2
    cdef Tile t
    t.input = input
    t.pitch = pitch * s.grid.line
    t.entries = s.grid.columns.count
    t.offset = offset
    t.weight = w.spread
    t.weight_step = w.weights * VL
    t.start = s.zeros if w.bias == NULL else w.bias
    t.start_pitch = 0
    t.start_step = 0 if w.bias == NULL else VL
    t.out = out
    t.out_pitch = s.grid.g.out_axis[1]
    t.out_step = VL
    t.vectors = t.whole = whole
    t.last = VL
    t.relu = s.grid.g.relu
    s.run(advances, <int> rows, s.grid.taps, &t)
    if whole * VL < channels:
        t.input = input + back
        t.weight = w.spread + whole * t.weight_step
        t.start = s.zeros if w.bias == NULL else w.bias + back
        t.out = out + back
        t.vectors = t.whole = 1
        s.run(advances, <int> rows, s.grid.taps, &t)


cdef inline void copy_window(const Sweep* s, const real* image, Py_ssize_t row, Py_ssize_t column,
                             Py_ssize_t lines) noexcept nogil:
    """The input from (row, column) on, which may lie outside: `lines` rows of as many pixels as the taps reach."""
    cdef const Work* w = s.work
    cdef Py_ssize_t bytes = s.grid.g.groups * <Py_ssize_t> sizeof(real), i, j
    cdef real* to = s.window
    for i in range(row, row + lines):
        for j in range(column, column + column_reach(s.grid) + 1):
            if 0 <= i < w.strip.in_rows and 0 <= j < w.strip.in_columns:
                memcpy(to, image + i * w.strip.in_pitch + j * w.strip.in_column, bytes)
            else:
                memset(to, 0, bytes)
            to += s.grid.g.groups


cdef inline void sweep_rows(const Sweep* s, const real* image, real* out, Py_ssize_t row, Py_ssize_t rows,
                            bint copied) noexcept nogil:
    """At most SHORT rows of outputs, all of whose windows are copied or none but those at the ends of rows."""
    cdef const Work* w = s.work
    cdef const Grid* grid = s.grid
    cdef Inside whole = inside(grid.columns.first, column_reach(grid), grid.g.step[2], w.strip.in_columns,
                               grid.g.out_size[2])
    cdef Py_ssize_t top = row * grid.g.step[1] + grid.rows.first, left, x
    cdef Py_ssize_t lines = (rows - 1) * grid.g.step[1] + row_reach(grid) + 1
    out += row * grid.g.out_axis[1]
    for x in range(grid.g.out_size[2] if rows > 0 else 0):
        left = x * grid.g.step[2] + grid.columns.first
        if copied or not whole.first <= x < whole.last:
            copy_window(s, image, top, left, lines)
            sweep_column(s, rows, s.window, (column_reach(grid) + 1) * grid.g.groups, s.offset, out)
        else:
            sweep_column(s, rows, image + top * w.strip.in_pitch + left * w.strip.in_column, w.strip.in_pitch,
                         s.offset, out)
        out += grid.g.out_axis[2]


cdef inline void sweep_band(const Sweep* s, Py_ssize_t band) noexcept nogil:
    """Band number `band` of SHORT rows, counted over all images."""
    cdef const Work* w = s.work
    cdef const Grid* grid = s.grid
    cdef Py_ssize_t number = band % w.bands, image = band // w.bands
    cdef Py_ssize_t first = number * SHORT, last = smaller(first + SHORT, grid.g.out_size[1])
    cdef Inside whole = inside(grid.rows.first, row_reach(grid), grid.g.step[1], w.strip.in_rows, grid.g.out_size[1])
    cdef Py_ssize_t from_ = smaller(larger(whole.first, first), last), to = larger(smaller(whole.last, last), from_)
    cdef const real* input = w.input + image * grid.g.in_image
    cdef real* out = w.out + image * grid.g.out_image
    sweep_rows(s, input, out, first, from_ - first, True)
    sweep_rows(s, input, out, from_, to - from_, False)
    sweep_rows(s, input, out, to, last - to, True)
