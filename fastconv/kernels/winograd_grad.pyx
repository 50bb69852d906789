"""The weight gradient of 3x3 convolutions of stride 1 by Winograd's method, summed over tiles at the points.

    dw = A' [sum over tiles of (G grad G') * (B' input B)] A

The gradient of a tile's outputs is a filter of 4x4 (3x3, 2x2) taps, and 3x3 results slide under it: the same points,
the same values of the input as forward. At each point the sum over tiles is a matrix product,

    sums[point][k][c] = sum over t of grads[point][t][k] * values[point][t][c]

Tiles come in chunks, whose length is that of the problem, and a chunk in parts: few tiles a sum keep its error
small. Parts are added in pairs, the results of chunks in order. Threads share out the transforms of a chunk, then
its panels of filters and channels. With few of them, what one core has transformed would take the other longer to
fetch than to use: chunks then form `splits`, each with results of its own, which are added in order at the end,
and threads share out the splits. All of this is the problem's alone, so that the bits do not depend on the number
of threads.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.gemm_micro cimport COLUMNS, LINE, Ahead, Tile, run_rows
from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    NR, VL, flush_denormals, real, restore_denormals, vadd, vec, vfma, vload, vload_first, vstore, vstore_first,
    vsum, vtranspose, vzero,
)
from fastconv.kernels.winograd_input cimport Source, Target, input_source, transform_tiles
from fastconv.kernels.winograd_points cimport MOST_POINTS, sum_taps
from fastconv.kernels.winograd_work cimport TAPS, Work, block_start, line_size, odd_lines, shape_work, zeros_size

cdef enum:
    FILTERS = 4 * VL  # of a panel: with NR channels its sums at 36 points take 300 KB
    PANEL = FILTERS * NR
    PARTS = 8         # of a chunk at most: each starts and stores its sums


cdef struct Sizes:
    Py_ssize_t part_tiles        # at most, but for what PARTS leaves over
    Py_ssize_t filter_panels
    Py_ssize_t channel_panels
    Py_ssize_t grad_panel        # from panel to panel, and from point to point
    Py_ssize_t grad_point
    Py_ssize_t value_panel
    Py_ssize_t value_point
    Py_ssize_t sums_point
    Py_ssize_t strip
    Py_ssize_t operands          # of a chunk, transformed
    Py_ssize_t row               # results of a filter, and of a group
    Py_ssize_t results


cdef Sizes measure(const Work* w, Py_ssize_t part_tiles) noexcept nogil:
    cdef Sizes z
    cdef Py_ssize_t points = w.points * w.points
    z.part_tiles = part_tiles
    z.filter_panels = ceil_div(w.g.rows, FILTERS)
    z.channel_panels = ceil_div(w.g.channels, NR)
    z.grad_point = odd_lines(w.block_tiles * FILTERS)
    z.grad_panel = points * z.grad_point
    z.value_point = odd_lines(w.block_tiles * NR)
    z.value_panel = points * z.value_point
    z.sums_point = odd_lines(PANEL)
    z.strip = odd_lines(w.points * line_size(w))
    z.operands = z.filter_panels * z.grad_panel + z.channel_panels * z.value_panel
    z.row = w.g.channels * TAPS
    z.results = w.g.rows * z.row
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
                   Py_ssize_t filters, real* own, real* sums) noexcept nogil:
    """sums[point][k][lane] of one panel of filters and one of channels."""
    cdef Tile t
    cdef Ahead ahead
    cdef Py_ssize_t point, part, first, parts = smaller(PARTS, ceil_div(tiles, z.part_tiles))
    cdef real* to
    memset(&t, 0, sizeof(Tile))
    t.ahead = &ahead
    t.a_row = 1
    t.a_step = FILTERS
    t.out_row = t.columns = NR
    for point in range(w.points * w.points):
        ahead.line = values + (point + 1) * z.value_point
        ahead.left = ahead.lines = ahead.total = z.value_point // LINE
        ahead.step = LINE
        ahead.jump = 0
        to = sums + point * z.sums_point
        for part in range(parts):
            first = tiles * part // parts
            t.depth = tiles * (part + 1) // parts - first
            t.a = grads + point * z.grad_point + first * FILTERS
            t.b = <real*> values + point * z.value_point + first * NR
            t.out = to if parts == 1 else own + part * z.sums_point
            run_rows(COLUMNS, filters, 1, 2, &t)
        if parts > 1:
            add_parts(parts, own, z.sums_point, filters * NR, to)


cdef void add_parts(Py_ssize_t parts, const real* own, Py_ssize_t next, Py_ssize_t count, real* sums) noexcept nogil:
    cdef Py_ssize_t i = 0, part
    cdef vec total
    while i < count:
        total = vadd(vload(own + i), vload(own + next + i))
        for part in range(2, parts - 1, 2):
            total = vadd(total, vadd(vload(own + part * next + i), vload(own + (part + 1) * next + i)))
        if parts % 2:
            total = vadd(total, vload(own + (parts - 1) * next + i))
        vstore(sums + i, total)
        i += VL


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


cdef inline vec add_taps(const vec* taps, Py_ssize_t channels, bint first, real* out, vec missing) noexcept nogil:
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
                found = vadd(found, vload_first(out + c * TAPS + t, some))
            vstore_first(out + c * TAPS + t, some, found)
            missing = vfma(found, vzero(), missing)
        t += some
    return missing


cdef void run_unit(const Work* w, const Sizes* z, Py_ssize_t block, Py_ssize_t unit, const real* operands,
                   bint first, real* out, real* own, bint* broken) noexcept nogil:
    """One panel of filters and one of channels of a chunk; `broken` is set if a sum is not finite."""
    cdef Py_ssize_t filter = unit // z.channel_panels * FILTERS, channel = unit % z.channel_panels * NR
    cdef Py_ssize_t filters = smaller(FILTERS, w.g.rows - filter), k, lane
    cdef vec[TAPS + VL] taps
    cdef vec missing = vzero()
    cdef real* sums = own + PARTS * z.sums_point
    multiply(w, z, operands + filter // FILTERS * z.grad_panel,
             operands + z.filter_panels * z.grad_panel + channel // NR * z.value_panel,
             block_start(w, block + 1) - block_start(w, block), filters, own, sums)
    for k in range(filters):
        lane = 0
        while lane < smaller(NR, w.g.channels - channel):
            if w.points == 6:
                sum_tile(6, sums + k * NR + lane, z.sums_point, taps)
            elif w.points == 5:
                sum_tile(5, sums + k * NR + lane, z.sums_point, taps)
            else:
                sum_tile(4, sums + k * NR + lane, z.sums_point, taps)
            missing = add_taps(taps, smaller(VL, w.g.channels - channel - lane), first,
                               out + (filter + k) * z.row + (channel + lane) * TAPS, missing)
            lane += VL
    if vsum(missing) != 0:
        broken[0] = True


cdef void transform_unit(const Work* w, const Sizes* z, const Source* grad, const Source* input, Py_ssize_t block,
                         Py_ssize_t unit, real* strip, real* operands) noexcept nogil:
    """VL channels of a chunk: first come those of the gradient, then those of the input."""
    cdef Py_ssize_t of_input = unit - ceil_div(w.g.rows, VL)
    if of_input < 0:
        transform_some(True, w, grad, unit * VL, block, FILTERS, z.grad_panel, z.grad_point, strip, operands)
    else:
        transform_some(False, w, input, of_input * VL, block, NR, z.value_panel, z.value_point, strip,
                       operands + z.filter_panels * z.grad_panel)


cdef inline Py_ssize_t transform_units(const Work* w) noexcept nogil:
    return ceil_div(w.g.rows, VL) + ceil_div(w.g.channels, VL)


cdef Py_ssize_t scratch_size(const Work* w, const Sizes* z) noexcept nogil:
    """Of a thread, beside transformed operands."""
    return z.strip + (PARTS + w.points * w.points) * z.sums_point


cdef Py_ssize_t memory_size(const Work* w, const Sizes* z, Py_ssize_t splits, int threads) noexcept nogil:
    cdef Py_ssize_t copies = 1 if splits == 1 else threads
    return zeros_size(w) + copies * z.operands + threads * scratch_size(w, z) + (splits - 1) * z.results


cdef void run_together(const Work* w, const Sizes* z, const Source* grad, const Source* input, real* out,
                       real* operands, real* scratch, int threads, bint* broken) noexcept nogil:
    """Chunks in order, each by all threads."""
    cdef Py_ssize_t block, unit
    cdef real* own
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        own = scratch + threadid() * scratch_size(w, z)
        for block in range(w.blocks):
            for unit in prange(transform_units(w), schedule="dynamic"):
                transform_unit(w, z, grad, input, block, unit, own, operands)
            for unit in prange(z.filter_panels * z.channel_panels, schedule="static"):
                run_unit(w, z, block, unit, operands, block == 0, out, own + z.strip, broken)
        restore_denormals(mode)


cdef void run_split(const Work* w, const Sizes* z, Py_ssize_t split, Py_ssize_t splits, const Source* grad,
                    const Source* input, real* out, real* operands, real* own, bint* broken) noexcept nogil:
    """Its chunks in order, by one thread."""
    cdef Py_ssize_t first = split * w.blocks // splits, block, unit
    for block in range(first, (split + 1) * w.blocks // splits):
        for unit in range(transform_units(w)):
            transform_unit(w, z, grad, input, block, unit, own, operands)
        for unit in range(z.filter_panels * z.channel_panels):
            run_unit(w, z, block, unit, operands, block == first, out, own + z.strip, broken)


cdef void add_splits(const real* others, Py_ssize_t count, Py_ssize_t stride, Py_ssize_t length, real* out,
                     bint* broken) noexcept nogil:
    """out[i] += the sum over `count` splits, `stride` apart, of others[split][i], i < length."""
    cdef Py_ssize_t i = 0, split, some
    cdef vec total, missing = vzero()
    while i < length:
        some = smaller(VL, length - i)
        total = vload_first(out + i, some)
        for split in range(count):
            total = vadd(total, vload_first(others + split * stride + i, some))
        vstore_first(out + i, some, total)
        missing = vfma(total, vzero(), missing)
        i += VL
    if vsum(missing) != 0:
        broken[0] = True


cdef void run_splits(const Work* w, const Sizes* z, Py_ssize_t splits, const Source* grad, const Source* input,
                     real* out, real* operands, real* scratch, int threads, bint* broken) noexcept nogil:
    """Each by one thread; the first one's results are those of the group, to which the others are added."""
    cdef real* others = operands + threads * z.operands
    cdef Py_ssize_t split, row
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for split in prange(splits, schedule="static"):
            run_split(w, z, split, splits, grad, input, others + (split - 1) * z.results if split > 0 else out,
                      operands + threadid() * z.operands, scratch + threadid() * scratch_size(w, z), broken)
        for row in prange(w.g.rows, schedule="static"):
            add_splits(others + row * z.row, splits - 1, z.results, z.row, out + row * z.row, broken)
        restore_denormals(mode)


