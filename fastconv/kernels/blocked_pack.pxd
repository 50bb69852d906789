"""Weights of blocked.pyx: panels of NR output channels, packed[bundle, panel, c, t, lane]."""

from fastconv.kernels.blocked_work cimport sharing
from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport NR, VL, real, vec, vload_first, vstore, vtranspose


# VL lanes of a panel: where their weights begin, and how many there are of each; none of a lane that stays empty.
cdef struct Rows:
    const real* start[VL]
    Py_ssize_t count[VL]
    Py_ssize_t most


cdef inline Rows rows_of(const Geometry* g, const real* weight, Py_ssize_t bundle, Py_ssize_t first,
                         Py_ssize_t count) noexcept nogil:
    cdef Rows r
    cdef Py_ssize_t lane, channel, group, shared = sharing(g)
    for lane in range(VL):
        group = bundle * shared + (first + lane) % shared
        channel = (first + lane) // shared
        r.count[lane] = 0
        r.start[lane] = weight
        if channel < g.rows and group < g.groups:
            r.count[lane] = count
            r.start[lane] = weight + group * g.weight_group + channel * g.weight_row
    r.most = count
    return r


cdef inline void pack_lanes(const Geometry* g, const Tap* taps, const Rows* rows, bint along, Py_ssize_t offset,
                            Py_ssize_t apart, real* to) noexcept nogil:
    """The weights from `offset` on, `apart` in a panel: the whole depth if it lies in order, or the taps of one
    channel."""
    cdef vec[VL] block
    cdef Py_ssize_t first = 0, i, t, index
    while first < rows.most:
        for i in range(VL):
            block[i] = vload_first(rows.start[i] + offset + first, smaller(larger(rows.count[i] - first, 0), VL))
        vtranspose(block)
        if along:
            for i in range(smaller(VL, rows.most - first)):
                vstore(to + (first + i) * apart, block[i])
        else:
            for t in range(g.taps):
                index = taps[t].weight - first
                if 0 <= index < VL:
                    vstore(to + t * apart, block[index])
        first += VL


cdef inline void pack_panel(const Geometry* g, const Tap* taps, const real* weight, Py_ssize_t bundle,
                            Py_ssize_t panel, real* to) noexcept nogil:
    cdef Rows rows
    cdef bint along = g.weight_channel == g.taps
    cdef Py_ssize_t volume = 0, vector, c, t
    for t in range(g.taps):
        volume = larger(volume, taps[t].weight + 1)
        along = along and taps[t].weight == t
    if along:
        volume *= g.channels
    for vector in range(NR // VL):
        rows = rows_of(g, weight, bundle, panel * NR + vector * VL, volume)
        for c in range(1 if along else g.channels):
            pack_lanes(g, taps, &rows, along, c * g.weight_channel, NR, to + c * g.taps * NR + vector * VL)
