"""Gradients of maxima by scattering: each window adds its gradient where its index says.

    plane[element of window o + codes[o] % kernel * dilation + codes[o] // kernel * (a row)] += grads[o]

over whole planes of channels first, with codes of 8 bits. Several planes add in turn, because neighbours often add to
the same element, and each of its sums waits for the last. Vectors of 64 bytes find elements for some outputs at a time,
and check them, before any is added to; shorter ones take longer than to look codes up one by one: SPPF's 5x5 windows,
256 channels, 105 us by AVX2, 129 in vectors. Element by element the sums run in the order of the windows, as when
gathered.
"""

from libc.stdint cimport uint8_t

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.pool cimport PoolGeometry, input_size, output_size
from fastconv.kernels.pool_index cimport Tap, check_plane
from fastconv.kernels.simd cimport (
    VL, iadd, ibeyond, iload, iload_bytes, imul, iset1, istore, iupper, ivec, lane, real,
)

cdef enum:
    CHUNK = 256              # outputs of each plane at a time
    MOST_PLANES = 8          # in turn: SPPF's 5x5 windows take 214 us by fours, 193 by eights
    BY_VECTORS = VL * sizeof(real) == 64


# Where a code leads from its window: code * step + row * beyond elements, where row is code * reciprocal / 2^16.
cdef struct Places:
    lane taps
    lane kernel              # along the width
    lane reciprocal
    lane step
    lane beyond
    lane inputs              # elements of a plane
    lane width               # of the input
    Py_ssize_t rows          # of outputs of a chunk, and how many in each
    Py_ssize_t columns
    lane[CHUNK] windows      # elements from the chunk's first window to that of an output
    lane[CHUNK] lefts        # columns, likewise


# By code.
cdef struct Codes:
    Py_ssize_t[256] positions
    uint8_t[256] columns


cdef struct Scatter:
    Places places
    Codes codes


cdef inline void list_codes(const PoolGeometry* g, const Tap* taps, Codes* to) noexcept nogil:
    cdef Py_ssize_t t
    for t in range(g.kernel[1] * g.kernel[2]):
        to.positions[t] = taps[t].position
        to.columns[t] = <uint8_t> (t % g.kernel[2])


