"""The inputs of a block of tiles at each point, and, for weight gradients, the gradients of its outputs:

    values[i, j][tile][c] = sum over y, x of B[i, y] * B[j, x] * in[c, top + y, left + x]
    values[i, j][tile][k] = sum over y, x of G[i, y] * G[j, x] * grad[k, top + y, left + x]

with 0 outside the image. VL channels at a time, the lines of the input that a run of tiles meets are transposed
into cache, channels innermost; the lowest lines of one row of tiles are the uppermost of the next.
"""

from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.shifted_strip cimport fill_pixels
from fastconv.kernels.simd cimport VL, prefetch_write, real, vec, vload, vstore, vzero
from fastconv.kernels.winograd_points cimport MOST_POINTS, grad_points, input_points
from fastconv.kernels.winograd_work cimport Run, Work, line_size, run_at


# A tensor whose tiles are transformed: the input, or the gradient of the output.
cdef struct Source:
    const real* group            # its first channel
    const real* end              # of the whole tensor
    Py_ssize_t channels
    Py_ssize_t image             # strides
    Py_ssize_t channel
    Py_ssize_t row
    Py_ssize_t height            # of a plane
    Py_ssize_t width
    Py_ssize_t first_row         # that the first tile meets
    Py_ssize_t first_column
    int reach                    # rows that a tile meets: points for an input, outputs for a gradient
    const real* zeros            # a line of them


# Where values go: strides from point to point and from tile to tile.
cdef struct Target:
    real* to
    Py_ssize_t row
    Py_ssize_t point


cdef inline Source input_source(const Work* w, Py_ssize_t group, const real* zeros) noexcept nogil:
    cdef Source s
    s.group = w.input + group * w.g.in_group
    s.end = w.input_end
    s.channels = w.g.channels
    s.image = w.g.in_image
    s.channel = w.g.in_channel
    s.row = w.g.in_axis[1]
    s.height = w.g.in_size[1]
    s.width = w.g.in_size[2]
    s.first_row = w.first_row
    s.first_column = w.first_column
    s.reach = w.points
    s.zeros = zeros
    return s


cdef inline void transform_line(const int points, const bint grad, vec* d) noexcept nogil:
    if grad:
        grad_points(points, d)
    else:
        input_points(points, d)


cdef inline void transform_tile(const int points, const bint grad, const real** lines, Py_ssize_t at, real* to,
                                Py_ssize_t point, Py_ssize_t next) noexcept nogil:
    """The next tile's stores, `next` elements on, are fetched for writing: they took 1.3 times as long without."""
    cdef vec[MOST_POINTS * MOST_POINTS] half
    cdef vec[MOST_POINTS] d
    cdef int i, j, reach = points - 2 if grad else points
    for j in range(reach):
        for i in range(reach):
            d[i] = vload(lines[i] + at + j * VL)
        for i in range(points):
            prefetch_write(to + next + (i * points + j) * point)
        transform_line(points, grad, d)
        for i in range(points):
            half[i * points + j] = d[i]
    for i in range(points):
        transform_line(points, grad, half + i * points)
        for j in range(points):
            vstore(to + (i * points + j) * point, half[i * points + j])


cdef inline void clear_pixels(real* to, Py_ssize_t count) noexcept nogil:
    """Mostly one or two: less than it costs to set up a call."""
    cdef Py_ssize_t i
    for i in range(count):
        vstore(to + i * VL, vzero())


cdef inline void fill_lines(const Work* w, const Source* s, const Run* r, Py_ssize_t channel, int first,
                            real** lines) noexcept nogil:
    """Lines `first` to the last of those that a run meets."""
    cdef const real* rows[VL]
    cdef Py_ssize_t columns = r.count * w.outputs + s.reach - w.outputs
    cdef Py_ssize_t left = r.column * w.outputs + s.first_column, channels = smaller(VL, s.channels - channel), y, c
    cdef Py_ssize_t before = smaller(larger(-left, 0), columns)
    cdef Py_ssize_t inside = larger(smaller(s.width - left, columns) - before, 0)
    cdef const real* source
    cdef bint whole
    cdef int i
    for i in range(first, s.reach):
        y = r.row * w.outputs + s.first_row + i
        if y < 0 or y >= s.height or inside == 0:
            clear_pixels(lines[i], columns)
            continue
        source = s.group + r.image * s.image + channel * s.channel + y * s.row + left + before
        whole = source + (channels - 1) * s.channel + ceil_div(inside, VL) * VL <= s.end
        for c in range(VL):
            rows[c] = source + c * s.channel if c < channels else s.zeros
        clear_pixels(lines[i], before)
        fill_pixels(rows, VL, inside, whole, lines[i] + before * VL)
        clear_pixels(lines[i] + (before + inside) * VL, columns - before - inside)


cdef inline void transform_run(const int outputs, const bint grad, Py_ssize_t count, const real** lines, real* to,
                               const Target* t) noexcept nogil:
    cdef Py_ssize_t tile
    for tile in range(count):
        transform_tile(outputs + 2, grad, lines, tile * outputs * VL, to + tile * t.row, t.point, t.row)


cdef inline bint continues(const Run* r, const Run* before) noexcept nogil:
    """Does a run lie right below the one before it?"""
    return (before.count == r.count and before.column == r.column and before.image == r.image
            and before.row + 1 == r.row)


cdef inline void transform_tiles(const int largest, const bint grad, const Work* w, const Source* s,
                                 Py_ssize_t channel, Py_ssize_t first, Py_ssize_t last, real* strip,
                                 const Target* t) noexcept nogil:
    """VL channels of tiles first .. last - 1, which have at most `largest` outputs along an axis."""
    cdef Py_ssize_t tile = first
    cdef real* lines[MOST_POINTS]
    cdef real* kept[MOST_POINTS]
    cdef real* to
    cdef int i, known
    cdef Run r, before
    for i in range(s.reach):
        lines[i] = strip + i * line_size(w)
    before.count = 0
    while tile < last:
        r = run_at(w, tile, last)
        known = 0
        if continues(&r, &before):
            known = s.reach - w.outputs
            for i in range(s.reach):
                kept[i] = lines[(i + w.outputs) % s.reach]
            for i in range(s.reach):
                lines[i] = kept[i]
        fill_lines(w, s, &r, channel, known, lines)
        to = t.to + (tile - first) * t.row
        if w.outputs == 4:
            transform_run(4, grad, r.count, <const real**> lines, to, t)
        elif w.outputs == 3:
            transform_run(3, grad, r.count, <const real**> lines, to, t)
        elif w.outputs == 2:
            transform_run(2, grad, r.count, <const real**> lines, to, t)
        elif largest == 6:
            transform_run(6, grad, r.count, <const real**> lines, to, t)
        before = r
        tile += r.count
