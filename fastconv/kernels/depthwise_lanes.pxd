"""Whole vectors of channels: where maps are small, or channels lie last, a pixel of a strip is one vector.

    strip[row][column][lane] = in[channel + lane][row][column]

No lane is idle however narrow the map, every load is aligned, and what a unit costs beside its arithmetic is
paid once for VL channels. Planes are transposed as they enter and leave the cache, VL pixels of VL channels at
a time, on through the ends of rows; channels that lie last are copied.
"""

from fastconv.kernels.depthwise_strip cimport LANES_BYTES, LINE, Strip, Window, clear, column_at, is_met
from fastconv.kernels.depthwise_tile cimport TALL
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    VL, prefetch_far, prefetch_write, real, vec, vload, vload_first, vstore, vstore_first, vtranspose, vzero,
)

cdef enum:
    NARROW = 32  # columns of a plane, of the input or of the gradient
    # Columns of either side up to which transposing wins: 28x28 maps take 25% less time with vectors of 8, and 20%
    # more with those of 16, whose transposition costs more than their idle lanes; from 28x28 to 14x14 with a step
    # of 2 16% more, their weight gradients 50%.
    SMALL = 256 // VL
    LEAST_WIDE = 8  # outputs of a block, where channels lie last
    MOST_SPREAD = 1 << 18  # weights, as vectors


cdef inline bint takes_whole(const Geometry* g, Py_ssize_t weights) noexcept nogil:
    """Do VL channels of a small map take a vector for each pixel?"""
    cdef Py_ssize_t widest = larger(g.in_size[2], g.out_size[2])
    return (widest <= smaller(SMALL, NARROW) and g.in_axis[1] <= NARROW
            and g.channels == g.rows == 1 and 2 * g.groups >= VL and weights <= MOST_SPREAD)


