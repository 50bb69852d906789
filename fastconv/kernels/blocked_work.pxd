"""How blocked.pyx cuts a problem: bundles of groups, bands of rows, panels of output channels, live taps.

All passes of an input gradient (one for each phase of the stride) read the same bands, and their taps stand one
after the other in the panels.
"""

from fastconv.kernels.blocked_band cimport MANY, shape
from fastconv.kernels.blocked_tile cimport Live, Spot
from fastconv.kernels.gemm_band cimport Band
from fastconv.kernels.gemm_micro cimport LINE
from fastconv.kernels.gemm_pack cimport PAGE, ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport MR, NR, VL, real

cdef enum:
    BAND_BYTES = 256 << 10
    PANEL_BYTES = 64 << 10  # of a block of the depth, or twice as many where all rows fit a band
    SUMS_BYTES = 512 << 10  # between blocks of the depth
    MOST_JOINED = 4  # passes
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
    Py_ssize_t first_bundle      # of groups that share: those whose weights are packed, ...
    Py_ssize_t bundles
    Py_ssize_t first_panel       # ... and of the output channels of each
    Py_ssize_t panels
    Py_ssize_t rows              # of outputs of a band
    Py_ssize_t bands             # of an image
    Py_ssize_t parts             # spans of panels
    Py_ssize_t channels          # of a block of the depth
    Py_ssize_t blocks            # of the depth
    bint pairs                   # the two halves of a tile lie in two rows
    Py_ssize_t line              # pixels whose outputs fill one, where tiles begin and end with lines, or 0
    Py_ssize_t tiles             # of a row of outputs, at most
    int phases                   # that taps read: bit q for phase q
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
    """A power of two of groups, as many as two vectors hold; `vrepeat` takes 32 bytes of them."""
    cdef int shared = 1
    cdef Py_ssize_t most = smaller(g.groups, smaller(VL, 32 // <Py_ssize_t> sizeof(real)))
    while 2 * shared * g.rows <= NR and 2 * shared <= most:
        shared *= 2
    return shared


cdef inline Py_ssize_t panels_of(const Geometry* g) noexcept nogil:
    return ceil_div(sharing(g) * g.rows, NR)


cdef inline Py_ssize_t bundles_of(const Geometry* g) noexcept nogil:
    return ceil_div(g.groups, sharing(g))


cdef inline Py_ssize_t aligned(Py_ssize_t elements) noexcept nogil:
    """Their bytes, in whole lines."""
    return ceil_div(elements * <Py_ssize_t> sizeof(real), 64) * 64


cdef inline Py_ssize_t band_bytes(const Work* w) noexcept nogil:
    """Of one block of the depth, with as many elements as a tile may read beyond."""
    return aligned((w.channels * w.band.rows * w.band.phases * w.band.length + MR + VL) * w.shared)


cdef inline Py_ssize_t sums_bytes(const Work* w) noexcept nogil:
    """Of a unit: [panel][pass][row][tile][MR][NR], with as many as a transposition reads beyond."""
    if w.blocks == 1:
        return 0
    return aligned((ceil_div(w.panels, w.parts) * w.count * w.rows * w.tiles * MR + 2 * VL) * NR)


cdef inline bint fits(const Work* w) noexcept nogil:
    return band_bytes(w) <= BAND_BYTES and sums_bytes(w) <= SUMS_BYTES


cdef inline Py_ssize_t panel_bytes(const Geometry* g) noexcept nogil:
    return g.channels * g.taps * NR * <Py_ssize_t> sizeof(real)


cdef inline bint meets(Py_ssize_t offset, Py_ssize_t step, Py_ssize_t first, Py_ssize_t last,
                       Py_ssize_t size) noexcept nogil:
    return last * step + offset >= 0 and first * step + offset < size


cdef inline Py_ssize_t taps_across(const Geometry* g, const Tap* taps) noexcept nogil:
    """They are a grid, whose offsets rise or fall along either axis."""
    cdef Py_ssize_t across = 1
    while across < g.taps and taps[across].offset[1] == taps[0].offset[1]:
        across += 1
    return across


# Passes whose outputs lie side by side: the phases of a step along a row.
cdef struct Joined:
    int count
    Py_ssize_t width             # of a row of all their outputs
    Py_ssize_t[MOST_JOINED] first_tap
    Py_ssize_t[MOST_JOINED] across
    Py_ssize_t end               # the first tap of the passes that follow


cdef inline bint lie_beside(const Work* w, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Do the outputs of so many passes fill whole rows?"""
    cdef const Geometry* g = &w.passes[first]
    cdef Py_ssize_t i
    if not 1 < count <= MOST_JOINED or first + count > w.count:
        return False
    for i in range(1, count):
        if g[i].out_offset != g.out_offset + i or g[i].out_size[1] != g.out_size[1]:
            return False
    return True


cdef inline Joined join_outputs(const Work* w, Py_ssize_t first, Py_ssize_t first_tap) noexcept nogil:
    """The pass `first`, and those that lie beside it."""
    cdef Joined j
    cdef const Geometry* g = &w.passes[first]
    cdef int i
    j.count = <int> g.out_axis[2] if lie_beside(w, first, g.out_axis[2]) else 1
    j.width = 0
    j.end = first_tap
    for i in range(j.count):
        j.first_tap[i] = j.end
        j.across[i] = taps_across(g + i, w.taps + j.end)
        j.width += g[i].out_size[2]
        j.end += g[i].taps
    return j


# Rows or columns of taps.
cdef struct Span:
    Py_ssize_t first
    Py_ssize_t last              # and one


cdef inline Span met(const Geometry* g, const Tap* taps, int axis, Py_ssize_t count, Py_ssize_t apart,
                     Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Those of `count`, `apart` in the table, that meet the input from some of the outputs first .. last."""
    cdef Span span
    span.first = 0
    span.last = count
    while span.first < span.last and not meets(taps[span.first * apart].offset[axis], g.step[axis], first, last,
                                               g.in_size[axis]):
        span.first += 1
    while span.last > span.first and not meets(taps[(span.last - 1) * apart].offset[axis], g.step[axis], first, last,
                                               g.in_size[axis]):
        span.last -= 1
    return span


cdef inline Py_ssize_t products(const Geometry* g, const Tap* taps, int axis, Py_ssize_t count, Py_ssize_t apart,
                                Py_ssize_t most) noexcept nogil:
    """Of taps and outputs along one axis, where tiles hold at most so many outputs and leave out what none meets."""
    cdef Py_ssize_t size = g.out_size[axis], tiles = ceil_div(size, most), number, first, last, total = 0
    cdef Span span
    for number in range(tiles):
        first = number * size // tiles
        last = (number + 1) * size // tiles
        span = met(g, taps, axis, count, apart, first, last - 1)
        total += (last - first) * (span.last - span.first)
    return total


cdef inline bint takes_pairs(const Work* w) noexcept nogil:
    """Do tiles of two rows fill their pixels where those of one do not, or leave out more of the padding?"""
    cdef const Geometry* g = &w.whole
    cdef Py_ssize_t across, flat, square
    if 2 * g.out_size[2] <= MR:
        return True
    if not g.skips or w.count > 1:
        return False
    across = taps_across(g, w.taps)
    flat = products(g, w.taps, 2, across, 1, MR) * products(g, w.taps, 1, g.taps // across, across, 1)
    square = products(g, w.taps, 2, across, 1, MR // 2) * products(g, w.taps, 1, g.taps // across, across, 2)
    return 20 * square < 19 * flat


cdef inline Py_ssize_t pixels_of_line(const Work* w) noexcept nogil:
    """Rows of planes that lie pages apart share a few lines of the caches: each is to be written once."""
    cdef Py_ssize_t step = w.passes.out_axis[2]
    if w.passes.out_row * <Py_ssize_t> sizeof(real) % PAGE != 0 or not lie_beside(w, 0, step) or LINE % step != 0:
        return 0
    return LINE // step


cdef inline Py_ssize_t tiles_of(const Work* w, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t most = MR // 2 if w.pairs else MR, pixels
    if w.line > 0:
        pixels = most // w.line * w.line
        while pixels > 0:
            if width % pixels == 0:
                return width // pixels
            pixels -= w.line
    return ceil_div(width, most)


cdef inline void cut_depth(Work* w, Py_ssize_t bytes) noexcept nogil:
    """Into blocks of even channels, whose panels hold about so many bytes."""
    cdef const Geometry* g = &w.whole
    w.blocks = smaller(larger((panel_bytes(g) + bytes // 2) // bytes, 1), larger(g.channels, 1))
    w.channels = ceil_div(g.channels, w.blocks)
    w.blocks = ceil_div(g.channels, w.channels)


cdef inline void cut(Work* w, const Geometry* passes, Py_ssize_t count, const Tap* taps, Py_ssize_t limit,
                     int threads) noexcept nogil:
    """Bands as high as the cache allows, and as many units as keep threads busy alike.

    Weights are packed for as many panels and bundles at a time as `limit` bytes hold.
    """
    cdef Py_ssize_t units, least, lane
    cdef const Geometry* g = &w.whole
    w.passes = passes
    w.count = count
    w.taps = taps
    w.whole = join(passes, count)
    w.shared = sharing(g)
    w.first_bundle = w.first_panel = 0
    w.panels = smaller(larger(limit // larger(panel_bytes(g), 1), 1), panels_of(g))
    w.bundles = 1
    if w.panels == panels_of(g):
        w.bundles = smaller(larger(limit // larger(w.panels * panel_bytes(g), 1), 1), bundles_of(g))
    w.parts = 1
    for lane in range(NR):
        w.lanes[lane] = lane % w.shared * g.out_group + lane // w.shared * g.out_row
    w.pairs = takes_pairs(w)
    w.line = pixels_of_line(w)
    w.tiles = tiles_of(w, g.out_size[2])
    w.rows = g.out_size[1]
    w.band = shape(g, taps, w.rows)
    cut_depth(w, 2 * PANEL_BYTES)
    if not fits(w):
        cut_depth(w, PANEL_BYTES)
    units = w.bundles * g.batch
    least = UNITS * threads if threads > 1 else 1
    if units < threads <= w.panels and g.out_size[1] < 2 * least:  # few rows, which tiles want in pairs
        w.parts = least = threads
    while w.rows > 1 and (not fits(w) or units * w.parts * ceil_div(g.out_size[1], w.rows) < least):
        w.rows = ceil_div(w.rows, 2)
        w.band = shape(g, taps, w.rows)
    w.bands = ceil_div(g.out_size[1], w.rows)
    w.rows = ceil_div(g.out_size[1], w.bands)
    w.band = shape(g, taps, w.rows)
    if units * w.bands < threads:
        w.parts = smaller(w.panels, threads)
    w.phases = 0
    for lane in range(g.taps):
        w.phases |= 1 << smaller((taps[lane].offset[2] - w.band.left) % w.band.phases, MANY)


cdef inline Py_ssize_t table_bytes(const Work* w) noexcept nogil:
    return ceil_div(w.whole.taps * <Py_ssize_t> sizeof(Live), 64) * 64


cdef inline Py_ssize_t packed_bytes(const Work* w) noexcept nogil:
    """Of the weights that are packed at a time."""
    return w.bundles * w.panels * aligned(w.whole.channels * w.whole.taps * NR)


cdef inline Py_ssize_t thread_bytes(const Work* w) noexcept nogil:
    """A band and waiting sums."""
    return band_bytes(w) + sums_bytes(w)


cdef inline void list_live(Work* w, char* memory) noexcept nogil:
    cdef const Band* b = &w.band
    cdef Py_ssize_t t, across
    w.live = <Live*> memory
    for t in range(w.whole.taps):
        across = w.taps[t].offset[2] - b.left
        w.live[t].at = w.shared * (((w.taps[t].offset[1] - b.top) * b.phases + across % b.phases) * b.length
                                   + across // b.phases)
        w.live[t].weight = t * NR


cdef inline Span rows_met(const Geometry* g, const Tap* taps, Py_ssize_t across, Py_ssize_t first,
                          Py_ssize_t last) noexcept nogil:
    """Rows of taps, `across` in each."""
    return met(g, taps, 1, g.taps // across, across, first, last)


cdef inline void aim_at_taps(const Work* w, const Geometry* g, Py_ssize_t first_tap, Py_ssize_t across,
                             const Span* rows, Py_ssize_t x, Py_ssize_t last, Spot* s) noexcept nogil:
    """The taps of a pass, of these rows, without those that meet nothing but the padding from outputs x .. last."""
    cdef Span columns
    s.live = w.live + first_tap
    s.runs = 1
    s.run = s.apart = g.taps
    if not w.skips:
        return
    columns = met(g, w.taps + first_tap, 2, across, 1, x, last)
    s.live += rows.first * across + columns.first
    s.run = columns.last - columns.first
    s.runs = rows.last - rows.first
    s.apart = across
    if s.run == across:
        s.run *= s.runs
        s.runs = 1
