"""The gradient of a convolution's weights: a matrix product whose long axis is the pixels.

    dw[k, i] = sum over p of dy[k, p] * im2col[i, p],   i over channels and taps

Both factors have the pixels p side by side. One of them, `left`, is broadcast and needs no packing
(im2col rows are copied where they do not lie in the image as they are); the other, `right`, is
transposed into panels of NR columns. Either may be the gradient: the plan takes the cheaper.

The pixels are cut into chunks, and the chunks into `splits` of equal number, both by the problem
alone. A split sums its chunks in order; splits are added in order at the end. Threads share out
(split, block of left rows, block of right rows), so the bits do not depend on their number.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.gemm_micro cimport ROWS, Ahead, Tile, run_rows
from fastconv.kernels.gemm_pack cimport (
    Run, ceil_div, larger, list_runs, pack_pixels, panel_width, plane_size, smaller,
)
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    NR, VL, flush_denormals, real, restore_denormals, vadd, vec, vload, vload_first, vstore,
    vstore_first, vsum, vtranspose, vzero,
)


# One factor: rows of channels times taps, along the pixels of the problem. `whole` rows lie in
# memory as the product wants them.
cdef struct Factor:
    const Geometry* geometry
    const Tap* taps
    const real* data
    bint whole


# The problem of one group, cut.
cdef struct Work:
    Factor left
    Factor right
    real* target                 # dw, or the partial sums of the splits
    Py_ssize_t target_left       # strides of the target: left row, right row, group, split
    Py_ssize_t target_right
    Py_ssize_t target_group
    Py_ssize_t target_split
    Py_ssize_t segments          # stretches of pixels, and their chunks
    Py_ssize_t segment_pixels
    Py_ssize_t chunks
    Py_ssize_t splits
    Py_ssize_t left_blocks
    Py_ssize_t right_blocks


# What a thread holds while it works on one unit.
cdef struct Scratch:
    real* panels
    real* left
    real* right
    real* sums
    Run* runs


cdef Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef Py_ssize_t rows_of(const Factor* f) noexcept nogil:
    return f.geometry.channels * f.geometry.taps


cdef Py_ssize_t block_channels(const Factor* f, Py_ssize_t blocks) noexcept nogil:
    """Channels of the largest of `blocks` even blocks."""
    return ceil_div(f.geometry.channels, blocks)


cdef Py_ssize_t chunk_pixels(const Work* w) noexcept nogil:
    return ceil_div(w.segment_pixels, w.chunks)


cdef Py_ssize_t least_blocks(const Factor* f, Py_ssize_t rows) noexcept nogil:
    """Blocks of whole channels with at most `rows` rows each, where a channel allows it."""
    return ceil_div(f.geometry.channels, larger(rows // f.geometry.taps, 1))


cdef void cut(Work* w, Py_ssize_t threads) noexcept nogil:
    """Blocks with the least work on the busiest thread. In units of one multiply-add of a vector pair:
    a transposed element costs 0.35 cycles, a copied one 0.12 (from counts of instructions, not timed)."""
    cdef Py_ssize_t limit = w.left.geometry.row_block
    cdef Py_ssize_t least_left = least_blocks(&w.left, limit), least_right = least_blocks(&w.right, limit)
    cdef Py_ssize_t left, right, units, rows, columns
    cdef double cost, best = -1
    for left in range(least_left, smaller(w.left.geometry.channels, least_left + threads) + 1):
        for right in range(least_right, smaller(w.right.geometry.channels, least_right + threads) + 1):
            units = ceil_div(w.left.geometry.groups * left * right * w.splits, threads)
            rows = block_channels(&w.left, left) * w.left.geometry.taps
            columns = ceil_div(block_channels(&w.right, right) * w.right.geometry.taps, VL) * VL
            cost = units * (rows * <double> columns / (2 * VL) + 0.35 * columns
                            + (0 if w.left.whole else 0.12 * rows)
                            + (0 if w.right.whole else 0.12 * columns))
            if best < 0 or cost < best:
                best = cost
                w.left_blocks = left
                w.right_blocks = right


cdef Py_ssize_t scratch_size(const Work* w, Scratch* s, char* memory) noexcept nogil:
    """Lays a thread's scratch out from `memory` on; returns its bytes."""
    cdef Py_ssize_t pixels = chunk_pixels(w), size = 0
    cdef Py_ssize_t left = block_channels(&w.left, w.left_blocks) * w.left.geometry.taps
    cdef Py_ssize_t right = block_channels(&w.right, w.right_blocks) * w.right.geometry.taps
    cdef Py_ssize_t columns = ceil_div(right, NR) * NR
    s.panels = <real*> memory
    size += aligned(columns * pixels * <Py_ssize_t> sizeof(real))
    s.sums = <real*> (memory + size)
    size += aligned(left * columns * <Py_ssize_t> sizeof(real))
    s.left = <real*> (memory + size)
    if not w.left.whole:
        size += aligned(left * pixels * <Py_ssize_t> sizeof(real))
    s.right = <real*> (memory + size)
    if not w.right.whole:
        size += aligned(right * pixels * <Py_ssize_t> sizeof(real))
    s.runs = <Run*> (memory + size)
    return size + aligned(pixels * <Py_ssize_t> sizeof(Run))


