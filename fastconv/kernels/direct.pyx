"""Convolution by its definition: no packing, no workspace, any geometry.

    out[m, o] = sum over c, t of weight[m, c, t] * in[c, o * step + offset[t]]

A stretch of at most STRETCH outputs of one row is summed in a buffer, tap after tap, each tap adding
weight * row of the input, clipped to where it lies inside. This is the form for small problems, and
the yardstick that the other kernels are tested against.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange

from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    VL, flush_denormals, real, restore_denormals, vadd, vec, vfma, vload, vset1, vstore, vsum, vzero,
)

cdef enum:
    STRETCH = 256
    SUMMED = 4096     # products of one sum


# The part of a row of outputs that one tap reaches inside the input.
cdef struct Reach:
    Py_ssize_t first
    Py_ssize_t last
    Py_ssize_t source            # offset of the input element of `first` from the channel's start


cdef inline Reach reach(const Geometry* g, const Tap* tap, Py_ssize_t d, Py_ssize_t h, Py_ssize_t w,
                        Py_ssize_t count) noexcept nogil:
    """Outputs w .. w + count - 1 of row (d, h)."""
    cdef Reach r
    cdef Py_ssize_t step = g.step[2]
    cdef Py_ssize_t id = d * g.step[0] + tap.offset[0]
    cdef Py_ssize_t ih = h * g.step[1] + tap.offset[1]
    cdef Py_ssize_t iw = w * step + tap.offset[2]
    r.first = r.last = r.source = 0
    if id < 0 or id >= g.in_size[0] or ih < 0 or ih >= g.in_size[1]:
        return r
    if iw < 0:
        r.first = smaller(ceil_div(-iw, step), count)
    if iw < g.in_size[2]:
        r.last = smaller(ceil_div(g.in_size[2] - iw, step), count)
    r.source = id * g.in_axis[0] + ih * g.in_axis[1] + (iw + r.first * step) * g.in_axis[2]
    return r


cdef inline void add_scaled(real* to, real factor, const real* source, Py_ssize_t step,
                            Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef vec f = vset1(factor)
    if step == 1:
        while i + VL <= count:
            vstore(to + i, vfma(f, vload(source + i), vload(to + i)))
            i += VL
    while i < count:
        to[i] += factor * source[i * step]
        i += 1


cdef bint all_finite(const Geometry* g, const Tap* taps, const real* weight) noexcept nogil:
    cdef Py_ssize_t c, t
    cdef real total = 0
    for c in range(g.channels):
        for t in range(g.taps):
            total += 0 * weight[c * g.weight_channel + taps[t].weight]
    return total == 0


cdef void add_zeros(const Geometry* g, const Tap* tap, const real* weight, Reach r, Py_ssize_t count,
                    real* sums) noexcept nogil:
    """The products of one tap with the padding: NaN where the weight is infinite or NaN."""
    cdef Py_ssize_t c, i
    for c in range(g.channels):
        for i in range(count):
            if not r.first <= i < r.last:
                sums[i] += 0 * weight[c * g.weight_channel + tap.weight]


cdef void compute_row(const Geometry* g, const Tap* taps, const real* image, const real* weight, real bias,
                      Py_ssize_t d, Py_ssize_t h, bint finite, real* out) noexcept nogil:
    """One row of outputs of one channel. Products with zeros of the padding are left out of finite sums."""
    cdef real[STRETCH] sums
    cdef Py_ssize_t w = 0, count, c, t, i, step = g.step[2] * g.in_axis[2]
    cdef Reach r
    while w < g.out_size[2]:
        count = smaller(STRETCH, g.out_size[2] - w)
        for i in range(count):
            sums[i] = bias
        for t in range(g.taps):
            r = reach(g, taps + t, d, h, w, count)
            if r.last > r.first:
                for c in range(g.channels):
                    add_scaled(sums + r.first, weight[c * g.weight_channel + taps[t].weight],
                               image + c * g.in_channel + r.source, step, r.last - r.first)
            if not finite:
                add_zeros(g, taps + t, weight, r, count, sums)
        for i in range(count):
            if g.relu and sums[i] < 0:
                sums[i] = 0
            out[(w + i) * g.out_axis[2]] = sums[i]
        w += count


cdef void compute_plane(const Geometry* g, const Tap* taps, const real* input, const real* weight,
                        const real* bias, real* out, Py_ssize_t unit) noexcept nogil:
    """Unit number -> sample, group, output channel."""
    cdef Py_ssize_t row = unit % g.rows, group = unit // g.rows % g.groups, n = unit // (g.rows * g.groups)
    cdef Py_ssize_t d, h
    cdef const real* image = input + n * g.in_image + group * g.in_group
    cdef const real* filter = weight + group * g.weight_group + row * g.weight_row
    cdef real* plane = out + n * g.out_image + group * g.out_group + row * g.out_row
    cdef real start = 0
    cdef bint finite = all_finite(g, taps, filter)
    if bias != NULL:
        start = bias[group * g.rows + row]
    for d in range(g.out_size[0]):
        for h in range(g.out_size[1]):
            compute_row(g, taps, image, filter, start, d, h, finite,
                        plane + d * g.out_axis[0] + h * g.out_axis[1])


def conv(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias,
         cnp.ndarray out, int threads):
    """The equation above over `out`; the plan has checked every argument."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef const real* w = <const real*> cnp.PyArray_DATA(weight)
    cdef real* y = <real*> cnp.PyArray_DATA(out) + g.out_offset
    cdef const real* b = NULL
    cdef Py_ssize_t units = g.batch * g.groups * g.rows, unit
    cdef unsigned int mode = 0
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        if threads == 1 or units == 1:
            mode = flush_denormals()
            for unit in range(units):
                compute_plane(g, tap, x, w, b, y, unit)
            restore_denormals(mode)
        else:
            with parallel(num_threads=threads):
                mode = flush_denormals()
                for unit in prange(units, schedule="static"):
                    compute_plane(g, tap, x, w, b, y, unit)
                restore_denormals(mode)


