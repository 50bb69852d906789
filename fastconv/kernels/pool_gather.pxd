"""Gradients of maxima by gathering: each element of the input adds what its windows' indices send to it.

    to[i] = sum over terms t, in their order, of grads[i] where codes[i] == code

A term is one tap of one row of windows: its gradients and codes, read at a shift, and the number of the tap. Rows have
margins whose codes are no tap's.
"""

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.pool cimport PoolGeometry, window_rows
from fastconv.kernels.simd cimport (
    VL, iequal, iload, iset1, lane, real, vadd_where, vec, vload, vstore, vstore_first, vzero, vzip_high, vzip_low,
)


# A term of the gather: add grads[i] where codes[i] == code.
cdef struct Term:
    const real* grads
    const lane* codes
    lane code


cdef inline void gather_count(const Term* terms, Py_ssize_t count, real* to, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t i, t
    cdef Term[4] few  # unlike `terms`, no store can change these
    cdef vec total
    if count <= 4:
        for t in range(count):
            few[t] = terms[t]
        terms = few
    i = 0
    while i < width:
        total = vzero()
        for t in range(count):
            total = vadd_where(iequal(iload(terms[t].codes + i), iset1(terms[t].code)), total,
                               vload(terms[t].grads + i))
        if i + VL <= width:
            vstore(to + i, total)
        else:
            vstore_first(to + i, width - i, total)
        i += VL


cdef inline void gather(const Term* terms, Py_ssize_t count, real* to, Py_ssize_t width) noexcept nogil:
    """to[i] = sum of terms[t].grads[i] over those t with codes[i] == code, in order."""
    if count == 1:
        gather_count(terms, 1, to, width)
    elif count == 2:
        gather_count(terms, 2, to, width)
    elif count == 4:
        gather_count(terms, 4, to, width)
    else:
        gather_count(terms, count, to, width)


cdef inline bint takes_thirds(const PoolGeometry* g) noexcept nogil:
    """Windows three columns wide with stride 2, the commonest that overlap."""
    return (g.inner == 1 and g.kernel[2] == 3 and g.stride[2] == 2 and g.dilation[2] == 1 and g.before[2] <= 1
            and window_rows(g) <= 3)


cdef inline void add_row(const Term* row, Py_ssize_t at, Py_ssize_t shift, vec* both, vec* single) noexcept nogil:
    """One row of windows: column 1 of window `at` in `single`, columns 2 and 0 of neighbours in `both`."""
    single[0] = vadd_where(iequal(iload(row.codes + at), iset1(row.code + 1)), single[0], vload(row.grads + at))
    at += shift - 1
    both[0] = vadd_where(iequal(iload(row.codes + at), iset1(row.code + 2)), both[0], vload(row.grads + at))
    both[0] = vadd_where(iequal(iload(row.codes + at + 1), iset1(row.code)), both[0], vload(row.grads + at + 1))


cdef inline void gather_thirds(const PoolGeometry* g, const Term* rows, Py_ssize_t count, real* to,
                               bint exact) noexcept nogil:
    """A row of the input: pixels 2 * i and 2 * i + 1 from windows i + before - 1, i + before and i."""
    cdef Py_ssize_t i = 0, r, width = g.in_size[2], shift = g.before[2]
    cdef vec both, single, low, high
    cdef Term[3] few
    for r in range(count):
        few[r] = rows[r]
    while 2 * i < width:
        both = single = vzero()
        for r in range(count):
            add_row(few + r, i, shift, &both, &single)
        low = vzip_low(single, both) if shift else vzip_low(both, single)
        high = vzip_high(single, both) if shift else vzip_high(both, single)
        if not exact:
            vstore(to + 2 * i, low)
            vstore(to + 2 * i + VL, high)
        else:
            vstore_first(to + 2 * i, smaller(width - 2 * i, VL), low)
            if width - 2 * i > VL:
                vstore_first(to + 2 * i + VL, smaller(width - 2 * i - VL, VL), high)
        i += VL