cdef void copy_rows(const Factor* f, Py_ssize_t group, Py_ssize_t channel, Py_ssize_t channels,
                    Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t stride, real* to, Run* runs) noexcept nogil:
    """im2col rows of whole channels, one after the other: a single panel as wide as the chunk."""
    cdef const Geometry* g = f.geometry
    cdef const real* image = f.data + group * g.in_group
    cdef Py_ssize_t count = 0, done = 0, part, r, i
    # list_runs breaks at NR columns; here a panel is a row, so each stretch of NR goes where it belongs.
    while done < pixels:
        part = smaller(NR, pixels - done)
        r = list_runs(g, image, pixel + done, pixel + done + part, to + done, 0, runs + count)
        for i in range(count, count + r):
            runs[i].width = stride
        count += r
        done += part
    pack_pixels(g, f.taps, channel, channels, runs, count)


cdef const real* rows_at(const Factor* f, Py_ssize_t group, Py_ssize_t channel, Py_ssize_t channels,
                         Py_ssize_t pixel, Py_ssize_t pixels, real* copy, Run* runs, Py_ssize_t* stride) noexcept nogil:
    """Rows of a block of channels for one chunk: in place, or copied. Sets their stride."""
    cdef const Geometry* g = f.geometry
    if f.whole:
        stride[0] = g.in_channel
        return (f.data + group * g.in_group + pixel // plane_size(g) * g.in_image
                + channel * g.in_channel + pixel % plane_size(g))
    stride[0] = pixels
    copy_rows(f, group, channel, channels, pixel, pixels, pixels, copy, runs)
    return copy


cdef void transpose_block(const real* source, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t columns,
                          real* to, Py_ssize_t to_stride) noexcept nogil:
    """to[j, i] = source[i, j] for i < rows <= VL, j < columns <= VL; to[j, i] = 0 for rows <= i < VL."""
    cdef vec[VL] block
    cdef Py_ssize_t i
    if rows == VL and columns == VL:
        for i in range(VL):
            block[i] = vload(source + i * stride)
        vtranspose(block)
        for i in range(VL):
            vstore(to + i * to_stride, block[i])
        return
    for i in range(VL):
        block[i] = vload_first(source + i * stride, columns) if i < rows else vzero()
    vtranspose(block)
    for i in range(columns):
        vstore(to + i * to_stride, block[i])


