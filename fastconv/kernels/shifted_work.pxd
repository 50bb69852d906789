"""A weight gradient by shifted reading, cut: lanes and lines of strips, pieces of the sum, units of the result.

All of it follows from the problem alone, so that the bits do not depend on the number of threads.
"""

from fastconv.kernels.depthwise_taps cimport Comb, comb, row_taps
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.shifted_tile cimport ROWS
from fastconv.kernels.simd cimport VL, real

# Measured on a Xeon with 48 KiB of first-level and 2 MiB of second-level cache, AVX-512 and AVX2.
cdef enum:
    MOST_DEPTH = 64  # lanes of a pixel of a folded line
    MOST_CHANNELS = 32  # of a unit: pieces of more channels hold too few pixels (16 to 64 tried: 5 to 25%)
    STRIP_BYTES = 48 << 10  # of a piece ...
    FOLDED_BYTES = 32 << 10  # ... and of one whose lines are folded, and share nothing
    WIDEST_BYTES = 64 << 10  # of the strip for one row of outputs: beyond it rows are cut
    TOTALS_BYTES = 128 << 10  # of a unit: they stay in the second-level cache
    SPLIT_UNITS = 16  # independent sums offered to threads ...
    SPLIT_PIXELS = 512  # ... of at least so many pixels
    PARTS_BYTES = 4 << 20  # of the sums of all splits


# The problem of one call, cut.
cdef struct Work:
    const Geometry* g
    Comb rows                    # of taps
    Comb columns
    bint folded
    bint joined                  # taps along the width follow each other without a gap
    Py_ssize_t channels          # of a unit
    Py_ssize_t channel_blocks
    Py_ssize_t filters
    Py_ssize_t filter_blocks
    Py_ssize_t depth
    Py_ssize_t piece_images
    Py_ssize_t image_pieces
    Py_ssize_t piece_rows
    Py_ssize_t row_pieces
    Py_ssize_t piece_columns
    Py_ssize_t column_pieces
    Py_ssize_t lines             # of a strip
    Py_ssize_t line_columns
    Py_ssize_t pitch
    Py_ssize_t runs              # stretches of lanes that a pixel of the output meets
    Py_ssize_t run_vectors
    Py_ssize_t splits
    const real* input
    const real* input_end
    const real* grad_output
    real* out
    real* parts                  # [split][unit][totals], where there are splits
    real* zeros                  # a row of the padding
    Py_ssize_t* at               # pixel of a piece -> what tap 0 meets in the strip
    Py_ssize_t* offset           # vector -> its place beside that
    Py_ssize_t* lane             # tap -> where its first channel stands in a row of the totals


# A block of the result: Unit number -> split, group, block of filters, block of channels.
cdef struct Unit:
    Py_ssize_t group
    Py_ssize_t filter
    Py_ssize_t filters
    Py_ssize_t channel
    Py_ssize_t channels
    Py_ssize_t split


# Outputs of some samples, rows, columns. Piece number -> samples, rows, columns.
cdef struct Piece:
    Py_ssize_t n
    Py_ssize_t images
    Py_ssize_t row
    Py_ssize_t rows
    Py_ssize_t column
    Py_ssize_t columns


cdef inline Py_ssize_t aligned(Py_ssize_t elements) noexcept nogil:
    """Bytes of so many elements, in whole lines of the cache."""
    return ceil_div(elements * <Py_ssize_t> sizeof(real), 64) * 64


cdef inline Py_ssize_t vectors_of(const Work* w) noexcept nogil:
    return w.runs * w.run_vectors


cdef inline Py_ssize_t totals_size(const Work* w) noexcept nogil:
    return w.filters * vectors_of(w) * VL


cdef inline Py_ssize_t units_of(const Work* w) noexcept nogil:
    return w.g.groups * w.filter_blocks * w.channel_blocks


cdef inline Py_ssize_t pieces_of(const Work* w) noexcept nogil:
    return w.image_pieces * w.row_pieces * w.column_pieces


cdef inline Py_ssize_t first_piece(const Work* w, Py_ssize_t split) noexcept nogil:
    return split * pieces_of(w) // w.splits


cdef inline Py_ssize_t lines_of(const Work* w, Py_ssize_t rows) noexcept nogil:
    """Of the strip for so many rows of outputs."""
    return rows if w.folded else (rows - 1) * w.g.step[1] + (w.rows.count - 1) * w.rows.gap + 1


cdef inline void shape_lanes(Work* w, bint folded) noexcept nogil:
    w.folded = folded
    w.depth = w.channels * (w.rows.count if folded else 1)
    w.joined = w.columns.gap == 1 or w.columns.count == 1
    w.runs = (1 if folded else w.rows.count) * (1 if w.joined else w.columns.count)
    w.run_vectors = ceil_div(w.depth * (w.columns.count if w.joined else 1), VL)


cdef inline double cost(const Work* w) noexcept nogil:
    """Cycles for a pixel of the output: to sum, and to transpose what it meets (counts of instructions)."""
    cdef double fill = w.depth * 0.25 if w.depth <= 8 and w.depth & (w.depth - 1) == 0 else ceil_div(w.depth, VL) * 5
    fill *= w.g.step[2] * (1 if w.folded else w.g.step[1])
    return w.filters * vectors_of(w) / 2 + fill


