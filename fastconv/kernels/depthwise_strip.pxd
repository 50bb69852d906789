"""Strips: rows of a plane with their padding, in cache, arranged so that a tap is a stretch of a line.

A strip holds `rows` rows and `columns` columns of the input, zero outside of it. Column e of a row lies at

    lead + e % step * phase + e // step * inner

from the start of its line: columns are split by their position modulo the step, so that whatever the step,
the columns that one tap meets lie side by side. Of narrow maps, `inner` channels share a strip: they take
turns within a pixel, and a vector of VL elements is a whole row of each of them.
"""

from libc.string cimport memset

from fastconv.kernels.depthwise_taps cimport Comb
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.simd cimport (
    VL, prefetch_near, real, vec, veven, vload, vload_first, vodd, vset1, vstore, vthirds, vzero, vzip_high,
    vzip_low,
)

cdef enum:
    MOST_INNER = 4  # of channels that take turns
    MOST_LANES = 16  # a whole vector of them (depthwise_lanes.pxd)
    WHOLE_BYTES = 16 << 10  # a plane up to this size is one strip
    STRIP_BYTES = 8 << 10  # of others: one is filled while one is computed and what comes next is fetched
    LANES_BYTES = 32 << 10  # of whole vectors there is one strip, filled and computed in turn
    MANY_TAPS = 144  # from here on lanes are worth the weights of several channels as vectors
    LINE = 64 // sizeof(real)


cdef struct Strip:
    int inner
    bint whole                   # inner is VL, and a pixel one vector
    Py_ssize_t step
    Py_ssize_t row_step
    unsigned long long met_rows  # bit i: some tap meets row i modulo row_step
    unsigned long long met_columns
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t lead
    Py_ssize_t phase
    Py_ssize_t pitch             # from line to line
    Py_ssize_t in_rows           # of a plane of the input
    Py_ssize_t in_columns
    Py_ssize_t in_pitch
    Py_ssize_t in_column         # 1, or as many as the channels that lie last
    Py_ssize_t ahead             # elements to what will be read next, and is fetched now
    bint same_rows               # every strip has its rows of zeros in the same places
    bint same_columns


# Where the input begins in a strip: the same in every strip of a plane that is not cut.
cdef struct Window:
    Py_ssize_t above             # rows of zeros
    Py_ssize_t rows              # of the input
    Py_ssize_t below
    Py_ssize_t before            # columns of zeros
    Py_ssize_t columns           # of the input
    Py_ssize_t source            # its first element, from the plane's start
    Py_ssize_t even              # where that goes in a line, and the one after it
    Py_ssize_t odd


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef inline bint is_met(unsigned long long residues, Py_ssize_t residue) noexcept nogil:
    return residue > 63 or (residues >> residue) & 1


cdef inline unsigned long long met_by(const Comb* taps, Py_ssize_t step) noexcept nogil:
    """Which positions modulo the step, counted from the first tap's, the taps of an axis meet."""
    cdef unsigned long long residues = 0
    cdef Py_ssize_t t, residue
    for t in range(taps.count):
        residue = t * taps.gap % step
        if residue < 64:
            residues |= <unsigned long long> 1 << residue
    return residues


cdef inline Py_ssize_t column_at(const Strip* s, Py_ssize_t column) noexcept nogil:
    if s.step == 1:  # divisions take long
        return s.lead + column * s.inner
    return s.lead + column % s.step * s.phase + column // s.step * s.inner


cdef inline int share(Py_ssize_t width, Py_ssize_t groups, Py_ssize_t taps) noexcept nogil:
    """How many channels share the lanes of a map: of a narrow one, or where that fills vectors and pays back."""
    cdef Py_ssize_t one = ceil_div(width, VL), two = ceil_div(2 * width, VL), four = ceil_div(4 * width, VL)
    if width * 4 <= VL and groups >= 4:
        return 4
    if width * 2 <= VL and groups >= 2:
        return 2
    if taps >= MANY_TAPS and groups >= 4 and four < 2 * two:
        return 4
    if taps >= MANY_TAPS and groups >= 2 and two < 2 * one:
        return 2
    return 1


