"""The weight gradient of a convolution with taps that read one copy of the image, shifted.

    dw[g, k, c, t] = sum over n, o of grad[n, g, k, o] * in[n, g, c, o * step + t]

Channels fill the vectors: the image is copied into strips (shifted_strip.pxd) with its channels innermost, where
what a tap meets is a stretch of lanes, whichever the tap. The gradient stays where it is and is broadcast. So a
pixel is transposed once, not once a tap, and a sum needs nothing but the pixels of the output.

A piece is some rows of outputs of one image (or some columns of one row). Its sums begin at zero and are added to
those of the pieces before. Threads share out (group, channels, filters, split): the cut into pieces and splits
comes from the problem alone, splits are added in order, and the bits do not depend on the number of threads.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.gemm_micro cimport LINE
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.shifted_strip cimport fill_line
from fastconv.kernels.shifted_tile cimport ROWS, VECTORS, Tile, rows_at_once, weigh_tile
from fastconv.kernels.shifted_work cimport (
    MOST_DEPTH, Piece, Unit, Work, aligned, first_piece, grad_at, image_at, lines_of, piece_of, shape_work, totals_size,
    unit_of, units_of, vectors_of,
)
from fastconv.kernels.simd cimport (
    VL, flush_denormals, real, restore_denormals, vadd, vec, vload, vstore, vstore_first, vtranspose, vzero,
)

cdef enum:
    PARTS = 4  # stretches of units for each thread, which fetches ahead within one
    AHEAD_BYTES = 512 << 10  # of the gradient and image of a unit: larger ones are left to the prefetchers


# A thread's own memory.
cdef struct Scratch:
    real* strip
    real* totals


cdef Py_ssize_t strip_size(const Work* w) noexcept nogil:
    """The last vector of a run may reach beyond the last pixel."""
    return w.piece_images * w.lines * w.pitch + 2 * VL


cdef Scratch carve(const Work* w, char* memory) noexcept nogil:
    cdef Scratch s
    s.strip = <real*> memory
    s.totals = <real*> (memory + aligned(strip_size(w)))
    return s


cdef Py_ssize_t scratch_size(const Work* w) noexcept nogil:
    return aligned(strip_size(w)) + aligned(totals_size(w) + VL)  # whole vectors are read where a row ends


cdef Py_ssize_t parts_size(const Work* w) noexcept nogil:
    return aligned(totals_size(w)) * units_of(w) * w.splits if w.splits > 1 else 0


cdef char* lay_tables(Work* w, char* memory) noexcept nogil:
    """Lays out what all threads share; returns where it ends."""
    w.parts = <real*> memory
    memory += parts_size(w)
    w.zeros = <real*> memory
    memory += aligned(w.line_columns + VL)
    w.at = <Py_ssize_t*> memory
    w.offset = w.at + w.piece_rows * w.piece_columns
    w.lane = w.offset + vectors_of(w)
    memory = <char*> (w.lane + w.g.taps)
    return memory + (-<Py_ssize_t> memory & 63)


cdef void fill_tables(Work* w) noexcept nogil:
    cdef Py_ssize_t i, j, row, column, apart = w.pitch * (1 if w.folded else w.g.step[1])
    cdef Py_ssize_t each = 1 if w.joined else w.columns.count  # runs of a row of taps
    memset(w.zeros, 0, (w.line_columns + VL) * sizeof(real))
    for i in range(w.piece_rows):
        for j in range(w.piece_columns):
            w.at[i * w.piece_columns + j] = i * apart + j * w.g.step[2] * w.depth
    for i in range(w.runs):
        row, column = i // each, i % each
        for j in range(w.run_vectors):
            w.offset[i * w.run_vectors + j] = (row * w.rows.gap * w.pitch + column * w.columns.gap * w.depth
                                               + j * VL)
    for i in range(w.g.taps):
        row, column = i // w.columns.count, i % w.columns.count
        w.lane[i] = column * (w.depth if w.joined else w.run_vectors * VL)
        w.lane[i] += row * (w.channels if w.folded else each * w.run_vectors * VL)


cdef void list_rows(const Work* w, const Unit* u, const real* source, Py_ssize_t y,
                    const real** rows) noexcept nogil:
    """The rows of the input that a line is made of, from row y on; zeros up to a whole number of vectors."""
    cdef Py_ssize_t _r, c, depth = 0
    for _r in range(w.rows.count if w.folded else 1):
        if 0 <= y < w.g.in_size[1]:
            for c in range(u.channels):
                rows[depth + c] = source + c * w.g.in_channel + y * w.g.in_axis[1]
            for c in range(u.channels, w.channels):
                rows[depth + c] = w.zeros
        else:
            for c in range(w.channels):
                rows[depth + c] = w.zeros
        depth += w.channels
        y += w.rows.gap
    for c in range(depth, ceil_div(depth, VL) * VL):
        rows[c] = w.zeros


cdef void fill_strip(const Work* w, const Unit* u, const Piece* p, real* to) noexcept nogil:
    """The strip of the piece's first sample."""
    cdef const Geometry* g = w.g
    cdef const real* rows[MOST_DEPTH + VL]
    cdef Py_ssize_t left = p.column * g.step[2] + w.columns.first, top = p.row * g.step[1] + w.rows.first
    cdef Py_ssize_t before = smaller(larger(-left, 0), w.line_columns)
    cdef Py_ssize_t inside = larger(smaller(g.in_size[2] - left, w.line_columns) - before, 0)
    cdef Py_ssize_t lines = lines_of(w, p.rows), step = g.step[1] if w.folded else 1, line
    cdef Py_ssize_t bottom = top + (lines - 1) * step + ((w.rows.count - 1) * w.rows.gap if w.folded else 0)
    cdef const real* source = image_at(w, u, p) - top * g.in_axis[1] + before
    cdef bint whole = (source + (u.channels - 1) * g.in_channel + smaller(bottom, g.in_size[1] - 1) * g.in_axis[1]
                       + ceil_div(inside, VL) * VL <= w.input_end)
    for line in range(lines):
        list_rows(w, u, source, top + line * step, rows)
        fill_line(rows, w.depth, before, inside, w.line_columns, whole, to + line * w.pitch)


