"""The micro-kernel of planes that are read where they lie: outputs from their first row to their last.

A block is two vectors wide, or one vector of two channels. Each line of the input (depthwise_line.pxd) is added to
all rows of outputs that it meets, and these take turns in the registers: the oldest is finished and leaves, the newest
begins. Lines outside of the plane are left out.

A strip costs a store and a load of every pixel, and loads that cross cache lines; 192 planes of 28x28 take 45 us so,
kernels of 3x3, and 20 in place.
"""

from fastconv.kernels.depthwise_line cimport MOST_SIZE, WIDE, Look, column_of, load_line, look_from
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    VL, prefetch_near, real, vec, vfma_kept, vrelu, vset1, vstore, vstore_first,
)

cdef enum:
    KEPT = 9                     # weights that stay in registers, of each channel


# A block of a plane, or of the planes of two channels.
cdef struct Walk:
    const real* plane            # at the column where the first tap meets the first output
    Py_ssize_t apart             # from channel to channel
    Py_ssize_t pitch
    Py_ssize_t lines             # of the plane
    Py_ssize_t above             # lines that the first output meets before them
    Look look
    const real* weight           # [row][column] of taps
    Py_ssize_t weight_apart
    real[2] bias
    bint relu
    real* out
    Py_ssize_t out_apart
    Py_ssize_t out_pitch
    Py_ssize_t last              # lanes of the last vector that are stored
    Py_ssize_t ahead             # elements to what will be read next


cdef inline vec weight_of(const int size, const int number, bint second, const vec* kept,
                          const Walk* w) noexcept nogil:
    if size * size == KEPT:
        return kept[KEPT + number] if second else kept[number]
    return vset1(w.weight[w.weight_apart + number]) if second else vset1(w.weight[number])


cdef inline void meet_column(const int size, const int step, const int vectors, const bint pair, const int c,
                             const int u, const vec* even, const vec* odd, const vec* kept, const Walk* w,
                             vec* sums) noexcept nogil:
    """Column c of taps and line u of those that came with the newest row of outputs."""
    cdef int v, j, r, rows = (size + step - 1) // step
    cdef vec[WIDE] x
    cdef vec weight
    if c < size:
        for v in range(vectors):
            x[v] = column_of(step, c, v, even, odd)
        for j in range(rows):
            r = (rows - 1 - j) * step + u
            if r < size:
                weight = weight_of(size, r * size + c, False, kept, w)
                for v in range(vectors):
                    if pair and v == 1:
                        weight = weight_of(size, r * size + c, True, kept, w)
                    sums[v * rows + j] = vfma_kept(sums[v * rows + j], weight, x[v])


cdef inline void meet_line(const int size, const int step, const int vectors, const bint pair, const int u,
                           const Walk* w, const real* line, const vec* kept, vec* sums) noexcept nogil:
    cdef vec[2 * WIDE] even, odd
    load_line(step, vectors, pair, &w.look, line, w.apart, even, odd)
    meet_column(size, step, vectors, pair, 0, u, even, odd, kept, w, sums)  # in a loop sums would leave the registers
    meet_column(size, step, vectors, pair, 1, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 2, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 3, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 4, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 5, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 6, u, even, odd, kept, w, sums)


cdef inline void fetch(const int step, const int vectors, const bint pair, const Walk* w,
                       const real* line) noexcept nogil:
    cdef int _v, i
    for _v in range(vectors):
        for i in range(step):
            prefetch_near(line + w.ahead + i * VL)
        line += w.apart if pair else step * VL


cdef inline void finish(const int rows, const int vectors, const bint pair, const Walk* w, vec* sums,
                        real* out) noexcept nogil:
    """The oldest row."""
    cdef int v
    for v in range(vectors):
        if w.relu:
            sums[v * rows] = vrelu(sums[v * rows])
        if pair or v == vectors - 1:
            vstore_first(out, w.last, sums[v * rows])
        else:
            vstore(out, sums[v * rows])
        out += w.out_apart if pair else VL


cdef inline void walk(const int size, const int step, const int vectors, const bint pair, const Walk* block,
                      Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of outputs of a block."""
    cdef Walk held = block[0]  # which no store can change
    cdef const Walk* w = &held
    cdef vec[WIDE * MOST_SIZE] sums
    cdef vec[2 * KEPT] kept
    cdef vec[2] bias
    cdef int rows = (size + step - 1) // step, i, v, u
    cdef Py_ssize_t newest, at
    cdef const real* line
    cdef real* out = w.out
    if size * size == KEPT:
        for i in range(KEPT):
            kept[i] = vset1(w.weight[i])
            if pair:
                kept[KEPT + i] = vset1(w.weight[w.weight_apart + i])
    for v in range(vectors):
        bias[v] = vset1(w.bias[v if pair else 0])
        for i in range(rows):
            sums[v * rows + i] = bias[v]
    for newest in range(first, last + rows - 1):
        at = newest * step - w.above
        line = w.plane + at * w.pitch
        for u in range(step):
            if 0 <= at + u < w.lines:
                fetch(step, vectors, pair, w, line)
                meet_line(size, step, vectors, pair, u, w, line, kept, sums)
            line += w.pitch
        if newest - first >= rows - 1:
            finish(rows, vectors, pair, w, sums, out)
            out += w.out_pitch
        for v in range(vectors):
            for i in range(rows - 1):
                sums[v * rows + i] = sums[v * rows + i + 1]
            sums[v * rows + rows - 1] = bias[v]


cdef inline void walk_of_width(const int size, const int step, int vectors, bint pair, const Walk* w,
                               Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if pair:
        walk(size, step, 2, True, w, first, last)
    elif vectors == 2:
        walk(size, step, 2, False, w, first, last)
    else:
        walk(size, step, 1, False, w, first, last)


cdef inline void walk_of_size(Py_ssize_t size, const int step, int vectors, bint pair, const Walk* w,
                              Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if size == 3:
        walk_of_width(3, step, vectors, pair, w, first, last)
    elif size == 5:
        walk_of_width(5, step, vectors, pair, w, first, last)
    else:
        walk_of_width(7, step, vectors, pair, w, first, last)


cdef inline void walk_rows(const Grid* grid, bint pair, const real* plane, real* out, Py_ssize_t first,
                           Py_ssize_t last, Walk* w) noexcept nogil:
    """Rows first .. last - 1 of the outputs of a plane, or of two, block after block; `out` is the first."""
    cdef const Geometry* g = grid.g
    cdef Py_ssize_t block = 0, width, step = g.step[2], column, vectors
    while block < g.out_size[2]:
        width = smaller(g.out_size[2] - block, WIDE * VL)
        vectors = ceil_div(width, VL)
        column = block * step + grid.columns.first
        w.plane = plane + column
        w.last = width - (vectors - 1) * VL
        w.out = out + block
        w.look = look_from(column, g.in_size[2], vectors * step)
        if step == 2:
            walk_of_size(grid.rows.count, 2, <int> vectors, pair, w, first, last)
        else:
            walk_of_size(grid.rows.count, 1, <int> vectors, pair, w, first, last)
        block += width
