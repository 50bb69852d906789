"""Values of pooling by strips: rows of windows are reduced along the height, then along the width.

A strip holds lines, one for each row of outputs: the reduced rows of the input with their padding. A line's padding
on the right is that of the next line on the left, so that whole vectors may be stored: what they overwrite is
written afterwards. Small planes share a strip. Windows of SPAN_TAPS taps and more are combined from spans, along the
height in a stack of the input's rows, along the width in copies of the strip.
"""

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, carve, fill, first_tap, flat, in_row, input_size, last_tap, list_rows, out_row, output_size,
    reach, shared_pitch, whole_from, whole_to, window_rows,
)
from fastconv.kernels.pool_reduce cimport (
    AHEAD, QUOTIENTS, Block, Finish, Values, double_span, finish_of, levels_of, lines_from, list_spans, looks_ahead,
    one_line, reduce_count, reduce_exactly, reduce_lines, running_on, unfinished,
)
from fastconv.kernels.simd cimport VL, real, vset1, vstore


cdef enum:
    SPAN_TAPS = 8         # spans of powers of 2 beat single taps from here on
    STRIP_BYTES = 16384   # of the lines, which stay in the first-level cache
    STACK_BYTES = 524288  # of the spans along the height, at most


cdef struct Strip:
    Py_ssize_t left       # elements of padding before a line
    Py_ssize_t pitch      # from line to line
    Py_ssize_t planes     # that may share a strip
    Py_ssize_t rows       # lines of each of them
    Py_ssize_t size       # elements of a level of lines
    Py_ssize_t levels     # doublings along the width
    Py_ssize_t stacked    # rows of outputs of a stack
    Py_ssize_t stack_size  # elements of a level of the stack
    Py_ssize_t stack_levels
    real* lines           # [levels + 1][size]
    real* stack           # [stack_levels][stack_size]
    const real** rows_at  # of the input, or of the stack, under one row of windows
    const real** taps     # along the width, of output 0 of line 0
    Py_ssize_t tap_count
    const real** shifted  # the taps of one line


cdef inline Py_ssize_t apart(Py_ssize_t size) noexcept nogil:
    """A size for which what is read and what is written never lie at the same offset in a page."""
    cdef Py_ssize_t page = 4096 // <Py_ssize_t> sizeof(real)
    return ceil_div(size, page) * page + page // 2


cdef inline bint shares_strips(const PoolGeometry* g, Py_ssize_t planes) noexcept nogil:
    """Are rows across so many planes fewer blocks of lines than whole planes, one by one?"""
    cdef Py_ssize_t clipped = g.out_size[1] - larger(whole_to(g) - whole_from(g), 0)
    return g.out_size[0] == 1 and 2 * g.out_size[1] < planes * (2 + clipped)


