"""How the indices of maximum pooling are stored, and how they are read back.

Kernels count taps: code = (d * kernel_h + h) * kernel_w + w, one lane each. In memory an index is such a
code in 8, 16 or 32 bits, or the flat position of the tap in its plane, which is

    position = row_position + pixel * stride + taps[code].position

where row_position is that of the first tap of the row's first window; it may lie in the padding, and so
be negative. Indices that come from outside are checked: a code that is no tap of its window inside the
input becomes -1, and is counted.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.pool cimport PoolGeometry, ceil_div, first_tap, last_tap, out_row
from fastconv.kernels.simd cimport lane


# The values of fastconv.calls_pool.INDEX_KINDS.
cdef enum IndexKind:
    NO_INDEX = 0
    CODE_8 = 1
    CODE_16 = 2
    CODE_32 = 3
    FLAT = 4


# A tap of a window, from the window's first: along each axis, and in the plane. fastconv.calls_pool.TAP.
cdef struct Tap:
    Py_ssize_t[3] offset
    Py_ssize_t position


# Indices as they come, and what turns flat positions into codes: codes_at[position - that of the window's first tap],
# -1 between taps, `reach` entries; or NULL.
cdef struct Indices:
    IndexKind kind
    bint trusted                 # from the forward kernel, not from outside
    const void* data
    const Tap* taps
    const int32_t* codes_at
    Py_ssize_t reach


cdef inline void store_positions(const PoolGeometry* g, const lane* codes, Py_ssize_t position,
                                 const Tap* taps, int64_t* to) noexcept nogil:
    cdef Py_ssize_t pixel, i
    for pixel in range(g.out_size[2]):
        for i in range(pixel * g.inner, (pixel + 1) * g.inner):
            to[i] = position + taps[codes[i]].position
        position += g.stride[2]


cdef inline void store_indices(const PoolGeometry* g, IndexKind kind, const lane* codes, Py_ssize_t position,
                               const Tap* taps, void* indices, Py_ssize_t row) noexcept nogil:
    """One row of codes -> row `row` of the output, counted over all planes; `position`: row_position."""
    cdef Py_ssize_t width = out_row(g), i
    cdef uint8_t* to_8 = <uint8_t*> indices + row * width
    cdef uint16_t* to_16 = <uint16_t*> indices + row * width
    cdef uint32_t* to_32 = <uint32_t*> indices + row * width
    if kind == CODE_8:
        for i in range(width):
            to_8[i] = <uint8_t> codes[i]
    elif kind == CODE_16:
        for i in range(width):
            to_16[i] = <uint16_t> codes[i]
    elif kind == CODE_32:
        for i in range(width):
            to_32[i] = <uint32_t> codes[i]
    else:
        store_positions(g, codes, position, taps, <int64_t*> indices + row * width)


cdef inline Py_ssize_t tap_at(const PoolGeometry* g, int axis, Py_ssize_t output, Py_ssize_t position) noexcept nogil:
    """The tap of window `output` that lies at `position`, or -1."""
    cdef Py_ssize_t tap = position + g.before[axis] - output * g.stride[axis]
    if g.dilation[axis] > 1:
        if tap % g.dilation[axis]:
            return -1
        tap = tap // g.dilation[axis]
    return tap if 0 <= tap < g.kernel[axis] else -1


cdef inline Py_ssize_t load_positions(const PoolGeometry* g, const int64_t* positions, Py_ssize_t depth,
                                      Py_ssize_t height, lane* codes) noexcept nogil:
    """Positions -> codes; returns how many are none of their window's.

    Quotients are computed in double precision, exact for positions below 2^50.
    """
    cdef Py_ssize_t plane = g.in_size[1] * g.in_size[2], pixel, i, position, row, d, h, w, bad = 0
    cdef Py_ssize_t deep = g.in_size[0] > 1
    cdef double per_row = 1.0 / g.in_size[2], per_plane = 1.0 / plane
    for pixel in range(g.out_size[2]):
        for i in range(pixel * g.inner, (pixel + 1) * g.inner):
            position = positions[i]
            codes[i] = -1
            if position < 0 or position >= g.in_size[0] * plane:
                bad += 1
                continue
            row = <Py_ssize_t> ((position + 0.5) * per_row)
            d = <Py_ssize_t> ((position + 0.5) * per_plane) if deep else 0
            w = tap_at(g, 2, pixel, position - row * g.in_size[2])
            h = tap_at(g, 1, height, row - d * g.in_size[1])
            d = tap_at(g, 0, depth, d)
            if w < 0 or h < 0 or d < 0:
                bad += 1
            else:
                codes[i] = <lane> ((d * g.kernel[1] + h) * g.kernel[2] + w)
    return bad


cdef inline bint whole(const PoolGeometry* g, int axis, Py_ssize_t output) noexcept nogil:
    """Are all taps of this window inside the input?"""
    return first_tap(g, axis, output) == 0 and last_tap(g, axis, output) == g.kernel[axis]


cdef inline bint is_inside(const PoolGeometry* g, int axis, Py_ssize_t output, const Tap* tap) noexcept nogil:
    return 0 <= output * g.stride[axis] - g.before[axis] + tap.offset[axis] < g.in_size[axis]


cdef inline Py_ssize_t check_pixels(const PoolGeometry* g, const Tap* taps, Py_ssize_t depth, Py_ssize_t first,
                                    Py_ssize_t last, lane* codes) noexcept nogil:
    """Refuses the codes of pixels first .. last - 1 whose tap lies in the padding along the depth or the width."""
    cdef Py_ssize_t pixel, i, bad = 0
    for pixel in range(first, last):
        for i in range(pixel * g.inner, (pixel + 1) * g.inner):
            if codes[i] >= 0 and not (is_inside(g, 2, pixel, taps + codes[i])
                                      and is_inside(g, 0, depth, taps + codes[i])):
                codes[i] = -1
                bad += 1
    return bad


cdef inline Py_ssize_t check_codes(const PoolGeometry* g, const Tap* taps, Py_ssize_t depth, Py_ssize_t height,
                                   lane* codes) noexcept nogil:
    """Replaces codes that are no tap inside the input by -1; returns how many there were.

    Taps are counted along the width first, so that those inside along the height lie between two codes. Pixels
    first .. last - 1 have windows that lie inside along the width.
    """
    cdef Py_ssize_t pixels = g.out_size[2], i, bad = 0
    cdef lane low = 0, high = <lane> (g.kernel[0] * g.kernel[1] * g.kernel[2])
    cdef Py_ssize_t first = smaller(ceil_div(g.before[2], g.stride[2]), pixels)
    cdef Py_ssize_t room = g.in_size[2] + g.before[2] - (g.kernel[2] - 1) * g.dilation[2] - 1
    cdef Py_ssize_t last = smaller(room // g.stride[2] + 1, pixels) if room >= 0 else 0
    if g.kernel[0] == 1:
        low = <lane> (first_tap(g, 1, height) * g.kernel[2])
        high = <lane> (last_tap(g, 1, height) * g.kernel[2])
    for i in range(out_row(g)):
        bad += (codes[i] < low) | (codes[i] >= high)
    if bad:
        for i in range(out_row(g)):
            if codes[i] < low or codes[i] >= high:
                codes[i] = -1
    if g.kernel[0] > 1 or not whole(g, 0, depth):
        first = last = pixels
    bad += check_pixels(g, taps, depth, 0, first, codes)
    return bad + check_pixels(g, taps, depth, larger(last, first), pixels, codes)


cdef inline bint too_large(const uint8_t* codes, Py_ssize_t count, Py_ssize_t limit) noexcept nogil:
    """Is a code `limit` or more?"""
    cdef Py_ssize_t i
    cdef uint8_t largest = 0
    for i in range(count):
        largest = codes[i] if codes[i] > largest else largest
    return largest >= limit


cdef inline Py_ssize_t outside_rows(const uint8_t* codes, Py_ssize_t count, Py_ssize_t low,
                                    Py_ssize_t high) noexcept nogil:
    """How many codes are none of low .. high - 1: taps are counted along the width first."""
    cdef Py_ssize_t i
    cdef uint8_t first = <uint8_t> low, room = <uint8_t> (high - low - 1), wrong = 0
    for i in range(count):
        wrong |= <uint8_t> (codes[i] - first) > room
    return wrong


cdef inline Py_ssize_t outside_columns(const PoolGeometry* g, const uint8_t* columns, const uint8_t* codes,
                                       Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """How many codes of pixels first .. last - 1 of all rows have a tap in the padding along the width."""
    cdef Py_ssize_t pixel, row, low, room, bad = 0
    for pixel in range(first, last):
        low = first_tap(g, 2, pixel)
        room = last_tap(g, 2, pixel) - low
        for row in range(g.out_size[1]):
            bad += not 0 <= columns[codes[row * g.out_size[2] + pixel]] - low < room
    return bad


cdef inline Py_ssize_t check_plane(const PoolGeometry* g, const uint8_t* columns, const uint8_t* codes) noexcept nogil:
    """Not 0 if any code of a plane is no tap inside the input; columns[code] is that of its tap."""
    cdef Py_ssize_t pixels = g.out_size[2], row, bad = 0
    cdef Py_ssize_t first = smaller(ceil_div(g.before[2], g.stride[2]), pixels)
    cdef Py_ssize_t room = g.in_size[2] + g.before[2] - (g.kernel[2] - 1) * g.dilation[2] - 1
    cdef Py_ssize_t last = larger(smaller(room // g.stride[2] + 1, pixels) if room >= 0 else 0, first)
    if too_large(codes, g.out_size[1] * pixels, g.kernel[1] * g.kernel[2]):
        return 1
    for row in range(g.out_size[1]):
        if not whole(g, 1, row):
            bad += outside_rows(codes + row * pixels, pixels, first_tap(g, 1, row) * g.kernel[2],
                                last_tap(g, 1, row) * g.kernel[2])
    return bad + outside_columns(g, columns, codes, 0, first) + outside_columns(g, columns, codes, last, pixels)


cdef inline Py_ssize_t look_up(const PoolGeometry* g, const Indices* x, const int64_t* positions, Py_ssize_t depth,
                               Py_ssize_t height, lane* codes) noexcept nogil:
    """Positions -> codes by the table; a position that is no tap's becomes -1."""
    cdef Py_ssize_t pixel, i, at
    cdef Py_ssize_t first = (height * g.stride[1] - g.before[1]) * g.in_size[2] - g.before[2]
    for pixel in range(g.out_size[2]):
        for i in range(pixel * g.inner, (pixel + 1) * g.inner):
            at = positions[i] - first
            codes[i] = x.codes_at[at] if <size_t> at < <size_t> x.reach else -1
        first += g.stride[2]
    return check_codes(g, x.taps, depth, height, codes)


