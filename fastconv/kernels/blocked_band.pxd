"""Bands of blocked.pyx: as in gemm_band.pxd, with the groups that share lanes side by side.

    band[c, row, q, x, j] = in[group j, c, top + row, left + q + step * x]

Phases q that no tap reads are left as they are.
"""

from fastconv.kernels.gemm_band cimport Band, shape_band
from fastconv.kernels.gemm_pack cimport ceil_div, fill_zero, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    VL, real, vec, veven, vload, vload_span, vodd, vspan, vspan_of, vstore, vthirds, vzero, vzip_high, vzip_low,
)

cdef enum:
    MOST_SHARED = 8
    MOST_PHASES = 4  # of a step along a row that are told apart in registers
    MANY = 30  # the bit that stands for phases from it on
    BLOCK = 8  # vectors of a row at a time


cdef inline Band shape(const Geometry* g, const Tap* taps, Py_ssize_t tile_rows) noexcept nogil:
    """Rows as long as the outputs and the taps between them need, and no longer."""
    cdef Band b = shape_band(g, taps, tile_rows)
    cdef Py_ssize_t reach = b.length - ceil_div(g.out_size[2], VL) * VL - 1
    b.length = g.out_size[2] + reach
    b.before = smaller(b.before, b.length * b.phases)
    b.inside = smaller(b.inside, b.length * b.phases - b.before)
    return b


# A vector of elements of a row, of which some are inside the input: the same of every row.
cdef struct Piece:
    Py_ssize_t at                # its first, counted from the first of the input that the band holds
    vspan inside


cdef inline Piece piece_at(const Band* b, Py_ssize_t at) noexcept nogil:
    cdef Piece p
    cdef Py_ssize_t first
    p.at = at - b.before
    first = smaller(larger(-p.at, 0), VL)
    p.inside = vspan_of(first, larger(smaller(b.inside - p.at, VL), first))
    return p


cdef inline vec load_piece(const real* row, const Piece* p) noexcept nogil:
    return vload_span(row + p.at, p.inside)


cdef inline vec load_phase(const Band* b, const real* row, Py_ssize_t q, Py_ssize_t x) noexcept nogil:
    """Elements x .. x + VL - 1 of phase q of more than two."""
    cdef real[VL] values
    cdef Py_ssize_t at = q + x * b.phases - b.before, i
    for i in range(VL):
        values[i] = row[at] if 0 <= at < b.inside else 0
        at += b.phases
    return vload(values)


