"""Channels last: pixels are read where they lie, all channels of a column of outputs in one sweep.

A tile is a few outputs below each other, of every channel in turn: the rows of the input are walked from end to
end, as the caches fetch them. Taps in the padding are left out, rows of them by the tile (depthwise_tile.pxd),
columns by the list of them. Channels that whole vectors leave over are computed in a vector that reaches back, some
of them for the second time.
"""

from libc.string cimport memset

from fastconv.kernels.depthwise_strip cimport aligned
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.depthwise_tile cimport SHORT, Tile
from fastconv.kernels.depthwise_work cimport Work
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport VL, real

cdef enum:
    BLOCK_BYTES = 32 << 10  # of the pixels that a column of outputs meets, and of their weights

ctypedef void (*RunTile)(bint, int, int, Tile*) noexcept nogil

# Taps of an axis that lie inside the input.
cdef struct Inside:
    Py_ssize_t first
    Py_ssize_t last              # and one


# What one thread computes with.
cdef struct Sweep:
    RunTile run
    const Work* work
    const Grid* grid
    const Py_ssize_t* offset     # of the columns of taps
    const real* zeros            # a vector
    Py_ssize_t block             # vectors of channels


cdef inline Inside inside(Py_ssize_t first, Py_ssize_t gap, Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    """Which of the places first, first + gap, ... lie in 0 .. size - 1."""
    cdef Inside taps
    taps.first = smaller(ceil_div(-first, gap), count) if first < 0 else 0
    taps.last = larger(smaller(ceil_div(size - first, gap), count), taps.first) if first < size else taps.first
    return taps


cdef inline Py_ssize_t sweep_size(const Grid* grid) noexcept nogil:
    """Bytes of a vector of zeros and a thread's offsets."""
    return 64 + aligned(grid.columns.count * <Py_ssize_t> sizeof(Py_ssize_t))


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
        offset[t] = t * s.grid.columns.gap * w.strip.in_column
    s.offset = offset
    # Lines that a tile of SHORT rows meets, and weights.
    t = ((SHORT - 1) * s.grid.advance + 2 * s.grid.taps) * s.grid.columns.count
    t = larger(BLOCK_BYTES // (t * VL * <Py_ssize_t> sizeof(real)), 1)
    s.block = ceil_div(w.lanes, ceil_div(w.lanes, t))
    return s


cdef inline void sweep_column(const Sweep* s, Tile* t, int rows, const Inside* columns, const real* input,
                              Py_ssize_t lane, real* out) noexcept nogil:
    """`rows` outputs below each other, of a block of channels from vector `lane` on."""
    cdef const Work* w = s.work
    cdef Py_ssize_t channels = s.grid.g.groups, back = channels - VL, skipped = columns.first * s.grid.taps * VL
    cdef bint advances = s.grid.advance == 2
    t.entries = columns.last - columns.first
    t.offset = s.offset + columns.first
    t.weight = w.spread + lane * t.weight_step + skipped
    t.start = s.zeros if w.bias == NULL else w.bias + lane * VL
    t.input = input + lane * VL
    t.out = out + lane * VL
    t.vectors = t.whole = smaller(s.block, channels // VL - lane)
    s.run(advances, rows, s.grid.taps, t)
    if lane + s.block >= w.lanes and channels % VL:
        t.input = input + back
        t.weight = w.spread + (w.lanes - 1) * t.weight_step + skipped
        t.start = s.zeros if w.bias == NULL else w.bias + back
        t.out = out + back
        t.vectors = t.whole = 1
        s.run(advances, rows, s.grid.taps, t)


cdef inline void sweep_band(const Sweep* s, const real* image, real* out, Py_ssize_t row, int rows) noexcept nogil:
    """Rows row .. row + rows - 1 of an image, of one block of channels after the other."""
    cdef const Work* w = s.work
    cdef const Grid* grid = s.grid
    cdef Py_ssize_t lines = (rows - 1) * grid.advance + grid.taps, lane = 0, x, column
    cdef Py_ssize_t top = row * grid.g.step[1] + grid.rows.first
    cdef Inside there = inside(top, grid.line, lines, w.strip.in_rows), columns
    cdef Tile t
    t.pitch = grid.line * w.strip.in_pitch
    t.weight_step = w.weights * VL
    t.start_pitch = 0
    t.start_step = 0 if w.bias == NULL else VL
    t.out_pitch = grid.g.out_axis[1]
    t.out_step = VL
    t.relu = grid.g.relu
    t.aligned = False
    t.first_line = <int> there.first
    t.last_line = <int> there.last
    t.cut = there.first > 0 or there.last < lines
    image += top * w.strip.in_pitch
    out += row * grid.g.out_axis[1]
    while lane < w.lanes:
        for x in range(grid.g.out_size[2]):
            column = x * grid.g.step[2] + grid.columns.first
            columns = inside(column, grid.columns.gap, grid.columns.count, w.strip.in_columns)
            sweep_column(s, &t, rows, &columns, image + column * w.strip.in_column, lane,
                         out + x * grid.g.out_axis[2])
        lane += s.block


cdef inline void sweep(const Sweep* s, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of outputs, counted over all images."""
    cdef const Work* w = s.work
    cdef const Geometry* g = s.grid.g
    cdef Py_ssize_t rows = g.out_size[1], row, count, image
    while first < last:
        image = first // rows
        row = first % rows
        count = smaller(smaller(SHORT, rows - row), last - first)
        sweep_band(s, w.input + image * g.in_image, w.out + image * g.out_image + g.out_offset, row, <int> count)
        first += count
