"""3x3 convolutions of stride 1 by Winograd's method: 36 products for 16 outputs in place of 144.

    out = A' [(G weight G') * (B' input B)] A, summed over the input channels at each point

Tiles of 4x4 outputs (or 2x2, 6x6) are transformed to 36 (16, 64) points, where convolution is a product; over the
channels it is a matrix product at each point,

    products[point][tile][k] = sum over c of values[point][tile][c] * weights[point][c][k]

computed by the register tiles of gemm_micro.pxd, tiles of the image down and output channels across. A block of
tiles stays in the second-level cache from its inputs to its outputs, panel by panel of the output channels.

Large maps: threads take blocks of tiles. Small maps: they transform all inputs together, then take panels, and
weights that are not prepared are transformed by the panel that reads them.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memcpy, memset

from fastconv.kernels.gemm_micro cimport LINE, ROWS, Ahead, Tile, run_rows
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport NR, VL, flush_denormals, real, restore_denormals, vec, vload, vstore
from fastconv.kernels.winograd_input cimport Source, Target, input_source, transform_tiles
from fastconv.kernels.winograd_output cimport transform_products
from fastconv.kernels.winograd_points cimport (
    MOST_POINTS, grad_points, input_points, sum_points, sum_taps, weight_points,
)
from fastconv.kernels.winograd_weight cimport transform_weights
from fastconv.kernels.winograd_work cimport (
    Work, block_start, line_size, odd_lines, panel_lanes, products_size, results_size, shape_work, values_size,
    weights_size, zeros_size,
)


# How a call goes about it, from its shape alone.
cdef struct Course:
    bint shared                  # threads transform all inputs together, then take panels
    bint fused                   # weights are transformed by the panel that reads them, ...
    Py_ssize_t depth             # ... so many channels at a time
    Py_ssize_t portion           # panels whose weights are transformed together


# A thread's own memory.
cdef struct Scratch:
    real* values
    real* weights
    real* products
    real* strip                  # lines of the input; results of the output


cdef Py_ssize_t strip_size(const Work* w) noexcept nogil:
    return odd_lines(larger(w.points * line_size(w), results_size(w)))


cdef Course plan_course(const Work* w, bint prepared, Py_ssize_t l2, Py_ssize_t limit, int threads) noexcept nogil:
    cdef Course c
    cdef Py_ssize_t point_bytes = w.points * w.points * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t block_bytes = values_size(w) * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t panel_bytes = weights_size(w) * <Py_ssize_t> sizeof(real)
    c.shared = w.blocks < 2 * threads and w.blocks * block_bytes <= limit
    c.fused = not prepared and w.blocks == 1
    c.depth = w.g.channels
    c.portion = w.panels
    if c.fused:
        c.depth = larger(l2 * 5 // 8 // (point_bytes * NR), 8)
        c.depth = ceil_div(w.g.channels, ceil_div(w.g.channels, c.depth))
    elif not prepared:
        limit -= block_bytes * (w.blocks if c.shared else threads)
        c.portion = smaller(w.panels, larger(limit // panel_bytes, 1))
    return c


cdef Py_ssize_t scratch_size(const Work* w, const Course* c) noexcept nogil:
    cdef Py_ssize_t size = products_size(w) + strip_size(w)
    if not c.shared:
        size += values_size(w)
    if c.fused:
        size += w.points * w.points * odd_lines(c.depth * NR)
    return size


cdef Scratch carve(const Work* w, const Course* c, real* memory) noexcept nogil:
    cdef Scratch s
    s.products = memory
    s.strip = s.products + products_size(w)
    s.values = s.strip + strip_size(w)
    s.weights = s.values if c.shared else s.values + values_size(w)
    return s


cdef Py_ssize_t shared_size(const Work* w, const Course* c, bint prepared) noexcept nogil:
    cdef Py_ssize_t size = zeros_size(w)
    if c.shared:
        size += w.blocks * values_size(w)
    if not prepared and not c.fused:
        size += c.portion * weights_size(w)
    return size


cdef void multiply(const Work* w, const Course* c, const real* values, const real* weights, Py_ssize_t weight_point,
                   Py_ssize_t channel, Py_ssize_t depth, Py_ssize_t tiles, Py_ssize_t lanes,
                   real* products) noexcept nogil:
    """Every point of a block of tiles and a panel, over some channels."""
    cdef Tile t
    cdef Ahead ahead
    cdef Py_ssize_t point
    memset(&t, 0, sizeof(Tile))
    t.ahead = &ahead
    t.depth = depth
    t.a_row = w.value_row
    t.a_step = 1
    t.columns = lanes
    t.start_row = t.out_row = w.product_row
    for point in range(w.points * w.points):
        ahead.step = LINE
        if c.fused:
            ahead.line = values + (point + 1) * w.value_point + channel
            ahead.left = ahead.lines = ceil_div(depth, LINE)
            ahead.jump = w.value_row - ahead.lines * LINE
            ahead.total = tiles * ahead.lines
        else:
            ahead.line = weights + (point + 1) * weight_point
            ahead.left = ahead.lines = ahead.total = weight_point // LINE
            ahead.jump = 0
        t.a = values + point * w.value_point + channel
        t.b = <real*> weights + point * weight_point
        t.out = products + point * NR
        t.start = t.out if channel else NULL
        run_rows(ROWS, tiles, w.value_row, <int> (lanes // VL), &t)


cdef void run_panel(const Work* w, const Course* c, Py_ssize_t group, Py_ssize_t block, Py_ssize_t panel,
                    const real* values, const real* weights, const Scratch* s) noexcept nogil:
    """The outputs of one block of tiles and one panel of output channels."""
    cdef Py_ssize_t first = block_start(w, block), last = block_start(w, block + 1)
    cdef Py_ssize_t lanes = panel_lanes(w, panel), channel = 0, some, row, point
    if c.fused:
        while channel < w.g.channels:
            some = smaller(c.depth, w.g.channels - channel)
            point = odd_lines(some * lanes)
            transform_weights(w, w.weight + group * w.g.weight_group, panel, channel, channel + some, s.weights, point)
            multiply(w, c, values, s.weights, point, channel, some, last - first, lanes, s.products)
            channel += some
    else:
        multiply(w, c, values, weights, w.weight_point, 0, w.g.channels, last - first, lanes, s.products)
    row = panel * NR
    while row < smaller(w.g.rows, (panel + 1) * NR):
        transform_products(w, group, row, first, last, s.products + row - panel * NR, s.strip)
        row += VL


cdef void fill_values(const Work* w, Py_ssize_t group, Py_ssize_t block, Py_ssize_t channel, const real* zeros,
                      real* strip, real* values) noexcept nogil:
    cdef Source source = input_source(w, group, zeros)
    cdef Target target
    target.to = values + channel
    target.row = w.value_row
    target.point = w.value_point
    transform_tiles(6, False, w, &source, channel, block_start(w, block), block_start(w, block + 1), strip, &target)


cdef void run_blocks(const Work* w, const Course* c, Py_ssize_t group, Py_ssize_t first_panel, Py_ssize_t last_panel,
                     const real* zeros, const real* weights, real* memory, Py_ssize_t size,
                     int threads) noexcept nogil:
    """Each thread takes blocks of tiles, from their inputs to their outputs."""
    cdef Py_ssize_t block, panel, i
    cdef Scratch s
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        s = carve(w, c, memory + threadid() * size)
        for block in prange(w.blocks, schedule="dynamic"):
            for i in range(ceil_div(w.g.channels, VL)):
                fill_values(w, group, block, i * VL, zeros, s.strip, s.values)
            for panel in range(first_panel, last_panel):
                run_panel(w, c, group, block, panel, s.values, weights + (panel - first_panel) * weights_size(w), &s)
        restore_denormals(mode)


cdef void run_panels(const Work* w, const Course* c, Py_ssize_t group, Py_ssize_t first_panel, Py_ssize_t last_panel,
                     const real* zeros, real* values, const real* weights, real* memory, Py_ssize_t size,
                     int threads) noexcept nogil:
    """The threads transform all inputs together, then take panels."""
    cdef Py_ssize_t unit, block, panel, panels = last_panel - first_panel
    cdef Scratch s
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        s = carve(w, c, memory + threadid() * size)
        for unit in prange(w.blocks * ceil_div(w.g.channels, VL), schedule="dynamic"):
            block = unit % w.blocks
            fill_values(w, group, block, unit // w.blocks * VL, zeros, s.strip, values + block * values_size(w))
        for unit in prange(w.blocks * panels, schedule="dynamic"):
            block = unit % w.blocks
            panel = unit // w.blocks
            run_panel(w, c, group, block, first_panel + panel, values + block * values_size(w),
                      weights + panel * weights_size(w), &s)
        restore_denormals(mode)


cdef void transform_panels(const Work* w, Py_ssize_t group, Py_ssize_t first, Py_ssize_t last, real* to,
                           int threads) noexcept nogil:
    cdef Py_ssize_t unit, panel, parts = ceil_div(w.g.channels, 8), channel
    for unit in prange((last - first) * parts, num_threads=threads, schedule="static"):
        panel = unit // parts
        channel = unit % parts * 8
        transform_weights(w, w.weight + group * w.g.weight_group, first + panel, channel,
                          smaller(channel + 8, w.g.channels),
                          to + panel * weights_size(w) + channel * panel_lanes(w, first + panel), w.weight_point)


cdef void run_group(const Work* w, const Course* c, Py_ssize_t group, bint prepared, const real* packed,
                    real* memory, int threads) noexcept nogil:
    cdef real* zeros = memory
    cdef real* values = zeros + zeros_size(w)
    cdef real* weights = values + (w.blocks * values_size(w) if c.shared else 0)
    cdef real* own = memory + shared_size(w, c, prepared)
    cdef const real* source = weights
    cdef Py_ssize_t first = 0, last
    memset(zeros, 0, zeros_size(w) * sizeof(real))
    while first < w.panels:
        last = smaller(first + c.portion, w.panels)
        if prepared:
            source = packed + (group * w.panels + first) * weights_size(w)
        elif not c.fused:
            transform_panels(w, group, first, last, weights, threads)
        if c.shared:
            run_panels(w, c, group, first, last, zeros, values, source, own, scratch_size(w, c), threads)
        else:
            run_blocks(w, c, group, first, last, zeros, source, own, scratch_size(w, c), threads)
        first = last


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int outputs, Py_ssize_t block_tiles, bint prepared,
                    Py_ssize_t l2, Py_ssize_t limit, int threads):
    """Bytes that `conv` needs beside its operands."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Course c = plan_course(&w, prepared, l2, limit, threads)
    return (shared_size(&w, &c, prepared) + scratch_size(&w, &c) * threads) * sizeof(real) + 64


