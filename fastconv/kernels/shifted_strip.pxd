"""Strips with the channels innermost: what the outputs of a piece meet, in cache, with its padding.

    strip[line][column][d],   d < depth

A line is a row of the input, and d a channel; or, folded, a line holds the rows of the input that all rows of
taps meet for one row of outputs, and d runs over rows of taps, then channels. Taps with no gap along the width
then meet stretches of lanes: those of the next column follow.
"""

from libc.string cimport memset

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.simd cimport (
    VL, real, vec, vload, vload_first, vstore, vtranspose, vzip_high, vzip_low,
)

cdef inline vec pixels(const real* row, Py_ssize_t count, bint whole) noexcept nogil:
    return vload(row) if whole else vload_first(row, count)


cdef inline void interleave(const int depth, const real** rows, Py_ssize_t at, Py_ssize_t count, bint whole,
                            real* to) noexcept nogil:
    """VL pixels of `depth` rows, a power of two below VL: each round of zips moves the highest bit of a
    row's number below the bits of the pixel."""
    cdef vec[8] x, y
    cdef int i
    for i in range(depth):
        x[i] = pixels(rows[i] + at, count, whole)
    if depth > 1:
        for i in range(depth // 2):
            y[2 * i] = vzip_low(x[i], x[i + depth // 2])
            y[2 * i + 1] = vzip_high(x[i], x[i + depth // 2])
    if depth > 2:
        for i in range(depth // 2):
            x[2 * i] = vzip_low(y[i], y[i + depth // 2])
            x[2 * i + 1] = vzip_high(y[i], y[i + depth // 2])
    if depth > 4:
        for i in range(depth // 2):
            y[2 * i] = vzip_low(x[i], x[i + depth // 2])
            y[2 * i + 1] = vzip_high(x[i], x[i + depth // 2])
    for i in range(depth):
        if i * VL < count * depth:
            vstore(to + i * VL, x[i] if depth == 1 or depth == 4 else y[i])


cdef inline void transpose(const real** rows, Py_ssize_t at, Py_ssize_t count, bint whole, real* to,
                           Py_ssize_t depth) noexcept nogil:
    """VL pixels of VL rows: lanes that reach into the next pixel are written again later."""
    cdef vec[VL] block
    cdef Py_ssize_t i
    for i in range(VL):
        block[i] = pixels(rows[i] + at, count, whole)
    vtranspose(block)
    if count == VL:
        for i in range(VL):
            vstore(to + i * depth, block[i])
        return
    for i in range(count):
        vstore(to + i * depth, block[i])


cdef inline void fill_pixels(const real** rows, Py_ssize_t depth, Py_ssize_t inside, bint whole,
                             real* to) noexcept nogil:
    cdef Py_ssize_t at = 0, count, block
    while at < inside:
        count = smaller(VL, inside - at)
        if depth == 4 and VL > 4:
            interleave(4, rows, at, count, whole, to)
        elif depth == 8 and VL > 8:
            interleave(8, rows, at, count, whole, to)
        elif depth == 2 and VL > 2:
            interleave(2, rows, at, count, whole, to)
        elif depth == 1:
            interleave(1, rows, at, count, whole, to)
        else:
            block = (depth - 1) // VL * VL
            while block >= 0:
                transpose(rows + block, at, count, whole, to + block, depth)
                block -= VL
        to += count * depth
        at += VL


cdef inline void fill_line(const real** rows, Py_ssize_t depth, Py_ssize_t before, Py_ssize_t inside,
                           Py_ssize_t columns, bint whole, real* to) noexcept nogil:
    """Zeros, `inside` pixels of each row, zeros. There are rows up to a multiple of VL.

    `whole` vectors may be read wherever the input does not end with a row: what follows is written again later.
    """
    memset(to, 0, before * depth * sizeof(real))
    if inside % VL == 0 or whole:
        fill_pixels(rows, depth, inside, True, to + before * depth)
    else:
        fill_pixels(rows, depth, inside, False, to + before * depth)
    memset(to + (before + inside) * depth, 0, (columns - before - inside) * depth * sizeof(real))