cdef inline real dot_stretch(const real* a, const real* b, Py_ssize_t count) noexcept nogil:
    """Four chains of sums hide the latency of their additions."""
    cdef Py_ssize_t i = 0, chain
    cdef real total
    cdef vec[4] sums
    for chain in range(4):
        sums[chain] = vzero()
    while i + 4 * VL <= count:
        for chain in range(4):
            sums[chain] = vfma(vload(a + i + chain * VL), vload(b + i + chain * VL), sums[chain])
        i += 4 * VL
    while i + VL <= count:
        sums[0] = vfma(vload(a + i), vload(b + i), sums[0])
        i += VL
    total = vsum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])))
    while i < count:
        total += a[i] * b[i]
        i += 1
    return total


cdef real dot(const real* a, const real* b, Py_ssize_t step, Py_ssize_t count) noexcept nogil:
    """Stretch by stretch: short sums round little."""
    cdef Py_ssize_t i = 0
    cdef real total = 0
    if step == 1:
        while i < count:
            total += dot_stretch(a + i, b + i, smaller(count - i, SUMMED))
            i += SUMMED
        return total
    while i < count:
        total += a[i] * b[i * step]
        i += 1
    return total


cdef void weigh_tap(const Geometry* g, const Tap* tap, const real* input, const real* grad,
                    Py_ssize_t c, real* to) noexcept nogil:
    """dw of one tap: the sum over samples and outputs of grad times the input that the tap meets."""
    cdef Py_ssize_t n, d, h
    cdef Reach r
    cdef real total = 0
    for d in range(g.out_size[0]):
        for h in range(g.out_size[1]):
            r = reach(g, tap, d, h, 0, g.out_size[2])
            if r.last > r.first:
                for n in range(g.batch):
                    total += dot(grad + n * g.out_image + d * g.out_axis[0] + h * g.out_axis[1] + r.first,
                                 input + n * g.in_image + c * g.in_channel + r.source,
                                 g.step[2] * g.in_axis[2], r.last - r.first)
    to[tap.weight] = total


cdef void weigh_filter(const Geometry* g, const Tap* taps, const real* input, const real* grad, real* out,
                       Py_ssize_t unit) noexcept nogil:
    """Unit number -> group, output channel."""
    cdef Py_ssize_t group = unit // g.rows, row = unit % g.rows, c, t
    for c in range(g.channels):
        for t in range(g.taps):
            weigh_tap(g, taps + t, input + group * g.in_group, grad + group * g.out_group + row * g.out_row, c,
                      out + group * g.weight_group + row * g.weight_row + c * g.weight_channel)


def weight_grad(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray grad_output,
                cnp.ndarray out, int threads):
    """dw[m, c, t] = sum over n, o of grad[n, m, o] * in[n, c, o * step + offset[t]]; out_axis[2] is 1."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef const real* grad = <const real*> cnp.PyArray_DATA(grad_output)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t units = g.groups * g.rows, unit
    cdef unsigned int mode = 0
    with nogil, parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="static"):
            weigh_filter(g, tap, x, grad, to, unit)
        restore_denormals(mode)
