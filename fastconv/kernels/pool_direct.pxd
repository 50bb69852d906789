"""Values of pooling where windows are best read straight from the input, without a strip between.

- Pairs: channels first, stride 2 along the width, one or two columns a window, no padding there. A vector of
  outputs is two vectors of the input, reduced along the height in registers, their even and odd lanes combined.
- Pixels: channels last. All taps of a pixel of outputs are reduced at once, channels side by side.
- Planes: channels first, one window that holds its plane. Planes are reduced VL at a time to one vector each,
  and those lane by lane.
"""

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, first_tap, in_row, input_size, last_tap, list_rows, out_row, output_size, reach, whole_from,
    whole_to, window_rows,
)
from fastconv.kernels.pool_reduce cimport (
    ACROSS, AHEAD, Block, Finish, Values, combine, fetch, finish_of, finished, lines_from, looks_ahead, one_line,
    reduce_across, reduce_count, running_on,
)
from fastconv.kernels.simd cimport (
    VL, real, vec, veven, vload, vload_first, vodd, vset1, vstore, vstore_first, vsums, vtranspose,
)


cdef enum:
    DIRECT_TAPS = 9    # of overlapping windows: 3x3 with stride 2 saves the strip, 5x5 would repeat more than that
    PIXEL_TAPS = 64    # of windows apart from each other, ...
    MOST_TAPS = 1024   # ... or of so many channels that MANY_TAPS are reduced by whole stretches of them
    MANY_TAPS = 10


cdef inline bint takes_pairs(const PoolGeometry* g) noexcept nogil:
    return (g.inner == 1 and g.stride[2] == 2 and g.kernel[2] <= 2 and g.dilation[2] == 1 and g.before[2] == 0
            and 2 * (g.out_size[2] - 1) + g.kernel[2] <= g.in_size[2])


cdef inline bint takes_pixels(const PoolGeometry* g) noexcept nogil:
    cdef bint apart = reach(g, 1) < g.stride[1] or g.out_size[1] == 1
    cdef Py_ssize_t taps = window_rows(g) * g.kernel[2]
    apart = apart and (reach(g, 2) < g.stride[2] or g.out_size[2] == 1)
    cdef Py_ssize_t most = MOST_TAPS if g.inner >= ACROSS * VL else PIXEL_TAPS
    return g.inner > VL // 2 and taps <= (most if apart else DIRECT_TAPS) and (apart or g.stride[2] > 1)


cdef inline bint takes_planes(const PoolGeometry* g) noexcept nogil:
    cdef int axis
    for axis in range(3):
        if g.out_size[axis] > 1 or g.dilation[axis] > 1 or g.kernel[axis] - g.before[axis] < g.in_size[axis]:
            return False
    return g.inner == 1


cdef inline vec pair(bint maximum, bint exact, const real** rows, Py_ssize_t count, Py_ssize_t at,
                     Py_ssize_t left) noexcept nogil:
    """A vector of the reduced rows, `at` elements into them; `left` of its lanes are of interest."""
    cdef vec result
    cdef Py_ssize_t t
    left = smaller(left, VL)
    result = vload_first(rows[0] + at, left) if exact else vload(rows[0] + at)
    for t in range(1, count):
        result = combine(maximum, result, vload_first(rows[t] + at, left) if exact else vload(rows[t] + at))
    return result


cdef inline void pair_lines(bint maximum, bint exact, bint ahead, const real** rows, Py_ssize_t count,
                            Py_ssize_t columns, const Block* b, const Finish* f) noexcept nogil:
    """to[i] = rows reduced at 2 * i, and at 2 * i + 1 where there are two columns."""
    cdef Py_ssize_t line, i, t, at = 0, left
    # Elements of the input from an output to the next, where rows follow each other; as many are fetched.
    cdef Py_ssize_t apart = ceil_div(b.source_step, larger(b.width, 1)), fetched = apart * VL if ahead else 0
    cdef const real* few[4]
    cdef vec low, high, result
    cdef real* to = b.to
    if count <= 4:
        for t in range(count):
            few[t] = rows[t]
        rows = few
    for line in range(b.lines):
        i = 0
        while i < b.width:
            fetch(rows[0] + at + i * apart + AHEAD, fetched)
            left = 2 * (b.width - i) + columns - 2
            low = high = pair(maximum, exact, rows, count, at + 2 * i, left)
            if left > VL:
                high = pair(maximum, exact, rows, count, at + 2 * i + VL, left - VL)
            result = veven(low, high)
            if columns == 2:
                result = combine(maximum, result, vodd(low, high))
            result = finished(f, line, i, result)
            if exact:
                vstore_first(to + i, smaller(b.width - i, VL), result)
            else:
                vstore(to + i, result)
            i += VL
        at += b.source_step
        to += b.to_step


cdef inline void pair_block(bint maximum, const Values* v, const real** rows, Py_ssize_t count, Py_ssize_t columns,
                            Block* b, Finish* f, const real* out_end) noexcept nogil:
    cdef Py_ssize_t extent = ceil_div(b.width, VL) * VL, t
    cdef Py_ssize_t loose = running_on(b.lines, b.source_step, 2 * extent, v.end - rows[count - 1])
    cdef Block rest
    loose = running_on(loose, b.to_step, extent, out_end - b.to)
    rest = lines_from(b, loose)
    b.lines = loose
    if count == 2:
        pair_lines(maximum, False, looks_ahead(v), rows, 2, columns, b, f)
    else:
        pair_lines(maximum, False, looks_ahead(v), rows, count, columns, b, f)
    for t in range(count):
        rows[t] += loose * b.source_step
    f.rows += loose * f.row_step
    pair_lines(maximum, True, False, rows, count, columns, &rest, f)


