"""The micro-kernel of the weight gradient by shifted reading: a register tile of sums over pixels.

    totals[i][j] += sum over n, p of grad[n][i][p] * strip[n](p)[j],   i < rows <= ROWS, j < vectors <= VECTORS

where grad[n][i][p] is one number and strip[n](p)[j], at strip[n] + at[p] + offset[j], a vector: channels, or
channels of neighbouring taps, of the pixels that output p meets.
"""

from fastconv.kernels.simd cimport (
    REGISTERS, VL, prefetch_far, real, vadd, vec, vfma_onto, vload, vset1, vstore, vzero,
)

cdef enum:
    VECTORS = 3
    ROWS = (REGISTERS - 4) // VECTORS // 4 * 4  # 8 x 3 sums of 32 registers, 4 x 3 of 16 ...
    TALL = ROWS * VECTORS // 2  # ... or 12 x 2, 6 x 2: fewer vectors to load for each sum


cdef struct Tile:
    Py_ssize_t images
    Py_ssize_t pixels            # of an image
    const real* grad
    Py_ssize_t grad_image
    Py_ssize_t grad_row
    const real* strip
    Py_ssize_t strip_image
    const Py_ssize_t* at
    Py_ssize_t[VECTORS] offset
    real* totals
    Py_ssize_t totals_row
    bint first                   # the totals begin here
    const real* fetched          # into L2 meanwhile, a little with every pixel
    Py_ssize_t fetch_step


cdef inline void multiply(const int rows, const int vectors, vec* acc, const real** grad, Py_ssize_t grad_row,
                          const real** strip, Py_ssize_t at) noexcept nogil:
    """One pixel; grad holds the address of every fourth row, as in gemm_micro.pxd."""
    cdef vec[VECTORS] x
    cdef vec weight
    cdef int i, j
    for j in range(vectors):
        x[j] = vload(strip[j] + at)
    for i in range(rows):
        weight = vset1(grad[i // 4][i % 4 * grad_row])
        for j in range(vectors):
            acc[i * vectors + j] = vfma_onto(acc[i * vectors + j], weight, x[j])


cdef inline void weigh(const int rows, const int vectors, const Tile* t) noexcept nogil:
    cdef vec[ROWS * VECTORS] acc
    cdef const real* grad[3]
    cdef const real* strip[VECTORS]
    cdef const Py_ssize_t* at = t.at
    cdef Py_ssize_t grad_row = t.grad_row, pixels = t.pixels, p, _n
    cdef int i, j
    cdef real* to
    cdef const real* fetched = t.fetched
    cdef Py_ssize_t fetch_step = t.fetch_step
    for i in range(0, rows, 4):
        grad[i // 4] = t.grad + i * grad_row
    for j in range(vectors):
        strip[j] = t.strip + t.offset[j]
    for i in range(rows):
        for j in range(vectors):
            acc[i * vectors + j] = vzero()
    for _n in range(t.images):
        for p in range(pixels):
            prefetch_far(fetched)
            fetched += fetch_step
            multiply(rows, vectors, acc, grad, grad_row, strip, at[p])
            for i in range(0, rows, 4):
                grad[i // 4] += 1
        for i in range(0, rows, 4):
            grad[i // 4] += t.grad_image - pixels
        for j in range(vectors):
            strip[j] += t.strip_image
    for i in range(rows):
        to = t.totals + i * t.totals_row
        for j in range(vectors):
            vstore(to + j * VL, acc[i * vectors + j] if t.first else vadd(vload(to + j * VL), acc[i * vectors + j]))


cdef inline int rows_at_once(Py_ssize_t vectors) noexcept nogil:
    return ROWS if vectors == VECTORS else TALL


cdef inline void weigh_rows(const int rows, int vectors, const Tile* t) noexcept nogil:
    if rows <= ROWS and vectors == 3:
        weigh(rows, 3, t)
    elif vectors == 2:
        weigh(rows, 2, t)
    else:
        weigh(rows, 1, t)


cdef inline void weigh_tile(int rows, int vectors, const Tile* t) noexcept nogil:
    """One instance for each height: rows are cut into even blocks."""
    if rows == 1:
        weigh_rows(1, vectors, t)
    elif rows == 2:
        weigh_rows(2, vectors, t)
    elif rows == 3:
        weigh_rows(3, vectors, t)
    elif rows == 4:
        weigh_rows(4, vectors, t)
    elif rows == 5:
        weigh_rows(5, vectors, t)
    elif rows == 6:
        weigh_rows(6, vectors, t)
    elif TALL > 6:
        if rows == 7:
            weigh_rows(7, vectors, t)
        elif rows == 8:
            weigh_rows(8, vectors, t)
        elif rows == 9:
            weigh_rows(9, vectors, t)
        elif rows == 10:
            weigh_rows(10, vectors, t)
        elif rows == 11:
            weigh_rows(11, vectors, t)
        else:
            weigh_rows(12, vectors, t)