cdef void look_ahead(const Work* w, const Unit* u, const Piece* p, Py_ssize_t number, Tile* t) noexcept nogil:
    """Tile number -> its share of what comes after this image: a stretch of the gradient, or of an image."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t steps = t.images * t.pixels, reach = steps * LINE, at
    cdef Py_ssize_t grad = u.filters * g.out_row, image = u.channels * g.in_channel
    cdef Py_ssize_t grads = ceil_div(grad, reach), n = number // (grads + ceil_div(image, reach))
    t.fetched = t.grad
    t.fetch_step = 0
    if n >= p.images or (grad + image) * <Py_ssize_t> sizeof(real) > AHEAD_BYTES:
        return
    at = number % (grads + ceil_div(image, reach))
    if at < grads:
        t.fetched = grad_at(w, u, p) + n * g.out_image + at * reach
        t.fetch_step = ceil_div(smaller(grad - at * reach, reach), steps)
    else:
        at -= grads
        t.fetched = image_at(w, u, p) + n * g.in_image + at * reach
        t.fetch_step = ceil_div(smaller(image - at * reach, reach), steps)


cdef void weigh_piece(const Work* w, const Unit* u, const Piece* p, const Unit* following, const Piece* coming,
                      Py_ssize_t number, bint first, const Scratch* s) noexcept nogil:
    """Adds a piece to the totals, tile by tile: blocks of vectors, even blocks of rows."""
    cdef Py_ssize_t vectors = vectors_of(w), blocks = ceil_div(vectors, VECTORS), block, some, vector = 0, j
    cdef Py_ssize_t row_blocks, row_block, row, height
    cdef const real* grad = grad_at(w, u, p)
    cdef Tile tile
    tile.images = p.images
    tile.pixels = p.rows * p.columns
    tile.grad_image = w.g.out_image
    tile.grad_row = w.g.out_row
    tile.strip = s.strip
    tile.strip_image = w.lines * w.pitch
    tile.at = w.at
    tile.totals_row = vectors * VL
    tile.first = first
    for block in range(blocks):
        some = (vectors - vector + blocks - block - 1) // (blocks - block)
        for j in range(some):
            tile.offset[j] = w.offset[vector + j]
        row_blocks = ceil_div(u.filters, rows_at_once(some))
        for row_block in range(row_blocks):
            row = row_block * u.filters // row_blocks
            height = (row_block + 1) * u.filters // row_blocks - row
            tile.grad = grad + row * w.g.out_row
            tile.totals = s.totals + row * tile.totals_row + vector * VL
            look_ahead(w, following, coming, number, &tile)
            number += 1
            weigh_tile(<int> height, <int> some, &tile)
        vector += some


cdef void sum_unit(const Work* w, const Unit* u, const Unit* following, const Scratch* s) noexcept nogil:
    cdef Py_ssize_t first = first_piece(w, u.split), last = first_piece(w, u.split + 1), number, i, next_image
    cdef Py_ssize_t of_image = w.row_pieces * w.column_pieces
    cdef Py_ssize_t tiles = ceil_div(vectors_of(w), VECTORS) * ceil_div(u.filters, ROWS)
    cdef Piece piece, part, coming
    for number in range(first, last):
        piece = piece_of(w, number)
        part = piece
        for i in range(piece.images):
            part.n = piece.n + i
            fill_strip(w, u, &part, s.strip + i * w.lines * w.pitch)
        next_image = (number // of_image + 1) * of_image
        if next_image < last:
            coming = piece_of(w, next_image)
            weigh_piece(w, u, &piece, u, &coming, number % of_image * tiles, number == first, s)
        else:
            coming = piece_of(w, first_piece(w, following.split) // of_image * of_image)
            weigh_piece(w, u, &piece, following, &coming, number % of_image * tiles, number == first, s)


cdef inline void store_taps(const Work* w, const real* totals, Py_ssize_t tap, Py_ssize_t some,
                            Py_ssize_t channels, real* out) noexcept nogil:
    """out[c * taps + t] for VL taps at most: those of one channel side by side."""
    cdef vec[VL] block
    cdef Py_ssize_t c = 0, i
    while c < channels:
        for i in range(VL):
            block[i] = vload(totals + w.lane[tap + i] + c) if i < some else vzero()
        vtranspose(block)
        for i in range(smaller(VL, channels - c)):
            vstore_first(out + (c + i) * w.g.taps + tap, some, block[i])
        c += VL


cdef void store_filter(const Work* w, const real* totals, Py_ssize_t channels, real* out) noexcept nogil:
    """The sums of one filter, to dw in its order: channels, then taps."""
    cdef Py_ssize_t tap = 0, c, taps = w.g.taps
    while 2 * (taps - tap) >= VL and channels * 2 >= VL:
        store_taps(w, totals, tap, smaller(VL, taps - tap), channels, out)
        tap += smaller(VL, taps - tap)
    for tap in range(tap, taps):
        for c in range(channels):
            out[c * taps + tap] = totals[w.lane[tap] + c]


cdef real* target(const Work* w, const Unit* u) noexcept nogil:
    return (w.out + u.group * w.g.weight_group + u.filter * w.g.weight_row + u.channel * w.g.weight_channel)


cdef void run_units(const Work* w, Py_ssize_t first, Py_ssize_t last, char* memory) noexcept nogil:
    """A unit's totals stay in `parts` where they are to be added to those of other splits."""
    cdef Unit u, following = unit_of(w, first)
    cdef Scratch s = carve(w, memory)
    cdef Py_ssize_t number, k
    for number in range(first, last):
        u = following
        following = unit_of(w, smaller(number + 1, last - 1))
        if w.splits > 1:
            s.totals = w.parts + number * totals_size(w)
        sum_unit(w, &u, &following, &s)
        if w.splits == 1:
            for k in range(u.filters):
                store_filter(w, s.totals + k * vectors_of(w) * VL, u.channels, target(w, &u) + k * w.g.weight_row)