cdef inline void pair_band(bint maximum, const Values* v, const real** rows, const Band* band) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    cdef const real* plane = v.input + band.plane * input_size(g)
    cdef real* out = v.out + band.plane * output_size(g) + band.depth * g.out_size[1] * out_row(g)
    cdef Py_ssize_t row = band.first, count
    cdef Block b
    cdef Finish f
    while row < band.last:
        b = one_line(out + row * out_row(g), out_row(g))
        if whole_from(g) <= row < whole_to(g):
            b.lines = smaller(whole_to(g), band.last) - row
        b.source_step = g.stride[1] * in_row(g)
        b.to_step = b.width
        f = finish_of(v, band.depth, row)
        count = list_rows(g, plane, band.depth, row, rows)
        row += b.lines
        if count == 0:
            zero_row(b.to, b.lines * b.width)
        elif g.kernel[2] == 2:
            pair_block(maximum, v, rows, count, 2, &b, &f, out + band.last * out_row(g))
        else:
            pair_block(maximum, v, rows, count, 1, &b, &f, out + band.last * out_row(g))


cdef inline void zero_row(real* to, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(width):
        to[i] = 0


cdef inline Py_ssize_t list_taps(const PoolGeometry* g, const real** rows, Py_ssize_t count, Py_ssize_t x,
                                 const real** taps) noexcept nogil:
    """The taps of pixel `x` inside the rows, in row-major order."""
    cdef Py_ssize_t first = first_tap(g, 2, x), last = last_tap(g, 2, x), r, c, taken = 0
    for r in range(count):
        for c in range(first, last):
            taps[taken] = rows[r] + (x * g.stride[2] - g.before[2] + c * g.dilation[2]) * g.inner
            taken += 1
    return taken


cdef inline void pixel_band(bint maximum, const Values* v, const real** rows, const Band* band) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    cdef const real* plane = v.input + band.plane * input_size(g)
    cdef const real* taps[MOST_TAPS]
    cdef Py_ssize_t row, x, r, lines, count, step = g.stride[2] * g.inner
    cdef bint ahead = looks_ahead(v)
    cdef Block b = one_line(v.out + band.plane * output_size(g)
                            + (band.depth * g.out_size[1] + band.first) * out_row(g), g.inner)
    cdef Finish f
    for row in range(band.first, band.last):
        lines = list_rows(g, plane, band.depth, row, rows)
        f = finish_of(v, band.depth, row)
        for x in range(g.out_size[2]):
            count = list_taps(g, rows, lines, x, taps)
            if ahead:  # as many rows further down
                for r in range(smaller(lines, g.stride[1])):
                    fetch(rows[r] + g.stride[1] * in_row(g) + x * step, step)
            if count == 0:
                zero_row(b.to, g.inner)
            elif count == 9:
                reduce_count(maximum, taps, 9, 1, &b, &f, True)
            elif count == 4:
                reduce_count(maximum, taps, 4, 1, &b, &f, True)
            elif count >= MANY_TAPS and g.inner >= ACROSS * VL:
                reduce_across(maximum, taps, count, &b, &f)
            else:
                reduce_count(maximum, taps, count, 1, &b, &f, True)
            b.to += g.inner
            f.columns += g.inner


cdef inline vec last_part(bint maximum, const real* plane, Py_ssize_t size, real padding) noexcept nogil:
    """The last size % VL elements of a plane, and what changes nothing; maxima may meet others twice."""
    cdef real[VL] part
    cdef Py_ssize_t left = size % VL
    if not maximum:
        return vload_first(plane + size - left, left)
    if size > VL:
        return vload(plane + size - VL)
    vstore(part, vset1(padding))
    vstore_first(part, left, vload_first(plane, left))
    return vload(part)


cdef inline void reduce_side_by_side(bint maximum, const real* plane, Py_ssize_t count, Py_ssize_t size,
                                     real padding, vec* to) noexcept nogil:
    """Up to 4 planes, each reduced to the lanes of one vector."""
    cdef vec[4] sums
    cdef Py_ssize_t i = 0, p
    for p in range(count):
        sums[p] = vset1(padding)
    while i + VL <= size:
        for p in range(count):
            sums[p] = combine(maximum, sums[p], vload(plane + p * size + i))
        i += VL
    if i < size:
        for p in range(count):
            sums[p] = combine(maximum, sums[p], last_part(maximum, plane + p * size, size, padding))
    for p in range(count):
        to[p] = sums[p]


cdef inline void reduce_planes(bint maximum, const Values* v, Py_ssize_t first) noexcept nogil:
    """Planes first .. first + VL - 1, as far as there are so many."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t size = input_size(g), count = smaller(g.planes - first, VL), i = 0
    cdef const real* plane = v.input + first * size
    cdef vec[VL] lanes
    while i < count:
        if VL >= 4 and i + 4 <= count:
            reduce_side_by_side(maximum, plane, 4, size, v.padding, lanes + i)
            i += 4
            plane += 4 * size
        else:
            reduce_side_by_side(maximum, plane, 1, size, v.padding, lanes + i)
            i += 1
            plane += size
    if not maximum:
        vstore_first(v.out + first, count, finished(&v.finish, 0, 0, vsums(lanes, 1)))
        return
    vtranspose(lanes)
    for i in range(1, VL):
        lanes[0] = combine(maximum, lanes[0], lanes[i])
    vstore_first(v.out + first, count, lanes[0])
