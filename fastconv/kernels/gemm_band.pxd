"""Bands: the input rows that a tile of whole output rows needs, kept once instead of once a tap.

A band holds, for some channels, the rows of the input from the first tap of the tile's first output row
to the last tap of its last. Each row is padded with the zeros around the image, and split into `step`
phases, so that what one tap reads for consecutive outputs lies side by side:

    band[c, row, q, j] = in[c, top + row, left + q + step * j]

The element that tap (h, w) meets at output (y, x) is then at the panel's start plus offset[c, tap]:

    start = band + y * step_h * step_w * length + x        (y counted from the tile's first row)
    offset = ((c * rows + h - top_offset) * step_w + (w - left_offset) % step_w) * length
             + (w - left_offset) // step_w
"""

from fastconv.kernels.gemm_pack cimport (
    ceil_div, copy_stepped, fill_zero, larger, smaller,
)
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport NR, real


cdef struct Band:
    Py_ssize_t top               # smallest offset of a tap along h, and along w
    Py_ssize_t left
    Py_ssize_t rows              # input rows of a full tile
    Py_ssize_t phases            # step along w
    Py_ssize_t length            # of a phase of a row, with room for whole panels


cdef inline Band shape_band(const Geometry* g, const Tap* taps, Py_ssize_t tile_rows) noexcept nogil:
    cdef Band b
    cdef Py_ssize_t bottom = taps[0].offset[1], right = taps[0].offset[2], t
    b.top = bottom
    b.left = right
    for t in range(g.taps):
        b.top = smaller(b.top, taps[t].offset[1])
        b.left = smaller(b.left, taps[t].offset[2])
        bottom = larger(bottom, taps[t].offset[1])
        right = larger(right, taps[t].offset[2])
    b.rows = (tile_rows - 1) * g.step[1] + bottom - b.top + 1
    b.phases = g.step[2]
    b.length = ceil_div(g.out_size[2], NR) * NR + (right - b.left) // g.step[2] + 1
    return b


cdef inline Py_ssize_t band_elements(const Geometry* g, const Band* b) noexcept nogil:
    """For one block of the depth."""
    return smaller(g.depth_block, g.channels) * b.rows * b.phases * b.length


cdef inline void list_offsets(const Geometry* g, const Tap* taps, const Band* b, Py_ssize_t* offsets) noexcept nogil:
    cdef Py_ssize_t c, t, across
    for c in range(smaller(g.depth_block, g.channels)):
        for t in range(g.taps):
            across = taps[t].offset[2] - b.left
            offsets[c * g.taps + t] = (((c * b.rows + taps[t].offset[1] - b.top) * b.phases
                                        + across % b.phases) * b.length + across // b.phases)


cdef inline void fill_row(const Geometry* g, const Band* b, const real* source, real* to) noexcept nogil:
    """All phases of one row of the input; source points at its first element, or is NULL for zeros."""
    cdef Py_ssize_t q, first, start, count
    for q in range(b.phases):
        start = b.left + q
        first = 0 if start >= 0 else smaller(ceil_div(-start, b.phases), b.length)
        count = 0
        if source != NULL and start + first * b.phases < g.in_size[2]:
            count = smaller(ceil_div(g.in_size[2] - start, b.phases), b.length) - first
            fill_zero(to, first)
            copy_stepped(to + first, source + start + first * b.phases, count, b.phases)
        else:
            first = 0
        fill_zero(to + first + count, b.length - first - count)
        to += b.length


cdef inline void fill_band(const Geometry* g, const Band* b, const real* image, Py_ssize_t first_row,
                           Py_ssize_t spare_rows, Py_ssize_t channels, real* band) noexcept nogil:
    """For `channels` channels from `image` on, and the output rows from first_row on.

    A last tile has `spare_rows` fewer output rows than the band has room for.
    """
    cdef Py_ssize_t c, row, y
    cdef Py_ssize_t used = b.rows - spare_rows * g.step[1]
    cdef const real* source
    for c in range(channels):
        for row in range(used):
            y = first_row * g.step[1] + b.top + row
            source = NULL
            if y >= 0 and y < g.in_size[1]:
                source = image + c * g.in_channel + y * g.in_axis[1]
            fill_row(g, b, source, band + (c * b.rows + row) * b.phases * b.length)
