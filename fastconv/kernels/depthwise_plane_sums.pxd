"""The micro-kernel of weight gradients of planes that are read where they lie.

    totals[c][r] += sum over rows i and lanes of grad(i) * line(i * step + r)[c]

A block is some rows of the gradient, one or two vectors wide. Each line of the input (depthwise_line.pxd) is loaded
once for a few columns of taps, and meets all rows of the gradient that it has to, which take turns in the registers,
beside the sums.
"""

from fastconv.kernels.depthwise_line cimport WIDE, Look, column_of, load_line, look_from
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    VL, prefetch_near, real, vadd, vec, vfma_kept, vload, vload_span, vspan, vspan_of, vstore, vzero,
)

cdef enum:
    MOST_WEIGHED = 5             # rows and columns of taps: of 7x7 the sums leave no room, and strips are faster
    MOST_COLUMNS = 3             # at once


cdef struct Weigh:
    const real* plane            # at the column where the first tap meets the first output
    Py_ssize_t pitch
    Py_ssize_t lines             # of the plane
    Py_ssize_t above             # lines that the first output meets before them
    Look look
    Py_ssize_t ahead             # elements to what will be read next
    const real* grad
    Py_ssize_t grad_pitch
    Py_ssize_t grad_ahead
    vspan last                   # lanes of the last vector of the gradient
    real* totals                 # [column][row] of taps, vectors


cdef inline void weigh_column(const int size, const int step, const int vectors, const int columns, const int c,
                              const int u, const vec* even, const vec* odd, const vec* grad,
                              vec* sums) noexcept nogil:
    """Column c of taps and line u of those that came with the newest row of the gradient."""
    cdef int v, j, r, rows = (size + step - 1) // step
    cdef vec x
    if c < columns:
        for v in range(vectors):
            x = column_of(step, c, v, even, odd)
            for j in range(rows):
                r = (rows - 1 - j) * step + u
                if r < size:
                    sums[c * size + r] = vfma_kept(sums[c * size + r], grad[v * rows + j], x)


cdef inline void weigh(const int size, const int step, const int vectors, const int columns, const Weigh* block,
                       Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Weigh held = block[0]  # which no store can change
    cdef const Weigh* w = &held
    cdef vec[MOST_COLUMNS * MOST_WEIGHED] sums
    cdef vec[WIDE * MOST_WEIGHED] grad
    cdef vec[2 * WIDE] even, odd
    cdef int rows = (size + step - 1) // step, i, v, u
    cdef Py_ssize_t newest, at
    cdef const real* line
    cdef const real* source = w.grad
    for i in range(columns * size):
        sums[i] = vzero()
    for i in range(vectors * rows):
        grad[i] = vzero()
    for newest in range(first, last + rows - 1):
        for v in range(vectors):
            for i in range(rows - 1):
                grad[v * rows + i] = grad[v * rows + i + 1]
            grad[v * rows + rows - 1] = vzero()
            if newest < last:
                prefetch_near(source + v * VL + w.grad_ahead)
                if v == vectors - 1:
                    grad[v * rows + rows - 1] = vload_span(source + v * VL, w.last)
                else:
                    grad[v * rows + rows - 1] = vload(source + v * VL)
        source += w.grad_pitch
        at = newest * step - w.above
        line = w.plane + at * w.pitch
        for u in range(step):
            if 0 <= at + u < w.lines:
                for i in range(vectors * step):
                    prefetch_near(line + w.ahead + i * VL)
                load_line(step, vectors, False, &w.look, line, 0, even, odd)
                weigh_column(size, step, vectors, columns, 0, u, even, odd, grad, sums)
                weigh_column(size, step, vectors, columns, 1, u, even, odd, grad, sums)
                weigh_column(size, step, vectors, columns, 2, u, even, odd, grad, sums)
            line += w.pitch
    for i in range(columns * size):
        vstore(w.totals + i * VL, vadd(vload(w.totals + i * VL), sums[i]))


cdef inline void weigh_width(const int size, const int step, int vectors, const int columns, const Weigh* w,
                             Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if vectors == 2:
        weigh(size, step, 2, columns, w, first, last)
    else:
        weigh(size, step, 1, columns, w, first, last)


cdef inline void weigh_size(Py_ssize_t size, const int step, int vectors, int columns, const Weigh* w,
                            Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if size == 3:
        weigh_width(3, step, vectors, 3, w, first, last)
    elif columns == 3:
        weigh_width(5, step, vectors, 3, w, first, last)
    else:
        weigh_width(5, step, vectors, 2, w, first, last)


cdef inline void weigh_rows(const Grid* grid, const real* plane, const real* grad, Py_ssize_t first, Py_ssize_t last,
                            real* totals, Weigh* w) noexcept nogil:
    """Rows first .. last - 1 of the gradient of a plane, of which `grad` is the first: added to the totals."""
    cdef const Geometry* g = grid.g
    cdef Py_ssize_t block = 0, width, step = g.step[2], column, vectors, size = grid.rows.count, tap, columns
    while block < g.out_size[2]:
        width = smaller(g.out_size[2] - block, WIDE * VL)
        vectors = ceil_div(width, VL)
        w.grad = grad + block
        w.last = vspan_of(0, width - (vectors - 1) * VL)
        tap = 0
        while tap < size:
            columns = smaller(size - tap, MOST_COLUMNS)
            column = block * step + grid.columns.first + tap
            w.plane = plane + column
            w.look = look_from(column, g.in_size[2], vectors * step)
            w.totals = totals + tap * size * VL
            if step == 2:
                weigh_size(size, 2, <int> vectors, <int> columns, w, first, last)
            else:
                weigh_size(size, 1, <int> vectors, <int> columns, w, first, last)
            tap += columns
        block += width