cdef inline Py_ssize_t load_indices(const PoolGeometry* g, const Indices* x, Py_ssize_t plane, Py_ssize_t depth,
                                    Py_ssize_t height, lane* codes) noexcept nogil:
    """One row of indices -> codes; returns how many are invalid, and does not look unless untrusted."""
    cdef Py_ssize_t width = out_row(g), i
    cdef Py_ssize_t at = ((plane * g.out_size[0] + depth) * g.out_size[1] + height) * width
    cdef const uint8_t* from_8 = <const uint8_t*> x.data + at
    cdef const uint16_t* from_16 = <const uint16_t*> x.data + at
    cdef const uint32_t* from_32 = <const uint32_t*> x.data + at
    if x.kind == FLAT:
        if x.codes_at != NULL:
            return look_up(g, x, <const int64_t*> x.data + at, depth, height, codes)
        return load_positions(g, <const int64_t*> x.data + at, depth, height, codes)
    if x.kind == CODE_8:
        for i in range(width):
            codes[i] = from_8[i]
    elif x.kind == CODE_16:
        for i in range(width):
            codes[i] = from_16[i]
    else:
        for i in range(width):
            codes[i] = <lane> from_32[i]
    return 0 if x.trusted else check_codes(g, x.taps, depth, height, codes)
