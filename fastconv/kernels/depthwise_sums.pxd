"""The micro-kernel of the depthwise weight gradient: a few rows and columns of taps over a strip.

    totals[c][r] += sum over tiles, vectors, i of grad(i) * line(i * advance + r)[c]

with i < TALL rows of a tile of the gradient, r < taps, c < columns and line(l)[c] = input + offset[c] + l *
pitch. The sums, a tile of the gradient and one line fill the registers; each line serves up to `taps` sums.
"""

from fastconv.kernels.depthwise_taps cimport MOST_TAPS
from fastconv.kernels.simd cimport REGISTERS, VL, real, vadd, vec, vfma, vload, vstore, vzero

cdef enum:
    TALL = 7
    MOST_COLUMNS = 5
    ROOM = REGISTERS - TALL - 1  # for sums, beside the tile and a line


cdef struct Sums:
    const real* input
    Py_ssize_t pitch
    Py_ssize_t[MOST_COLUMNS] offset
    const real* grad
    Py_ssize_t grad_pitch
    Py_ssize_t tiles
    Py_ssize_t tile_step         # from tile to tile in the input
    Py_ssize_t grad_step         # and in the gradient
    Py_ssize_t vectors
    real* totals
    Py_ssize_t totals_pitch      # from column to column
    Py_ssize_t totals_gap        # from row to row of the taps


cdef inline int columns_at_once(int taps) noexcept nogil:
    cdef int room = ROOM // taps
    return 1 if room < 1 else MOST_COLUMNS if room > MOST_COLUMNS else room


cdef inline void meet(const int taps, const int advance, const int l, vec* acc, const vec* grad,
                      const real** line, Py_ssize_t pitch) noexcept nogil:
    """Line l meets row i of the gradient by tap r where l = i * advance + r."""
    cdef int r
    cdef vec x
    if l < (TALL - 1) * advance + taps:
        x = vload(line[0])
        line[0] += pitch
        for r in range(taps):
            if l >= r and (l - r) % advance == 0 and (l - r) // advance < TALL:
                acc[r] = vfma(grad[(l - r) // advance], x, acc[r])


cdef inline void meet_all(const int taps, const int advance, vec* acc, const vec* grad, const real* line,
                          Py_ssize_t pitch) noexcept nogil:
    """Lines 0 .. 2 * (TALL - 1) + MOST_TAPS - 1; no loop, as in depthwise_tile.pxd."""
    meet(taps, advance, 0, acc, grad, &line, pitch)
    meet(taps, advance, 1, acc, grad, &line, pitch)
    meet(taps, advance, 2, acc, grad, &line, pitch)
    meet(taps, advance, 3, acc, grad, &line, pitch)
    meet(taps, advance, 4, acc, grad, &line, pitch)
    meet(taps, advance, 5, acc, grad, &line, pitch)
    meet(taps, advance, 6, acc, grad, &line, pitch)
    meet(taps, advance, 7, acc, grad, &line, pitch)
    meet(taps, advance, 8, acc, grad, &line, pitch)
    meet(taps, advance, 9, acc, grad, &line, pitch)
    meet(taps, advance, 10, acc, grad, &line, pitch)
    meet(taps, advance, 11, acc, grad, &line, pitch)
    meet(taps, advance, 12, acc, grad, &line, pitch)
    meet(taps, advance, 13, acc, grad, &line, pitch)
    meet(taps, advance, 14, acc, grad, &line, pitch)
    meet(taps, advance, 15, acc, grad, &line, pitch)
    meet(taps, advance, 16, acc, grad, &line, pitch)
    meet(taps, advance, 17, acc, grad, &line, pitch)
    meet(taps, advance, 18, acc, grad, &line, pitch)


cdef inline void sums(const int taps, const int columns, const int advance, const Sums* s) noexcept nogil:
    cdef vec[MOST_COLUMNS][MOST_TAPS] acc
    cdef vec[TALL] grad
    cdef int r, c, i
    cdef Py_ssize_t k, _v, pitch = s.pitch, grad_pitch = s.grad_pitch, vectors = s.vectors
    cdef Py_ssize_t[MOST_COLUMNS] offset
    cdef const real* input
    cdef const real* source
    cdef real* total
    for c in range(columns):
        offset[c] = s.offset[c]
        for r in range(taps):
            acc[c][r] = vzero()
    for k in range(s.tiles):
        input = s.input + k * s.tile_step
        source = s.grad + k * s.grad_step
        for _v in range(vectors):
            for i in range(TALL):
                grad[i] = vload(source + i * grad_pitch)
            for c in range(columns):
                meet_all(taps, advance, acc[c], grad, input + offset[c], pitch)
            input += VL
            source += VL
    for c in range(columns):
        for r in range(taps):
            total = s.totals + c * s.totals_pitch + r * s.totals_gap
            vstore(total, vadd(vload(total), acc[c][r]))


cdef inline void sums_of_columns(const int taps, int columns, const int advance,
                                 const Sums* s) noexcept nogil:
    if columns == 1 or ROOM < 2 * taps:
        sums(taps, 1, advance, s)
    elif columns == 2 or ROOM < 3 * taps:
        sums(taps, 2, advance, s)
    elif columns == 3 or ROOM < 4 * taps:
        sums(taps, 3, advance, s)
    elif columns == 4 or ROOM < 5 * taps:
        sums(taps, 4, advance, s)
    else:
        sums(taps, 5, advance, s)


cdef inline void sums_of_taps(int taps, int columns, const int advance, const Sums* s) noexcept nogil:
    if taps == 1:
        sums_of_columns(1, columns, advance, s)
    elif taps == 2:
        sums_of_columns(2, columns, advance, s)
    elif taps == 3:
        sums_of_columns(3, columns, advance, s)
    elif taps == 4:
        sums_of_columns(4, columns, advance, s)
    elif taps == 5:
        sums_of_columns(5, columns, advance, s)
    elif taps == 6:
        sums_of_columns(6, columns, advance, s)
    else:
        sums_of_columns(7, columns, advance, s)


cdef inline void sums_of_advance(int taps, int columns, bint advances, const Sums* s) noexcept nogil:
    if advances:
        sums_of_taps(taps, columns, 2, s)
    else:
        sums_of_taps(taps, columns, 1, s)