cdef inline void shape_lines(Strip* s, Py_ssize_t width, Py_ssize_t reach, Py_ssize_t before) noexcept nogil:
    """Room for `width` outputs and taps that reach so far; the input begins `before` columns in."""
    s.columns = (width - 1) * s.step + reach + 1
    # The first column of the input begins a vector: most stores, and the loads of one tap, are aligned. Three and
    # more phases would leave most of a line empty for it: 48 columns at a step of 3 take 1.8 times the cache.
    s.lead = ((-before // s.step * s.inner) % VL + VL) % VL if before > 0 and s.step < 3 else 0
    s.phase = s.lead + (reach // s.step + 1) * s.inner + ceil_div(width * s.inner, VL) * VL + VL
    if s.step < 3:
        s.phase = ceil_div(s.phase, LINE) * LINE
    s.pitch = ceil_div(s.phase * s.step, LINE) * LINE
    if s.pitch % (4096 // <Py_ssize_t> sizeof(real)) == 0:  # lines would fall into the same cache sets
        s.pitch += LINE


cdef inline Py_ssize_t rows_of_strip(Py_ssize_t pitch, Py_ssize_t reach, Py_ssize_t step, Py_ssize_t tile,
                                     Py_ssize_t rows, bint whole) noexcept nogil:
    """Rows of outputs: all, or whole tiles that fit the cache, and so many that what strips share is little."""
    cdef Py_ssize_t line = pitch * <Py_ssize_t> sizeof(real), fit
    if ((rows - 1) * step + reach + 1) * line <= (LANES_BYTES if whole else WHOLE_BYTES):
        return rows
    fit = larger(larger(((LANES_BYTES if whole else STRIP_BYTES) // line - reach) // step, 2 * reach // step), 1)
    return smaller(ceil_div(fit, tile) * tile, rows)


cdef inline void interleave(const int inner, const vec* x, real* to, Py_ssize_t pixels) noexcept nogil:
    """Pixels of `inner` channels, to whole vectors as far as `pixels` reach."""
    cdef vec a, b, c, d
    if inner == 1:
        vstore(to, x[0])
    elif inner == 2:
        vstore(to, vzip_low(x[0], x[1]))
        if pixels * 2 > VL:
            vstore(to + VL, vzip_high(x[0], x[1]))
    else:
        a = vzip_low(x[0], x[2])
        b = vzip_low(x[1], x[3])
        vstore(to, vzip_low(a, b))
        if pixels * 4 > VL:
            vstore(to + VL, vzip_high(a, b))
        if pixels * 4 > 2 * VL:
            c = vzip_high(x[0], x[2])
            d = vzip_high(x[1], x[3])
            vstore(to + 2 * VL, vzip_low(c, d))
            if pixels * 4 > 3 * VL:
                vstore(to + 3 * VL, vzip_high(c, d))


cdef inline vec repeat(int inner, const real* values, Py_ssize_t stride, Py_ssize_t most) noexcept nogil:
    """A vector whose lanes take turns: values[k * stride] in the lanes of channel k, k <= most."""
    cdef vec a
    if inner == 1:
        return vset1(values[0])
    a = vset1(values[smaller(1, most) * stride])
    if inner == 2:
        return vzip_low(vset1(values[0]), a)
    return vzip_low(vzip_low(vset1(values[0]), vset1(values[smaller(2, most) * stride])),
                    vzip_low(a, vset1(values[smaller(3, most) * stride])))


cdef inline void fill_pixels(const int inner, const int step, const real** source, Py_ssize_t at,
                             Py_ssize_t ahead, Py_ssize_t count, real* to_even, real* to_odd) noexcept nogil:
    """At most step * VL columns of one row."""
    cdef vec[MOST_INNER] even, odd
    cdef vec a, b
    cdef int k
    for k in range(inner):
        prefetch_near(source[k] + at + ahead)
        if step == 2:
            prefetch_near(source[k] + at + ahead + VL)
        if step == 1:
            even[k] = vload(source[k] + at) if count == VL else vload_first(source[k] + at, count)
        else:
            if count == 2 * VL:
                a = vload(source[k] + at)
                b = vload(source[k] + at + VL)
            elif count > VL:
                a = vload(source[k] + at)
                b = vload_first(source[k] + at + VL, count - VL)
            else:
                a = vload_first(source[k] + at, count)
                b = vzero()
            even[k] = veven(a, b)
            odd[k] = vodd(a, b)
    interleave(inner, even, to_even, (count + step - 1) // step)
    if step == 2:
        interleave(inner, odd, to_odd, count // 2)


cdef inline void fill_lines(const int inner, const int step, const Strip* s, const Window* w,
                            const real** source, real* to) noexcept nogil:
    cdef Py_ssize_t at = 0, i, _r, pitch = s.pitch, in_pitch = s.in_pitch, rows = w.rows, ahead = s.ahead
    cdef Py_ssize_t whole = w.columns // (step * VL), rest = w.columns % (step * VL)
    cdef real* to_even = to + w.even
    cdef real* to_odd = to + w.odd
    for _r in range(rows):
        for i in range(whole):
            fill_pixels(inner, step, source, at + i * step * VL, ahead, step * VL,
                        to_even + i * VL * inner, to_odd + i * VL * inner)
        if rest:
            fill_pixels(inner, step, source, at + whole * step * VL, ahead, rest,
                        to_even + whole * VL * inner, to_odd + whole * VL * inner)
        at += in_pitch
        to_even += pitch
        to_odd += pitch


cdef inline void fill_thirds(const int inner, const real** source, Py_ssize_t at, Py_ssize_t count,
                             real** to) noexcept nogil:
    """At most 3 * VL columns of one row, to each of three phases."""
    cdef vec[3][MOST_INNER] x
    cdef vec[3] thirds
    cdef int k, p
    for k in range(inner):
        vthirds(vload_first(source[k] + at, smaller(count, VL)),
                vload_first(source[k] + at + VL, smaller(larger(count - VL, 0), VL)),
                vload_first(source[k] + at + 2 * VL, larger(count - 2 * VL, 0)), thirds)
        for p in range(3):
            x[p][k] = thirds[p]
    for p in range(3):
        interleave(inner, x[p], to[p], (count + 2 - p) // 3)


cdef inline void fill_row_of_thirds(const int inner, const Strip* s, const Window* w, const real** source,
                                    Py_ssize_t at, real* to) noexcept nogil:
    cdef real* phases[3]
    cdef Py_ssize_t i
    cdef int p
    for p in range(3):
        phases[p] = to + column_at(s, w.before + p)
    for i in range(ceil_div(w.columns, 3 * VL)):
        fill_thirds(inner, source, at + i * 3 * VL, smaller(w.columns - i * 3 * VL, 3 * VL), phases)
        for p in range(3):
            phases[p] += VL * inner


cdef inline void fill_row_of_phases(const int inner, const Strip* s, const Window* w, const real** source,
                                    Py_ssize_t at, real* to) noexcept nogil:
    """Any step: what some tap meets, phase by phase."""
    cdef Py_ssize_t first, i, k
    cdef real* phase
    for first in range(smaller(s.step, w.columns)):
        if is_met(s.met_columns, (w.before + first) % s.step):
            phase = to + column_at(s, w.before + first)
            for k in range(inner):
                for i in range(ceil_div(w.columns - first, s.step)):
                    phase[i * inner + k] = source[k][at + first + i * s.step]


cdef inline void fill_steps(const int inner, const Strip* s, const Window* w, const real** source,
                            real* to) noexcept nogil:
    cdef Py_ssize_t r
    cdef bint thirds = s.step == 3 and s.met_columns == 7
    for r in range(w.rows):
        if is_met(s.met_rows, (w.above + r) % s.row_step):
            if thirds:
                fill_row_of_thirds(inner, s, w, source, r * s.in_pitch, to)
            else:
                fill_row_of_phases(inner, s, w, source, r * s.in_pitch, to)
        to += s.pitch


cdef inline void clear(real* to, Py_ssize_t count) noexcept nogil:
    memset(to, 0, count * sizeof(real))


cdef inline Window window_of(const Strip* s, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    """The strip whose first element is (row, column) of the input, which may lie outside."""
    cdef Window w
    w.above = smaller(larger(-row, 0), s.rows)
    w.rows = larger(smaller(s.in_rows - row, s.rows) - w.above, 0)
    w.below = s.rows - w.above - w.rows
    w.before = smaller(larger(-column, 0), s.columns)
    w.columns = larger(smaller(s.in_columns - column, s.columns) - w.before, 0)
    w.source = (row + w.above) * s.in_pitch + (column + w.before) * s.in_column
    w.even = w.above * s.pitch + column_at(s, w.before)
    w.odd = w.above * s.pitch + column_at(s, w.before + 1)
    return w


cdef inline void clear_around(const Strip* s, const Window* w, real* to) noexcept nogil:
    """Zeros that lie in the same places in every strip are there already."""
    if not s.same_columns:
        clear(to, s.rows * s.pitch)
    elif not s.same_rows:
        clear(to, w.above * s.pitch)
        clear(to + (s.rows - w.below) * s.pitch, w.below * s.pitch)


cdef inline void fill_strip(const Strip* s, const Window* w, const real** planes, real* to) noexcept nogil:
    """A strip of `inner` planes that take turns in its lanes."""
    cdef const real* source[MOST_INNER]
    cdef int k
    for k in range(s.inner):
        source[k] = planes[k] + w.source
    clear_around(s, w, to)
    if s.step == 1:
        if s.inner == 1:
            fill_lines(1, 1, s, w, source, to)
        elif s.inner == 2:
            fill_lines(2, 1, s, w, source, to)
        else:
            fill_lines(4, 1, s, w, source, to)
    elif s.step == 2:
        if s.inner == 1:
            fill_lines(1, 2, s, w, source, to)
        elif s.inner == 2:
            fill_lines(2, 2, s, w, source, to)
        else:
            fill_lines(4, 2, s, w, source, to)
    elif s.inner == 1:
        fill_steps(1, s, w, source, to + w.above * s.pitch)
    elif s.inner == 2:
        fill_steps(2, s, w, source, to + w.above * s.pitch)
    else:
        fill_steps(4, s, w, source, to + w.above * s.pitch)
