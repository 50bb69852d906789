"""The micro-kernel of image filters: a few rows of outputs, vector by vector along the width.

    out[i][v] = activation(start[i][v] + sum over e, r of weight[e][r] * line(i + r)[e][v])

with i < rows <= TALL, r < taps <= MOST, v a vector and line(l)[e] = input + offset[e] + l * pitch. Sums and
weights of one e stay in registers, and a line is loaded once for all the rows of outputs that meet it. Sums
run over e, then over r, whatever the tile: a result does not depend on the tiling.
"""

from fastconv.kernels.gemm_pack cimport PAGE
from fastconv.kernels.simd cimport (
    REGISTERS, VL, real, vec, vfma_kept, vload, vrelu, vset1, vstore, vstore_first, vstream,
)

cdef enum:
    # TALL sums, MOST weights and a line: 25 of 32 registers, and with SHORT and FEW 16 of 16.
    TALL = 16
    SHORT = 8
    MOST = 8
    FEW = 7


cdef struct Tile:
    const real* input
    Py_ssize_t pitch
    Py_ssize_t entries           # e
    const Py_ssize_t* offset
    const real* weight           # [entries][taps]
    const real* start            # bias or unfinished sums
    Py_ssize_t start_pitch       # from row to row; 0 for a bias
    Py_ssize_t start_step        # from vector to vector; 0 for a bias
    real* out
    Py_ssize_t out_pitch
    Py_ssize_t vectors
    Py_ssize_t last              # elements stored of the last vector
    bint relu
    bint stream


cdef inline int most_taps() noexcept nogil:
    return MOST if REGISTERS > 16 else FEW


cdef inline int most_rows(Py_ssize_t pitch) noexcept nogil:
    """Lines a page apart share a few lines of the first-level cache, which more than SHORT rows would overrun.

    In place on 4096x4096, 3x3 and 9x9, AVX-512: 7.2 and 26 ms with 8 rows, 8.6 and 33 with 16; on 1000x1000
    0.36 and 1.38 with 8, 0.36 and 1.29 with 16.
    """
    if REGISTERS > 16 and pitch * <Py_ssize_t> sizeof(real) % PAGE != 0:
        return TALL
    return SHORT


cdef inline void meet(const int rows, const int taps, const int l, const int r, vec* acc, const vec* weight,
                      vec x) noexcept nogil:
    """Line l meets tap r of output l - r."""
    if r < taps and 0 <= l - r < rows:
        acc[l - r] = vfma_kept(acc[l - r], weight[r], x)


cdef inline void feed(const int rows, const int taps, const int l, vec* acc, const vec* weight,
                      const real** line, Py_ssize_t pitch) noexcept nogil:
    cdef vec x
    if l < rows + taps - 1:
        x = vload(line[0])
        line[0] += pitch
        meet(rows, taps, l, 0, acc, weight, x)
        meet(rows, taps, l, 1, acc, weight, x)
        meet(rows, taps, l, 2, acc, weight, x)
        meet(rows, taps, l, 3, acc, weight, x)
        meet(rows, taps, l, 4, acc, weight, x)
        meet(rows, taps, l, 5, acc, weight, x)
        meet(rows, taps, l, 6, acc, weight, x)
        meet(rows, taps, l, 7, acc, weight, x)


