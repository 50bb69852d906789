"""What the pooling kernels share: geometry, padded lines, phases of the stride, bands of rows.

With o an output position and t a tap, on each of three axes (absent axes have size 1),

    window o holds in[o * stride + t * dilation - before], 0 <= t < kernel, where that is inside

Arrays are C-contiguous: [planes][depth][height][width][inner]. Channels first has inner = 1 and a plane
for each channel; channels last has inner = channels and a plane for each image. Everything along the
width then moves by whole pixels of `inner` elements, and the same loops serve both.

A line is one row with its padding. Its phases are the pixels of equal position modulo the stride,

    phases[p][i] = line[i * stride + p]

so that tap c of output i lies at phases[c * dilation % stride][i + c * dilation // stride]: whatever the
stride, a tap is a stretch of consecutive elements. With stride 1 the line is its only phase.
"""

from libc.string cimport memcpy

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.simd cimport VL, real, vec, veven, vload, vodd, vstore


cdef struct PoolGeometry:
    Py_ssize_t planes
    Py_ssize_t inner
    Py_ssize_t[3] in_size
    Py_ssize_t[3] out_size
    Py_ssize_t[3] kernel
    Py_ssize_t[3] stride
    Py_ssize_t[3] dilation
    Py_ssize_t[3] before


# Scratch of one thread for lines along the width, laid out by carve_lines.
cdef struct Lines:
    real* line
    real* phases
    const real** taps            # tap c of output pixel 0 in the phases
    const real** rows            # room for one pointer for each row of a window
    Py_ssize_t pixels            # of a phase, as far as windows reach
    Py_ssize_t pitch             # elements from one phase to the next


# Rows first .. last - 1 of one depth of one plane: the unit of parallel work.
cdef struct Band:
    Py_ssize_t plane
    Py_ssize_t depth
    Py_ssize_t first
    Py_ssize_t last


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef inline char* carve(char** memory, Py_ssize_t size) noexcept nogil:
    """The next `size` bytes."""
    cdef char* start = memory[0]
    memory[0] += aligned(size)
    return start


cdef inline Py_ssize_t reach(const PoolGeometry* g, int axis) noexcept nogil:
    """From the first tap of a window to its last."""
    return (g.kernel[axis] - 1) * g.dilation[axis]


cdef inline Py_ssize_t in_row(const PoolGeometry* g) noexcept nogil:
    return g.in_size[2] * g.inner


cdef inline Py_ssize_t out_row(const PoolGeometry* g) noexcept nogil:
    return g.out_size[2] * g.inner


cdef inline Py_ssize_t shared_pitch(const PoolGeometry* g) noexcept nogil:
    """From line to line where a line's padding on the right is that of the next line on the left."""
    cdef Py_ssize_t right = (g.out_size[2] - 1) * g.stride[2] + reach(g, 2) + 1 - g.before[2] - g.in_size[2]
    return in_row(g) + larger(larger(g.before[2], right), 0) * g.inner


cdef inline bint flat(const PoolGeometry* g) noexcept nogil:
    """Is there no depth?"""
    return g.kernel[0] == 1 and g.in_size[0] == 1 and g.out_size[0] == 1


cdef inline Py_ssize_t input_size(const PoolGeometry* g) noexcept nogil:
    """Elements of a plane."""
    return g.in_size[0] * g.in_size[1] * in_row(g)


cdef inline Py_ssize_t output_size(const PoolGeometry* g) noexcept nogil:
    return g.out_size[0] * g.out_size[1] * out_row(g)


cdef inline Py_ssize_t window_rows(const PoolGeometry* g) noexcept nogil:
    return g.kernel[0] * g.kernel[1]


cdef inline Py_ssize_t first_tap(const PoolGeometry* g, int axis, Py_ssize_t output) noexcept nogil:
    """The first tap of a window that is inside the input."""
    cdef Py_ssize_t outside = g.before[axis] - output * g.stride[axis]
    if outside <= 0:
        return 0
    if g.dilation[axis] > 1:
        outside = ceil_div(outside, g.dilation[axis])
    return smaller(outside, g.kernel[axis])


cdef inline Py_ssize_t last_tap(const PoolGeometry* g, int axis, Py_ssize_t output) noexcept nogil:
    """One past the last tap of a window that is inside the input; first_tap or less where none is."""
    cdef Py_ssize_t room = g.in_size[axis] + g.before[axis] - output * g.stride[axis]
    if room <= 0:
        return 0
    if g.dilation[axis] > 1:
        room = ceil_div(room, g.dilation[axis])
    return smaller(room, g.kernel[axis])


cdef inline Py_ssize_t whole_from(const PoolGeometry* g) noexcept nogil:
    """The first row of outputs whose windows begin inside the input."""
    return smaller(ceil_div(g.before[1], g.stride[1]), g.out_size[1])


