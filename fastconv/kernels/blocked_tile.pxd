"""The register tile of blocked.pyx: pixels, broadcast one by one, times two vectors of output channels.

    sums[i, lane] += band[at(c, t) + i * shared + lane % shared] * weight[c, t, lane]

`shared` groups lie side by side in the lanes, lane m * shared + j being channel m of group j: a pixel is then
`shared` values, one of each group, repeated over the vector. The inner loop loads two vectors of weights and one
value for each pixel. The two halves of the pixels lie one after the other, or in two rows of a narrow map.
"""

from fastconv.kernels.simd cimport (
    MR, NR, NV, VL, real, vec, vfma_kept, vfma_repeated, vload, vrelu, vrepeat, vstore, vzero,
)


# A tap: elements from a tile's first pixel, and from a panel's first weight.
cdef struct Live:
    Py_ssize_t at
    Py_ssize_t weight


# A panel of output channels against some pixels.
cdef struct Spot:
    const real* band             # of the first pixel and channel
    Py_ssize_t half              # from there to the first pixel of the second half
    Py_ssize_t band_channel      # from one channel to the next
    const real* weight
    Py_ssize_t weight_channel
    Py_ssize_t channels
    const Live* live             # the taps that meet the input: runs of so many, ...
    Py_ssize_t runs
    Py_ssize_t run
    Py_ssize_t apart             # ... and from one to the next
    bint resumes                 # from `sums`, or else ...
    const real* start            # ... from a value for each lane, or zero if it is NULL
    bint relu
    real* sums                   # [pixel][NR]


cdef inline void multiply(const int pixels, const int vectors, const int shared, vec* acc, const real* band,
                          const vec* row) noexcept nogil:
    cdef int i
    for i in range(pixels):
        if vectors == 2:
            vfma_repeated(acc + 2 * i, band + i * shared, shared, row)
        else:
            acc[i] = vfma_kept(acc[i], vrepeat(band + i * shared, shared), row[0])


cdef inline void tile(const int pixels, const int vectors, const int shared, const Spot* s) noexcept nogil:
    cdef vec[MR * NV] acc
    cdef vec[NV] row
    cdef Py_ssize_t _c, _r, run = s.run, between = s.apart - s.run
    cdef int i, j
    cdef const Live* live
    cdef const Live* end
    cdef const real* band = s.band
    cdef const real* second = s.band + s.half
    cdef const real* weight = s.weight
    if s.resumes:
        for i in range(pixels):
            for j in range(vectors):
                acc[i * vectors + j] = vload(s.sums + i * NR + j * VL)
    else:
        for i in range(pixels):
            for j in range(vectors):
                acc[i * vectors + j] = vload(s.start + j * VL) if s.start != NULL else vzero()
    for _c in range(s.channels):
        live = s.live
        for _r in range(s.runs):
            end = live + run
            while live != end:
                for j in range(vectors):
                    row[j] = vload(weight + live.weight + j * VL)
                multiply(pixels // 2, vectors, shared, acc, band + live.at, row)
                multiply(pixels // 2, vectors, shared, acc + pixels // 2 * vectors, second + live.at, row)
                live += 1
            live += between
        band += s.band_channel
        second += s.band_channel
        weight += s.weight_channel
    for i in range(pixels):
        for j in range(vectors):
            vstore(s.sums + i * NR + j * VL, vrelu(acc[i * vectors + j]) if s.relu else acc[i * vectors + j])


cdef inline Py_ssize_t half_width(Py_ssize_t pixels) noexcept nogil:
    """Of the tile for so many pixels: sums of pixels too many are not read."""
    return (pixels + 1) // 2


cdef inline void tile_of_width(const int vectors, const int shared, Py_ssize_t half, const Spot* s) noexcept nogil:
    if half <= 1:
        tile(2, vectors, shared, s)
    elif half == 2:
        tile(4, vectors, shared, s)
    elif half == 3 or MR == 6:
        tile(6, vectors, shared, s)
    elif half == 4:
        tile(8, vectors, shared, s)
    elif half == 5:
        tile(10, vectors, shared, s)
    elif half == 6:
        tile(12, vectors, shared, s)
    else:
        tile(MR, vectors, shared, s)


cdef inline void run_tile(int vectors, int shared, Py_ssize_t half, const Spot* s) noexcept nogil:
    """Groups that share lanes fill two vectors, or nearly."""
    if shared == 1 and vectors == 1:
        tile_of_width(1, 1, half, s)
    elif shared == 1:
        tile_of_width(2, 1, half, s)
    elif shared == 2:
        tile_of_width(2, 2, half, s)
    elif shared == 4 or VL < 8:
        tile_of_width(2, smaller_than_vector(4), half, s)
    else:
        tile_of_width(2, smaller_than_vector(8), half, s)


cdef inline int smaller_than_vector(const int shared) noexcept nogil:
    return shared if shared < VL else VL