cdef inline void feed_all(const int rows, const int taps, vec* acc, const vec* weight, const real* line,
                          Py_ssize_t pitch) noexcept nogil:
    """Lines 0 .. TALL + MOST - 2. In a loop so long the sums would leave the registers."""
    feed(rows, taps, 0, acc, weight, &line, pitch)
    feed(rows, taps, 1, acc, weight, &line, pitch)
    feed(rows, taps, 2, acc, weight, &line, pitch)
    feed(rows, taps, 3, acc, weight, &line, pitch)
    feed(rows, taps, 4, acc, weight, &line, pitch)
    feed(rows, taps, 5, acc, weight, &line, pitch)
    feed(rows, taps, 6, acc, weight, &line, pitch)
    feed(rows, taps, 7, acc, weight, &line, pitch)
    feed(rows, taps, 8, acc, weight, &line, pitch)
    feed(rows, taps, 9, acc, weight, &line, pitch)
    feed(rows, taps, 10, acc, weight, &line, pitch)
    feed(rows, taps, 11, acc, weight, &line, pitch)
    feed(rows, taps, 12, acc, weight, &line, pitch)
    feed(rows, taps, 13, acc, weight, &line, pitch)
    feed(rows, taps, 14, acc, weight, &line, pitch)
    feed(rows, taps, 15, acc, weight, &line, pitch)
    feed(rows, taps, 16, acc, weight, &line, pitch)
    feed(rows, taps, 17, acc, weight, &line, pitch)
    feed(rows, taps, 18, acc, weight, &line, pitch)
    feed(rows, taps, 19, acc, weight, &line, pitch)
    feed(rows, taps, 20, acc, weight, &line, pitch)
    feed(rows, taps, 21, acc, weight, &line, pitch)
    feed(rows, taps, 22, acc, weight, &line, pitch)


cdef inline void tile(const int rows, const int taps, const Tile* t) noexcept nogil:
    cdef vec[TALL] acc
    cdef vec[MOST] weight
    cdef int i, r
    cdef Py_ssize_t v, e, pitch = t.pitch, entries = t.entries, vectors = t.vectors, last = t.last
    cdef Py_ssize_t start_pitch = t.start_pitch, start_step = t.start_step, out_pitch = t.out_pitch
    cdef const Py_ssize_t* offset = t.offset
    cdef const real* input = t.input
    cdef const real* start = t.start
    cdef const real* weights
    cdef const real* row_start
    cdef real* out = t.out
    cdef real* row_out
    cdef bint relu = t.relu, stream = t.stream
    for v in range(vectors):
        # Pointers that walk: the compiler would work out the address of every row before the first.
        row_start = start
        for i in range(rows):
            acc[i] = vload(row_start)
            row_start += start_pitch
        weights = t.weight
        for e in range(entries):
            for r in range(taps):
                weight[r] = vset1(weights[r])
            feed_all(rows, taps, acc, weight, input + offset[e], pitch)
            weights += taps
        if relu:
            for i in range(rows):
                acc[i] = vrelu(acc[i])
        row_out = out
        if v + 1 == vectors and last < VL:
            for i in range(rows):
                vstore_first(row_out, last, acc[i])
                row_out += out_pitch
        elif stream:
            for i in range(rows):
                vstream(row_out, acc[i])
                row_out += out_pitch
        else:
            for i in range(rows):
                vstore(row_out, acc[i])
                row_out += out_pitch
        input += VL
        out += VL
        start += start_step


cdef inline void tile_of_taps(const int rows, int taps, const Tile* t) noexcept nogil:
    if taps == 1:
        tile(rows, 1, t)
    elif taps == 2:
        tile(rows, 2, t)
    elif taps == 3:
        tile(rows, 3, t)
    elif taps == 4:
        tile(rows, 4, t)
    elif taps == 5:
        tile(rows, 5, t)
    elif taps == 6:
        tile(rows, 6, t)
    elif taps == 7 or REGISTERS == 16:
        tile(rows, 7, t)
    else:
        tile(rows, 8, t)


cdef inline void tile_of_height(int rows, int taps, const Tile* t) noexcept nogil:
    """An instance for each of a few heights: tiles of the last rows reach back over those before."""
    if rows == 16 and REGISTERS > 16:
        tile_of_taps(16, taps, t)
    elif rows == 8:
        tile_of_taps(8, taps, t)
    elif rows == 4:
        tile_of_taps(4, taps, t)
    elif rows == 2:
        tile_of_taps(2, taps, t)
    else:
        tile_of_taps(1, taps, t)
