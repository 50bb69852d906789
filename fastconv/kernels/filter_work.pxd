"""How image filters are cut: rows of taps into pieces that share lines, outputs into bands and blocks.

Outputs `skip` rows apart meet lines `line` rows apart, skip * step = line: the least common multiple of step
and gap. So rows of taps fall into line / gap classes, each of which slides over lines of its own as a filter
with stride 1 does. A class with more rows than a tile holds is cut evenly. Pieces of equal height are
the entries of one call of the micro-kernel: all columns of taps of one, then of the next.
"""

from fastconv.kernels.filter_tile cimport TALL, most_rows, most_taps
from fastconv.kernels.gemm_pack cimport ceil_div, even_start, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport REGISTERS, VL, real

cdef enum:
    MOST_CALLS = 8  # as many as there are heights of pieces
    LINE = 64 // sizeof(real)
    PLACE_VECTORS = 8  # for each filter: a row of so many is read in place; for less the sides cost too much
    WIDEST = 1024  # outputs of a row of a unit ...
    WIDEST_COPIED = 256  # ... and where all of its input is copied
    STRIP_BYTES = 24 << 10  # of such a copy: it stays in the first-level cache with what is written
    # Where lines share cache sets, filters of so many rows copy all: 15x15 on 1024x1024 and 4096x4096 with AVX-512
    # 3.4 and 55 ms, 4.0 and 60 in place; 11x11 equal.
    COPIED_TAPS = 12
    SPARE = 2  # units for each thread, where filters can be shared out


# One axis of the taps: tap t of output o meets input o * step + first + t * gap, gap > 0.
cdef struct Comb:
    Py_ssize_t count
    Py_ssize_t first
    Py_ssize_t gap
    Py_ssize_t step
    bint flipped                 # tap t is number count - 1 - t of the table


# Entries whose pieces have `taps` rows.
cdef struct Call:
    int taps
    Py_ssize_t entries


cdef struct Work:
    Geometry g
    Comb rows
    Comb columns
    Py_ssize_t line
    Py_ssize_t skip
    Call[MOST_CALLS] calls
    int count                    # of calls
    Py_ssize_t entries           # of all calls
    Py_ssize_t* in_image         # [entries]: offsets of their first line, in the image and in a strip
    Py_ssize_t* in_strip
    Py_ssize_t* weight_from      # [taps]: their places in a filter
    bint in_place                # whether what lies inside is read there
    Py_ssize_t band              # rows of outputs of a unit
    Py_ssize_t bands
    Py_ssize_t block             # columns
    Py_ssize_t blocks
    Py_ssize_t share             # filters
    Py_ssize_t shares
    Py_ssize_t strip_rows
    Py_ssize_t phase             # columns of the input are split by their position modulo the step
    Py_ssize_t pitch             # from line to line of a strip
    const real* input
    const real* weight
    const real* bias
    real* out


cdef inline Comb comb(const Tap* taps, Py_ssize_t count, Py_ssize_t stride, Py_ssize_t step,
                      int axis) noexcept nogil:
    """Taps of an axis are evenly spaced, in either direction: `stride` rows of the table lie between them."""
    cdef Comb c
    cdef Py_ssize_t last = taps[(count - 1) * stride].offset[axis]
    c.count = count
    c.first = taps[0].offset[axis]
    c.step = step
    c.flipped = last < c.first
    c.gap = 1
    if count > 1:
        c.gap = (last - c.first) // (count - 1)
    if c.flipped:
        c.first = last
        c.gap = -c.gap
    return c


cdef inline Py_ssize_t reach(const Comb* c) noexcept nogil:
    """From the first tap to the last."""
    return (c.count - 1) * c.gap


cdef inline bint is_met(const Comb* c, Py_ssize_t position) noexcept nogil:
    """Does any tap of any output meet elements at this position, counted from the first?"""
    cdef Py_ssize_t t
    for t in range(smaller(c.count, c.step)):
        if (position - t * c.gap) % c.step == 0:
            return True
    return False


cdef inline Py_ssize_t column_at(const Work* w, Py_ssize_t column) noexcept nogil:
    """Where in a line of a strip a column lies."""
    if w.columns.step == 1:  # divisions take long
        return column
    return column % w.columns.step * w.phase + column // w.columns.step


cdef inline void list_piece(Work* w, const Tap* table, Py_ssize_t first, Py_ssize_t apart, int taps,
                            Py_ssize_t entry, Py_ssize_t weight) noexcept nogil:
    """Rows first, first + apart, ... of taps, column by column."""
    cdef Py_ssize_t t, r, row, column
    for t in range(w.columns.count):
        w.in_image[entry + t] = first * w.rows.gap * w.g.in_axis[1] + t * w.columns.gap
        w.in_strip[entry + t] = first * w.rows.gap * w.pitch + column_at(w, t * w.columns.gap)
        column = w.columns.count - 1 - t if w.columns.flipped else t
        for r in range(taps):
            row = first + r * apart
            if w.rows.flipped:
                row = w.rows.count - 1 - row
            w.weight_from[weight + t * taps + r] = table[row * w.columns.count + column].weight