cdef void pack_transposed(const real* source, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t pixels,
                          real* panels) noexcept nogil:
    """Rows along the pixels -> panels [pixel][NR columns], the last one of VL or NR columns."""
    cdef Py_ssize_t row = 0, pixel, width, lane
    cdef real* panel = panels
    while row < rows:
        width = panel_width(rows - row)
        lane = 0
        while lane < width:
            pixel = 0
            while pixel < pixels:
                transpose_block(source + (row + lane) * stride + pixel, stride,
                                smaller(VL, larger(rows - row - lane, 0)), smaller(VL, pixels - pixel),
                                panel + pixel * width + lane, width)
                pixel += VL
            lane += VL
        panel += width * pixels
        row += width


cdef void multiply(const real* left, Py_ssize_t stride, Py_ssize_t rows, real* panels, Py_ssize_t columns,
                   Py_ssize_t pixels, real* sums, Py_ssize_t sums_stride, bint first) noexcept nogil:
    """sums[i, j] (+)= sum over the chunk of left[i, p] * panels[p, j], in even blocks of at most MR rows."""
    cdef Tile tile
    cdef Ahead ahead
    cdef Py_ssize_t column = 0, width
    memset(&ahead, 0, sizeof(Ahead))
    ahead.line = panels
    tile.depth = pixels
    tile.a_row = stride
    tile.a_step = 1
    tile.bias = NULL
    tile.image = NULL
    tile.offsets = NULL
    tile.ahead = &ahead
    tile.relu = tile.stream = False
    tile.start_row = tile.out_row = sums_stride
    tile.b = panels
    while column < columns:
        width = panel_width(columns - column)
        tile.columns = width
        tile.a = left
        tile.out = sums + column
        tile.start = NULL if first else tile.out
        run_rows(ROWS, rows, stride, 2 if width == NR else 1, &tile)
        tile.b += width * pixels
        column += width


cdef void store_sums(const real* sums, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t columns,
                     real* to, Py_ssize_t to_left, Py_ssize_t to_right) noexcept nogil:
    """to[i * to_left + j * to_right] = sums[i, j], where one of the two strides is 1."""
    cdef vec[VL] block
    cdef Py_ssize_t i, j, k, height
    if to_right == 1:
        for i in range(rows):
            j = 0
            while j + VL <= columns:
                vstore(to + i * to_left + j, vload(sums + i * stride + j))
                j += VL
            if j < columns:
                vstore_first(to + i * to_left + j, columns - j, vload(sums + i * stride + j))
        return
    i = 0
    while i < rows:
        height = smaller(VL, rows - i)
        j = 0
        while j < columns:
            for k in range(VL):
                block[k] = vload(sums + (i + k) * stride + j) if k < height else vzero()
            vtranspose(block)
            for k in range(smaller(VL, columns - j)):
                vstore_first(to + (j + k) * to_right + i, height, block[k])
            j += VL
        i += VL


cdef void run_unit(const Work* w, Py_ssize_t unit, const Scratch* s) noexcept nogil:
    """Unit number -> group, split, block of right rows, block of left rows."""
    cdef Py_ssize_t left = unit % w.left_blocks
    cdef Py_ssize_t right = unit // w.left_blocks % w.right_blocks
    cdef Py_ssize_t split = unit // (w.left_blocks * w.right_blocks) % w.splits
    cdef Py_ssize_t group = unit // (w.left_blocks * w.right_blocks * w.splits)
    cdef Py_ssize_t left_first = left * w.left.geometry.channels // w.left_blocks
    cdef Py_ssize_t left_count = (left + 1) * w.left.geometry.channels // w.left_blocks - left_first
    cdef Py_ssize_t right_first = right * w.right.geometry.channels // w.right_blocks
    cdef Py_ssize_t right_count = (right + 1) * w.right.geometry.channels // w.right_blocks - right_first
    cdef Py_ssize_t rows = left_count * w.left.geometry.taps, columns = right_count * w.right.geometry.taps
    cdef Py_ssize_t sums_stride = ceil_div(columns, NR) * NR
    cdef Py_ssize_t total = w.segments * w.chunks
    cdef Py_ssize_t first = split * total // w.splits, last = (split + 1) * total // w.splits
    cdef Py_ssize_t number, pixel, pixels, base, left_stride = 0, right_stride = 0
    cdef const real* left_rows
    cdef const real* right_rows
    if rows == 0 or columns == 0:
        return
    for number in range(first, last):
        base = number // w.chunks * w.segment_pixels
        pixel = number % w.chunks * w.segment_pixels // w.chunks
        pixels = (number % w.chunks + 1) * w.segment_pixels // w.chunks - pixel
        right_rows = rows_at(&w.right, group, right_first, right_count, base + pixel, pixels,
                             s.right, s.runs, &right_stride)
        pack_transposed(right_rows, right_stride, columns, pixels, s.panels)
        left_rows = rows_at(&w.left, group, left_first, left_count, base + pixel, pixels,
                            s.left, s.runs, &left_stride)
        multiply(left_rows, left_stride, rows, s.panels, columns, pixels, s.sums, sums_stride, number == first)
    if first == last:
        memset(s.sums, 0, rows * sums_stride * sizeof(real))
    store_sums(s.sums, sums_stride, rows, columns,
               w.target + group * w.target_group + split * w.target_split
               + left_first * w.left.geometry.taps * w.target_left
               + right_first * w.right.geometry.taps * w.target_right,
               w.target_left, w.target_right)


