"""Maxima of long windows with stride 1: three steps along the height however long they are, a few along the width.

Outputs come in blocks of as many rows as a window has. One row of the input, the `shared` one, is the last of the
block's first window and the first of its last window, so that

    line[r] = max(suffix[first row of window r], prefix[last row of window r])

with suffixes taken upwards from the row above the shared one, prefixes downwards from that row (van Herk; Gil and
Werman). Blocks are counted from the plane's first output, whatever band is asked for. Lines are padded; along the width
windows are put together from spans, span[l + 1][i] = max over t < 4 of span[l][i + t * 4^l].

What has just been stored is slow to load in other vectors, so that lines of several blocks, and planes, are gathered
before spans are taken. The processor's maximum loses a NaN: with one among the rows everything is done again, in the
same order and so to the same bits, by a maximum of twice the instructions.
"""

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, carve, fill, flat, in_row, input_size, out_row, output_size, reach,
)
from fastconv.kernels.pool_reduce cimport Values
from fastconv.kernels.pool_strip cimport SPAN_TAPS, apart
from fastconv.kernels.simd cimport (
    VL, has_nan, real, vadd, vat_least, vec, vload, vload_first, vmax, vset1, vstore, vstore_first, vzero,
)

cdef enum:
    WIDE = 4                 # vectors of a column of rows
    MOST_SPANS = 8           # 4^8 columns
    LINES_BYTES = 4096       # of the lines that are gathered, if more than a block's
    LONG_BYTES = 262144      # of lines and their spans, at most


cdef struct Long:
    Py_ssize_t left          # elements of padding before a line
    Py_ssize_t pitch         # from line to line
    Py_ssize_t room          # for so many lines
    Py_ssize_t planes        # of a unit
    Py_ssize_t size          # elements of a level of lines
    Py_ssize_t levels        # of spans
    real* lines              # [levels + 1][size]
    real* suffixes           # [rows of a window + 1][WIDE * VL]


# A block, as one column of its rows sees it.
cdef struct Column:
    const real* source       # of the plane
    Py_ssize_t row           # from row to row of the input
    Py_ssize_t height        # of the input
    Py_ssize_t lowest        # rows of the input: the first of all, and the shared one
    Py_ssize_t shared
    Py_ssize_t first         # rows of windows, counted from the input's first row
    Py_ssize_t last
    Py_ssize_t count         # of rows of the first one's window from the shared one on
    Py_ssize_t lanes         # of the last vector
    Py_ssize_t gap           # elements after each line that become padding
    Py_ssize_t pitch
    real padding


cdef inline Py_ssize_t line_pitch(const PoolGeometry* g) noexcept nogil:
    cdef Py_ssize_t right = g.out_size[2] + reach(g, 2) - g.before[2] - g.in_size[2]
    return in_row(g) + larger(larger(g.before[2], right), 0) * g.inner


cdef inline Py_ssize_t span_levels(Py_ssize_t taps) noexcept nogil:
    """At most four of the longest spans make a window."""
    cdef Py_ssize_t levels = 0
    while taps > 4:
        taps = ceil_div(taps, 4)
        levels += 1
    return levels


cdef inline Py_ssize_t lines_of(const PoolGeometry* g) noexcept nogil:
    """That are gathered at most."""
    return larger(smaller(g.kernel[1], g.out_size[1]), LINES_BYTES // <Py_ssize_t> sizeof(real) // line_pitch(g))


cdef inline Py_ssize_t level_size(const PoolGeometry* g) noexcept nogil:
    return apart(g.before[2] * g.inner + lines_of(g) * line_pitch(g) + 4 * VL)


cdef inline bint takes_long(const PoolGeometry* g) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real)
    return (flat(g) and g.stride[1] == 1 and g.stride[2] == 1 and g.dilation[1] == 1 and g.dilation[2] == 1
            and g.kernel[1] >= SPAN_TAPS and g.kernel[2] >= SPAN_TAPS
            and level_size(g) * (span_levels(g.kernel[2]) + 1) * item <= LONG_BYTES)