cdef inline void list_calls(Work* w, const Tap* table) noexcept nogil:
    """Fills the tables that all threads read: the tallest pieces come first."""
    cdef Py_ssize_t apart = w.line // w.rows.gap, c, j, rows, cuts, weight = 0
    cdef int taps, height
    w.count = 0
    w.entries = 0
    for taps in range(most_taps(), 0, -1):
        w.calls[w.count].taps = taps
        w.calls[w.count].entries = 0
        for c in range(smaller(apart, w.rows.count)):
            rows = ceil_div(w.rows.count - c, apart)
            cuts = ceil_div(rows, most_taps())
            for j in range(cuts):
                height = <int> (rows // cuts) + (j < rows % cuts)
                if height == taps:
                    list_piece(w, table, c + even_start(rows // cuts, rows % cuts, j) * apart, apart, taps,
                               w.entries, weight)
                    w.calls[w.count].entries += w.columns.count
                    w.entries += w.columns.count
                    weight += taps * w.columns.count
        w.count += w.calls[w.count].entries > 0


cdef inline bint reads_in_place(const Work* w) noexcept nogil:
    if w.g.taps == 1 and w.columns.step == 1:
        return True
    if w.columns.step > 1 or w.g.out_size[2] < PLACE_VECTORS * VL * w.g.rows:
        return False
    return REGISTERS == 16 or w.rows.count < COPIED_TAPS or most_rows(w.line * w.g.in_axis[1]) == TALL


cdef inline void shape_strip(Work* w) noexcept nogil:
    """Room for the input of a block, and for a vector of zeros beyond."""
    cdef Py_ssize_t width = (ceil_div(w.block, VL) + 1) * VL
    w.phase = ceil_div(reach(&w.columns) // w.columns.step + 1 + width, LINE) * LINE
    w.pitch = w.phase * w.columns.step
    if w.pitch % (1024 // <Py_ssize_t> sizeof(real)) == 0:  # lines would fall into the same cache sets
        w.pitch += LINE


cdef inline void cut_output(Work* w, int threads) noexcept nogil:
    """Bands of whole tiles; of many filters on a small image, some at a time."""
    cdef Py_ssize_t rows = w.g.out_size[1], columns = w.g.out_size[2], tall = TALL * w.skip, units
    w.in_place = reads_in_place(w)
    w.blocks = ceil_div(columns, WIDEST if w.in_place else WIDEST_COPIED)
    w.block = ceil_div(ceil_div(columns, w.blocks), LINE) * LINE if w.blocks > 1 else columns
    w.blocks = ceil_div(columns, w.block)
    shape_strip(w)
    w.band = tall
    if not w.in_place:
        units = STRIP_BYTES // (w.pitch * <Py_ssize_t> sizeof(real))  # lines
        w.band = larger((units - reach(&w.rows)) // w.rows.step // tall * tall, tall)
    w.band = smaller(w.band, rows)
    w.bands = ceil_div(rows, w.band)
    w.strip_rows = (w.band - 1) * w.rows.step + reach(&w.rows) + 1
    units = w.g.batch * w.g.groups * w.bands * w.blocks
    w.share = w.g.rows
    if threads > 1 and units < SPARE * threads:
        w.share = ceil_div(w.g.rows, ceil_div(SPARE * threads, units))
    w.shares = ceil_div(w.g.rows, w.share)


cdef inline void fold_row(Geometry* g, const Tap* tap) noexcept nogil:
    """Of a 1x1 filter on pixels side by side, one long row: TALL rows, which a tile takes together."""
    cdef Py_ssize_t width = g.out_size[2] // TALL
    if (g.taps == 1 and g.step[2] == 1 and tap.offset[1] == 0 and tap.offset[2] == 0 and g.out_size[1] == 1
            and g.in_size[1] == 1 and g.in_size[2] == g.out_size[2] == width * TALL and width >= VL):
        g.in_size[1] = g.out_size[1] = TALL
        g.in_size[2] = g.out_size[2] = g.in_axis[1] = g.out_axis[1] = width


cdef inline void shape_work(Work* w, const Geometry* g, const Tap* table, int threads) noexcept nogil:
    cdef Py_ssize_t columns = 1, a, b
    while columns < g.taps and table[columns].offset[1] == table[0].offset[1]:
        columns += 1
    w.g = g[0]
    fold_row(&w.g, table)
    w.rows = comb(table, g.taps // columns, columns, g.step[1], 1)
    w.columns = comb(table, columns, 1, g.step[2], 2)
    a, b = w.rows.step, w.rows.gap
    while b:
        a, b = b, a % b
    w.line = w.rows.step // a * w.rows.gap
    w.skip = w.rows.gap // a
    if w.rows.count == 1:
        w.line = w.rows.step
        w.skip = 1
    cut_output(w, threads)
