"""Sweeps: a block of rows along all pixels of a task, where the depth is short and pixels are read in place.

    out[i, line, x] = activation(bias[i] + sum over k of a[k * rows + i] * b[offsets[k] + line, x])

With few products for each sum, what a tile costs beside them decides: here that is the stores and little else. The
pixels come in lines that are read and written in whole stretches: an image, or the rows of a band. Every sum runs
over k in ascending order.
"""

from fastconv.kernels.simd cimport (
    REGISTERS, UNROLL, VL, as_one, real, vec, vfma_onto, vload, vrelu, vset1, vstore, vstore_first, vzero,
)

cdef enum:
    ACROSS = 3  # vectors of a tile
    LOW = (REGISTERS - 1) // ACROSS - 1  # rows that it leaves registers for
    LEAST = LOW * 4 // 5  # fewer are rare: of 22 rows or more, blocks have 7 to 9 (3 or 4 of 6 or more)
    STRETCH_BYTES = 16 << 10  # of pixels, a third of a first-level cache; not swept


cdef struct Sweep:
    Py_ssize_t depth
    const real* a                # packed
    const real* bias             # one a row, or NULL
    const real* b
    const Py_ssize_t* offsets
    real* out
    Py_ssize_t out_row
    Py_ssize_t lines
    Py_ssize_t columns           # of a line
    Py_ssize_t b_line            # from one line to the next
    Py_ssize_t out_line
    bint relu


cdef inline bint fills_tiles(Py_ssize_t columns) noexcept nogil:
    """Are lines so long that the tile which ends them early, or overlaps the one before, costs little?"""
    cdef Py_ssize_t width = ACROSS * VL, tiles = (columns + width - 1) // width
    return 8 * columns >= 7 * tiles * width


cdef inline Py_ssize_t stretch_of(Py_ssize_t depth) noexcept nogil:
    """Columns, in whole tiles, that first-level caches hold over the whole depth for all blocks of rows."""
    cdef Py_ssize_t width = ACROSS * VL
    return (STRETCH_BYTES // <Py_ssize_t> sizeof(real) // depth // width + 1) * width


cdef inline void multiply(const int rows, vec* acc, const real* a, const real* b) noexcept nogil:
    """One step of the depth."""
    cdef vec[ACROSS] b_row
    cdef vec a_value
    cdef int i, j
    for j in range(ACROSS):
        b_row[j] = vload(b + j * VL)
    for i in range(rows):
        a_value = vset1(a[i])
        for j in range(ACROSS):
            acc[i * ACROSS + j] = vfma_onto(acc[i * ACROSS + j], a_value, b_row[j])


cdef inline void sweep_tile(const int rows, const bint whole, const Sweep* s, const real* b, real* out) noexcept nogil:
    cdef vec[LOW * ACROSS] acc
    cdef Py_ssize_t k, _k
    cdef int i, j
    cdef const real* a = s.a
    cdef const Py_ssize_t* offsets = s.offsets
    if s.bias != NULL:
        for i in range(rows):
            for j in range(ACROSS):
                acc[i * ACROSS + j] = vset1(s.bias[i])
    else:
        for i in range(rows):
            for j in range(ACROSS):
                acc[i * ACROSS + j] = vzero()
    for _k in range(s.depth // UNROLL):
        for i in range(UNROLL):
            multiply(rows, acc, a, as_one(b + offsets[i]))
            a += rows
        offsets += UNROLL
    for k in range(s.depth % UNROLL):
        multiply(rows, acc, a, as_one(b + offsets[k]))
        a += rows
    if s.relu:
        for i in range(rows):
            for j in range(ACROSS):
                acc[i * ACROSS + j] = vrelu(acc[i * ACROSS + j])
    for i in range(rows):
        for j in range(ACROSS if whole else ACROSS - 1):
            vstore(out + i * s.out_row + j * VL, acc[i * ACROSS + j])
        if not whole:
            vstore_first(out + i * s.out_row + (ACROSS - 1) * VL, s.columns - (ACROSS - 1) * VL,
                         acc[i * ACROSS + ACROSS - 1])


cdef inline void sweep_lines(const int rows, const Sweep* s) noexcept nogil:
    """The last tile of a line begins early, and computes some sums again."""
    cdef Py_ssize_t _line, x, at, last = s.columns - ACROSS * VL
    cdef const real* b = s.b
    cdef real* out = s.out
    for _line in range(s.lines):
        if last < 0:
            sweep_tile(rows, False, s, b, out)
        x = 0
        while last >= 0 and x < s.columns:
            at = x if x < last else last
            sweep_tile(rows, True, s, b + at, out + at)
            x += ACROSS * VL
        b += s.b_line
        out += s.out_line


cdef inline void sweep(int rows, const Sweep* s) noexcept nogil:
    """For LEAST to LOW rows."""
    if rows == LOW:
        sweep_lines(LOW, s)
    elif LEAST == LOW - 1 or rows == LOW - 1:
        sweep_lines(LOW - 1, s)
    else:
        sweep_lines(LEAST, s)
