"""The register tile of pixels.pyx: pixels, broadcast one by one from where they lie, times two vectors of channels.

    out[i, lane] = activation(start[lane] + sum over r, k of in[at(r) + i * gap + k] * weight[weight(r) + k, lane])

A run r is what a window reads at one stretch: the channels of a pixel, or of a whole row of taps. The two halves of
the pixels have addresses of their own, which the processor adds up from three multiples of the gap.
"""

from fastconv.kernels.simd cimport (
    MR, NR, NV, VL, real, vat_least, vec, vfma_kept, vfma_repeated, vload, vrepeat, vset1, vstore, vstream,
)


# Elements from a tile's first pixel, and from a panel's first weight.
cdef struct Run:
    Py_ssize_t at
    Py_ssize_t weight


# A panel of output channels against some pixels.
cdef struct Spot:
    const real* input            # what the first run of the first pixel reads, counted as `Run.at` does
    Py_ssize_t gap               # bytes from pixel to pixel
    const real* weight
    const Run* runs
    Py_ssize_t count             # of runs
    Py_ssize_t length            # of each
    const real* start            # a value for each lane
    real least                   # that a result may be: 0 for a rectifier
    real* out
    Py_ssize_t out_gap           # from pixel to pixel
    bint stream                  # past the caches
    Py_ssize_t tiles             # beside each other


cdef inline const real* away(const real* p, Py_ssize_t bytes) noexcept nogil:
    return <const real*> (<const char*> p + bytes)


cdef inline const real* pixel(const real* p, const int i, Py_ssize_t gap, Py_ssize_t three,
                              Py_ssize_t five) noexcept nogil:
    """The i-th of at most 7: a register, or twice or four times one, from the first."""
    return away(p, 0 if i == 0 else gap if i == 1 else 2 * gap if i == 2 else three if i == 3 else 4 * gap if i == 4
                else five if i == 5 else 2 * three)


cdef inline void multiply(const int pixels, const int vectors, vec* acc, const real* p, Py_ssize_t gap,
                          Py_ssize_t three, Py_ssize_t five, const vec* row) noexcept nogil:
    cdef int i
    for i in range(pixels):
        if vectors == 2:
            vfma_repeated(acc + 2 * i, pixel(p, i, gap, three, five), 1, row)
        else:
            acc[i] = vfma_kept(acc[i], vrepeat(pixel(p, i, gap, three, five), 1), row[0])


cdef inline void tile(const int half, const int vectors, const Spot* s) noexcept nogil:
    cdef vec[MR * NV] acc
    cdef vec[NV] row
    cdef vec bound = vset1(s.least)
    cdef Py_ssize_t _n, r, _k, gap = s.gap, three = 3 * s.gap, five = 5 * s.gap
    cdef int i, j
    cdef const real* p
    cdef const real* second
    cdef const real* weight
    cdef const real* input = s.input
    cdef real* out = s.out
    # The compiler unrolls no loop before it gives sums their registers that is not inside of another.
    for _n in range(s.tiles):
        for i in range(2 * half):
            for j in range(vectors):
                acc[i * vectors + j] = vload(s.start + j * VL)
        for r in range(s.count):
            p = input + s.runs[r].at
            second = away(p, half * gap)
            weight = s.weight + s.runs[r].weight
            for _k in range(s.length):
                for j in range(vectors):
                    row[j] = vload(weight + j * VL)
                multiply(half, vectors, acc, p, gap, three, five, row)
                multiply(half, vectors, acc + half * vectors, second, gap, three, five, row)
                p += 1
                second += 1
                weight += NR
        if s.stream:
            for i in range(2 * half):
                for j in range(vectors):
                    vstream(out + i * s.out_gap + j * VL, vat_least(acc[i * vectors + j], bound))
        else:
            for i in range(2 * half):
                for j in range(vectors):
                    vstore(out + i * s.out_gap + j * VL, vat_least(acc[i * vectors + j], bound))
        input = away(input, 2 * half * gap)
        out += 2 * half * s.out_gap


cdef inline void tile_of_width(const int vectors, Py_ssize_t half, const Spot* s) noexcept nogil:
    if half <= 1:
        tile(1, vectors, s)
    elif half == 2:
        tile(2, vectors, s)
    elif half == 3 or MR == 6:
        tile(3, vectors, s)
    elif half == 4:
        tile(4, vectors, s)
    elif half == 5:
        tile(5, vectors, s)
    elif half == 6:
        tile(6, vectors, s)
    else:
        tile(MR // 2, vectors, s)
