"""Units of work of planes that are read where they lie: some rows of a channel, or of two (depthwise_plane.pxd)."""

from fastconv.kernels.depthwise_line cimport MOST_SIZE, NEAR
from fastconv.kernels.depthwise_plane cimport Walk, walk_rows
from fastconv.kernels.depthwise_store cimport copy_out
from fastconv.kernels.depthwise_strip cimport aligned
from fastconv.kernels.depthwise_work cimport Work
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport real, stream_fence

cdef enum:
    FILTERS = 2 * MOST_SIZE * MOST_SIZE + 30  # weights of two channels, and to a boundary of lines


cdef inline Py_ssize_t planes_size(const Work* w) noexcept nogil:
    """Bytes of a thread: filters, and the outputs of a unit."""
    return aligned((FILTERS + w.plane_rows * w.single.g.out_size[2]) * <Py_ssize_t> sizeof(real))


cdef inline bint lies_in_order(const Work* w) noexcept nogil:
    """Do filters lie row by row of taps, as the input meets them?"""
    cdef Py_ssize_t i, j, size = w.single.rows.count
    for i in range(size):
        for j in range(size):
            if w.planes and w.weight_from[j * size + i] != i * size + j:
                return False
    return True


cdef inline void put_in_order(const Work* w, const real* weight, real* to) noexcept nogil:
    cdef Py_ssize_t i, j, size = w.single.rows.count
    for i in range(size):
        for j in range(size):
            to[i * size + j] = weight[w.weight_from[j * size + i]]


cdef inline void take_filters(const Work* w, Py_ssize_t group, Py_ssize_t m, bint pair, real* ordered,
                              Walk* walk) noexcept nogil:
    """Weights and biases of row m of a group, or of two groups."""
    cdef const Geometry* g = w.single.g
    cdef const real* weight = w.weight + group * g.weight_group + m * g.weight_row
    walk.weight = weight
    walk.weight_apart = g.weight_group
    if not w.in_order:
        put_in_order(w, weight, ordered)
        if pair:
            put_in_order(w, weight + g.weight_group, ordered + g.taps)
        walk.weight = ordered
        walk.weight_apart = g.taps
    walk.bias[0] = walk.bias[1] = 0
    if w.bias != NULL:
        walk.bias[0] = w.bias[group * g.rows + m]
        walk.bias[1] = w.bias[(group + pair) * g.rows + m]


cdef inline void walk_planes(const Work* w, Py_ssize_t first, Py_ssize_t last, real* memory) noexcept nogil:
    """Units first .. last - 1: image after image, channels in order, rows from top to bottom."""
    cdef const Geometry* g = w.single.g
    cdef Py_ssize_t lanes = ceil_div(g.groups, w.pair), row = first % w.plane_units * w.plane_rows
    cdef Py_ssize_t lane = first // w.plane_units % lanes, image = first // w.plane_units // lanes
    cdef Py_ssize_t group, rows, m, _unit
    cdef real* stage = memory + FILTERS
    cdef const real* plane
    cdef real* out
    cdef bint pair
    cdef Walk walk
    walk.apart = g.in_group
    walk.pitch = g.in_axis[1]
    walk.lines = g.in_size[1]
    walk.above = -w.single.rows.first
    walk.relu = g.relu
    walk.out_apart = g.out_group
    walk.out_pitch = g.out_axis[1]
    walk.ahead = larger(w.plane_rows * g.step[1] * g.in_axis[1] * w.pair, NEAR)
    for _unit in range(first, last):
        group = lane * w.pair
        pair = w.pair == 2 and group + 1 < g.groups
        rows = smaller(w.plane_rows, g.out_size[1] - row)
        plane = w.input + image * g.in_image + group * g.in_group
        out = w.out + g.out_offset + image * g.out_image + group * g.out_group + row * g.out_axis[1]
        for m in range(g.rows):
            take_filters(w, group, m, pair, memory, &walk)
            walk_rows(&w.single, pair, plane, stage if w.plane_staged else out + m * g.out_row, row, row + rows, &walk)
            if w.plane_staged:
                copy_out(stage, rows * g.out_axis[1], g.stream, out + m * g.out_row)
        row += rows
        if row == g.out_size[1]:
            row = 0
            lane += 1
            if lane == lanes:
                lane = 0
                image += 1
    stream_fence()
