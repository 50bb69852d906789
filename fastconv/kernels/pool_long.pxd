"""Maxima of long windows with stride 1: along the height by sweeps (pool_sweep.pxd), then along the width.

Channels last are swept along the width, too, some vectors of channels at a time. With channels first, or few, pixels
lie across the lanes: lines with their padding are combined from spans,

    span[l + 1][i] = max over t < 4 of span[l][i + t * 4^l].

What has just been stored is slow to load in other vectors, so that lines of several blocks, and planes, are gathered
before. The processor's maximum loses a NaN: with one among the rows everything is done again, in the same order and so
to the same bits, by a maximum of twice the instructions.
"""

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, carve, fill, flat, in_row, input_size, out_row, output_size, shared_pitch,
)
from fastconv.kernels.pool_reduce cimport Values
from fastconv.kernels.pool_strip cimport SPAN_TAPS, apart
from fastconv.kernels.pool_sweep cimport WIDE, Sweep, aim, most_of, sweep
from fastconv.kernels.simd cimport VL, real, vec, vload, vstore, vstore_first

cdef enum:
    LINES_BYTES = 4096       # of the lines that are gathered, if more than a block's
    LONG_BYTES = 262144      # of lines and their spans, at most


cdef struct Long:
    Py_ssize_t slice         # channels that are swept together, or 0: pixels lie across the lanes
    Py_ssize_t slices
    Py_ssize_t left          # elements of padding before a line
    Py_ssize_t pitch         # from line to line
    Py_ssize_t room          # for so many lines
    Py_ssize_t planes        # of a unit
    Py_ssize_t size          # elements of a level of lines
    Py_ssize_t levels        # of spans
    real* lines              # [levels + 1][size]
    real* suffixes           # [steps of a window + 1][WIDE * VL]


cdef inline Py_ssize_t span_levels(Py_ssize_t taps) noexcept nogil:
    """At most four of the longest spans make a window."""
    cdef Py_ssize_t levels = 0
    while taps > 4:
        taps = ceil_div(taps, 4)
        levels += 1
    return levels


