"""Bands: the input rows that a tile of whole output rows needs, kept once instead of once a tap.

A band holds, for some channels, the rows of the input from the first tap of the tile's first output row
to the last tap of its last. Each row is padded with the zeros around the image, and split into `step`
phases, so that what one tap reads for consecutive outputs lies side by side:

    band[c, row, q, j] = in[c, top + row, left + q + step * j]

The element that tap (h, w) meets at output (y, x) is then at the vector's start plus offset[c, tap]:

    start = band + y * step_h * step_w * length + x        (y counted from the tile's first row)
    offset = ((c * rows + h - top_offset) * step_w + (w - left_offset) % step_w) * length
             + (w - left_offset) // step_w
"""

from fastconv.kernels.gemm_micro cimport WIDEST, Slot
from fastconv.kernels.gemm_pack cimport (
    ceil_div, copy_stepped, larger, smaller,
)
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport VL, real, vstore, vzero


cdef enum:
    IN_HALVES = 2  # what `bands` of the geometry says where half vectors have places of their own


cdef struct Band:
    Py_ssize_t top               # smallest offset of a tap along h, and along w
    Py_ssize_t left
    Py_ssize_t rows              # input rows of a full tile
    Py_ssize_t phases            # step along w
    Py_ssize_t length            # of a phase of a row, with room for whole vectors
    Py_ssize_t before            # of a row: zeros, ...
    Py_ssize_t first             # ... elements of the input from this one on, ...
    Py_ssize_t inside            # ... and their number; then zeros again


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
    b.length = ceil_div(g.out_size[2], VL) * VL + (right - b.left) // g.step[2] + 1
    b.before = smaller(larger(-b.left, 0), b.length * b.phases)
    b.first = smaller(larger(b.left, 0), g.in_size[2])
    b.inside = smaller(g.in_size[2] - b.first, b.length * b.phases - b.before)
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


cdef inline Py_ssize_t lanes_of_slot(const Geometry* g) noexcept nogil:
    return VL // 2 if g.bands == IN_HALVES else VL


cdef inline Py_ssize_t slots_of(const Geometry* g, Py_ssize_t tile_rows) noexcept nogil:
    return tile_rows * ceil_div(g.out_size[2], lanes_of_slot(g)) + 2 * WIDEST


cdef inline void list_slots(const Geometry* g, const Band* b, Py_ssize_t tile_rows, Slot* slots) noexcept nogil:
    """The vectors of a tile, or halves of them, row by row, and some more to fill up its last panel."""
    cdef Py_ssize_t row = 0, column = 0, lanes = lanes_of_slot(g), number
    for number in range(slots_of(g, tile_rows)):
        slots[number].start = row * g.step[1] * b.phases * b.length + column
        slots[number].to = row * g.out_axis[1] + column * g.out_axis[2]
        slots[number].columns = smaller(lanes, g.out_size[2] - column)
        slots[number].row = row
        if row >= tile_rows:
            slots[number].start = slots[number].to = slots[number].columns = 0
        column += lanes
        if column >= g.out_size[2]:
            column = 0
            row += 1


cdef inline void surround(real* to, Py_ssize_t first, Py_ssize_t last, Py_ssize_t length) noexcept nogil:
    """Zeros before `first` and from `last` on, in whole vectors: what lies between is written afterwards."""
    cdef Py_ssize_t i = 0
    while i < first:
        vstore(to + smaller(i, length - VL), vzero())
        i += VL
    i = length
    while i > last:
        i -= VL
        vstore(to + larger(i, 0), vzero())


cdef inline void fill_row(const Band* b, Py_ssize_t phases, const real* source, real* to) noexcept nogil:
    """One row of the input, or zeros if there is none; `phases` is that of the band."""
    cdef Py_ssize_t q, first, last, inside = b.inside if source != NULL else 0
    cdef const real* start
    for q in range(phases):
        first = ceil_div(b.before - q, phases)
        last = ceil_div(b.before + inside - q, phases)
        surround(to, first, last, b.length)
        if last > first:
            start = source + b.first + (q + first * phases - b.before)
            copy_stepped(to + first, start, last - first, phases)
        to += b.length


cdef inline void fill_band(const Geometry* g, const Band* b, const real* image, Py_ssize_t first_row,
                           Py_ssize_t spare_rows, Py_ssize_t channels, real* band) noexcept nogil:
    """For `channels` channels from `image` on, and the output rows from first_row on.

    A last tile has `spare_rows` fewer output rows than the band has room for.
    """
    cdef Py_ssize_t c, row, y
    cdef real* to
    cdef Py_ssize_t used = b.rows - spare_rows * g.step[1]
    cdef const real* source
    for c in range(channels):
        for row in range(used):
            y = first_row * g.step[1] + b.top + row
            source = NULL
            if y >= 0 and y < g.in_size[1]:
                source = image + c * g.in_channel + y * g.in_axis[1]
            to = band + (c * b.rows + row) * b.phases * b.length
            if b.phases == 1:
                fill_row(b, 1, source, to)
            elif b.phases == 2:
                fill_row(b, 2, source, to)
            elif b.phases == 4:
                fill_row(b, 4, source, to)
            else:
                fill_row(b, b.phases, source, to)


cdef inline void live_taps(const Geometry* g, const Tap* taps, Py_ssize_t first_row, Py_ssize_t last_row,
                           Py_ssize_t* first, Py_ssize_t* last) noexcept nogil:
    """The taps that meet the input from some of these rows of outputs: others would add zeros.

    Offsets along the height rise or fall with the number of the tap.
    """
    first[0] = 0
    last[0] = g.taps
    while first[0] < last[0] and is_dead(g, &taps[first[0]], first_row, last_row):
        first[0] += 1
    while last[0] > first[0] and is_dead(g, &taps[last[0] - 1], first_row, last_row):
        last[0] -= 1


cdef inline bint is_dead(const Geometry* g, const Tap* tap, Py_ssize_t first_row, Py_ssize_t last_row) noexcept nogil:
    return (last_row * g.step[1] + tap.offset[1] < 0
            or first_row * g.step[1] + tap.offset[1] >= g.in_size[1])
