"""What the gradients of pooling share: which windows a row of the input lies in, and how lines are put
together again from the phases of the stride.

Padded pixel i * stride + p of a line, in phase p, is tap c of output i + (p - c * dilation) // stride,
for those c that leave no remainder. Rows that are read at such shifts have margins on both sides.
"""

from libc.string cimport memcpy

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.pool cimport PoolGeometry, carve, out_row, reach
from fastconv.kernels.simd cimport VL, real, vec, vload, vstore, vzip_high, vzip_low


cdef struct Joint:
    Py_ssize_t left              # elements of the left margin of a row
    Py_ssize_t pitch             # elements of a row with its margins
    Py_ssize_t width             # elements computed of each phase: whole vectors
    real* phases                 # [stride][width]
    Py_ssize_t* starts           # [stride + 1]: where the taps of a phase begin in the two below
    Py_ssize_t* taps             # [kernel width]: last tap first, so that outputs come in their order
    Py_ssize_t* offsets          # of the output whose tap it is, in elements
    Py_ssize_t[2] ring           # slots along depth and height for the windows over one row: powers of 2


cdef inline Py_ssize_t power_of_2(Py_ssize_t least) noexcept nogil:
    cdef Py_ssize_t power = 1
    while power < least:
        power *= 2
    return power


cdef inline void carve_joint(const PoolGeometry* g, char** memory, Joint* joint) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real), stride = g.stride[2]
    cdef Py_ssize_t pixels = ceil_div(g.before[2] + g.in_size[2], stride)
    joint.width = ceil_div(pixels * g.inner, VL) * VL
    joint.left = reach(g, 2) // stride * g.inner
    joint.pitch = ceil_div(joint.left + larger(joint.width, out_row(g)), VL) * VL + VL
    joint.starts = <Py_ssize_t*> carve(memory, (stride + 1) * <Py_ssize_t> sizeof(Py_ssize_t))
    joint.taps = <Py_ssize_t*> carve(memory, g.kernel[2] * <Py_ssize_t> sizeof(Py_ssize_t))
    joint.offsets = <Py_ssize_t*> carve(memory, g.kernel[2] * <Py_ssize_t> sizeof(Py_ssize_t))
    joint.ring[0] = power_of_2(reach(g, 0) // g.stride[0] + 1)
    joint.ring[1] = power_of_2(reach(g, 1) // g.stride[1] + 1)
    joint.phases = NULL
    if stride > 1:
        joint.phases = <real*> carve(memory, stride * joint.width * item)


cdef inline void prepare_joint(const PoolGeometry* g, Joint* joint) noexcept nogil:
    cdef Py_ssize_t phase, c, count = 0
    for phase in range(g.stride[2]):
        joint.starts[phase] = count
        for c in range(g.kernel[2] - 1, -1, -1):
            if (phase - c * g.dilation[2]) % g.stride[2] == 0:
                joint.taps[count] = c
                joint.offsets[count] = (phase - c * g.dilation[2]) // g.stride[2] * g.inner
                count += 1
    joint.starts[g.stride[2]] = count


cdef inline Py_ssize_t first_window(const PoolGeometry* g, int axis, Py_ssize_t position) noexcept nogil:
    """The first output whose window reaches `position` of the input."""
    cdef Py_ssize_t start = position + g.before[axis] - reach(g, axis)
    if start <= 0:
        return 0
    return start if g.stride[axis] == 1 else ceil_div(start, g.stride[axis])


cdef inline Py_ssize_t last_window(const PoolGeometry* g, int axis, Py_ssize_t position) noexcept nogil:
    """One past the last output whose window reaches `position`."""
    cdef Py_ssize_t start = position + g.before[axis]
    return smaller((start if g.stride[axis] == 1 else start // g.stride[axis]) + 1, g.out_size[axis])


cdef inline Py_ssize_t tap_of(const PoolGeometry* g, int axis, Py_ssize_t position, Py_ssize_t output) noexcept nogil:
    """The tap of a window at a position that it reaches, or -1 between dilated taps."""
    cdef Py_ssize_t tap = position + g.before[axis] - output * g.stride[axis]
    if g.dilation[axis] == 1:
        return tap
    return -1 if tap % g.dilation[axis] else tap // g.dilation[axis]


cdef inline void store_part(const PoolGeometry* g, vec values, Py_ssize_t at, real* row) noexcept nogil:
    """row[at .. at + VL - 1] = values, as far as that is inside the row."""
    cdef real[VL] lanes
    cdef Py_ssize_t first = larger(-at, 0), last = smaller(g.in_size[2] - at, VL)
    if first == 0 and last == VL:
        vstore(row + at, values)
    elif first < last:
        vstore(lanes, values)
        memcpy(row + at + first, lanes + first, (last - first) * sizeof(real))


cdef inline void zip_phases(const PoolGeometry* g, const Joint* joint, real* row) noexcept nogil:
    cdef Py_ssize_t i = 0, at = -g.before[2]
    cdef vec a, b
    while i < joint.width:
        a = vload(joint.phases + i)
        b = vload(joint.phases + joint.width + i)
        if at >= 0 and at + 2 * VL <= g.in_size[2]:
            vstore(row + at, vzip_low(a, b))
            vstore(row + at + VL, vzip_high(a, b))
        else:
            store_part(g, vzip_low(a, b), at, row)
            store_part(g, vzip_high(a, b), at + VL, row)
        i += VL
        at += 2 * VL


cdef inline void join_phases(const PoolGeometry* g, const Joint* joint, real* row) noexcept nogil:
    """row[x] = phases[p][i], i * stride + p = x + before."""
    cdef Py_ssize_t stride = g.stride[2], x, i, p
    if g.inner == 1 and stride == 2:
        zip_phases(g, joint, row)
        return
    i = g.before[2] // stride
    p = g.before[2] % stride
    for x in range(g.in_size[2]):
        if g.inner == 1:
            row[x] = joint.phases[p * joint.width + i]
        else:
            memcpy(row + x * g.inner, joint.phases + p * joint.width + i * g.inner, g.inner * sizeof(real))
        p += 1
        if p == stride:
            p = 0
            i += 1