cdef inline void shape_lines(Work* w, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    """Strips for pieces of so many rows and columns of outputs."""
    w.piece_rows = rows
    w.piece_columns = columns
    w.lines = lines_of(w, rows)
    w.line_columns = (columns - 1) * w.g.step[2] + (w.columns.count - 1) * w.columns.gap + 1
    w.pitch = ceil_div(w.line_columns * w.depth + VL, VL) * VL


cdef inline void shape_pieces(Work* w) noexcept nogil:
    cdef Py_ssize_t height = w.g.out_size[1], width = w.g.out_size[2], rows = 1
    cdef Py_ssize_t room = (FOLDED_BYTES if w.folded else STRIP_BYTES) // <Py_ssize_t> sizeof(real)
    shape_lines(w, 1, width)
    while w.lines * w.pitch * <Py_ssize_t> sizeof(real) > WIDEST_BYTES and w.piece_columns > VL:
        shape_lines(w, 1, larger(w.piece_columns // 2, VL))
    if w.piece_columns == width:
        while rows < height and w.lines * w.pitch <= room:
            rows += 1
            shape_lines(w, rows, width)
        if w.lines * w.pitch > room:
            rows = larger(rows - 1, 1)
        rows = ceil_div(height, ceil_div(height, rows))
        shape_lines(w, rows, width)
    w.row_pieces = ceil_div(height, w.piece_rows)
    w.column_pieces = ceil_div(width, w.piece_columns)
    w.piece_images = 1
    if w.row_pieces * w.column_pieces == 1:
        w.piece_images = larger(room // (w.lines * w.pitch), 1)
    w.piece_images = smaller(w.piece_images, larger(w.g.batch, 1))
    w.image_pieces = ceil_div(w.g.batch, w.piece_images)


cdef inline Work shape_work(const Geometry* g, const Tap* taps) noexcept nogil:
    cdef Work w
    cdef Py_ssize_t height = row_taps(g, taps), row_bytes
    cdef double unfolded
    w.g = g
    w.rows = comb(taps, height, g.taps // height, 1)
    w.columns = comb(taps, g.taps // height, 1, 2)
    w.filters = g.rows
    w.channel_blocks = ceil_div(g.channels, MOST_CHANNELS)
    w.channels = ceil_div(g.channels, w.channel_blocks)
    if w.channel_blocks > 1:
        w.channels = ceil_div(w.channels, VL) * VL
        w.channel_blocks = ceil_div(g.channels, w.channels)
    shape_lanes(&w, False)
    unfolded = cost(&w)
    if w.channel_blocks == 1 and w.channels * w.rows.count <= MOST_DEPTH and w.rows.count > 1:
        shape_lanes(&w, True)
        if cost(&w) >= unfolded:
            shape_lanes(&w, False)
    row_bytes = vectors_of(&w) * VL * <Py_ssize_t> sizeof(real)
    w.filter_blocks = ceil_div(g.rows, larger(TOTALS_BYTES // row_bytes // ROWS, 1) * ROWS)
    w.filters = ceil_div(g.rows, w.filter_blocks)
    w.filter_blocks = ceil_div(g.rows, w.filters)
    shape_pieces(&w)
    w.splits = smaller(ceil_div(SPLIT_UNITS, units_of(&w)), pieces_of(&w))
    w.splits = smaller(w.splits, g.batch * g.out_size[1] * g.out_size[2] // SPLIT_PIXELS)
    w.splits = smaller(w.splits, PARTS_BYTES // aligned(totals_size(&w)) // units_of(&w))
    w.splits = larger(w.splits, 1)
    return w


cdef inline Unit unit_of(const Work* w, Py_ssize_t number) noexcept nogil:
    cdef Unit u
    u.channel = number % w.channel_blocks * w.channels
    u.channels = smaller(w.channels, w.g.channels - u.channel)
    number //= w.channel_blocks
    u.filter = number % w.filter_blocks * w.filters
    u.filters = smaller(w.filters, w.g.rows - u.filter)
    number //= w.filter_blocks
    u.group = number % w.g.groups
    u.split = number // w.g.groups
    return u


cdef inline Piece piece_of(const Work* w, Py_ssize_t number) noexcept nogil:
    cdef Piece p
    p.column = number % w.column_pieces * w.piece_columns
    p.columns = smaller(w.piece_columns, w.g.out_size[2] - p.column)
    number //= w.column_pieces
    p.row = number % w.row_pieces * w.piece_rows
    p.rows = smaller(w.piece_rows, w.g.out_size[1] - p.row)
    p.n = number // w.row_pieces * w.piece_images
    p.images = smaller(w.piece_images, w.g.batch - p.n)
    return p


cdef inline const real* image_at(const Work* w, const Unit* u, const Piece* p) noexcept nogil:
    """The first element of the input that a strip may hold, were it inside."""
    return (w.input + p.n * w.g.in_image + u.group * w.g.in_group + u.channel * w.g.in_channel
            + (p.row * w.g.step[1] + w.rows.first) * w.g.in_axis[1] + p.column * w.g.step[2] + w.columns.first)


cdef inline const real* grad_at(const Work* w, const Unit* u, const Piece* p) noexcept nogil:
    return (w.grad_output + p.n * w.g.out_image + u.group * w.g.out_group + u.filter * w.g.out_row
            + p.row * w.g.out_axis[1] + p.column)
