"""Direct convolution in blocks of output channels: they fill the vectors, and pixels are broadcast.

    out[g, m, y, x] = sum over c, t of weight[g, m, c, t] * band[c, t, y, x]

With pixels in the lanes, rows of outputs that are shorter than a vector, steps between pixels and windows that lie in
the padding in part cost dear; pixels that are broadcast cost the same everywhere. Narrow groups share the lanes
(blocked_tile.pxd). A unit of work is a bundle of groups that do, one image and a band of rows of outputs; the rows of
the input that it needs are copied once (blocked_band.pxd), for all passes of an input gradient, and meet panels of NR
output channels, which `pack` has put in order (blocked_pack.pxd).

Sums leave through a buffer, transposed. Every sum runs over c, then t, in ascending order.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.blocked_band cimport fill_band
from fastconv.kernels.blocked_pack cimport pack_panel
from fastconv.kernels.blocked_tile cimport Live, Spot, half_width, run_tile
from fastconv.kernels.blocked_work cimport (
    Work, bundles_of, cut, join, list_live, panels_of, pick_live, table_bytes, thread_bytes,
)
from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    MR, NR, VL, flush_denormals, prefetch_write, real, restore_denormals, vec, vfma, vload, vload_first,
    vstore, vstore_apart, vstore_first, vsum, vtranspose, vzero,
)


# What the units of a call have in common, and where one of them stands.
cdef struct Unit:
    Py_ssize_t bundle
    Py_ssize_t image
    Py_ssize_t part
    Py_ssize_t row               # of outputs, its first
    Py_ssize_t rows
    Py_ssize_t groups            # of the bundle: the last one may have fewer
    real* band
    Live* live                   # of a tile


# One panel of one pass in a unit.
cdef struct Panel:
    const Geometry* g
    Py_ssize_t first_tap
    Py_ssize_t lanes
    int vectors
    real* out
    Py_ssize_t tiles             # of a row of outputs


ctypedef void (*Store)(const Work*, const real*, Py_ssize_t, const Panel*, Py_ssize_t, real*) noexcept nogil


cdef Unit unit_at(const Work* w, Py_ssize_t number) noexcept nogil:
    cdef Unit u
    u.row = number % w.bands * w.rows
    u.rows = smaller(w.rows, w.whole.out_size[1] - u.row)
    u.image = number // w.bands % w.whole.batch
    u.part = number // (w.bands * w.whole.batch) % w.parts
    u.bundle = number // (w.bands * w.whole.batch * w.parts)
    u.groups = smaller(w.shared, w.whole.groups - u.bundle * w.shared)
    return u


cdef inline void store_sums(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                            const Py_ssize_t step, real* to) noexcept nogil:
    """sums[pixel][lane] -> the rows of outputs of the lanes' channels, of which `to` is the first."""
    cdef vec[VL] block
    cdef real[VL] values
    cdef Py_ssize_t first = 0, i, j
    cdef real* row
    while first < p.lanes:
        for i in range(VL):
            block[i] = vload(sums + i * NR + first)
        vtranspose(block)
        for i in range(smaller(VL, p.lanes - first)):
            if first + i & (w.shared - 1) >= groups:
                continue
            row = to + w.lanes[first + i]
            if step == 1:
                vstore_first(row, pixels, block[i])
            elif step == 2:
                vstore_apart(row, pixels, block[i])
            else:
                vstore(values, block[i])
                for j in range(pixels):
                    row[j * p.g.out_axis[2]] = values[j]
        first += VL


# Called by address: inlined, their constants would take registers from the tiles.
cdef void store_beside(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                       real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, 1, to)


cdef void store_second(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                       real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, 2, to)


cdef void store_scattered(const Work* w, const real* sums, Py_ssize_t pixels, const Panel* p, Py_ssize_t groups,
                          real* to) noexcept nogil:
    store_sums(w, sums, pixels, p, groups, 0, to)


cdef inline void aim_taps(const Work* w, const Unit* u, const Panel* p, Py_ssize_t row, Py_ssize_t last_row,
                          Py_ssize_t x, Py_ssize_t last, Spot* s) noexcept nogil:
    if w.skips:
        s.live = u.live
        s.taps = pick_live(w, p.g, p.first_tap, row, last_row, x, last, u.live)
    else:
        s.live = w.live + p.first_tap
        s.taps = p.g.taps


cdef void run_panel(const Work* w, const Unit* u, const Panel* p, Store store, Spot* s) noexcept nogil:
    """One panel against the rows of a band, two at a time where maps are narrow."""
    cdef const Geometry* g = p.g
    cdef real[2 * VL * NR] sums
    cdef Py_ssize_t y = 0, x, last, number, lane
    cdef Py_ssize_t line = g.step[1] * w.band.phases * w.band.length * w.shared
    cdef Py_ssize_t rows = smaller(u.rows, g.out_size[1] - u.row)
    cdef bint pairs, together = g.out_axis[1] == g.out_size[2] * g.out_axis[2] and g.out_size[2] * 2 <= VL
    cdef real* out
    s.sums = sums
    while y < rows:
        pairs = 2 * g.out_size[2] <= MR and y + 1 < rows
        for number in range(p.tiles):
            x = number * g.out_size[2] // p.tiles
            last = (number + 1) * g.out_size[2] // p.tiles
            out = p.out + (u.row + y) * g.out_axis[1] + x * g.out_axis[2]
            if g.stream:
                for lane in range(p.lanes):
                    prefetch_write(out + w.lanes[lane])
            aim_taps(w, u, p, u.row + y, u.row + y + pairs, x, last - 1, s)
            s.band = u.band + y * line + x * w.shared
            s.half = line if pairs else half_width(last - x) * w.shared
            run_tile(p.vectors, w.shared, last - x if pairs else half_width(last - x), s)
            if pairs and together:
                store(w, sums, 2 * last, p, u.groups, out)
                continue
            store(w, sums, last - x, p, u.groups, out)
            if pairs:
                store(w, sums + (last - x) * NR, last - x, p, u.groups, out + g.out_axis[1])
        y += 1 + pairs