cdef void run_all(const Work* w, int threads, char* memory) noexcept nogil:
    cdef Scratch s
    cdef Py_ssize_t units = w.left.geometry.groups * w.splits * w.left_blocks * w.right_blocks, unit
    cdef Py_ssize_t size = scratch_size(w, &s, memory)
    cdef unsigned int mode = 0
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for unit in range(units):
            run_unit(w, unit, &s)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="dynamic"):
            run_in(w, unit, memory + threadid() * size)
        restore_denormals(mode)


cdef void run_in(const Work* w, Py_ssize_t unit, char* memory) noexcept nogil:
    cdef Scratch s
    scratch_size(w, &s, memory)
    run_unit(w, unit, &s)


cdef void add_splits(const real* parts, Py_ssize_t splits, Py_ssize_t count, real* to, int threads) noexcept nogil:
    cdef Py_ssize_t blocks = ceil_div(count, 1024), block
    for block in prange(blocks, num_threads=threads):
        add_stretch(parts + block * 1024, splits, count, smaller(1024, count - block * 1024), to + block * 1024)


cdef void add_stretch(const real* parts, Py_ssize_t splits, Py_ssize_t stride, Py_ssize_t count,
                      real* to) noexcept nogil:
    cdef Py_ssize_t i = 0, split
    cdef vec total
    while i < count:
        total = vload_first(parts + i, smaller(VL, count - i))
        for split in range(1, splits):
            total = vadd(total, vload_first(parts + split * stride + i, smaller(VL, count - i)))
        vstore_first(to + i, smaller(VL, count - i), total)
        i += VL


cdef Work describe(cnp.ndarray image, cnp.ndarray image_taps, cnp.ndarray grad, cnp.ndarray grad_taps,
                   bint grad_is_left, bint image_whole, bint grad_whole, Py_ssize_t segments, Py_ssize_t chunks,
                   Py_ssize_t splits, int threads):
    cdef Work w
    cdef Factor x, g
    x.geometry = <const Geometry*> cnp.PyArray_DATA(image)
    x.taps = <const Tap*> cnp.PyArray_DATA(image_taps)
    x.whole = image_whole
    x.data = g.data = NULL
    g.geometry = <const Geometry*> cnp.PyArray_DATA(grad)
    g.taps = <const Tap*> cnp.PyArray_DATA(grad_taps)
    g.whole = grad_whole
    w.left = g if grad_is_left else x
    w.right = x if grad_is_left else g
    w.segments = segments
    w.segment_pixels = x.geometry.batch * plane_size(x.geometry) // larger(segments, 1)
    w.chunks = chunks
    w.splits = splits
    w.target_left = rows_of(&x) if grad_is_left else 1
    w.target_right = 1 if grad_is_left else rows_of(&x)
    w.target_group = rows_of(&x) * rows_of(&g)
    w.target_split = w.target_group * x.geometry.groups
    w.target = NULL
    cut(&w, threads)
    return w


