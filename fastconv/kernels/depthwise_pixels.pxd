"""Channels last on wide maps: pixels are read where they lie, all channels of a column of outputs in one sweep.

A tile is a few outputs below each other, of every channel in turn: the rows of the input are walked from end to end,
as the caches fetch them. Only what the windows that reach into the padding hold is copied, with its zeros. Channels
that whole vectors leave over are computed in a vector that reaches back, some of them for the second time.
"""

from libc.string cimport memcpy, memset

from fastconv.kernels.depthwise_strip cimport Strip, aligned
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.depthwise_tile cimport SHORT, Tile
from fastconv.kernels.depthwise_work cimport Work
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.simd cimport VL, real

cdef enum:
    BLOCK_BYTES = 32 << 10  # of the pixels that a column of outputs meets, and of their weights
    WINDOW_BYTES = 128 << 10  # of a copied window, if it holds so many columns of outputs

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
    real* window
    const real* zeros            # a vector
    Py_ssize_t block             # vectors of channels


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


cdef inline Py_ssize_t lines_of(const Grid* grid, Py_ssize_t rows) noexcept nogil:
    """Rows of the input that so many rows of outputs meet."""
    return (rows - 1) * grid.g.step[1] + row_reach(grid) + 1


cdef inline Py_ssize_t window_pixels(const Grid* grid) noexcept nogil:
    """Room for one column of outputs at least."""
    return larger(lines_of(grid, SHORT) * (column_reach(grid) + 1),
                  WINDOW_BYTES // (grid.g.groups * <Py_ssize_t> sizeof(real)))


cdef inline Py_ssize_t sweep_size(const Grid* grid) noexcept nogil:
    """Bytes of a vector of zeros, a thread's offsets and its copied window."""
    return (64 + aligned(grid.columns.count * <Py_ssize_t> sizeof(Py_ssize_t))
            + aligned(window_pixels(grid) * grid.g.groups * <Py_ssize_t> sizeof(real)))


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
    t = lines_of(s.grid, SHORT) * s.grid.columns.count + s.grid.columns.count * s.grid.taps
    s.block = larger(BLOCK_BYTES // (t * VL * <Py_ssize_t> sizeof(real)), 1)
    s.window = <real*> (memory + 64 + aligned(s.grid.columns.count * <Py_ssize_t> sizeof(Py_ssize_t)))
    return s


cdef inline void sweep_column(const Sweep* s, Py_ssize_t rows, const real* input, Py_ssize_t pitch, Py_ssize_t lane,
                              real* out) noexcept nogil:
    """`rows` outputs below each other, of a block of channels from vector `lane` on."""
    cdef const Work* w = s.work
    cdef Py_ssize_t channels = s.grid.g.groups, back = channels - VL
    cdef bint advances = s.grid.advance == 2
    cdef Tile t
    t.pitch = pitch * s.grid.line
    t.entries = s.grid.columns.count
    t.offset = s.offset
    t.weight_step = w.weights * VL
    t.weight = w.spread + lane * t.weight_step
    t.start_pitch = 0
    t.start_step = 0 if w.bias == NULL else VL
    t.start = s.zeros if w.bias == NULL else w.bias + lane * VL
    t.input = input + lane * VL
    t.out = out + lane * VL
    t.out_pitch = s.grid.g.out_axis[1]
    t.out_step = VL
    t.vectors = t.whole = smaller(s.block, channels // VL - lane)
    t.relu = s.grid.g.relu
    t.aligned = False
    s.run(advances, <int> rows, s.grid.taps, &t)
    if lane + s.block >= w.lanes and channels % VL:
        t.input = input + back
        t.weight = w.spread + (w.lanes - 1) * t.weight_step
        t.start = s.zeros if w.bias == NULL else w.bias + back
        t.out = out + back
        t.vectors = t.whole = 1
        s.run(advances, <int> rows, s.grid.taps, &t)


cdef inline void sweep_columns(const Sweep* s, Py_ssize_t rows, const real* input, Py_ssize_t pixel, Py_ssize_t pitch,
                               Py_ssize_t count, real* out) noexcept nogil:
    """`count` columns of outputs, of one block of channels after the other."""
    cdef Py_ssize_t lane = 0, x
    while lane < s.work.lanes:
        for x in range(count):
            sweep_column(s, rows, input + x * s.grid.g.step[2] * pixel, pitch, lane, out + x * s.grid.g.out_axis[2])
        lane += s.block


cdef inline void copy_window(const Sweep* s, const real* image, Py_ssize_t row, Py_ssize_t column,
                             Py_ssize_t lines, Py_ssize_t columns) noexcept nogil:
    """The input from (row, column) on, which may lie outside."""
    cdef const Work* w = s.work
    cdef Py_ssize_t bytes = s.grid.g.groups * <Py_ssize_t> sizeof(real), i, j
    cdef real* to = s.window
    for i in range(row, row + lines):
        for j in range(column, column + columns):
            if 0 <= i < w.strip.in_rows and 0 <= j < w.strip.in_columns:
                memcpy(to, image + i * w.strip.in_pitch + j * w.strip.in_column, bytes)
            else:
                memset(to, 0, bytes)
            to += s.grid.g.groups


cdef inline void sweep_copied(const Sweep* s, const real* image, real* out, Py_ssize_t row, Py_ssize_t rows,
                              Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Outputs first .. last - 1 of `rows` rows, as many at a time as the window holds."""
    cdef const Grid* grid = s.grid
    cdef Py_ssize_t top = row * grid.g.step[1] + grid.rows.first, step = grid.g.step[2], count, columns
    cdef Py_ssize_t lines = lines_of(grid, rows)
    cdef Py_ssize_t most = (window_pixels(grid) // lines - column_reach(grid) - 1) // step + 1
    while first < last:
        count = smaller(most, last - first)
        columns = (count - 1) * step + column_reach(grid) + 1
        copy_window(s, image, top, first * step + grid.columns.first, lines, columns)
        sweep_columns(s, rows, s.window, grid.g.groups, columns * grid.g.groups, count,
                      out + first * grid.g.out_axis[2])
        first += count


cdef inline void sweep_inside(const Sweep* s, const real* image, real* out, Py_ssize_t row, Py_ssize_t rows,
                              Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The same, of windows that lie inside the input."""
    cdef const Strip* strip = &s.work.strip
    cdef const Grid* grid = s.grid
    image += (row * grid.g.step[1] + grid.rows.first) * strip.in_pitch + grid.columns.first * strip.in_column
    sweep_columns(s, rows, image + first * grid.g.step[2] * strip.in_column, strip.in_column, strip.in_pitch,
                  last - first, out + first * grid.g.out_axis[2])


cdef inline void sweep_rows(const Sweep* s, const real* image, real* out, Py_ssize_t row, Py_ssize_t rows,
                            const Inside* columns) noexcept nogil:
    """At most SHORT rows of outputs."""
    if rows <= 0:
        return
    out += row * s.grid.g.out_axis[1]
    sweep_copied(s, image, out, row, rows, 0, columns.first)
    sweep_inside(s, image, out, row, rows, columns.first, columns.last)
    sweep_copied(s, image, out, row, rows, columns.last, s.grid.g.out_size[2])


cdef inline void sweep_band(const Sweep* s, Py_ssize_t image, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of an image, at most SHORT."""
    cdef const Work* w = s.work
    cdef const Grid* grid = s.grid
    cdef Inside columns = inside(grid.columns.first, column_reach(grid), grid.g.step[2], w.strip.in_columns,
                                 grid.g.out_size[2])
    cdef Inside rows = inside(grid.rows.first, row_reach(grid), grid.g.step[1], w.strip.in_rows, grid.g.out_size[1])
    cdef Inside none
    cdef const real* input = w.input + image * grid.g.in_image
    cdef real* out = w.out + image * grid.g.out_image
    none.first = none.last = 0
    rows.first = smaller(larger(rows.first, first), last)
    rows.last = larger(smaller(rows.last, last), rows.first)
    sweep_rows(s, input, out, first, rows.first - first, &none)
    sweep_rows(s, input, out, rows.first, rows.last - rows.first, &columns)
    sweep_rows(s, input, out, rows.last, last - rows.last, &none)


cdef inline void sweep(const Sweep* s, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of outputs, counted over all images."""
    cdef Py_ssize_t rows = s.grid.g.out_size[1], row, count
    while first < last:
        row = first % rows
        count = smaller(smaller(SHORT, rows - row), last - first)
        sweep_band(s, first // rows, row, row + count)
        first += count
