"""From finished sums to rows of the output: lanes that channels share, phases that take turns, streams."""

from fastconv.kernels.depthwise_strip cimport MOST_INNER
from fastconv.kernels.depthwise_tile cimport TALL
from fastconv.kernels.simd cimport (
    VL, is_vec_aligned, real, vec, veven, vload, vload_first, vodd, vstore, vstore_first, vstream, vzip_high,
    vzip_low,
)


cdef inline void store_some(bint stream, real* to, Py_ssize_t count, vec x) noexcept nogil:
    if count >= VL and stream:
        vstream(to, x)
    elif count >= VL:
        vstore(to, x)
    elif count > 0:
        vstore_first(to, count, x)


cdef inline void separate(const int inner, vec x, vec* to) noexcept nogil:
    """The inverse for one vector: VL / inner pixels of each channel."""
    cdef vec a, b
    if inner == 1:
        to[0] = x
    elif inner == 2:
        to[0] = veven(x, x)
        to[1] = vodd(x, x)
    else:
        a = veven(x, x)
        b = vodd(x, x)
        to[0] = veven(a, a)
        to[1] = veven(b, b)
        to[2] = vodd(a, a)
        to[3] = vodd(b, b)


cdef inline void weave_vectors(const int inner, const int phases, bint stream, const real* sums, Py_ssize_t pitch,
                               Py_ssize_t rows, Py_ssize_t total, real** out, Py_ssize_t out_pitch,
                               Py_ssize_t count) noexcept nogil:
    """Rows of `total` outputs of each channel, from one phase or from two that take turns. Lanes beyond those of a
    channel are written too, and then by the vector that follows."""
    cdef Py_ssize_t i, j, k, each = phases * (VL // inner)
    cdef vec[MOST_INNER] even, odd
    cdef real* to
    for i in range(rows):
        for j in range(pitch // VL):
            separate(inner, vload(sums + i * pitch + j * VL), even)
            if phases == 2:
                separate(inner, vload(sums + (TALL + i) * pitch + j * VL), odd)
            for k in range(inner):
                if k < count:
                    to = out[k] + i * out_pitch + j * each
                    if phases == 1:
                        store_some(stream, to, total - j * each, even[k])
                    else:
                        store_some(stream, to, total - j * each, vzip_low(even[k], odd[k]))
                        if inner == 1:
                            store_some(stream, to + VL, total - j * each - VL, vzip_high(even[k], odd[k]))


cdef inline void copy_out(const real* source, Py_ssize_t count, bint stream, real* to) noexcept nogil:
    """Rows that lie side by side, from first to last: memory is written fastest in its order."""
    cdef Py_ssize_t i = 0
    if stream:
        while i < count and not is_vec_aligned(to + i):
            to[i] = source[i]
            i += 1
        while i + VL <= count:
            vstream(to + i, vload(source + i))
            i += VL
    while i + VL <= count:
        vstore(to + i, vload(source + i))
        i += VL
    if i < count:
        vstore_first(to + i, count - i, vload_first(source + i, count - i))