cdef inline void carve_long(const PoolGeometry* g, char** memory, Long* l) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real)
    l.left = g.before[2] * g.inner
    l.pitch = line_pitch(g)
    l.room = lines_of(g)
    l.planes = larger(l.room // g.out_size[1], 1)
    l.size = level_size(g)
    l.levels = span_levels(g.kernel[2])
    l.lines = <real*> carve(memory, (l.levels + 1) * l.size * item)
    l.suffixes = <real*> carve(memory, (g.kernel[1] + 1) * WIDE * VL * item)


cdef inline vec most_of(bint numbers, vec a, vec b) noexcept nogil:
    """The larger; of equal ones a. If they are not known to be numbers, NaN where either is."""
    return vat_least(a, b) if numbers else vmax(b, a)


cdef inline void load_row(const int vectors, const real* row, Py_ssize_t lanes, vec* to) noexcept nogil:
    cdef int j
    for j in range(vectors - 1):
        to[j] = vload(row + j * VL)
    to[vectors - 1] = vload_first(row + (vectors - 1) * VL, lanes)


cdef inline bint reduce_column(bint numbers, const int vectors, const Column* c, Py_ssize_t at, real* suffixes,
                               real* to) noexcept nogil:
    """Some vectors of the lines of a block, from element `at` of each row on.

    True if a row may hold a NaN: then its sum is one, as where infinities of both signs meet.
    """
    cdef vec[WIDE] most, row, total
    cdef vec padding = vset1(c.padding)
    cdef Py_ssize_t step = c.row, lanes = c.lanes, r, i
    cdef const real* source = c.source + at + c.shared * step
    cdef const real* end = c.source + at + c.height * step
    cdef real* suffix = suffixes + (c.shared - c.lowest) * vectors * VL
    cdef int j
    for j in range(vectors):
        most[j] = padding
        total[j] = vzero()
        vstore(suffix + j * VL, padding)
    for r in range(c.shared - c.lowest):
        load_row(vectors, source - (r + 1) * step, lanes, row)
        suffix -= vectors * VL
        for j in range(vectors):
            total[j] = vadd(total[j], row[j])
            most[j] = most_of(numbers, most[j], row[j])
            vstore(suffix + j * VL, most[j])
    for j in range(vectors):
        most[j] = padding
    for r in range(c.first - c.count + 1, c.last):  # before c.first, rows that its window holds as well
        if source < end:
            load_row(vectors, source, lanes, row)
            for j in range(vectors):
                total[j] = vadd(total[j], row[j])
                most[j] = most_of(numbers, most[j], row[j])
            source += step
        if r < c.first:
            continue
        for j in range(vectors):
            vstore(to + j * VL, most_of(numbers, most[j], vload(suffix + j * VL)))
        if r >= c.lowest:
            suffix += vectors * VL
        i = 0
        while i < c.gap:
            vstore(to + (vectors - 1) * VL + lanes + i, padding)
            i += VL
        to += c.pitch
    for j in range(1, vectors):
        total[0] = vadd(total[0], total[j])
    return has_nan(total[0])


cdef inline bint fill_block(bint numbers, const PoolGeometry* g, const Long* l, Column* c, real* to) noexcept nogil:
    """The lines of a block, from right to left: whole vectors reach into the next line, and its padding."""
    cdef Py_ssize_t vectors = ceil_div(in_row(g), VL), some = (vectors - 1) % WIDE + 1
    cdef bint missing = False
    c.lanes = in_row(g) - (vectors - 1) * VL
    c.gap = l.pitch - in_row(g)
    while vectors > 0:
        vectors -= some
        if some == 1:
            missing |= reduce_column(numbers, 1, c, vectors * VL, l.suffixes, to + vectors * VL)
        elif some == 2:
            missing |= reduce_column(numbers, 2, c, vectors * VL, l.suffixes, to + vectors * VL)
        elif some == 3:
            missing |= reduce_column(numbers, 3, c, vectors * VL, l.suffixes, to + vectors * VL)
        else:
            missing |= reduce_column(numbers, 4, c, vectors * VL, l.suffixes, to + vectors * VL)
        c.lanes = VL
        c.gap = 0
        some = WIDE
    return missing


cdef inline void span_four(bint numbers, const real* source, Py_ssize_t shift, real* to,
                           Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef vec low, high
    while i < width:
        low = most_of(numbers, vload(source + i), vload(source + i + shift))
        high = most_of(numbers, vload(source + i + 2 * shift), vload(source + i + 3 * shift))
        vstore(to + i, most_of(numbers, low, high))
        i += VL


cdef inline void join_spans(bint numbers, const int count, const real** spans, Py_ssize_t pitch,
                            Py_ssize_t lines, Py_ssize_t width, real* out) noexcept nogil:
    """out[line][i] = max over t < count of spans[t][line * pitch + i]: column after column of vectors."""
    cdef Py_ssize_t i = 0
    while i + VL <= width:
        join_column(numbers, count, spans, i, pitch, lines, width, VL, out + i)
        i += VL
    if i < width:
        join_column(numbers, count, spans, i, pitch, lines, width, width - i, out + i)


cdef inline void join_column(bint numbers, const int count, const real** spans, Py_ssize_t at, Py_ssize_t pitch,
                             Py_ssize_t lines, Py_ssize_t width, Py_ssize_t lanes, real* to) noexcept nogil:
    cdef const real* a = spans[0] + at
    cdef Py_ssize_t b = spans[1] - spans[0], c = spans[2] - spans[0], d = spans[3] - spans[0], _line
    cdef vec most
    for _line in range(lines):
        most = most_of(numbers, vload(a), vload(a + b))
        if count == 3:
            most = most_of(numbers, most, vload(a + c))
        elif count == 4:
            most = most_of(numbers, most, most_of(numbers, vload(a + c), vload(a + d)))
        if lanes == VL:
            vstore(to, most)
        else:
            vstore_first(to, lanes, most)
        a += pitch
        to += width


cdef inline void reduce_along(bint numbers, const PoolGeometry* g, const Long* l, Py_ssize_t lines,
                              real* out) noexcept nogil:
    """Lines -> rows of outputs."""
    cdef Py_ssize_t level, span = 1, width = l.left + lines * l.pitch, count, t
    cdef const real* source = l.lines
    cdef const real* spans[4]
    for level in range(l.levels):
        width -= 3 * span * g.inner
        span_four(numbers, source, span * g.inner, l.lines + (level + 1) * l.size, width)
        source = l.lines + (level + 1) * l.size
        span *= 4
    count = ceil_div(g.kernel[2], span)
    for t in range(4):
        spans[t] = source + smaller(t * span, g.kernel[2] - span) * g.inner
    if count == 2:
        join_spans(numbers, 2, spans, l.pitch, lines, out_row(g), out)
    elif count == 3:
        join_spans(numbers, 3, spans, l.pitch, lines, out_row(g), out)
    else:
        join_spans(numbers, 4, spans, l.pitch, lines, out_row(g), out)


cdef inline bint pool_numbers(bint numbers, const Values* v, const Long* l, const Band* band,
                              Py_ssize_t planes) noexcept nogil:
    """A band of one plane, or several planes; False, and nothing that counts is done, if they may not be numbers."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t window = g.kernel[1], lines = 0, plane, row, last, top
    cdef real* out = v.out + band.plane * output_size(g) + band.first * out_row(g)
    cdef Column c
    c.row = in_row(g)
    c.height = g.in_size[1]
    c.pitch = l.pitch
    c.padding = v.padding
    fill(l.lines, v.padding, l.left)
    for plane in range(band.plane, band.plane + planes):
        c.source = v.input + plane * input_size(g)
        row = band.first
        while row < band.last:
            top = row // window * window
            last = smaller(top + window, band.last)
            c.first = row - g.before[1]
            c.last = last - g.before[1]
            c.shared = smaller(top - g.before[1] + window - 1, c.height)
            c.lowest = smaller(larger(c.first, 0), c.shared)
            c.count = row - top + 1
            if lines + last - row > l.room:
                reduce_along(numbers, g, l, lines, out)
                out += lines * out_row(g)
                lines = 0
            if fill_block(numbers, g, l, &c, l.lines + l.left + lines * l.pitch) and numbers:
                return False
            lines += last - row
            row = last
    reduce_along(numbers, g, l, lines, out)
    return True


cdef inline void pool_long(const Values* v, const Long* l, const Band* band, Py_ssize_t planes) noexcept nogil:
    if not pool_numbers(True, v, l, band, planes):
        pool_numbers(False, v, l, band, planes)
