"""Maxima and sums of rows that lie anywhere in memory, line after line, and what becomes of sums.

    to[l * to_step + i] = finish(combine over t < count of rows[t][l * source_step + i * step])

combine is the maximum, NaN where either side is NaN, or the sum in the order of t; finish makes averages of sums.
Whole vectors are read and written: up to 2 * VL - 1 elements further than asked for, unless `exact`.

Long windows are combined from spans: span[l + 1][i] = combine(span[l][i], span[l][i + 2^l * apart]) covers 2^(l + 1)
taps, so that a window of k taps takes about log2(k) steps.
"""

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.pool cimport PoolGeometry
from fastconv.kernels.simd cimport (
    VL, prefetch_far, real, vadd, vdiv, vec, veven, vload, vload_first, vmax, vmul, vquotient, vset1, vstore,
    vstore_first,
)


cdef enum:
    ACROSS = 8  # vectors: as many sums as hide the latency of additions
    AHEAD = 2048  # elements from what is read to what is fetched, in rows that follow each other
    AHEAD_BYTES = 16 << 20  # of an input, from here on: others the caches may hold
    LINE = 64 // sizeof(real)


# Those of fastconv.calls_pool.
cdef enum FinishKind:
    NOTHING = 0
    FACTOR = 1     # times `reciprocal`, an exact power of 2
    QUOTIENT = 2   # over `divisor`
    QUOTIENTS = 3  # over depth * rows[line] * columns[i]


cdef struct Finish:
    FinishKind kind
    real divisor
    real reciprocal
    real depth
    const real* depths
    const real* rows
    Py_ssize_t row_step    # 0 where all lines belong to one row, or all rows have the first one's divisor
    const real* columns


# What is computed: the maximum, or the average.
cdef struct Values:
    const PoolGeometry* geometry
    const real* input
    const real* end        # of the input
    real* out
    real padding           # -inf, or 0
    Finish finish          # of the first row of outputs


cdef struct Block:
    Py_ssize_t lines
    Py_ssize_t source_step
    real* to
    Py_ssize_t to_step
    Py_ssize_t width
    Py_ssize_t gap         # elements after each line that become `padding`
    real padding
    Py_ssize_t fetched     # elements that are fetched for each line, ...
    Py_ssize_t ahead       # ... so far from the line of the first row


cdef inline bint looks_ahead(const Values* v) noexcept nogil:
    return (v.end - v.input) * <Py_ssize_t> sizeof(real) >= AHEAD_BYTES


cdef inline void fetch(const real* p, Py_ssize_t elements) noexcept nogil:
    """Into the second level."""
    cdef Py_ssize_t i = 0
    while i < elements:
        prefetch_far(p + i)
        i += LINE


cdef inline vec combine(bint maximum, vec a, vec b) noexcept nogil:
    if maximum:
        return vmax(a, b)
    return vadd(a, b)


cdef inline vec finished(const Finish* f, Py_ssize_t line, Py_ssize_t i, vec value) noexcept nogil:
    """`columns` are read in whole vectors."""
    if f.kind == NOTHING:
        return value
    if f.kind == FACTOR:
        return vmul(value, vset1(f.reciprocal))
    if f.kind == QUOTIENT:
        return vquotient(value, vset1(f.divisor), vset1(f.reciprocal))
    return vdiv(value, vmul(vset1(f.depth * f.rows[line * f.row_step]), vload(f.columns + i)))


cdef inline vec gathered(const real* row, Py_ssize_t step, Py_ssize_t count) noexcept nogil:
    """Elements 0, step, 2 * step, ... of a row, `count` of them."""
    cdef real[VL] lanes
    cdef Py_ssize_t i
    for i in range(VL):
        lanes[i] = row[i * step] if i < count else 0
    return vload(lanes)


cdef inline vec element(const real* row, Py_ssize_t step, Py_ssize_t i, Py_ssize_t left, bint exact) noexcept nogil:
    """row[i * step], row[(i + 1) * step], ...; lanes from `left` on are of no interest."""
    if step == 2:
        return veven(vload(row + 2 * i), vload(row + 2 * i + VL))
    if step > 2:
        return gathered(row + i * step, step, left)
    if exact and left < VL:
        return vload_first(row + i, left)
    return vload(row + i)


cdef inline void reduce_count(bint maximum, const real** rows, Py_ssize_t count, Py_ssize_t step, const Block* b,
                              const Finish* f, bint exact) noexcept nogil:
    cdef Py_ssize_t line, i, t, at = 0, left
    cdef real* to = b.to
    cdef vec result
    cdef const real* few[9]  # unlike `rows`, no store can change these
    if count <= 9:
        for t in range(count):
            few[t] = rows[t]
        rows = few
    for line in range(b.lines):
        fetch(rows[0] + at + b.ahead, b.fetched)
        i = 0
        while i < b.width:
            left = b.width - i
            result = element(rows[0] + at, step, i, left, exact)
            for t in range(1, count):
                result = combine(maximum, result, element(rows[t] + at, step, i, left, exact))
            result = finished(f, line, i, result)
            if exact:
                vstore_first(to + i, smaller(left, VL), result)
            else:
                vstore(to + i, result)
            i += VL
        i = 0
        while i < b.gap:
            vstore(to + b.width + i, vset1(b.padding))
            i += VL
        at += b.source_step
        to += b.to_step