cdef inline Long shape_long(const PoolGeometry* g) noexcept nogil:
    cdef Long l
    l.lines = l.suffixes = NULL
    l.room = smaller(g.kernel[1], g.out_size[1])
    if g.inner >= VL:
        l.slice = smaller(ceil_div(g.inner, VL), WIDE) * VL
        l.slices = ceil_div(g.inner, l.slice)
        l.left = l.levels = 0
        l.pitch = g.in_size[2] * l.slice
        l.planes = 1
    else:
        l.slice = 0
        l.slices = 1
        l.left = g.before[2] * g.inner
        l.levels = span_levels(g.kernel[2])
        l.pitch = shared_pitch(g)
        l.room = larger(l.room, LINES_BYTES // <Py_ssize_t> sizeof(real) // l.pitch)
        l.planes = larger(l.room // g.out_size[1], 1)
    l.size = apart(l.left + l.room * l.pitch + 4 * VL)
    return l


cdef inline bint takes_long(const PoolGeometry* g) noexcept nogil:
    cdef Long l
    cdef int axis
    if g.inner == 0:
        return False
    for axis in range(1, 3):
        if g.stride[axis] > 1 or g.dilation[axis] > 1 or g.kernel[axis] < SPAN_TAPS:
            return False
    l = shape_long(g)
    return flat(g) and l.size * (l.levels + 1) * <Py_ssize_t> sizeof(real) <= LONG_BYTES


cdef inline void carve_long(const PoolGeometry* g, char** memory, Long* l) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real)
    l[0] = shape_long(g)
    l.lines = <real*> carve(memory, (l.levels + 1) * l.size * item)
    l.suffixes = <real*> carve(memory, (larger(g.kernel[1], g.kernel[2]) + 1) * WIDE * VL * item)


cdef inline Sweep sweep_axis(const Values* v, int axis, const real* source, Py_ssize_t step,
                             Py_ssize_t pitch) noexcept nogil:
    cdef Sweep s
    s.source = source
    s.step = step
    s.length = v.geometry.in_size[axis]
    s.window = v.geometry.kernel[axis]
    s.before = v.geometry.before[axis]
    s.pitch = pitch
    s.padding = v.padding
    s.lanes = VL
    s.exact = False
    s.gap = 0
    return s


# Pixels across the lanes


cdef inline bint fill_block(bint numbers, const PoolGeometry* g, const Long* l, Sweep* s, real* to) noexcept nogil:
    """The lines of a block, from right to left: whole vectors reach into the next line, and its padding."""
    cdef Py_ssize_t vectors = ceil_div(in_row(g), VL), some = (vectors - 1) % WIDE + 1
    cdef bint missing = False
    s.lanes = in_row(g) - (vectors - 1) * VL
    s.gap = l.pitch - in_row(g)
    while vectors > 0:
        vectors -= some
        missing |= sweep(numbers, some, s, vectors * VL, l.suffixes, to + vectors * VL)
        s.lanes = VL
        s.gap = 0
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


cdef inline void join_spans(bint numbers, const int count, const real** spans, Py_ssize_t pitch, Py_ssize_t lines,
                            Py_ssize_t width, real* out) noexcept nogil:
    """out[line][i] = max over t < count of spans[t][line * pitch + i]: column after column of vectors."""
    cdef Py_ssize_t i = 0
    while i + VL <= width:
        join_column(numbers, count, spans, i, pitch, lines, width, VL, out + i)
        i += VL
    if i < width:
        join_column(numbers, count, spans, i, pitch, lines, width, width - i, out + i)


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


cdef inline bint pool_rows(bint numbers, const Values* v, const Long* l, const Band* band,
                           Py_ssize_t planes) noexcept nogil:
    """A band of one plane, or several planes; False, and nothing that counts is done, if they may not be numbers."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t lines = 0, plane, row, some
    cdef real* out = v.out + band.plane * output_size(g) + band.first * out_row(g)
    cdef Sweep s
    fill(l.lines, v.padding, l.left)
    for plane in range(band.plane, band.plane + planes):
        s = sweep_axis(v, 1, v.input + plane * input_size(g), in_row(g), l.pitch)
        row = band.first
        while row < band.last:
            some = aim(&s, row, band.last)
            if lines + some > l.room:
                reduce_along(numbers, g, l, lines, out)
                out += lines * out_row(g)
                lines = 0
            if fill_block(numbers, g, l, &s, l.lines + l.left + lines * l.pitch) and numbers:
                return False
            lines += some
            row += some
    reduce_along(numbers, g, l, lines, out)
    return True


# Channels across the lanes


cdef inline void sweep_line(bint numbers, const Values* v, const Long* l, Py_ssize_t lanes, const real* line,
                            real* out) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t vectors = ceil_div(lanes, VL), pixel = 0, some
    cdef Sweep s = sweep_axis(v, 2, line, l.slice, g.inner)
    s.lanes = lanes - (vectors - 1) * VL
    s.exact = s.lanes < VL
    while pixel < g.out_size[2]:
        some = aim(&s, pixel, g.out_size[2])
        sweep(numbers, vectors, &s, 0, l.suffixes, out + pixel * g.inner)
        pixel += some


cdef inline bint pool_slice(bint numbers, const Values* v, const Long* l, const Band* band,
                            Py_ssize_t channel) noexcept nogil:
    """A slice of the channels, from `channel` on; False as above."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t lanes = smaller(l.slice, g.inner - channel), vectors = ceil_div(lanes, VL), row = band.first
    cdef Py_ssize_t some, line, x
    cdef real* out = v.out + band.plane * output_size(g) + channel
    cdef bint missing = False
    cdef Sweep s = sweep_axis(v, 1, v.input + band.plane * input_size(g) + channel, in_row(g), l.pitch)
    s.lanes = lanes - (vectors - 1) * VL
    while row < band.last:
        some = aim(&s, row, band.last)
        for x in range(g.in_size[2]):
            missing |= sweep(numbers, vectors, &s, x * g.inner, l.suffixes, l.lines + x * l.slice)
        if missing and numbers:
            return False
        for line in range(some):
            sweep_line(numbers, v, l, lanes, l.lines + line * l.pitch, out + (row + line) * out_row(g))
        row += some
    return True


cdef inline void pool_long(const Values* v, const Long* l, const Band* band, Py_ssize_t planes,
                           Py_ssize_t slice) noexcept nogil:
    """A band of one plane or of a slice of its channels, or several planes."""
    if l.slice == 0:
        if not pool_rows(True, v, l, band, planes):
            pool_rows(False, v, l, band, planes)
    elif not pool_slice(True, v, l, band, slice * l.slice):
        pool_slice(False, v, l, band, slice * l.slice)