cdef inline Py_ssize_t widest_block(Py_ssize_t lines, Py_ssize_t step, Py_ssize_t reach) noexcept nogil:
    """Outputs of a row whose inputs, a vector each, fill the cache with those of a tile of so many lines."""
    cdef Py_ssize_t columns = LANES_BYTES // (VL * <Py_ssize_t> sizeof(real)) // lines
    return larger((columns - reach) // step, LEAST_WIDE)


cdef inline void load_block(const real** rows, Py_ssize_t at, Py_ssize_t count, vec* x) noexcept nogil:
    """`count` elements of each of VL rows."""
    cdef int k
    if count == VL:
        for k in range(VL):
            x[k] = vload(rows[k] + at)
    else:
        for k in range(VL):
            x[k] = vload_first(rows[k] + at, count)


cdef inline void list_places(const Strip* s, const Window* w, Py_ssize_t rows, int* places) noexcept nogil:
    """Where in the strip the pixels of some of the window's rows go, one row after the other. Columns beyond the
    window go where the next row begins, before it does."""
    cdef int[NARROW] column
    cdef Py_ssize_t r
    cdef int c
    for c in range(NARROW):
        column[c] = <int> (column_at(s, w.before + c) if c < w.columns else s.pitch + column_at(s, w.before))
    for r in range(rows):
        for c in range(NARROW):  # those beyond the row's end are written again by the next
            places[c] = <int> (r * s.pitch) + column[c]
        places += s.in_pitch


cdef inline void fill_rows(const Strip* s, const int* place, Py_ssize_t total, const real** source, Py_ssize_t start,
                           const real** out, Py_ssize_t fetch, real* to) noexcept nogil:
    """`total` pixels from `start` on, VL at a time, on through the ends of rows; the last ones reach back."""
    cdef vec[VL] x
    cdef Py_ssize_t at = 0, first, _j
    cdef int j
    while at < total:
        first = larger(smaller(at, total - VL), 0)
        load_block(source, start + first, smaller(VL, total), x)
        for j in range(VL):  # the same pixels of the next channels
            prefetch_far(source[j] + start + at + s.ahead)
        for _j in range(fetch):
            prefetch_write(out[0])
            out[0] += LINE
        vtranspose(x)
        if total >= VL:
            for j in range(VL):
                vstore(to + place[first + j], x[j])
        else:
            for j in range(VL):
                if j < total:
                    vstore(to + place[j], x[j])
        at += VL


cdef inline void fill_from_planes(const Strip* s, const Window* w, const real** source, const real* out,
                                  Py_ssize_t fetch, real* to) noexcept nogil:
    """The input's rows, as many at a time as there is a list of places for: only columns are few for certain. With
    each VL pixels `fetch` lines of the output are fetched, from `out` on."""
    cdef int[NARROW * NARROW + NARROW] place
    cdef Py_ssize_t row = 0, rows
    if w.rows == 0 or w.columns == 0:
        return
    list_places(s, w, smaller(w.rows, NARROW), place)
    while row < w.rows:
        rows = smaller(w.rows - row, NARROW)
        fill_rows(s, place, (rows - 1) * s.in_pitch + w.columns, source, row * s.in_pitch, &out, fetch,
                  to + row * s.pitch)
        row += rows


cdef inline void fill_from_pixels(const Strip* s, const Window* w, const real* source, Py_ssize_t channels,
                                  real* to) noexcept nogil:
    """Channels that lie last: `channels` of them, at most VL, of each pixel that some tap meets."""
    cdef Py_ssize_t r, first, _i, gap = s.step * s.in_column
    cdef const real* pixel
    cdef real* phase
    for r in range(w.rows):
        if is_met(s.met_rows, (w.above + r) % s.row_step):
            for first in range(smaller(s.step, w.columns)):
                if is_met(s.met_columns, (w.before + first) % s.step):
                    pixel = source + r * s.in_pitch + first * s.in_column
                    phase = to + column_at(s, w.before + first)
                    for _i in range(ceil_div(w.columns - first, s.step)):
                        vstore(phase, vload(pixel) if channels == VL else vload_first(pixel, channels))
                        phase += VL
                        pixel += gap
        to += s.pitch


cdef inline void clear_beside(const Strip* s, const Window* w, real* to) noexcept nogil:
    """Zeros around the input, where those of the strip before may have been pixels."""
    cdef Py_ssize_t r, column
    if not (s.same_rows and s.same_columns):
        clear(to, w.above * s.pitch)
        clear(to + (s.rows - w.below) * s.pitch, w.below * s.pitch)
    if not s.same_columns:
        for r in range(w.above, w.above + w.rows):
            for column in range(w.before):
                vstore(to + r * s.pitch + column_at(s, column), vzero())
            for column in range(w.before + w.columns, s.columns):
                vstore(to + r * s.pitch + column_at(s, column), vzero())


cdef inline void fill_lanes(const Strip* s, const Window* w, const real* image, Py_ssize_t gap, Py_ssize_t most,
                            const real* out, Py_ssize_t fetch, real* to) noexcept nogil:
    """A strip of channels 0 .. most of an image, `gap` apart; lanes beyond repeat the last, or are zeros."""
    cdef const real* source[VL]
    cdef int k
    clear_beside(s, w, to)
    to += w.above * s.pitch
    if s.in_column != 1:
        fill_from_pixels(s, w, image + w.source, most + 1, to)
    else:
        for k in range(VL):
            source[k] = image + smaller(k, most) * gap + w.source
        fill_from_planes(s, w, source, out, fetch, to)


cdef inline void weave_lanes(const int phases, const real* sums, Py_ssize_t pitch, Py_ssize_t rows,
                             Py_ssize_t total, real** out, Py_ssize_t out_pitch, Py_ssize_t count) noexcept nogil:
    """Rows of `total` outputs of `count` channels, from sums of whole vectors; two phases take turns."""
    cdef vec[VL] x
    cdef Py_ssize_t i, first, pixels, each
    cdef int j, k
    for i in range(rows):
        first = 0
        while first < total:
            pixels = smaller(VL, total - first)
            for j in range(VL):
                each = smaller(first + j, total - 1)
                x[j] = vload(sums + (each % phases * TALL + i) * pitch + each // phases * VL)
            vtranspose(x)
            for k in range(VL):
                if k < count:
                    if pixels == VL:
                        vstore(out[k] + i * out_pitch + first, x[k])
                    else:
                        vstore_first(out[k] + i * out_pitch + first, pixels, x[k])
            first += VL


cdef inline void spread(const real* weight, Py_ssize_t stride, Py_ssize_t most, Py_ssize_t count,
                        real* to) noexcept nogil:
    """The `count` weights of VL channels, as vectors: lane k repeats those of channel k <= most."""
    cdef const real* rows[VL]
    cdef vec[VL] x
    cdef Py_ssize_t first = 0
    cdef int j
    for j in range(VL):
        rows[j] = weight + smaller(j, most) * stride
    while first < count:
        load_block(rows, first, smaller(VL, count - first), x)
        vtranspose(x)
        for j in range(VL):
            if first + j < count:
                vstore(to + (first + j) * VL, x[j])
        first += VL
