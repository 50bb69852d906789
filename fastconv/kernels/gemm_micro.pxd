"""The micro-kernel: one register tile of a matrix product.

    out[i, j] = activation(start[i, j] + sum over k of a[i * a_row + k * a_step] * b[k * width + j])

for i < rows <= MR and j < width = vectors * VL <= NR. `start` is a matrix, a bias a row, or zero.
b is packed: `width` values a step. a is read in place, or packed with a_row = 1. A fused tile reads b
from an image of row stride `image_row` and packs it into `b` on the way, for the tiles that follow. A
banded tile finds row k of b at b + offsets[k].
Every sum runs over k in ascending order, whatever the tile: a result does not depend on the tiling.
"""

from fastconv.kernels.simd cimport (
    MR, NR, NV, UNROLL, VL, prefetch_far, prefetch_near, real, vec, vfma, vload, vrelu, vset1, vstore,
    vstore_first, vstream, vzero,
)

cdef enum:
    LINE = 64 // sizeof(real)
    # Rows of the image fetched ahead: 24 x 14 cycles cover the latency of the third cache level.
    AHEAD = 24


# What is fetched into L2 while tiles are computed, one line a step: the image that comes next, row by row,
# so that memory is read in long stretches however the tiles will walk it.
cdef struct Ahead:
    const real* line
    Py_ssize_t step              # to the next line, or 0 when there is nothing left
    Py_ssize_t left              # lines left in this row
    Py_ssize_t lines             # lines of a row
    Py_ssize_t jump              # from the end of a row to the next
    Py_ssize_t total             # lines left in all


cdef struct Tile:
    Py_ssize_t depth             # k
    const real* a
    Py_ssize_t a_row
    Py_ssize_t a_step
    real* b
    const real* image            # fused tiles only
    Py_ssize_t image_row
    const Py_ssize_t* offsets    # banded tiles only
    Ahead* ahead
    const real* start            # NULL: begin at the bias, or at zero
    Py_ssize_t start_row
    const real* bias             # one a row, or NULL
    real* out
    Py_ssize_t out_row
    Py_ssize_t columns           # of the width, how many are stored
    bint relu
    bint stream                  # write past the caches: every row of `out` on a vec's boundary


# How a tile finds b.
cdef enum Right:
    PANEL
    FUSED
    BANDED


cdef inline void multiply(const int rows, const int vectors, const Right right, vec* acc, const real* a,
                          Py_ssize_t a_row, const real* b, Py_ssize_t b_step, real* kept) noexcept nogil:
    """One step of the depth: acc[i, j] += a[i] * b[j]; a fused tile keeps b, and fetches what it will read."""
    cdef vec[NV] right_hand
    cdef vec left
    cdef int i, j
    for j in range(vectors):
        right_hand[j] = vload(b + j * VL)
        if right == FUSED:
            if j * VL % LINE == 0:
                prefetch_near(b + AHEAD * b_step + j * VL)
            vstore(kept + j * VL, right_hand[j])
    if right == FUSED:
        prefetch_near(b + AHEAD * b_step + vectors * VL - 1)
    for i in range(rows):
        left = vset1(a[i * a_row])
        for j in range(vectors):
            acc[i * NV + j] = vfma(left, right_hand[j], acc[i * NV + j])


cdef inline void tile(const int rows, const int vectors, const bint packed, const Right right,
                      Tile* t) noexcept nogil:
    cdef vec[MR * NV] acc
    cdef int i, j
    cdef Py_ssize_t k, a_row = 1 if packed else t.a_row
    cdef Py_ssize_t a_step = t.a_step if packed else 1
    cdef Py_ssize_t depth = t.depth
    cdef const real* a = t.a
    cdef const real* b = t.image if right == FUSED else t.b
    cdef Py_ssize_t b_step = t.image_row if right == FUSED else vectors * VL
    cdef real* kept = t.b
    cdef const real* line = t.ahead.line
    cdef Py_ssize_t line_step = t.ahead.step, left = t.ahead.left

    for i in range(rows):
        for j in range(vectors):
            if t.start != NULL:
                acc[i * NV + j] = vload(t.start + i * t.start_row + j * VL)
            elif t.bias != NULL:
                acc[i * NV + j] = vset1(t.bias[i])
            else:
                acc[i * NV + j] = vzero()
    for k in range(depth // UNROLL):
        prefetch_far(line)
        line += line_step
        left -= 1
        if left == 0:
            line += t.ahead.jump
            left = t.ahead.lines
        for i in range(UNROLL):
            if right == BANDED:
                b = t.b + t.offsets[k * UNROLL + i]
            multiply(rows, vectors, right, acc, a, a_row, b, b_step, kept)
            a += a_step
            b += b_step
            kept += vectors * VL
    for k in range(depth // UNROLL * UNROLL, depth):
        if right == BANDED:
            b = t.b + t.offsets[k]
        multiply(rows, vectors, right, acc, a, a_row, b, b_step, kept)
        a += a_step
        b += b_step
        kept += vectors * VL
    t.ahead.line = line
    t.ahead.left = left
    if t.relu:
        for i in range(rows):
            for j in range(vectors):
                acc[i * NV + j] = vrelu(acc[i * NV + j])
    if t.stream and t.columns == vectors * VL:
        for i in range(rows):
            for j in range(vectors):
                vstream(t.out + i * t.out_row + j * VL, acc[i * NV + j])
    elif t.columns == vectors * VL:
        for i in range(rows):
            for j in range(vectors):
                vstore(t.out + i * t.out_row + j * VL, acc[i * NV + j])
    else:
        for i in range(rows):
            for j in range(vectors - 1):
                vstore(t.out + i * t.out_row + j * VL, acc[i * NV + j])
            vstore_first(t.out + i * t.out_row + (vectors - 1) * VL, t.columns - (vectors - 1) * VL,
                         acc[i * NV + vectors - 1])


cdef inline void tile_of_height(const int rows, const bint packed, int vectors, Tile* t) noexcept nogil:
    if packed and t.offsets != NULL:
        if vectors == 2:
            tile(rows, 2, True, BANDED, t)
        else:
            tile(rows, 1, True, BANDED, t)
    elif t.image != NULL:
        tile(rows, 2, packed, FUSED, t)
    elif vectors == 2:
        tile(rows, 2, packed, PANEL, t)
    else:
        tile(rows, 1, packed, PANEL, t)


cdef inline void micro_kernel(const bint packed, int rows, int vectors, Tile* t) noexcept nogil:
    """One instance of `tile` for each height: M is cut into even blocks, so that none is wasted."""
    if rows == 1:
        tile_of_height(1, packed, vectors, t)
    elif rows == 2:
        tile_of_height(2, packed, vectors, t)
    elif rows == 3:
        tile_of_height(3, packed, vectors, t)
    elif rows == 4:
        tile_of_height(4, packed, vectors, t)
    elif rows == 5:
        tile_of_height(5, packed, vectors, t)
    elif rows == 6:
        tile_of_height(6, packed, vectors, t)
    elif MR > 6:
        if rows == 7:
            tile_of_height(7, packed, vectors, t)
        elif rows == 8:
            tile_of_height(8, packed, vectors, t)
        elif rows == 9:
            tile_of_height(9, packed, vectors, t)
        elif rows == 10:
            tile_of_height(10, packed, vectors, t)
        elif rows == 11:
            tile_of_height(11, packed, vectors, t)
        elif rows == 12:
            tile_of_height(12, packed, vectors, t)
        elif rows == 13:
            tile_of_height(13, packed, vectors, t)
        else:
            tile_of_height(14, packed, vectors, t)