cdef void run_group(const Work* w, const Sizes* z, Py_ssize_t group, Py_ssize_t splits, const real* grad_output,
                    const real* grad_end, real* memory, int threads, bint* broken) noexcept nogil:
    cdef real* zeros = memory
    cdef real* scratch = zeros + zeros_size(w)
    cdef real* operands = scratch + threads * scratch_size(w, z)
    cdef real* out = w.out + group * w.g.weight_group
    cdef Source grad = grad_source(w, grad_output, grad_end, group, zeros), input = input_source(w, group, zeros)
    memset(zeros, 0, zeros_size(w) * sizeof(real))
    if splits == 1:
        run_together(w, z, &grad, &input, out, operands, scratch, threads, broken)
    else:
        run_splits(w, z, splits, &grad, &input, out, operands, scratch, threads, broken)


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


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int outputs, Py_ssize_t block_tiles,
                    Py_ssize_t part_tiles, Py_ssize_t splits, int threads):
    """Bytes that `weight_grad` needs beside its operands."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Sizes z = measure(&w, part_tiles)
    return memory_size(&w, &z, splits, threads) * sizeof(real) + 64


def weight_grad(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray grad_output,
                cnp.ndarray out, cnp.ndarray workspace, int outputs, Py_ssize_t block_tiles,
                Py_ssize_t part_tiles, Py_ssize_t splits, int threads):
    """The equation above, with chunks of at most `block_tiles`, no fewer than splits; the plan has checked the rest."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Sizes z = measure(&w, part_tiles)
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
            run_group(&w, &z, group, splits, grad, grad_end, <real*> memory, threads, &broken)
            if broken:
                mend_group(&w, group, grad, threads)
