"""The weights at each point, in panels of output channels:

    to[i, j][c][lane] = sum over r, s of G[i, r] * G[j, s] * weight[first + lane, c, r, s]

Lanes beyond the last output channel are zeros.
"""

from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.simd cimport (
    NR, VL, prefetch_near, prefetch_write, real, vec, vload_first, vstore, vtranspose, vzero,
)
from fastconv.kernels.winograd_points cimport MOST_POINTS, weight_points
from fastconv.kernels.winograd_work cimport TAPS, Work, panel_lanes

cdef enum:
    AHEAD = 7  # channels: rows of weights lie too far apart for the prefetchers


cdef inline void load_taps(const real* weight, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t ahead,
                           const Py_ssize_t* tap, vec* taps) noexcept nogil:
    """taps[t], lane by lane: the taps of a row lie side by side, and are transposed VL at a time."""
    cdef vec[VL] block
    cdef vec[TAPS + VL] found
    cdef Py_ssize_t r, t, first = 0, some
    while first < TAPS:
        some = smaller(VL, TAPS - first)
        if some == 1:            # a transposition would yield one vector
            for r in range(VL):
                (<real*> found)[first * VL + r] = weight[r * row + first] if r < rows else 0
        else:
            for r in range(VL):
                prefetch_near(weight + r * row + ahead)
                block[r] = vload_first(weight + r * row + first, some) if r < rows else vzero()
            vtranspose(block)
            for t in range(some):
                found[first + t] = block[t]
        first += some
    for t in range(TAPS):
        taps[t] = found[tap[t]]


cdef inline void transform_taps(const int points, vec* taps, real* to, Py_ssize_t point,
                                Py_ssize_t next) noexcept nogil:
    """Stores are fetched for `next` elements on."""
    cdef vec[MOST_POINTS * 3] half
    cdef vec[MOST_POINTS] g
    cdef int i, j
    for j in range(3):
        for i in range(3):
            g[i] = taps[i * 3 + j]
        weight_points(points, g)
        for i in range(points):
            half[i * 3 + j] = g[i]
    for i in range(points):
        for j in range(3):
            g[j] = half[i * 3 + j]
        weight_points(points, g)
        for j in range(points):
            vstore(to + (i * points + j) * point, g[j])
            prefetch_write(to + (i * points + j) * point + next)


cdef inline void transform_weights(const Work* w, const real* group, Py_ssize_t panel, Py_ssize_t first,
                                   Py_ssize_t last, real* to, Py_ssize_t point) noexcept nogil:
    """Channels first .. last - 1 of a panel."""
    cdef vec[TAPS] taps
    cdef Py_ssize_t lanes = panel_lanes(w, panel), c, lane = 0, row
    while lane < lanes:
        row = panel * NR + lane
        for c in range(first, last):
            load_taps(group + row * w.g.weight_row + c * w.g.weight_channel, w.g.weight_row,
                      larger(w.g.rows - row, 0), AHEAD * w.g.weight_channel, w.tap, taps)
            if w.points == 6:
                transform_taps(6, taps, to + (c - first) * lanes + lane, point, 2 * lanes)
            elif w.points == 5:
                transform_taps(5, taps, to + (c - first) * lanes + lane, point, 2 * lanes)
            elif w.points == 4:
                transform_taps(4, taps, to + (c - first) * lanes + lane, point, 2 * lanes)
            else:
                transform_taps(8, taps, to + (c - first) * lanes + lane, point, 2 * lanes)
        lane += VL