cdef inline void reduce_across(bint maximum, const real** rows, Py_ssize_t count, const Block* b,
                               const Finish* f) noexcept nogil:
    """One line of ACROSS vectors or more, so many of each row at a time; the last ones reach back. Rows whose distance
    is a multiple of a page meet in a few lines of the cache: what lies side by side is read there and then."""
    cdef Py_ssize_t i = 0, t
    cdef vec[ACROSS] result
    cdef int j
    while i < b.width:
        i = smaller(i, b.width - ACROSS * VL)
        for j in range(ACROSS):
            result[j] = vload(rows[0] + i + j * VL)
        for t in range(1, count):
            for j in range(ACROSS):
                result[j] = combine(maximum, result[j], vload(rows[t] + i + j * VL))
        for j in range(ACROSS):
            vstore(b.to + i + j * VL, finished(f, 0, i + j * VL, result[j]))
        i += ACROSS * VL


cdef inline void reduce_lines(bint maximum, const real** rows, Py_ssize_t count, Py_ssize_t step, const Block* b,
                              const Finish* f) noexcept nogil:
    """The equation above, in whole vectors."""
    if count == 1:
        reduce_count(maximum, rows, 1, step, b, f, False)
    elif count == 2:
        reduce_count(maximum, rows, 2, step, b, f, False)
    elif count == 3:
        reduce_count(maximum, rows, 3, step, b, f, False)
    elif count == 5:
        reduce_count(maximum, rows, 5, step, b, f, False)
    else:
        reduce_count(maximum, rows, count, step, b, f, False)


cdef inline void reduce_exactly(bint maximum, const real** rows, Py_ssize_t count, Py_ssize_t step, const Block* b,
                                const Finish* f) noexcept nogil:
    """The same, without a step beyond `width` (but with a step of 2, whose rows are read in pairs of vectors)."""
    reduce_count(maximum, rows, count, step, b, f, True)


cdef inline Finish finish_of(const Values* v, Py_ssize_t depth, Py_ssize_t height) noexcept nogil:
    """For a row of outputs, and those below it."""
    cdef Finish f = v.finish
    if f.kind == QUOTIENTS:
        f.depth = f.depths[depth]
        f.rows += height * f.row_step
    return f


cdef inline Finish unfinished() noexcept nogil:
    cdef Finish f
    f.kind = NOTHING
    return f


cdef inline Block one_line(real* to, Py_ssize_t width) noexcept nogil:
    cdef Block b
    b.lines = 1
    b.source_step = b.to_step = b.gap = b.fetched = b.ahead = 0
    b.to = to
    b.width = width
    return b


cdef inline Block lines_from(const Block* b, Py_ssize_t first) noexcept nogil:
    cdef Block rest = b[0]
    rest.lines -= first
    rest.to += first * b.to_step
    return rest


cdef inline Py_ssize_t running_on(Py_ssize_t lines, Py_ssize_t step, Py_ssize_t extent,
                                  Py_ssize_t room) noexcept nogil:
    """How many of the lines have `extent` elements of room, the first of them `room`."""
    if room < extent:
        return 0
    return lines if step == 0 else smaller((room - extent) // step + 1, lines)


cdef inline void double_span(bint maximum, const real* source, Py_ssize_t shift, real* to,
                             Py_ssize_t width) noexcept nogil:
    """to[i] = combine(source[i], source[i + shift]), in whole vectors."""
    cdef Py_ssize_t i = 0
    while i < width:
        vstore(to + i, combine(maximum, vload(source + i), vload(source + i + shift)))
        i += VL


cdef inline Py_ssize_t levels_of(Py_ssize_t taps) noexcept nogil:
    """Doublings until one more would exceed a window of so many taps."""
    cdef Py_ssize_t levels = 0
    while (2 << levels) <= taps:
        levels += 1
    return levels


cdef inline Py_ssize_t list_spans(bint maximum, const real* base, const real* spans, Py_ssize_t size,
                                  Py_ssize_t levels, Py_ssize_t apart, Py_ssize_t taps,
                                  const real** rows) noexcept nogil:
    """The rows whose combination is that of `taps` taps, `apart` elements from one to the next.

    Single taps begin at `base`, spans of 2^l at spans + (l - 1) * size. Maxima may overlap, and so take two of the
    longest; sums take one for each bit of `taps`.
    """
    cdef Py_ssize_t level = levels, done = 0, count = 0
    while done < taps:
        while done + (1 << level) > taps:
            if maximum and done > 0:
                done = taps - (1 << level)
            else:
                level -= 1
        rows[count] = (base if level == 0 else spans + (level - 1) * size) + done * apart
        done += 1 << level
        count += 1
    return count