cdef inline void riffle(const int shared, vec* v) noexcept nogil:
    """Vectors of `shared` rows -> one value of each row, then the next: halves zipped, once for each factor of 2."""
    cdef vec[MOST_SHARED] w
    cdef int i, _fold
    for _fold in range(3 if shared == 8 else 2 if shared == 4 else 1 if shared == 2 else 0):
        for i in range(shared // 2):
            w[2 * i] = vzip_low(v[i], v[i + shared // 2])
            w[2 * i + 1] = vzip_high(v[i], v[i + shared // 2])
        for i in range(shared):
            v[i] = w[i]


cdef inline void split_phases(const int phases, const vec* part, vec* split) noexcept nogil:
    """split[q][i] = part[i * phases + q], the parts being read as one."""
    cdef vec[4] half
    if phases == 1:
        split[0] = part[0]
    elif phases == 2:
        split[0] = veven(part[0], part[1])
        split[1] = vodd(part[0], part[1])
    elif phases == 3:
        vthirds(part[0], part[1], part[2], split)
    else:
        half[0] = veven(part[0], part[1])
        half[1] = veven(part[2], part[3])
        half[2] = vodd(part[0], part[1])
        half[3] = vodd(part[2], part[3])
        split[0] = veven(half[0], half[1])
        split[1] = veven(half[2], half[3])
        split[2] = vodd(half[0], half[1])
        split[3] = vodd(half[2], half[3])


cdef inline void put(const int shared, vec* v, real* to) noexcept nogil:
    cdef int j
    riffle(shared, v)
    for j in range(shared):
        vstore(to + j * VL, v[j])


cdef inline void fill_row(const int shared, const int phases, const Band* b, int used, const Piece* pieces,
                          Py_ssize_t x, const real* source, Py_ssize_t apart, Py_ssize_t groups,
                          real* to) noexcept nogil:
    """Elements x .. x + VL - 1 of each phase in `used` of a row of each of `groups` groups that lie `apart`.

    Lanes of groups that are not there hold zeros.
    """
    cdef vec[MOST_PHASES * MOST_SHARED] v
    cdef vec[MOST_PHASES] part, split
    cdef Py_ssize_t q, size = b.length * shared
    cdef int i, j
    if phases == 0:
        for q in range(b.phases):
            if used >> smaller(q, MANY) & 1:
                for j in range(shared):
                    v[j] = load_phase(b, source + j * apart, q, x) if j < groups else vzero()
                put(shared, v, to + q * size + x * shared)
        return
    for j in range(shared):
        for i in range(phases):
            part[i] = load_piece(source + j * apart, pieces + i) if shared == 1 or j < groups else vzero()
        split_phases(phases, part, split)
        for i in range(phases):
            v[i * MOST_SHARED + j] = split[i]
    for i in range(phases):
        if used >> i & 1:
            put(shared, v + i * MOST_SHARED, to + i * size + x * shared)


cdef inline void fill_columns(const int shared, const int phases, const Geometry* g, const Band* b, int used,
                              Py_ssize_t groups, Py_ssize_t channels, const real* image, Py_ssize_t first_row,
                              Py_ssize_t rows, Py_ssize_t begin, real* band) noexcept nogil:
    """Elements from `begin` on of all rows of all channels, BLOCK vectors; of a row beyond the image everything."""
    cdef Py_ssize_t c, row, y, i, j, count = 0, size = b.phases * b.length * shared
    cdef Py_ssize_t[BLOCK] x
    cdef Piece[MOST_PHASES * BLOCK] pieces
    while count < BLOCK and begin + count * VL < b.length:
        x[count] = larger(smaller(begin + count * VL, b.length - VL), 0)
        for j in range(MOST_PHASES):
            pieces[MOST_PHASES * count + j] = piece_at(b, x[count] * b.phases + j * VL)
        count += 1
    for c in range(channels):
        y = first_row * g.step[1] + b.top
        for row in range(c * b.rows, c * b.rows + rows):
            if 0 <= y < g.in_size[1]:
                for i in range(count):
                    fill_row(shared, phases, b, used, pieces + MOST_PHASES * i, x[i],
                             image + c * g.in_channel + y * g.in_axis[1] + b.first, g.in_group, groups,
                             band + row * size)
            elif begin == 0:
                fill_zero(band + row * size, size)
            y += 1


cdef inline void fill_phases(const int shared, const int phases, const Geometry* g, const Band* b, int used,
                             Py_ssize_t groups, Py_ssize_t channels, const real* image, Py_ssize_t first_row,
                             Py_ssize_t rows, real* band) noexcept nogil:
    """The last vector of a phase begins early; a phase shorter than one runs on into what is written next."""
    cdef Py_ssize_t begin = 0
    while begin < b.length:
        fill_columns(shared, phases, g, b, used, groups, channels, image, first_row, rows, begin, band)
        begin += BLOCK * VL


cdef inline void fill_sharing(const int shared, const Geometry* g, const Band* b, int used, Py_ssize_t groups,
                              Py_ssize_t channels, const real* image, Py_ssize_t first_row, Py_ssize_t rows,
                              real* band) noexcept nogil:
    if b.phases == 1:
        fill_phases(shared, 1, g, b, used, groups, channels, image, first_row, rows, band)
    elif b.phases == 2:
        fill_phases(shared, 2, g, b, used, groups, channels, image, first_row, rows, band)
    elif b.phases == 3 and shared == 1:
        fill_phases(shared, 3, g, b, used, groups, channels, image, first_row, rows, band)
    elif b.phases == 4 and shared == 1:
        fill_phases(shared, 4, g, b, used, groups, channels, image, first_row, rows, band)
    else:
        fill_phases(shared, 0, g, b, used, groups, channels, image, first_row, rows, band)


cdef inline void fill_band(int shared, const Geometry* g, const Band* b, int used, Py_ssize_t groups,
                           Py_ssize_t channels, const real* image, Py_ssize_t first_row, Py_ssize_t rows,
                           real* band) noexcept nogil:
    """Some channels of `groups` groups from `image` on: `rows` input rows, from that of the output row first_row on."""
    if shared == 1:
        fill_sharing(1, g, b, used, groups, channels, image, first_row, rows, band)
    elif shared == 2:
        fill_sharing(2, g, b, used, groups, channels, image, first_row, rows, band)
    elif shared == 4:
        fill_sharing(4, g, b, used, groups, channels, image, first_row, rows, band)
    else:
        fill_sharing(MOST_SHARED, g, b, used, groups, channels, image, first_row, rows, band)