def packed_elements(cnp.ndarray geometry, cnp.ndarray taps, int outputs):
    """Of prepared weights: at the points, and as they are, for tiles that are not finite."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, 1)
    return w.g.groups * (w.panels * weights_size(&w) + w.g.rows * w.g.channels * w.g.taps)


def pack(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray weight, cnp.ndarray to, int outputs, int threads):
    """Weights -> `to`, in the order that `conv` reads with prepared=True."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, 1)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    cdef Py_ssize_t group
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    with nogil:
        for group in range(w.g.groups):
            transform_panels(&w, group, 0, w.panels, target + group * w.panels * weights_size(&w), threads)
        memcpy(target + w.g.groups * w.panels * weights_size(&w), w.weight,
               w.g.groups * w.g.rows * w.g.channels * w.g.taps * sizeof(real))


def conv(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out,
         cnp.ndarray workspace, int outputs, Py_ssize_t block_tiles, bint prepared, Py_ssize_t l2, Py_ssize_t limit,
         int threads):
    """The equation above over `out`, by tiles of outputs x outputs; the plan has checked every argument."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps),
                             outputs + 2, outputs, block_tiles)
    cdef Course c = plan_course(&w, prepared, l2, limit, threads)
    cdef const real* packed = <const real*> cnp.PyArray_DATA(weight)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Py_ssize_t group
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.input_end = w.input + cnp.PyArray_SIZE(input)
    w.weight = packed
    if prepared:
        w.weight += w.g.groups * w.panels * weights_size(&w)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out) + w.g.out_offset
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        for group in range(w.g.groups):
            run_group(&w, &c, group, prepared, packed, <real*> memory, threads)


cdef inline void transform_part(const int points, int part, vec* column) noexcept nogil:
    if part == 0:
        input_points(points, column)
    elif part == 1:
        weight_points(points, column)
    elif part == 2:
        sum_points(points, column)
    elif part == 3 and points <= 6:
        grad_points(points, column)
    elif points <= 6:
        sum_taps(points, column)


def transform(cnp.ndarray values, int points, int part):
    """One transform of `points` rows of VL values, in place, for tests: of inputs, of taps, to outputs; 3 and 4 of
    gradients, and to those of taps."""
    cdef real* rows = <real*> cnp.PyArray_DATA(values)
    cdef vec[MOST_POINTS] column
    cdef int i
    for i in range(points):
        column[i] = vload(rows + i * VL)
    if points == 6:
        transform_part(6, part, column)
    elif points == 5:
        transform_part(5, part, column)
    elif points == 4:
        transform_part(4, part, column)
    else:
        transform_part(8, part, column)
    for i in range(points):
        vstore(rows + i * VL, column[i])