cdef void add_splits(const Work* w, Py_ssize_t number) noexcept nogil:
    cdef Unit u = unit_of(w, number)
    cdef Py_ssize_t size = totals_size(w), row = vectors_of(w) * VL, split, i, k
    cdef real* first = w.parts + number * size
    cdef const real* other
    for k in range(u.filters):
        for split in range(1, w.splits):
            other = first + split * units_of(w) * size
            i = 0
            while i < row:
                vstore(first + i, vadd(vload(first + i), vload(other + i)))
                i += VL
        store_filter(w, first, u.channels, target(w, &u) + k * w.g.weight_row)
        first += row


cdef void run_all(const Work* w, char* memory, int threads) noexcept nogil:
    cdef Py_ssize_t units = units_of(w), size = scratch_size(w), number
    cdef Py_ssize_t parts = smaller(units * w.splits, PARTS * threads)
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for number in prange(parts, schedule="dynamic"):
            run_units(w, number * units * w.splits // parts, (number + 1) * units * w.splits // parts,
                      memory + threadid() * size)
        if w.splits > 1:
            for number in prange(units, schedule="static"):
                add_splits(w, number)
        restore_denormals(mode)


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int threads):
    """Bytes that `weight_grad` needs beside its operands."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps))
    cdef char* start = NULL
    return lay_tables(&w, start) - start + scratch_size(&w) * threads + 64


def weight_grad(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray grad_output,
                cnp.ndarray out, cnp.ndarray workspace, int threads):
    """The equation above; the plan has checked every argument."""
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps))
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.input_end = w.input + cnp.PyArray_SIZE(input)
    w.grad_output = <const real*> cnp.PyArray_DATA(grad_output)
    w.out = <real*> cnp.PyArray_DATA(out)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        memory = lay_tables(&w, memory)
        fill_tables(&w)
        run_all(&w, memory, threads)
