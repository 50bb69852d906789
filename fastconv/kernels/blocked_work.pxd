"""How blocked.pyx cuts a problem: bundles of groups, bands of rows, panels of output channels, live taps.

All passes of an input gradient (one for each phase of the stride) read the same bands, and their taps stand one
after the other in the panels.
"""

from fastconv.kernels.blocked_band cimport MOST_SHARED, shape
from fastconv.kernels.blocked_tile cimport Live
from fastconv.kernels.gemm_band cimport Band
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport MR, NR, VL, real

cdef enum:
    BAND_BYTES = 256 << 10
    UNITS = 4  # for each thread, at least, where there are rows enough


cdef struct Work:
    const Geometry* passes
    Py_ssize_t count             # of passes
    const Tap* taps              # of all of them
    Geometry whole               # of the passes: the taps of all, the largest output
    const real* input
    const real* weight           # packed
    const real* bias
    real* out
    bint skips                   # taps in the padding: all weights are finite
    int shared                   # groups in the lanes of a panel
    Py_ssize_t bundles           # of groups that share
    Py_ssize_t panels            # of output channels of a bundle
    Py_ssize_t rows              # of outputs of a band
    Py_ssize_t bands             # of an image
    Py_ssize_t parts             # spans of panels
    Py_ssize_t[NR] lanes         # from the first output of a panel to that of each lane
    Band band
    Live* live                   # of all taps


cdef inline Geometry join(const Geometry* passes, Py_ssize_t count) noexcept nogil:
    cdef Geometry g = passes[0]
    cdef Py_ssize_t i
    for i in range(1, count):
        g.taps += passes[i].taps
        g.out_size[1] = larger(g.out_size[1], passes[i].out_size[1])
        g.out_size[2] = larger(g.out_size[2], passes[i].out_size[2])
        g.skips |= passes[i].skips
    return g


cdef inline int sharing(const Geometry* g) noexcept nogil:
    """A power of two of groups, as many as two vectors hold."""
    cdef int shared = 1
    while shared < MOST_SHARED and shared < VL and 2 * shared * g.rows <= NR and 2 * shared <= g.groups:
        shared *= 2
    return shared


cdef inline Py_ssize_t panels_of(const Geometry* g) noexcept nogil:
    return ceil_div(sharing(g) * g.rows, NR)


cdef inline Py_ssize_t bundles_of(const Geometry* g) noexcept nogil:
    return ceil_div(g.groups, sharing(g))


cdef inline Py_ssize_t band_elements(const Geometry* g, const Band* b) noexcept nogil:
    """And as many as a tile may read beyond."""
    return (g.channels * b.rows * b.phases * b.length + MR + VL) * sharing(g)


cdef inline Py_ssize_t rows_within(const Geometry* g, const Tap* taps, Py_ssize_t limit) noexcept nogil:
    """Rows of outputs of a band of at most `limit` bytes; at least one."""
    cdef Py_ssize_t rows = g.out_size[1]
    cdef Band band = shape(g, taps, rows)
    while rows > 1 and band_elements(g, &band) * <Py_ssize_t> sizeof(real) > limit:
        rows = ceil_div(rows, 2)
        band = shape(g, taps, rows)
    return rows


cdef inline void cut(Work* w, const Geometry* passes, Py_ssize_t count, const Tap* taps, int threads) noexcept nogil:
    """Bands as high as the cache allows, and as many units as keep threads busy alike."""
    cdef Py_ssize_t units, lane
    cdef const Geometry* g = &w.whole
    w.passes = passes
    w.count = count
    w.taps = taps
    w.whole = join(passes, count)
    w.shared = sharing(g)
    w.bundles = bundles_of(g)
    w.panels = panels_of(g)
    w.parts = 1
    for lane in range(NR):
        w.lanes[lane] = lane % w.shared * g.out_group + lane // w.shared * g.out_row
    w.rows = rows_within(g, taps, BAND_BYTES)
    units = w.bundles * g.batch
    if threads > 1:
        while w.rows > 1 and units * ceil_div(g.out_size[1], w.rows) < UNITS * threads:
            w.rows = ceil_div(w.rows, 2)
    w.bands = ceil_div(g.out_size[1], w.rows)
    w.rows = ceil_div(g.out_size[1], w.bands)
    w.band = shape(g, taps, w.rows)
    if threads > 1 and units * w.bands < threads:
        w.parts = smaller(w.panels, threads)


cdef inline Py_ssize_t table_bytes(const Geometry* g) noexcept nogil:
    return ceil_div(g.taps * <Py_ssize_t> sizeof(Live), 64) * 64


cdef inline Py_ssize_t thread_bytes(const Work* w) noexcept nogil:
    """A band, and the live taps of a tile."""
    return (ceil_div(band_elements(&w.whole, &w.band) * <Py_ssize_t> sizeof(real), 64) * 64 + table_bytes(&w.whole))


cdef inline void list_live(Work* w, char* memory) noexcept nogil:
    cdef const Band* b = &w.band
    cdef Py_ssize_t t, across
    w.live = <Live*> memory
    for t in range(w.whole.taps):
        across = w.taps[t].offset[2] - b.left
        w.live[t].at = w.shared * (((w.taps[t].offset[1] - b.top) * b.phases + across % b.phases) * b.length
                                   + across // b.phases)
        w.live[t].weight = t * NR


cdef inline Py_ssize_t pick_live(const Work* w, const Geometry* g, Py_ssize_t first_tap, Py_ssize_t row,
                                 Py_ssize_t last_row, Py_ssize_t x, Py_ssize_t last, Live* to) noexcept nogil:
    """The taps of a pass that meet the input from outputs of these rows and columns, and their number."""
    cdef Py_ssize_t t, count = 0
    cdef const Py_ssize_t* offset
    for t in range(first_tap, first_tap + g.taps):
        offset = w.taps[t].offset
        if (last_row * g.step[1] + offset[1] >= 0 and row * g.step[1] + offset[1] < g.in_size[1]
                and last * g.step[2] + offset[2] >= 0 and x * g.step[2] + offset[2] < g.in_size[2]):
            to[count] = w.live[t]
            count += 1
    return count