cdef inline Py_ssize_t whole_to(const PoolGeometry* g) noexcept nogil:
    """One past the last row of outputs whose windows end inside the input."""
    cdef Py_ssize_t room = g.in_size[1] + g.before[1] - reach(g, 1) - 1
    return smaller(room // g.stride[1] + 1, g.out_size[1]) if room >= 0 else 0


cdef inline void fill(real* to, real value, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        to[i] = value


cdef inline void carve_lines(const PoolGeometry* g, char** memory, Lines* lines) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real)
    cdef Py_ssize_t line
    lines.pixels = g.out_size[2] + reach(g, 2) // g.stride[2]
    lines.pitch = ceil_div(lines.pixels * g.inner, VL) * VL + VL
    line = larger((g.before[2] + g.in_size[2]) * g.inner + VL, g.stride[2] * lines.pitch)
    lines.line = <real*> carve(memory, line * item)
    lines.phases = lines.line
    if g.stride[2] > 1:
        lines.phases = <real*> carve(memory, g.stride[2] * lines.pitch * item)
    lines.taps = <const real**> carve(memory, g.kernel[2] * <Py_ssize_t> sizeof(void*))
    lines.rows = <const real**> carve(memory, window_rows(g) * <Py_ssize_t> sizeof(void*))


cdef inline void prepare_lines(const PoolGeometry* g, real padding, Lines* lines) noexcept nogil:
    """Fills the line, and so its margins, with the padding, and finds the taps."""
    cdef Py_ssize_t c, at
    fill(lines.line, padding, larger((g.before[2] + g.in_size[2]) * g.inner + VL, g.stride[2] * lines.pitch))
    for c in range(g.kernel[2]):
        at = c * g.dilation[2]
        lines.taps[c] = lines.phases + at % g.stride[2] * lines.pitch + at // g.stride[2] * g.inner


cdef inline void split_phases(const PoolGeometry* g, const Lines* lines) noexcept nogil:
    cdef Py_ssize_t stride = g.stride[2], pixels = lines.pixels, i, p
    cdef const real* line = lines.line
    cdef real* to
    cdef vec a, b
    if stride == 1:
        return
    if g.inner == 1 and stride == 2:
        i = 0
        while i < pixels:
            a = vload(line + 2 * i)
            b = vload(line + 2 * i + VL)
            vstore(lines.phases + i, veven(a, b))
            vstore(lines.phases + lines.pitch + i, vodd(a, b))
            i += VL
        return
    for p in range(smaller(stride, reach(g, 2) + 1)):
        to = lines.phases + p * lines.pitch
        if g.inner == 1:
            for i in range(pixels):
                to[i] = line[i * stride + p]
        else:
            for i in range(pixels):
                memcpy(to + i * g.inner, line + (i * stride + p) * g.inner, g.inner * sizeof(real))


cdef inline Py_ssize_t list_rows(const PoolGeometry* g, const real* plane, Py_ssize_t depth, Py_ssize_t height,
                                 const real** rows) noexcept nogil:
    """The input's rows inside the windows of output row (depth, height), in the order of the taps."""
    cdef Py_ssize_t d, h, count = 0
    cdef Py_ssize_t at_depth = depth * g.stride[0] - g.before[0], at_height = height * g.stride[1] - g.before[1]
    for d in range(first_tap(g, 0, depth), last_tap(g, 0, depth)):
        for h in range(first_tap(g, 1, height), last_tap(g, 1, height)):
            rows[count] = plane + ((at_depth + d * g.dilation[0]) * g.in_size[1]
                                   + at_height + h * g.dilation[1]) * in_row(g)
            count += 1
    return count


cdef inline Py_ssize_t bands_of(Py_ssize_t stacks, Py_ssize_t rows, int threads) noexcept nogil:
    """How many bands to cut a depth of a plane into: 4 units for each thread where there are few planes."""
    if threads == 1 or stacks >= 4 * threads:
        return 1
    return larger(smaller(rows, ceil_div(4 * threads, stacks)), 1)


cdef inline Band band_of(Py_ssize_t unit, const Py_ssize_t* size, Py_ssize_t bands) noexcept nogil:
    """Unit number -> plane, depth, rows; `size` is that of the array whose rows are cut."""
    cdef Band band
    cdef Py_ssize_t part
    if bands == 1 and size[0] == 1:
        band.plane = unit
        band.depth = band.first = 0
        band.last = size[1]
        return band
    part = unit % bands
    band.depth = unit // bands % size[0]
    band.plane = unit // bands // size[0]
    band.first = part * size[1] // bands
    band.last = (part + 1) * size[1] // bands
    return band