def workspace_bytes(cnp.ndarray image, cnp.ndarray image_taps, cnp.ndarray grad, cnp.ndarray grad_taps,
                    bint grad_is_left, bint image_whole, bint grad_whole, Py_ssize_t segments, Py_ssize_t chunks,
                    Py_ssize_t splits, int threads):
    """Bytes that `weight_grad` needs beside its operands."""
    cdef Work w = describe(image, image_taps, grad, grad_taps, grad_is_left, image_whole, grad_whole,
                           segments, chunks, splits, threads)
    cdef Scratch s
    cdef Py_ssize_t parts = w.target_split * splits * <Py_ssize_t> sizeof(real) if splits > 1 else 0
    return scratch_size(&w, &s, NULL) * threads + aligned(parts) + 64


def weight_grad(cnp.ndarray image, cnp.ndarray image_taps, cnp.ndarray grad, cnp.ndarray grad_taps,
                bint grad_is_left, bint image_whole, bint grad_whole, Py_ssize_t segments, Py_ssize_t chunks,
                Py_ssize_t splits, cnp.ndarray input, cnp.ndarray grad_output, cnp.ndarray out,
                cnp.ndarray workspace, int threads):
    """The equation above; the plan has checked every argument."""
    cdef Work w = describe(image, image_taps, grad, grad_taps, grad_is_left, image_whole, grad_whole,
                           segments, chunks, splits, threads)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef real* target = <real*> cnp.PyArray_DATA(out)
    if grad_is_left:
        w.left.data = <const real*> cnp.PyArray_DATA(grad_output)
        w.right.data = <const real*> cnp.PyArray_DATA(input)
    else:
        w.left.data = <const real*> cnp.PyArray_DATA(input)
        w.right.data = <const real*> cnp.PyArray_DATA(grad_output)
    memory += -<Py_ssize_t> memory & 63
    w.target = target
    with nogil:
        if splits > 1:
            w.target = <real*> memory
            memory += aligned(w.target_split * splits * <Py_ssize_t> sizeof(real))
        run_all(&w, threads, memory)
        if splits > 1:
            add_splits(w.target, splits, w.target_split, target, threads)


cdef real sum_stretch(const real* values, Py_ssize_t count) noexcept nogil:
    """Four running vectors: short chains, and a rounding error that grows with a quarter of the terms."""
    cdef vec a = vzero(), b = vzero(), c = vzero(), d = vzero()
    cdef Py_ssize_t i = 0
    while i + 4 * VL <= count:
        a = vadd(a, vload(values + i))
        b = vadd(b, vload(values + i + VL))
        c = vadd(c, vload(values + i + 2 * VL))
        d = vadd(d, vload(values + i + 3 * VL))
        i += 4 * VL
    while i < count:
        a = vadd(a, vload_first(values + i, smaller(VL, count - i)))
        i += VL
    return vsum(vadd(vadd(a, b), vadd(c, d)))


cdef void sum_channel(const real* grad, Py_ssize_t images, Py_ssize_t image, Py_ssize_t pixels,
                      real* to) noexcept nogil:
    cdef Py_ssize_t n
    cdef double total = 0
    for n in range(images):
        total += sum_stretch(grad + n * image, pixels)
    to[0] = <real> total


def bias_grad(cnp.ndarray grad_output, cnp.ndarray out, Py_ssize_t images, Py_ssize_t pixels, int threads):
    """out[k] = sum over n, p of grad_output[n, k, p]."""
    cdef const real* grad = <const real*> cnp.PyArray_DATA(grad_output)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t channels = cnp.PyArray_SIZE(out), k
    for k in prange(channels, num_threads=threads, nogil=True):
        sum_channel(grad + k * pixels, images, channels * pixels, pixels, to + k)
