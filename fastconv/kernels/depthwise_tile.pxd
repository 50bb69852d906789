"""The micro-kernel of depthwise convolution: a few rows of outputs, vector by vector along the width.

    out[i][v] = activation(start[i][v] + sum over e, r of weight[e][r] * line(i * advance + r)[e][v])

with i < rows <= TALL, r < taps <= MOST_TAPS, v a vector and line(l)[e] = input + offset[e] + l * pitch.
A weight is a whole vector: its lanes repeat the channels that share a pixel (depthwise_strip.pxd).
Every line is loaded once for each e and serves up to `taps` rows of outputs, so that loads, most of which
cross a cache line, do not bound the arithmetic. Sums run over e, then over r, whatever the tile: a result
does not depend on the tiling.
"""

from fastconv.kernels.depthwise_taps cimport MOST_TAPS
from fastconv.kernels.simd cimport (
    REGISTERS, SHIFTS, VL, real, vec, vfma, vindex, vload, vrelu, vshift, vshift_by, vstore,
    vstore_first,
)

cdef enum:
    # SHORT sums, MOST_TAPS weights and one line fit 16 registers; with 32, tiles are twice as tall. Maps of
    # 7, 14, 28, 56 and 112 rows are whole tiles.
    SHORT = 7
    TALL = 14


cdef struct Tile:
    const real* input
    Py_ssize_t pitch
    Py_ssize_t entries           # e
    const Py_ssize_t* offset
    const real* weight           # [entries][taps][VL]
    Py_ssize_t weight_step       # from vector to vector; 0 where all have the same
    const real* start            # bias or unfinished sums
    Py_ssize_t start_pitch       # from row to row; 0 for a bias
    Py_ssize_t start_step        # from vector to vector; 0 for a bias
    real* out
    Py_ssize_t out_pitch
    Py_ssize_t out_step          # from vector to vector
    Py_ssize_t vectors
    Py_ssize_t whole             # vectors that are stored whole
    Py_ssize_t last              # elements stored of the others
    bint relu
    bint aligned                 # lines begin vectors, and may be read a vector further than they are met
    bint cut                     # only lines `first_line` .. `last_line` - 1 are there; the others are zeros
    int first_line
    int last_line


# What all lines of a tile share.
cdef struct Feed:
    Py_ssize_t pitch
    vindex by                    # for lines that begin off a vector
    int first_line
    int last_line


cdef inline Py_ssize_t most_rows(int advance) noexcept nogil:
    return TALL if REGISTERS > 16 and advance == 1 else SHORT


