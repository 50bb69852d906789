"""Gradients of pooling whose windows lie side by side: kernel = stride, no padding, no dilation.

Every element of the input lies in one window at most, so the gradient is written once, row by row:

    to[p * R + r, q * S + s] = value of tap (r, s) of window (p, q); 0 in rows and columns after the last window

That value is grad_output where the window's index is the tap, else 0; or, of an average, grad_output over the
divisor. Whole vectors are stored: what runs on is overwritten by what follows; where windows are wider than two
columns, maxima are placed one by one among zeros.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.pool cimport PoolGeometry, in_row, out_row
from fastconv.kernels.pool_reduce cimport Finish, finished, running_on
from fastconv.kernels.simd cimport (
    VL, iequal, iload, iload_bytes, iset1, ivec, lane, real, vadd_where, vec, vload, vload_first, vstore, vstore_first,
    vset1, vzero, vzip_high, vzip_low,
)


# One row of windows. Codes are lanes or bytes; an average has neither.
cdef struct Grads:
    const real* values
    const uint8_t* bytes
    const lane* lanes
    const Finish* finish


cdef inline bint lies_side_by_side(const PoolGeometry* g) noexcept nogil:
    cdef int axis
    if g.in_size[0] > 1:
        return False
    for axis in range(3):
        if g.before[axis] or g.dilation[axis] > 1 or g.kernel[axis] * g.out_size[axis] > g.in_size[axis]:
            return False
        if g.kernel[axis] != g.stride[axis] and g.out_size[axis] > 1:
            return False
    return True


cdef inline PoolGeometry side_by_side(const PoolGeometry* g) noexcept nogil:
    """The same elements as fewer, longer rows: a window as wide as its plane is one run, planes without rest stack."""
    cdef PoolGeometry flat = g[0]
    if g.out_size[1] * g.out_size[2] == 1 and g.kernel[2] == g.in_size[2]:
        flat.kernel[2] *= g.kernel[1]
        flat.in_size[2] *= g.in_size[1]
        flat.kernel[1] = flat.in_size[1] = 1
    if flat.kernel[1] * flat.out_size[1] == flat.in_size[1]:
        flat.in_size[1] *= flat.planes
        flat.out_size[1] *= flat.planes
        flat.planes = 1
    return flat


cdef inline vec tap_value(vec grad, bint coded, ivec codes, Py_ssize_t tap) noexcept nogil:
    return vadd_where(iequal(codes, iset1(<lane> tap)), vzero(), grad) if coded else grad


cdef inline ivec codes_of(const Grads* w, Py_ssize_t i, Py_ssize_t left, bint exact) noexcept nogil:
    cdef uint8_t[VL] last
    if w.lanes != NULL:
        return iload(w.lanes + i)
    if not exact or left >= VL:
        return iload_bytes(w.bytes + i)
    memcpy(last, w.bytes + i, left)
    return iload_bytes(last)


cdef inline vec grads_of(const Grads* w, bint coded, Py_ssize_t i, Py_ssize_t left, bint exact) noexcept nogil:
    cdef vec grad = vload_first(w.values + i, left) if exact and left < VL else vload(w.values + i)
    return grad if coded else finished(w.finish, 0, 0, grad)


cdef inline void store_up_to(real* to, Py_ssize_t count, vec value, bint exact) noexcept nogil:
    if not exact:
        vstore(to, value)
    elif count > 0:
        vstore_first(to, smaller(count, VL), value)


cdef inline void spread_pairs(const PoolGeometry* g, const Grads* w, bint coded, Py_ssize_t lines, real* to,
                              bint exact) noexcept nogil:
    """Rows of windows two columns wide: taps 2 * r and 2 * r + 1 in row r under them."""
    cdef Py_ssize_t _, r, i, at = 0, width = g.out_size[2], row = g.in_size[2]
    cdef vec grad, low, high
    cdef ivec codes = iset1(0)
    for _ in range(lines):
        for r in range(g.kernel[1]):
            i = 0
            while i < width:
                grad = grads_of(w, coded, at + i, width - i, exact)
                if coded:
                    codes = codes_of(w, at + i, width - i, exact)
                low = tap_value(grad, coded, codes, 2 * r)
                high = tap_value(grad, coded, codes, 2 * r + 1)
                store_up_to(to + 2 * i, 2 * (width - i), vzip_low(low, high), exact)
                if 2 * (width - i) > VL:
                    store_up_to(to + 2 * i + VL, 2 * (width - i) - VL, vzip_high(low, high), exact)
                i += VL
            i = 2 * width
            while i < row:
                store_up_to(to + i, row - i, vzero(), exact)
                i += VL
            to += row
        at += width


cdef inline void spread_runs(const PoolGeometry* g, const Grads* w, Py_ssize_t lines, real* to,
                             bint exact) noexcept nogil:
    """Averages of rows of windows of any width: one run after the other, then zeros."""
    cdef Py_ssize_t _line, _row, i, x, at = 0, columns = g.kernel[2]
    cdef Py_ssize_t width = g.out_size[2] * columns, row = g.in_size[2]
    cdef vec value
    for _line in range(lines):
        for _row in range(g.kernel[1]):
            for i in range(g.out_size[2]):
                value = finished(w.finish, 0, 0, vset1(w.values[at + i]))
                x = 0
                while x < columns:
                    store_up_to(to + i * columns + x, columns - x, value, exact)
                    x += VL
            x = width
            while x < row:
                store_up_to(to + x, row - x, vzero(), exact)
                x += VL
            to += row
        at += g.out_size[2]


cdef inline void place(const PoolGeometry* g, const Grads* w, const bint wide, Py_ssize_t lines,
                       real* to) noexcept nogil:
    """Maxima of windows of any width: zeros, and one element of each window; `wide` codes are lanes."""
    cdef Py_ssize_t _, i, r, at = 0, columns = g.kernel[2], row = g.in_size[2]
    cdef unsigned int code, inverse = 65536 // <unsigned int> columns + 1  # code // columns, where codes are bytes
    for _ in range(lines):
        memset(to, 0, g.kernel[1] * row * sizeof(real))
        for i in range(g.out_size[2]):
            code = <unsigned int> w.lanes[at + i] if wide else w.bytes[at + i]
            r = code // <unsigned int> columns if wide else code * inverse >> 16
            if r < g.kernel[1]:
                to[r * row + i * columns + code - r * columns] = w.values[at + i]
        to += g.kernel[1] * row
        at += g.out_size[2]


cdef inline void spread_rows(const PoolGeometry* g, const Grads* w, bint coded, Py_ssize_t lines, real* to,
                             bint exact) noexcept nogil:
    if g.kernel[2] == 2:
        spread_pairs(g, w, coded, lines, to, exact)
    elif not coded:
        spread_runs(g, w, lines, to, exact)
    elif w.lanes == NULL:
        place(g, w, False, lines, to)
    else:
        place(g, w, True, lines, to)


cdef inline void spread_pixels(const PoolGeometry* g, const Grads* w, bint coded, real* to) noexcept nogil:
    """With channels last, all rows under one row of windows."""
    cdef Py_ssize_t x, c, r, s, at, row = in_row(g), rest = g.in_size[2] - g.out_size[2] * g.kernel[2]
    cdef vec grad
    cdef ivec codes = iset1(0)
    for x in range(g.out_size[2]):
        c = 0
        while c < g.inner:
            at = x * g.inner + c
            grad = grads_of(w, coded, at, g.inner - c, True)
            if coded:
                codes = codes_of(w, at, g.inner - c, True)
            for r in range(g.kernel[1]):
                for s in range(g.kernel[2]):
                    store_up_to(to + r * row + (x * g.kernel[2] + s) * g.inner + c, g.inner - c,
                                tap_value(grad, coded, codes, r * g.kernel[2] + s), True)
            c += VL
    for r in range(g.kernel[1]):
        memset(to + (r + 1) * row - rest * g.inner, 0, rest * g.inner * sizeof(real))


cdef inline void spread_lines(const PoolGeometry* g, Grads* w, bint coded, Py_ssize_t lines, real* to,
                              const real* values_end) noexcept nogil:
    """All rows of the input under some rows of windows."""
    cdef Py_ssize_t line, rows = g.kernel[1] * in_row(g), width = out_row(g), loose
    if g.inner > 1:
        for line in range(lines):
            spread_pixels(g, w, coded, to + line * rows)
            advance(w, width)
        return
    loose = running_on(lines, rows, rows + 2 * VL, lines * rows)
    loose = running_on(loose, width, width + VL, values_end - w.values)
    spread_rows(g, w, coded, loose, to, False)
    advance(w, loose * width)
    spread_rows(g, w, coded, lines - loose, to + loose * rows, True)


cdef inline void advance(Grads* w, Py_ssize_t count) noexcept nogil:
    w.values += count
    w.bytes += count
    w.lanes += count if w.lanes != NULL else 0


cdef inline Py_ssize_t rows_after(const PoolGeometry* g) noexcept nogil:
    """Rows of a plane that no window holds."""
    return g.in_size[1] - g.out_size[1] * g.kernel[1]
