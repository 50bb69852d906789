"""The weight gradient of 3x3 convolutions of stride 1 by Winograd's method, summed over tiles at the points.

    dw = A' [sum over tiles of (G grad G') * (B' input B)] A

The gradient of a tile's outputs is a filter of 4x4 (2x2) taps, and 3x3 results slide under it: the same points,
the same values of the input as forward. At each point the sum over tiles is a matrix product,

    sums[point][k][c] = sum over t of grads[point][t][k] * values[point][t][c]

Tiles come in chunks, whose length is that of the problem, and whose results are added in order: few tiles a sum
keep its error small, and the bits do not depend on the number of threads, which share out first the transforms of
a chunk and then its panels of filters and channels.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.gemm_micro cimport COLUMNS, LINE, Ahead, Tile, run_rows
from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    NR, VL, flush_denormals, real, restore_denormals, vadd, vec, vfma, vload, vload_first, vstore_first,
    vsum, vtranspose, vzero,
)
from fastconv.kernels.winograd_input cimport Source, Target, input_source, transform_tiles
from fastconv.kernels.winograd_points cimport MOST_POINTS, sum_taps
from fastconv.kernels.winograd_work cimport TAPS, Work, block_start, line_size, odd_lines, shape_work, zeros_size

cdef enum:
    FILTERS = 4 * VL  # of a panel: with NR channels its sums at 36 points take 300 KB


cdef struct Sizes:
    Py_ssize_t filter_panels
    Py_ssize_t channel_panels
    Py_ssize_t grad_panel        # from panel to panel, and from point to point
    Py_ssize_t grad_point
    Py_ssize_t value_panel
    Py_ssize_t value_point
    Py_ssize_t sums_point
    Py_ssize_t strip


cdef Sizes measure(const Work* w) noexcept nogil:
    cdef Sizes z
    cdef Py_ssize_t points = w.points * w.points
    z.filter_panels = ceil_div(w.g.rows, FILTERS)
    z.channel_panels = ceil_div(w.g.channels, NR)
    z.grad_point = odd_lines(w.block_tiles * FILTERS)
    z.grad_panel = points * z.grad_point
    z.value_point = odd_lines(w.block_tiles * NR)
    z.value_panel = points * z.value_point
    z.sums_point = odd_lines(FILTERS * NR)
    z.strip = odd_lines(w.points * line_size(w))
    return z


cdef Source grad_source(const Work* w, const real* grad_output, const real* end, Py_ssize_t group,
                        const real* zeros) noexcept nogil:
    cdef Source s
    s.group = grad_output + group * w.g.out_group
    s.end = end
    s.channels = w.g.rows
    s.image = w.g.out_image
    s.channel = w.g.out_row
    s.row = w.g.out_axis[1]
    s.height = w.g.out_size[1]
    s.width = w.g.out_size[2]
    s.first_row = s.first_column = 0
    s.reach = w.outputs
    s.zeros = zeros
    return s


cdef inline void transform_some(const bint grad, const Work* w, const Source* s, Py_ssize_t channel,
                                Py_ssize_t block, Py_ssize_t width, Py_ssize_t panel, Py_ssize_t point, real* strip,
                                real* to) noexcept nogil:
    """VL channels of a block of tiles, to panels of `width` channels."""
    cdef Target t
    t.to = to + channel // width * panel + channel % width
    t.row = width
    t.point = point
    transform_tiles(4, grad, w, s, channel, block_start(w, block), block_start(w, block + 1), strip, &t)


cdef void multiply(const Work* w, const Sizes* z, const real* grads, const real* values, Py_ssize_t tiles,
                   Py_ssize_t filters, Py_ssize_t lanes, real* sums) noexcept nogil:
    """sums[point][k][lane] of one panel of filters and one of channels."""
    cdef Tile t
    cdef Ahead ahead
    cdef Py_ssize_t point
    memset(&t, 0, sizeof(Tile))
    t.ahead = &ahead
    t.depth = tiles
    t.a_row = 1
    t.a_step = FILTERS
    t.out_row = t.columns = NR
    for point in range(w.points * w.points):
        ahead.line = values + (point + 1) * z.value_point
        ahead.left = ahead.lines = ahead.total = z.value_point // LINE
        ahead.step = LINE
        ahead.jump = 0
        t.a = grads + point * z.grad_point
        t.b = <real*> values + point * z.value_point
        t.out = sums + point * z.sums_point
        run_rows(COLUMNS, filters, 1, 2, &t)


cdef inline void sum_tile(const int points, const real* sums, Py_ssize_t point, vec* taps) noexcept nogil:
    cdef vec[MOST_POINTS * MOST_POINTS] half
    cdef vec[MOST_POINTS] m
    cdef int i, j
    for j in range(points):
        for i in range(points):
            m[i] = vload(sums + (i * points + j) * point)
        sum_taps(points, m)
        for i in range(3):
            half[i * points + j] = m[i]
    for i in range(3):
        sum_taps(points, half + i * points)
        for j in range(3):
            taps[i * 3 + j] = half[i * points + j]


cdef inline vec add_taps(const Work* w, const vec* taps, Py_ssize_t channels, bint first, real* out,
                         vec missing) noexcept nogil:
    """out[c][tap] (+)= taps[tap][c]; what is returned is no longer zero where a sum is not finite."""
    cdef vec[VL] block
    cdef vec found
    cdef Py_ssize_t t = 0, some, c, i
    while t < TAPS:
        some = smaller(VL, TAPS - t)
        for i in range(VL):
            block[i] = taps[t + i] if i < some else vzero()
        vtranspose(block)
        for c in range(channels):
            found = block[c]
            if not first:
                found = vadd(found, vload_first(out + c * w.g.weight_channel + t, some))
            vstore_first(out + c * w.g.weight_channel + t, some, found)
            missing = vfma(found, vzero(), missing)
        t += some
    return missing


cdef void run_unit(const Work* w, const Sizes* z, Py_ssize_t group, Py_ssize_t block, Py_ssize_t unit,
                   const real* grads, const real* values, real* sums, bint* broken) noexcept nogil:
    """One panel of filters and one of channels; `broken` is set if a sum is not finite."""
    cdef Py_ssize_t filter = unit // z.channel_panels * FILTERS, channel = unit % z.channel_panels * NR
    cdef Py_ssize_t filters = smaller(FILTERS, w.g.rows - filter), k, lane
    cdef vec[TAPS + VL] taps
    cdef vec missing = vzero()
    cdef real* out
    multiply(w, z, grads + filter // FILTERS * z.grad_panel, values + channel // NR * z.value_panel,
             block_start(w, block + 1) - block_start(w, block), filters, NR, sums)
    for k in range(filters):
        lane = 0
        while lane < smaller(NR, w.g.channels - channel):
            if w.points == 6:
                sum_tile(6, sums + k * NR + lane, z.sums_point, taps)
            else:
                sum_tile(4, sums + k * NR + lane, z.sums_point, taps)
            out = w.out + group * w.g.weight_group + (filter + k) * w.g.weight_row
            out += (channel + lane) * w.g.weight_channel
            missing = add_taps(w, taps, smaller(VL, w.g.channels - channel - lane), block == 0, out, missing)
            lane += VL
    if vsum(missing) != 0:
        broken[0] = True


cdef Py_ssize_t shared_size(const Work* w, const Sizes* z) noexcept nogil:
    return zeros_size(w) + z.filter_panels * z.grad_panel + z.channel_panels * z.value_panel


cdef Py_ssize_t scratch_size(const Work* w, const Sizes* z) noexcept nogil:
    return z.strip + w.points * w.points * z.sums_point


cdef void run_group(const Work* w, const Sizes* z, Py_ssize_t group, const real* grad_output, const real* grad_end,
                    real* memory, int threads, bint* broken) noexcept nogil:
    cdef real* zeros = memory
    cdef real* grads = zeros + zeros_size(w)
    cdef real* values = grads + z.filter_panels * z.grad_panel
    cdef real* own = memory + shared_size(w, z)
    cdef real* strip
    cdef Py_ssize_t grad_units = ceil_div(w.g.rows, VL), value_units = ceil_div(w.g.channels, VL), block, unit
    cdef Source grad = grad_source(w, grad_output, grad_end, group, zeros), input = input_source(w, group, zeros)
    cdef unsigned int mode = 0
    memset(zeros, 0, zeros_size(w) * sizeof(real))
    with parallel(num_threads=threads):
        mode = flush_denormals()
        strip = own + threadid() * scratch_size(w, z)
        for block in range(w.blocks):
            for unit in prange(grad_units + value_units, schedule="dynamic"):
                if unit < grad_units:
                    transform_some(True, w, &grad, unit * VL, block, FILTERS, z.grad_panel, z.grad_point, strip,
                                   grads)
                else:
                    transform_some(False, w, &input, (unit - grad_units) * VL, block, NR, z.value_panel,
                                   z.value_point, strip, values)
            for unit in prange(z.filter_panels * z.channel_panels, schedule="static"):
                run_unit(w, z, group, block, unit, grads, values, strip + z.strip, broken)
        restore_denormals(mode)


cdef void mend_group(const Work* w, Py_ssize_t group, const real* grad_output, int threads) noexcept nogil:
    """Sums that are not finite are taken again by their definition."""
    cdef Py_ssize_t unit, t
    cdef real* out
    cdef real total
    for unit in prange(w.g.rows * w.g.channels, num_threads=threads, schedule="dynamic", chunksize=64):
        out = w.out + group * w.g.weight_group + unit // w.g.channels * w.g.weight_row
        out = out + unit % w.g.channels * w.g.weight_channel
        total = 0
        for t in range(TAPS):
            total = total + out[t] * 0
        if total != 0:
            weigh_pair(w, w.input + group * w.g.in_group + unit % w.g.channels * w.g.in_channel,
                       grad_output + group * w.g.out_group + unit // w.g.channels * w.g.out_row, out)


cdef void weigh_pair(const Work* w, const real* input, const real* grad, real* out) noexcept nogil:
    """One channel and one filter; zeros of the padding take part."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t n, y, x, r, s, top, left
    cdef real total, value
    for r in range(3):
        for s in range(3):
            total = 0
            for n in range(g.batch):
                for y in range(g.out_size[1]):
                    top = y + r + w.first_row
                    for x in range(g.out_size[2]):
                        left = x + s + w.first_column
                        value = 0
                        if 0 <= top < g.in_size[1] and 0 <= left < g.in_size[2]:
                            value = input[n * g.in_image + top * g.in_axis[1] + left]
                        total += value * grad[n * g.out_image + y * g.out_axis[1] + x]
            out[r * 3 + s] = total


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int outputs, Py_ssize_t block_tiles, int threads):
    """Bytes that `weight_grad` needs beside its operands."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Sizes z = measure(&w)
    return (shared_size(&w, &z) + scratch_size(&w, &z) * threads) * sizeof(real) + 64


def weight_grad(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray grad_output,
                cnp.ndarray out, cnp.ndarray workspace, int outputs, Py_ssize_t block_tiles, int threads):
    """The equation above, with chunks of at most `block_tiles`; the plan has checked every argument."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Sizes z = measure(&w)
    cdef const real* grad = <const real*> cnp.PyArray_DATA(grad_output)
    cdef const real* grad_end = grad + cnp.PyArray_SIZE(grad_output)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Py_ssize_t group
    cdef bint broken
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.input_end = w.input + cnp.PyArray_SIZE(input)
    w.out = <real*> cnp.PyArray_DATA(out)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        for group in range(w.g.groups):
            broken = False
            run_group(&w, &z, group, grad, grad_end, <real*> memory, threads, &broken)
            if broken:
                mend_group(&w, group, grad, threads)
