"""What all parts of a Winograd convolution know: how tiles lie, and how memory is laid out.

A tile is `outputs` x `outputs` outputs of one plane; points x points inputs reach it. Tiles are numbered row by
row, image after image. Operands between the transforms, with the channels across the lanes:

    values[tile][point][channel]          of the inputs of a block of tiles
    weights[panel][point][channel][lane]  NR output channels a panel, the last one VL or NR
    products[tile][point][lane]           of one panel

A tile's points lie together: spread over as many pages as there are points they would not fit the first-level
TLB. Tiles lie an odd number of cache lines apart: rows of a register tile would else fall into few sets.
"""

from fastconv.kernels.gemm_micro cimport LINE
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport NR, VL, real

cdef enum:
    TAPS = 9


cdef struct Work:
    const Geometry* g
    int points                   # along an axis
    int outputs
    Py_ssize_t[TAPS] tap          # where the weight of each tap lies, in the order of the input
    Py_ssize_t first_row         # of the input that the first tile meets, counted from the image's
    Py_ssize_t first_column
    Py_ssize_t tile_rows         # of a plane
    Py_ssize_t tile_columns
    Py_ssize_t tiles             # of the batch
    Py_ssize_t block_tiles       # at most, of a block
    Py_ssize_t blocks
    Py_ssize_t panels            # of output channels of a group
    Py_ssize_t value_row         # strides: of a tile
    Py_ssize_t value_point
    Py_ssize_t weight_point
    Py_ssize_t product_row
    const real* input
    const real* input_end
    const real* weight
    const real* bias             # or NULL
    real* out


# Tiles of one row of tiles.
cdef struct Run:
    Py_ssize_t image
    Py_ssize_t row               # of tiles
    Py_ssize_t column
    Py_ssize_t count


cdef inline Py_ssize_t odd_lines(Py_ssize_t size) noexcept nogil:
    """At least `size` elements, an odd number of cache lines."""
    return (ceil_div(size, LINE) | 1) * LINE


cdef inline void order_taps(const Tap* taps, Py_ssize_t count, Work* w) noexcept nogil:
    cdef Py_ssize_t t
    w.first_row = taps[0].offset[1]
    w.first_column = taps[0].offset[2]
    for t in range(1, count):
        w.first_row = smaller(w.first_row, taps[t].offset[1])
        w.first_column = smaller(w.first_column, taps[t].offset[2])
    for t in range(count):
        w.tap[(taps[t].offset[1] - w.first_row) * 3 + taps[t].offset[2] - w.first_column] = taps[t].weight


cdef inline Work shape_work(const Geometry* g, const Tap* taps, int points, int outputs,
                            Py_ssize_t block_tiles) noexcept nogil:
    cdef Work w
    w.g = g
    w.points = points
    w.outputs = outputs
    order_taps(taps, g.taps, &w)
    w.tile_rows = ceil_div(g.out_size[1], outputs)
    w.tile_columns = ceil_div(g.out_size[2], outputs)
    w.tiles = g.batch * w.tile_rows * w.tile_columns
    w.blocks = ceil_div(w.tiles, block_tiles)
    w.block_tiles = ceil_div(w.tiles, w.blocks)
    w.panels = ceil_div(g.rows, NR)
    w.value_point = ceil_div(g.channels, VL) * VL
    w.value_row = odd_lines(points * points * w.value_point)
    w.weight_point = odd_lines(g.channels * NR)
    w.product_row = odd_lines(points * points * NR)
    return w


cdef inline Py_ssize_t block_start(const Work* w, Py_ssize_t block) noexcept nogil:
    return block * w.tiles // w.blocks


cdef inline Run run_at(const Work* w, Py_ssize_t tile, Py_ssize_t last) noexcept nogil:
    """The run that begins with a tile, and ends before `last` at the latest."""
    cdef Run r
    cdef Py_ssize_t row = tile // w.tile_columns
    r.column = tile % w.tile_columns
    r.row = row % w.tile_rows
    r.image = row // w.tile_rows
    r.count = smaller(w.tile_columns - r.column, last - tile)
    return r


cdef inline Py_ssize_t panel_lanes(const Work* w, Py_ssize_t panel) noexcept nogil:
    return NR if w.g.rows - panel * NR > VL else VL


cdef inline Py_ssize_t values_size(const Work* w) noexcept nogil:
    """Of one block."""
    return w.block_tiles * w.value_row


cdef inline Py_ssize_t weights_size(const Work* w) noexcept nogil:
    """Of one panel."""
    return w.points * w.points * w.weight_point


cdef inline Py_ssize_t products_size(const Work* w) noexcept nogil:
    return w.block_tiles * w.product_row


cdef inline Py_ssize_t longest_run(const Work* w) noexcept nogil:
    return smaller(w.tile_columns, w.block_tiles)


cdef inline Py_ssize_t line_size(const Work* w) noexcept nogil:
    """A line of the input that a run meets, VL channels a pixel."""
    return (longest_run(w) * w.outputs + w.points - w.outputs) * VL


cdef inline Py_ssize_t results_size(const Work* w) noexcept nogil:
    """Outputs of a run, VL channels a pixel; whole vectors of pixels are read."""
    return (longest_run(w) * w.outputs * w.outputs + VL) * VL


cdef inline Py_ssize_t zeros_size(const Work* w) noexcept nogil:
    """A line of one channel, which stands for channels that are missing."""
    return odd_lines(line_size(w) // VL + VL)
