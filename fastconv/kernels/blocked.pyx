"""Direct convolution in blocks of output channels: they fill the vectors, and pixels are broadcast.

    out[g, m, y, x] = sum over c, t of weight[g, m, c, t] * band[c, t, y, x]

With pixels in the lanes, rows of outputs that are shorter than a vector, steps between pixels and windows that lie in
the padding in part cost dear; pixels that are broadcast cost the same everywhere. Narrow groups share the lanes
(blocked_tile.pxd). A unit of work is a bundle of groups that do, one image and a band of rows of outputs; the rows of
the input that it needs are copied once (blocked_band.pxd), for all passes of an input gradient, and meet panels of NR
output channels, which `pack` has put in order (blocked_pack.pxd).

Sums leave through a buffer, transposed; those of passes whose outputs lie side by side, as one row. Every sum runs
over c, then t, in ascending order.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.blocked_band cimport fill_band
from fastconv.kernels.blocked_pack cimport pack_panel
from fastconv.kernels.blocked_tile cimport Spot, half_width, run_tile
from fastconv.kernels.blocked_work cimport (
    MOST_JOINED, Joined, Span, Work, aim_at_taps, band_bytes, bundles_of, cut, join, join_outputs, list_live,
    packed_bytes, panels_of, rows_met, table_bytes, thread_bytes, tiles_of,
)
from fastconv.kernels.gemm_micro cimport LINE, Ahead
from fastconv.kernels.gemm_pack cimport are_finite, ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    MR, NR, VL, flush_denormals, prefetch_far, prefetch_write, real, restore_denormals, vec, vload, vstore,
    vstore_apart, vstore_first, vtranspose,
)


cdef enum:
    SUMS = (MR + 2 * VL) * NR  # of a tile, and what a transposition reads beyond


# What the units of a call have in common, and where one of them stands.
cdef struct Unit:
    Py_ssize_t bundle
    Py_ssize_t image
    Py_ssize_t part
    Py_ssize_t row               # of outputs, its first
    Py_ssize_t rows
    Py_ssize_t groups            # of the bundle: the last one may have fewer
    real* band
    real* sums                   # that wait for the next block of the depth, if there is one
    Py_ssize_t channel           # of the block of the depth, its first
    Py_ssize_t channels
    Ahead* ahead                 # what the unit that comes next reads, ...
    Py_ssize_t share             # ... and how many lines of it are fetched with a tile


# One panel of the passes in a unit whose outputs lie side by side.
cdef struct Panel:
    const Geometry* g            # of the first pass, whose rows of outputs are no shorter than the others'
    Joined joined
    Py_ssize_t lanes
    int vectors
    real* out
    Py_ssize_t tiles             # of a row of outputs
    Py_ssize_t apart             # from the sums of one pass to those of the next


ctypedef void (*Store)(const Work*, const real*, Py_ssize_t, const Panel*, Py_ssize_t, real*) noexcept nogil


cdef Unit unit_at(const Work* w, Py_ssize_t number) noexcept nogil:
    cdef Unit u
    u.row = number % w.bands * w.rows
    u.rows = smaller(w.rows, w.whole.out_size[1] - u.row)
    u.image = number // w.bands % w.whole.batch
    u.part = number // (w.bands * w.whole.batch) % w.parts
    u.bundle = w.first_bundle + number // (w.bands * w.whole.batch * w.parts)
    u.groups = smaller(w.shared, w.whole.groups - u.bundle * w.shared)
    return u


cdef inline void store_sums(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                            const bint joins, const Py_ssize_t step, real* to) noexcept nogil:
    """sums[pixel][lane] -> the rows of outputs of the lanes' channels, of which `to` is the first.

    Of passes that are joined sums[pass][pixel][lane]: pixels from all of them in turn.
    """
    cdef vec[VL] block
    cdef real[VL] values
    cdef Py_ssize_t[VL] at
    cdef Py_ssize_t first, i, j, pixel = 0, count
    cdef const real* next = sums
    cdef int turn = 0
    cdef real* row
    while pixel < pixels:
        count = smaller(pixels - pixel, VL)
        if joins:
            for i in range(VL):
                at[i] = next + turn * p.apart - sums
                turn += 1
                if turn == p.joined.count:
                    turn = 0
                    next += NR
        first = 0
        while first < p.lanes:
            for i in range(VL):
                block[i] = vload(sums + (at[i] if joins else (pixel + i) * NR) + first)
            vtranspose(block)
            for i in range(smaller(VL, p.lanes - first)):
                if first + i & (w.shared - 1) >= groups:
                    continue
                if step == 1:
                    vstore_first(to + w.lanes[first + i] + pixel, count, block[i])
                elif step == 2:
                    vstore_apart(to + w.lanes[first + i] + 2 * pixel, count, block[i])
                else:
                    vstore(values, block[i])
                    row = to + w.lanes[first + i] + pixel * p.g.out_axis[2]
                    for j in range(count):
                        row[j * p.g.out_axis[2]] = values[j]
            first += VL
        pixel += VL


cdef inline void fetch(Ahead* ahead, Py_ssize_t count) noexcept nogil:
    """The next so many lines, if any are left."""
    cdef Py_ssize_t _
    for _ in range(smaller(count, ahead.total)):
        prefetch_far(ahead.line)
        ahead.line += ahead.step
        ahead.left -= 1
        if ahead.left == 0:
            ahead.line += ahead.jump
            ahead.left = ahead.lines
    ahead.total -= count


# Called by address: inlined, their constants would take registers from the tiles.
cdef void store_beside(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                       real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, False, 1, to)


cdef void store_joined(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                       real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, True, 1, to)


cdef void store_second(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                       real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, False, 2, to)


cdef void store_scattered(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                          real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, False, 0, to)


cdef Store store_of(const Panel* p) noexcept nogil:
    cdef Py_ssize_t step = p.g.out_axis[2]
    if p.joined.count > 1:
        return store_joined
    return store_beside if step == 1 else store_second if step == 2 else store_scattered


cdef inline void fetch_outputs(const Work* w, const Panel* p, const real* out, Py_ssize_t rows,
                               Py_ssize_t elements) noexcept nogil:
    """For writing: so many of each row of all lanes, from `out` on."""
    cdef Py_ssize_t lane, row, at
    for row in range(rows):
        at = row * p.g.out_axis[1]
        while at < row * p.g.out_axis[1] + elements:
            for lane in range(p.lanes):
                prefetch_write(out + at + w.lanes[lane])
            at += LINE


cdef void run_panel(const Work* w, const Unit* u, const Panel* p, Store store, Spot* s, real* waiting) noexcept nogil:
    """One panel against the rows of a band, two at a time where maps are narrow or padding is wide."""
    cdef const Geometry* g = p.g
    cdef const Joined* joined = &p.joined
    cdef real[MOST_JOINED * SUMS] sums
    cdef Py_ssize_t y = 0, x, last, number, count, half
    cdef Py_ssize_t line = g.step[1] * w.band.phases * w.band.length * w.shared
    cdef Py_ssize_t rows = smaller(u.rows, g.out_size[1] - u.row)
    cdef bint pairs, together = p.tiles == 1 and g.out_axis[1] == g.out_size[2] * g.out_axis[2]
    cdef bint closes = u.channel + u.channels == g.channels
    cdef Span[MOST_JOINED] met
    cdef real* out
    cdef real* next
    cdef real* first
    cdef int i
    while y < rows:
        pairs = (w.pairs or 2 * g.out_size[2] <= MR) and y + 1 < rows
        for i in range(joined.count):
            met[i] = rows_met(g + i, w.taps + joined.first_tap[i], joined.across[i], u.row + y, u.row + y + pairs)
        for number in range(p.tiles):
            x = number * g.out_size[2] // p.tiles
            last = (number + 1) * g.out_size[2] // p.tiles
            half = last - x if pairs else half_width(last - x)
            out = p.out + (u.row + y) * g.out_axis[1] + x * g.out_axis[2]
            if g.stream and closes:  # what the next tile writes, to the right or in the next rows
                if number + 1 < p.tiles:
                    next = out + (last - x) * g.out_axis[2]
                else:
                    next = p.out + (u.row + y + 1 + pairs) * g.out_axis[1]
                fetch_outputs(w, p, next, smaller(1 + pairs, rows - y), (last - x) * g.out_axis[2])
            s.band = u.band + y * line + x * w.shared
            s.half = line if pairs else half * w.shared
            first = sums
            if w.blocks > 1:
                first = waiting + (y * w.tiles + number) * MR * NR
            fetch(u.ahead, u.share)
            for i in range(joined.count):
                aim_at_taps(w, g + i, joined.first_tap[i], joined.across[i], met + i, x, last - 1, s)
                s.sums = first + i * p.apart
                run_tile(p.vectors, w.shared, half, s)
            if not closes:
                continue
            count = smaller(joined.count * last, joined.width) - joined.count * x
            store(w, first, 2 * count if pairs and together else count, p, u.groups, out)
            if pairs and not together:
                store(w, first + (last - x) * NR, count, p, u.groups, out + g.out_axis[1])
        y += 1 + pairs


cdef void lay_bias(const Work* w, const Unit* u, Py_ssize_t panel, real* start) noexcept nogil:
    cdef Py_ssize_t lane, group, channel
    for lane in range(NR):
        group = u.bundle * w.shared + lane % w.shared
        channel = (panel * NR + lane) // w.shared
        start[lane] = w.bias[group * w.whole.rows + channel] if (
            channel < w.whole.rows and group < w.whole.groups) else 0


cdef void run_block(const Work* w, Unit* u) noexcept nogil:
    """All panels and passes of a unit, for the block of the depth that its band holds."""
    cdef const Geometry* g = &w.whole
    cdef Panel p
    cdef Spot s
    cdef Py_ssize_t number, panel, i, first_tap, first = u.part * w.panels // w.parts
    cdef real[NR] start
    s.band_channel = w.band.rows * w.band.phases * w.band.length * w.shared
    s.weight_channel = g.taps * NR
    s.channels = u.channels
    s.resumes = u.channel > 0
    s.relu = g.relu and u.channel + u.channels == g.channels
    s.start = NULL
    for number in range(first, (u.part + 1) * w.panels // w.parts):
        panel = w.first_panel + number
        if w.bias != NULL and u.channel == 0:
            lay_bias(w, u, panel, start)
            s.start = start
        s.weight = w.weight + (((u.bundle - w.first_bundle) * w.panels + number) * g.channels + u.channel) * g.taps * NR
        p.lanes = smaller(w.shared * g.rows - panel * NR, NR)
        p.vectors = 1 if p.lanes <= VL else 2
        i = first_tap = 0
        while i < w.count:
            p.g = &w.passes[i]
            p.joined = join_outputs(w, i, first_tap)
            p.tiles = tiles_of(w, p.g.out_size[2])
            p.apart = w.rows * w.tiles * MR * NR if w.blocks > 1 else SUMS
            p.out = (w.out + p.g.out_offset + u.image * g.out_image + u.bundle * w.shared * g.out_group
                     + panel * NR // w.shared * g.out_row)
            run_panel(w, u, &p, store_of(&p), &s,
                      u.sums + ((number - first) * w.count + i) * w.rows * w.tiles * MR * NR)
            first_tap = p.joined.end
            i += p.joined.count


cdef void look_ahead(const Work* w, Py_ssize_t number, Unit* u) noexcept nogil:
    """Aims at the input of unit `number`, if there is one: the rows of the first block of its depth."""
    cdef const Geometry* g = &w.whole
    cdef Py_ssize_t first, last, planes, tiles = w.tiles * w.rows * w.panels * w.count * w.blocks
    cdef Unit next
    u.share = u.ahead.total = 0
    if number >= w.bundles * g.batch * w.bands * w.parts or not g.fetches:
        return
    next = unit_at(w, number)
    first = larger(next.row * g.step[1] + w.band.top, 0)
    last = smaller(next.row * g.step[1] + w.band.top + w.band.rows, g.in_size[1])
    if first >= last or w.parts > 1:
        return
    planes = next.groups * smaller(w.channels, g.channels)
    u.ahead.line = (w.input + next.image * g.in_image + next.bundle * w.shared * g.in_group + first * g.in_axis[1])
    u.ahead.lines = u.ahead.left = ceil_div((last - first) * g.in_axis[1], LINE)
    u.ahead.step = LINE
    u.ahead.jump = g.in_channel - u.ahead.lines * LINE
    u.ahead.total = planes * u.ahead.lines
    u.share = ceil_div(u.ahead.total, tiles)


cdef void run_unit(const Work* w, Py_ssize_t number, char* scratch) noexcept nogil:
    cdef const Geometry* g = &w.whole
    cdef Unit u = unit_at(w, number)
    cdef Ahead ahead
    u.ahead = &ahead
    look_ahead(w, number + 1, &u)
    cdef const real* image = w.input + u.image * g.in_image + u.bundle * w.shared * g.in_group
    u.band = <real*> scratch
    u.sums = <real*> (scratch + band_bytes(w))
    u.channel = 0
    while u.channel < g.channels:
        u.channels = smaller(w.channels, g.channels - u.channel)
        fill_band(w.shared, g, &w.band, w.phases, u.groups, u.channels, image + u.channel * g.in_channel, u.row,
                  w.band.rows - (w.rows - u.rows) * g.step[1], u.band)
        run_block(w, &u)
        u.channel += u.channels


cdef void run_all(Work* w, int threads, char* scratch) noexcept nogil:
    """For the bundles and panels whose weights are packed."""
    cdef Py_ssize_t units = w.bundles * w.whole.batch * w.bands * w.parts, size = thread_bytes(w), unit
    cdef unsigned int mode = 0
    w.skips = w.whole.skips and are_finite(
        w.weight, w.bundles * w.panels * w.whole.channels * w.whole.taps * NR)
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for unit in range(units):
            run_unit(w, unit, scratch)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="static"):
            run_unit(w, unit, scratch + threadid() * size)
        restore_denormals(mode)


cdef void pack_panels(const Work* w, const real* weight, real* to, int threads) noexcept nogil:
    cdef const Geometry* g = &w.whole
    cdef Py_ssize_t number
    for number in prange(w.bundles * w.panels, num_threads=threads):
        pack_panel(g, w.taps, weight, w.first_bundle + number // w.panels, w.first_panel + number % w.panels,
                   to + number * g.channels * g.taps * NR)


cdef void pack_and_run(Work* w, const real* weight, real* packed, int threads, char* scratch) noexcept nogil:
    """As many weights at a time as the plan has room for."""
    cdef Py_ssize_t panels = w.panels, bundles = w.bundles
    w.weight = packed
    while w.first_bundle < bundles_of(&w.whole):
        w.bundles = smaller(bundles, bundles_of(&w.whole) - w.first_bundle)
        w.first_panel = 0
        while w.first_panel < panels_of(&w.whole):
            w.panels = smaller(panels, panels_of(&w.whole) - w.first_panel)
            pack_panels(w, weight, packed, threads)
            run_all(w, threads, scratch)
            w.first_panel += panels
        w.first_bundle += bundles


cdef Work work_of(cnp.ndarray passes, cnp.ndarray taps, bint prepared, int threads, Py_ssize_t pack_limit):
    cdef Work w
    cut(&w, <const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes),
        <const Tap*> cnp.PyArray_DATA(taps), <Py_ssize_t> 1 << 62 if prepared else pack_limit, threads)
    return w


def workspace_bytes(cnp.ndarray passes, cnp.ndarray taps, bint prepared, int threads, Py_ssize_t pack_limit):
    """Bytes that `conv` needs beside its operands."""
    cdef Work w = work_of(passes, taps, prepared, threads, pack_limit)
    return table_bytes(&w) + (0 if prepared else packed_bytes(&w)) + thread_bytes(&w) * threads + 64


def packed_elements(cnp.ndarray passes):
    cdef Geometry g = join(<const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes))
    return bundles_of(&g) * panels_of(&g) * g.channels * g.taps * NR


def pack(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray weight, cnp.ndarray to, int threads):
    """Weights -> `to`, in the order that `conv` reads with prepared=True."""
    cdef Work w = work_of(passes, taps, True, threads, 0)
    cdef const real* source = <const real*> cnp.PyArray_DATA(weight)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    with nogil:
        pack_panels(&w, source, target, threads)


def conv(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out,
         cnp.ndarray workspace, bint prepared, int threads, Py_ssize_t pack_limit):
    """All passes of the equation above over `out`; the plan has checked every argument."""
    cdef Work w = work_of(passes, taps, prepared, threads, pack_limit)
    cdef char* scratch = <char*> cnp.PyArray_DATA(workspace)
    cdef real* packed
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out)
    scratch += -<Py_ssize_t> scratch & 63
    with nogil:
        list_live(&w, scratch)
        scratch += table_bytes(&w)
        if prepared:
            run_all(&w, threads, scratch)
        else:
            packed = <real*> scratch
            scratch += packed_bytes(&w)
            pack_and_run(&w, w.weight, packed, threads, scratch)