cdef inline void shape_strip(const PoolGeometry* g, Strip* s) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real), room
    s.left = g.before[2] * g.inner
    s.pitch = shared_pitch(g)
    room = STRIP_BYTES // larger(s.pitch * item, 1)
    s.rows = larger(smaller(room, g.out_size[1]), 1)
    s.planes = larger(smaller(room // s.rows, g.planes), 1)
    if not shares_strips(g, s.planes):
        s.planes = 1
    s.size = apart(s.planes * s.rows * s.pitch + s.left + 4 * VL)
    s.levels = levels_of(g.kernel[2]) if g.kernel[2] >= SPAN_TAPS else 0
    s.stack_levels = levels_of(g.kernel[1]) if g.kernel[1] >= SPAN_TAPS and flat(g) else 0
    s.stacked = smaller(larger(s.rows, reach(g, 1) // g.stride[1] + 1), g.out_size[1])
    s.stack_size = smaller((s.stacked - 1) * g.stride[1] + reach(g, 1) + 1, g.in_size[1]) * in_row(g)
    s.stack_size = apart((s.planes - 1) * input_size(g) + s.stack_size + 2 * VL)
    if s.stack_levels * s.stack_size * item > STACK_BYTES:
        s.stack_levels = 0
    if s.stack_levels == 0:
        s.stacked = g.out_size[1]


cdef inline void carve_strip(const PoolGeometry* g, char** memory, Strip* s) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real), pointer = sizeof(void*)
    shape_strip(g, s)
    s.lines = <real*> carve(memory, (s.levels + 1) * s.size * item)
    s.stack = <real*> carve(memory, s.stack_levels * s.stack_size * item)
    s.rows_at = <const real**> carve(memory, window_rows(g) * pointer)
    s.taps = <const real**> carve(memory, g.kernel[2] * pointer)
    s.shifted = <const real**> carve(memory, g.kernel[2] * pointer)


cdef inline void prepare_strip(bint maximum, const Values* v, Strip* s) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    fill(s.lines, v.padding, s.left)
    s.tap_count = list_spans(maximum, s.lines, s.lines + s.size, s.size, s.levels, g.dilation[2] * g.inner,
                             g.kernel[2], s.taps)


cdef inline void fill_stack(bint maximum, const PoolGeometry* g, const Strip* s, const real* source,
                            Py_ssize_t width) noexcept nogil:
    """The spans of `width` elements of the input."""
    cdef Py_ssize_t level, shift = g.dilation[1] * in_row(g)
    cdef real* to = s.stack
    cdef const real* both[2]
    cdef Block b
    cdef Finish none = unfinished()
    for level in range(s.stack_levels):
        width -= shift << level
        if width <= 0:
            return
        both[0] = source
        both[1] = source + (shift << level)
        b = one_line(to, width)
        reduce_exactly(maximum, both, 2, 1, &b, &none)
        source = to
        to += s.stack_size


cdef inline Py_ssize_t rows_under(bint maximum, const PoolGeometry* g, const Strip* s, const real* plane,
                                  Py_ssize_t bottom, Py_ssize_t depth, Py_ssize_t height) noexcept nogil:
    """Lists what is reduced for one row of windows: rows of the input, or of a stack from row `bottom` on."""
    cdef Py_ssize_t first, at
    if s.stack_levels == 0:
        return list_rows(g, plane, depth, height, s.rows_at)
    first = first_tap(g, 1, height)
    at = height * g.stride[1] - g.before[1] + first * g.dilation[1]
    return list_spans(maximum, plane + at * in_row(g), s.stack + (at - bottom) * in_row(g), s.stack_size,
                      s.stack_levels, g.dilation[1] * in_row(g), last_tap(g, 1, height) - first, s.rows_at)


cdef inline Py_ssize_t readable(const Values* v, const Strip* s, const real* row, const Block* b) noexcept nogil:
    """How many lines of a block, the first of them below `row`, may be read in whole vectors."""
    if s.stack <= row < s.stack + s.stack_levels * s.stack_size:
        return b.lines
    return running_on(b.lines, b.source_step, b.width + VL, v.end - row)


cdef inline void reduce_height(bint maximum, const Values* v, const Strip* s, Py_ssize_t count,
                               Block* b) noexcept nogil:
    """The listed rows -> lines, and the padding after each."""
    cdef Py_ssize_t line, loose, t
    cdef Finish none = unfinished()
    cdef Block rest
    if count <= 0:
        for line in range(b.lines):
            fill(b.to + line * b.to_step, v.padding, s.pitch)
    else:
        loose = readable(v, s, s.rows_at[count - 1], b)
        rest = lines_from(b, loose)
        b.lines = loose
        reduce_lines(maximum, s.rows_at, count, 1, b, &none)
        if rest.lines:
            for t in range(count):
                s.rows_at[t] += loose * b.source_step
            reduce_exactly(maximum, s.rows_at, count, 1, &rest, &none)


cdef inline void reduce_pixels(bint maximum, const PoolGeometry* g, const Strip* s, Block* b, Finish* f) noexcept nogil:
    """With channels last and a stride, one column of pixels after the other."""
    cdef Py_ssize_t _, t
    b.width = g.inner
    for _ in range(g.out_size[2]):
        reduce_exactly(maximum, s.shifted, s.tap_count, 1, b, f)
        b.to += g.inner
        f.columns += g.inner
        for t in range(s.tap_count):
            s.shifted[t] += g.stride[2] * g.inner


cdef inline void reduce_width(bint maximum, const PoolGeometry* g, const Strip* s, Py_ssize_t at, Block* b,
                              Finish* f, const real* end) noexcept nogil:
    """Lines from element `at` of the strip on -> rows of outputs; whole vectors are stored up to `end` of a plane."""
    cdef Py_ssize_t t, step = g.stride[2], loose, extent = ceil_div(b.width, VL) * VL
    cdef Block rest
    for t in range(s.tap_count):
        s.shifted[t] = s.taps[t] + at
    if g.inner > 1 and step > 1:
        reduce_pixels(maximum, g, s, b, f)
        return
    loose = running_on(b.lines, b.to_step if b.to_step == b.width else 0, extent, end - b.to)
    rest = lines_from(b, loose)
    b.lines = loose
    if step == 1:
        reduce_lines(maximum, s.shifted, s.tap_count, 1, b, f)
    elif step == 2:
        reduce_lines(maximum, s.shifted, s.tap_count, 2, b, f)
    else:
        reduce_count(maximum, s.shifted, s.tap_count, step, b, f, False)
    if rest.lines == 0:
        return
    for t in range(s.tap_count):
        s.shifted[t] += loose * b.source_step
    f.rows += loose * f.row_step
    if step == 2:
        reduce_exactly(maximum, s.shifted, s.tap_count, 2, &rest, f)
    else:
        reduce_exactly(maximum, s.shifted, s.tap_count, step, &rest, f)


cdef inline void widen(bint maximum, const PoolGeometry* g, const Strip* s, Py_ssize_t lines) noexcept nogil:
    """The spans along the width of all lines of the strip."""
    cdef Py_ssize_t level, shift = g.dilation[2] * g.inner, width = s.left + lines * s.pitch
    cdef real* source = s.lines
    for level in range(s.levels):
        width -= shift << level
        double_span(maximum, source, shift << level, source + s.size, width)
        source += s.size


cdef inline void fill_lines(bint maximum, const Values* v, const Strip* s, const Band* band, Py_ssize_t planes,
                            Py_ssize_t bottom, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Lines in the order of their rows, and of the planes in each; rows whose windows are whole go together."""
    cdef const PoolGeometry* g = v.geometry
    cdef const real* plane = v.input + band.plane * input_size(g)
    cdef Py_ssize_t row = first, count
    cdef Block b
    b.width = in_row(g)
    b.to_step = s.pitch
    b.gap = s.pitch - b.width
    b.padding = v.padding
    b.fetched = g.stride[1] * in_row(g) if looks_ahead(v) else 0
    b.ahead = planes * input_size(g) if planes > 1 else AHEAD
    while row < last:
        count = rows_under(maximum, g, s, plane, bottom, band.depth, row)
        b.to = s.lines + s.left + (row - first) * planes * s.pitch
        if planes > 1:
            b.lines = planes
            b.source_step = input_size(g)
            row += 1
        else:
            b.lines = smaller(whole_to(g), last) - row if whole_from(g) <= row < whole_to(g) else 1
            b.source_step = g.stride[1] * in_row(g)
            row += b.lines
        reduce_height(maximum, v, s, count, &b)


cdef inline void pool_strip(bint maximum, const Values* v, const Strip* s, const Band* band, Py_ssize_t planes,
                            Py_ssize_t bottom, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of outputs of one plane, or all rows of several."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t row = first, rows = last - first if planes == 1 else 1
    cdef real* out = v.out + band.plane * output_size(g) + band.depth * g.out_size[1] * out_row(g)
    cdef const real* end = out + last * out_row(g)
    cdef Block b
    cdef Finish f
    b.fetched = b.ahead = 0
    fill_lines(maximum, v, s, band, planes, bottom, first, last)
    widen(maximum, g, s, planes * (last - first))
    while row < last:
        b.gap = 0
        b.lines = planes * rows
        b.source_step = s.pitch
        b.to = out + row * out_row(g)
        b.width = out_row(g)
        b.to_step = output_size(g) if planes > 1 else b.width
        f = finish_of(v, band.depth, row)
        if planes > 1:
            f.row_step = 0
        reduce_width(maximum, g, s, (row - first) * planes * s.pitch, &b, &f, end)
        row += rows


cdef inline void pool_band(bint maximum, const Values* v, const Strip* s, const Band* band,
                           Py_ssize_t planes) noexcept nogil:
    """A band of one plane, or several planes: stack after stack, strip after strip."""
    cdef const PoolGeometry* g = v.geometry
    cdef const real* plane = v.input + band.plane * input_size(g)
    cdef Py_ssize_t first = band.first, last, stop, bottom = 0, top
    while first < band.last:
        stop = smaller(first + s.stacked, band.last)
        if s.stack_levels:
            bottom = larger(first * g.stride[1] - g.before[1], 0)
            top = smaller((stop - 1) * g.stride[1] - g.before[1] + reach(g, 1) + 1, g.in_size[1])
            fill_stack(maximum, g, s, plane + bottom * in_row(g),
                       (planes - 1) * input_size(g) + (top - bottom) * in_row(g))
        while first < stop:
            last = smaller(first + s.rows, stop)
            pool_strip(maximum, v, s, band, planes, bottom, first, last)
            first = last