cdef void lay_bias(const Work* w, const Unit* u, Py_ssize_t panel, real* start) noexcept nogil:
    cdef Py_ssize_t lane, group, channel
    for lane in range(NR):
        group = u.bundle * w.shared + lane % w.shared
        channel = (panel * NR + lane) // w.shared
        start[lane] = w.bias[group * w.whole.rows + channel] if (
            channel < w.whole.rows and group < w.whole.groups) else 0


cdef void run_unit(const Work* w, Py_ssize_t number, char* scratch) noexcept nogil:
    cdef const Geometry* g = &w.whole
    cdef Unit u = unit_at(w, number)
    cdef Panel p
    cdef Spot s
    cdef Py_ssize_t panel, i, step, first_panel = u.part * w.panels // w.parts
    cdef Py_ssize_t last_panel = (u.part + 1) * w.panels // w.parts
    cdef real[NR] start
    cdef Store store
    u.live = <Live*> scratch
    u.band = <real*> (scratch + table_bytes(g))
    fill_band(w.shared, g, &w.band, u.groups, w.input + u.image * g.in_image + u.bundle * w.shared * g.in_group, u.row,
              w.band.rows - (w.rows - u.rows) * g.step[1], u.band)
    step = g.out_axis[2]
    store = store_beside if step == 1 else store_second if step == 2 else store_scattered
    s.band_channel = w.band.rows * w.band.phases * w.band.length * w.shared
    s.weight_channel = g.taps * NR
    s.channels = g.channels
    s.relu = g.relu
    s.start = NULL
    for panel in range(first_panel, last_panel):
        if w.bias != NULL:
            lay_bias(w, &u, panel, start)
            s.start = start
        s.weight = w.weight + (u.bundle * w.panels + panel) * g.channels * g.taps * NR
        p.lanes = smaller(w.shared * g.rows - panel * NR, NR)
        p.vectors = 1 if p.lanes <= VL else 2
        p.first_tap = 0
        for i in range(w.count):
            p.g = &w.passes[i]
            p.tiles = ceil_div(p.g.out_size[2], MR)
            p.out = (w.out + p.g.out_offset + u.image * g.out_image + u.bundle * w.shared * g.out_group
                     + panel * NR // w.shared * g.out_row)
            run_panel(w, &u, &p, store, &s)
            p.first_tap += p.g.taps


cdef bint are_finite(const real* weight, Py_ssize_t count) noexcept nogil:
    """Zero times anything else is not zero."""
    cdef Py_ssize_t i = 0
    cdef vec total = vzero()
    while i + VL <= count:
        total = vfma(vload(weight + i), vzero(), total)
        i += VL
    total = vfma(vload_first(weight + i, count - i), vzero(), total)
    return vsum(total) == 0


cdef void run_all(Work* w, int threads, char* scratch) noexcept nogil:
    cdef Py_ssize_t units = w.bundles * w.whole.batch * w.bands * w.parts, size = thread_bytes(w), unit
    cdef unsigned int mode = 0
    list_live(w, scratch)
    scratch += table_bytes(&w.whole)
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


def workspace_bytes(cnp.ndarray passes, cnp.ndarray taps, int threads):
    """Bytes that `conv` needs beside its operands."""
    cdef Work w
    cut(&w, <const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes),
        <const Tap*> cnp.PyArray_DATA(taps), threads)
    return table_bytes(&w.whole) + thread_bytes(&w) * threads + 64


def packed_elements(cnp.ndarray passes):
    cdef Geometry g = join(<const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes))
    return bundles_of(&g) * panels_of(&g) * g.channels * g.taps * NR


def pack(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray weight, cnp.ndarray to, int threads):
    """Weights -> `to`, in the order that `conv` reads."""
    cdef Geometry g = join(<const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes))
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef const real* source = <const real*> cnp.PyArray_DATA(weight)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    cdef Py_ssize_t panels = bundles_of(&g) * panels_of(&g), number
    with nogil:
        for number in prange(panels, num_threads=threads):
            pack_panel(&g, tap, source, number, target + number * g.channels * g.taps * NR)


def conv(cnp.ndarray passes, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out,
         cnp.ndarray workspace, int threads):
    """All passes of the equation above over `out`, with packed weights; the plan has checked every argument."""
    cdef char* scratch = <char*> cnp.PyArray_DATA(workspace)
    cdef Work w
    cut(&w, <const Geometry*> cnp.PyArray_DATA(passes), cnp.PyArray_SIZE(passes),
        <const Tap*> cnp.PyArray_DATA(taps), threads)
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out)
    scratch += -<Py_ssize_t> scratch & 63
    with nogil:
        run_all(&w, threads, scratch)