cdef inline void list_places(const PoolGeometry* g, Places* s) noexcept nogil:
    cdef Py_ssize_t i
    s.taps = <lane> (g.kernel[1] * g.kernel[2])
    s.kernel = <lane> g.kernel[2]
    s.reciprocal = <lane> (65536 // g.kernel[2] + 1)
    s.step = <lane> g.dilation[2]
    s.beyond = <lane> (g.in_size[2] * g.dilation[1] - g.kernel[2] * g.dilation[2])
    s.inputs = <lane> input_size(g)
    s.width = <lane> g.in_size[2]
    s.columns = smaller(g.out_size[2], CHUNK)
    s.rows = CHUNK // s.columns
    for i in range(s.rows * s.columns):
        s.lefts[i] = <lane> (i % s.columns * g.stride[2])
        s.windows[i] = <lane> (i // s.columns * g.stride[1] * g.in_size[2] + s.lefts[i])


cdef inline bint find_vector(bint trusted, const Places* s, const uint8_t* codes, Py_ssize_t at, lane window,
                             lane left, lane plane, lane* to) noexcept nogil:
    cdef ivec code = iload_bytes(codes), row = iupper(imul(code, iset1(s.reciprocal))), along = code, place, column
    if s.step > 1:
        along = imul(code, iset1(s.step))
    place = iadd(iadd(along, iload(s.windows + at)), iadd(imul(row, iset1(s.beyond)), iset1(window)))
    istore(to, iadd(place, iset1(plane)))
    if trusted:
        return False
    column = iadd(iadd(along, iload(s.lefts + at)), iadd(imul(row, iset1(-s.kernel * s.step)), iset1(left)))
    return ibeyond(code, iset1(s.taps)) | ibeyond(place, iset1(s.inputs)) | ibeyond(column, iset1(s.width))


cdef inline bint find_one(const Places* s, Py_ssize_t code, Py_ssize_t at, lane window, lane left, lane plane,
                          lane* to) noexcept nogil:
    cdef Py_ssize_t row = code // s.kernel
    cdef Py_ssize_t place = window + s.windows[at] + code * s.step + row * s.beyond
    cdef Py_ssize_t column = left + s.lefts[at] + (code - row * s.kernel) * s.step
    to[0] = <lane> (plane + place)
    return not (code < s.taps and 0 <= place < s.inputs and 0 <= column < s.width)


cdef inline bint find_places(bint trusted, const Places* s, const uint8_t* codes, Py_ssize_t count, lane window,
                             lane left, lane plane, lane* to) noexcept nogil:
    """Of `count` outputs, the first of whose windows begins at element `window` of the plane, in column `left`.

    True if one is no tap of its window, or lies in the padding: beside the map, or beyond its elements. `plane` is
    added to all.
    """
    cdef Py_ssize_t i = 0, at
    cdef bint wrong = False
    if count < VL:
        for i in range(count):
            wrong |= find_one(s, codes[i], i, window, left, plane, to + i)
        return wrong
    while i < count:
        at = smaller(i, count - VL)
        wrong |= find_vector(trusted, s, codes + at, at, window, left, plane, to + at)
        i += VL
    return wrong


cdef inline void add_values(const int planes, const lane* places, const real* grads, Py_ssize_t outputs,
                            Py_ssize_t count, real* plane) noexcept nogil:
    cdef Py_ssize_t i
    cdef int p
    for i in range(count):
        for p in range(planes):
            plane[places[p * CHUNK + i]] += grads[p * outputs + i]


cdef inline bint scatter_chunk(const int planes, bint trusted, const PoolGeometry* g, const Places* s,
                               const uint8_t* codes, const real* grads, Py_ssize_t row, Py_ssize_t column,
                               real* plane) noexcept nogil:
    """The outputs from (row, column) on; True, and nothing is added, if one of their indices is wrong."""
    cdef lane[MOST_PLANES * CHUNK] places
    cdef Py_ssize_t inputs = input_size(g), outputs = output_size(g), at = row * g.out_size[2] + column, p
    cdef Py_ssize_t count = smaller(s.rows, g.out_size[1] - row) * smaller(s.columns, g.out_size[2] - column)
    cdef Py_ssize_t left = column * g.stride[2] - g.before[2]
    cdef Py_ssize_t window = (row * g.stride[1] - g.before[1]) * g.in_size[2] + left
    cdef bint wrong = False
    for p in range(planes):
        wrong |= find_places(trusted, s, codes + p * outputs + at, count, <lane> window, <lane> left,
                             <lane> (p * inputs), places + p * CHUNK)
    if not wrong:
        add_values(planes, places, grads + at, outputs, count, plane)
    return wrong


cdef inline bint scatter_chunks(const int planes, bint trusted, const PoolGeometry* g, const Places* s,
                                const uint8_t* codes, const real* grads, real* plane) noexcept nogil:
    cdef Py_ssize_t row = 0, column
    while row < g.out_size[1]:
        column = 0
        while column < g.out_size[2]:
            if scatter_chunk(planes, trusted, g, s, codes, grads, row, column, plane):
                return True
            column += s.columns
        row += s.rows
    return False


cdef inline void scatter_rows(const int planes, const PoolGeometry* g, const Py_ssize_t* positions,
                              const uint8_t* codes, const real* grads, real* plane) noexcept nogil:
    cdef Py_ssize_t outputs = output_size(g), inputs = input_size(g), _row, i
    cdef real* window
    cdef int p
    plane -= g.before[1] * g.in_size[2] + g.before[2]
    for _row in range(g.out_size[1]):
        window = plane
        for i in range(g.out_size[2]):
            for p in range(planes):
                window[p * inputs + positions[codes[p * outputs + i]]] += grads[p * outputs + i]
            window += g.stride[2]
        codes += g.out_size[2]
        grads += g.out_size[2]
        plane += g.stride[1] * g.in_size[2]


cdef inline void list_scatter(const PoolGeometry* g, const Tap* taps, Scatter* s) noexcept nogil:
    if BY_VECTORS:
        list_places(g, &s.places)
    else:
        list_codes(g, taps, &s.codes)


cdef inline bint scatter_planes(const int planes, bint trusted, const PoolGeometry* g, const Scatter* s,
                                const uint8_t* codes, const real* grads, real* plane) noexcept nogil:
    """True, and not all is added, if an index is none of its window's inside the plane."""
    cdef Py_ssize_t wrong = 0
    cdef int p
    if BY_VECTORS:
        return scatter_chunks(planes, trusted, g, &s.places, codes, grads, plane)
    if not trusted:
        for p in range(planes):
            wrong |= check_plane(g, s.codes.columns, codes + p * output_size(g))
    if wrong == 0:
        scatter_rows(planes, g, s.codes.positions, codes, grads, plane)
    return wrong != 0