cdef inline void feed(const int rows, const int taps, const int advance, const bint shifted, const bint cut,
                      const int l, vec* acc, const vec* weight, const real** line, const Feed* f) noexcept nogil:
    """Line l meets tap r of output i where l = i * advance + r."""
    cdef int r
    cdef vec x
    if l < (rows - 1) * advance + taps:
        if cut and (l < f.first_line or l >= f.last_line):
            line[0] += f.pitch
            return
        x = vload(line[0])
        if shifted:
            x = vshift(x, vload(line[0] + VL), f.by)
        line[0] += f.pitch
        for r in range(taps):
            if l >= r and (l - r) % advance == 0 and (l - r) // advance < rows:
                acc[(l - r) // advance] = vfma(weight[r], x, acc[(l - r) // advance])


cdef inline void feed_all(const int rows, const int taps, const int advance, const bint shifted, const bint cut,
                          vec* acc, const vec* weight, const real* line, const Feed* f) noexcept nogil:
    """Lines 0 .. 19. In a loop the compiler would not unroll so many, and the sums would leave the registers."""
    feed(rows, taps, advance, shifted, cut, 0, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 1, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 2, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 3, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 4, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 5, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 6, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 7, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 8, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 9, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 10, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 11, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 12, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 13, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 14, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 15, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 16, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 17, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 18, acc, weight, &line, f)
    feed(rows, taps, advance, shifted, cut, 19, acc, weight, &line, f)


cdef inline void tile(const int rows, const int taps, const int advance, const bint cut,
                      const Tile* t) noexcept nogil:
    cdef vec[TALL] acc
    cdef vec[MOST_TAPS] weight
    cdef int i, r
    cdef Py_ssize_t v, e, shift, entries = t.entries, vectors = t.vectors
    cdef Py_ssize_t whole = t.whole, last = t.last, out_step = t.out_step
    cdef Py_ssize_t start_pitch = t.start_pitch, start_step = t.start_step, out_pitch = t.out_pitch
    cdef Py_ssize_t weight_step = t.weight_step
    cdef const Py_ssize_t* offset = t.offset
    cdef const real* input = t.input
    cdef const real* start = t.start
    cdef const real* weights_of = t.weight
    cdef const real* weights
    cdef const real* row_start
    cdef real* out = t.out
    cdef real* row_out
    cdef bint relu = t.relu
    cdef Feed f
    # A line that serves few taps is worth two aligned loads and a shift.
    cdef bint shifts = SHIFTS and not cut and taps <= 3 * advance and t.aligned
    f.pitch = t.pitch
    f.first_line = t.first_line
    f.last_line = t.last_line
    for v in range(vectors):
        # Pointers that walk: the compiler would work out the address of every row before the first.
        row_start = start
        for i in range(rows):
            acc[i] = vload(row_start)
            row_start += start_pitch
        weights = weights_of
        for e in range(entries):
            for r in range(taps):
                weight[r] = vload(weights + r * VL)
            shift = offset[e] & (VL - 1)
            if shifts and shift:
                f.by = vshift_by(shift)
                feed_all(rows, taps, advance, True, False, acc, weight, input + offset[e] - shift, &f)
            else:
                feed_all(rows, taps, advance, False, cut, acc, weight, input + offset[e], &f)
            weights += taps * VL
        if relu:
            for i in range(rows):
                acc[i] = vrelu(acc[i])
        row_out = out
        if v < whole:
            for i in range(rows):
                vstore(row_out, acc[i])
                row_out += out_pitch
        else:
            for i in range(rows):
                vstore_first(row_out, last, acc[i])
                row_out += out_pitch
        input += VL
        out += out_step
        start += start_step
        weights_of += weight_step


cdef inline void tile_of_height(int rows, const int taps, const int advance, const bint cut,
                                const Tile* t) noexcept nogil:
    """One instance of `tile` for each height up to SHORT: the last rows of a map are cut evenly."""
    if rows == 14 and REGISTERS > 16 and advance == 1 and not cut:
        tile(14, taps, advance, cut, t)
    elif rows == 7:
        tile(7, taps, advance, cut, t)
    elif rows == 6:
        tile(6, taps, advance, cut, t)
    elif rows == 5:
        tile(5, taps, advance, cut, t)
    elif rows == 4:
        tile(4, taps, advance, cut, t)
    elif rows == 3:
        tile(3, taps, advance, cut, t)
    elif rows == 2:
        tile(2, taps, advance, cut, t)
    else:
        tile(1, taps, advance, cut, t)


cdef inline void tile_of_taps(int rows, int taps, const int advance, const bint cut, const Tile* t) noexcept nogil:
    if taps == 1:
        tile_of_height(rows, 1, advance, cut, t)
    elif taps == 2:
        tile_of_height(rows, 2, advance, cut, t)
    elif taps == 3:
        tile_of_height(rows, 3, advance, cut, t)
    elif taps == 4:
        tile_of_height(rows, 4, advance, cut, t)
    elif taps == 5:
        tile_of_height(rows, 5, advance, cut, t)
    elif taps == 6:
        tile_of_height(rows, 6, advance, cut, t)
    else:
        tile_of_height(rows, 7, advance, cut, t)
